//! The transport-agnostic message.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::codec::{Codec, Json};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::{HeaderValue, Headers};
use crate::timestamp::Timestamp;

/// Where an envelope's id comes from, and so what it may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdOrigin {
    /// The publisher gave it. It identifies the message everywhere.
    #[default]
    Envelope,
    /// The message came without one; this is the broker's own, the same at each delivery (topic-partition-offset,
    /// an SQS `MessageId`).
    Broker,
    /// The message came without one and the broker has none: made up at each delivery, and never used to deduplicate.
    Synthetic,
}

/// A message, as every transport carries it. Fields that a broker has no native place for are packed into one
/// attribute, never dropped (see the crate docs of each transport).
///
/// Build one with [`Envelope::builder`] or [`Envelope::json`], or set the fields directly.
///
/// ```
/// use throughline_core::Envelope;
/// let envelope = Envelope::builder("campaign.sync_report")
///     .key("profile-50000100")
///     .header("tenant", "5000")
///     .json(&serde_json::json!({ "report": 7 }))?
///     .build();
/// assert_eq!(envelope.message_type.as_deref(), Some("campaign.sync_report"));
/// # Ok::<(), throughline_core::Error>(())
/// ```
///
/// `Debug` shows no header values and no payload.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope {
    /// Identifies the message; UUIDv7 unless set.
    pub id: String,
    /// Where the id comes from.
    pub id_origin: IdOrigin,
    /// The business operation, such as `campaign.sync_report`: it names spans and routes to handlers.
    pub message_type: Option<String>,
    /// Who made it.
    pub source: Option<String>,
    /// Messages of one key are kept in order. Absent is not the same as empty.
    pub ordering_key: Option<Bytes>,
    /// When it was made; `None` for a foreign message that does not say.
    pub time: Option<Timestamp>,
    /// The payload's media type.
    pub content_type: Option<String>,
    /// The payload's content encoding, such as `gzip`.
    pub content_encoding: Option<String>,
    /// Ties a reply to its request.
    pub correlation_id: Option<String>,
    /// Where replies should go.
    pub reply_to: Option<String>,
    /// From then on it need not be delivered. Absolute, so that a retry or a bridge does not renew it.
    pub expires_at: Option<Timestamp>,
    /// Higher is sooner, where the broker has priorities.
    pub priority: Option<u8>,
    /// What a consumer deduplicates its effects by; the id where absent.
    pub idempotency_key: Option<String>,
    /// All other headers, the trace headers included.
    pub headers: Headers,
    /// The body. `None` is a tombstone (Kafka), which is not the same as empty.
    pub payload: Option<Bytes>,
}

impl Envelope {
    /// A message with this payload, a new UUIDv7 for an id, and the present as its time.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            time: Some(Timestamp::now()),
            ..Self::foreign(Uuid::now_v7().to_string(), Some(payload.into()))
        }
    }

    /// What an adapter starts from when it decodes: only an id and a payload, everything else absent.
    pub fn foreign(id: String, payload: Option<Bytes>) -> Self {
        Self {
            id,
            id_origin: IdOrigin::Envelope,
            message_type: None,
            source: None,
            ordering_key: None,
            time: None,
            content_type: None,
            content_encoding: None,
            correlation_id: None,
            reply_to: None,
            expires_at: None,
            priority: None,
            idempotency_key: None,
            headers: Headers::new(),
            payload,
        }
    }

    /// Starts a message of a type (its business operation), with an empty payload.
    pub fn builder(message_type: impl Into<String>) -> EnvelopeBuilder {
        let mut envelope = Self::new(Bytes::new());
        envelope.message_type = Some(message_type.into());
        EnvelopeBuilder(envelope)
    }

    /// A message of a type with a value as JSON.
    pub fn json<T: Serialize + ?Sized>(message_type: impl Into<String>, value: &T) -> Result<Self> {
        Ok(Self::builder(message_type).json(value)?.build())
    }

    /// The payload, read in a format. A tombstone is an error. Errors name the type and the place, not the payload.
    pub fn decode<T: DeserializeOwned>(&self, codec: &impl Codec) -> Result<T> {
        match &self.payload {
            Some(payload) => codec.decode(payload),
            None => Err(Error::new(
                ErrorKind::Undecodable,
                "the message is a tombstone: it has no payload to decode",
            )),
        }
    }

    /// The payload as JSON.
    pub fn decode_json<T: DeserializeOwned>(&self) -> Result<T> {
        self.decode(&Json)
    }

    /// The payload's length in bytes; 0 for a tombstone.
    pub fn payload_len(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len)
    }

    /// What a consumer deduplicates its effects by: the idempotency key, else the id, unless that is synthetic.
    pub fn dedupe_key(&self) -> Option<&str> {
        match (&self.idempotency_key, self.id_origin) {
            (Some(key), _) => Some(key),
            (None, IdOrigin::Synthetic) => None,
            (None, _) => Some(&self.id),
        }
    }

    /// Whether it has expired at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Refuses what no transport could carry: an empty id. Header names and values may be anything; what a broker has
    /// no place for is packed.
    pub fn validate(&self) -> Result<()> {
        if self.id.is_empty() {
            return Err(Error::new(ErrorKind::InvalidMessage, "the envelope's id is empty"));
        }
        Ok(())
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("id", &self.id)
            .field("message_type", &self.message_type)
            .field("source", &self.source)
            .field("time", &self.time)
            .field("content_type", &self.content_type)
            .field("ordering_key_len", &self.ordering_key.as_ref().map(Bytes::len))
            .field("headers", &self.headers)
            .field("payload_len", &self.payload.as_ref().map(Bytes::len))
            .finish_non_exhaustive()
    }
}

