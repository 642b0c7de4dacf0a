//! The portable consumer: prefetch, batched settlement, leases, a stream of deliveries.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use futures_core::Stream;
use opentelemetry::trace::SpanKind;
use opentelemetry::{Context, KeyValue};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::address::Address;
use crate::answer::no_answer;
use crate::capabilities::{Capabilities, Level, SettleMeaning};
use crate::delivery::Delivery;
use crate::driver::{self, Settlement, Token};
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::lease::Leases;
use crate::metrics::Instruments;
use crate::publisher::FAR;
use crate::settle::{self, Op, SettleQueue};
use crate::trace::{self, Description, SpanNames, TracePolicy, attribute};

/// At most so many messages are asked of the driver at once, and so many deferred acks are written at once.
const BATCH: usize = 100;
/// The wait after a passing error of the driver.
const PAUSE: Duration = Duration::from_millis(200);

/// Which order a consumer keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Messages of one ordering key in order, as far as the transport can (its capabilities say): where it can natively,
    /// a key's next message is delivered when the one before is settled; a keyed message is retried in its place.
    #[default]
    PerKey,
    /// Whatever is quickest.
    Any,
}

/// How a consumer works. The defaults suit most.
#[derive(Clone, Debug)]
pub struct ConsumeOptions {
    /// How many deliveries may be unsettled, buffered ones included (the prefetch); 500 by default.
    pub max_unsettled: usize,
    /// How many bytes of payload may be unsettled before no more is asked for; 64 MiB by default. One batch may exceed
    /// it.
    pub max_bytes: usize,
    /// How long a lease is, where it can be chosen; 30 s by default. It is extended while the delivery is unsettled.
    pub lease: Duration,
    /// How long a delivery may be held in all; 1 h by default. Then its lease is let go, and it is delivered again.
    pub max_lease: Duration,
    /// Which order is kept.
    pub order: Order,
    /// How a process span relates to its message's creation context.
    pub trace: TracePolicy,
    /// What spans are named after.
    pub span_names: SpanNames,
    /// Whether each receipt of messages from the driver makes a span (a root of its own, linked to the messages).
    pub receive_spans: bool,
    /// Where settlement is [`Deferred`](SettleMeaning::Deferred), how long an ack waits for others to be written with it;
    /// 5 ms by default. It is written at once when 100 wait (half of `max_unsettled`, where that is less). Zero: each ack
    /// waits until it is written.
    pub settle_linger: Duration,
    /// How long one call to the driver waits for messages (SQS: the long poll); 20 s by default.
    pub poll: Duration,
}

impl Default for ConsumeOptions {
    fn default() -> Self {
        Self {
            max_unsettled: 500,
            max_bytes: 64 * 1024 * 1024,
            lease: Duration::from_secs(30),
            max_lease: Duration::from_secs(60 * 60),
            order: Order::default(),
            trace: TracePolicy::default(),
            span_names: SpanNames::default(),
            receive_spans: true,
            settle_linger: Duration::from_millis(5),
            poll: Duration::from_secs(20),
        }
    }
}

/// A stream of deliveries from one source. Consumers that name the same queue, group or subscription compete.
///
/// It reconnects by itself. The stream ends after [`stop`](Self::stop), or with the one error that no waiting will mend
/// (the queue was deleted, access was withdrawn).
///
/// Dropped without [`close`](Self::close), it takes no more messages and releases the unread; deliveries still held can
/// be settled, as long as the runtime lives.
pub struct Consumer {
    /// What one call to the driver gave, together: one wake-up for all.
    chunks: mpsc::Receiver<Result<Vec<Delivery>>>,
    /// Received, and not handed out yet.
    buffer: VecDeque<Delivery>,
    /// The error that ended the stream, where deliveries came before it.
    ended: Option<Error>,
    shared: Arc<Shared>,
    receiver: Option<JoinHandle<()>>,
    settler: Option<JoinHandle<Result<()>>>,
}

/// Settlements of a consumer that failed and that nobody waited for: deferred acks, and those of expired messages. Their
/// messages are delivered again.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SettleErrors {
    /// How many.
    pub count: u64,
    /// Why the first did.
    pub first: Option<Error>,
}

/// Where a consumer is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// Takes no more messages; what is held can be settled.
    Stopped,
    /// Dropped without a close: closes itself when nothing is held any more.
    Abandoned,
    /// Settles what was asked for before, then closes the driver.
    Closing,
    Closed,
}

