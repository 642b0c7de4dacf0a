//! The driver contract: the only file that an adapter's author must read.
//!
//! An adapter is three traits, [`Transport`], [`Publisher`] and [`Consumer`], and a [`Registration`]. They are small,
//! batch-shaped and dyn-compatible. Users never see them: they hold the portable [`crate::Publisher`] and
//! [`crate::Consumer`], where batching, limits, order per key, resending, tracing, metrics, prefetch, batched settlement
//! and lease extension live once. An adapter only translates. Its rules:
//!
//! - **Polling.** Only tasks of the portable layer poll a driver's futures, and always to completion: a driver need not
//!   be safe against cancellation.
//! - **Errors** are per message, never one for a batch, with a [`Retry`] class that is true: `Safe` only where the
//!   broker has certainly not accepted the message. The client's own silent resends are off, or idempotent.
//! - **Secrets.** Payloads, header values and credentials never reach logs, errors or `Debug`.
//! - **Tasks.** Whatever a driver spawns is joined in `close`, and every queue in it is bounded.
//! - **Encoding.** For every valid envelope `decode(encode(e)) == e`. The trace headers are placed before all others, as
//!   plain native attributes. What has no native place goes into [`crate::pack::PACKED_HEADER`]; nothing is dropped. A
//!   foreign message without our headers decodes sensibly, and one that cannot be decoded is delivered with what there
//!   is, so that it can be rejected; it never wedges the queue.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use tokio::time::Instant;

use crate::address::{Address, AddressOption};
use crate::answer;
use crate::capabilities::Capabilities;
use crate::consumer::ConsumeOptions;
use crate::diagnosis::{DiagnoseOptions, Diagnosis};
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::headers::HeaderValue;
use crate::retry::History;
use crate::timestamp::Timestamp;

pub use crate::browse::{Browsing, Pieces};
pub use crate::sibling::{Place, Sibling};

/// How a transport presents itself to `Bus::connect`.
#[derive(Clone, Copy)]
pub struct Registration {
    /// Its name: the crate's folder, the facade's feature.
    pub name: &'static str,
    /// The schemes it answers to.
    pub schemes: &'static [&'static str],
    /// The options its addresses may have, of all roles.
    pub options: &'static [AddressOption],
    /// What it can do at its best.
    pub capabilities: &'static Capabilities,
    /// Opens it. Network brokers connect here, so that a wrong host or password is told at once.
    pub connect: fn(Address) -> Connecting,
    /// The address of another place on the same broker, with the same connection options; `None` where the transport has
    /// no such thing. Tools make their own destinations by it.
    pub sibling: fn(&Address, &Sibling<'_>) -> Option<Address>,
    /// The one `host:port` that all connections of an address go to, where another authority in the address can stand for
    /// it (a proxy); `None` for embedded transports, and where certificates or the broker's own lists say where to go.
    pub endpoint: fn(&Address) -> Option<String>,
}

/// The future of [`Registration::connect`].
pub type Connecting = Pin<Box<dyn Future<Output = Result<Arc<dyn Transport>>> + Send>>;

/// One transport with its shared connections.
///
/// Network transports create nothing implicitly: a missing destination is [`ErrorKind::NotFound`]. Embedded ones create
/// on first use unless the address says `create=never`.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// What this transport can do at its best.
    fn capabilities(&self) -> &Capabilities;

    /// Opens a destination for publishing; fails with `NotFound` where that can be known.
    async fn publisher(&self, to: &Address) -> Result<Arc<dyn Publisher>>;

    /// Opens a source for consuming; fails with `NotFound` where that can be known.
    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn Consumer>>;

    /// Creates what the address names, with what its options ask for, and says what it made, one line each. What exists
    /// already with the same properties is left as it is; with others it is a `Conflict`.
    async fn create(&self, address: &Address) -> Result<Vec<String>>;

    /// Deletes what the address names, and says what, one line each; what it left, after `not `, with the reason. What does
    /// not exist is no error.
    async fn delete(&self, address: &Address) -> Result<Vec<String>>;

    /// Deletes the messages that are ready and returns how many there were.
    async fn purge(&self, address: &Address) -> Result<u64>;

    /// How many messages there are.
    async fn depth(&self, address: &Address) -> Result<Depth>;

    /// Where the source ends now, if it is a log: what is appended later is behind it. `None` where what is consumed is
    /// gone, so that a source that has been read to its end is empty.
    async fn log_end(&self, _address: &Address) -> Result<Option<LogEnd>> {
        Ok(None)
    }

    /// How many messages of those before this end, which [`log_end`](Self::log_end) gave, are not settled yet.
    async fn depth_before(&self, address: &Address, _end: &LogEnd) -> Result<u64> {
        Ok(self.depth(address).await?.ready)
    }

    /// Reads at most `max` ready messages without consuming them, each once, in order, as far as
    /// [`Capabilities::browse`](Capabilities) allows. They are handed over while they are read, so that they need not be in
    /// memory at once. It ends when nobody takes the pieces any more.
    async fn browse_into(&self, address: &Address, max: NonZeroUsize, pieces: Pieces) -> Result<()>;

    /// The same, all at once.
    async fn browse(&self, address: &Address, max: NonZeroUsize) -> Result<Vec<Delivery>> {
        Browsing::new(|pieces| self.browse_into(address, max, pieces)).all().await
    }

    /// Looks at the broker and at what the address names, and says what is there and what is wrong with it, each with its
    /// remedy. It disturbs nothing: nothing is created, changed, consumed or published, and no delivery count rises. A
    /// check that cannot be made is told as such. What is missing is a finding, not an error; an error is what makes the
    /// whole diagnosis impossible.
    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis>;

    /// Closes connections and joins tasks. Publishers and consumers are closed before.
    async fn close(&self) -> Result<()>;
}

