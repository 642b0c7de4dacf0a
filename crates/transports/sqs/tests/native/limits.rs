//! Every limit that SQS has for what we ask of it: told before the network, with the field, what it is, and what it may be.

use std::time::Duration;

use throughline_core::{Envelope, Error, ErrorKind, SendOptions};
use throughline_sqs::aws_sdk_sqs::types::QueueAttributeName;

use crate::rig::{Rig, message, next, unique};

/// Whether an error is of this kind and says all of this.
fn says(error: &Error, kind: ErrorKind, parts: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{text} does not say {parts:?}");
}

/// A message with a header that makes it this large in all.
fn of_size(bytes: usize) -> Envelope {
    let mut envelope = message("x");
    envelope.time = None;
    let own = "x".len()
        + ("tl-id".len() + "String".len() + envelope.id.len())
        + ("tl-type".len() + "String".len() + envelope.message_type.as_ref().map_or(0, String::len))
        + ("h".len() + "String".len());
    envelope.headers.append("h", "v".repeat(bytes - own));
    envelope
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_of_a_message_is_told_before_it_is_sent() {
    let Some(rig) = Rig::new("every_limit_of_a_message_is_told_before_it_is_sent").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let fifo = rig.queue("&fifo=true").await;
    let in_order = rig.publisher(&fifo).await;
    let small = rig.queue("").await;
    let (client, url) = rig.raw(&small).await;
    let asked = client.set_queue_attributes().queue_url(url);
    asked.attributes(QueueAttributeName::MaximumMessageSize, "1024").send().await.unwrap();
    let tight = rig.publisher(&small).await;

    let limit = ErrorKind::LimitExceeded;
    let second = SendOptions::delayed(Duration::from_secs(1));
    let long = SendOptions::delayed(Duration::from_secs(901));
    let body = |bytes: usize| Envelope::builder("native.test").payload(vec![b'x'; bytes]).build();
    for (answer, kind, parts) in [
        (
            publisher.publish(body(1_047_553)).await,
            limit,
            &["payload is 1047553 bytes", "limit is 1047552"][..],
        ),
        (publisher.publish(of_size(1_048_577)).await, limit, &["MaximumMessageSize", "1048577", "1048576"]),
        (publisher.publish_with(message("x"), long).await, limit, &["delay is 15m 1s", "limit is 15m"]),
        (in_order.publish_with(message("x"), second).await, ErrorKind::Unsupported, &["cannot delay"]),
        (tight.publish(body(1_000)).await, limit, &["payload is 1000 bytes", "limit is 896"]),
        (tight.publish(of_size(1_025)).await, limit, &["MaximumMessageSize", "1025 bytes", "1024 bytes"]),
    ] {
        says(&answer.unwrap_err(), kind, parts);
    }
    assert_eq!(rig.proxy.calls("SendMessageBatch"), 0, "something was sent");
    // At the limits it is taken.
    publisher.publish(of_size(1_048_576)).await.unwrap();
    tight.publish(of_size(1_024)).await.unwrap();
    publisher.publish_with(message("x"), SendOptions::delayed(Duration::from_secs(900))).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_limit_of_a_queue_is_told_before_it_is_made() {
    let Some(rig) = Rig::new("every_limit_of_a_queue_is_told_before_it_is_made").await else { return };
    for (option, range) in [
        ("visibility=43201s", "0s to 43200s"),
        ("retention=59s", "60s to 1209600s"),
        ("retention=1209601s", "60s to 1209600s"),
        ("queue_delay=901s", "0s to 900s"),
        ("queue_delay=500ms", "whole seconds"),
        ("max_receives=0", "1 to 1000"),
        ("max_receives=1001", "1 to 1000"),
    ] {
        let address = rig.address(&unique("native"), &format!("&{option}"));
        let error = rig.transport.create(&address).await.unwrap_err();
        let (name, _) = option.split_once('=').unwrap();
        says(&error, ErrorKind::InvalidAddress, &[name, range]);
    }
    let long = "q".repeat(81);
    let error = rig.transport.create(&rig.address(&long, "")).await.unwrap_err();
    says(&error, ErrorKind::InvalidAddress, &["the queue's name is 81 characters, the limit is 80"]);
    assert_eq!(rig.proxy.calls("CreateQueue"), 0, "something was made");
    for option in ["visibility=43200s", "retention=60s", "queue_delay=900s", "max_receives=1000"] {
        rig.queue(&format!("&{option}")).await;
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_past_the_twelve_hours_is_told_and_the_message_comes_again() {
    let Some(rig) = Rig::new("a_retry_past_the_twelve_hours_is_told").await else { return };
    let queue = rig.queue("").await;
    rig.publisher(&queue).await.publish(message("x")).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let error = next(&mut consumer).await.retry(Duration::from_secs(43_201), "busy").await.unwrap_err();
    says(&error, ErrorKind::LimitExceeded, &["the delay of the retry is 43201 s", "the limit is 43"]);
    next(&mut consumer).await.ack().await.unwrap();
    consumer.close().await.unwrap();
    rig.finish().await;
}
