//! The portable publisher: what users hold.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::trace::{SpanKind, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::address::Address;
use crate::answer::{All, Slot, answers};
use crate::batch::{Answered, Dispatcher, Event, Item, held_back};
use crate::capabilities::{Capabilities, Level};
use crate::driver::{self, OperationId, Outgoing, Receipt};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::metrics::Instruments;
use crate::retry::History;
use crate::trace::{self, Description, SpanNames, attribute};

/// Longer times are as good as for ever, and the clock can count them.
pub(crate) const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);

/// How messages of one ordering key are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyOrder {
    /// Many in flight. When one fails, its key is fenced: what was not yet sent fails with `HeldBack` until
    /// [`Publisher::resume`]; what was already sent may overtake it.
    #[default]
    Pipelined,
    /// Where the driver cannot pipeline a key safely, one unresolved message a key. Nothing overtakes.
    Strict,
}

/// How a publisher works. The defaults suit most.
#[derive(Clone, Debug)]
pub struct PublishOptions {
    /// How many messages may be unanswered; publishing waits for room. 1,000 by default.
    pub max_in_flight: usize,
    /// How messages of one ordering key are sent.
    pub key_order: KeyOrder,
    /// How long the wait for room may take, and from then on the answer, resends included; 30 s by default. Without room
    /// the message was not sent (`Timeout`, `Safe`); without an answer nobody knows (`Timeout`, `Uncertain`).
    pub timeout: Duration,
    /// Whether a message whose outcome is uncertain is sent again, which can make duplicates. Off by default.
    pub allow_duplicates: bool,
    /// What spans are named after.
    pub span_names: SpanNames,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 1000,
            key_order: KeyOrder::default(),
            timeout: Duration::from_secs(30),
            allow_duplicates: false,
            span_names: SpanNames::default(),
        }
    }
}

/// Options of one send.
#[derive(Clone, Debug, Default)]
pub struct SendOptions {
    /// Not delivered before that long from now. Refused with `Unsupported` or `LimitExceeded` where the transport cannot.
    pub delay: Duration,
    /// How often processing has failed before, for what republishes a message.
    pub failed_attempts: u32,
    /// Those failures.
    pub history: Option<Arc<History>>,
    /// The message's headers are left as they are, also where they carry no trace context: for what moves messages of
    /// others. Its span links the context that they carry, if any.
    pub verbatim: bool,
}

impl SendOptions {
    /// A send that is delayed.
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// Sends messages to one destination. Cheap to clone; all clones share one queue, one connection and one order.
///
/// Batching adds no latency: a full batch goes at once, at most one partial batch is under way, and what accumulates
/// meanwhile goes next. A failure that is certainly `Safe` to repeat (a lost connection before the write) is resent with
/// backoff until [`timeout`](PublishOptions::timeout).
///
/// Dropped without [`close`](Self::close), what was queued is still sent, as long as the runtime lives.
#[derive(Clone)]
pub struct Publisher(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    /// Taken when closing: the dispatcher ends when the queue does.
    queue: Mutex<Option<mpsc::Sender<Vec<Item>>>>,
    outcome: Outcome,
}

/// How the publisher ended, once it has.
type Outcome = watch::Receiver<Option<Result<()>>>;

/// What the handle, the dispatcher and the answers in flight share.
pub(crate) struct Shared {
    pub(crate) driver: Arc<dyn driver::Publisher>,
    pub(crate) options: PublishOptions,
    pub(crate) instruments: Instruments,
    /// Names spans and errors.
    address: Address,
    span_attributes: Vec<KeyValue>,
    /// One permit a message that is unanswered: this bounds the queue.
    pub(crate) room: Semaphore,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// Something was accepted since the last resend.
    pub(crate) accepted: AtomicBool,
    fenced: Mutex<HashSet<Bytes>>,
    fences: AtomicUsize,
    /// Operation ids: a random half, and a count.
    operation_base: u64,
    sequence: AtomicU64,
    priority_warning: Once,
}

impl Publisher {
    /// Wraps a driver's publisher. Must be called within a tokio runtime; `Bus::publisher` does this for you.
    pub fn new(driver: Arc<dyn driver::Publisher>, address: &Address, options: PublishOptions) -> Self {
        let room = options.max_in_flight.clamp(1, Semaphore::MAX_PERMITS);
        // Every chunk in the queue holds at least one permit, so a send into it never waits.
        let (queue, queued) = mpsc::channel(room);
        // Bounded by the permits too: an item has at most one event on its way.
        let (events, happened) = mpsc::unbounded_channel();
        let span_attributes = attribute::of_endpoint(driver.capabilities(), driver.endpoint());
        let shared = Arc::new(Shared {
            instruments: Instruments::new(driver.capabilities(), driver.endpoint()),
            driver,
            options: PublishOptions { max_in_flight: room, timeout: options.timeout.min(FAR), ..options },
            address: address.clone(),
            span_attributes,
            room: Semaphore::new(room),
            events,
            accepted: AtomicBool::new(false),
            fenced: Mutex::default(),
            fences: AtomicUsize::new(0),
            operation_base: Uuid::now_v7().as_u64_pair().1,
            sequence: AtomicU64::new(0),
            priority_warning: Once::new(),
        });
        let (ended, outcome) = watch::channel(None);
        let dispatcher = Dispatcher::new(shared.clone());
        tokio::spawn(async move {
            let result = dispatcher.run(queued, happened).await;
            ended.send_replace(Some(result));
        });
        Self(Arc::new(Handle { shared, queue: Mutex::new(Some(queue)), outcome }))
    }