/// How many messages a queue holds; `None` where the broker does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready to be delivered.
    pub ready: u64,
    /// Delivered and not settled.
    pub unsettled: Option<u64>,
    /// Waiting for their delay to pass.
    pub delayed: Option<u64>,
}

/// The end of a log at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// By partition, the position behind its last message.
    pub positions: BTreeMap<i32, i64>,
}

/// What an open destination or source is called in spans and metrics.
#[derive(Clone, Debug, Default)]
pub struct Endpoint {
    /// The `messaging.destination.name` attribute.
    pub destination: String,
    /// The `server.address` and `server.port` attributes.
    pub server: Option<(String, Option<u16>)>,
    /// Attributes that only this system has.
    pub attributes: Vec<KeyValue>,
}

/// An open destination.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// What this destination can do: resolved for the address (FIFO or not, the queue's own maximum size).
    fn capabilities(&self) -> &Capabilities;

    /// What it is called.
    fn endpoint(&self) -> &Endpoint;

    /// The message's size on this wire, in bytes, for batching; fails with `LimitExceeded` or `InvalidMessage` on what
    /// the broker would refuse. Called before the message is queued; does no I/O.
    fn measure(&self, message: &Outgoing) -> Result<usize>;

    /// Sends messages, in order, at most [`limits.batch_entries`](crate::capabilities::Limits) of them. Each is answered
    /// through `done` exactly once, by its index, in any order and from any thread, during the call or later.
    ///
    /// `Ok` only once the broker has durably accepted the message (a confirm, acks=all, HTTP success *and* no `Failed`
    /// entry, a committed row). The call returns when it can take the next batch: with
    /// [`publish_calls`](Capabilities::publish_calls) = 1, once the order of its messages is fixed.
    async fn publish(&self, batch: Vec<Outgoing>, done: Completions);

    /// Waits for the answers still out, then closes. Later calls answer `Closed`.
    async fn close(&self) -> Result<()>;
}

/// A message to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The message, its trace headers included.
    pub envelope: Arc<Envelope>,
    /// What brokers deduplicate on: the same over the resends of one publish, new for every retry, redrive or hop.
    pub operation: OperationId,
    /// Not delivered before that long from now.
    pub delay: Duration,
    /// How often processing has failed before, on earlier hops.
    pub failed_attempts: u32,
    /// Those failures.
    pub history: Option<Arc<History>>,
}

/// Identifies one publish operation; its text is 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(pub u128);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The broker has the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The broker's own id or position of it (an SQS `MessageId`, `partition:offset`), where it tells.
    pub native_id: Option<String>,
    /// The broker had this operation already and did not take it again.
    pub deduplicated: bool,
}

impl Receipt {
    /// A receipt with the broker's own id of the message.
    pub fn with_native_id(native_id: impl Into<String>) -> Self {
        Self { native_id: Some(native_id.into()), deduplicated: false }
    }
}

/// Answers for the messages of one publish call. Each is answered once; a second answer is ignored. What has no answer
/// when this is dropped is `Uncertain`.
pub struct Completions {
    answered: Box<[AtomicBool]>,
    to: Arc<dyn Answer>,
}

/// Where the answers of a batch go. [`Completions::collect`] is one, for tests.
pub trait Answer: Send + Sync {
    /// Takes answers, each with the index of its message: those that came together.
    fn answer(&self, answers: &mut dyn Iterator<Item = (usize, Result<Receipt>)>);
}

