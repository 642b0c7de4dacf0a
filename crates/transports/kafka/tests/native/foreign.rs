//! Records that another client library has made.

use std::time::Duration;

use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline_core::{Envelope, Failure, HeaderValue, IdOrigin, Order};
use throughline_kafka::rdkafka;

use crate::rig::{Rig, name, next, options};

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_record_has_its_place_for_an_id_and_keeps_its_headers_over_a_retry() {
    let Some(rig) =
        Rig::new("a_foreign_record_has_its_place_for_an_id_and_keeps_its_headers_over_a_retry").await
    else {
        return;
    };
    let topic = rig.topic("partitions=1&retry=topic").await;
    let producer: FutureProducer = rig.config().create().unwrap();
    let headers = OwnedHeaders::new()
        .insert(Header { key: "a", value: Some("1") })
        .insert(Header { key: "", value: Some("nameless") })
        .insert(Header::<&str> { key: "a", value: None })
        .insert(Header { key: "ce_type", value: Some(&b"\xff"[..]) });
    let record =
        FutureRecord::<str, str>::to(name(&topic)).key("k").payload("body").headers(headers).timestamp(1_000);
    producer.send(record, Duration::from_secs(10)).await.unwrap();
    let mut consumer =
        rig.consumer_with(&topic, throughline_core::ConsumeOptions { order: Order::Any, ..options() }).await;
    let first = next(&mut consumer).await;
    let envelope = (**first.envelope()).clone();
    assert_eq!(
        (envelope.id.clone(), envelope.id_origin),
        (format!("{}-0-0", name(&topic)), IdOrigin::Broker)
    );
    assert_eq!(envelope.time.unwrap().as_millis(), 1_000);
    assert_eq!(
        envelope.headers.get_all("a").collect::<Vec<_>>(),
        [&HeaderValue::from("1"), &HeaderValue::Null]
    );
    assert_eq!(envelope.headers.get_str(""), Some("nameless"));
    assert!(matches!(envelope.headers.get("ce_type"), Some(HeaderValue::Bytes(_))));
    first.retry(Duration::ZERO, Failure::new("timeout")).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((**again.envelope() == envelope, again.attempt()), (true, 2));
    again.ack().await.unwrap();
    consumer.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_name_that_is_not_utf_8_is_carried_and_panics_nowhere() {
    let Some(rig) = Rig::new("a_header_name_that_is_not_utf_8_is_carried_and_panics_nowhere").await else {
        return;
    };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    // "caf\xe9" and "v", as the consumer shows such a header.
    let value = HeaderValue::Typed { kind: "kafka:header".into(), text: "Y2Fm6Q==:dg==".into() };
    let envelope = Envelope::builder("t").header("caf\\xe9", value).payload("x").build();
    publisher.publish(envelope.clone()).await.unwrap();
    let mut consumer = rig.consumer(&topic).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(**delivery.envelope(), envelope);
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    // The name is on the wire as it is: the client library's own reader cannot take it.
    let raw = rig.raw_get(name(&topic), 0).await;
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        raw.headers().unwrap().iter().map(|header| header.key.len()).sum::<usize>()
    }));
    assert!(read.is_err());
    publisher.close().await.unwrap();
    rig.finish().await;
}
