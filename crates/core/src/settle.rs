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
    /// The payload's bytes, to be counted off.
    pub(crate) bytes: usize,
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

    /// Queues settlements. After the close they are answered by their dropped slots.
    pub(crate) fn push(&self, ops: impl IntoIterator<Item = Op>, urgent: bool) {
        let mut waiting = self.waiting();
        if waiting.closed {
            return;
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
    }

    /// Sends now what waits: the application waits for messages, so nothing is gained by waiting for more acks.
    pub(crate) fn nudge(&self) {
        let mut waiting = self.waiting();
        if waiting.urgent || waiting.ops.is_empty() {
            return;
        }
        waiting.urgent = true;
        drop(waiting);
        self.wake.notify_one();
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

/// What came of a call: an operation, its outcome, and how long the call took.
pub(crate) struct Settled {
    pub(crate) op: Op,
    pub(crate) result: Result<()>,
    pub(crate) took: Duration,
}

/// Settles through the driver; what fails safely is tried again.
pub(crate) async fn settle(driver: &dyn driver::Consumer, ops: Vec<Op>) -> Vec<Settled> {
    let started = Instant::now();
    let mut done = Vec::with_capacity(ops.len());
    let mut ops = ops;
    for tries in 1..=TRIES {
        let batch: Vec<_> = ops.iter().map(|op| (op.token, op.settlement.clone())).collect();
        let mut results = driver.settle(&batch).await.into_iter();
        let mut again = Vec::new();
        for op in ops {
            let result = results.next().unwrap_or_else(|| {
                Err(Error::new(ErrorKind::Internal, "the driver gave no answer for a settlement"))
            });
            match result {
                Err(error) if error.retry() == Retry::Safe && tries < TRIES => again.push(op),
                result => done.push(Settled { op, result, took: started.elapsed() }),
            }
        }
        if again.is_empty() {
            break;
        }
        ops = again;
        tokio::time::sleep(PAUSE * tries).await;
    }
    done
}
