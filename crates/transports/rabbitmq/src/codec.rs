//! Envelopes as AMQP properties and headers, and back: `decode(encode(e)) == e` for every valid envelope.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use throughline_core::driver::wire;
use throughline_core::headers::is_trace_header;
use throughline_core::pack::{PACKED_HEADER, Packed};
use throughline_core::{Envelope, HeaderValue, Headers, History, IdOrigin, Timestamp};
use uuid::Uuid;

use crate::value;

/// The longest short string of AMQP 0.9.1, in bytes: its length is one byte on the wire.
pub(crate) const SHORT: usize = 255;
/// The longest `expiration` that RabbitMQ takes, in ms: 2^32 - 1 (`?MAX_EXPIRY_TIMER`); above it, 406.
const MAX_EXPIRATION: i64 = u32::MAX as i64;

/// The exact time in ms, where the `timestamp` property (whole seconds from 1970 on) cannot hold it.
const TIME: &str = "tl-time";
/// The absolute time of expiry in ms; the `expiration` property is relative, and goes when a message is dead-lettered.
const EXPIRES_AT: &str = "tl-expires-at";
/// The ordering key.
const KEY: &str = "tl-key";
/// The idempotency key.
const IDEMPOTENCY_KEY: &str = "tl-idempotency-key";
/// Where the id comes from, unless the publisher gave it: `broker` or `synthetic`.
const ID_ORIGIN: &str = "tl-id-origin";
/// The message has no payload, which is not the same as an empty one.
const TOMBSTONE: &str = "tl-tombstone";

/// Names that a user header cannot have natively, because they mean something to us or to the broker.
fn is_reserved(name: &str) -> bool {
    (name.starts_with("tl-") && is_own(name)) || is_broker_owned(name)
}

fn is_own(name: &str) -> bool {
    const OWN: [&str; 13] = [
        PACKED_HEADER,
        TIME,
        EXPIRES_AT,
        KEY,
        IDEMPOTENCY_KEY,
        ID_ORIGIN,
        TOMBSTONE,
        wire::SENT,
        wire::DELAY,
        wire::FAILED_ATTEMPTS,
        wire::HISTORY,
        wire::DEAD_LETTER_SOURCE,
        wire::DEAD_LETTER_REASON,
    ];
    OWN.contains(&name)
}

/// Headers that RabbitMQ sets or acts upon: not part of the envelope.
pub(crate) fn is_broker_owned(name: &str) -> bool {
    matches!(name, "x-death" | "x-delivery-count" | "x-acquired-count" | "x-stream-offset" | "CC" | "BCC")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// What a hop adds to the envelope.
#[derive(Clone, Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) sent: Timestamp,
    pub(crate) delay: Duration,
    pub(crate) failed_attempts: u32,
    pub(crate) history: Option<&'a History>,
    /// Whether the broker may expire it on the way. Not in a delay queue: its dead-lettering back would be early.
    pub(crate) expires: bool,
    /// On a dead letter.
    pub(crate) dead_letter: Option<DeadLetter<'a>>,
}

/// What a dead letter says of itself to people and foreign consumers.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) source: &'a str,
    pub(crate) reason: String,
}

impl Hop<'_> {
    /// A first, direct hop, now.
    pub(crate) fn first() -> Self {
        Self {
            sent: Timestamp::now(),
            delay: Duration::ZERO,
            failed_attempts: 0,
            history: None,
            expires: true,
            dead_letter: None,
        }
    }
}

/// The properties of a message.
pub(crate) fn encode(envelope: &Envelope, hop: &Hop<'_>) -> BasicProperties {
    let mut builder = Builder::default();
    write(envelope, hop, &mut builder);
    builder.build()
}

/// The bytes of [`encode`]'s result in a content header frame, frame overhead not counted: what the frame limit holds
/// for. Computed without encoding.
pub(crate) fn size(envelope: &Envelope, hop: &Hop<'_>) -> usize {
    // Class, weight, body size, flags; the table's length; the delivery mode.
    const FIXED: usize = 2 + 2 + 8 + 2 + 4 + 1;
    let mut sizer = Sizer(FIXED);
    write(envelope, hop, &mut sizer);
    sizer.0
}

