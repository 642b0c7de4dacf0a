//! A received message as JSON, and for people.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use throughline::{Delivery, HeaderValue, Headers, History, IdOrigin};

use crate::failure::{Exit, Failure};
use crate::output::{BOLD, CYAN, DIM, Paint, visible};

/// One line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let mut line = serde_json::to_string(value)
        .map_err(|error| Failure::new(Exit::Failed, "cannot write the result as JSON").caused_by(&error))?;
    line.push('\n');
    Ok(line)
}

/// The JSON object of a message; `consume --help` documents it.
#[derive(Serialize)]
pub(crate) struct Message<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_origin: Option<&'static str>,
    #[serde(rename = "type")]
    message_type: Option<&'a str>,
    key: Option<Data<'a>>,
    time: Option<String>,
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    headers: HeadersJson<'a>,
    #[serde(flatten)]
    payload: Payload<'a>,
    attempt: u32,
    receive_count: Option<u32>,
    queue_delay_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<&'a History>,
    native: Headers,
}

/// Either of two members; a tombstone has a `payload` that is null.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Text { payload: Option<&'a str> },
    Binary { payload_base64: String },
}

impl<'a> Message<'a> {
    pub(crate) fn of(delivery: &'a Delivery) -> MessageJson<'a> {
        let envelope = &**delivery.envelope();
        let payload = match envelope.payload.as_deref().map(std::str::from_utf8) {
            None => Payload::Text { payload: None },
            Some(Ok(text)) => Payload::Text { payload: Some(text) },
            Some(Err(_)) => Payload::Binary { payload_base64: BASE64.encode(delivery.payload()) },
        };
        MessageJson(Self {
            id: &envelope.id,
            id_origin: match envelope.id_origin {
                IdOrigin::Envelope => None,
                IdOrigin::Broker => Some("broker"),
                IdOrigin::Synthetic => Some("synthetic"),
            },
            message_type: envelope.message_type.as_deref(),
            key: envelope.ordering_key.as_deref().map(Data::of),
            time: envelope.time.map(|time| time.to_string()),
            content_type: envelope.content_type.as_deref(),
            content_encoding: envelope.content_encoding.as_deref(),
            source: envelope.source.as_deref(),
            correlation_id: envelope.correlation_id.as_deref(),
            reply_to: envelope.reply_to.as_deref(),
            expires_at: envelope.expires_at.map(|time| time.to_string()),
            priority: envelope.priority,
            idempotency_key: envelope.idempotency_key.as_deref(),
            trace_id: trace_id(delivery.headers()),
            headers: HeadersJson(&envelope.headers),
            payload,
            attempt: delivery.attempt(),
            receive_count: delivery.receive_count(),
            queue_delay_ms: delivery
                .queue_delay()
                .map(|queue| u64::try_from(queue.delay.as_millis()).unwrap_or(u64::MAX)),
            failures: delivery.history(),
            native: delivery.native_details().into_iter().map(|(name, value)| (name.into_owned(), value)).collect(),
        })
    }
}
