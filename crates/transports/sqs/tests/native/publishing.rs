//! Batches, limits, delays, and everything odd.

use std::time::{Duration, Instant};

use throughline_core::{Envelope, ErrorKind, HeaderValue, SendOptions};

use crate::rig::{Rig, body, message, next};

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_takes_one_request_for_ten_messages_each_way() {
    const COUNT: usize = 1000;
    let Some(rig) = Rig::new("a_backlog_takes_one_request_for_ten_messages_each_way").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let results = publisher.publish_batch((0..COUNT).map(|n| message(n.to_string()))).await;
    assert!(results.iter().all(|receipt| receipt.as_ref().unwrap().native_id.is_some()));
    let sends = rig.proxy.calls("SendMessageBatch");
    assert!(sends <= 105, "{sends} requests for {COUNT} messages");

    let mut consumer = rig.consumer(&queue).await;
    let mut seen = std::collections::HashSet::new();
    while seen.len() < COUNT {
        let delivery = next(&mut consumer).await;
        assert!(seen.insert(body(&delivery)), "a message came twice");
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    let (receives, deletes) = (rig.proxy.calls("ReceiveMessage"), rig.proxy.calls("DeleteMessageBatch"));
    throughline_testkit::endpoint::measured(
        "sqs",
        &format!("{COUNT} messages: {sends} requests to publish, {receives} to receive, {deletes} to delete"),
    );
    assert!(receives + deletes <= 210, "{receives} to receive and {deletes} to delete {COUNT} messages");
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_odd_comes_through() {
    let Some(rig) = Rig::new("everything_odd_comes_through").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let mut sent = vec![
        Envelope::builder("empty").build(),
        Envelope::builder("tombstone").tombstone().build(),
        Envelope::builder("binary").payload(vec![0, 0xff, 0xfe]).build(),
        Envelope::builder("control").payload("a\u{1}b\u{fffe}").build(),
        Envelope::builder("")
            .id("\u{1}")
            .source("")
            .key(vec![0xff, 0])
            .correlation_id("")
            .payload("x")
            .build(),
        Envelope::builder("odd names")
            .header("", "an empty name")
            .header("AWS.x", "reserved")
            .header("ünïcode", "wörld")
            .header("twice", "1")
            .header("twice", vec![0xfe])
            .header("null", HeaderValue::Null)
            .header("empty", "")
            .header("tl-id", "mine")
            .header("bytes", vec![0xff])
            .header("n", HeaderValue::Typed { kind: "sqs:Number".into(), text: "7".into() })
            .header("amqp", HeaderValue::Typed { kind: "amqp:i32".into(), text: "7".into() })
            .expires_in(Duration::from_secs(3600))
            .priority(3)
            .idempotency_key("k")
            .payload("x")
            .build(),
    ];
    for count in [10, 11, 12, 60] {
        let headers = (0..count).map(|n| (format!("h{n}"), "v".repeat(n)));
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        sent.push(
            Envelope::builder("many").headers(headers).header("traceparent", trace).payload("x").build(),
        );
    }
    for result in publisher.publish_batch(sent.clone()).await {
        result.unwrap();
    }
    let mut consumer = rig.consumer(&queue).await;
    for _ in 0..sent.len() {
        let delivery = next(&mut consumer).await;
        let at = sent.iter().position(|sent| sent.id == delivery.id()).expect("one that was sent");
        assert_eq!(**delivery.envelope(), sent.remove(at));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_checked_before_the_network_and_named() {
    let Some(rig) = Rig::new("limits_are_checked_before_the_network_and_named").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let limit = 1_048_576;
    let payload = publisher.capabilities().limits.payload_bytes.unwrap();
    // Beside the body: tl-id and tl-type, with "String" and one byte each, and a header of that length.
    let of_size = |bytes: usize| {
        let header = "x".repeat(bytes - payload - (5 + 6 + 1) - (7 + 6 + 1) - (1 + 6));
        let envelope = Envelope::builder("t").id("i").header("h", header).payload("x".repeat(payload));
        let mut envelope = envelope.build();
        envelope.time = None;
        envelope
    };
    let before = rig.proxy.calls("SendMessageBatch");
    let error = publisher.publish(of_size(limit + 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let text = error.to_string();
    assert!(
        text.contains(&format!("{} bytes", limit + 1)) && text.contains(&format!("{limit} bytes")),
        "{text}"
    );
    let late = SendOptions::delayed(Duration::from_secs(901));
    let error = publisher.publish_with(message("x"), late).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert_eq!(rig.proxy.calls("SendMessageBatch"), before, "nothing is sent");
    publisher.publish(of_size(limit)).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.payload().len(), payload);
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_message_comes_later_and_its_delay_is_not_queue_delay() {
    let Some(rig) = Rig::new("a_delayed_message_comes_later_and_its_delay_is_not_queue_delay").await else {
        return;
    };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let mut consumer = rig.consumer(&queue).await;
    let delay = Duration::from_secs(2);
    let started = Instant::now();
    publisher.publish_with(message("later"), SendOptions::delayed(delay)).await.unwrap();
    publisher.publish(message("now")).await.unwrap();
    let first = next(&mut consumer).await;
    let second = next(&mut consumer).await;
    assert_eq!((body(&first).as_str(), body(&second).as_str()), ("now", "later"));
    assert!(started.elapsed() >= delay.mul_f32(0.9), "after {:?}", started.elapsed());
    let waited = second.queue_delay().unwrap();
    assert!(
        waited.clamped || waited.delay <= started.elapsed().saturating_sub(delay) + Duration::from_secs(1),
        "{waited:?}"
    );
    first.ack().await.unwrap();
    second.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
