//! A producer for one topic: messages into librdkafka's queue, delivery reports out of it.
//!
//! librdkafka sends one request a partition at a time where the producer is idempotent, and while one is under way with more
//! messages waiting, its thread spins as soon as they have waited for `linger.ms`. So nothing is given to it then: what
//! accumulates meanwhile goes together, and at once, by a flush, when there is room.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, Producer as _};
use throughline_core::driver::Completions;
use throughline_core::{Envelope, Error, ErrorKind, Result};

use crate::cluster::Cluster;
use crate::codec::{self, Hop, Sink, Sizer};
use crate::config::Destination;
use crate::connect::{TopicFacts, blocking, facts};
use crate::error;
use crate::native::{self, HeaderList, Refused, Sent, Topic};
use crate::reports::{FULL, Order, Reports};

/// What a record costs beside its key, value and headers: the batch's header of 61 bytes, and a record's own length,
/// attributes, deltas and lengths. <https://kafka.apache.org/documentation/#recordbatch>
const OVERHEAD: usize = 61 + 36;
/// librdkafka asserts that a batch is within its own limit, which does not count headers when a message is queued; ours does.
const SLACK: usize = 4096;
/// The bounds of librdkafka's `message.max.bytes`, in bytes.
const SMALLEST: usize = 1000;
const LARGEST: usize = 1_000_000_000;
/// The largest message that librdkafka takes, in bytes.
pub(crate) const MOST: usize = LARGEST - SLACK;
/// How long one wait for reports takes, and so how late a client's thread sees that it is to end.
const WAIT: Duration = Duration::from_millis(100);
/// So few messages under way are not worth waiting for.
const FEW: usize = 32;
/// So long librdkafka waits between two tries for a producer id, unless an answer about a topic comes meanwhile. The first try
/// is made before there is a connection.
const UNASKED: Duration = Duration::from_millis(500);

/// librdkafka's producer, with a thread that answers and one that flushes.
struct Client {
    topic: Topic,
    producer: Arc<BaseProducer<Reports>>,
    threads: Vec<JoinHandle<()>>,
    flushes: bool,
}

impl Client {
    fn new(cluster: &Cluster, topic: &str, facts: TopicFacts) -> Result<Self> {
        // No larger than the topic's limit, which holds for a whole batch; librdkafka's default is 1,000,000.
        let batch = facts.limit.min(1_000_000).to_string();
        let largest = (facts.limit + SLACK).to_string();
        let config = cluster.client(
            &[
                // As Java's clients choose it, so that a key's partition is the same whoever sends.
                ("partitioner", "murmur2_random"),
                // As long as the portable publisher waits for an answer by default.
                ("message.timeout.ms", "30000"),
                ("queue.buffering.max.kbytes", "131072"),
                ("batch.size", &batch),
            ],
            &[("enable.idempotence", "true"), ("message.max.bytes", &largest)],
        );
        let producer: Arc<BaseProducer<Reports>> =
            Arc::new(config.create_with_context(Reports::default()).map_err(error::map)?);
        let internal = |text: &str| Error::new(ErrorKind::Internal, text.to_owned());
        let topic = Topic::new(producer.client(), topic)
            .ok_or_else(|| internal("librdkafka does not take the topic's name"))?;
        // Who says how long to wait is to have it.
        let flushes = cluster.property("linger.ms").or(cluster.property("queue.buffering.max.ms")).is_none();
        let mut this = Self { topic, producer, threads: Vec::new(), flushes };
        this.spawn("kafka reports", answer_reports)?;
        if flushes {
            this.spawn("kafka flush", flush_on_order)?;
        }
        Ok(this)
    }

    /// A client that has asked for its producer id already, as a rule: without one nothing is sent.
    async fn started(cluster: &Cluster, topic: &str, facts: TopicFacts) -> Result<Arc<Self>> {
        let client = Arc::new(Self::new(cluster, topic, facts)?);
        let (asking, topic) = (client.clone(), topic.to_owned());
        blocking(move || {
            // By the first answer it knows the brokers and connects to them; at the second there is one to ask for the id. Where
            // there is no answer, what is sent tells why.
            for _ in 0..2 {
                let _ = asking.producer.client().fetch_metadata(Some(&topic), UNASKED);
            }
            Ok(())
        })
        .await?;
        Ok(client)
    }

    fn spawn(&mut self, name: &str, work: fn(&BaseProducer<Reports>)) -> Result<()> {
        let producer = self.producer.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&producer));
        self.threads.push(thread.map_err(|error| {
            Error::new(ErrorKind::Internal, "a thread of the producer cannot be started").with_source(error)
        })?);
        Ok(())
    }

    fn reports(&self) -> &Arc<Reports> {
        self.producer.client().context()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reports().order(Order::End);
        native::wake(self.producer.client());
        for thread in self.threads.drain(..) {
            // It has nothing that could panic.
            let _ = thread.join();
        }
    }
}

fn answer_reports(producer: &BaseProducer<Reports>) {
    let context = producer.client().context();
    loop {
        let reports = native::reports(producer.client(), WAIT);
        if !reports.is_empty() {
            context.answer(reports);
        } else if *context.order.lock().unwrap_or_else(PoisonError::into_inner) == Order::End {
            return;
        }
    }
}

fn flush_on_order(producer: &BaseProducer<Reports>) {
    let context = producer.client().context();
    loop {
        {
            let order = context.order.lock().unwrap_or_else(PoisonError::into_inner);
            let order = context.ordered.wait_while(order, |order| *order == Order::Wait);
            let mut order = order.unwrap_or_else(PoisonError::into_inner);
            if *order == Order::End {
                return;
            }
            *order = Order::Wait;
        }
        // What is queued meanwhile goes at once.
        native::flush(producer.client(), WAIT);
    }
}

