//! Envelopes as a body and at most ten attributes, for SQS and SNS, and back: `decode(encode(e)) == e` for every valid
//! envelope.
//!
//! The slots go, in this order, to `traceparent`, `content-type`, `tl-id`, `tl-type`, the body marker, on a dead letter
//! its reason and source, `tracestate`, `baggage`, and the user's headers in their order. One is kept for
//! [`PACKED_HEADER`], which holds whatever else there is.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use throughline_core::driver::wire;
use throughline_core::headers::{TRACEPARENT, is_trace_header};
use throughline_core::pack::{PACKED_HEADER, Packed};
use throughline_core::{Envelope, HeaderValue, Headers, History, IdOrigin, Timestamp};

use crate::attribute::{Attribute, AttributeValue, MAX_ATTRIBUTES, is_value};
use crate::notification::Notification;
use crate::text::{is_attribute_name, is_legal};
use crate::{event, group, xray};

/// The message's id.
const ID: &str = "tl-id";
/// Its type.
const TYPE: &str = "tl-type";
/// The payload's media type.
const CONTENT_TYPE: &str = "content-type";
/// How the body stands for the payload, where it is not the payload: one of [`marker`].
const BODY: &str = "tl-body";

/// Attributes that mean something to us: a user's header of the same name is packed.
const OWN: [&str; 7] =
    [PACKED_HEADER, ID, TYPE, CONTENT_TYPE, BODY, wire::DEAD_LETTER_REASON, wire::DEAD_LETTER_SOURCE];

/// Whether an attribute is one of ours, by its name.
pub fn is_own(name: &str) -> bool {
    OWN.contains(&name)
}

/// How many messages a request has at most.
pub(crate) const ENTRIES: usize = 10;
/// How long a byte of text is at most in JSON: `\u0000`.
pub(crate) const ESCAPED: usize = 6;

/// What stands for a payload that a body cannot hold.
mod marker {
    /// The body is the payload in base64.
    pub(super) const BASE64: &str = "base64";
    /// The payload is empty, which a body may not be.
    pub(super) const EMPTY: &str = "empty";
    /// There is no payload.
    pub(super) const TOMBSTONE: &str = "tombstone";
    /// The body where there is nothing to say.
    pub(super) const PLACEHOLDER: &str = "-";
}

/// The packed attribute's names for what is not a header.
pub(crate) mod field {
    pub(crate) const ID: &str = "id";
    pub(crate) const ID_ORIGIN: &str = "id-origin";
    pub(crate) const TYPE: &str = "type";
    pub(crate) const SOURCE: &str = "source";
    pub(crate) const KEY: &str = "key";
    /// A key that is not UTF-8, in base64.
    pub(crate) const KEY_BYTES: &str = "key-b64";
    pub(crate) const TIME: &str = "time";
    pub(crate) const CONTENT_TYPE: &str = "content-type";
    pub(crate) const CONTENT_ENCODING: &str = "content-encoding";
    pub(crate) const CORRELATION_ID: &str = "correlation-id";
    pub(crate) const REPLY_TO: &str = "reply-to";
    pub(crate) const EXPIRES_AT: &str = "expires-at";
    pub(crate) const PRIORITY: &str = "priority";
    pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// Not of the envelope but of this hop.
    pub(crate) const DELAY: &str = "delay";
    pub(crate) const FAILED_ATTEMPTS: &str = "failed-attempts";
    pub(crate) const HISTORY: &str = "history";
}

/// What a hop adds to the envelope.
#[derive(Clone, Debug, Default)]
pub struct Hop<'a> {
    /// The delay that is asked for: the queue's own stamp does not know it.
    pub delay: Duration,
    /// How often processing has failed on earlier hops.
    pub failed_attempts: u32,
    /// Those failures.
    pub history: Option<&'a History>,
    /// On a dead letter.
    pub dead_letter: Option<DeadLetter<'a>>,
    /// Whether the message's group id says its ordering key, where it can.
    pub grouped: bool,
}

/// What a dead letter says of itself to people and foreign consumers.
#[derive(Clone, Debug)]
pub struct DeadLetter<'a> {
    /// The queue that it was rejected from.
    pub source: &'a str,
    /// The last failure.
    pub reason: String,
}

/// A message as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The body; legal and not empty.
    pub body: String,
    /// At most [`MAX_ATTRIBUTES`].
    pub attributes: Vec<Attribute>,
    /// The X-Ray header of the creation context. It counts in no limit.
    pub xray: Option<String>,
}