    /// What this destination can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.0.shared.driver.capabilities()
    }

    /// The driver, for the adapter's own extensions.
    pub fn driver(&self) -> &Arc<dyn driver::Publisher> {
        &self.0.shared.driver
    }

    /// Sends one message, and waits until the broker has durably accepted it.
    ///
    /// The current OpenTelemetry context goes with it, unless the envelope carries one already. Dropping the future
    /// before there was room sends nothing; dropping it later abandons the answer, not the send.
    ///
    /// Errors: a limit or an option that the transport cannot meet (before the network), `Unroutable`, `Refused`,
    /// `HeldBack`, `Timeout` (also where there was no room in time), `Disconnected`, `Closed`; see [`Error::retry`] for
    /// whether sending again is safe.
    pub async fn publish(&self, envelope: impl Into<Arc<Envelope>>) -> Result<Receipt> {
        self.enqueue(envelope, SendOptions::default()).await?.receipt().await
    }

    /// Sends one message with options.
    pub async fn publish_with(
        &self,
        envelope: impl Into<Arc<Envelope>>,
        options: SendOptions,
    ) -> Result<Receipt> {
        self.enqueue(envelope, options).await?.receipt().await
    }

    /// Waits for room, queues one message, and gives the future of its receipt: for keeping many in flight from one task.
    /// Messages are sent in the order in which this returns.
    pub async fn enqueue(&self, envelope: impl Into<Arc<Envelope>>, options: SendOptions) -> Result<Pending> {
        let shared = &self.0.shared;
        let context = Context::current();
        let verbatim = options.verbatim;
        let mut message = shared.message(envelope.into(), options);
        let span = shared.send_span(&context, &mut message, verbatim);
        let size = match shared.check(&message) {
            Ok(size) => size,
            Err(error) => {
                if let Some(span) = &span {
                    trace::end(span, Some(&error));
                }
                return Err(error);
            }
        };
        let (answers, all) = answers(1);
        let key = message.envelope.ordering_key.clone();
        let item = shared.item(message, size, answers.slot(0), span, Instant::now());
        match self.try_push(vec![item]).await {
            Ok(deadline) => Ok(Pending { all, deadline, key, shared: shared.clone() }),
            Err((items, error)) => {
                shared.refuse(items, &error);
                Err(error)
            }
        }
    }