#[derive(Clone, Copy)]
enum Short {
    ContentType,
    ContentEncoding,
    CorrelationId,
    ReplyTo,
    Expiration,
    MessageId,
    Type,
    AppId,
}

enum Field<'a> {
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    Long(i64),
    Flag,
    Void,
    Native(AMQPValue),
}

/// What a message is written into: one builds it, one only measures.
trait Sink {
    /// At most [`SHORT`] bytes.
    fn short(&mut self, property: Short, value: &str);
    fn timestamp(&mut self, seconds: u64);
    fn priority(&mut self, priority: u8);
    /// A name of at most [`SHORT`] bytes, once each.
    fn header(&mut self, name: &str, value: Field<'_>);
}

struct Sizer(usize);

impl Sink for Sizer {
    fn short(&mut self, _: Short, value: &str) {
        self.0 += 1 + value.len();
    }

    fn timestamp(&mut self, _: u64) {
        self.0 += 8;
    }

    fn priority(&mut self, _: u8) {
        self.0 += 1;
    }

    fn header(&mut self, name: &str, value: Field<'_>) {
        self.0 += 1 + name.len();
        self.0 += match value {
            Field::Text(bytes) | Field::Bytes(bytes) => 1 + 4 + bytes.len(),
            Field::Long(_) => 1 + 8,
            Field::Flag => 1 + 1,
            Field::Void => 1,
            Field::Native(value) => value::size(&value),
        };
    }
}

#[derive(Default)]
struct Builder {
    strings: [Option<ShortString>; 8],
    timestamp: Option<u64>,
    priority: Option<u8>,
    table: FieldTable,
}

impl Builder {
    fn build(self) -> BasicProperties {
        // In the order of `Short`. The client's setters take the whole by value, so each is called once at most.
        const SETTERS: [fn(BasicProperties, ShortString) -> BasicProperties; 8] = [
            BasicProperties::with_content_type,
            BasicProperties::with_content_encoding,
            BasicProperties::with_correlation_id,
            BasicProperties::with_reply_to,
            BasicProperties::with_expiration,
            BasicProperties::with_message_id,
            BasicProperties::with_type,
            BasicProperties::with_app_id,
        ];
        let mut properties = BasicProperties::default().with_headers(self.table).with_delivery_mode(2);
        for (value, set) in self.strings.into_iter().zip(SETTERS) {
            if let Some(value) = value {
                properties = set(properties, value);
            }
        }
        if let Some(seconds) = self.timestamp {
            properties = properties.with_timestamp(seconds);
        }
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        properties
    }
}

impl Sink for Builder {
    fn short(&mut self, property: Short, value: &str) {
        if let (Ok(value), Some(place)) =
            (ShortString::try_new(value), self.strings.get_mut(property as usize))
        {
            *place = Some(value);
        }
    }

    fn timestamp(&mut self, seconds: u64) {
        self.timestamp = Some(seconds);
    }

    fn priority(&mut self, priority: u8) {
        self.priority = Some(priority);
    }