impl Encoded {
    /// What counts for SQS's and SNS's limits, in bytes.
    pub fn size(&self) -> usize {
        self.body.len() + self.attributes.iter().map(Attribute::size).sum::<usize>()
    }
}

/// How large a payload may be where a message may have so many bytes: less 1 KiB, or an eighth of little, for what we add.
pub fn payload_limit(message: usize) -> usize {
    message - (message / 8).min(1024)
}

/// The size of a message that is sent, in bytes: exact where it matters, which is above a tenth of the limit; below, an upper
/// bound that costs less than encoding it. Ten such messages fit into one request either way.
pub fn size(envelope: &Envelope, hop: &Hop<'_>, limit: usize) -> usize {
    let most = at_most(envelope, hop).saturating_add(envelope.payload_len().div_ceil(3) * 4);
    if most <= limit / ENTRIES { most } else { encode(envelope, hop).size() }
}

/// No less than what an envelope without its payload is on the wire, in bytes.
pub(crate) fn at_most(envelope: &Envelope, hop: &Hop<'_>) -> usize {
    /// The names, types and numbers of all that is not a header.
    const FIXED: usize = 1024;
    /// What JSON around a packed header is at most.
    const AROUND: usize = 64;
    if hop.history.is_some() || hop.dead_letter.is_some() {
        return usize::MAX;
    }
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let fields = envelope.id.len()
        + text(&envelope.message_type)
        + text(&envelope.source)
        + text(&envelope.content_type)
        + text(&envelope.content_encoding)
        + text(&envelope.correlation_id)
        + text(&envelope.reply_to)
        + text(&envelope.idempotency_key)
        + envelope.ordering_key.as_ref().map_or(0, Bytes::len);
    let value = |value: &HeaderValue| match value {
        HeaderValue::Text(text) => text.len(),
        HeaderValue::Bytes(bytes) => bytes.len(),
        HeaderValue::Null => 0,
        HeaderValue::Typed { kind, text } => kind.len() + text.len(),
    };
    let header = |(name, header): (&str, &HeaderValue)| AROUND + ESCAPED * (name.len() + value(header));
    // A trace header that comes more than once is written twice.
    let headers = 2 * envelope.headers.iter().map(header).sum::<usize>();
    FIXED + ESCAPED * fields + headers
}

/// Encodes an envelope.
pub fn encode(envelope: &Envelope, hop: &Hop<'_>) -> Encoded {
    let mut slots = Slots::default();
    let (body, marker) = body_of(envelope.payload.as_ref());
    let repeated = repeated(&envelope.headers);
    let headers = || envelope.headers.iter().enumerate();
    let is =
        |name: &'static str| move |(_, (n, _)): &(usize, (&str, &HeaderValue))| n.eq_ignore_ascii_case(name);
    for (index, (name, value)) in headers().filter(is(TRACEPARENT)) {
        slots.trace_header(&envelope.headers, index, name, value);
    }
    slots.field(CONTENT_TYPE, field::CONTENT_TYPE, envelope.content_type.as_deref());
    slots.field(ID, field::ID, Some(&envelope.id));
    slots.field(TYPE, field::TYPE, envelope.message_type.as_deref());
    if let Some(marker) = marker {
        slots.attributes.push(Attribute::text(BODY, marker));
    }
    if let Some(DeadLetter { source, reason }) = &hop.dead_letter {
        slots.text(wire::DEAD_LETTER_REASON, reason);
        slots.text(wire::DEAD_LETTER_SOURCE, source);
    }
    let others = |(_, (name, _)): &(usize, (&str, &HeaderValue))| {
        is_trace_header(name) && !name.eq_ignore_ascii_case(TRACEPARENT)
    };
    for (index, (name, value)) in headers().filter(others) {
        slots.trace_header(&envelope.headers, index, name, value);
    }
    for (_, (name, value)) in headers().filter(|(_, (name, _))| !is_trace_header(name)) {
        let plain = !is_own(name) && is_attribute_name(name) && repeated.binary_search(&name).is_err();
        if !(plain && slots.place(name, value)) {
            slots.packed.headers.append(name, value.clone());
        }
    }
    pack_fields(envelope, hop, &mut slots.packed);
    let xray = envelope.headers.trace(TRACEPARENT).and_then(xray::from_traceparent);
    Encoded { body, attributes: slots.finish(), xray }
}

