//! A received record in Kafka's own terms.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use opentelemetry::KeyValue;
use rdkafka::Timestamp as Stamp;
use throughline_core::driver::{self, Native, Token};
use throughline_core::{HeaderValue, Timestamp};

use crate::codec::{self, Decoded, Record};
use crate::memory::Memory;
use crate::native;

/// The record behind a delivery: `delivery.native::<throughline_kafka::Message>()`.
///
/// Payload and headers are in the envelope.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// The topic: the address's own, or its retry topic.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
    /// The record's place in the partition.
    pub offset: i64,
    /// The record's timestamp, in ms since the epoch, and whose it is.
    pub timestamp: Stamp,
    /// The record's key.
    pub key: Option<Bytes>,
    /// Whether it has no payload.
    pub is_tombstone: bool,
    /// What a dead letter of ours says: `tl-dead-letter-source`, `tl-dead-letter-reason`.
    pub dead_letter: Vec<(&'static str, String)>,
}

impl Native for Message {
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        let typed = |kind: &'static str, text: String| HeaderValue::Typed { kind: kind.into(), text };
        let mut details = vec![
            (Cow::Borrowed("topic"), HeaderValue::Text(self.topic.to_string())),
            (Cow::Borrowed("partition"), typed("kafka:i32", self.partition.to_string())),
            (Cow::Borrowed("offset"), typed("kafka:i64", self.offset.to_string())),
        ];
        let (name, time) = match self.timestamp {
            Stamp::CreateTime(time) => ("CreateTime", time),
            Stamp::LogAppendTime(time) => ("LogAppendTime", time),
            Stamp::NotAvailable => ("", -1),
        };
        if time >= 0 {
            details.push((Cow::Borrowed(name), HeaderValue::Text(Timestamp::from_millis(time).to_string())));
        }
        let letter = self.dead_letter.iter();
        details.extend(letter.map(|(name, text)| (Cow::Borrowed(*name), HeaderValue::Text(text.clone()))));
        details
    }

    fn span_attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("messaging.destination.partition.id", self.partition.to_string()),
            KeyValue::new("messaging.kafka.offset", self.offset),
        ];
        if let Some(key) = self.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()) {
            attributes.push(KeyValue::new("messaging.kafka.message.key", key.to_owned()));
        }
        if self.is_tombstone {
            attributes.push(KeyValue::new("messaging.kafka.message.tombstone", true));
        }
        attributes
    }

    fn native_id(&self) -> Option<String> {
        Some(native_id(&self.topic, self.partition, self.offset))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A record's place, which is also the id of a foreign message.
pub(crate) fn native_id(topic: &str, partition: i32, offset: i64) -> String {
    format!("{topic}-{partition}-{offset}")
}

/// Shows no key.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// A record as the portable layer's delivery, with when it is due, where it was delayed.
pub(crate) struct Received {
    pub(crate) delivery: driver::Delivery,
    pub(crate) due: Option<Timestamp>,
}

/// Takes a record apart. `epoch` is that of its partition, `topic` the name of it, shared.
pub(crate) fn receive(
    record: native::Record<'_>,
    topic: Arc<str>,
    epoch: u64,
    now: Timestamp,
    memory: &mut Memory,
) -> Received {
    let (mut place, strings) = memory.envelope();
    let (partition, offset, stamp) = (record.partition(), record.offset(), record.stamp());
    let content = Record {
        topic: &topic,
        partition,
        offset,
        key: record.key().map(|key| memory.copy(key)),
        payload: record.payload().map(|payload| memory.copy(payload)),
        stamp,
    };
    let Decoded { envelope, failed_attempts, history, enqueued, due, dead_letter } =
        codec::decode(content, strings, |each| record.each_header(each));
    let is_dead_letter = !dead_letter.is_empty();
    let native = Message {
        partition,
        offset,
        timestamp: stamp,
        key: envelope.ordering_key.clone(),
        is_tombstone: envelope.payload.is_none(),
        dead_letter,
        topic,
    };
    match Arc::get_mut(&mut place) {
        Some(place) => *place = envelope,
        None => place = Arc::new(envelope),
    }
    let mut delivery = driver::Delivery::new(place, token(epoch, offset));
    delivery.failed_attempts = failed_attempts;
    delivery.history = history;
    delivery.is_dead_letter = is_dead_letter;
    delivery.enqueued = enqueued;
    delivery.native = Some(Arc::new(native));
    Received { delivery, due: due.filter(|due| *due > now) }
}

/// Offsets count from 0.
fn token(epoch: u64, offset: i64) -> Token {
    Token { epoch, tag: offset.cast_unsigned() }
}

/// The offset that a token of ours names.
pub(crate) fn offset(token: &Token) -> i64 {
    token.tag.cast_signed()
}
