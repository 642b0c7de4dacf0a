//! Envelopes as EventBridge events, and back: `decode(encode(e)) == e` for every valid envelope.
//!
//! An event's detail is `{"metadata":{…},"data":…}`, the pattern that EventBridge's users know: rules match on
//! `detail.data.…` and on `detail.metadata.…`. In raw mode a payload that is a JSON object is the detail itself, with
//! `metadata` as one member more. What EventBridge delivers to a queue is the event as JSON; its trace header arrives as
//! the queue's `AWSTraceHeader`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use throughline_core::headers::{TRACEPARENT, is_trace_header};
use throughline_core::pack::{PACKED_HEADER, Packed};
use throughline_core::{Envelope, Error, ErrorKind, HeaderValue, IdOrigin, Result, Timestamp};

use crate::codec::{Decoded, ENTRIES, ESCAPED, Hop, at_most, field, pack_fields, repeated, unpack};
use crate::json::Json;
use crate::text::is_legal;
use crate::xray;

/// The longest detail type, in bytes. <https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEventsRequestEntry.html>
const MAX_DETAIL_TYPE: usize = 128;
/// The longest source, in bytes.
const MAX_SOURCE: usize = 256;
/// The detail type of a message without a type, or with one that cannot be one.
const NO_TYPE: &str = "message";
/// What an event's time counts for in its size, in bytes.
const TIME_SIZE: usize = 14;

/// The member of `metadata` that says how `data` stands for the payload; with it an event is one of ours.
const DATA: &str = "tl-data";

/// How data stands for the payload.
mod form {
    /// The payload is this JSON value.
    pub(super) const JSON: &str = "json";
    /// The payload is this text.
    pub(super) const TEXT: &str = "text";
    /// The payload is this in base64.
    pub(super) const BASE64: &str = "base64";
    /// There is no payload.
    pub(super) const TOMBSTONE: &str = "tombstone";
    /// The payload is the detail itself, without `metadata`.
    pub(super) const RAW: &str = "raw";
}

/// An event as it is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who made it; not `aws.`.
    pub source: String,
    /// The message type.
    pub detail_type: String,
    /// A JSON object.
    pub detail: String,
    /// When it was made.
    pub time: Option<Timestamp>,
    /// The X-Ray header of the creation context.
    pub xray: Option<String>,
}

impl Event {
    /// What counts for EventBridge's limit, in bytes.
    pub fn size(&self) -> usize {
        let time = self.time.map_or(0, |_| TIME_SIZE);
        self.source.len() + self.detail_type.len() + self.detail.len() + time
    }
}

/// The size of an event that is put, in bytes; as [`codec::size`](crate::codec::size).
///
/// # Errors
/// As [`encode`].
pub fn size(envelope: &Envelope, hop: &Hop<'_>, source: &str, raw: bool, limit: usize) -> Result<usize> {
    let payload = ESCAPED * envelope.payload_len() + source.len();
    let most = at_most(envelope, hop).saturating_add(payload);
    // What raw mode does not take is told by encoding it.
    if !raw && most <= limit / ENTRIES { Ok(most) } else { Ok(encode(envelope, hop, source, raw)?.size()) }
}

