//! The worker: what it is made of, and its life.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use throughline_core::capabilities::{Lease, Level, RetryMeans};
use throughline_core::{ConsumeOptions, Consumer, Error, ErrorKind, Order, Publisher, Result};
use tokio::sync::{Notify, watch};

use crate::health::{Health, Report, Stats};
use crate::job::Phase;
use crate::metrics::Metrics;
use crate::middleware::concurrency::Lanes;
use crate::middleware::idempotency::Idempotency;
use crate::middleware::retry::{RetryPolicy, longest};
use crate::router::{Router, Table};
use crate::run::Run;
use crate::shared::{LeaseLost, Shared};
use crate::store::AttemptStore;

/// Further off than anybody waits, and as far as any clock can say: what is longer is as good as for ever.
pub(crate) const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Takes messages from a consumer, gives each to its handler, and settles it by what the handler returns.
///
/// See the [crate](crate) for the life of a message.
#[must_use = "a worker does nothing until it runs"]
pub struct Worker<S = ()> {
    source: Source,
    router: Router<S>,
    concurrency: usize,
    per_key: usize,
    timeout: Option<Duration>,
    retry: RetryPolicy,
    dead_letter: Option<Publisher>,
    idempotency: Option<Idempotency>,
    attempts: Option<Arc<dyn AttemptStore>>,
    lease_lost: LeaseLost,
    drain: Duration,
    name: String,
    stats: Arc<Stats>,
}

/// Where messages come from.
enum Source {
    Open(Consumer),
    ToOpen(Box<Opening>),
}

type Opening = dyn FnOnce(ConsumeOptions) -> BoxFuture<'static, Result<Consumer>> + Send;

/// So many messages are held at once, for each that may be worked on: what is next is here, and little more. What a worker
/// that is killed held counts as delivered where the broker counts that.
const HELD_FOR_EACH: usize = 2;