    /// Sends messages, in order, and waits for all their answers: one a message, in the same order. After one that failed
    /// its checks, later ones of its key in this call are `HeldBack`.
    pub async fn publish_batch<E: Into<Arc<Envelope>>>(
        &self,
        envelopes: impl IntoIterator<Item = E>,
    ) -> Vec<Result<Receipt>> {
        let shared = &self.0.shared;
        let context = Context::current();
        let mut messages: Vec<_> = envelopes
            .into_iter()
            .map(|envelope| shared.message(envelope.into(), SendOptions::default()))
            .collect();
        let span = shared.batch_span(&context, &mut messages);
        let count = messages.len();
        let (answers, mut all) = answers(count);
        let started = Instant::now();
        let keyed = |(index, message): (_, &Outgoing)| Some((index, message.envelope.ordering_key.clone()?));
        let keys: HashMap<_, _> = messages.iter().enumerate().filter_map(keyed).collect();
        let mut refused = HashSet::new();
        // Small enough that other publishers get their turn in between.
        let most = shared.driver.capabilities().limits.batch_entries.clamp(1, shared.options.max_in_flight);
        let mut chunks = Vec::with_capacity(count / most + 1);
        let mut chunk = Vec::with_capacity(count.min(most));
        for (index, message) in messages.into_iter().enumerate() {
            let slot = answers.slot(index);
            let key = message.envelope.ordering_key.as_ref();
            let held = key.is_some_and(|key| refused.contains(key));
            match if held { Err(held_back()) } else { shared.check(&message) } {
                Ok(size) => chunk.push(shared.item(message, size, slot, None, started)),
                Err(error) => {
                    refused.extend(key.cloned());
                    slot.answer(Err(error));
                }
            }
            if chunk.len() == most {
                chunks.push(std::mem::replace(&mut chunk, Vec::with_capacity((count - index - 1).min(most))));
            }
        }
        chunks.push(chunk);
        let mut deadline = Instant::now() + shared.options.timeout;
        let mut failed: Option<Error> = None;
        for chunk in chunks.into_iter().filter(|chunk| !chunk.is_empty()) {
            let (items, error) = match &failed {
                // The rest would only wait for the same room.
                Some(error) => (chunk, error.clone()),
                None => match self.try_push(chunk).await {
                    Ok(until) => {
                        deadline = until;
                        continue;
                    }
                    Err(refused) => refused,
                },
            };
            shared.refuse(items, &error);
            failed = Some(error);
        }
        let results = match tokio::time::timeout_at(deadline, &mut all).await {
            Ok(results) => results,
            Err(_) => all.take_now(|index| {
                shared.fence_unanswered(keys.get(&index));
                shared.timed_out()
            }),
        };
        if let Some(span) = span {
            trace::end(&span, results.iter().find_map(|result| result.as_ref().err()));
        }
        results
    }

    /// Lifts the fence of an ordering key whose message failed, so that later messages of it are sent again. Says
    /// whether there was one.
    pub fn resume(&self, key: &[u8]) -> bool {
        self.0.shared.unfence(key)
    }

    /// Sends what is queued, waits for the answers, and closes. Every clone is closed; later calls, and those that wait
    /// for room, answer `Closed`. Dropping the future changes nothing; another call waits for the same end.
    pub async fn close(&self) -> Result<()> {
        drop(self.0.queue().take());
        self.0.shared.room.close();
        ended(self.0.outcome.clone()).await
    }

    /// A handle that does not keep the publisher open.
    pub fn downgrade(&self) -> WeakPublisher {
        WeakPublisher(Arc::downgrade(&self.0), self.0.outcome.clone())
    }

    /// Queues messages when there is room, and gives the time by which they are to be answered; or gives them back with the
    /// error where that is not to be.
    async fn try_push(&self, mut chunk: Vec<Item>) -> Result<Instant, (Vec<Item>, Error)> {
        let shared = &self.0.shared;
        let closed =
            || Error::new(ErrorKind::Closed, "the publisher is closed").at("publish", &shared.address);
        let permits = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        // Given back one by one, as the messages are answered.
        let room = shared.room.acquire_many(permits);
        let room = match tokio::time::timeout(shared.options.timeout, room).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err((chunk, closed())),
            Err(_) => return Err((chunk, shared.no_room())),
        };
        let deadline = Instant::now() + shared.options.timeout;
        chunk.iter_mut().for_each(|item| item.deadline = deadline);
        // Looked at only now: the wait for room must not keep a closing publisher open.
        let sent = match &*self.0.queue() {
            Some(queue) => queue.try_send(chunk),
            None => Err(TrySendError::Closed(chunk)),
        };
        match sent {
            Ok(()) => {
                room.forget();
                Ok(deadline)
            }
            Err(TrySendError::Full(chunk) | TrySendError::Closed(chunk)) => Err((chunk, closed())),
        }
    }
}

/// A publisher that is not kept open by this; see [`Publisher::downgrade`].
#[derive(Clone)]
pub struct WeakPublisher(Weak<Handle>, Outcome);

impl WeakPublisher {
    /// The publisher, where a clone of it is still held.
    pub fn upgrade(&self) -> Option<Publisher> {
        self.0.upgrade().map(Publisher)
    }

    /// Whether it has sent everything and ended.
    pub fn is_closed(&self) -> bool {
        self.1.borrow().is_some()
    }

    /// Closes it, as [`Publisher::close`]; of one that was dropped, waits until what it had queued is sent.
    pub async fn close(&self) -> Result<()> {
        match self.upgrade() {
            Some(publisher) => publisher.close().await,
            None => ended(self.1.clone()).await,
        }
    }
}