/// What the consumer, its tasks and its deliveries share.
pub(crate) struct Shared {
    pub(crate) driver: Arc<dyn driver::Consumer>,
    pub(crate) options: ConsumeOptions,
    pub(crate) address: Address,
    pub(crate) instruments: Instruments,
    pub(crate) span_attributes: Vec<KeyValue>,
    pub(crate) queue: SettleQueue,
    pub(crate) leases: Option<Arc<Leases>>,
    pub(crate) deferred: bool,
    /// Whether the driver acks in the thread of who asks.
    pub(crate) acks_now: bool,
    /// One permit a delivery that may be unsettled.
    room: Semaphore,
    unsettled: AtomicUsize,
    unsettled_bytes: AtomicUsize,
    /// Told when bytes are settled.
    settled: Notify,
    settle_errors: AtomicU64,
    first_settle_error: OnceLock<Error>,
    /// Whether expired messages are seen to here, and how many there were.
    checks_expiry: bool,
    expired: AtomicU64,
    /// The receiving task has ended.
    received_all: AtomicBool,
    phase: watch::Sender<Phase>,
}

impl Consumer {
    /// Wraps a driver's consumer. Must be called within a tokio runtime; `Bus::consumer` does this for you.
    pub fn new(driver: Arc<dyn driver::Consumer>, address: &Address, options: ConsumeOptions) -> Self {
        let options = ConsumeOptions {
            // One place more, for the error that ends the stream.
            max_unsettled: options.max_unsettled.clamp(1, Semaphore::MAX_PERMITS - 1),
            max_bytes: options.max_bytes.max(1),
            lease: options.lease.min(FAR),
            max_lease: options.max_lease.min(FAR),
            settle_linger: options.settle_linger.min(FAR),
            poll: options.poll.min(FAR),
            ..options
        };
        let max_unsettled = options.max_unsettled;
        let capabilities = driver.capabilities();
        let deferred = capabilities.settle == SettleMeaning::Deferred && !options.settle_linger.is_zero();
        // Well below the prefetch, so that the broker always has room to send more meanwhile.
        let full = BATCH.min(max_unsettled / 2);
        let shared = Arc::new(Shared {
            instruments: Instruments::new(capabilities, driver.endpoint()),
            span_attributes: attribute::of_endpoint(capabilities, driver.endpoint()),
            queue: SettleQueue::new(full, if deferred { options.settle_linger } else { Duration::ZERO }),
            leases: Leases::new(capabilities.lease, options.lease, options.max_lease).map(Arc::new),
            deferred,
            acks_now: driver.ack_now(&[]).is_some(),
            room: Semaphore::new(max_unsettled),
            unsettled: AtomicUsize::new(0),
            unsettled_bytes: AtomicUsize::new(0),
            settled: Notify::new(),
            settle_errors: AtomicU64::new(0),
            first_settle_error: OnceLock::new(),
            checks_expiry: capabilities.expiry == Level::Emulated,
            expired: AtomicU64::new(0),
            received_all: AtomicBool::new(false),
            phase: watch::channel(Phase::Running).0,
            address: address.clone(),
            options,
            driver,
        });
        let (sender, chunks) = mpsc::channel(max_unsettled + 1);
        let receiver = tokio::spawn(receive(shared.clone(), sender));
        let settler = tokio::spawn(settle_until_closed(shared.clone()));
        Self {
            chunks,
            buffer: VecDeque::new(),
            ended: None,
            shared,
            receiver: Some(receiver),
            settler: Some(settler),
        }
    }