/// The attributes as they are placed, and what finds no place.
#[derive(Default)]
struct Slots {
    attributes: Vec<Attribute>,
    packed: Packed,
}

impl Slots {
    /// One is kept for the packed attribute.
    fn has_room(&self) -> bool {
        self.attributes.len() < MAX_ATTRIBUTES - 1
    }

    fn place(&mut self, name: &str, value: &HeaderValue) -> bool {
        let attribute = if self.has_room() { Attribute::of_header(name, value) } else { None };
        let placed = attribute.is_some();
        self.attributes.extend(attribute);
        placed
    }

    /// A text for people, left out where there is no place for it.
    fn text(&mut self, name: &str, text: &str) {
        if self.has_room() && is_value(text) {
            self.attributes.push(Attribute::text(name, text));
        }
    }

    fn field(&mut self, name: &str, field: &'static str, value: Option<&str>) {
        match value {
            Some(value) if self.has_room() && is_value(value) => {
                self.attributes.push(Attribute::text(name, value));
            }
            Some(value) => pack(&mut self.packed, field, value),
            None => {}
        }
    }

    /// Of a trace header that comes more than once, in whatever case, the last is the one that counts, and is native;
    /// all are packed, too, and win when they are read.
    fn trace_header(&mut self, headers: &Headers, index: usize, name: &str, value: &HeaderValue) {
        let same = headers.iter().enumerate().filter(|(_, (other, _))| other.eq_ignore_ascii_case(name));
        let (count, last) = same.fold((0, index), |(count, _), (at, _)| (count + 1, at));
        let placed = last == index && is_attribute_name(name) && self.place(name, value);
        if !placed || count > 1 {
            self.packed.headers.append(name, value.clone());
        }
    }

    fn finish(mut self) -> Vec<Attribute> {
        if !self.packed.is_empty() {
            self.attributes.push(Attribute::text(PACKED_HEADER, self.packed.to_text()));
        }
        self.attributes
    }
}

/// Names that come more than once, sorted: an attribute holds one value a name.
pub(crate) fn repeated(headers: &Headers) -> Vec<&str> {
    let mut names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    let mut repeated: Vec<_> =
        names.iter().zip(names.iter().skip(1)).filter(|(a, b)| a == b).map(|(a, _)| *a).collect();
    repeated.dedup();
    repeated
}

fn body_of(payload: Option<&Bytes>) -> (String, Option<&'static str>) {
    match payload {
        None => (marker::PLACEHOLDER.to_owned(), Some(marker::TOMBSTONE)),
        Some(payload) if payload.is_empty() => (marker::PLACEHOLDER.to_owned(), Some(marker::EMPTY)),
        Some(payload) => match std::str::from_utf8(payload) {
            Ok(text) if is_legal(text) => (text.to_owned(), None),
            _ => (BASE64.encode(payload), Some(marker::BASE64)),
        },
    }
}

fn pack(packed: &mut Packed, field: &'static str, value: impl Into<String>) {
    packed.fields.insert(Cow::Borrowed(field), value.into());
}

pub(crate) fn pack_fields(envelope: &Envelope, hop: &Hop<'_>, packed: &mut Packed) {
    match envelope.id_origin {
        IdOrigin::Envelope => {}
        IdOrigin::Broker => pack(packed, field::ID_ORIGIN, "broker"),
        IdOrigin::Synthetic => pack(packed, field::ID_ORIGIN, "synthetic"),
    }
    for (field, value) in [
        (field::SOURCE, &envelope.source),
        (field::CONTENT_ENCODING, &envelope.content_encoding),
        (field::CORRELATION_ID, &envelope.correlation_id),
        (field::REPLY_TO, &envelope.reply_to),
        (field::IDEMPOTENCY_KEY, &envelope.idempotency_key),
    ] {
        if let Some(value) = value {
            pack(packed, field, value.clone());
        }
    }
    if let Some(key) = &envelope.ordering_key
        && !(hop.grouped && group::exact(key).is_some())
    {
        match std::str::from_utf8(key) {
            Ok(text) => pack(packed, field::KEY, text),
            Err(_) => pack(packed, field::KEY_BYTES, BASE64.encode(key)),
        }
    }
    if let Some(time) = envelope.time {
        pack(packed, field::TIME, time.to_string());
    }
    if let Some(at) = envelope.expires_at {
        pack(packed, field::EXPIRES_AT, at.to_string());
    }
    if let Some(priority) = envelope.priority {
        pack(packed, field::PRIORITY, priority.to_string());
    }
    if !hop.delay.is_zero() {
        pack(packed, field::DELAY, hop.delay.as_millis().to_string());
    }
    if hop.failed_attempts > 0 {
        pack(packed, field::FAILED_ATTEMPTS, hop.failed_attempts.to_string());
    }
    if let Some(history) = hop.history.filter(|history| !history.is_empty()) {
        pack(packed, field::HISTORY, history.to_header());
    }
}

