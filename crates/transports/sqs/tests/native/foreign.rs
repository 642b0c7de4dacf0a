//! Messages as other programs send and see them: the client library itself.

use std::collections::HashMap;

use throughline_core::{Envelope, HeaderValue, IdOrigin};
use throughline_sqs::aws_sdk_sqs::primitives::Blob;
use throughline_sqs::aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
};

use crate::rig::{Rig, next};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn attribute(data_type: &str, text: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type(data_type).string_value(text).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_consumer_sees_the_payload_and_a_plain_traceparent() {
    let Some(rig) = Rig::new("a_foreign_consumer_sees_the_payload_and_a_plain_traceparent").await else {
        return;
    };
    let queue = rig.queue("").await;
    let envelope = Envelope::builder("campaign.sync_report")
        .header("traceparent", TRACEPARENT)
        .header("tenant", "5000")
        .json(&serde_json::json!({ "report": 7 }))
        .unwrap();
    rig.publisher(&queue).await.publish(envelope.build()).await.unwrap();
    let (client, url) = rig.raw(&queue).await;
    let got = client.receive_message().queue_url(url).message_attribute_names("All").send().await.unwrap();
    let message = &got.messages()[0];
    assert_eq!(message.body(), Some(r#"{"report":7}"#));
    let attributes: &HashMap<_, _> = message.message_attributes().unwrap();
    for (name, value) in
        [("traceparent", TRACEPARENT), ("tenant", "5000"), ("content-type", "application/json")]
    {
        let attribute = &attributes[name];
        assert_eq!((attribute.data_type(), attribute.string_value()), ("String", Some(value)));
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_has_its_trace_its_types_and_the_brokers_id() {
    let Some(rig) = Rig::new("a_foreign_message_has_its_trace_its_types_and_the_brokers_id").await else {
        return;
    };
    let queue = rig.queue("").await;
    let (client, url) = rig.raw(&queue).await;
    let binary = MessageAttributeValue::builder().data_type("Binary").binary_value(Blob::new([0xff])).build();
    let xray = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";
    let xray = MessageSystemAttributeValue::builder().data_type("String").string_value(xray).build().unwrap();
    client
        .send_message()
        .queue_url(url)
        .message_body("hello")
        .message_attributes("number", attribute("Number", "42"))
        .message_attributes("labelled", attribute("String.uuid", "u-1"))
        .message_attributes("binary", binary.unwrap())
        .message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, xray)
        .send()
        .await
        .unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope();
    assert_eq!(envelope.id_origin, IdOrigin::Broker);
    assert_eq!(delivery.payload(), b"hello");
    let typed =
        |kind: &'static str, text: &str| HeaderValue::Typed { kind: kind.into(), text: text.to_owned() };
    assert_eq!(envelope.headers.get("number"), Some(&typed("sqs:Number", "42")));
    assert_eq!(envelope.headers.get("labelled"), Some(&typed("sqs:String.uuid", "u-1")));
    assert_eq!(envelope.headers.get("binary"), Some(&HeaderValue::from(vec![0xff])));
    // From X-Ray's header, where there is no other.
    assert_eq!(envelope.headers.trace("traceparent"), Some(TRACEPARENT));
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    rig.finish().await;
}
