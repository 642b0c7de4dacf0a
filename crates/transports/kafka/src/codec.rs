//! Envelopes as Kafka records, and back: `decode(encode(e)) == e` for every valid envelope.
//!
//! Kafka's headers are an ordered list of name and bytes, so nearly everything has a native place. What has none are the
//! kinds of values: text and bytes look the same, which `tl-binary` tells apart, and other brokers' types are packed.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use throughline_core::HeaderValue;
use throughline_core::driver::wire;
use throughline_core::pack::PACKED_HEADER;

mod decode;
mod encode;

pub(crate) use decode::{Decoded, Record, decode};
pub(crate) use encode::{DeadLetter, Hop, Sink, Sizer, encode};

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

/// The envelope's header of one whose name is not UTF-8.
fn from_raw(name: &[u8], value: Option<&[u8]>) -> (String, HeaderValue) {
    let mut text = BASE64.encode(name);
    if let Some(value) = value {
        text.push(':');
        BASE64.encode_string(value, &mut text);
    }
    (name.escape_ascii().to_string(), HeaderValue::Typed { kind: Cow::Borrowed(RAW), text })
}

#[cfg(test)]
#[path = "codec/tests.rs"]
mod tests;
