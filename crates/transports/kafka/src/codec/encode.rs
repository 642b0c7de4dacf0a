//! An envelope's headers as they are written.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine;
use throughline_core::driver::wire;
use throughline_core::headers::is_trace_header;
use throughline_core::pack::{PACKED_HEADER, Packed};
use throughline_core::{Envelope, HeaderValue, Headers, History, IdOrigin, Timestamp};

use super::*;
use crate::config::Style;
use crate::deadletter::{self, Origin};

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