impl<S: Send + Sync + 'static> Worker<S> {
    /// A worker of these messages with these handlers. How many it may hold at once the consumer says, and by default that
    /// is many more than are worked on (`max_unsettled`); [`opening`](Self::opening) fits it to the concurrency.
    pub fn new(consumer: Consumer, router: Router<S>) -> Self {
        Self::of(Source::Open(consumer), router)
    }

    /// A worker that opens its consumer itself as it begins to run; `Bus::worker` of the facade is the short form.
    ///
    /// It holds no more than it can soon work on: `max_unsettled` is twice its [concurrency](Self::concurrency), or twice
    /// its largest batch. The others are for other workers, and a message that kills this one leaves few others with a
    /// delivery too many. It costs nothing measurable in memory; on RabbitMQ handlers of 10 ms were a tenth
    /// slower than with the 500 that a consumer holds by default, and those that do next to nothing a third. What waits for
    /// a busy ordering key counts: where few keys are busy at a time, and others are to go on meanwhile, open the consumer
    /// with a larger `max_unsettled`.
    pub fn opening<F>(open: impl FnOnce(ConsumeOptions) -> F + Send + 'static, router: Router<S>) -> Self
    where
        F: Future<Output = Result<Consumer>> + Send + 'static,
    {
        Self::of(Source::ToOpen(Box::new(|options| open(options).boxed())), router)
    }

    fn of(source: Source, router: Router<S>) -> Self {
        Self {
            source,
            router,
            concurrency: 32,
            per_key: 1,
            timeout: None,
            retry: RetryPolicy::default(),
            dead_letter: None,
            idempotency: None,
            attempts: None,
            lease_lost: LeaseLost::default(),
            drain: Duration::from_secs(25),
            name: default_name(),
            stats: Arc::new(Stats::new()),
        }
    }

    /// How many handlers run at once; 32 by default. A batch counts as one.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers.max(1);
        self
    }

    /// How many messages of one ordering key are handled at once; 1 by default, which keeps their order, a retried one
    /// included. With more of them order is given up, and this is only a limit.
    pub fn per_key(mut self, handlers: usize) -> Self {
        self.per_key = handlers.max(1);
        self
    }

    /// How long an attempt may take; unlimited by default. One that takes longer fails, of class `timeout`.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// When failed messages are tried again, where their route does not say.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Where messages go that failed for good, on any transport, in place of the source's own dead-letter destination.
    /// The original is acked once this one has the dead letter durably. The worker does not close the publisher.
    pub fn dead_letter(mut self, to: Publisher) -> Self {
        self.dead_letter = Some(to);
        self
    }

    /// Acks messages whose work was done before, without doing it again.
    pub fn idempotency(mut self, idempotency: Idempotency) -> Self {
        self.idempotency = Some(idempotency);
        self
    }

    /// Remembers the history of failed attempts where the broker retries in place and cannot carry it; without one, dead
    /// letters there say that their history is partial. On every transport it remembers what was given up while its
    /// dead-letter destination was out, so that a worker that is killed meanwhile leaves no message to be handled again.
    pub fn attempts(mut self, store: Arc<dyn AttemptStore>) -> Self {
        self.attempts = Some(store);
        self
    }

    /// What becomes of a handler whose message's lease is lost.
    pub fn on_lease_lost(mut self, then: LeaseLost) -> Self {
        self.lease_lost = then;
        self
    }

    /// How long handlers may run on once the worker is to end; 25 s by default, within the 30 s that Kubernetes gives.
    /// Then they are dropped, and their messages released.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time.min(FAR);
        self
    }

    /// What the history of failures calls this worker; by default `HOSTNAME`, or the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How it is doing, for probes.
    pub fn health(&self) -> Health {
        Health(self.stats.clone())
    }

    /// Works until `shutdown` is ready, or the source ends. Then it takes no more messages, gives back what was not begun,
    /// waits for the handlers, settles what they did, and closes the consumer.
    ///
    /// Errors: `NoDeadLetter` where what fails for good would have nowhere to go, and `Conflict` where a type has two
    /// handlers, both before anything is taken; what opening the consumer fails with; and what ended the source. Dropping the future drops the handlers: their
    /// messages are released.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Report> {
        let (table, consumer, concurrency, per_key, drain, shared) = self.start().await?;
        let keeps_order =
            consumer.options().order == Order::PerKey && consumer.capabilities().order != Level::No;
        let lanes = Lanes::new(per_key, keeps_order);
        Run::new(consumer, table, Arc::new(shared), concurrency, lanes).run(shutdown, drain).await
    }

    async fn start(self) -> Result<(Table, Consumer, usize, usize, Duration, Shared)> {
        let Self { source, router, .. } = self;
        let at_once = self.concurrency.max(router.largest_batch());
        let consumer = match source {
            Source::Open(consumer) => consumer,
            Source::ToOpen(open) => {
                let max_unsettled = at_once.saturating_mul(HELD_FOR_EACH);
                open(ConsumeOptions { max_unsettled, ..ConsumeOptions::default() }).await?
            }
        };
        let table = if self.dead_letter.is_some() || consumer.has_dead_letter() {
            router.into_table(&self.retry, self.timeout)
        } else {
            Err(Error::new(
                ErrorKind::NoDeadLetter,
                "what fails for good has nowhere to go; add dead_letter=… to the address, or give the worker a publisher",
            ))
        };
        let table = match table {
            Ok(table) => table,
            Err(error) => {
                let error = error.at("work", consumer.address());
                // The first error is the one to tell.
                let _ = consumer.close().await;
                return Err(error);
            }
        };
        let capabilities = consumer.capabilities();
        let source = consumer.address().to_string();
        let shared = Shared {
            idempotency: self.idempotency.map(|idempotency| idempotency.of_source(&source)),
            dead_letter: self.dead_letter,
            attempts: self.attempts,
            in_place: capabilities.retry == RetryMeans::InPlace,
            longest_hold: longest_hold(capabilities.lease, consumer.options().max_lease),
            parked: AtomicUsize::new(0),
            parking: Notify::new(),
            longest_retry: longest(capabilities),
            source,
            lease_lost: self.lease_lost,
            name: self.name,
            phase: watch::channel(Phase::Running).0,
            metrics: Metrics::new(consumer.attributes().to_vec(), &self.stats),
            stats: self.stats,
        };
        Ok((table, consumer, self.concurrency, self.per_key, self.drain, shared))
    }
}

/// How long a message may be held that has no lease which could be lost. A broker that ends one closes the connection with
/// all that is on it: well before that.
fn longest_hold(lease: Lease, max_lease: Duration) -> Option<Duration> {
    match lease {
        Lease::Renewable(_) => None,
        Lease::Fixed(lease) => Some(max_lease.min(lease / 6 * 5)),
        Lease::None => Some(max_lease),
    }
}

fn default_name() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| format!("process {}", std::process::id()))
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("router", &self.router)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}
