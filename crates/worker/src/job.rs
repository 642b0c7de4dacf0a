//! What a handler is given: the message, what is known of its attempts, and the application's state.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, KeyValue};
use serde::de::DeserializeOwned;
use throughline_core::{Delivery, Envelope, History, QueueDelay};
use tokio::sync::{Notify, watch};

use crate::error::HandlerError;

/// A message being worked on, with the application's state. Cheap to clone. The worker settles it, by what the handler
/// returns.
///
/// `Debug` shows no payload, header value or state.
pub struct Job<S = ()> {
    pub(crate) message: Arc<Message>,
    pub(crate) state: Arc<S>,
}

/// What there is to know of a message, whatever the state.
pub(crate) struct Message {
    envelope: Arc<Envelope>,
    attempt: u32,
    receive_count: Option<u32>,
    queue_delay: Option<QueueDelay>,
    history: Option<History>,
    context: Context,
    pub(crate) lease: Flag,
    phase: watch::Receiver<Phase>,
}

/// Where the worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// No more messages are taken; what runs may finish.
    Draining,
    /// The time to drain is over: what still runs is dropped.
    Cancelling,
}

/// Something that happens once.
#[derive(Default)]
pub(crate) struct Flag {
    up: AtomicBool,
    told: Notify,
}

impl Flag {
    pub(crate) fn raise(&self) {
        self.up.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    async fn wait(&self) {
        loop {
            let told = self.told.notified();
            if self.is_up() {
                return;
            }
            told.await;
        }
    }
}

impl Message {
    pub(crate) fn new(delivery: &Delivery, context: &Context, phase: watch::Receiver<Phase>) -> Arc<Self> {
        Arc::new(Self {
            envelope: delivery.envelope().clone(),
            attempt: delivery.attempt(),
            receive_count: delivery.receive_count(),
            queue_delay: delivery.queue_delay(),
            history: delivery.history().cloned(),
            context: context.clone(),
            lease: Flag::default(),
            phase,
        })
    }
}

impl<S> Job<S> {
    /// The message.
    pub fn envelope(&self) -> &Arc<Envelope> {
        &self.message.envelope
    }

    /// The message's id.
    pub fn id(&self) -> &str {
        &self.message.envelope.id
    }

    /// The application's state.
    pub fn state(&self) -> &Arc<S> {
        &self.state
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.message.attempt
    }

    /// How often the broker has delivered it, this time included, where it says.
    pub fn receive_count(&self) -> Option<u32> {
        self.message.receive_count
    }

    /// How long it waited in the queue, where that is known.
    pub fn queue_delay(&self) -> Option<Duration> {
        self.message.queue_delay.map(|waited| waited.delay)
    }

    /// The failed attempts so far, where they are known.
    pub fn history(&self) -> Option<&History> {
        self.message.history.as_ref()
    }

    /// The context of the process span. It is the current one while the handler runs; pass it on to what is spawned.
    pub fn context(&self) -> &Context {
        &self.message.context
    }

    /// Adds an attribute to the process span: `job.set_attribute(KeyValue::new("tenant.company_id", 5000))`.
    pub fn set_attribute(&self, attribute: KeyValue) {
        self.message.context.span().set_attribute(attribute);
    }

    /// Whether the lease is lost: the message may be another worker's by now. Only where the worker leaves the handler
    /// running then ([`LeaseLost::Tell`](crate::LeaseLost)).
    pub fn is_lease_lost(&self) -> bool {
        self.message.lease.is_up()
    }

    /// Waits until the lease is lost, as [`is_lease_lost`](Self::is_lease_lost); otherwise for ever.
    pub async fn lease_lost(&self) {
        self.message.lease.wait().await;
    }

    /// Whether the worker is shutting down, and waits for this handler.
    pub fn is_draining(&self) -> bool {
        *self.message.phase.borrow() >= Phase::Draining
    }

    /// Waits until the worker is shutting down: a long handler may then come to an end early.
    pub async fn draining(&self) {
        let mut phase = self.message.phase.clone();
        if phase.wait_for(|phase| *phase >= Phase::Draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl<S> Clone for Job<S> {
    fn clone(&self) -> Self {
        Self { message: self.message.clone(), state: self.state.clone() }
    }
}

impl<S> fmt::Debug for Job<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("envelope", &self.message.envelope)
            .field("attempt", &self.message.attempt)
            .finish_non_exhaustive()
    }
}

/// An argument of a handler, made from the job: [`Json`], [`Job`] itself, `Arc<Envelope>`, the payload as `Bytes`, and
/// whatever an application implements this for.
pub trait FromJob<S>: Sized + Send {
    /// Makes it. A failure is the attempt's; what would fail again should be [permanent](HandlerError::permanent).
    fn from_job(job: &Job<S>) -> Result<Self, HandlerError>;
}

impl<S: Send + Sync> FromJob<S> for Job<S> {
    fn from_job(job: &Job<S>) -> Result<Self, HandlerError> {
        Ok(job.clone())
    }
}

impl<S> FromJob<S> for Arc<Envelope> {
    fn from_job(job: &Job<S>) -> Result<Self, HandlerError> {
        Ok(job.envelope().clone())
    }
}

/// The payload; empty for a tombstone.
impl<S> FromJob<S> for Bytes {
    fn from_job(job: &Job<S>) -> Result<Self, HandlerError> {
        Ok(job.envelope().payload.clone().unwrap_or_default())
    }
}

/// The payload as JSON. What is not the JSON asked for is a permanent failure of class `undecodable`, and goes to the dead
/// letters at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<S, T: DeserializeOwned + Send> FromJob<S> for Json<T> {
    fn from_job(job: &Job<S>) -> Result<Self, HandlerError> {
        Ok(Self(job.envelope().decode_json()?))
    }
}