    /// What this source can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.shared.driver.capabilities()
    }

    /// Where it consumes from.
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// How it works.
    pub fn options(&self) -> &ConsumeOptions {
        &self.shared.options
    }

    /// What the spans and metrics of this source have in common: its system, destination and server.
    pub fn attributes(&self) -> &[KeyValue] {
        &self.shared.span_attributes
    }

    /// Whether what is rejected has somewhere to go, by the address or by the broker's own rules.
    pub fn has_dead_letter(&self) -> bool {
        self.shared.driver.has_dead_letter()
    }

    /// The driver, for the adapter's own extensions.
    pub fn driver(&self) -> &Arc<dyn driver::Consumer> {
        &self.shared.driver
    }

    /// The next delivery; `None` when the stream has ended. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        std::future::poll_fn(|cx| self.poll_delivery(cx)).await
    }

    /// The next that is still ours: one that was lost while it was buffered comes again, from another connection or to
    /// another consumer.
    fn poll_delivery(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Delivery>>> {
        loop {
            match self.buffer.pop_front() {
                Some(delivery) if delivery.is_lease_lost() => drop(delivery),
                Some(delivery) => {
                    if let Some(delivery) = self.shared.in_time(delivery) {
                        return Poll::Ready(Some(Ok(delivery)));
                    }
                }
                None => match ready!(self.poll_buffer(cx)) {
                    Some(Ok(())) => {}
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => return Poll::Ready(None),
                },
            }
        }
    }

    /// Waits until something is buffered.
    fn poll_buffer(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<()>>> {
        if !self.buffer.is_empty() {
            return Poll::Ready(Some(Ok(())));
        }
        if let Some(error) = self.ended.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let chunk = ready!(self.chunks.poll_recv(cx));
        Poll::Ready(chunk.map(|chunk| chunk.map(|chunk| self.buffer = chunk.into())))
    }

    /// At least one delivery, and at most `max`; none when the stream has ended. Dropping the future loses nothing.
    pub async fn next_batch(&mut self, max: NonZeroUsize) -> Result<Vec<Delivery>> {
        loop {
            match std::future::poll_fn(|cx| self.poll_buffer(cx)).await {
                Some(buffered) => buffered?,
                None => return Ok(Vec::new()),
            }
            while self.buffer.len() < max.get() && self.ended.is_none() {
                match self.chunks.try_recv() {
                    Ok(Ok(chunk)) => self.buffer.extend(chunk),
                    // It ends the stream: told by a later call, after what is here.
                    Ok(Err(error)) => self.ended = Some(error),
                    Err(_) => break,
                }
            }
            let mut batch: Vec<_> = if self.buffer.len() <= max.get() {
                std::mem::take(&mut self.buffer).into()
            } else {
                self.buffer.drain(..max.get()).collect()
            };
            Delivery::retain_ours(&mut batch);
            if self.shared.checks_expiry {
                batch = batch.into_iter().filter_map(|delivery| self.shared.in_time(delivery)).collect();
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// How many settlements that nobody waited for (deferred acks, and those of expired messages) have failed so far: their
    /// messages are delivered again.
    pub fn settle_errors(&self) -> u64 {
        self.shared.settle_errors.load(Ordering::Relaxed)
    }

    /// How many messages had expired before they could be handed out, where the transport leaves that to the consumer
    /// ([`expiry`](Capabilities) is `Emulated`). They went to the dead letters, or without such a place were removed.
    pub fn expired(&self) -> u64 {
        self.shared.expired.load(Ordering::Relaxed)
    }

    /// Takes no more messages and releases the unread; the stream then ends. Deliveries that are held can be settled.
    pub async fn stop(&mut self) {
        self.shared.advance(Phase::Stopped);
        if let Some(receiver) = self.receiver.take()
            && let Err(error) = receiver.await
        {
            tracing::error!(%error, "the receiving task failed");
        }
        // Dropped, and so released.
        self.buffer.clear();
        while self.chunks.try_recv().is_ok() {}
    }

    /// Stops, settles what was asked for, and closes. Deliveries that are still held become `Closed`; they go back as
    /// their lease or connection ends.
    ///
    /// `Ok` has what went wrong meanwhile with settlements that nobody waited for: an ack that was answered before it was
    /// written is only now known to have been made.
    pub async fn close(mut self) -> Result<SettleErrors> {
        self.stop().await;
        self.shared.advance(Phase::Closing);
        if let Some(settler) = self.settler.take() {
            settler.await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Internal, "the settling task failed").with_source(error))
            })?;
        }
        let first = self.shared.first_settle_error.get().cloned();
        Ok(SettleErrors { count: self.settle_errors(), first })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.advance(Phase::Abandoned);
    }
}

