//! How far the bridge is, for whoever looks on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::report::Totals;

/// How far a bridge is. Cheap to clone; looking on costs the bridge nothing.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    in_flight: AtomicU64,
    left: AtomicU64,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    totals: Totals,
    depth: Option<u64>,
    trouble: Option<String>,
}

/// How far it was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// What it has done.
    pub totals: Totals,
    /// Taken from the source and not done with.
    pub in_flight: u64,
    /// Not taken by the filter, and held.
    pub left: u64,
    /// How many the source still held when it was last asked, where it says; asked every 2 s.
    pub depth: Option<u64>,
    /// What it waits for: the error of the last send, until one is accepted again.
    pub trouble: Option<String>,
}

impl Progress {
    /// How far it is now.
    pub fn now(&self) -> Snapshot {
        let State { totals, depth, trouble } = self.state().clone();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Snapshot { totals, in_flight: count(&self.0.in_flight), left: count(&self.0.left), depth, trouble }
    }

    pub(crate) fn add(&self, totals: Totals) {
        let mut state = self.state();
        state.totals += totals;
        if totals.moved + totals.rejected > 0 {
            state.trouble = None;
        }
    }

    pub(crate) fn set_depth(&self, depth: u64) {
        self.state().depth = Some(depth);
    }

    pub(crate) fn set_trouble(&self, trouble: String) {
        self.state().trouble = Some(trouble);
    }

    pub(crate) fn set_held(&self, in_flight: usize, left: usize) {
        self.0.in_flight.store(in_flight as u64, Ordering::Relaxed);
        self.0.left.store(left as u64, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