/// A message as it was received.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// The body.
    pub body: String,
    /// The attributes, in any order.
    pub attributes: Vec<Attribute>,
    /// The broker's own id of it.
    pub message_id: String,
    /// The group id, on a FIFO queue.
    pub group: Option<String>,
    /// The X-Ray header.
    pub xray: Option<String>,
}

/// What a message says.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The envelope.
    pub envelope: Envelope,
    /// How often processing has failed on earlier hops.
    pub failed_attempts: u32,
    /// Those failures.
    pub history: Option<Arc<History>>,
    /// The delay that was asked for.
    pub delay: Duration,
    /// The topic's ARN, where SNS had wrapped it.
    pub topic: Option<String>,
    /// The body as it came, where something in the message is ours by its name, and cannot be read: nobody can decode that,
    /// and who gives it on should give it on as it came.
    pub undecodable: Option<String>,
}

impl Decoded {
    /// A first delivery.
    pub(crate) fn new(envelope: Envelope) -> Self {
        Self {
            envelope,
            failed_attempts: 0,
            history: None,
            delay: Duration::ZERO,
            topic: None,
            undecodable: None,
        }
    }
}

/// Decodes a message, out of SNS's wrapping or EventBridge's event if it is in one; of a foreign one, what there is.
///
/// What an attribute of ours says that Throughline sent to the queue itself is never unwrapped, whatever it looks like.
pub fn decode(mut received: Received) -> Decoded {
    let is_own = received.attributes.iter().any(|attribute| is_own(&attribute.name));
    if is_own {
        return decode_plain(received);
    }
    if let Some(Notification { message_id, topic, message, attributes, .. }) =
        Notification::unwrap(&received.body)
    {
        // A topic can be a rule's target.
        let wrapped = std::mem::take(&mut received.body);
        let decoded = decode_event(Received { body: message, attributes, message_id, ..received });
        let undecodable = decoded.undecodable.map(|_| wrapped);
        return Decoded { topic: Some(topic), undecodable, ..decoded };
    }
    decode_event(received)
}

fn decode_event(received: Received) -> Decoded {
    let Some(mut decoded) = event::decode(&received.body) else { return decode_plain(received) };
    // A queue's attributes say what became of an event that could not be delivered.
    let others = decode_plain(received);
    decoded.undecodable = decoded.undecodable.or(others.undecodable);
    for (name, value) in others.envelope.headers {
        if !is_trace_header(&name) || decoded.envelope.headers.trace(&name).is_none() {
            decoded.envelope.headers.append(name, value);
        }
    }
    decoded
}

fn decode_plain(received: Received) -> Decoded {
    let Received { body, mut attributes, message_id, group, xray } = received;
    // As they come they have no order; this one is the same each time.
    attributes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let mut own = Own::default();
    let mut envelope = Envelope::foreign(String::new(), None);
    for attribute in attributes {
        if !own.take(&attribute, &mut envelope) {
            let value = attribute.header_value();
            envelope.headers.append(attribute.name, value);
        }
    }
    let undecodable = own.is_broken(&body).then(|| body.clone());
    envelope.payload = own.payload(body);
    let mut decoded = Decoded { undecodable, ..Decoded::new(envelope) };
    if let Some(packed) = own.packed {
        unpack(packed, &mut decoded);
    }
    let envelope = &mut decoded.envelope;
    if envelope.id.is_empty() {
        envelope.id = message_id;
        envelope.id_origin = IdOrigin::Broker;
    }
    if envelope.ordering_key.is_none() {
        let key = group.as_deref().and_then(group::key);
        envelope.ordering_key = key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
    }
    if envelope.headers.trace(TRACEPARENT).is_none()
        && let Some(traceparent) = xray.as_deref().and_then(xray::to_traceparent)
    {
        envelope.headers.append(TRACEPARENT, traceparent);
    }
    decoded
}

