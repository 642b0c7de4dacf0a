//! The publisher: envelopes into librdkafka's queue, delivery reports out of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message as _};
use throughline_core::driver::{self, Completions, Endpoint, Outgoing, Receipt};
use throughline_core::{Capabilities, Envelope, Error, ErrorKind, Result, Timestamp, capabilities};
use tokio::sync::Notify;

use crate::codec::{self, Hop, Sink, Sizer};
use crate::config::{Cluster, Destination};
use crate::connect::{Events, TopicFacts, blocking, facts};
use crate::error;
use crate::native;

/// What a record costs beside its key, value and headers: the batch's header of 61 bytes, and a record's own length,
/// attributes, deltas and lengths. <https://kafka.apache.org/documentation/#recordbatch>
const OVERHEAD: usize = 61 + 36;
/// librdkafka asserts that a batch is within its own limit, which does not count headers when a message is queued; ours does.
const SLACK: usize = 4096;
/// What of a topic's limit is not promised to the payload, in bytes: key and headers need it.
const ALLOWANCE: usize = 2_048;
/// The bounds of librdkafka's `message.max.bytes`, in bytes.
const SMALLEST: usize = 1000;
const LARGEST: usize = 1_000_000_000;
/// A full queue is looked at again after so long, even where no report says that there is room.
const FULL: Duration = Duration::from_millis(50);

/// Takes the delivery reports, on the client's own thread.
#[derive(Default)]
struct Reports {
    events: Events,
    /// Messages in librdkafka's queue.
    waiting: AtomicUsize,
    /// Told at each report: there is room, or nothing is waiting any more.
    reported: Notify,
    /// The client can do no more, and has to be made anew.
    is_broken: AtomicBool,
}

/// Who waits for a report.
struct Waiting {
    done: Arc<Completions>,
    index: usize,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.note(&error);
        self.events.error(error, reason);
    }
}

impl Reports {
    /// After a fatal error (librdkafka can no longer promise order and uniqueness) the client refuses everything.
    fn note(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(Code::Fatal) && !self.is_broken.swap(true, Ordering::AcqRel) {
            tracing::warn!("the Kafka producer cannot go on and is made anew");
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Box<Waiting>) {
        let result = match result {
            Ok(message) => {
                Ok(Receipt::with_native_id(format!("{}:{}", message.partition(), message.offset())))
            }
            Err((error, message)) => {
                self.note(error);
                Err(error::of_delivery(error, native::is_surely_not_stored(message)))
            }
        };
        waiting.done.complete(waiting.index, result);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.reported.notify_one();
    }
}

/// An idempotent producer for one topic. Its queue is bounded by librdkafka, in messages and bytes.
pub(crate) struct Producer {
    cluster: Cluster,
    topic: String,
    facts: TopicFacts,
    /// Replaced when it is broken; `None` once closed.
    client: RwLock<Option<Client>>,
}

type Client = Arc<ThreadedProducer<Reports>>;

impl Producer {
    /// For a topic, which must exist; the error names the destination that it belongs to.
    pub(crate) async fn open(cluster: &Cluster, topic: &str, destination: &Destination) -> Result<Self> {
        let mut facts = facts(cluster, topic, destination).await?;
        if let Some(own) = cluster.property("message.max.bytes").and_then(|own| own.parse().ok()) {
            facts.limit = facts.limit.min(own);
        }
        facts.limit = facts.limit.clamp(SMALLEST, LARGEST - SLACK);
        let client = RwLock::new(Some(client(cluster, facts)?));
        Ok(Self { cluster: cluster.clone(), topic: topic.to_owned(), facts, client })
    }

    fn client(&self) -> Option<Client> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client, a new one where the old one is broken.
    async fn working(&self) -> Result<Client> {
        let closed = || Error::new(ErrorKind::Closed, "the publisher is closed");
        let present = self.client().ok_or_else(closed)?;
        if !present.context().is_broken.load(Ordering::Acquire) {
            return Ok(present);
        }
        let new = client(&self.cluster, self.facts)?;
        let old = match &mut *self.client.write().unwrap_or_else(PoisonError::into_inner) {
            None => return Err(closed()),
            Some(place) if Arc::ptr_eq(place, &present) => std::mem::replace(place, new.clone()),
            // Another call was quicker.
            Some(place) => return Ok(place.clone()),
        };
        drop(present);
        end(old).await;
        Ok(new)
    }

    /// How the topic wants a hop to be written: whether a record's timestamp can be the envelope's time.
    pub(crate) fn keeps_stamp(&self) -> bool {
        self.facts.keeps_stamp
    }

    /// The message's size in bytes; fails where the topic would refuse it.
    pub(crate) fn measure(&self, envelope: &Envelope, hop: &Hop<'_>) -> Result<usize> {
        measure_within(self.facts.limit, envelope, hop)
    }

