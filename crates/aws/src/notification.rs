//! What SNS wraps around a message that it delivers to a queue without raw delivery.
//!
//! <https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html>

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use crate::attribute::{Attribute, AttributeValue};

/// A message out of its wrapping.
#[derive(Clone, PartialEq, Eq)]
pub struct Notification {
    /// SNS's id of it.
    pub message_id: String,
    /// The topic that it was published to.
    pub topic: String,
    /// What was published.
    pub message: String,
    /// Its subject, if it has one.
    pub subject: Option<String>,
    /// When SNS took it, in RFC 3339.
    pub timestamp: Option<String>,
    /// Its attributes.
    pub attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wire {
    r#type: String,
    message_id: String,
    topic_arn: String,
    message: String,
    subject: Option<String>,
    timestamp: Option<String>,
    #[serde(default)]
    message_attributes: BTreeMap<String, WireAttribute>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireAttribute {
    r#type: String,
    value: String,
}

impl Notification {
    /// Unwraps a queue's message; `None` for a body that SNS did not wrap.
    pub fn unwrap(body: &str) -> Option<Self> {
        // Cheap for all other bodies.
        if !body.starts_with('{') || !body.contains("\"TopicArn\"") {
            return None;
        }
        let wire: Wire = serde_json::from_str(body).ok()?;
        if wire.r#type != "Notification" {
            return None;
        }
        let attributes = wire.message_attributes.into_iter().filter_map(|(name, attribute)| {
            let WireAttribute { r#type, value } = attribute;
            let value = if r#type.starts_with("Binary") {
                AttributeValue::Binary(BASE64.decode(&value).ok()?.into())
            } else {
                AttributeValue::Text(value)
            };
            Some(Attribute { name, data_type: r#type.into(), value })
        });
        Some(Self {
            attributes: attributes.collect(),
            message_id: wire.message_id,
            topic: wire.topic_arn,
            message: wire.message,
            subject: wire.subject,
            timestamp: wire.timestamp,
        })
    }
}

/// Shows no message.
impl std::fmt::Debug for Notification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notification")
            .field("message_id", &self.message_id)
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wrapped_message_comes_out_with_its_attributes() {
        let body = r#"{"Type":"Notification","MessageId":"m-1","TopicArn":"arn:aws:sns:eu-west-1:1:t",
            "Subject":"s","Message":"{\"a\":1}","Timestamp":"2026-11-22T10:00:00.123Z","SignatureVersion":"1",
            "Signature":"x","SigningCertURL":"https://x","UnsubscribeURL":"https://x",
            "MessageAttributes":{"traceparent":{"Type":"String","Value":"00-x"},"b":{"Type":"Binary","Value":"/w=="},
            "n":{"Type":"Number","Value":"7"}}}"#;
        let notification = Notification::unwrap(body).unwrap();
        assert_eq!((&*notification.message, &*notification.message_id), (r#"{"a":1}"#, "m-1"));
        let binary = AttributeValue::Binary(vec![0xff].into());
        assert_eq!(
            notification.attributes[0],
            Attribute { name: "b".into(), data_type: "Binary".into(), value: binary }
        );
        assert_eq!(notification.attributes[2], Attribute::text("traceparent", "00-x"));
        assert!(!format!("{notification:?}").contains("00-x"));
    }

    #[test]
    fn another_body_is_not_touched() {
        for body in [
            "",
            "x",
            "{}",
            r#"{"TopicArn":1}"#,
            r#"{"Type":"SubscriptionConfirmation","TopicArn":"a","MessageId":"m","Message":"x"}"#,
        ] {
            assert_eq!(Notification::unwrap(body), None, "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "\\{\"TopicArn\"\\PC*") {
            let _ = Notification::unwrap(&text);
        }
    }
}