impl fmt::Debug for WeakPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakPublisher")
    }
}

impl Handle {
    fn queue(&self) -> MutexGuard<'_, Option<mpsc::Sender<Vec<Item>>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ended(mut outcome: Outcome) -> Result<()> {
    match outcome.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Ok(())),
        Err(_) => Err(Error::new(ErrorKind::Internal, "the publisher's task failed")),
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("address", &self.0.shared.address).finish_non_exhaustive()
    }
}

/// The future of a receipt; see [`Publisher::enqueue`]. Dropping it abandons the answer, not the send.
#[must_use = "the receipt tells whether the broker has the message"]
pub struct Pending {
    all: All<Receipt>,
    deadline: Instant,
    key: Option<Bytes>,
    shared: Arc<Shared>,
}

impl IntoFuture for Pending {
    type Output = Result<Receipt>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Receipt>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.receipt())
    }
}

impl Pending {
    /// Waits for the receipt; what `.await` on this does too, at the price of a box.
    pub async fn receipt(mut self) -> Result<Receipt> {
        let mut results = match tokio::time::timeout_at(self.deadline, &mut self.all).await {
            Ok(results) => results,
            Err(_) => self.all.take_now(|_| {
                self.shared.fence_unanswered(self.key.as_ref());
                self.shared.timed_out()
            }),
        };
        results.pop().unwrap_or_else(|| Err(self.shared.timed_out()))
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn message(&self, envelope: Arc<Envelope>, options: SendOptions) -> Outgoing {
        let count = self.sequence.fetch_add(1, Ordering::Relaxed);
        Outgoing {
            envelope,
            operation: OperationId(u128::from(self.operation_base) << 64 | u128::from(count)),
            delay: options.delay,
            failed_attempts: options.failed_attempts,
            history: options.history,
        }
    }

    fn item(
        &self,
        message: Outgoing,
        size: usize,
        slot: Slot<Receipt>,
        span: Option<Context>,
        started: Instant,
    ) -> Item {
        // The deadline counts from when there is room.
        Item { message, size, slot, span, started, deadline: started, uncertain: false }
    }

    /// Every check that needs no network; gives the size on the wire.
    fn check(&self, message: &Outgoing) -> Result<usize> {
        let capabilities = self.driver.capabilities();
        let envelope = &message.envelope;
        let checked = envelope
            .validate()
            .and_then(|()| capabilities.check_payload(envelope.payload_len()))
            .and_then(|()| capabilities.check_delay(message.delay))
            .and_then(|()| self.driver.measure(message));
        if capabilities.priority == Level::No && envelope.priority.is_some() {
            self.priority_warning.call_once(|| {
                tracing::warn!(
                    transport = capabilities.transport,
                    "the transport has no priorities: they are carried but have no effect"
                );
            });
        }
        checked.map_err(|error| error.at("publish", &self.address))
    }

    /// The send span of a single message. The envelope gets its context, unless it carries one already.
    fn send_span(&self, parent: &Context, message: &mut Outgoing, verbatim: bool) -> Option<Context> {
        let creation = trace::creation_context(&message.envelope.headers);
        let kind = if creation.is_some() { SpanKind::Client } else { SpanKind::Producer };
        let span = trace::start(parent, kind, None, || Description {
            name: self.span_name("publish", &message.envelope),
            attributes: self.message_attributes("send", "publish", &message.envelope),
            links: creation.as_ref().and_then(trace::link).into_iter().collect(),
        });
        if creation.is_none() && !verbatim {
            trace::carry(span.as_ref(), parent, &mut message.envelope);
        }
        span
    }

    /// The spans of a batch: one create span a message, whose context it gets, and one send span that links them all.
    fn batch_span(&self, parent: &Context, messages: &mut [Outgoing]) -> Option<Context> {
        let mut links = Vec::new();
        let mut traced = true;
        for message in messages.iter_mut() {
            // Without a provider the first message has told, and with nothing to forward there is nothing to do.
            if !traced && !trace::can_forward(parent) {
                break;
            }
            if let Some(creation) = trace::creation_context(&message.envelope.headers) {
                links.extend(trace::link(&creation));
                continue;
            }
            let create = trace::start(parent, SpanKind::Producer, None, || Description {
                name: self.span_name("create", &message.envelope),
                attributes: self.message_attributes("create", "create", &message.envelope),
                links: Vec::new(),
            });
            trace::carry(create.as_ref(), parent, &mut message.envelope);
            traced = create.is_some();
            if let Some(create) = create {
                links.extend(trace::link(create.span().span_context()));
                trace::end(&create, None);
            }
        }
        if !traced {
            return None;
        }
        let count = messages.len();
        trace::start(parent, SpanKind::Client, None, || {
            let mut attributes = self.operation_attributes("send", "publish");
            attributes.push(KeyValue::new(attribute::BATCH_COUNT, i64::try_from(count).unwrap_or(i64::MAX)));
            let name = format!("publish {}", self.driver.endpoint().destination).into();
            Description { name, attributes, links }
        })
    }

    fn span_name(&self, operation: &str, envelope: &Envelope) -> std::borrow::Cow<'static, str> {
        let subject = match (&envelope.message_type, self.options.span_names) {
            (Some(message_type), SpanNames::Business) => message_type,
            _ => &self.driver.endpoint().destination,
        };
        format!("{operation} {subject}").into()
    }