/// An idempotent producer for one topic. Its queue is bounded by librdkafka, in messages and bytes.
pub(crate) struct Producer {
    cluster: Cluster,
    topic: String,
    facts: TopicFacts,
    /// Replaced when it is broken; `None` once closed.
    client: RwLock<Option<Arc<Client>>>,
}

impl Producer {
    /// For a topic, which must exist; the error names the destination that it belongs to.
    pub(crate) async fn open(cluster: &Cluster, topic: &str, destination: &Destination) -> Result<Self> {
        let mut facts = facts(cluster, topic, destination).await?;
        if let Some(own) = cluster.property("message.max.bytes").and_then(|own| own.parse().ok()) {
            facts.limit = facts.limit.min(own);
        }
        facts.limit = facts.limit.clamp(SMALLEST, MOST);
        let client = RwLock::new(Some(Client::started(cluster, topic, facts).await?));
        Ok(Self { cluster: cluster.clone(), topic: topic.to_owned(), facts, client })
    }

    fn client(&self) -> Option<Arc<Client>> {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client, a new one where the old one is broken.
    async fn working(&self) -> Result<Arc<Client>> {
        let closed = || Error::new(ErrorKind::Closed, "the publisher is closed");
        let present = self.client().ok_or_else(closed)?;
        if !present.reports().is_broken.load(Ordering::Acquire) {
            return Ok(present);
        }
        let new = Client::started(&self.cluster, &self.topic, self.facts).await?;
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

    /// What a message may measure, with its key and headers, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.facts.limit
    }

    /// How the topic wants a hop to be written: whether a record's timestamp can be the envelope's time.
    pub(crate) fn keeps_stamp(&self) -> bool {
        self.facts.keeps_stamp
    }

    /// The message's size in bytes; fails where the topic would refuse it.
    pub(crate) fn measure(&self, envelope: &Envelope, hop: &Hop<'_>) -> Result<usize> {
        measure_within(self.facts.limit, envelope, hop)
    }

    /// Queues messages, in order; waits while others are under way, or the queue is full.
    pub(crate) async fn send(
        &self,
        messages: impl Iterator<Item = (usize, &Arc<Envelope>, Hop<'_>)>,
        done: &Arc<Completions>,
    ) {
        let client = match self.working().await {
            Ok(client) => client,
            Err(error) => return done.fail_rest(&error),
        };
        let reports = client.reports();
        if client.flushes {
            reports.room().await;
        }
        let before = reports.waiting.load(Ordering::Acquire);
        let mut count = 0;
        for (index, envelope, hop) in messages {
            count += 1;
            let Some(headers) = HeaderList::new(envelope.headers.len() + 8) else {
                done.complete(index, Err(error::of_code(Code::QueueFull)));
                continue;
            };
            let mut headers = Built(headers);
            let stamp = codec::encode(envelope, &hop, &mut headers);
            let sent = Box::new(Sent { envelope: envelope.clone(), done: done.clone(), index });
            reports.waiting.fetch_add(1, Ordering::AcqRel);
            if let Err(refused) = client.produce(sent, stamp, headers.0).await {
                // The error is what made it so, and not that it is.
                if client.producer.client().fatal_error().is_some() {
                    reports.give_up();
                }
                reports.waiting.fetch_sub(1, Ordering::AcqRel);
                done.complete(index, Err(error::of_delivery(&refused.error, true)));
            }
        }
        // Of what stays because a partition's leader is away, nobody waits.
        reports.most.store(before + (count / 2).max(FEW), Ordering::Release);
        if client.flushes {
            reports.order(Order::Flush);
        }
    }

    /// Waits for the reports still out, at most as long as a message may take (`message.timeout.ms`), then ends the client.
    pub(crate) async fn close(&self) {
        let Some(client) = self.client() else { return };
        let reports = client.reports().clone();
        reports.most.store(0, Ordering::Release);
        reports.room().await;
        let taken = self.client.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(client);
        if let Some(client) = taken {
            end(client).await;
        }
    }
}

impl Client {
    /// Queues a message, once there is room.
    async fn produce(
        &self,
        mut sent: Box<Sent>,
        stamp: Option<i64>,
        mut headers: HeaderList,
    ) -> Result<(), Box<Refused>> {
        loop {
            match native::produce(self.producer.client(), &self.topic, sent, stamp, headers) {
                Err(refused) if refused.error.rdkafka_error_code() == Some(Code::QueueFull) => {
                    (sent, headers) = (refused.sent, refused.headers);
                    self.reports().is_full.store(true, Ordering::Release);
                    self.reports().order(Order::Flush);
                    let _ = tokio::time::timeout(FULL, self.reports().reported.notified()).await;
                }
                outcome => return outcome,
            }
        }
    }
}

/// The message's size in bytes; fails where a topic with this limit would refuse it.
pub(crate) fn measure_within(limit: usize, envelope: &Envelope, hop: &Hop<'_>) -> Result<usize> {
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

/// Ends a client: its threads are joined by who holds it last.
async fn end(client: Arc<Client>) {
    let _ = blocking(move || {
        drop(client);
        Ok(())
    })
    .await;
}

/// Headers as librdkafka holds them.
struct Built(HeaderList);

impl Sink for Built {
    fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.0.add(name, value);
    }
}
