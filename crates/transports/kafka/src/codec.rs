//! Envelopes as Kafka records, and back: `decode(encode(e)) == e` for every valid envelope.
//!
//! Kafka's headers are an ordered list of name and bytes, so nearly everything has a native place. What has none are the
//! kinds of values: text and bytes look the same, which `tl-binary` tells apart, and other brokers' types are packed.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use rdkafka::Timestamp as Stamp;
use throughline_core::driver::{Clock, wire};
use throughline_core::headers::is_trace_header;
use throughline_core::pack::{PACKED_HEADER, Packed};
use throughline_core::{Envelope, HeaderValue, Headers, History, IdOrigin, Timestamp};

use crate::config::Style;
use crate::deadletter::{self, Origin};

const ID: &str = "tl-id";
const TYPE: &str = "tl-type";
const SOURCE: &str = "tl-source";
const CONTENT_TYPE: &str = "content-type";
const CONTENT_ENCODING: &str = "content-encoding";
const CORRELATION_ID: &str = "tl-correlation-id";
const REPLY_TO: &str = "tl-reply-to";
/// The time of expiry, in ms since the epoch.
const EXPIRES_AT: &str = "tl-expires-at";
const PRIORITY: &str = "tl-priority";
const IDEMPOTENCY_KEY: &str = "tl-idempotency-key";
/// Where the id comes from, unless the publisher gave it: `broker` or `synthetic`.
const ID_ORIGIN: &str = "tl-id-origin";
/// The time in ms where the record's timestamp is another; empty for none.
const TIME: &str = "tl-time";
/// Which of the user's headers are bytes though they look like text: their positions among them.
const BINARY: &str = "tl-binary";

const OWN: [&str; 19] = [
    ID,
    TYPE,
    SOURCE,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CORRELATION_ID,
    REPLY_TO,
    EXPIRES_AT,
    PRIORITY,
    IDEMPOTENCY_KEY,
    ID_ORIGIN,
    TIME,
    BINARY,
    PACKED_HEADER,
    wire::SENT,
    wire::DELAY,
    wire::FAILED_ATTEMPTS,
    wire::HISTORY,
    wire::DEAD_LETTER_SOURCE,
];

/// The kind of a header whose name is not UTF-8: the text is the name in base64, and the value after a `:` where it is
/// not null. Its name in the envelope is readable, and is not what is sent.
const RAW: &str = "kafka:header";

/// How far ahead of now a record's timestamp may be: the broker refuses more than `message.timestamp.after.max.ms`, one
/// hour by default.
const AHEAD: i64 = 60 * 60 * 1000;

/// Names that a user header cannot have natively, because they mean something to us.
fn is_reserved(name: &str) -> bool {
    (name.starts_with("tl-") || name.starts_with("content-"))
        && (OWN.contains(&name) || name == wire::DEAD_LETTER_REASON)
}

/// What a hop adds to the envelope.
#[derive(Clone, Debug)]
pub(crate) struct Hop<'a> {
    pub(crate) sent: Timestamp,
    /// Not to be delivered before that long after `sent`.
    pub(crate) delay: Duration,
    pub(crate) failed_attempts: u32,
    pub(crate) history: Option<&'a History>,
    /// Whether the record's timestamp can be the envelope's time. Not where the broker sets its own, and not for what is
    /// sent on: the age of a record is what a topic's retention goes by.
    pub(crate) stamp: bool,
    pub(crate) dead_letter: Option<DeadLetter<'a>>,
}

/// What a dead letter says of itself to people and foreign consumers.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter<'a> {
    /// Where it was rejected.
    pub(crate) origin: &'a Origin,
    /// Whose headers it carries, too.
    pub(crate) style: Option<Style>,
}

/// What headers are written into: one builds them, one measures.
pub(crate) trait Sink {
    fn header(&mut self, name: &[u8], value: Option<&[u8]>);
}

/// The most that a header costs beside its bytes: two lengths, each a varint of up to 5 bytes.
pub(crate) const HEADER_OVERHEAD: usize = 10;

/// Measures.
#[derive(Default)]
pub(crate) struct Sizer(pub(crate) usize);

impl Sink for Sizer {
    fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.0 += HEADER_OVERHEAD + name.len() + value.map_or(0, <[u8]>::len);
    }
}