impl Completions {
    /// Completions for a batch of `len` messages.
    pub fn new(len: usize, to: Arc<dyn Answer>) -> Self {
        Self { answered: (0..len).map(|_| AtomicBool::new(false)).collect(), to }
    }

    /// Completions for a batch of `len`, and the future of all its answers: for an adapter's own tests and republishing.
    pub fn collect(len: usize) -> (Self, impl Future<Output = Vec<Result<Receipt>>> + Send) {
        let (answers, all) = answer::answers(len);
        (Self::new(len, Arc::new(answers)), all)
    }

    /// Answers for the message at `index`.
    pub fn complete(&self, index: usize, result: Result<Receipt>) {
        self.complete_many([(index, result)]);
    }

    /// Answers for several messages, by their indices: cheaper than one by one for what is known at once. The iterator is
    /// run under a lock: it must not answer messages itself.
    pub fn complete_many(&self, answers: impl IntoIterator<Item = (usize, Result<Receipt>)>) {
        // Relaxed: only who wins matters here, and the answer itself is handed over by the receiver's own means.
        let is_first = |index: usize| {
            self.answered.get(index).is_some_and(|answered| !answered.swap(true, Ordering::Relaxed))
        };
        self.to.answer(&mut answers.into_iter().filter(|(index, _)| is_first(*index)));
    }

    /// Answers the same error for every message that has no answer yet.
    pub fn fail_rest(&self, error: &Error) {
        self.complete_many((0..self.len()).map(|index| (index, Err(error.clone()))));
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.answered.len()
    }

    /// Whether there are no messages.
    pub fn is_empty(&self) -> bool {
        self.answered.is_empty()
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        if self.answered.iter().any(|answered| !answered.load(Ordering::Relaxed)) {
            self.fail_rest(
                &Error::new(ErrorKind::Internal, "the driver dropped the message without an answer")
                    .with_retry(Retry::Uncertain),
            );
        }
    }
}

impl fmt::Debug for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completions").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// An open source.
#[async_trait]
pub trait Consumer: Send + Sync + 'static {
    /// What this source can do: resolved for the address.
    fn capabilities(&self) -> &Capabilities;

    /// What it is called.
    fn endpoint(&self) -> &Endpoint;

    /// Receives at least one message and at most `max`, waiting at most `wait` for the first; none when the time is over
    /// or after [`stop`](Self::stop). It reconnects by itself; an error is one that waiting will not mend
    /// ([`Retry::Never`]: the stream ends with it) or a passing one that is worth telling ([`Retry::Safe`]: it is logged
    /// and the call is made again).
    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>>;

    /// Whether what is rejected has somewhere to go. Where [`expiry`](Capabilities) is emulated, an expired message is
    /// rejected if it has, and acked if not; and a worker does not begin without such a place.
    fn has_dead_letter(&self) -> bool {
        false
    }

    /// Settles deliveries, with an answer for each, in order. A token of a lost connection or an expired lease is
    /// [`ErrorKind::Stale`]. What `Ok` means, [`Capabilities::settle`](Capabilities) says.
    ///
    /// A message leaves the source only by `Ack`, or by a `Reject` whose dead letter has been durably accepted first.
    ///
    /// What `Retry` or `Reject` could not do, other than for a `Stale` token, leaves the delivery held as it was: it is
    /// settled again with the same token, or released.
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>>;

    /// Acks as [`settle`](Self::settle) does, where that changes only memory and waits for nothing: then whoever acks does it,
    /// and no task is woken. `None`, the default, has done nothing, and `settle` is called. A driver always says the same,
    /// also of no tokens. Not called any more once [`close`](Self::close) is.
    fn ack_now(&self, tokens: &[Token]) -> Option<Vec<Result<()>>> {
        let _ = tokens;
        None
    }

    /// Lets leases expire that long from now, with an answer for each, in order. Only called where the lease is
    /// renewable.
    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<()>>;

    /// The epoch of tokens that can still be settled; see [`Token::epoch`]. Cheap: it is asked at each settlement.
    fn epoch(&self) -> u64;

    /// Whether a token can still be settled, as far as that is known without asking the broker. Where several epochs live
    /// side by side (Kafka: one for each partition), the driver looks it up; it is as cheap as [`epoch`](Self::epoch).
    fn is_current(&self, token: &Token) -> bool {
        token.epoch == self.epoch()
    }

    /// Takes no more messages: a waiting `receive` returns, and what is buffered in the driver is released. Settling
    /// goes on.
    async fn stop(&self);

    /// Closes. What is not settled is released as the broker does it.
    async fn close(&self) -> Result<()>;
}