    fn header(&mut self, name: &str, value: Field<'_>) {
        let Ok(name) = ShortString::try_new(name) else { return };
        let value = match value {
            Field::Text(text) => AMQPValue::LongString(text.into()),
            Field::Bytes(bytes) => AMQPValue::ByteArray(bytes.into()),
            Field::Long(number) => AMQPValue::LongLongInt(number),
            Field::Flag => AMQPValue::Boolean(true),
            Field::Void => AMQPValue::Void,
            Field::Native(value) => value,
        };
        self.table.insert(name, value);
    }
}

fn write(envelope: &Envelope, hop: &Hop<'_>, sink: &mut impl Sink) {
    let mut packed = Packed::default();
    write_properties(envelope, hop, sink, &mut packed);
    write_headers(&envelope.headers, sink, &mut packed);
    write_bookkeeping(envelope, hop, sink);
    if !packed.is_empty() {
        sink.header(PACKED_HEADER, Field::Text(packed.to_text().as_bytes()));
    }
}

fn write_properties(envelope: &Envelope, hop: &Hop<'_>, sink: &mut impl Sink, packed: &mut Packed) {
    let strings = [
        (Short::MessageId, Some(&envelope.id)),
        (Short::Type, envelope.message_type.as_ref()),
        (Short::AppId, envelope.source.as_ref()),
        (Short::ContentType, envelope.content_type.as_ref()),
        (Short::ContentEncoding, envelope.content_encoding.as_ref()),
        (Short::CorrelationId, envelope.correlation_id.as_ref()),
        (Short::ReplyTo, envelope.reply_to.as_ref()),
    ];
    for (property, value) in strings {
        match value {
            Some(value) if value.len() <= SHORT => sink.short(property, value),
            Some(value) => {
                packed.fields.insert(Cow::Borrowed(field_name(property)), value.clone());
            }
            None => {}
        }
    }
    if let Some(time) = envelope.time {
        let millis = time.as_millis();
        let seconds = u64::try_from(millis).ok().map(|millis| millis / 1000);
        if let Some(seconds) = seconds {
            sink.timestamp(seconds);
        }
        if seconds.is_none() || millis % 1000 != 0 {
            sink.header(TIME, Field::Long(millis));
        }
    }
    if let Some(at) = envelope.expires_at {
        sink.header(EXPIRES_AT, Field::Long(at.as_millis()));
        let left = at.millis_since(hop.sent).max(0);
        if hop.expires && left <= MAX_EXPIRATION {
            sink.short(Short::Expiration, &left.to_string());
        }
    }
    if let Some(priority) = envelope.priority {
        sink.priority(priority);
    }
}

/// The name of a property that is too long for its place, in the packed header.
fn field_name(property: Short) -> &'static str {
    match property {
        Short::ContentType => "content-type",
        Short::ContentEncoding => "content-encoding",
        Short::CorrelationId => "correlation-id",
        Short::ReplyTo => "reply-to",
        Short::Expiration => "expiration",
        Short::MessageId => "id",
        Short::Type => "type",
        Short::AppId => "source",
    }
}

fn write_headers(headers: &Headers, sink: &mut impl Sink, packed: &mut Packed) {
    let repeated = Repeated::of(headers);
    for (index, (name, value)) in headers.iter().enumerate() {
        let repeats = repeated.contains(headers, name);
        let fits = name.len() <= SHORT && !is_reserved(name);
        let field = if fits { native(value) } else { None };
        match field {
            Some(field) if !repeats => sink.header(name, field),
            field => {
                // A table holds one value a name. Of a trace header it is the last, which is the one that counts; all
                // are in the packed header, which wins when it is read.
                let is_last = || headers.iter().skip(index + 1).all(|(later, _)| later != name);
                if let Some(field) = field
                    && is_trace_header(name)
                    && is_last()
                {
                    sink.header(name, field);
                }
                packed.headers.append(name, value.clone());
            }
        }
    }
}

/// Names that come more than once. Few headers are compared with each other, many through a map.
enum Repeated<'a> {
    Few,
    Many(HashMap<&'a str, usize>),
}

impl<'a> Repeated<'a> {
    fn of(headers: &'a Headers) -> Self {
        if headers.len() <= 16 {
            return Self::Few;
        }
        let mut counts = HashMap::with_capacity(headers.len());
        for (name, _) in headers.iter() {
            *counts.entry(name).or_default() += 1;
        }
        Self::Many(counts)
    }

    fn contains(&self, headers: &Headers, name: &str) -> bool {
        match self {
            Self::Few => headers.is_repeated(name),
            Self::Many(counts) => counts.get(name).is_some_and(|count| *count > 1),
        }
    }
}

fn native(value: &HeaderValue) -> Option<Field<'_>> {
    match value {
        HeaderValue::Text(text) => Some(Field::Text(text.as_bytes())),
        HeaderValue::Bytes(bytes) => Some(Field::Bytes(bytes)),
        HeaderValue::Null => Some(Field::Void),
        HeaderValue::Typed { kind, text } => value::to_amqp(kind, text).map(Field::Native),
    }
}

