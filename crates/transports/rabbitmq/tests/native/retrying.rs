//! Retry, reject, order of keys.

use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use throughline_core::{ConsumeOptions, Envelope, ErrorKind, Failure, Order};

use crate::rig::{Rig, body, message, name, next, nothing, raw_get, unique};

fn keyed(key: &str, body: &str) -> Envelope {
    Envelope::builder("native.test").key(key.to_owned()).payload(body.to_owned()).build()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_retry_comes_back_with_its_history() {
    let Some(rig) = Rig::new("a_delayed_retry_comes_back_with_its_history").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let envelope = Envelope::builder("native.test").header("traceparent", traceparent).payload("x").build();
    publisher.publish(envelope.clone()).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let mut delivery = next(&mut consumer).await;
    for (attempt, delay) in
        [(1, Duration::from_millis(300)), (2, Duration::ZERO), (3, Duration::from_millis(50))]
    {
        assert_eq!(delivery.attempt(), attempt);
        let failure = Failure::new("timeout").message(format!("number {attempt}")).dependency("ads-api");
        let failed = Instant::now();
        delivery.retry(delay, failure).await.unwrap();
        delivery = next(&mut consumer).await;
        assert!(failed.elapsed() >= delay, "{:?}", failed.elapsed());
        assert_eq!(delivery.attempt(), attempt + 1);
        assert_eq!(**delivery.envelope(), envelope);
        let history = delivery.history().unwrap();
        assert_eq!(history.failures().len(), usize::try_from(attempt).unwrap());
        assert_eq!(history.last().unwrap().message, format!("number {attempt}"));
        assert_eq!(history.last().unwrap().dependency.as_deref(), Some("ads-api"));
        // To the queue itself, whatever exchange it came by.
        let native = delivery.native::<throughline_rabbitmq::Message>().unwrap();
        assert!(native.exchange.is_empty());
    }
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_retry_is_held_in_place_and_nothing_of_its_key_overtakes() {
    let Some(rig) = Rig::new("a_keyed_retry_is_held_in_place_and_nothing_of_its_key_overtakes").await else {
        return;
    };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish(keyed("a", "a1")).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let first = next(&mut consumer).await;
    let delay = Duration::from_millis(600);
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
    assert_eq!((body(&again).as_str(), again.attempt(), again.receive_count()), ("a1", 2, Some(2)));
    assert_eq!(again.history().unwrap().last().unwrap().error, "timeout");
    // While it is out, its key waits.
    assert!(nothing(&mut consumer, Duration::from_millis(200)).await);
    again.ack().await.unwrap();
    for expected in ["a2", "a3"] {
        let delivery = next(&mut consumer).await;
        assert_eq!((body(&delivery).as_str(), delivery.attempt()), (expected, 1));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_goes_back_in_order_when_the_consumer_stops() {
    let Some(rig) = Rig::new("what_is_held_goes_back_in_order_when_the_consumer_stops").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    for body in ["a1", "a2", "a3"] {
        publisher.publish(keyed("a", body)).await.unwrap();
    }
    let options = ConsumeOptions { max_unsettled: 1, ..ConsumeOptions::default() };
    let mut consumer = rig.consumer_with(&queue, options).await;
    next(&mut consumer).await.retry(Duration::from_secs(60), Failure::new("timeout")).await.unwrap();
    consumer.close().await.unwrap();
    rig.settles_at(&queue, 3).await;
    let mut consumer = rig.consumer(&queue).await;
    for expected in ["a1", "a2", "a3"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), expected);
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_order_a_keyed_retry_goes_by_the_delay_queues() {
    let Some(rig) = Rig::new("without_order_a_keyed_retry_goes_by_the_delay_queues").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish(keyed("a", "a1")).await.unwrap();
    let options = ConsumeOptions { order: Order::Any, ..ConsumeOptions::default() };
    let mut consumer = rig.consumer_with(&queue, options).await;
    next(&mut consumer).await.retry(Duration::from_millis(100), Failure::new("timeout")).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!(again.attempt(), 2);
    assert!(again.native_details().iter().any(|(name, _)| name == "x-death"));
    again.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_is_a_dead_letter_that_explains_itself() {
    let Some(rig) = Rig::new("a_reject_is_a_dead_letter_that_explains_itself").await else { return };
    let dead = unique("native-dead");
    let queue = rig.queue(&format!("&dead_letter={dead}")).await;
    let letters = rig.create(&format!("queue={dead}")).await;
    let publisher = rig.publisher(&queue).await;
    let envelope = Envelope::builder("native.test")
        .header("tenant", "5000")
        .header("bin", vec![0xff])
        .payload("x")
        .build();
    publisher.publish(envelope.clone()).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let failure = Failure::new("http_503").message("no answer").dependency("ads-api");
    next(&mut consumer).await.reject(failure).await.unwrap();
    rig.settles_at(&queue, 0).await;
    let mut reader = rig.consumer(&letters).await;
    let letter = next(&mut reader).await;
    assert_eq!(**letter.envelope(), envelope);
    assert_eq!(letter.history().unwrap().last().unwrap().dependency.as_deref(), Some("ads-api"));
    let detail = |wanted: &str| {
        let details = letter.native_details();
        let found = details.into_iter().find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| value.as_str().map(str::to_owned))
    };
    assert_eq!(detail("tl-dead-letter-source").as_deref(), Some(name(&queue)));
    assert_eq!(detail("tl-dead-letter-reason").as_deref(), Some("http_503 (ads-api): no answer"));
    letter.ack().await.unwrap();
    reader.close().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_that_finds_no_dead_letter_queue_loses_nothing() {
    let Some(rig) = Rig::new("a_reject_that_finds_no_dead_letter_queue_loses_nothing").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish(message("x")).await.unwrap();
    for (from, kind) in [
        (queue.clone(), ErrorKind::NoDeadLetter),
        (queue.clone().with_option("dead_letter", &unique("missing")), ErrorKind::Unroutable),
        (queue.clone().with_option("dead_letter_exchange", &unique("missing")), ErrorKind::NotFound),
    ] {
        let mut consumer = rig.consumer(&from).await;
        let error = next(&mut consumer).await.reject("broken").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        consumer.close().await.unwrap();
        rig.settles_at(&queue, 1).await;
    }
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_keeps_what_a_foreign_producer_set() {
    let Some(rig) = Rig::new("a_retry_keeps_what_a_foreign_producer_set").await else { return };
    let queue = rig.queue("").await;
    let (connection, channel) = rig.raw().await;
    let mut table = FieldTable::default();
    table.insert("n".into(), lapin::types::AMQPValue::ShortInt(-3));
    let properties = lapin::BasicProperties::default()
        .with_headers(table)
        .with_content_type("text/x".into())
        .with_priority(4)
        .with_message_id("foreign-1".into());
    let published = channel
        .basic_publish("".into(), name(&queue).into(), BasicPublishOptions::default(), b"body", properties)
        .await
        .unwrap();
    published.await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    next(&mut consumer).await.retry(Duration::ZERO, Failure::new("timeout")).await.unwrap();
    next(&mut consumer).await.release().await.unwrap();
    consumer.close().await.unwrap();
    let got = raw_get(&channel, name(&queue)).await;
    assert_eq!(got.data, b"body");
    assert_eq!(got.properties.content_type().as_ref().unwrap().as_str(), "text/x");
    assert_eq!(got.properties.message_id().as_ref().unwrap().as_str(), "foreign-1");
    assert_eq!(*got.properties.priority(), Some(4));
    let headers = got.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers.get("n"), Some(&lapin::types::AMQPValue::ShortInt(-3)));
    connection.close(200, "".into()).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_classic_queue_works_too() {
    let Some(rig) = Rig::new("a_classic_queue_works_too").await else { return };
    let queue = rig.queue("&queue_type=classic&max_priority=5").await;
    let publisher = rig.publisher(&queue).await;
    for (body, priority) in [("low", 1), ("high", 5)] {
        publisher.publish(Envelope::builder("t").priority(priority).payload(body).build()).await.unwrap();
    }
    let options = ConsumeOptions { max_unsettled: 1, ..ConsumeOptions::default() };
    let mut consumer = rig.consumer_with(&queue, options).await;
    let first = next(&mut consumer).await;
    assert_eq!((body(&first).as_str(), first.receive_count()), ("high", Some(1)));
    first.release().await.unwrap();
    let again = next(&mut consumer).await;
    // A classic queue says that it was delivered before, and not how often.
    assert_eq!((body(&again).as_str(), again.receive_count()), ("high", None));
    again.ack().await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
    consumer.close().await.unwrap();
    let declared = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let (connection, channel) = rig.raw().await;
    channel.queue_declare(name(&queue).into(), declared, FieldTable::default()).await.unwrap();
    connection.close(200, "".into()).await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
