//! FIFO queues: order in a group, and one message an operation.

use std::collections::HashMap;
use std::time::Duration;

use throughline_core::capabilities::Level;
use throughline_core::driver::{Completions, OperationId, Outgoing};
use throughline_core::{ConsumeOptions, Envelope, ErrorKind, SendOptions};

use crate::rig::{Rig, body, message, next, nothing};

fn keyed(key: &str, n: usize) -> Envelope {
    Envelope::builder("native.test").key(key.to_owned()).payload(n.to_string()).build()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_each_key_is_kept() {
    const KEYS: usize = 8;
    const EACH: usize = 25;
    let Some(rig) = Rig::new("the_order_of_each_key_is_kept").await else { return };
    let queue = rig.queue("&fifo=true").await;
    let publisher = rig.publisher(&queue).await;
    assert_eq!(publisher.capabilities().order, Level::Native);
    let messages = (0..KEYS * EACH).map(|n| keyed(&format!("key {}", n % KEYS), n / KEYS));
    for result in publisher.publish_batch(messages).await {
        result.unwrap();
    }
    let mut consumer = rig.consumer(&queue).await;
    let mut due: HashMap<Vec<u8>, usize> = HashMap::new();
    for _ in 0..KEYS * EACH {
        let delivery = next(&mut consumer).await;
        let key = delivery.envelope().ordering_key.clone().unwrap().to_vec();
        let due = due.entry(key).or_default();
        assert_eq!(body(&delivery), due.to_string());
        *due += 1;
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

/// What deduplicates is the send, not what it says: a queue's own way, by the payload's hash, would lose the second.
#[tokio::test(flavor = "multi_thread")]
async fn two_messages_that_say_the_same_are_two() {
    let Some(rig) = Rig::new("two_messages_that_say_the_same_are_two").await else { return };
    let queue = rig.queue("&fifo=true").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch([keyed("key", 7), keyed("key", 7)]).await {
        assert!(!result.unwrap().deduplicated);
    }
    let mut consumer = rig.consumer(&queue).await;
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), "7");
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_message_holds_up_its_key_and_no_other() {
    let Some(rig) = Rig::new("a_retried_message_holds_up_its_key_and_no_other").await else { return };
    let queue = rig.queue("&fifo=true").await;
    let publisher = rig.publisher(&queue).await;
    let messages = [keyed("a", 1), keyed("a", 2), keyed("a", 3), keyed("b", 1)];
    for result in publisher.publish_batch(messages).await {
        result.unwrap();
    }
    let mut consumer = rig.consumer(&queue).await;
    let mut came = Vec::new();
    for _ in 0..5 {
        let delivery = next(&mut consumer).await;
        let key = String::from_utf8(delivery.envelope().ordering_key.clone().unwrap().to_vec()).unwrap();
        let what = format!("{key}{}", body(&delivery));
        if what == "a1" && delivery.attempt() == 1 {
            delivery.retry(Duration::from_secs(1), "busy").await.unwrap();
        } else {
            assert_eq!(delivery.attempt(), if what == "a1" { 2 } else { 1 }, "{what}");
            delivery.ack().await.unwrap();
        }
        came.push(what);
    }
    let of_a: Vec<_> = came.iter().filter(|what| what.starts_with('a')).collect();
    assert_eq!(of_a, ["a1", "a1", "a2", "a3"]);
    assert!(
        came.iter().position(|what| what == "b1") < came.iter().rposition(|what| what == "a1"),
        "{came:?}"
    );
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_key_is_held_as_long_as_the_one_before() {
    let Some(rig) = Rig::new("what_waits_for_its_key_is_held_as_long_as_the_one_before").await else {
        return;
    };
    let queue = rig.queue("&fifo=true").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch((1..=3).map(|n| keyed("a", n))).await {
        result.unwrap();
    }
    let options = ConsumeOptions { lease: Duration::from_secs(2), ..ConsumeOptions::default() };
    let mut consumer = rig.consumer_with(&queue, options).await;
    let first = next(&mut consumer).await;
    // Far over the lease that the others were received with.
    tokio::time::sleep(Duration::from_secs(5)).await;
    first.ack().await.unwrap();
    for expected in ["2", "3"] {
        let delivery = next(&mut consumer).await;
        assert_eq!((body(&delivery).as_str(), delivery.receive_count()), (expected, Some(1)));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_is_sent_again_comes_once_and_a_delay_is_refused() {
    let Some(rig) = Rig::new("an_operation_that_is_sent_again_comes_once").await else { return };
    let queue = rig.queue("&fifo=true").await;
    let driver = rig.transport.publisher(&queue).await.unwrap();
    for _ in 0..2 {
        let (done, answers) = Completions::collect(1);
        let outgoing = Outgoing {
            envelope: keyed("a", 1).into(),
            operation: OperationId(7),
            delay: Duration::ZERO,
            failed_attempts: 0,
            history: None,
        };
        driver.publish(vec![outgoing], done).await;
        answers.await.pop().unwrap().unwrap();
    }
    let mut consumer = rig.consumer(&queue).await;
    next(&mut consumer).await.ack().await.unwrap();
    assert!(nothing(&mut consumer, Duration::from_secs(2)).await);
    let publisher = rig.publisher(&queue).await;
    let late = SendOptions::delayed(Duration::from_secs(1));
    let error = publisher.publish_with(message("x"), late).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_keeps_its_key_and_frees_it() {
    let Some(rig) = Rig::new("a_rejected_message_keeps_its_key_and_frees_it").await else { return };
    let (queue, dead) = rig.queue_with_dead_letters("&fifo=true").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch((1..=2).map(|n| keyed("a", n))).await {
        result.unwrap();
    }
    let mut consumer = rig.consumer(&queue).await;
    next(&mut consumer).await.reject("bad").await.unwrap();
    let second = next(&mut consumer).await;
    assert_eq!(body(&second), "2");
    second.ack().await.unwrap();
    let mut letters = rig.consumer(&dead).await;
    let letter = next(&mut letters).await;
    assert_eq!(letter.envelope().ordering_key.as_deref(), Some(&b"a"[..]));
    letter.ack().await.unwrap();
    consumer.close().await.unwrap();
    letters.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