/// Encodes an envelope. `source` is for one that names none, or one that EventBridge keeps for itself.
///
/// # Errors
/// `InvalidMessage` in raw mode, where the payload is not a JSON object, or has a member `metadata` itself.
pub fn encode(envelope: &Envelope, hop: &Hop<'_>, source: &str, raw: bool) -> Result<Event> {
    let mut packed = Packed::default();
    pack_fields(envelope, hop, &mut packed);
    packed.fields.insert(field::ID.into(), envelope.id.clone());
    if let Some(content_type) = &envelope.content_type {
        packed.fields.insert(field::CONTENT_TYPE.into(), content_type.clone());
    }
    let is_type = |text: &&String| !text.is_empty() && text.len() <= MAX_DETAIL_TYPE && is_legal(text);
    let detail_type = match &envelope.message_type {
        Some(message_type) if is_type(&message_type) && message_type != NO_TYPE => message_type.clone(),
        other => {
            packed.fields.extend(other.clone().map(|other| (field::TYPE.into(), other)));
            NO_TYPE.to_owned()
        }
    };
    let is_source = |text: &&String| {
        !text.is_empty() && text.len() <= MAX_SOURCE && is_legal(text) && !text.starts_with("aws.")
    };
    let own_source = envelope.source.as_ref().filter(is_source).map_or(source, String::as_str).to_owned();

    let (form, data) = data(envelope.payload.as_ref(), raw)?;
    let mut members: Vec<(String, Json)> = vec![(DATA.to_owned(), text(form))];
    // What EventBridge could not deliver to a queue stays packed, where it is ASCII.
    let fields = std::mem::take(&mut packed.fields);
    for (name, value) in fields {
        if is_legal(&value) {
            members.push((name.into_owned(), Json::Text(value)));
        } else {
            packed.fields.insert(name, value);
        }
    }
    let repeated = repeated(&envelope.headers);
    let mut headers = Vec::new();
    for (name, value) in envelope.headers.iter() {
        let count = |header: &(&str, &HeaderValue)| header.0.eq_ignore_ascii_case(name);
        let is_once = match is_trace_header(name) {
            true => envelope.headers.iter().filter(count).count() == 1,
            false => repeated.binary_search(&name).is_err(),
        };
        match value {
            HeaderValue::Text(value) if is_once && is_legal(name) && is_legal(value) => {
                headers.push((name.to_owned(), Json::Text(value.clone())));
            }
            _ => packed.headers.append(name, value.clone()),
        }
    }
    // Of a trace header that comes more than once, the one that counts can be matched on, too.
    for name in throughline_core::headers::TRACE_HEADERS {
        let is_there = headers.iter().any(|(other, _): &(String, _)| other.eq_ignore_ascii_case(name));
        if let Some(value) = envelope.headers.trace(name).filter(|value| !is_there && is_legal(value)) {
            headers.push((name.to_owned(), Json::Text(value.to_owned())));
        }
    }
    if !headers.is_empty() {
        members.push(("headers".to_owned(), Json::Object(headers)));
    }
    if !packed.is_empty() {
        members.push((PACKED_HEADER.to_owned(), Json::Text(packed.to_text())));
    }
    let metadata = ("metadata".to_owned(), Json::Object(members));
    let detail = match data {
        Some(Json::Object(mut members)) if form == form::RAW => {
            members.push(metadata);
            Json::Object(members)
        }
        data => {
            Json::Object([metadata].into_iter().chain(data.map(|data| ("data".to_owned(), data))).collect())
        }
    };
    Ok(Event {
        source: own_source,
        detail_type,
        detail: detail.to_string(),
        time: envelope.time,
        xray: envelope.headers.trace(TRACEPARENT).and_then(xray::from_traceparent),
    })
}

fn text(text: &str) -> Json {
    Json::Text(text.to_owned())
}

fn data(payload: Option<&Bytes>, raw: bool) -> Result<(&'static str, Option<Json>)> {
    let Some(payload) = payload else { return Ok((form::TOMBSTONE, None)) };
    let as_text = std::str::from_utf8(payload).ok().filter(|text| is_legal(text));
    let json = as_text.and_then(Json::exact);
    // Escapes can hide what a queue would not take.
    let json = json.filter(is_legal_throughout);
    if raw {
        return match json {
            Some(Json::Object(members)) if members.iter().all(|(name, _)| name != "metadata") => {
                Ok((form::RAW, Some(Json::Object(members))))
            }
            _ => Err(Error::new(
                ErrorKind::InvalidMessage,
                "with ?raw=true a payload must be a compact JSON object without a member 'metadata'",
            )),
        };
    }
    Ok(match (json, as_text) {
        (Some(json), _) => (form::JSON, Some(json)),
        (None, Some(plain)) => (form::TEXT, Some(text(plain))),
        (None, None) => (form::BASE64, Some(Json::Text(BASE64.encode(payload)))),
    })
}

