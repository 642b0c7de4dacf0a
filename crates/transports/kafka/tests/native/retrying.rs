//! Retry, reject, order of keys.

use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::message::Headers as _;
use throughline_core::capabilities::RetryMeans;
use throughline_core::{ConsumeOptions, Envelope, ErrorKind, Failure, Order};
use throughline_kafka::rdkafka;

use crate::rig::{Rig, body, keyed, message, name, next, nothing, options, record, unique};

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_comes_back_in_its_place_with_its_history_and_others_go_on() {
    let Some(rig) = Rig::new("a_retry_comes_back_in_its_place_with_its_history_and_others_go_on").await
    else {
        return;
    };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let envelope = Envelope::builder("native.test").header("traceparent", traceparent).payload("x").build();
    publisher.publish(envelope.clone()).await.unwrap();
    let mut consumer = rig.consumer(&topic).await;
    let mut delivery = next(&mut consumer).await;
    for (attempt, delay) in
        [(1, Duration::from_millis(600)), (2, Duration::ZERO), (3, Duration::from_millis(50))]
    {
        assert_eq!(delivery.attempt(), attempt);
        let failure = Failure::new("timeout").message(format!("number {attempt}")).dependency("ads-api");
        let failed = Instant::now();
        delivery.retry(delay, failure).await.unwrap();
        publisher.publish(message("meanwhile")).await.unwrap();
        delivery = next(&mut consumer).await;
        if delay > Duration::from_millis(500) {
            assert_eq!(body(&delivery), "meanwhile");
            delivery.ack().await.unwrap();
            delivery = next(&mut consumer).await;
        } else if body(&delivery) == "meanwhile" {
            delivery.ack().await.unwrap();
            delivery = next(&mut consumer).await;
        } else {
            let other = next(&mut consumer).await;
            assert_eq!(body(&other), "meanwhile");
            other.ack().await.unwrap();
        }
        assert!(failed.elapsed() >= delay);
        assert_eq!((delivery.attempt(), record(&delivery).offset), (attempt + 1, 0));
        assert_eq!(**delivery.envelope(), envelope);
        let history = delivery.history().unwrap();
        assert_eq!(history.failures().len(), usize::try_from(attempt).unwrap());
        assert_eq!(history.last().unwrap().dependency.as_deref(), Some("ads-api"));
    }
    // It holds the group's position.
    assert_eq!(rig.depth(&topic).await, 4);
    delivery.ack().await.unwrap();
    rig.settles_at(&topic, 0).await;
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_key_overtakes_its_retried_message() {
    let Some(rig) = Rig::new("nothing_of_a_key_overtakes_its_retried_message").await else { return };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    publisher.publish(keyed("a", "a1")).await.unwrap();
    let mut consumer = rig.consumer(&topic).await;
    let delay = Duration::from_millis(900);
    let first = next(&mut consumer).await;
    let failed = Instant::now();
    first.retry(delay, Failure::new("timeout")).await.unwrap();
    for (key, body) in [("a", "a2"), ("b", "b1"), ("a", "a3")] {
        publisher.publish(keyed(key, body)).await.unwrap();
    }
    let other = next(&mut consumer).await;
    assert_eq!(body(&other), "b1");
    other.ack().await.unwrap();
    let again = next(&mut consumer).await;
    assert!(failed.elapsed() >= delay);
    assert_eq!((body(&again).as_str(), again.attempt()), ("a1", 2));
    // While it is out, its key waits; released, it is still the first.
    assert!(nothing(&mut consumer, Duration::from_millis(300)).await);
    again.release().await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((body(&again).as_str(), again.attempt()), ("a1", 2));
    again.ack().await.unwrap();
    for expected in ["a2", "a3"] {
        let delivery = next(&mut consumer).await;
        assert_eq!((body(&delivery).as_str(), delivery.attempt()), (expected, 1));
        delivery.ack().await.unwrap();
    }
    rig.settles_at(&topic, 0).await;
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn released_messages_come_again_in_order() {
    let Some(rig) = Rig::new("released_messages_come_again_in_order").await else { return };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    for n in 0..6 {
        publisher.publish(message(n.to_string())).await.unwrap();
    }
    let options = ConsumeOptions { max_unsettled: 4, ..options() };
    let mut consumer = rig.consumer_with(&topic, options).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(next(&mut consumer).await);
    }
    let last = held.pop().unwrap();
    for delivery in held.into_iter().rev() {
        delivery.release().await.unwrap();
    }
    last.ack().await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        let delivery = next(&mut consumer).await;
        seen.push(body(&delivery));
        delivery.ack().await.unwrap();
    }
    // What was prefetched before the others were released is not taken back.
    let mut released: Vec<_> = seen.iter().filter(|body| ["0", "1", "2"].contains(&body.as_str())).collect();
    assert_eq!(released.len(), 3, "{seen:?}");
    released.dedup();
    assert_eq!(seen.len(), 5);
    consumer.close().await.unwrap();
    assert_eq!(rig.depth(&topic).await, 0);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_retry_topic_the_position_moves_on_and_the_history_survives_the_consumer() {
    let test = "by_a_retry_topic_the_position_moves_on_and_the_history_survives_the_consumer";
    let Some(rig) = Rig::new(test).await else { return };
    let topic = rig.topic("partitions=1&retry=topic").await;
    let publisher = rig.publisher(&topic).await;
    let options = ConsumeOptions { order: Order::Any, ..options() };
    let envelope = keyed("k", "x");
    publisher.publish(envelope.clone()).await.unwrap();
    let mut consumer = rig.consumer_with(&topic, options.clone()).await;
    assert_eq!(consumer.capabilities().retry, RetryMeans::Republish);
    let failed = Instant::now();
    let delay = Duration::from_secs(4);
    next(&mut consumer).await.retry(delay, Failure::new("timeout").dependency("ads-api")).await.unwrap();
    rig.settles_at(&topic, 0).await;
    consumer.close().await.unwrap();
    // Another group has nothing to do with it.
    let other = topic.clone().with_option("group", "other").with_option("retry", "in_place");
    assert_eq!(rig.depth(&other).await, 1);
    let mut consumer = rig.consumer_with(&topic, options).await;
    let again = next(&mut consumer).await;
    assert!(failed.elapsed() >= delay, "{:?}", failed.elapsed());
    assert_eq!(&*record(&again).topic, format!("{0}.{0}-g.retry", name(&topic)));
    assert_eq!((**again.envelope() == envelope, again.attempt()), (true, 2));
    assert_eq!(again.history().unwrap().last().unwrap().dependency.as_deref(), Some("ads-api"));
    again.ack().await.unwrap();
    assert!(nothing(&mut consumer, Duration::from_millis(500)).await);
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_is_a_dead_letter_that_explains_itself() {
    let Some(rig) = Rig::new("a_reject_is_a_dead_letter_that_explains_itself").await else { return };
    let source = unique("native");
    let options = format!("group={source}&partitions=1&dead_letter&dead_letter_headers=spring");
    let topic = rig.create(&source, &options).await;
    let letters = rig.create(&format!("{source}.dlq"), &format!("group={source}-letters")).await;
    let publisher = rig.publisher(&topic).await;
    let mut consumer = rig.consumer(&topic).await;
    // Joining a group may take longer than the message lasts.
    publisher.publish(message("first")).await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    let envelope = Envelope::builder("native.test")
        .key("k")
        .header("tenant", "5000")
        .header("bin", vec![0xff])
        .expires_in(Duration::from_secs(2))
        .payload("x")
        .build();
    publisher.publish(envelope.clone()).await.unwrap();
    let failure = Failure::new("http_503").message("no answer").dependency("ads-api");
    next(&mut consumer).await.reject(failure).await.unwrap();
    rig.settles_at(&topic, 0).await;
    // Kept however late somebody looks at it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut reader = rig.consumer(&letters).await;
    let letter = next(&mut reader).await;
    assert_eq!(letter.envelope().payload, envelope.payload);
    assert_eq!(
        (&letter.envelope().id, &letter.envelope().ordering_key),
        (&envelope.id, &envelope.ordering_key)
    );
    assert_eq!(letter.envelope().headers.get_str("tenant"), Some("5000"));
    assert_eq!(letter.history().unwrap().last().unwrap().dependency.as_deref(), Some("ads-api"));
    let detail = |wanted: &str| {
        let details = letter.native_details();
        let found = details.into_iter().find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| value.as_str().map(str::to_owned))
    };
    assert_eq!(detail("tl-dead-letter-source").as_deref(), Some(source.as_str()));
    assert_eq!(detail("tl-dead-letter-reason").as_deref(), Some("http_503 (ads-api): no answer"));
    letter.ack().await.unwrap();
    reader.close().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    // As Spring's consumers read it.
    let raw = rig.raw_get(&format!("{source}.dlq"), 0).await;
    let headers: Vec<_> = raw.headers().unwrap().iter().map(|header| (header.key, header.value)).collect();
    for (name, value) in [
        ("kafka_dlt-original-topic", source.as_bytes()),
        ("kafka_dlt-original-partition", &[0; 4][..]),
        ("kafka_dlt-exception-fqcn", b"http_503"),
    ] {
        assert!(headers.contains(&(name, Some(value))), "{name}: {headers:?}");
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_that_finds_no_dead_letter_topic_loses_nothing() {
    let Some(rig) = Rig::new("a_reject_that_finds_no_dead_letter_topic_loses_nothing").await else { return };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    publisher.publish(message("x")).await.unwrap();
    for (from, kind) in [
        (topic.clone(), ErrorKind::NoDeadLetter),
        (topic.clone().with_option("dead_letter", &unique("missing")), ErrorKind::NotFound),
    ] {
        let mut consumer = rig.consumer(&from).await;
        let error = next(&mut consumer).await.reject("broken").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        // Delivered again here, and, once closed, to whoever comes.
        assert_eq!(body(&next(&mut consumer).await), "x");
        consumer.close().await.unwrap();
        assert_eq!(rig.depth(&topic).await, 1);
    }
    publisher.close().await.unwrap();
    rig.finish().await;
}