/// Names a delivery to its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The connection (channel, assignment) it was received on; another one cannot settle it. 0 where that plays no
    /// part.
    pub epoch: u64,
    /// The delivery, within the epoch. A driver that needs more keeps a table.
    pub tag: u64,
}

/// A received message.
#[derive(Clone)]
#[non_exhaustive]
pub struct Delivery {
    /// The message. The creation context, if it has one, is in its trace headers.
    pub envelope: Arc<Envelope>,
    /// Settles it.
    pub token: Token,
    /// How often the broker has delivered it, this time included; `None` where it does not say.
    pub receive_count: Option<u32>,
    /// How often processing has failed before: by our own header, plus what the broker knows of this hop.
    pub failed_attempts: u32,
    /// Those failures, where they could be carried.
    pub history: Option<Arc<History>>,
    /// Whether it is a dead letter. Where [`expiry`](Capabilities) is emulated, one is kept however late somebody looks at it.
    pub is_dead_letter: bool,
    /// When this hop began, and whose clock that is; a requested delay is added already.
    pub enqueued: Option<(Timestamp, Clock)>,
    /// When the lease ends, where it is renewable.
    pub lease_expires: Option<Instant>,
    /// The client's own message.
    pub native: Option<Arc<dyn Native>>,
}

impl Delivery {
    /// A delivery of which nothing more is known.
    pub fn new(envelope: Arc<Envelope>, token: Token) -> Self {
        Self {
            envelope,
            token,
            receive_count: None,
            failed_attempts: 0,
            history: None,
            is_dead_letter: false,
            enqueued: None,
            lease_expires: None,
            native: None,
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("envelope", &self.envelope)
            .field("token", &self.token)
            .field("receive_count", &self.receive_count)
            .field("failed_attempts", &self.failed_attempts)
            .finish_non_exhaustive()
    }
}

/// Whose clock says when a message was enqueued: the `throughline.queue.clock` attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The broker's own stamp.
    Broker,
    /// The publisher's, from the `tl-sent` header.
    Publisher,
}

/// The client's own message behind a delivery: the escape hatch, and what spans and the CLI show of it.
pub trait Native: Any + Send + Sync {
    /// What the broker says of the message beyond the envelope, by the broker's own names. No payload.
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)>;

    /// Attributes of the message's spans that only this system has.
    fn span_attributes(&self) -> Vec<KeyValue>;

    /// The broker's own id or place of the stored message: the same at each delivery of it, and no other message's (an SQS
    /// `MessageId`, Kafka's `topic-partition-offset`). `None` where the broker has none.
    fn native_id(&self) -> Option<String> {
        None
    }

    /// For downcasting to the adapter's own type.
    fn as_any(&self) -> &dyn Any;
}

/// How a delivery ends.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// Done: remove it.
    Ack,
    /// Failed, try again, not before `after`. To the receiving queue or group, never to the topic or exchange.
    Retry {
        /// How long from now.
        after: Duration,
        /// All failures so far, the latest one last.
        history: Arc<History>,
    },
    /// Failed for good: to the dead-letter destination, with the reason. Without one it is
    /// [`ErrorKind::NoDeadLetter`], and the message stays.
    Reject {
        /// All failures so far, the latest one last.
        history: Arc<History>,
    },
    /// Available again at once; no attempt is recorded.
    Release,
}

impl Settlement {
    /// The `messaging.operation.name` of it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Retry { .. } => "retry",
            Self::Reject { .. } => "reject",
            Self::Release => "release",
        }
    }
}

/// Headers that carry our own bookkeeping on wires with free-form headers. Adapters write them after the trace headers
/// and take them out again when they decode; they are not part of the envelope.
pub mod wire {
    /// When this hop was sent, by the publisher's clock, in ms since the epoch; rewritten at each hop and retry.
    pub const SENT: &str = "tl-sent";
    /// The requested delay of this hop, in ms: subtracted from the queue delay.
    pub const DELAY: &str = "tl-delay";
    /// How often processing has failed on earlier hops.
    pub const FAILED_ATTEMPTS: &str = "tl-failed-attempts";
    /// The failures so far: [`History::to_header`](crate::History::to_header).
    pub const HISTORY: &str = "tl-history";
    /// On a dead letter: the queue, topic or group that it was rejected from.
    pub const DEAD_LETTER_SOURCE: &str = "tl-dead-letter-source";
    /// On a dead letter: the class and text of the last failure, for people and foreign consumers.
    pub const DEAD_LETTER_REASON: &str = "tl-dead-letter-reason";
}