    /// Queues messages, in order; waits while the queue is full.
    pub(crate) async fn send(&self, messages: Vec<(usize, &Envelope, Hop<'_>)>, done: &Arc<Completions>) {
        let client = match self.working().await {
            Ok(client) => client,
            Err(error) => return done.fail_rest(&error),
        };
        let reports = client.context().clone();
        for (index, envelope, hop) in messages {
            let mut headers = Built(OwnedHeaders::new_with_capacity(envelope.headers.len() + 8));
            let stamp = codec::encode(envelope, &hop, &mut headers);
            let waiting = Box::new(Waiting { done: done.clone(), index });
            let mut record =
                BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.topic, waiting).headers(headers.0);
            record.key = envelope.ordering_key.as_deref();
            record.payload = envelope.payload.as_deref();
            record.timestamp = stamp;
            reports.waiting.fetch_add(1, Ordering::AcqRel);
            loop {
                let Err((error, back)) = client.send(record) else { break };
                record = back;
                if error.rdkafka_error_code() != Some(Code::QueueFull) {
                    reports.note(&error);
                    reports.waiting.fetch_sub(1, Ordering::AcqRel);
                    done.complete(index, Err(error::of_delivery(&error, true)));
                    break;
                }
                let _ = tokio::time::timeout(FULL, reports.reported.notified()).await;
            }
        }
    }

    /// Waits for the reports still out, at most as long as a message may take (`message.timeout.ms`), then ends the client.
    pub(crate) async fn close(&self) {
        let Some(client) = self.client() else { return };
        let reports = client.context().clone();
        while reports.waiting.load(Ordering::Acquire) > 0 {
            let _ = tokio::time::timeout(FULL, reports.reported.notified()).await;
        }
        let taken = self.client.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(client);
        if let Some(client) = taken {
            end(client).await;
        }
    }
}

/// Ends a client: its thread is joined by who holds it last.
async fn end(client: Client) {
    let _ = blocking(move || {
        drop(client);
        Ok(())
    })
    .await;
}

fn client(cluster: &Cluster, facts: TopicFacts) -> Result<Client> {
    // No larger than the topic's limit, which holds for a whole batch; librdkafka's default is 1,000,000.
    let batch = facts.limit.min(1_000_000).to_string();
    let largest = (facts.limit + SLACK).to_string();
    let config = cluster.client(
        &[
            // As Java's clients choose it, so that a key's partition is the same whoever sends.
            ("partitioner", "murmur2_random"),
            // What accumulates while a request is under way goes with the next: waiting only adds latency.
            ("linger.ms", "0"),
            // As long as the portable publisher waits for an answer by default.
            ("message.timeout.ms", "30000"),
            ("queue.buffering.max.kbytes", "131072"),
            ("batch.size", &batch),
        ],
        &[("enable.idempotence", "true"), ("message.max.bytes", &largest)],
    );
    config.create_with_context(Reports::default()).map(Arc::new).map_err(error::map)
}

/// Headers as librdkafka holds them.
struct Built(OwnedHeaders);

impl Sink for Built {
    fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        native::add_header(&mut self.0, name, value);
    }
}

/// An open topic.
pub(crate) struct Publisher {
    producer: Producer,
    capabilities: Capabilities,
    endpoint: Endpoint,
}

impl Publisher {
    pub(crate) async fn open(cluster: &Cluster, destination: &Destination) -> Result<Self> {
        let topic = destination.topic()?;
        let producer = Producer::open(cluster, topic, destination).await?;
        let mut capabilities = capabilities::KAFKA;
        capabilities.limits.payload_bytes = Some(producer.facts.limit.saturating_sub(ALLOWANCE));
        let endpoint = endpoint(cluster, topic);
        Ok(Self { producer, capabilities, endpoint })
    }
}

/// What an open topic is called in spans.
pub(crate) fn endpoint(cluster: &Cluster, topic: &str) -> Endpoint {
    Endpoint { destination: topic.to_owned(), server: Some(cluster.server.clone()), attributes: Vec::new() }
}

fn measure_within(limit: usize, envelope: &Envelope, hop: &Hop<'_>) -> Result<usize> {
    let mut sizer = Sizer::default();
    codec::encode(envelope, hop, &mut sizer);
    let key = envelope.ordering_key.as_ref().map_or(0, bytes::Bytes::len);
    let size = OVERHEAD + sizer.0 + key + envelope.payload_len();
    if size > limit {
        return Err(Error::limit(
            "the message, with its key and headers,",
            format!("{size} bytes"),
            format!("{limit} bytes (the topic's max.message.bytes)"),
        ));
    }
    Ok(size)
}

/// How large a message is for Kafka, in bytes, where a topic can do this. It needs no connection.
///
/// # Errors
/// `LimitExceeded` for what the topic would refuse, as publishing to it.
pub fn measure(message: &Outgoing, capabilities: &Capabilities) -> Result<usize> {
    let limit = capabilities.limits.payload_bytes.map_or(LARGEST - SLACK, |payload| payload + ALLOWANCE);
    measure_within(limit, &message.envelope, &hop(message, true))
}

fn hop(message: &Outgoing, stamp: bool) -> Hop<'_> {
    Hop {
        sent: Timestamp::now(),
        delay: Duration::ZERO,
        failed_attempts: message.failed_attempts,
        history: message.history.as_deref(),
        stamp,
        dead_letter: None,
    }
}

#[async_trait]
impl driver::Publisher for Publisher {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        self.producer.measure(&message.envelope, &hop(message, self.producer.keeps_stamp()))
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        let stamp = self.producer.keeps_stamp();
        let messages = batch
            .iter()
            .enumerate()
            .map(|(index, message)| (index, &*message.envelope, hop(message, stamp)))
            .collect();
        self.producer.send(messages, &Arc::new(done)).await;
    }

    async fn close(&self) -> Result<()> {
        self.producer.close().await;
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("topic", &self.endpoint.destination).finish_non_exhaustive()
    }
}
