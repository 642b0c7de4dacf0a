//! A received message, and its settlement.

mod process;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry::context::FutureExt;
use opentelemetry::trace::{SpanContext, SpanKind};
use opentelemetry::{Context, KeyValue};
use serde::de::DeserializeOwned;

pub use process::Process;

use crate::answer::{Slot, answers};
use crate::codec::Codec;
use crate::consumer::Shared;
use crate::driver::{self, Clock, Receipt, Settlement};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{HeaderValue, Headers};
use crate::publisher::{Publisher, SendOptions};
use crate::retry::{Failure, History};
use crate::settle::{Op, is_gone};
use crate::timestamp::Timestamp;
use crate::trace::{self, Description, SpanNames, TracePolicy, attribute};

/// A received message. Settle it: [`ack`](Self::ack), [`retry`](Self::retry), [`reject`](Self::reject) or
/// [`release`](Self::release). Dropped unsettled, it is released.
///
/// Its lease, where there is one, is extended until then, up to `max_lease`.
#[must_use = "a delivery that is dropped is released, and delivered again"]
pub struct Delivery {
    message: driver::Delivery,
    shared: Arc<Shared>,
    lease: Option<usize>,
    received: SystemTime,
    /// The context of the process span, once there is one.
    processed: OnceLock<Context>,
    settled: bool,
}

/// How long a message waited between its enqueueing and its receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDelay {
    /// How long; a requested delay is not counted. Never negative: where the clocks disagree it is zero.
    pub delay: Duration,
    /// Whose clock says when it began.
    pub clock: Clock,
    /// Whether it would have been negative.
    pub clamped: bool,
}

impl Delivery {
    /// Deliveries that were received together.
    pub(crate) fn received(messages: Vec<driver::Delivery>, shared: &Arc<Shared>) -> Vec<Self> {
        let received = SystemTime::now();
        let mut leases = shared.leases.as_ref().map(|leases| leases.table());
        let deliveries = messages.into_iter().map(|message| Self {
            lease: match (&mut leases, message.lease_expires) {
                (Some(leases), Some(expires)) => Some(leases.insert(message.token, expires)),
                _ => None,
            },
            message,
            shared: shared.clone(),
            received,
            processed: OnceLock::new(),
            settled: false,
        });
        deliveries.collect()
    }

    /// Drops those of one consumer that were lost meanwhile.
    pub(crate) fn retain_ours(deliveries: &mut Vec<Self>) {
        let Some(shared) = deliveries.first().map(|first| first.shared.clone()) else { return };
        let leases = shared.leases.as_ref();
        let any_lost = leases
            .is_some_and(|leases| leases.any_lost(deliveries.iter().filter_map(|delivery| delivery.lease)));
        let epoch = shared.driver.epoch();
        let is_stale = |delivery: &Self| delivery.lease.is_none() && delivery.message.token.epoch != epoch;
        if any_lost || deliveries.iter().any(is_stale) {
            deliveries.retain(|delivery| !delivery.is_lease_lost());
        }
    }

    /// The message.
    pub fn envelope(&self) -> &Arc<Envelope> {
        &self.message.envelope
    }

    /// The message's id.
    pub fn id(&self) -> &str {
        &self.message.envelope.id
    }

    /// The message's headers.
    pub fn headers(&self) -> &Headers {
        &self.message.envelope.headers
    }

    /// The payload; empty for a tombstone.
    pub fn payload(&self) -> &[u8] {
        self.message.envelope.payload.as_deref().unwrap_or_default()
    }