/// What our own attributes say.
#[derive(Default)]
struct Own {
    packed: Option<Packed>,
    marker: Option<&'static str>,
    /// One has our name, and not our form.
    odd: bool,
}

impl Own {
    /// Takes an attribute of ours; says whether it was one, in the form that we write.
    fn take(&mut self, attribute: &Attribute, envelope: &mut Envelope) -> bool {
        let taken = self.try_take(attribute, envelope).is_some();
        self.odd |= !taken && is_own(&attribute.name);
        taken
    }

    fn is_broken(&self, body: &str) -> bool {
        self.odd || (self.marker == Some(marker::BASE64) && BASE64.decode(body).is_err())
    }

    fn try_take(&mut self, attribute: &Attribute, envelope: &mut Envelope) -> Option<()> {
        let text = attribute.as_text()?;
        match attribute.name.as_str() {
            PACKED_HEADER => self.packed = Some(Packed::from_text(text)?),
            ID => envelope.id = text.to_owned(),
            TYPE => envelope.message_type = Some(text.to_owned()),
            CONTENT_TYPE => envelope.content_type = Some(text.to_owned()),
            BODY => {
                let known = [marker::BASE64, marker::EMPTY, marker::TOMBSTONE];
                self.marker = Some(known.into_iter().find(|known| *known == text)?);
            }
            wire::DEAD_LETTER_REASON | wire::DEAD_LETTER_SOURCE => {}
            _ => return None,
        }
        Some(())
    }

    fn payload(&self, body: String) -> Option<Bytes> {
        match self.marker {
            Some(marker::TOMBSTONE) => None,
            Some(marker::EMPTY) => Some(Bytes::new()),
            // What is not base64 is delivered as it is, so that it can be rejected.
            Some(marker::BASE64) => Some(BASE64.decode(&body).unwrap_or_else(|_| body.into_bytes()).into()),
            _ => Some(body.into()),
        }
    }
}

pub(crate) fn unpack(packed: Packed, decoded: &mut Decoded) {
    let envelope = &mut decoded.envelope;
    for (name, value) in packed.fields {
        match name.as_ref() {
            field::ID => envelope.id = value,
            field::ID_ORIGIN if value == "broker" => envelope.id_origin = IdOrigin::Broker,
            field::ID_ORIGIN if value == "synthetic" => envelope.id_origin = IdOrigin::Synthetic,
            field::TYPE => envelope.message_type = Some(value),
            field::SOURCE => envelope.source = Some(value),
            field::KEY => envelope.ordering_key = Some(value.into()),
            field::KEY_BYTES => envelope.ordering_key = BASE64.decode(value).ok().map(Bytes::from),
            field::TIME => envelope.time = Timestamp::parse(&value),
            field::CONTENT_TYPE => envelope.content_type = Some(value),
            field::CONTENT_ENCODING => envelope.content_encoding = Some(value),
            field::CORRELATION_ID => envelope.correlation_id = Some(value),
            field::REPLY_TO => envelope.reply_to = Some(value),
            field::EXPIRES_AT => envelope.expires_at = Timestamp::parse(&value),
            field::PRIORITY => envelope.priority = value.parse().ok(),
            field::IDEMPOTENCY_KEY => envelope.idempotency_key = Some(value),
            field::DELAY => decoded.delay = value.parse().map(Duration::from_millis).unwrap_or_default(),
            field::FAILED_ATTEMPTS => decoded.failed_attempts = value.parse().unwrap_or(0),
            field::HISTORY => decoded.history = History::from_header(&value).map(Arc::new),
            _ => {}
        }
    }
    for (name, _) in packed.headers.iter().filter(|(name, _)| is_trace_header(name)) {
        envelope.headers.remove_trace(name);
    }
    envelope.headers.extend(packed.headers);
}

/// The value of an attribute, for a client's own type.
pub fn into_parts(attribute: Attribute) -> (String, Cow<'static, str>, Option<String>, Option<Bytes>) {
    let Attribute { name, data_type, value } = attribute;
    match value {
        AttributeValue::Text(text) => (name, data_type, Some(text), None),
        AttributeValue::Binary(bytes) => (name, data_type, None, Some(bytes)),
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
pub(crate) mod tests;
