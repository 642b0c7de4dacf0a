//! What the run loop and the messages under way share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use throughline_core::{Delivery, Failure, History, Publisher, Result};
use tokio::sync::{Notify, watch};

use crate::health::{Count, Stats};
use crate::job::Phase;
use crate::metrics::{Metrics, Outcome};
use crate::middleware::concurrency::stable_id;
use crate::middleware::idempotency::Idempotency;
use crate::store::{AttemptStore, Attempts};

/// How long attempts are remembered beyond their retry's delay.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// What becomes of a handler whose message's lease is lost: another worker may have the message already. Only where leases
/// are renewable (memory, SQS): elsewhere a delivery ends with its connection, which is seen when it is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeaseLost {
    /// Its future is dropped: whatever it would still do, another does too. What it had begun is as a crash would leave it.
    #[default]
    Cancel,
    /// It is told ([`Job::lease_lost`](crate::Job::lease_lost)) and runs on. With an idempotency store its claim holds the
    /// other worker off, and its end counts.
    Tell,
}

pub(crate) struct Shared {
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) dead_letter: Option<Publisher>,
    pub(crate) attempts: Option<Arc<dyn AttemptStore>>,
    /// Whether the broker retries in place, and so cannot carry the history of its retries.
    pub(crate) in_place: bool,
    /// How long a message may be held, where no lease of its own says when that is over.
    pub(crate) longest_hold: Option<Duration>,
    /// How many tasks have given up their places, and who is told of it.
    pub(crate) parked: AtomicUsize,
    pub(crate) parking: Notify,
    /// The address that is consumed from: what stored attempts belong to.
    pub(crate) source: String,
    pub(crate) longest_retry: Option<Duration>,
    pub(crate) lease_lost: LeaseLost,
    pub(crate) name: String,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) metrics: Metrics,
}

/// A task's place among those that work at once.
pub(crate) struct Slot<'a> {
    shared: &'a Shared,
    parked: AtomicBool,
}

impl<'a> Slot<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self { shared, parked: AtomicBool::new(false) }
    }

    /// Gives the place to others: this task only waits from now on.
    pub(crate) fn park(&self) {
        if !self.parked.swap(true, Ordering::Relaxed) {
            self.shared.parked.fetch_add(1, Ordering::Relaxed);
            self.shared.parking.notify_one();
        }
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if self.is_parked() {
            self.shared.parked.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Shared {
    /// Counts what became of a message, where its settlement was made; else tells.
    pub(crate) fn count(&self, count: &Count, outcome: Outcome<'_>, settled: Result<()>) {
        self.metrics.count(outcome, &settled);
        count.tell(settled);
    }

    /// The name of a message in the attempt store; none where there is no store, or no id to know it by.
    pub(crate) fn stored_key(&self, delivery: &Delivery) -> Option<String> {
        self.attempts.as_ref()?;
        Some(format!("{} {}", self.source, stable_id(delivery)?))
    }

    /// Whether anything may be known of a message's earlier attempts: not the first time.
    pub(crate) fn may_recall(&self, delivery: &Delivery) -> bool {
        self.attempts.is_some() && (delivery.receive_count() != Some(1) || delivery.attempt() > 1)
    }

    /// Adds to a message what is known of its earlier attempts.
    pub(crate) async fn recall(&self, delivery: &mut Delivery) {
        let (Some(store), Some(key)) = (&self.attempts, self.stored_key(delivery)) else { return };
        match store.load(&key).await {
            Ok(Some(Attempts { failed, history })) => delivery.recall(failed, history),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the earlier attempts of a message could not be looked up"),
        }
    }

    /// Remembers a failed attempt of a message that stays in the broker's hands as it is.
    pub(crate) async fn remember(&self, delivery: &Delivery, failure: &Failure, after: Duration) {
        let (Some(store), Some(key)) = (&self.attempts, self.stored_key(delivery)) else { return };
        if delivery.history().is_some_and(History::is_given_up) {
            return;
        }
        let mut history = delivery.history().cloned().unwrap_or_default();
        let mut failure = failure.clone();
        failure.attempt = delivery.attempt();
        history.push(failure);
        let attempts = Attempts { failed: delivery.attempt(), history };
        if let Err(error) = store.save(&key, &attempts, after.saturating_add(KEEP)).await {
            tracing::warn!(%error, "a failed attempt could not be remembered: its message's history will be partial");
        }
    }

    /// Forgets the attempts of a message that is done.
    pub(crate) async fn forget(&self, key: Option<String>) {
        if let (Some(store), Some(key)) = (&self.attempts, key)
            && let Err(error) = store.forget(&key).await
        {
            tracing::warn!(%error, "the attempts of a finished message could not be forgotten");
        }
    }
}
