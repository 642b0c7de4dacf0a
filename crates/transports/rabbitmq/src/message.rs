//! A received message in the client's own terms.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery as Received;
use lapin::types::AMQPValue;
use opentelemetry::KeyValue;
use throughline_core::driver::{self, Clock, Native, Token, wire};
use throughline_core::{HeaderValue, Timestamp};

use crate::codec::{self, Decoded};
use crate::{delay, value};

/// The client's own message behind a delivery: `delivery.native::<throughline_rabbitmq::Message>()`.
///
/// The payload is in the envelope.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// The exchange it was published to; empty for the default one.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// Whether the broker has delivered it before.
    pub redelivered: bool,
    /// The channel's number for it.
    pub delivery_tag: u64,
    /// All properties and headers, the broker's own (`x-death`, `x-delivery-count`) included.
    pub properties: BasicProperties,
}

impl Native for Message {
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        let typed = |kind: &'static str, text: String| HeaderValue::Typed { kind: kind.into(), text };
        let mut details = vec![
            (Cow::Borrowed("exchange"), HeaderValue::Text(self.exchange.clone())),
            (Cow::Borrowed("routing_key"), HeaderValue::Text(self.routing_key.clone())),
            (Cow::Borrowed("redelivered"), typed("amqp:bool", self.redelivered.to_string())),
            (Cow::Borrowed("delivery_tag"), typed("amqp:i64", self.delivery_tag.to_string())),
        ];
        if let Some(mode) = self.properties.delivery_mode() {
            details.push((Cow::Borrowed("delivery_mode"), typed("amqp:u8", mode.to_string())));
        }
        for (name, text) in [
            ("user_id", self.properties.user_id()),
            ("cluster_id", self.properties.cluster_id()),
            ("expiration", self.properties.expiration()),
        ] {
            if let Some(text) = text {
                details.push((Cow::Borrowed(name), HeaderValue::Text(text.to_string())));
            }
        }
        for (name, header) in self.properties.headers().iter().flatten() {
            let name = name.as_str();
            if codec::is_broker_owned(name) || name.starts_with("tl-dead-letter-") {
                details.push((Cow::Owned(name.to_owned()), value::from_amqp(header)));
            }
        }
        details
    }

    fn span_attributes(&self) -> Vec<KeyValue> {
        vec![
            KeyValue::new("messaging.rabbitmq.destination.routing_key", self.routing_key.clone()),
            KeyValue::new(
                "messaging.rabbitmq.message.delivery_tag",
                i64::try_from(self.delivery_tag).unwrap_or(i64::MAX),
            ),
        ]
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Shows no header values.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("redelivered", &self.redelivered)
            .field("delivery_tag", &self.delivery_tag)
            .finish_non_exhaustive()
    }
}

/// A received message as the portable layer's.
pub(crate) fn deliver(received: Received, epoch: u64, now: Timestamp) -> driver::Delivery {
    let Received { delivery_tag, exchange, routing_key, redelivered, properties, data, .. } = received;
    let Decoded { envelope, failed_attempts, history, enqueued, delivery_count } =
        codec::decode(&properties, Bytes::from(data), now);
    let mut delivery = driver::Delivery::new(Arc::new(envelope), Token { epoch, tag: delivery_tag });
    delivery.receive_count = match delivery_count {
        Some(before) => Some(before.saturating_add(1)),
        // Without a count, only a first delivery is certain.
        None => (!redelivered).then_some(1),
    };
    delivery.failed_attempts = failed_attempts.saturating_add(delivery_count.unwrap_or(0));
    delivery.history = history;
    delivery.is_dead_letter = is_dead_letter(&properties);
    delivery.enqueued = enqueued.map(|at| (at, Clock::Publisher));
    delivery.native = Some(Arc::new(Message {
        exchange: exchange.into(),
        routing_key: routing_key.into(),
        redelivered,
        delivery_tag,
        properties,
    }));
    delivery
}

/// Whether a message has expired where the broker could not see it: in a delay queue, which must not be cut short by it.
pub(crate) fn has_expired_on_the_way(delivery: &driver::Delivery, now: Timestamp) -> bool {
    let message = delivery.native.as_ref().and_then(|native| native.as_any().downcast_ref::<Message>());
    !delivery.is_dead_letter
        && delivery.envelope.is_expired(now)
        && message.is_some_and(|message| {
            message.properties.expiration().is_none() && died_in(&message.properties).is_some()
        })
}

/// Whether it was rejected by us, or dead-lettered by the broker from a queue that is no delay queue.
fn is_dead_letter(properties: &BasicProperties) -> bool {
    let headers = properties.headers().as_ref();
    headers.is_some_and(|headers| headers.contains_key(wire::DEAD_LETTER_REASON))
        || died_in(properties).is_some_and(|queue| !delay::is_tier(queue))
}

/// The queue that the broker dead-lettered it from last: of `x-death`, which it keeps newest first.
fn died_in(properties: &BasicProperties) -> Option<&[u8]> {
    let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(newest) = deaths.as_slice().first()? else { return None };
    Some(newest.inner().get("queue")?.as_long_string()?.as_bytes())
}