fn is_legal_throughout(json: &Json) -> bool {
    match json {
        Json::Text(text) => is_legal(text),
        Json::Array(items) => items.iter().all(is_legal_throughout),
        Json::Object(members) => {
            members.iter().all(|(name, value)| is_legal(name) && is_legal_throughout(value))
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => true,
    }
}

/// Decodes what EventBridge delivered to a queue; `None` for a body that is no event, or one that an input transformer has
/// taken apart.
pub(crate) fn decode(body: &str) -> Option<Decoded> {
    // Cheap for all other bodies.
    if !body.starts_with('{') || !body.contains("\"detail-type\"") {
        return None;
    }
    let event: Json = serde_json::from_str(body).ok()?;
    let member = |name| event.get(name).and_then(Json::as_str);
    let (Some(_), Some(id), Some(source), Some(detail_type)) =
        (member("version"), member("id"), member("source"), member("detail-type"))
    else {
        return None;
    };
    let detail = event.get("detail")?;
    let mut envelope = Envelope::foreign(id.to_owned(), None);
    envelope.id_origin = IdOrigin::Broker;
    envelope.message_type = Some(detail_type.to_owned());
    envelope.source = Some(source.to_owned());
    let metadata = detail.get("metadata");
    let Some(form) = metadata.and_then(|metadata| metadata.get(DATA)).and_then(Json::as_str) else {
        return Some(foreign(envelope, &event, detail));
    };
    let mut decoded = Decoded::new(envelope);
    let envelope = &mut decoded.envelope;
    envelope.id_origin = IdOrigin::Envelope;
    envelope.source = None;
    if detail_type == NO_TYPE {
        envelope.message_type = None;
    }
    let data = || detail.get("data").and_then(Json::as_str);
    let mut is_broken = false;
    envelope.payload = match form {
        form::TOMBSTONE => None,
        form::TEXT => data().map(|text| Bytes::copy_from_slice(text.as_bytes())),
        // What is not base64 is delivered as it is, so that it can be rejected.
        form::BASE64 => data().map(|text| match BASE64.decode(text) {
            Ok(bytes) => bytes.into(),
            Err(_) => {
                is_broken = true;
                Bytes::copy_from_slice(text.as_bytes())
            }
        }),
        form::RAW => Some(without_metadata(detail).into()),
        _ => detail.get("data").map(|data| data.to_string().into()),
    };
    let Some(Json::Object(members)) = metadata else { return Some(decoded) };
    let mut own = Packed::default();
    let mut packed = Packed::default();
    for (name, value) in members {
        match (name.as_str(), value) {
            ("headers", Json::Object(headers)) => {
                let headers =
                    headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
                own.headers.extend(headers);
            }
            (PACKED_HEADER, Json::Text(text)) => match Packed::from_text(text) {
                Some(read) => packed = read,
                None => is_broken = true,
            },
            (DATA, _) => {}
            (_, Json::Text(text)) => {
                own.fields.insert(name.clone().into(), text.clone());
            }
            _ => {}
        }
    }
    unpack(own, &mut decoded);
    unpack(packed, &mut decoded);
    decoded.undecodable = is_broken.then(|| body.to_owned());
    Some(decoded)
}

/// An event of someone else: its detail is the payload, and what else it says are headers.
fn foreign(mut envelope: Envelope, event: &Json, detail: &Json) -> Decoded {
    envelope.time = event.get("time").and_then(Json::as_str).and_then(Timestamp::parse);
    envelope.content_type = Some("application/json".to_owned());
    envelope.payload = Some(detail.to_string().into());
    for name in ["account", "region", "resources"] {
        match event.get(name) {
            Some(Json::Text(text)) if !text.is_empty() => envelope.headers.append(name, text.as_str()),
            Some(Json::Array(items)) if !items.is_empty() => {
                envelope.headers.append(name, Json::Array(items.clone()).to_string());
            }
            _ => {}
        }
    }
    Decoded::new(envelope)
}

fn without_metadata(detail: &Json) -> String {
    match detail {
        Json::Object(members) => {
            let own = members.iter().filter(|(name, _)| name != "metadata").cloned().collect();
            Json::Object(own).to_string()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