    /// The payload as JSON. What is not the JSON asked for is `Undecodable`, whatever the content type says.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        self.message.envelope.decode_json()
    }

    /// The payload in another format.
    pub fn decode<T: DeserializeOwned>(&self, codec: &impl Codec) -> Result<T> {
        self.message.envelope.decode(codec)
    }

    /// Which attempt this is, from 1: one more than those that have failed, on this hop and before.
    pub fn attempt(&self) -> u32 {
        self.message.failed_attempts.saturating_add(1)
    }

    /// How often the broker has delivered it, this time included, where it says.
    pub fn receive_count(&self) -> Option<u32> {
        self.message.receive_count
    }

    /// The failed attempts so far, where they could be carried.
    pub fn history(&self) -> Option<&History> {
        self.message.history.as_deref()
    }

    /// Adds what an attempt store knows, where the broker retries in place and could not carry it: the attempts only go up,
    /// and the longer history stays.
    pub fn recall(&mut self, failed_attempts: u32, history: History) {
        self.message.failed_attempts = self.message.failed_attempts.max(failed_attempts);
        if self.history().is_none_or(|known| known.count() < history.count()) {
            self.message.history = Some(Arc::new(history));
        }
    }

    /// When it was received.
    pub fn received_at(&self) -> Timestamp {
        self.received.into()
    }

    /// How long it waited in the queue, where that is known.
    pub fn queue_delay(&self) -> Option<QueueDelay> {
        let (enqueued, clock) = self.message.enqueued?;
        let millis = Timestamp::from(self.received).millis_since(enqueued);
        let delay = Duration::from_millis(u64::try_from(millis).unwrap_or(0));
        Some(QueueDelay { delay, clock, clamped: millis < 0 })
    }

    /// What the broker says of the message beyond the envelope, by the broker's own names.
    pub fn native_details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        self.message.native.as_ref().map(|native| native.details()).unwrap_or_default()
    }

    /// The broker's own id or place of the stored message, the same at each delivery of it, where the broker has one.
    pub fn native_id(&self) -> Option<String> {
        self.message.native.as_ref()?.native_id()
    }

    /// The client's own message, in the adapter's type.
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.message.native.as_ref().and_then(|native| native.as_any().downcast_ref())
    }

    /// Whether the lease is lost: another consumer may have the message, and this one can no longer settle it.
    pub fn is_lease_lost(&self) -> bool {
        match (&self.shared.leases, self.lease) {
            (Some(leases), Some(key)) => leases.is_lost(key),
            _ => !self.shared.driver.is_current(&self.message.token),
        }
    }

    /// Waits until the lease is lost; for ever where leases are not renewable.
    pub async fn lease_lost(&self) {
        match (&self.shared.leases, self.lease) {
            (Some(leases), Some(key)) => leases.until_lost(key).await,
            _ => std::future::pending().await,
        }
    }

    /// The context that the message carries, by the application's propagator; empty without one.
    pub fn context(&self) -> Context {
        trace::extract(self.headers())
    }

    /// The creation context, as far as the policy lets it count.
    fn creation(&self) -> Option<SpanContext> {
        match self.shared.options.trace {
            TracePolicy::Ignore => None,
            TracePolicy::Parent | TracePolicy::Link => trace::creation_context(self.headers()),
        }
    }

    fn subject(&self) -> &str {
        match (&self.envelope().message_type, self.shared.options.span_names) {
            (Some(message_type), SpanNames::Business) => message_type,
            _ => &self.shared.driver.endpoint().destination,
        }
    }

    fn span_name(&self, operation: &'static str) -> Cow<'static, str> {
        match (&self.envelope().message_type, self.shared.options.span_names) {
            (Some(message_type), SpanNames::Business) if operation == "process" => {
                message_type.clone().into()
            }
            _ => format!("{operation} {}", self.subject()).into(),
        }
    }

    fn operation_attributes(&self, operation_type: &'static str, name: &'static str) -> Vec<KeyValue> {
        let mut attributes = self.shared.span_attributes.clone();
        attributes.extend_from_slice(&self.shared.driver.endpoint().attributes);
        attributes.push(KeyValue::new(attribute::OPERATION_TYPE, operation_type));
        attributes.push(KeyValue::new(attribute::OPERATION_NAME, name));
        attributes
    }

    fn message_attributes(&self, operation_type: &'static str, name: &'static str) -> Vec<KeyValue> {
        let mut attributes = self.operation_attributes(operation_type, name);
        trace::add_envelope_attributes(&mut attributes, self.envelope());
        attributes.push(KeyValue::new(attribute::ATTEMPT, i64::from(self.attempt())));
        if let Some(count) = self.receive_count() {
            attributes.push(KeyValue::new(attribute::RECEIVE_COUNT, i64::from(count)));
        }
        if let Some(native) = &self.message.native {
            attributes.extend(native.span_attributes());
        }
        attributes
    }

    /// Done: removes the message from the source. What `Ok` means, the transport's capabilities say; where settlement is
    /// deferred, it is recorded and written a moment later, with others.
    ///
    /// Errors: `Stale` when the lease or the connection was lost meanwhile; the message is delivered again.
    pub async fn ack(mut self) -> Result<()> {
        let span = self.settle_span(&Settlement::Ack);
        let mut result = self.check_held();
        if result.is_ok() {
            result = match (self.shared.acks_now, self.shared.deferred) {
                (true, _) => {
                    Self::ack_now(std::slice::from_mut(&mut self)).pop().unwrap_or_else(|| Err(stale()))
                }
                (false, true) => self.ack_later(),
                (false, false) => self.settle_held(Settlement::Ack, false).await,
            };
        }
        if let Some(span) = span {
            trace::end(&span, result.as_ref().err());
        }
        result
    }

    /// Records an ack, which nobody waits for.
    fn ack_later(&mut self) -> Result<()> {
        let op = self.op(Settlement::Ack, None);
        if self.shared.queue.push([op], false) {
            return Ok(());
        }
        // The consumer is closed.
        Err(stale().at("settle", &self.shared.address))
    }

    /// Failed, try again, not before `after`, at this queue or group. The failure joins the history, and the next attempt's
    /// span shows it.
    ///
    /// Errors: as [`ack`](Self::ack), and what publishing can fail with where the transport republishes; then the message
    /// is released, and delivered again at once. [`try_retry`](Self::try_retry) holds it instead.
    pub async fn retry(mut self, after: Duration, failure: impl Into<Failure>) -> Result<()> {
        let history = self.failed(failure.into());
        self.settle(Settlement::Retry { after, history }, false).await
    }

    /// [`retry`](Self::retry), and where that fails, the delivery is still held with its lease: it can be settled again.
    /// After `Ok`, and after an error of kind `Stale`, there is nothing left to settle.
    ///
    /// Dropping the future abandons the answer, and with it the delivery, as [`retry`](Self::retry) does.
    pub async fn try_retry(&mut self, after: Duration, failure: impl Into<Failure>) -> Result<()> {
        let history = self.failed(failure.into());
        self.settle(Settlement::Retry { after, history }, true).await
    }

    /// Failed for good: to the dead-letter destination, with the history. It leaves the source only once the dead letter
    /// is durably accepted. What [was given up before](Failure::given_up) becomes a dead letter with that failure, not this
    /// one.
    ///
    /// Errors: as [`retry`](Self::retry), and `NoDeadLetter` where no dead-letter destination is known.
    /// [`try_reject`](Self::try_reject) holds the message then.
    pub async fn reject(mut self, failure: impl Into<Failure>) -> Result<()> {
        let history = self.failed(failure.into());
        self.settle(Settlement::Reject { history }, false).await
    }

    /// [`reject`](Self::reject), and where that fails, the delivery is still held, as after [`try_retry`](Self::try_retry).
    pub async fn try_reject(&mut self, failure: impl Into<Failure>) -> Result<()> {
        let history = self.failed(failure.into());
        self.settle(Settlement::Reject { history }, true).await
    }

    /// Publishes it, as a dead letter, to a destination of any transport: headers, creation context and body are kept, the
    /// history goes along, and it no longer expires. This settles nothing: [`ack`](Self::ack) the delivery once this is
    /// `Ok`. The span shows what failed and how often, below the process span.
    ///
    /// Errors: as [`Publisher::publish`]; the message stays where it is.
    pub async fn send_dead_letter(&self, to: &Publisher, failure: impl Into<Failure>) -> Result<Receipt> {
        let history = self.failed(failure.into());
        let mut envelope = Envelope::clone(self.envelope());
        envelope.expires_at = None;
        let span = self.settle_span(&Settlement::Reject { history: history.clone() });
        let context = span.clone().unwrap_or_else(Context::current);
        let options = SendOptions {
            failed_attempts: history.failed_attempts(self.message.failed_attempts),
            history: Some(history),
            ..SendOptions::default()
        };
        let result = to.publish_with(envelope, options).with_context(context).await;
        if let Some(span) = span {
            trace::end(&span, result.as_ref().err());
        }
        result
    }

    /// Makes the message available again at once, without recording an attempt. Dropping does the same, without an answer.
    pub async fn release(mut self) -> Result<()> {
        self.settle(Settlement::Release, false).await
    }

    /// Acks many deliveries at once, with an answer for each, in order. They may be of different consumers.
    pub async fn ack_all(deliveries: impl IntoIterator<Item = Self>) -> Vec<Result<()>> {
        let mut deliveries: Vec<_> = deliveries.into_iter().collect();
        let span = deliveries.first().and_then(|first| first.batch_span(&deliveries));
        let is_of_one = deliveries.iter().zip(deliveries.iter().skip(1)).all(|(a, b)| a.is_beside(b));
        let results = match deliveries.first() {
            Some(first) if first.shared.acks_now && is_of_one => Self::ack_now(&mut deliveries),
            _ => Self::ack_together(deliveries).await,
        };
        if let Some(span) = span {
            trace::end(&span, results.iter().find_map(|result| result.as_ref().err()));
        }
        results
    }

    fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Acks those of one consumer, whose driver does that at once.
    fn ack_now(deliveries: &mut [Self]) -> Vec<Result<()>> {
        let Some(shared) = deliveries.first().map(|first| first.shared.clone()) else { return Vec::new() };
        Self::let_go(deliveries, &shared);
        let (mut tokens, mut bytes) = (Vec::with_capacity(deliveries.len()), 0);
        let mut results = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            let held = delivery.check_held();
            if held.is_ok() {
                delivery.settled = true;
                delivery.drop_lease();
                tokens.push(delivery.message.token);
                bytes += delivery.message.envelope.payload_len();
            }
            results.push(held);
        }
        let answers = shared.ack_now(&tokens, bytes);
        if tokens.len() == results.len() {
            return answers;
        }
        let asked = results.iter_mut().filter(|result| result.is_ok());
        asked.zip(answers).for_each(|(result, answer)| *result = answer);
        results
    }

    /// Ends the leases of those of one consumer at once, where none is lost; else one by one, later.
    fn let_go(deliveries: &mut [Self], shared: &Shared) {
        if let Some(leases) = &shared.leases
            && !leases.any_lost(deliveries.iter().filter_map(|delivery| delivery.lease))
        {
            leases.remove(deliveries.iter_mut().filter_map(|delivery| delivery.lease.take()));
        }
    }

    /// Acks with the settling tasks of their consumers, in one wake-up of each.
    async fn ack_together(mut deliveries: Vec<Self>) -> Vec<Result<()>> {
        let (answers, all) = answers(deliveries.len());
        let mut slots = (0..deliveries.len()).map(|index| answers.slot(index));
        for run in deliveries.chunk_by_mut(|a, b| a.is_beside(b)) {
            let Some(shared) = run.first().map(|first| first.shared.clone()) else { continue };
            Self::let_go(run, &shared);
            let mut ops = Vec::with_capacity(run.len());
            for (delivery, slot) in run.iter_mut().zip(&mut slots) {
                match delivery.check_held() {
                    Ok(()) => ops.push(delivery.op(Settlement::Ack, Some(slot))),
                    Err(error) => slot.answer(Err(error)),
                }
            }
            shared.queue.push(ops, true);
        }
        drop(deliveries);
        all.await
    }

    /// The span of one ack for many deliveries, of which this is the first.
    fn batch_span(&self, deliveries: &[Self]) -> Option<Context> {
        if self.shared.options.receive_spans && !trace::provider_seen() {
            return None;
        }
        trace::start(&Context::current(), SpanKind::Client, None, || {
            let mut attributes = self.operation_attributes("settle", "ack");
            let count = i64::try_from(deliveries.len()).unwrap_or(i64::MAX);
            attributes.push(KeyValue::new(attribute::BATCH_COUNT, count));
            let contexts = deliveries.iter().filter_map(Self::creation);
            Description {
                name: format!("ack {}", self.shared.driver.endpoint().destination).into(),
                attributes,
                links: contexts.filter_map(|context| trace::link(&context)).collect(),
            }
        })
    }

    /// Whether its time is over. The clock is looked at only for what can expire.
    pub(crate) fn is_expired(&self) -> bool {
        !self.message.is_dead_letter
            && self.envelope().expires_at.is_some()
            && self.envelope().is_expired(Timestamp::now())
    }

    /// Its time is over, and the broker has not seen to it: to the dead letters if there are any, else it is removed.
    pub(crate) fn expire(mut self) {
        let settlement = match self.shared.driver.has_dead_letter() {
            true => Settlement::Reject { history: self.failed(Failure::new("expired")) },
            false => Settlement::Ack,
        };
        let op = self.op(settlement, None);
        self.shared.queue.push([op], false);
    }

    /// The history with one failure more, unless the message was given up before: that is decided once.
    fn failed(&self, mut failure: Failure) -> Arc<History> {
        let mut history = self.message.history.as_deref().cloned().unwrap_or_default();
        if history.is_given_up() {
            history.set_given_up(failure.given_up);
            return Arc::new(history);
        }
        failure.attempt = self.attempt();
        // A hop whose broker could not carry the history of its retries.
        if history.count() < self.message.failed_attempts {
            history.set_partial();
        }
        history.push(failure);
        Arc::new(history)
    }

    fn check_held(&self) -> Result<()> {
        if !self.settled && self.shared.driver.is_current(&self.message.token) && !self.is_lease_lost() {
            return Ok(());
        }
        Err(stale().at("settle", &self.shared.address))
    }

    async fn settle(&mut self, settlement: Settlement, keep: bool) -> Result<()> {
        let span = self.settle_span(&settlement);
        let result = match self.check_held() {
            Ok(()) => self.settle_held(settlement, keep).await,
            Err(error) => Err(error),
        };
        if let Some(span) = span {
            trace::end(&span, result.as_ref().err());
        }
        result
    }

    async fn settle_held(&mut self, settlement: Settlement, keep: bool) -> Result<()> {
        let (answers, all) = answers(1);
        let leases = self.shared.leases.clone();
        let lease = leases.as_ref().zip(self.lease).and_then(|(leases, key)| leases.get(key));
        let mut op = self.op(settlement, Some(answers.slot(0)));
        op.keep = keep;
        self.shared.queue.push([op], true);
        let result = all.await.pop().unwrap_or_else(|| Err(stale()));
        if keep && result.as_ref().is_err_and(|error| !is_gone(error)) {
            self.settled = false;
            if let (Some(leases), Some(lease), None) = (leases, lease, self.lease) {
                self.lease = Some(leases.put_back(lease));
            }
        }
        result
    }

    /// The operation that settles this delivery; from then on dropping it does nothing.
    fn op(&mut self, settlement: Settlement, slot: Option<Slot<()>>) -> Op {
        self.settled = true;
        // A dead letter takes its time, and the message must be ours until then. Otherwise nothing extends it from now on:
        // that would put off what the settlement asks for.
        if !matches!(settlement, Settlement::Reject { .. }) {
            self.drop_lease();
        }
        let bytes = self.message.envelope.payload_len();
        Op { token: self.message.token, settlement, slot, keep: false, bytes }
    }

    fn drop_lease(&mut self) {
        if let (Some(leases), Some(key)) = (&self.shared.leases, self.lease.take()) {
            leases.remove([key]);
        }
    }

    /// Below the process span, or without one where that would have been.
    fn settle_span(&self, settlement: &Settlement) -> Option<Context> {
        // Where receiving makes spans, it would have told.
        if self.shared.options.receive_spans && !trace::provider_seen() {
            return None;
        }
        let parent = match (self.processed.get(), self.shared.options.trace) {
            (Some(processed), _) => processed.clone(),
            (None, TracePolicy::Parent) => trace::extract_onto(&Context::current(), self.headers()),
            (None, TracePolicy::Link | TracePolicy::Ignore) => Context::current(),
        };
        let name = settlement.name();
        trace::start(&parent, SpanKind::Client, None, || {
            let mut attributes = self.message_attributes("settle", name);
            match settlement {
                Settlement::Retry { after, history } => {
                    attributes.push(KeyValue::new(attribute::RETRY_DELAY, after.as_secs_f64()));
                    attributes.extend(history.last().into_iter().flat_map(retry_reason));
                }
                Settlement::Reject { history } => {
                    attributes
                        .push(KeyValue::new(attribute::DEAD_LETTER_ATTEMPTS, i64::from(self.attempt())));
                    if let Some(last) = history.last() {
                        attributes.push(KeyValue::new(attribute::DEAD_LETTER_REASON, last.error.clone()));
                        attributes.extend(last.dependency.as_ref().map(|dependency| {
                            KeyValue::new(attribute::DEAD_LETTER_DEPENDENCY, dependency.clone())
                        }));
                    }
                }
                Settlement::Ack | Settlement::Release => {}
            }
            let creation = self.creation();
            Description {
                name: self.span_name(name),
                attributes,
                links: creation.as_ref().and_then(trace::link).into_iter().collect(),
            }
        })
    }
}

/// Why a message is tried again.
fn retry_reason(last: &Failure) -> impl Iterator<Item = KeyValue> {
    let dependency = last.dependency.clone();
    let dependency = dependency.map(|dependency| KeyValue::new(attribute::RETRY_DEPENDENCY, dependency));
    std::iter::once(KeyValue::new(attribute::RETRY_REASON, last.error.clone())).chain(dependency)
}

fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the delivery is no longer ours: its connection or lease was lost, and it will be delivered again",
    )
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled {
            let op = self.op(Settlement::Release, None);
            // At once: another consumer may be waiting for it.
            self.shared.queue.push([op], true);
        }
        self.drop_lease();
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("address", &self.shared.address)
            .finish_non_exhaustive()
    }
}