fn write_bookkeeping(envelope: &Envelope, hop: &Hop<'_>, sink: &mut impl Sink) {
    sink.header(wire::SENT, Field::Long(hop.sent.as_millis()));
    if !hop.delay.is_zero() {
        sink.header(wire::DELAY, Field::Long(millis(hop.delay)));
    }
    if hop.failed_attempts > 0 {
        sink.header(wire::FAILED_ATTEMPTS, Field::Long(hop.failed_attempts.into()));
    }
    if let Some(history) = hop.history.filter(|history| !history.is_empty()) {
        sink.header(wire::HISTORY, Field::Text(history.to_header().as_bytes()));
    }
    if let Some(dead_letter) = &hop.dead_letter {
        sink.header(wire::DEAD_LETTER_SOURCE, Field::Text(dead_letter.source.as_bytes()));
        sink.header(wire::DEAD_LETTER_REASON, Field::Text(dead_letter.reason.as_bytes()));
    }
    if let Some(key) = &envelope.ordering_key {
        sink.header(KEY, if std::str::from_utf8(key).is_ok() { Field::Text(key) } else { Field::Bytes(key) });
    }
    if let Some(key) = &envelope.idempotency_key {
        sink.header(IDEMPOTENCY_KEY, Field::Text(key.as_bytes()));
    }
    match envelope.id_origin {
        IdOrigin::Envelope => {}
        IdOrigin::Broker => sink.header(ID_ORIGIN, Field::Text(b"broker")),
        IdOrigin::Synthetic => sink.header(ID_ORIGIN, Field::Text(b"synthetic")),
    }
    if envelope.payload.is_none() {
        sink.header(TOMBSTONE, Field::Flag);
    }
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A received message, taken apart.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) envelope: Envelope,
    /// By our own header.
    pub(crate) failed_attempts: u32,
    pub(crate) history: Option<Arc<History>>,
    /// When this hop began, a requested delay added.
    pub(crate) enqueued: Option<Timestamp>,
    /// `x-delivery-count`: how often it was delivered before, as the broker counts.
    pub(crate) delivery_count: Option<u32>,
}

/// Takes a message apart. Never fails: what is not as we write it is an ordinary header.
pub(crate) fn decode(properties: &BasicProperties, payload: Bytes, received: Timestamp) -> Decoded {
    let text = |property: &Option<ShortString>| property.as_ref().map(|text| text.as_str().to_owned());
    let mut envelope = Envelope::foreign(String::new(), Some(payload));
    envelope.message_type = text(properties.kind());
    envelope.source = text(properties.app_id());
    envelope.content_type = text(properties.content_type());
    envelope.content_encoding = text(properties.content_encoding());
    envelope.correlation_id = text(properties.correlation_id());
    envelope.reply_to = text(properties.reply_to());
    envelope.priority = *properties.priority();
    envelope.time = properties
        .timestamp()
        .and_then(|seconds| i64::try_from(seconds).ok()?.checked_mul(1000))
        .map(Timestamp::from_millis);
    let mut own = Own::default();
    if let Some(table) = properties.headers() {
        for (name, value) in table {
            let name = name.as_str();
            let taken = name.starts_with("tl-") && own.take(name, value, &mut envelope);
            if name == "x-delivery-count" {
                own.delivery_count = integer(value).and_then(|count| u32::try_from(count).ok());
            }
            if !taken && !is_broker_owned(name) {
                envelope.headers.append(name, value::from_amqp(value));
            }
        }
    }
    let packed_id = own.packed.take().and_then(|packed| unpack(packed, &mut envelope));
    match packed_id.or_else(|| text(properties.message_id())).filter(|id| !id.is_empty()) {
        Some(id) => {
            envelope.id = id;
            envelope.id_origin = own.id_origin.unwrap_or_default();
        }
        None => {
            envelope.id = Uuid::now_v7().to_string();
            envelope.id_origin = IdOrigin::Synthetic;
        }
    }
    if own.tombstone && envelope.payload_len() == 0 {
        envelope.payload = None;
    }
    if envelope.expires_at.is_none() {
        // A foreign message: relative to when it was sent, where it says so.
        let left = properties.expiration().as_ref().and_then(|left| left.as_str().parse().ok());
        envelope.expires_at =
            left.map(|left| envelope.time.unwrap_or(received).after(Duration::from_millis(left)));
    }
    Decoded {
        envelope,
        failed_attempts: own.failed_attempts,
        history: own.history,
        enqueued: own.sent.map(|sent| Timestamp::from_millis(sent.saturating_add(own.delay))),
        delivery_count: own.delivery_count,
    }
}

