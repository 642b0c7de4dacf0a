//! A received message in the client's own terms.

use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_sqs::types::{self, MessageAttributeValue, MessageSystemAttributeName};
use opentelemetry::KeyValue;
use throughline_aws::attribute::{Attribute, AttributeValue};
use throughline_aws::codec::{self, Decoded, Received};
use throughline_core::driver::{self, Clock, Native, Token, wire};
use throughline_core::{Envelope, HeaderValue, Timestamp};

use crate::failures::Known;

/// The client's own message behind a delivery: `delivery.native::<throughline_sqs::Message>()`.
///
/// The payload is in the envelope.
#[derive(Clone)]
#[non_exhaustive]
pub struct Message {
    /// SQS's id of it, the same at each delivery.
    pub message_id: String,
    /// What this delivery is settled by.
    pub receipt_handle: String,
    /// `SentTimestamp`, `ApproximateReceiveCount` and the like.
    pub system_attributes: HashMap<MessageSystemAttributeName, String>,
    /// The message attributes as they came.
    pub attributes: HashMap<String, MessageAttributeValue>,
    /// The topic's ARN, where SNS had wrapped it.
    pub topic: Option<String>,
}

impl Message {
    /// A system attribute that is a number.
    fn number<T: std::str::FromStr>(&self, name: &MessageSystemAttributeName) -> Option<T> {
        self.system_attributes.get(name)?.parse().ok()
    }

    /// Whether its body is the payload and nothing in it is ours: another program has sent it, straight to the queue.
    pub(crate) fn is_foreign(&self, envelope: &Envelope) -> bool {
        envelope.id == self.message_id && !self.attributes.keys().any(|name| codec::is_own(name))
    }

    /// How often SQS has delivered it, this time included.
    pub fn receive_count(&self) -> Option<u32> {
        self.number(&MessageSystemAttributeName::ApproximateReceiveCount)
    }
}

impl Native for Message {
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        let text = |text: &str| HeaderValue::Text(text.to_owned());
        let mut details = vec![(Cow::Borrowed("MessageId"), text(&self.message_id))];
        let mut system: Vec<_> = self.system_attributes.iter().collect();
        system.sort_unstable_by_key(|(name, _)| name.as_str());
        details.extend(
            system.into_iter().map(|(name, value)| (Cow::Owned(name.as_str().to_owned()), text(value))),
        );
        if let Some(topic) = &self.topic {
            details.push((Cow::Borrowed("TopicArn"), text(topic)));
        }
        for (name, value) in &self.attributes {
            if let Some(value) = value.string_value().filter(|_| name.starts_with("tl-dead-letter-")) {
                details.push((Cow::Owned(name.clone()), text(value)));
            }
        }
        details
    }

    fn span_attributes(&self) -> Vec<KeyValue> {
        Vec::new()
    }

    fn native_id(&self) -> Option<String> {
        Some(self.message_id.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Shows neither attributes' values nor the receipt handle.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("message_id", &self.message_id)
            .field("receive_count", &self.receive_count())
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

fn attribute((name, value): (&String, &MessageAttributeValue)) -> Attribute {
    let text = |value: &MessageAttributeValue| value.string_value.clone().unwrap_or_default();
    Attribute {
        name: name.clone(),
        // Most have no label: nothing is copied then.
        data_type: match value.data_type.as_str() {
            "String" => "String".into(),
            "Binary" => "Binary".into(),
            other => other.to_owned().into(),
        },
        value: match &value.binary_value {
            Some(bytes) => AttributeValue::Binary(bytes.clone().into_inner().into()),
            None => AttributeValue::Text(text(value)),
        },
    }
}

/// A message as the portable layer's, and what settles it.
pub(crate) struct Delivered {
    pub(crate) delivery: driver::Delivery,
    pub(crate) native: Arc<Message>,
    pub(crate) group: Option<String>,
    /// The body as it came, where nobody can decode the message.
    pub(crate) undecodable: Option<String>,
}

/// Decodes a message, out of SNS's wrapping if it is in one.
pub(crate) fn deliver(message: types::Message, tag: u64, known: impl Fn(&str) -> Option<Known>) -> Delivered {
    let types::Message { message_id, receipt_handle, body, attributes, message_attributes, .. } = message;
    let mut native = Message {
        message_id: message_id.unwrap_or_default(),
        receipt_handle: receipt_handle.unwrap_or_default(),
        system_attributes: attributes.unwrap_or_default(),
        attributes: message_attributes.unwrap_or_default(),
        topic: None,
    };
    let system = |name| native.system_attributes.get(&name).cloned();
    let group = system(MessageSystemAttributeName::MessageGroupId);
    let xray = system(MessageSystemAttributeName::AwsTraceHeader);
    let Decoded { envelope, failed_attempts, history, delay, topic, undecodable } = codec::decode(Received {
        body: body.unwrap_or_default(),
        attributes: native.attributes.iter().map(attribute).collect(),
        message_id: native.message_id.clone(),
        group: group.clone(),
        xray,
    });
    native.topic = topic;

    let known = known(&native.message_id).unwrap_or_default();
    let receive_count = native.receive_count();
    let mut delivery = driver::Delivery::new(Arc::new(envelope), Token { epoch: 0, tag });
    delivery.receive_count = receive_count;
    let redeliveries = receive_count.unwrap_or(1).saturating_sub(1).saturating_sub(known.releases);
    delivery.failed_attempts = failed_attempts.saturating_add(redeliveries);
    delivery.history = known.history.or(history);
    // One of ours, or one that the queue's redrive policy has moved.
    delivery.is_dead_letter = native.attributes.contains_key(wire::DEAD_LETTER_REASON)
        || native.system_attributes.contains_key(&MessageSystemAttributeName::DeadLetterQueueSourceArn);
    let sent = native.number(&MessageSystemAttributeName::SentTimestamp).map(Timestamp::from_millis);
    delivery.enqueued = match (known.due, sent) {
        (Some(due), _) => Some((due, Clock::Publisher)),
        // Of a later delivery nobody knows from when on it waited.
        (None, Some(sent)) if receive_count.is_none_or(|count| count <= 1) => {
            Some((sent.after(delay), Clock::Broker))
        }
        _ => None,
    };
    let native = Arc::new(native);
    delivery.native = Some(native.clone());
    Delivered { delivery, native, group, undecodable }
}