/// Writes the headers, and gives the record's timestamp in ms, where it is to be set.
pub(crate) fn encode(envelope: &Envelope, hop: &Hop<'_>, sink: &mut impl Sink) -> Option<i64> {
    let mut packed = Packed::default();
    let mut binary = String::new();
    write_headers(&envelope.headers, sink, &mut packed, &mut binary);
    let mut text = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            sink.header(name.as_bytes(), Some(value.as_bytes()));
        }
    };
    text(BINARY, Some(binary.as_str()).filter(|positions| !positions.is_empty()));
    text(ID, Some(&envelope.id));
    text(TYPE, envelope.message_type.as_deref());
    text(SOURCE, envelope.source.as_deref());
    text(CONTENT_TYPE, envelope.content_type.as_deref());
    text(CONTENT_ENCODING, envelope.content_encoding.as_deref());
    text(CORRELATION_ID, envelope.correlation_id.as_deref());
    text(REPLY_TO, envelope.reply_to.as_deref());
    text(IDEMPOTENCY_KEY, envelope.idempotency_key.as_deref());
    text(
        ID_ORIGIN,
        match envelope.id_origin {
            IdOrigin::Envelope => None,
            IdOrigin::Broker => Some("broker"),
            IdOrigin::Synthetic => Some("synthetic"),
        },
    );
    let mut number = |name: &str, value: i64| text(name, Some(Decimal::of(value).as_str()));
    number(wire::SENT, hop.sent.as_millis());
    if let Some(at) = envelope.expires_at {
        number(EXPIRES_AT, at.as_millis());
    }
    if let Some(priority) = envelope.priority {
        number(PRIORITY, priority.into());
    }
    if !hop.delay.is_zero() {
        number(wire::DELAY, i64::try_from(hop.delay.as_millis()).unwrap_or(i64::MAX));
    }
    if hop.failed_attempts > 0 {
        number(wire::FAILED_ATTEMPTS, hop.failed_attempts.into());
    }
    let stamp = match envelope.time.map(Timestamp::as_millis) {
        // librdkafka takes 0 for now.
        Some(time) if hop.stamp && time > 0 && time <= hop.sent.as_millis().saturating_add(AHEAD) => {
            Some(time)
        }
        Some(time) => {
            number(TIME, time);
            None
        }
        None => {
            text(TIME, Some(""));
            None
        }
    };
    if let Some(history) = hop.history.filter(|history| !history.is_empty()) {
        text(wire::HISTORY, Some(&history.to_header()));
    }
    if !packed.is_empty() {
        text(PACKED_HEADER, Some(&packed.to_text()));
    }
    if let Some(letter) = &hop.dead_letter {
        deadletter::write(letter, hop.history, &envelope.headers, sink);
    }
    stamp
}

/// A number as text, without an allocation.
struct Decimal {
    bytes: [u8; 20],
    len: usize,
}

impl Decimal {
    fn of(value: i64) -> Self {
        struct Cursor<'a>(&'a mut Decimal);
        impl std::fmt::Write for Cursor<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                let end = self.0.len + text.len();
                let place = self.0.bytes.get_mut(self.0.len..end).ok_or(std::fmt::Error)?;
                place.copy_from_slice(text.as_bytes());
                self.0.len = end;
                Ok(())
            }
        }
        let mut decimal = Self { bytes: [0; 20], len: 0 };
        // An i64 has at most 19 digits and a sign.
        let written = write!(Cursor(&mut decimal), "{value}");
        debug_assert!(written.is_ok());
        decimal
    }

    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

/// The trace headers first, then the others in their order.
fn write_headers(headers: &Headers, sink: &mut impl Sink, packed: &mut Packed, binary: &mut String) {
    if headers.is_empty() {
        return;
    }
    let mut position = 0_usize;
    for trace_headers in [true, false] {
        for (name, value) in headers.iter().filter(|(name, _)| is_trace_header(name) == trace_headers) {
            if let Some((name, value)) =
                raw(name, value).filter(|_| headers.get_all(name).all(|other| raw(name, other).is_some()))
            {
                sink.header(&name, value.as_deref());
            } else if is_native(name, headers) {
                let bytes = match value {
                    HeaderValue::Text(text) => Some(text.as_bytes()),
                    HeaderValue::Bytes(bytes) => Some(bytes.as_ref()),
                    HeaderValue::Null | HeaderValue::Typed { .. } => None,
                };
                if matches!(value, HeaderValue::Bytes(bytes) if std::str::from_utf8(bytes).is_ok()) {
                    let comma = if binary.is_empty() { "" } else { "," };
                    // Writing into a string cannot fail.
                    let _ = write!(binary, "{comma}{position}");
                }
                sink.header(name.as_bytes(), bytes);
            } else {
                packed.headers.append(name, value.clone());
                continue;
            }
            position += 1;
        }
    }
}

