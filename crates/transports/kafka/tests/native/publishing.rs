//! Delivery reports, keys, limits.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::message::Headers as _;
use throughline_core::{Envelope, ErrorKind, Headers, PublishOptions, Publisher, SendOptions, Timestamp};
use throughline_kafka::rdkafka;

use crate::rig::{Rig, body, keyed, message, name, next, record, unique};

#[tokio::test(flavor = "multi_thread")]
async fn every_message_has_its_own_place_for_a_receipt_and_order_is_kept() {
    let Some(rig) = Rig::new("every_message_has_its_own_place_for_a_receipt_and_order_is_kept").await else {
        return;
    };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    let count: usize = 3_000;
    let results = publisher.publish_batch((0..count).map(|n| message(n.to_string()))).await;
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result.unwrap().native_id.unwrap(), format!("0:{n}"));
    }
    let mut consumer = rig.consumer(&topic).await;
    for n in 0..count {
        let delivery = next(&mut consumer).await;
        assert_eq!((body(&delivery), record(&delivery).offset), (n.to_string(), i64::try_from(n).unwrap()));
        delivery.ack().await.unwrap();
    }
    rig.settles_at(&topic, 0).await;
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_chooses_the_partition_as_javas_clients_do() {
    let Some(rig) = Rig::new("a_key_chooses_the_partition_as_javas_clients_do").await else { return };
    let topic = rig.topic("partitions=4").await;
    let publisher = rig.publisher(&topic).await;
    // murmur2, seed 0x9747b28c, sign bit off, modulo 4: org.apache.kafka.common.utils.Utils.murmur2 of these keys.
    let murmur2 = |key: &[u8]| {
        let m: u32 = 0x5bd1_e995;
        let mut h: u32 = 0x9747_b28c ^ u32::try_from(key.len()).unwrap();
        let chunks = key.chunks_exact(4);
        let rest = chunks.remainder();
        for chunk in chunks {
            let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(m);
            k ^= k >> 24;
            h = h.wrapping_mul(m) ^ k.wrapping_mul(m);
        }
        for (shift, byte) in rest.iter().enumerate().rev() {
            h ^= u32::from(*byte) << (8 * shift);
        }
        if !rest.is_empty() {
            h = h.wrapping_mul(m);
        }
        h ^= h >> 13;
        h = h.wrapping_mul(m);
        ((h ^ (h >> 15)) & 0x7fff_ffff) % 4
    };
    let keys: Vec<_> = (0..40).map(|n| format!("profile-{n}")).collect();
    let results = publisher.publish_batch(keys.iter().map(|key| keyed(key, key.clone()))).await;
    let mut used = HashMap::new();
    for (key, result) in keys.iter().zip(results) {
        let place = result.unwrap().native_id.unwrap();
        let partition: u32 = place.split_once(':').unwrap().0.parse().unwrap();
        assert_eq!(partition, murmur2(key.as_bytes()), "{key}");
        *used.entry(partition).or_insert(0) += 1;
    }
    assert_eq!(used.len(), 4, "{used:?}");
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_consumer_sees_key_headers_payload_and_time_as_they_are() {
    let Some(rig) = Rig::new("a_foreign_consumer_sees_key_headers_payload_and_time_as_they_are").await else {
        return;
    };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let time = Timestamp::from_millis(1_700_000_000_123);
    let envelope = Envelope::builder("orders.placed")
        .key("k")
        .time(time)
        .header("dup", "1")
        .header("dup", vec![0xff])
        .header("null", throughline_core::HeaderValue::Null)
        .header("empty", "")
        .header("traceparent", traceparent)
        .payload(&b"\x00\xff"[..])
        .build();
    publisher.publish(envelope.clone()).await.unwrap();
    publisher.publish(Envelope::builder("orders.gone").key("k").tombstone().build()).await.unwrap();
    publisher.publish(Envelope::builder("orders.empty").build()).await.unwrap();
    let raw = rig.raw_get(name(&topic), 0).await;
    assert_eq!((raw.key(), raw.payload()), (Some(&b"k"[..]), Some(&b"\x00\xff"[..])));
    assert_eq!(raw.timestamp(), rdkafka::Timestamp::CreateTime(1_700_000_000_123));
    let headers: Vec<_> = raw.headers().unwrap().iter().map(|header| (header.key, header.value)).collect();
    assert_eq!(headers[0], ("traceparent", Some(traceparent.as_bytes())));
    assert_eq!(
        headers[1..5],
        [("dup", Some(&b"1"[..])), ("dup", Some(&b"\xff"[..])), ("null", None), ("empty", Some(&b""[..]))]
    );
    assert!(headers.contains(&("tl-id", Some(envelope.id.as_bytes()))));
    assert!(headers.contains(&("tl-type", Some(b"orders.placed"))));
    let (tombstone, empty) = (rig.raw_get(name(&topic), 1).await, rig.raw_get(name(&topic), 2).await);
    assert_eq!((tombstone.payload(), empty.payload(), empty.key()), (None, Some(&b""[..]), None));
    let mut consumer = rig.consumer(&topic).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(**delivery.envelope(), envelope);
    delivery.ack().await.unwrap();
    let delivery = next(&mut consumer).await;
    assert!(delivery.envelope().payload.is_none() && record(&delivery).is_tombstone);
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_topic_would_refuse_is_refused_before_and_the_limit_is_named() {
    let Some(rig) = Rig::new("what_the_topic_would_refuse_is_refused_before_and_the_limit_is_named").await
    else {
        return;
    };
    let topic = rig.topic("partitions=1&config.max.message.bytes=20000").await;
    let publisher = rig.publisher(&topic).await;
    assert_eq!(publisher.capabilities().limits.payload_bytes, Some(20_000 - 2_048));
    let error = publisher.publish(message("x".repeat(20_001))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let headers: Headers = [("big", "x".repeat(15_000))].into_iter().collect();
    let mut envelope = message("x".repeat(6_000));
    envelope.headers = headers;
    let error = publisher.publish(envelope.clone()).await.unwrap_err();
    assert!(error.to_string().contains("max.message.bytes"), "{error}");
    // As large as we measure it at most, the topic takes it; and many small ones are not made into one batch too large.
    envelope.payload = Some(vec![b'x'; 4_500].into());
    publisher.publish(envelope).await.unwrap();
    let results = publisher.publish_batch((0..500).map(|_| message("x".repeat(1_000)))).await;
    assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|result| result.is_err()));
    let delayed = publisher.publish_with(message("x"), SendOptions::delayed(Duration::from_secs(1))).await;
    assert_eq!(delayed.unwrap_err().kind(), ErrorKind::Unsupported);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_makes_publishing_wait() {
    let Some(rig) = Rig::new("a_full_queue_makes_publishing_wait").await else { return };
    let topic = rig.topic("partitions=1&kafka.queue.buffering.max.messages=10").await;
    let options = PublishOptions { max_in_flight: 5_000, ..PublishOptions::default() };
    let publisher = Publisher::new(rig.transport.publisher(&topic).await.unwrap(), &topic, options);
    let results = publisher.publish_batch((0..2_000).map(|n| message(n.to_string()))).await;
    assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|result| result.is_err()));
    assert_eq!(rig.depth(&topic).await, 2_000);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_is_kept_where_the_broker_stamps_records_itself() {
    let Some(rig) = Rig::new("a_time_is_kept_where_the_broker_stamps_records_itself").await else { return };
    let topic = rig.topic("partitions=1&config.message.timestamp.type=LogAppendTime").await;
    let publisher = rig.publisher(&topic).await;
    let time = Timestamp::from_millis(1_700_000_000_123);
    let mut envelope = message("x");
    envelope.time = Some(time);
    publisher.publish(envelope).await.unwrap();
    let mut consumer = rig.consumer(&topic).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.envelope().time, Some(time));
    assert!(matches!(record(&delivery).timestamp, rdkafka::Timestamp::LogAppendTime(_)));
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_under_a_publisher_is_a_failure_and_after_close_nothing_goes() {
    let test = "a_topic_that_is_deleted_under_a_publisher_is_a_failure_and_after_close_nothing_goes";
    let Some(rig) = Rig::new(test).await else { return };
    let topic = rig.address(&unique("native"), "partitions=1&kafka.message.timeout.ms=3000");
    rig.transport.create(&topic).await.unwrap();
    let options = PublishOptions { timeout: Duration::from_secs(6), ..PublishOptions::default() };
    let publisher = Publisher::new(rig.transport.publisher(&topic).await.unwrap(), &topic, options);
    publisher.publish(message("x")).await.unwrap();
    rig.transport.delete(&topic).await.unwrap();
    assert_eq!(rig.transport.publisher(&topic).await.err().unwrap().kind(), ErrorKind::NotFound);
    let error = publisher.publish(message("y")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Timeout), "{error:?}");
    publisher.close().await.unwrap();
    assert_eq!(publisher.publish(message("z")).await.unwrap_err().kind(), ErrorKind::Closed);
    // Publishing has not made it again.
    assert_eq!(rig.transport.depth(&topic).await.unwrap_err().kind(), ErrorKind::NotFound);
    rig.finish().await;
}
