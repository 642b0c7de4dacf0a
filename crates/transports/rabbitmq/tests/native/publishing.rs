//! Confirms, returns, limits.

use std::time::{Duration, Instant};

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use throughline_core::driver::{Completions, OperationId, Outgoing};
use throughline_core::{Envelope, ErrorKind, HeaderValue, Retry, SendOptions};
use throughline_rabbitmq::lapin;

use crate::rig::{Rig, body, message, name, next, nothing, raw_get, unique};

#[tokio::test(flavor = "multi_thread")]
async fn confirms_are_pipelined_and_order_is_kept() {
    let Some(rig) = Rig::new("confirms_are_pipelined_and_order_is_kept").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let count: usize = 2_000;
    let one = Instant::now();
    publisher.publish(message("first")).await.unwrap();
    let one = one.elapsed();
    let all = Instant::now();
    let results = publisher.publish_batch((0..count).map(|n| message(n.to_string()))).await;
    let all = all.elapsed();
    assert!(results.iter().all(Result::is_ok));
    // One by one it would have taken at least a round trip each; a quarter of that leaves room for a busy machine.
    assert!(all < one * u32::try_from(count).unwrap() / 4, "{count} messages took {all:?}, one {one:?}");
    let mut consumer = rig.consumer(&queue).await;
    next(&mut consumer).await.ack().await.unwrap();
    for n in 0..count {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), n.to_string());
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_takes_is_unroutable_each_message_for_itself() {
    let Some(rig) = Rig::new("what_no_queue_takes_is_unroutable_each_message_for_itself").await else {
        return;
    };
    let exchange = unique("native");
    let address = rig.create(&format!("exchange={exchange}")).await;
    // A queue that confirms at once, so that confirms of both kinds come in one flush: returns are sent before, and the
    // client hands each to whichever confirm comes next.
    let (connection, channel) = rig.raw().await;
    let none = FieldTable::default;
    let own = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = || exchange.as_str().into();
    channel.queue_declare(queue(), own, none()).await.unwrap();
    let bound = channel.queue_bind(queue(), queue(), "yes.#".into(), QueueBindOptions::default(), none());
    bound.await.unwrap();
    let publisher = rig.publisher(&address).await;
    for round in 0..40_usize {
        let kinds: Vec<_> = (0..300_usize).map(|n| n.wrapping_mul(7).wrapping_add(round) % 3 != 0).collect();
        let results = publisher
            .publish_batch(kinds.iter().enumerate().map(|(n, routed)| {
                let kind = if *routed { "yes.x" } else { "no.x" };
                Envelope::builder(kind).payload(n.to_string()).build()
            }))
            .await;
        for (routed, result) in kinds.iter().zip(&results) {
            match result {
                Ok(_) => assert!(routed, "a message that no queue took was called accepted"),
                Err(error) => {
                    assert!(!routed, "an accepted message was called unroutable: {error}");
                    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unroutable, Retry::Never));
                }
            }
        }
    }
    publisher.close().await.unwrap();
    let drops = rig.publisher(&rig.address(&format!("exchange={exchange}&unroutable=drop"))).await;
    drops.publish(Envelope::builder("no.x").payload("x").build()).await.unwrap();
    drops.close().await.unwrap();
    connection.close(200, "".into()).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_under_a_publisher_is_told() {
    let Some(rig) = Rig::new("a_queue_that_is_deleted_under_a_publisher_is_told").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish(message("x")).await.unwrap();
    rig.transport.delete(&queue).await.unwrap();
    let error = publisher.publish(message("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unroutable);
    assert!(error.to_string().contains("throughline create"), "{error}");
    rig.transport.create(&queue).await.unwrap();
    publisher.publish(message("x")).await.unwrap();
    publisher.close().await.unwrap();
    assert_eq!(publisher.publish(message("x")).await.unwrap_err().kind(), ErrorKind::Closed);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_under_a_publisher_is_told() {
    let Some(rig) = Rig::new("an_exchange_that_is_deleted_under_a_publisher_is_told").await else { return };
    let exchange = unique("native");
    let address = rig.create(&format!("exchange={exchange}")).await;
    let publisher = rig.publisher(&address).await;
    rig.transport.delete(&address).await.unwrap();
    let error = publisher.publish(message("x")).await.unwrap_err();
    // Alone on the channel, so that it is certain.
    assert_eq!((error.kind(), error.retry()), (ErrorKind::NotFound, Retry::Never));
    let queue = rig.create(&format!("exchange={exchange}&queue={exchange}")).await;
    publisher.publish(message("x")).await.unwrap();
    rig.settles_at(&queue, 1).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_drops_nothing() {
    let Some(rig) = Rig::new("a_full_queue_refuses_and_drops_nothing").await else { return };
    let queue = rig.queue("&max_length=1").await;
    let driver = rig.transport.publisher(&queue).await.unwrap();
    let mut refused = None;
    for n in 0..20_u128 {
        let (done, answers) = Completions::collect(1);
        driver.publish(vec![outgoing(message(n.to_string()), n)], done).await;
        if let Err(error) = answers.await.pop().unwrap() {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("the broker refuses once the queue is full");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Refused, Retry::Safe));
    driver.close().await.unwrap();
    rig.finish().await;
}

fn outgoing(envelope: Envelope, operation: u128) -> Outgoing {
    Outgoing {
        envelope: envelope.into(),
        operation: OperationId(operation),
        delay: Duration::ZERO,
        failed_attempts: 0,
        history: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_checked_before_they_could_close_the_connection() {
    let Some(rig) = Rig::new("limits_are_checked_before_they_could_close_the_connection").await else {
        return;
    };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let limit = publisher.capabilities().limits.header_bytes.unwrap();
    assert_eq!(limit, 131_064, "the broker's default frame_max, less the frame");
    let with_header =
        |bytes: usize| Envelope::builder("t").id("id").header("h", "x".repeat(bytes)).payload("p").build();
    let measure = |bytes| publisher.driver().measure(&outgoing(with_header(bytes), 0));
    // The largest header that still fits.
    let mut low = 1;
    let mut high = limit;
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if measure(middle).is_ok() { low = middle } else { high = middle }
    }
    let error = publisher.publish(with_header(high)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("131065 bytes, the limit is 131064 bytes"), "{error}");
    publisher.publish(with_header(low)).await.unwrap();
    let error = publisher.publish(Envelope::new(vec![0; 16 * 1024 * 1024 + 1])).await.unwrap_err();
    assert!(error.to_string().contains("payload is 16777217 bytes, the limit is 16777216 bytes"), "{error}");
    // The same connection still works, for the largest payload too.
    publisher.publish(Envelope::new(vec![7; 16 * 1024 * 1024])).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let first = next(&mut consumer).await;
    assert_eq!(first.headers().get_str("h").unwrap().len(), low);
    first.ack().await.unwrap();
    let second = next(&mut consumer).await;
    assert_eq!(second.payload().len(), 16 * 1024 * 1024);
    second.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_odd_comes_through() {
    let Some(rig) = Rig::new("everything_odd_comes_through").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let long = "ä".repeat(300);
    let mut envelope = Envelope::builder(long.clone())
        .id(long.clone())
        .source(long.clone())
        .key(vec![0xff, 0x00])
        .content_type(long.clone())
        .content_encoding("")
        .correlation_id(long.clone())
        .reply_to(long.clone())
        .idempotency_key(long.clone())
        .priority(255)
        .header("", "an empty name")
        .header("twice", "1")
        .header("twice", vec![0xfe])
        .header("null", HeaderValue::Null)
        .header("CC", "nowhere")
        .header("x-death", "mine")
        .header("tl-sent", "mine")
        .header(long.clone(), "a long name")
        .header("native", HeaderValue::Typed { kind: "amqp:u16".into(), text: "7".into() })
        .header("other", HeaderValue::Typed { kind: "sqs:Number.x".into(), text: "1e3".into() })
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("\u{0}", "\u{0}")
        .tombstone()
        .build();
    envelope.expires_at = Some(throughline_core::Timestamp::now().after(Duration::from_secs(3_600)));
    publisher.publish(envelope.clone()).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(**delivery.envelope(), envelope);
    assert_eq!((delivery.attempt(), delivery.receive_count()), (1, Some(1)));
    assert!(delivery.queue_delay().is_some());
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_send_arrives_not_before_its_delay() {
    let Some(rig) = Rig::new("a_delayed_send_arrives_not_before_its_delay").await else { return };
    let exchange = unique("native");
    let direct = rig.queue("").await;
    let fanned = rig.create(&format!("exchange={exchange}&queue={exchange}&key=native.%23")).await;
    for (to, from, key) in [
        (direct.clone(), direct.clone(), name(&direct).to_owned()),
        (rig.address(&format!("exchange={exchange}")), fanned.clone(), "native.test".to_owned()),
    ] {
        let publisher = rig.publisher(&to).await;
        let mut consumer = rig.consumer(&from).await;
        let delay = Duration::from_millis(700);
        let sent = Instant::now();
        publisher.publish_with(message("late"), SendOptions::delayed(delay)).await.unwrap();
        publisher.publish(message("at once")).await.unwrap();
        let first = next(&mut consumer).await;
        assert_eq!(body(&first), "at once");
        first.ack().await.unwrap();
        let second = next(&mut consumer).await;
        let took = sent.elapsed();
        assert!(took >= delay && took < Duration::from_secs(10), "{took:?}");
        assert_eq!((body(&second).as_str(), second.attempt()), ("late", 1));
        // Of the delay only what the tier adds is queue delay.
        assert!(second.queue_delay().unwrap().delay < took - delay + Duration::from_millis(100));
        let native = second.native::<throughline_rabbitmq::Message>().unwrap();
        assert_eq!(native.routing_key, key);
        assert!(second.native_details().iter().any(|(name, _)| name == "x-death"));
        second.ack().await.unwrap();
        consumer.close().await.unwrap();
        publisher.close().await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_delay_queue_is_made_again() {
    let Some(rig) = Rig::new("a_deleted_delay_queue_is_made_again").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let delayed = || publisher.publish_with(message("x"), SendOptions::delayed(Duration::from_millis(100)));
    delayed().await.unwrap();
    rig.settles_at(&queue, 1).await;
    let (connection, channel) = rig.raw().await;
    let tier = format!("tl.delay.q.{}.100", name(&queue));
    channel.queue_delete(tier.into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
    delayed().await.unwrap();
    rig.settles_at(&queue, 2).await;
    connection.close(200, "".into()).await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_message_is_not_delivered_even_after_a_delay() {
    let Some(rig) = Rig::new("an_expired_message_is_not_delivered_even_after_a_delay").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let expiring = || Envelope::builder("t").payload("gone").expires_in(Duration::from_millis(50)).build();
    publisher.publish(expiring()).await.unwrap();
    publisher.publish_with(expiring(), SendOptions::delayed(Duration::from_millis(400))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    publisher.publish(message("stays")).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(body(&delivery), "stays");
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_dead_letters_as_expired_is_not_thrown_away_there() {
    let name = "what_the_broker_dead_letters_as_expired_is_not_thrown_away_there";
    let Some(rig) = Rig::new(name).await else { return };
    let dead = unique("dead");
    let queue = rig.queue(&format!("&dead_letter={dead}")).await;
    let publisher = rig.publisher(&queue).await;
    let expiring = || Envelope::builder("t").payload("late").expires_in(Duration::from_millis(50)).build();
    publisher.publish(expiring()).await.unwrap();
    // Over a delay queue, and expired there: out of the consumer's hand into the dead letters.
    publisher.publish_with(expiring(), SendOptions::delayed(Duration::from_millis(400))).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    assert!(nothing(&mut consumer, Duration::from_millis(1_500)).await);
    let mut graveyard = rig.consumer(&rig.address(&format!("queue={dead}"))).await;
    for _ in 0..2 {
        let letter = next(&mut graveyard).await;
        assert_eq!(body(&letter), "late");
        letter.ack().await.unwrap();
    }
    for consumer in [consumer, graveyard] {
        consumer.close().await.unwrap();
    }
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_client_reads_a_plain_message() {
    let Some(rig) = Rig::new("a_foreign_client_reads_a_plain_message").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let envelope = Envelope::builder("campaign.sync_report")
        .content_type("application/json")
        .header("traceparent", traceparent)
        .payload(r#"{"report":7}"#)
        .build();
    publisher.publish(envelope.clone()).await.unwrap();
    let (connection, channel) = rig.raw().await;
    let got = raw_get(&channel, name(&queue)).await;
    assert_eq!(got.data, br#"{"report":7}"#);
    let properties = &got.properties;
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), envelope.id);
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "campaign.sync_report");
    assert_eq!(*properties.delivery_mode(), Some(2));
    let header = properties.headers().as_ref().unwrap().inner().get("traceparent").unwrap();
    assert_eq!(header.as_long_string().unwrap().as_bytes(), traceparent.as_bytes());
    connection.close(200, "".into()).await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
