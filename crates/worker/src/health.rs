//! How a worker is doing: cheap to read, for probes and for people.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use throughline_core::Result;
use tokio::time::Instant;

use crate::middleware::trace::is_late;

/// The run loop looks up at least so often.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Silent for so long, it hangs.
const SILENT: Duration = Duration::from_secs(10);

/// How a worker is doing. Reading it is a few atomic loads; it stays readable after the worker has ended.
#[derive(Clone, Debug)]
pub struct Health(pub(crate) Arc<Stats>);

#[derive(Debug)]
pub(crate) struct Stats {
    began: Instant,
    /// Before, within and after [`Worker::run`](crate::Worker::run): 0, 1 and 2; 3 when draining.
    state: AtomicU8,
    /// When the run loop last looked up, in milliseconds since `began`.
    tick: AtomicU64,
    running: AtomicUsize,
    held: AtomicUsize,
    lag: AtomicU64,
    pub(crate) acked: Count,
    pub(crate) duplicates: Count,
    pub(crate) postponed: Count,
    pub(crate) retried: Count,
    pub(crate) dead_lettered: Count,
    pub(crate) released: Count,
    late: AtomicU64,
    not_made: AtomicU64,
}

const BEFORE: u8 = 0;
const RUNNING: u8 = 1;
const DRAINING: u8 = 2;
const ENDED: u8 = 3;

/// How many messages ended in one way, and how many settlements of it failed.
#[derive(Debug, Default)]
pub(crate) struct Count {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Count {
    pub(crate) fn add(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a settlement. One that failed is told: its message comes again.
    pub(crate) fn tell(&self, result: Result<()>) {
        match result {
            Ok(()) => self.add(),
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                if is_late(&error) {
                    tracing::warn!(%error, "a message was not settled in time: it is delivered again");
                } else {
                    tracing::error!(%error, "a message could not be settled: it stays, and is delivered again");
                }
            }
        }
    }

    fn get(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            state: AtomicU8::new(BEFORE),
            tick: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            lag: AtomicU64::new(u64::MAX),
            acked: Count::default(),
            duplicates: Count::default(),
            postponed: Count::default(),
            retried: Count::default(),
            dead_lettered: Count::default(),
            released: Count::default(),
            late: AtomicU64::new(0),
            not_made: AtomicU64::new(0),
        }
    }

    pub(crate) fn run(&self) {
        self.state.store(RUNNING, Ordering::Release);
        self.look_up(0, 0);
    }

    pub(crate) fn drain(&self) {
        self.state.store(DRAINING, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.state.store(ENDED, Ordering::Release);
    }

    pub(crate) fn look_up(&self, running: usize, held: usize) {
        self.tick.store(millis(self.began.elapsed()), Ordering::Relaxed);
        self.running.store(running, Ordering::Relaxed);
        self.held.store(held, Ordering::Relaxed);
    }

    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn waited(&self, delay: Duration) {
        self.lag.store(millis(delay), Ordering::Relaxed);
    }

    /// So many acks were answered, and failed afterwards.
    pub(crate) fn not_made(&self, acks: u64) {
        self.not_made.store(acks, Ordering::Relaxed);
    }

    pub(crate) fn unfinished(&self, handlers: u64) {
        self.late.store(handlers, Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}

impl Health {
    /// Whether it takes messages: a readiness probe. Not before it runs, while it drains, or once it has ended.
    pub fn is_ready(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == RUNNING && self.is_live()
    }

    /// Whether it is well: a liveness probe. A run loop that did not look up for 10 s hangs, with its runtime: a handler
    /// blocks a thread. One that has not begun or has ended is well.
    pub fn is_live(&self) -> bool {
        let state = self.0.state.load(Ordering::Acquire);
        let silent = millis(self.0.began.elapsed()).saturating_sub(self.0.tick.load(Ordering::Relaxed));
        !matches!(state, RUNNING | DRAINING) || silent < millis(SILENT)
    }

    /// How many messages are being handled, as of the last second.
    pub fn running(&self) -> usize {
        self.0.running()
    }

    /// How many messages wait for their ordering key, for another's claim to end, or for a destination that does not take
    /// them, as of the last second.
    pub fn held(&self) -> usize {
        self.0.held()
    }

    /// How long the latest message had waited in the queue; `None` before the first, and where nobody stamps them.
    pub fn lag(&self) -> Option<Duration> {
        let lag = self.0.lag.load(Ordering::Relaxed);
        (lag != u64::MAX).then(|| Duration::from_millis(lag))
    }

    /// What has become of messages so far.
    pub fn report(&self) -> Report {
        let stats = &*self.0;
        let counts = [&stats.acked, &stats.duplicates, &stats.retried, &stats.dead_lettered, &stats.released];
        Report {
            acked: stats.acked.get(),
            duplicates: stats.duplicates.get(),
            postponed: stats.postponed.get(),
            retried: stats.retried.get(),
            dead_lettered: stats.dead_lettered.get(),
            released: stats.released.get(),
            unsettled: counts.into_iter().map(Count::failed).sum::<u64>()
                + stats.not_made.load(Ordering::Relaxed),
            unfinished: stats.late.load(Ordering::Relaxed),
        }
    }
}

/// What has become of a worker's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Done.
    pub acked: u64,
    /// Acked because they were done before.
    pub duplicates: u64,
    /// How often a message was put off because another worker was at it.
    pub postponed: u64,
    /// Failed attempts that are tried again.
    pub retried: u64,
    /// Failed for good.
    pub dead_lettered: u64,
    /// Begun, and given back: at the end of the time to drain, or because the lease was lost.
    pub released: u64,
    /// Settlements that failed: their messages are delivered again. Where settlement is deferred, an ack may fail after it
    /// was answered, and is then counted here, too; all of them are once the worker has ended.
    pub unsettled: u64,
    /// Handlers that blocked a thread, and did not end when they were told to.
    pub unfinished: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_not_live_and_one_that_drains_is_not_ready() {
        let health = Health(Arc::new(Stats::new()));
        assert!(health.is_live() && !health.is_ready());
        assert_eq!(health.lag(), None);
        health.0.run();
        health.0.waited(Duration::from_secs(3));
        assert!(health.is_live() && health.is_ready());
        assert_eq!(health.lag(), Some(Duration::from_secs(3)));
        tokio::time::advance(SILENT).await;
        assert!(!health.is_live() && !health.is_ready());
        health.0.look_up(2, 1);
        assert!(health.is_ready());
        assert_eq!((health.running(), health.held()), (2, 1));
        health.0.drain();
        assert!(health.is_live() && !health.is_ready());
        health.0.end();
        tokio::time::advance(SILENT * 9).await;
        assert!(health.is_live() && !health.is_ready());
    }
}