impl From<Envelope> for EnvelopeBuilder {
    fn from(envelope: Envelope) -> Self {
        Self(envelope)
    }
}

/// Builds an [`Envelope`]; see [`Envelope::builder`].
#[derive(Clone, Debug)]
#[must_use = "call build() to get the envelope"]
pub struct EnvelopeBuilder(Envelope);

impl EnvelopeBuilder {
    /// Sets the id, in place of a new UUIDv7.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.0.id = id.into();
        self
    }

    /// Sets who made it.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets the ordering key: text or bytes.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.0.ordering_key = Some(key.into());
        self
    }

    /// Sets when it was made, in place of the present.
    pub fn time(mut self, time: impl Into<Timestamp>) -> Self {
        self.0.time = Some(time.into());
        self
    }

    /// Sets the payload's media type.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.0.content_type = Some(content_type.into());
        self
    }

    /// Sets the payload's content encoding.
    pub fn content_encoding(mut self, content_encoding: impl Into<String>) -> Self {
        self.0.content_encoding = Some(content_encoding.into());
        self
    }

    /// Sets what ties a reply to its request.
    pub fn correlation_id(mut self, correlation_id: impl Into<String>) -> Self {
        self.0.correlation_id = Some(correlation_id.into());
        self
    }

    /// Sets where replies should go.
    pub fn reply_to(mut self, reply_to: impl Into<String>) -> Self {
        self.0.reply_to = Some(reply_to.into());
        self
    }

    /// Lets it expire that long after now.
    pub fn expires_in(mut self, after: Duration) -> Self {
        self.0.expires_at = Some(Timestamp::now().after(after));
        self
    }

    /// Lets it expire then.
    pub fn expires_at(mut self, at: impl Into<Timestamp>) -> Self {
        self.0.expires_at = Some(at.into());
        self
    }

    /// Sets its priority; higher is sooner.
    pub fn priority(mut self, priority: u8) -> Self {
        self.0.priority = Some(priority);
        self
    }

    /// Sets what a consumer deduplicates its effects by.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.0.idempotency_key = Some(key.into());
        self
    }

    /// Adds a header; a repeated name keeps all its values.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.0.headers.append(name, value);
        self
    }

    /// Adds headers.
    pub fn headers<N: Into<String>, V: Into<HeaderValue>>(
        mut self,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.0.headers.extend(headers);
        self
    }

    /// Sets the payload as it is.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.0.payload = Some(payload.into());
        self
    }

    /// Makes it a tombstone: a message without a payload.
    pub fn tombstone(mut self) -> Self {
        self.0.payload = None;
        self
    }

    /// Sets the payload to a value in a format, and the content type to the format's.
    pub fn encode<C: Codec, T: Serialize + ?Sized>(mut self, codec: &C, value: &T) -> Result<Self> {
        self.0.payload = Some(codec.encode(value)?);
        self.0.content_type = Some(C::CONTENT_TYPE.to_owned());
        Ok(self)
    }

    /// Sets the payload to a value as JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self> {
        self.encode(&Json, value)
    }

    /// The finished envelope.
    pub fn build(self) -> Envelope {
        self.0
    }
}

impl From<EnvelopeBuilder> for Envelope {
    fn from(builder: EnvelopeBuilder) -> Self {
        builder.build()
    }
}

impl From<EnvelopeBuilder> for Arc<Envelope> {
    fn from(builder: EnvelopeBuilder) -> Self {
        Arc::new(builder.build())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[test]
    fn json_round_trips_and_a_wrong_body_is_a_clear_error_without_the_payload() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Report {
            id: u32,
        }
        let envelope = Envelope::json("report", &Report { id: 7 }).unwrap();
        assert_eq!(envelope.content_type.as_deref(), Some("application/json"));
        assert_eq!(envelope.decode_json::<Report>().unwrap(), Report { id: 7 });
        for body in [r#"{"id":"hunter2"}"#, "hunter2", ""] {
            let error = Envelope::new(body).decode_json::<Report>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Undecodable);
            let text = format!("{error} {error:?}");
            assert!(text.contains("Report") && !text.contains("hunter2"), "{text}");
        }
        let tombstone = Envelope::builder("report").tombstone().build();
        assert!(tombstone.decode_json::<Report>().unwrap_err().to_string().contains("tombstone"));
    }

    #[test]
    fn debug_shows_neither_payload_nor_header_values() {
        let envelope = Envelope::builder("t").header("authorization", "hunter2").payload("hunter2").build();
        assert!(!format!("{envelope:?}").contains("hunter2"));
    }

    #[test]
    fn a_synthetic_id_is_never_used_to_deduplicate() {
        let mut envelope = Envelope::new("x");
        assert_eq!(envelope.dedupe_key(), Some(envelope.id.as_str()));
        envelope.id_origin = IdOrigin::Synthetic;
        assert_eq!(envelope.dedupe_key(), None);
        envelope.idempotency_key = Some("k".into());
        assert_eq!(envelope.dedupe_key(), Some("k"));
    }
}