impl Stream for Consumer {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delivery(cx)
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = *phase < to;
            *phase = (*phase).max(to);
            forward
        });
        self.room.close();
        self.settled.notify_waiters();
        self.queue.wake();
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// A delivery, unless it has expired and the broker does not see to that.
    fn in_time(&self, delivery: Delivery) -> Option<Delivery> {
        if !self.checks_expiry || !delivery.is_expired() {
            return Some(delivery);
        }
        self.expired.fetch_add(1, Ordering::Relaxed);
        self.instruments.expired();
        delivery.expire();
        None
    }

    /// Whether nothing is left to settle.
    fn is_over(&self) -> bool {
        match self.phase() {
            Phase::Running | Phase::Stopped => false,
            Phase::Abandoned => {
                self.received_all.load(Ordering::Acquire) && self.unsettled.load(Ordering::Acquire) == 0
            }
            Phase::Closing | Phase::Closed => self.queue.is_empty(),
        }
    }

    /// Acks without the settling task, where the driver [can](Self::acks_now). `bytes` are the payloads'.
    pub(crate) fn ack_now(&self, tokens: &[Token], bytes: usize) -> Vec<Result<()>> {
        let started = Instant::now();
        let mut results = self.queue.unless_closed(|| self.driver.ack_now(tokens)).unwrap_or_default();
        // Once it is closed, there is none.
        results.resize_with(tokens.len(), || Err(no_answer()));
        for result in &mut results {
            if let Err(error) = result {
                *error = error.clone().at("settle", &self.address);
            }
        }
        self.off(tokens.len(), bytes);
        let outcomes = results.iter().map(|result| (Settlement::Ack.name(), result.as_ref().err()));
        self.instruments.settled(started.elapsed(), outcomes);
        results
    }

    /// Deliveries have left the consumer, settled or not: so many, of so many bytes of payload.
    fn off(&self, count: usize, bytes: usize) {
        self.unsettled_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.unsettled.fetch_sub(count, Ordering::AcqRel);
        self.room.add_permits(count);
        self.settled.notify_waiters();
        // It waits for settlements, of which this was the last.
        if self.phase() == Phase::Abandoned && self.unsettled.load(Ordering::Acquire) == 0 {
            self.queue.wake();
        }
    }

    /// Waits until there is room, and takes as many places as one call may fill. None once stopped.
    async fn places(&self) -> Option<NonZeroUsize> {
        loop {
            let told = self.settled.notified();
            if self.phase() != Phase::Running {
                return None;
            }
            if self.unsettled_bytes.load(Ordering::Acquire) < self.options.max_bytes {
                break;
            }
            told.await;
        }
        let mut permits = self.room.acquire().await.ok()?;
        let more = self.room.available_permits().min(BATCH - 1);
        let mut count = 1;
        if more > 0
            && let Ok(others) = self.room.try_acquire_many(u32::try_from(more).unwrap_or(0))
        {
            permits.merge(others);
            count += more;
        }
        permits.forget();
        NonZeroUsize::new(count)
    }
}

