//! Keeps the leases of unsettled deliveries, buffered ones included, from expiring while they are ours.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::capabilities::Lease;
use crate::consumer::Phase;
use crate::driver::{self, Token};
use crate::error::ErrorKind;

/// The leases of one consumer's unsettled deliveries.
pub(crate) struct Leases {
    entries: Mutex<Slab<Entry>>,
    /// Told when a lease is lost.
    lost: Notify,
    /// How long a lease is, and the longest it may become.
    lease: Duration,
    max: Duration,
}

#[derive(Clone, Copy)]
pub(crate) struct Entry {
    token: Token,
    expires: Instant,
    /// Not extended past this.
    limit: Instant,
    lost: bool,
}

/// The entries, locked.
pub(crate) struct Table<'a> {
    entries: MutexGuard<'a, Slab<Entry>>,
    limit: Instant,
}

impl Table<'_> {
    pub(crate) fn insert(&mut self, token: Token, expires: Instant) -> usize {
        self.entries.insert(Entry { token, expires, limit: self.limit, lost: false })
    }
}

impl Leases {
    /// A table where leases can be renewed; `None` elsewhere.
    pub(crate) fn new(capability: Lease, lease: Duration, max: Duration) -> Option<Self> {
        let Lease::Renewable(broker_max) = capability else { return None };
        let max = broker_max.map_or(max, |broker_max| broker_max.min(max));
        Some(Self { entries: Mutex::default(), lost: Notify::new(), lease, max })
    }

    /// The table, to take in several under one lock.
    pub(crate) fn table(&self) -> Table<'_> {
        Table { entries: self.entries(), limit: Instant::now() + self.max }
    }

    pub(crate) fn remove(&self, keys: impl IntoIterator<Item = usize>) {
        let mut entries = self.entries();
        for key in keys {
            entries.try_remove(key);
        }
    }

    pub(crate) fn get(&self, key: usize) -> Option<Entry> {
        self.entries().get(key).copied()
    }

    /// Keeps a lease again that was let go for a settlement.
    pub(crate) fn put_back(&self, entry: Entry) -> usize {
        self.entries().insert(entry)
    }

    pub(crate) fn is_lost(&self, key: usize) -> bool {
        self.any_lost([key])
    }

    pub(crate) fn any_lost(&self, keys: impl IntoIterator<Item = usize>) -> bool {
        let now = Instant::now();
        let entries = self.entries();
        let mut found = keys.into_iter().filter_map(|key| entries.get(key));
        found.any(|entry| entry.lost || entry.expires <= now)
    }

    /// Waits until a lease is lost.
    pub(crate) async fn until_lost(&self, key: usize) {
        loop {
            let told = self.lost.notified();
            let Some(expires) = self.entries().get(key).map(|entry| entry.expires) else { return };
            if self.is_lost(key) {
                return;
            }
            // By the clock too: a driver call that hangs must not hide it.
            let _ = tokio::time::timeout_at(expires, told).await;
        }
    }

    fn entries(&self) -> MutexGuard<'_, Slab<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What will have to be extended before the next tick but one, by how long. What has expired is lost, and stays so.
    fn due(&self) -> BTreeMap<Duration, Vec<(usize, Token)>> {
        let now = Instant::now();
        let soon = now + self.lease.mul_f32(0.625);
        let mut any_lost = false;
        let mut due: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (key, entry) in self.entries().iter_mut() {
            if entry.expires <= now {
                any_lost |= !entry.lost;
                entry.lost = true;
            } else if !entry.lost && entry.expires <= soon {
                let by = self.extension(entry.limit.saturating_duration_since(now));
                if now + by > entry.expires {
                    due.entry(by).or_default().push((key, entry.token));
                }
            }
        }
        if any_lost {
            self.lost.notify_waiters();
        }
        due
    }

    /// By how long to extend what may be held so long yet: a lease, or nearly all that is left, in steps, so that many are
    /// extended together.
    fn extension(&self, left: Duration) -> Duration {
        if left >= self.lease {
            return self.lease;
        }
        let step = self.lease / 8;
        let steps = left.as_nanos().checked_div(step.as_nanos()).unwrap_or(0);
        step * u32::try_from(steps).unwrap_or(0)
    }

    /// Extends what is due, a few times in each lease, until the consumer is closed.
    pub(crate) async fn keep(
        self: Arc<Self>,
        driver: Arc<dyn driver::Consumer>,
        mut phase: watch::Receiver<Phase>,
    ) {
        let mut tick = tokio::time::interval((self.lease / 4).max(Duration::from_millis(5)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = phase.wait_for(|phase| *phase == Phase::Closed) => return,
            }
            for (by, due) in self.due() {
                self.extend(&*driver, by, due).await;
            }
        }
    }

    async fn extend(&self, driver: &dyn driver::Consumer, by: Duration, due: Vec<(usize, Token)>) {
        let tokens: Vec<_> = due.iter().map(|(_, token)| *token).collect();
        let asked = Instant::now();
        let results = driver.extend(&tokens, by).await;
        let mut lost = false;
        let mut entries = self.entries();
        for ((key, token), result) in due.into_iter().zip(results) {
            // The place may have been settled and taken by another meanwhile.
            let Some(entry) = entries.get_mut(key).filter(|entry| entry.token == token) else { continue };
            match result {
                Ok(()) => entry.expires = asked + by,
                Err(error) if error.kind() == ErrorKind::Stale => {
                    entry.lost = true;
                    lost = true;
                }
                // Tried again at the next tick, until the lease is over.
                Err(error) => tracing::warn!(error = %error, "a lease could not be extended"),
            }
        }
        drop(entries);
        if lost {
            self.lost.notify_waiters();
        }
    }
}
