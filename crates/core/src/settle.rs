//! Batched settlement: what many deliveries ask for goes to the driver together.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::answer::Slot;
use crate::driver::{self, Settlement, Token};
use crate::error::{Error, ErrorKind, Result, Retry};

/// How often a settlement that failed safely is tried again, and the wait between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// One delivery's settlement on its way.
pub(crate) struct Op {
    pub(crate) token: Token,
    pub(crate) settlement: Settlement,
    /// Who waits for the outcome; nobody for a deferred ack.
    pub(crate) slot: Option<Slot<()>>,
    /// Whether who waits keeps the delivery where this fails.
    pub(crate) keep: bool,
    /// The payload's bytes, to be counted off.
    pub(crate) bytes: usize,
}

impl Op {
    /// Whether the driver still holds the delivery after this outcome.
    pub(crate) fn is_held(&self, result: &Result<()>) -> bool {
        let is_sent_on = matches!(self.settlement, Settlement::Retry { .. } | Settlement::Reject { .. });
        is_sent_on && result.as_ref().is_err_and(|error| !is_gone(error))
    }

    /// Gives back what a failed settlement left, unless who asked for that one keeps it.
    pub(crate) fn release(&self) -> Option<Self> {
        let is_kept = self.keep && self.slot.as_ref().is_some_and(Slot::is_awaited);
        let (token, bytes) = (self.token, self.bytes);
        (!is_kept).then_some(Self { token, settlement: Settlement::Release, slot: None, keep: false, bytes })
    }
}

/// Whether a settlement failed because the delivery is no longer ours.
pub(crate) fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::Stale
}

/// The settlements that wait for the next call; bounded by the number of unsettled deliveries.
pub(crate) struct SettleQueue {
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// So many deferred acks go at once.
    full: usize,
    /// So long the first deferred ack waits for others.
    linger: Duration,
}

#[derive(Default)]
struct Waiting {
    ops: Vec<Op>,
    urgent: bool,
    closed: bool,
}

impl SettleQueue {
    pub(crate) fn new(full: usize, linger: Duration) -> Self {
        Self { waiting: Mutex::default(), wake: Notify::new(), full: full.max(1), linger }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues settlements, and says whether it did: after the close they are answered by their dropped slots, and those
    /// without one by who asked.
    pub(crate) fn push(&self, ops: impl IntoIterator<Item = Op>, urgent: bool) -> bool {
        let mut waiting = self.waiting();
        if waiting.closed {
            return false;
        }
        let before = waiting.ops.len();
        waiting.ops.extend(ops);
        waiting.urgent |= urgent;
        let after = waiting.ops.len();
        // Woken for the first, which starts the linger, and when it is over early.
        let wake = waiting.urgent || before == 0 || (before < self.full && after >= self.full);
        drop(waiting);
        if wake {
            self.wake.notify_one();
        }
        true
    }

    /// Does something that the close waits for; `None` after it.
    pub(crate) fn unless_closed<T>(&self, act: impl FnOnce() -> Option<T>) -> Option<T> {
        let waiting = self.waiting();
        if waiting.closed { None } else { act() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting().ops.is_empty()
    }

    /// Wakes the settling task, to look at the consumer's phase, and to wait no longer for more.
    pub(crate) fn wake(&self) {
        self.waiting().urgent = true;
        self.wake.notify_one();
    }

    /// Takes no more; gives what still waits.
    pub(crate) fn close(&self) -> Vec<Op> {
        let mut waiting = self.waiting();
        waiting.closed = true;
        std::mem::take(&mut waiting.ops)
    }

    /// Waits for something to settle or a [`wake`](Self::wake), and takes all there is, at most a linger later.
    pub(crate) async fn take(&self) -> Vec<Op> {
        if self.waiting().ops.is_empty() {
            self.wake.notified().await;
        }
        let hurry = {
            let waiting = self.waiting();
            waiting.urgent || waiting.ops.len() >= self.full || waiting.ops.is_empty()
        };
        if !hurry && !self.linger.is_zero() {
            let _ = tokio::time::timeout(self.linger, self.lingering()).await;
        }
        let mut waiting = self.waiting();
        waiting.urgent = false;
        std::mem::take(&mut waiting.ops)
    }

    async fn lingering(&self) {
        loop {
            {
                let waiting = self.waiting();
                if waiting.urgent || waiting.ops.len() >= self.full {
                    return;
                }
            }
            self.wake.notified().await;
        }
    }
}

/// Settles through the driver; what fails safely is tried again. Tells what is done, with an outcome for each, and how
/// long it took.
pub(crate) async fn settle(
    driver: &dyn driver::Consumer,
    mut ops: Vec<Op>,
    done: impl Fn(Vec<Op>, Vec<Result<()>>, Duration),
) {
    let started = Instant::now();
    for tries in 1..=TRIES {
        let batch: Vec<_> = ops.iter().map(|op| (op.token, op.settlement.clone())).collect();
        let mut results = driver.settle(&batch).await;
        results.resize_with(ops.len(), || {
            Err(Error::new(ErrorKind::Internal, "the driver gave no answer for a settlement"))
        });
        let again = if tries < TRIES { take_safe(&mut ops, &mut results) } else { Vec::new() };
        done(ops, results, started.elapsed());
        if again.is_empty() {
            return;
        }
        ops = again;
        tokio::time::sleep(PAUSE * tries).await;
    }
}

/// Takes out what failed safely.
fn take_safe(ops: &mut Vec<Op>, results: &mut Vec<Result<()>>) -> Vec<Op> {
    let is_safe = |result: &Result<()>| matches!(result, Err(error) if error.retry() == Retry::Safe);
    if !results.iter().any(is_safe) {
        return Vec::new();
    }
    let mut verdicts = results.iter().map(is_safe);
    let safe = ops.extract_if(.., |_| verdicts.next().unwrap_or(false)).collect();
    results.retain(|result| !is_safe(result));
    safe
}