/// What our own headers say.
#[derive(Default)]
struct Own {
    packed: Option<Packed>,
    id_origin: Option<IdOrigin>,
    tombstone: bool,
    sent: Option<i64>,
    delay: i64,
    failed_attempts: u32,
    history: Option<Arc<History>>,
    delivery_count: Option<u32>,
}

impl Own {
    /// Takes a header of ours; says whether it was one, in the form that we write.
    fn take(&mut self, name: &str, value: &AMQPValue, envelope: &mut Envelope) -> bool {
        self.try_take(name, value, envelope).is_some()
    }

    fn try_take(&mut self, name: &str, value: &AMQPValue, envelope: &mut Envelope) -> Option<()> {
        match name {
            PACKED_HEADER => self.packed = Some(Packed::from_text(utf8(value)?)?),
            TIME => envelope.time = Some(Timestamp::from_millis(integer(value)?)),
            EXPIRES_AT => envelope.expires_at = Some(Timestamp::from_millis(integer(value)?)),
            KEY => {
                envelope.ordering_key = Some(match value {
                    AMQPValue::LongString(text) => Bytes::copy_from_slice(text.as_bytes()),
                    AMQPValue::ByteArray(bytes) => Bytes::copy_from_slice(bytes.as_slice()),
                    _ => return None,
                });
            }
            IDEMPOTENCY_KEY => envelope.idempotency_key = Some(utf8(value)?.to_owned()),
            ID_ORIGIN => {
                self.id_origin = Some(match utf8(value)? {
                    "broker" => IdOrigin::Broker,
                    "synthetic" => IdOrigin::Synthetic,
                    _ => return None,
                });
            }
            TOMBSTONE => self.tombstone = value.as_bool()?,
            wire::SENT => self.sent = Some(integer(value)?),
            wire::DELAY => self.delay = integer(value)?,
            wire::FAILED_ATTEMPTS => self.failed_attempts = u32::try_from(integer(value)?).ok()?,
            wire::HISTORY => self.history = Some(Arc::new(History::from_header(utf8(value)?)?)),
            wire::DEAD_LETTER_SOURCE | wire::DEAD_LETTER_REASON => {
                utf8(value)?;
            }
            _ => return None,
        }
        Some(())
    }
}

fn utf8(value: &AMQPValue) -> Option<&str> {
    std::str::from_utf8(value.as_long_string()?.as_bytes()).ok()
}

/// An integer of any width: other clients choose the narrowest, or the only one they have.
fn integer(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(v) => (*v).into(),
        AMQPValue::ShortShortUInt(v) => (*v).into(),
        AMQPValue::ShortInt(v) => (*v).into(),
        AMQPValue::ShortUInt(v) => (*v).into(),
        AMQPValue::LongInt(v) => (*v).into(),
        AMQPValue::LongUInt(v) => (*v).into(),
        AMQPValue::LongLongInt(v) => *v,
        _ => return None,
    })
}

/// Puts what was packed where it belongs, in place of a native value of the same name; gives the id, if it was packed.
fn unpack(packed: Packed, envelope: &mut Envelope) -> Option<String> {
    let mut id = None;
    for (name, value) in packed.fields {
        match name.as_ref() {
            "id" => id = Some(value),
            "type" => envelope.message_type = Some(value),
            "source" => envelope.source = Some(value),
            "content-type" => envelope.content_type = Some(value),
            "content-encoding" => envelope.content_encoding = Some(value),
            "correlation-id" => envelope.correlation_id = Some(value),
            "reply-to" => envelope.reply_to = Some(value),
            _ => {}
        }
    }
    for (name, _) in packed.headers.iter() {
        if is_trace_header(name) {
            envelope.headers.remove(name);
        }
    }
    envelope.headers.extend(packed.headers);
    id
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