/// Asks the driver for messages while there is room, until the consumer stops.
async fn receive(shared: Arc<Shared>, sender: mpsc::Sender<Result<Vec<Delivery>>>) {
    let _end = ReceiverEnd { shared: shared.clone(), sender: sender.clone() };
    let mut phase = shared.phase.subscribe();
    let driver = shared.driver.clone();
    // The driver's calls are never dropped: `stop` makes a waiting one return.
    let stopper = {
        let driver = driver.clone();
        async move {
            let _ = phase.wait_for(|phase| *phase >= Phase::Stopped).await;
            driver.stop().await;
        }
    };
    let receiver = async {
        while let Some(max) = shared.places().await {
            let started = (Instant::now(), SystemTime::now());
            let result = driver.receive(max, shared.options.poll).await;
            let count = result.as_ref().map_or(0, Vec::len);
            shared.room.add_permits(max.get().saturating_sub(count));
            match result {
                Ok(deliveries) if deliveries.is_empty() => {}
                Ok(deliveries) => {
                    shared.instruments.received(count, started.0.elapsed(), None);
                    receive_span(&shared, &deliveries, started.1);
                    let bytes = deliveries.iter().map(|delivery| delivery.envelope.payload_len()).sum();
                    shared.unsettled.fetch_add(count, Ordering::AcqRel);
                    shared.unsettled_bytes.fetch_add(bytes, Ordering::AcqRel);
                    // Sent to nobody, they are dropped here, and so released.
                    let _ = sender.try_send(Ok(Delivery::received(deliveries, &shared)));
                }
                Err(error) => {
                    let error = error.at("consume", &shared.address);
                    shared.instruments.received(0, started.0.elapsed(), Some(&error));
                    if error.retry() == Retry::Never {
                        let _ = sender.try_send(Err(error));
                        shared.advance(Phase::Stopped);
                        break;
                    }
                    tracing::warn!(error = %error, "receiving failed, trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    futures_util::future::join(receiver, stopper).await;
}

/// The end of the receiving task, however it comes.
struct ReceiverEnd {
    shared: Arc<Shared>,
    sender: mpsc::Sender<Result<Vec<Delivery>>>,
}

impl Drop for ReceiverEnd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(ErrorKind::Internal, "the driver panicked while receiving");
            let _ = self.sender.try_send(Err(error.at("consume", &self.shared.address)));
        }
        self.shared.received_all.store(true, Ordering::Release);
        self.shared.advance(Phase::Stopped);
    }
}

/// The end of the settling task, however it comes: who asks for a settlement from then on is told.
struct SettlerEnd(Arc<Shared>);

impl Drop for SettlerEnd {
    fn drop(&mut self) {
        drop(self.0.queue.close());
        self.0.advance(Phase::Closed);
    }
}

fn receive_span(shared: &Shared, deliveries: &[driver::Delivery], started: SystemTime) {
    if !shared.options.receive_spans {
        return;
    }
    let span = trace::start(&Context::new(), SpanKind::Client, Some(started), || {
        let mut attributes = shared.span_attributes.clone();
        attributes.extend_from_slice(&shared.driver.endpoint().attributes);
        attributes.push(KeyValue::new(attribute::OPERATION_TYPE, "receive"));
        attributes.push(KeyValue::new(attribute::OPERATION_NAME, "receive"));
        let count = i64::try_from(deliveries.len()).unwrap_or(i64::MAX);
        attributes.push(KeyValue::new(attribute::BATCH_COUNT, count));
        // The contexts of an untrusted producer are not even linked.
        let trusted = deliveries.iter().filter(|_| shared.options.trace != TracePolicy::Ignore);
        let contexts = trusted.filter_map(|d| trace::creation_context(&d.envelope.headers));
        Description {
            name: format!("receive {}", shared.driver.endpoint().destination).into(),
            attributes,
            links: contexts.filter_map(|context| trace::link(&context)).collect(),
        }
    });
    if let Some(span) = span {
        trace::end(&span, None);
    }
}

/// Settles what is asked for, and keeps the leases, until the consumer is closed and nothing is left to settle.
async fn settle_until_closed(shared: Arc<Shared>) -> Result<()> {
    let _end = SettlerEnd(shared.clone());
    let driver = shared.driver.clone();
    let phase = &shared.phase;
    let keeper = shared.leases.clone().map(|leases| leases.keep(driver.clone(), phase.subscribe()));
    let settler = async {
        loop {
            if shared.is_over() {
                break;
            }
            let ops = shared.queue.take().await;
            if ops.is_empty() {
                continue;
            }
            settle::settle(&*driver, ops, |ops, results, took| answer(&shared, ops, results, took)).await;
        }
        off(&shared, &shared.queue.close());
        shared.advance(Phase::Closed);
        driver.close().await
    };
    match keeper {
        Some(keeper) => futures_util::future::join(settler, keeper).await.0,
        None => settler.await,
    }
}

/// Counts off what these settlements were of.
fn off<'a>(shared: &Shared, ops: impl IntoIterator<Item = &'a Op>) {
    let (count, bytes) = ops.into_iter().fold((0, 0), |(count, bytes), op| (count + 1, bytes + op.bytes));
    shared.off(count, bytes);
}

/// Tells what became of settlements, all of which took so long.
fn answer(shared: &Shared, ops: Vec<Op>, mut results: Vec<Result<()>>, took: Duration) {
    // What could not be done leaves its delivery held: by who asked, or released for who did not stay.
    let left = ops.iter().zip(&results).filter(|(op, result)| !op.is_held(result));
    off(shared, left.map(|(op, _)| op));
    let held = ops.iter().zip(&results).filter(|(op, result)| op.is_held(result));
    let released: Vec<_> = held.filter_map(|(op, _)| op.release()).collect();
    if !released.is_empty() {
        shared.queue.push(released, true);
    }
    let (mut duplicates, mut why) = (0, None);
    for (op, result) in ops.iter().zip(&mut results) {
        let Err(error) = result else { continue };
        *error = error.clone().at("settle", &shared.address);
        // A release is only a courtesy; an ack that failed makes a duplicate, and what had expired comes again.
        if op.slot.is_none() && !matches!(op.settlement, Settlement::Release) {
            duplicates += 1;
            why = Some(&*error);
        }
    }
    // A lost channel takes hundreds along: one line for all.
    if let Some(error) = why {
        shared.settle_errors.fetch_add(duplicates, Ordering::Relaxed);
        shared.first_settle_error.get_or_init(|| error.clone());
        tracing::warn!(count = duplicates, %error, "deferred acks failed: these messages will be delivered again");
    }
    let outcomes = ops.iter().zip(&results);
    let outcomes = outcomes.map(|(op, result)| (op.settlement.name(), result.as_ref().err()));
    shared.instruments.settled(took, outcomes);
    for (op, result) in ops.into_iter().zip(results) {
        if let Some(slot) = op.slot {
            slot.answer(result);
        }
    }
}