    fn operation_attributes(&self, operation_type: &'static str, name: &'static str) -> Vec<KeyValue> {
        let mut attributes = Vec::with_capacity(self.span_attributes.len() + 8);
        attributes.extend_from_slice(&self.span_attributes);
        attributes.extend_from_slice(&self.driver.endpoint().attributes);
        attributes.push(KeyValue::new(attribute::OPERATION_TYPE, operation_type));
        attributes.push(KeyValue::new(attribute::OPERATION_NAME, name));
        attributes
    }

    fn message_attributes(
        &self,
        operation_type: &'static str,
        name: &'static str,
        envelope: &Envelope,
    ) -> Vec<KeyValue> {
        let mut attributes = self.operation_attributes(operation_type, name);
        trace::add_envelope_attributes(&mut attributes, envelope);
        attributes
    }

    /// Answers messages that were queued: fences the keys of those that failed, and makes room.
    pub(crate) fn finish(&self, messages: Vec<Answered>) {
        for message in &messages {
            match (&message.key, &message.result) {
                (_, Ok(_)) => self.accepted.store(true, Ordering::Relaxed),
                (Some(key), Err(error)) if error.kind() != ErrorKind::HeldBack => self.fence(key.clone()),
                _ => {}
            }
        }
        let count = messages.len();
        self.answer(messages);
        self.room.add_permits(count);
    }

    /// Answers messages that were never queued; nothing of their keys was under way with them.
    fn refuse(&self, items: Vec<Item>, error: &Error) {
        self.answer(items.into_iter().map(|mut item| item.answered(Err(error.clone()))).collect());
    }

    fn answer(&self, mut messages: Vec<Answered>) {
        for message in &mut messages {
            if let Err(error) = &mut message.result {
                *error = error.clone().at("publish", &self.address);
            }
            if let Some(span) = message.span.take() {
                trace::end(&span, message.result.as_ref().err());
            }
        }
        let answered = Instant::now();
        let outcomes = messages.iter().map(|message| (message.started, message.result.as_ref().err()));
        self.instruments.sent(answered, outcomes);
        for message in messages {
            message.slot.answer(message.result);
        }
    }

    /// The user is told that a message has failed while it may still be under way: what comes after it is held back.
    fn fence_unanswered(&self, key: Option<&Bytes>) {
        if let Some(key) = key {
            self.fence(key.clone());
        }
    }

    fn fence(&self, key: Bytes) {
        let mut fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
        fenced.insert(key);
        self.fences.store(fenced.len(), Ordering::Release);
    }

    fn unfence(&self, key: &[u8]) -> bool {
        let mut fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
        let was = fenced.remove(key);
        self.fences.store(fenced.len(), Ordering::Release);
        was
    }

    pub(crate) fn is_fenced(&self, key: &Bytes) -> bool {
        self.fences.load(Ordering::Acquire) > 0
            && self.fenced.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn no_room(&self) -> Error {
        let Self { options: PublishOptions { max_in_flight, timeout, .. }, .. } = self;
        Error::new(
            ErrorKind::Timeout,
            format!(
                "not sent: {max_in_flight} messages are unanswered, and there was no room within {}",
                humantime::format_duration(*timeout)
            ),
        )
        .with_retry(Retry::Safe)
        .at("publish", &self.address)
    }

    fn timed_out(&self) -> Error {
        Error::new(
            ErrorKind::Timeout,
            format!(
                "no answer within {}; the broker may have the message",
                humantime::format_duration(self.options.timeout)
            ),
        )
        .with_retry(Retry::Uncertain)
        .at("publish", &self.address)
    }
}