/// Whether all values of a name can be sent as they are: the order within a name is kept only where none is packed.
fn is_native(name: &str, headers: &Headers) -> bool {
    // librdkafka reads a name up to its first NUL.
    !name.is_empty()
        && !name.contains('\0')
        && !is_reserved(name)
        && headers.get_all(name).all(|value| !matches!(value, HeaderValue::Typed { .. }))
}

/// Name and value of a header whose name is not UTF-8, where they would come back the same.
fn raw(shown: &str, value: &HeaderValue) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let HeaderValue::Typed { kind, text } = value else { return None };
    if kind != RAW {
        return None;
    }
    let (name, value) = match text.split_once(':') {
        Some((name, value)) => (name, Some(BASE64.decode(value).ok()?)),
        None => (text.as_str(), None),
    };
    let name = BASE64.decode(name).ok()?;
    let is_such =
        std::str::from_utf8(&name).is_err() && !name.contains(&0) && from_raw(&name, None).0 == shown;
    is_such.then_some((name, value))
}

/// The envelope's header of one whose name is not UTF-8.
fn from_raw(name: &[u8], value: Option<&[u8]>) -> (String, HeaderValue) {
    let mut text = BASE64.encode(name);
    if let Some(value) = value {
        text.push(':');
        BASE64.encode_string(value, &mut text);
    }
    (name.escape_ascii().to_string(), HeaderValue::Typed { kind: Cow::Borrowed(RAW), text })
}

/// A received record.
pub(crate) struct Record<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Bytes>,
    pub(crate) payload: Option<Bytes>,
    pub(crate) stamp: Stamp,
}

/// A received record, taken apart.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) envelope: Envelope,
    /// By our own header, or by a foreign dead letter's.
    pub(crate) failed_attempts: u32,
    pub(crate) history: Option<Arc<History>>,
    /// When this hop began, a requested delay added, and whose clock that is.
    pub(crate) enqueued: Option<(Timestamp, Clock)>,
    /// Not to be delivered before.
    pub(crate) due: Option<Timestamp>,
    /// What a dead letter of ours says: where it comes from, and why.
    pub(crate) dead_letter: Vec<(&'static str, String)>,
}

/// Takes a record apart. Never fails: what is not as we write it is an ordinary header. `headers` calls its argument with
/// each header, in order.
pub(crate) fn decode(
    record: Record<'_>,
    headers: impl FnOnce(&mut dyn FnMut(&[u8], Option<&[u8]>)),
) -> Decoded {
    let mut envelope = Envelope::foreign(String::new(), record.payload);
    envelope.ordering_key = record.key;
    let mut own = Own::default();
    let mut user: Vec<(String, HeaderValue)> = Vec::new();
    headers(&mut |name, value| {
        let Ok(name) = std::str::from_utf8(name) else {
            user.push(from_raw(name, value));
            return;
        };
        // Only names that begin so can be ours; looked up by a comparison of a few bytes for all others.
        if (name.starts_with("tl-") || name.starts_with("content-")) && own.take(name, value, &mut envelope) {
            return;
        }
        let value = match value.map(|value| (value, std::str::from_utf8(value))) {
            Some((_, Ok(text))) => HeaderValue::Text(text.to_owned()),
            Some((bytes, Err(_))) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes)),
            None => HeaderValue::Null,
        };
        user.push((name.to_owned(), value));
    });
    for position in own.binary {
        if let Some((_, value @ HeaderValue::Text(_))) = user.get_mut(position)
            && let HeaderValue::Text(text) = std::mem::replace(value, HeaderValue::Null)
        {
            *value = HeaderValue::Bytes(text.into());
        }
    }
    if let Some(packed) = own.packed {
        user.extend(packed.headers);
    }
    envelope.headers = user.into_iter().collect();
    if envelope.id.is_empty() {
        envelope.id = format!("{}-{}-{}", record.topic, record.partition, record.offset);
        envelope.id_origin = IdOrigin::Broker;
    }
    envelope.time = match own.time {
        Some(time) => time,
        // The broker's stamp is no time of the message's.
        None => match record.stamp {
            Stamp::CreateTime(time) if time >= 0 => Some(Timestamp::from_millis(time)),
            _ => None,
        },
    };
    let delayed = |at: i64| Timestamp::from_millis(at.saturating_add(own.delay));
    if own.history.is_none() {
        own.history = deadletter::read(&envelope.headers).map(Arc::new);
        let failures = own.history.as_ref().map_or(0, |history| history.failures().len());
        own.failed_attempts = own.failed_attempts.max(u32::try_from(failures).unwrap_or(u32::MAX));
    }
    Decoded {
        failed_attempts: own.failed_attempts,
        history: own.history,
        enqueued: match (record.stamp, own.sent) {
            (Stamp::LogAppendTime(at), _) if at >= 0 => Some((delayed(at), Clock::Broker)),
            (_, sent) => sent.map(|sent| (delayed(sent), Clock::Publisher)),
        },
        due: own.sent.filter(|_| own.delay > 0).map(delayed),
        dead_letter: own.dead_letter,
        envelope,
    }
}

/// What our own headers say.
#[derive(Default)]
struct Own {
    binary: Vec<usize>,
    packed: Option<Packed>,
    /// Of the envelope, where the record's timestamp is not it.
    time: Option<Option<Timestamp>>,
    sent: Option<i64>,
    delay: i64,
    failed_attempts: u32,
    history: Option<Arc<History>>,
    dead_letter: Vec<(&'static str, String)>,
}

impl Own {
    /// Takes a header of ours; says whether it was one, in the form that we write, and the first of its name.
    fn take(&mut self, name: &str, value: Option<&[u8]>, envelope: &mut Envelope) -> bool {
        let Some(text) = value.and_then(|value| std::str::from_utf8(value).ok()) else { return false };
        self.try_take(name, text, envelope).is_some()
    }

    fn try_take(&mut self, name: &str, text: &str, envelope: &mut Envelope) -> Option<()> {
        let number = || text.parse::<i64>().ok();
        match name {
            ID if envelope.id.is_empty() && !text.is_empty() => text.clone_into(&mut envelope.id),
            TYPE => put(&mut envelope.message_type, text.to_owned())?,
            SOURCE => put(&mut envelope.source, text.to_owned())?,
            CONTENT_TYPE => put(&mut envelope.content_type, text.to_owned())?,
            CONTENT_ENCODING => put(&mut envelope.content_encoding, text.to_owned())?,
            CORRELATION_ID => put(&mut envelope.correlation_id, text.to_owned())?,
            REPLY_TO => put(&mut envelope.reply_to, text.to_owned())?,
            IDEMPOTENCY_KEY => put(&mut envelope.idempotency_key, text.to_owned())?,
            EXPIRES_AT => put(&mut envelope.expires_at, Timestamp::from_millis(number()?))?,
            PRIORITY => put(&mut envelope.priority, text.parse().ok()?)?,
            ID_ORIGIN => {
                envelope.id_origin = match text {
                    "broker" => IdOrigin::Broker,
                    "synthetic" => IdOrigin::Synthetic,
                    _ => return None,
                }
            }
            TIME if text.is_empty() => put(&mut self.time, None)?,
            TIME => put(&mut self.time, Some(Timestamp::from_millis(number()?)))?,
            BINARY => {
                self.binary = text.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
            }
            PACKED_HEADER => {
                // Fields are packed by other transports; one that comes here by a foreign hand is kept as a header.
                let packed = Packed::from_text(text).filter(|packed| packed.fields.is_empty())?;
                put(&mut self.packed, packed)?;
            }
            wire::SENT => put(&mut self.sent, number()?)?,
            wire::DELAY => self.delay = number()?,
            wire::FAILED_ATTEMPTS => self.failed_attempts = text.parse().ok()?,
            wire::HISTORY => put(&mut self.history, Arc::new(History::from_header(text)?))?,
            wire::DEAD_LETTER_SOURCE => self.dead_letter.push((wire::DEAD_LETTER_SOURCE, text.to_owned())),
            wire::DEAD_LETTER_REASON => self.dead_letter.push((wire::DEAD_LETTER_REASON, text.to_owned())),
            _ => return None,
        }
        Some(())
    }
}

/// Fills an empty place; a second header of the name is not ours.
fn put<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.is_none().then(|| *place = Some(value))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
