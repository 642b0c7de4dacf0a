//! Retries, leases, dead letters, and what happens at the end.

use std::time::Duration;

use throughline_core::{ConsumeOptions, Envelope, ErrorKind, Failure};
use throughline_sqs::Message;

use crate::rig::{Rig, body, message, next, nothing};

fn lease(seconds: u64) -> ConsumeOptions {
    ConsumeOptions { lease: Duration::from_secs(seconds), ..ConsumeOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_longer_than_the_lease_keeps_its_message() {
    let Some(rig) = Rig::new("a_handler_longer_than_the_lease_keeps_its_message").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch((0..25).map(|n| message(n.to_string()))).await {
        result.unwrap();
    }
    let mut working = rig.consumer_with(&queue, lease(2)).await;
    let mut held = Vec::new();
    for _ in 0..25 {
        held.push(next(&mut working).await);
    }
    let mut other = rig.consumer_with(&queue, lease(2)).await;
    assert!(nothing(&mut other, Duration::from_secs(5)).await, "another got what is being worked on");
    for delivery in held {
        assert!(!delivery.is_lease_lost());
        delivery.ack().await.unwrap();
    }
    working.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    // Ten at a time: three requests a round at most, and a round each half second or so.
    let extensions = rig.proxy.calls("ChangeMessageVisibilityBatch");
    assert!((3..60).contains(&extensions), "{extensions} requests to extend");
    other.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_ends_and_a_late_ack_is_stale() {
    let Some(rig) = Rig::new("the_heartbeat_ends_and_a_late_ack_is_stale").await else { return };
    let queue = rig.queue("").await;
    rig.publisher(&queue).await.publish(message("x")).await.unwrap();
    let options = ConsumeOptions { max_lease: Duration::from_secs(3), ..lease(1) };
    let mut consumer = rig.consumer_with(&queue, options).await;
    let held = next(&mut consumer).await;
    held.lease_lost().await;
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::Stale);
    let again = next(&mut consumer).await;
    assert_eq!(again.receive_count(), Some(2));
    again.ack().await.unwrap();
    consumer.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_says_what_failed_each_time() {
    let Some(rig) = Rig::new("a_dead_letter_says_what_failed_each_time").await else { return };
    let (queue, dead) = rig.queue_with_dead_letters("").await;
    let sent = Envelope::builder("campaign.sync_report").header("tenant", "5000").payload("{}").build();
    rig.publisher(&queue).await.publish(sent.clone()).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    for attempt in 1..=3 {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempt(), attempt);
        let failure = Failure::new("http_503").dependency("ads-api").message("not now");
        match attempt {
            3 => delivery.reject(failure).await.unwrap(),
            _ => delivery.retry(Duration::ZERO, failure).await.unwrap(),
        }
    }
    rig.settles_at(&queue, 0).await;
    let mut letters = rig.consumer(&dead).await;
    let letter = next(&mut letters).await;
    assert_eq!(**letter.envelope(), sent);
    let failures = letter.history().unwrap().failures();
    let attempts: Vec<_> = failures.iter().map(|failure| failure.attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert!(failures.iter().all(|failure| failure.dependency.as_deref() == Some("ads-api")));
    let native = letter.native::<Message>().unwrap();
    let reason = native.attributes["tl-dead-letter-reason"].string_value().unwrap();
    assert_eq!(reason, "http_503 (ads-api): not now");
    letter.ack().await.unwrap();
    consumer.close().await.unwrap();
    letters.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_is_dead_lettered_and_not_handed_out() {
    let Some(rig) = Rig::new("what_has_expired_is_dead_lettered_and_not_handed_out").await else { return };
    let (queue, dead) = rig.queue_with_dead_letters("").await;
    let publisher = rig.publisher(&queue).await;
    let late = Envelope::builder("native.test").expires_in(Duration::ZERO).payload("late").build();
    publisher.publish(late).await.unwrap();
    publisher.publish(message("in time")).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(body(&delivery), "in time");
    delivery.ack().await.unwrap();
    assert!(nothing(&mut consumer, Duration::from_millis(500)).await);
    assert_eq!(consumer.expired(), 1);
    rig.settles_at(&queue, 0).await;
    let letter = rig.transport.browse(&dead, std::num::NonZeroUsize::MIN).await.unwrap().pop().unwrap();
    assert_eq!(letter.history.unwrap().last().unwrap().error, "expired");
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_redrive_policy_names_the_dead_letter_queue_too() {
    let Some(rig) = Rig::new("the_redrive_policy_names_the_dead_letter_queue_too").await else { return };
    let (queue, dead) = rig.queue_with_dead_letters("").await;
    rig.publisher(&queue).await.publish(message("bad")).await.unwrap();
    let without = rig.address(queue.authority().unwrap(), "");
    let mut consumer = rig.consumer(&without).await;
    next(&mut consumer).await.reject("undecodable").await.unwrap();
    rig.settles_at(&dead, 1).await;
    consumer.close().await.unwrap();

    // And without either the message stays.
    let bare = rig.queue("").await;
    rig.publisher(&bare).await.publish(message("bad")).await.unwrap();
    let mut consumer = rig.consumer(&bare).await;
    let error = next(&mut consumer).await.reject("undecodable").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoDeadLetter);
    next(&mut consumer).await.ack().await.unwrap();
    consumer.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_read_goes_back_at_once_even_from_a_request_that_was_still_out() {
    let Some(rig) = Rig::new("what_was_not_read_goes_back_at_once").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch((0..20).map(|n| message(n.to_string()))).await {
        result.unwrap();
    }
    let mut first = rig.consumer(&queue).await;
    let held = next(&mut first).await;
    first.stop().await;
    held.ack().await.unwrap();
    first.close().await.unwrap();
    let mut second = rig.consumer(&queue).await;
    for _ in 0..19 {
        let delivery = next(&mut second).await;
        // Given back is not failed.
        delivery.ack().await.unwrap();
    }
    // The second one's request waits; what it gets after the end goes to the third.
    tokio::time::sleep(Duration::from_millis(300)).await;
    second.close().await.unwrap();
    let mut third = rig.consumer(&queue).await;
    let started = std::time::Instant::now();
    publisher.publish(message("after")).await.unwrap();
    let delivery = next(&mut third).await;
    assert_eq!(body(&delivery), "after");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "the lease of a lost request: {:?}",
        started.elapsed()
    );
    delivery.ack().await.unwrap();
    third.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

/// A long poll waits at the broker; a short one would be asked again and again.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_queue_is_asked_seldom_and_answers_at_once() {
    let Some(rig) = Rig::new("an_empty_queue_is_asked_seldom_and_answers_at_once").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let mut consumer = rig.consumer(&queue).await;
    let waiting = tokio::time::timeout(Duration::from_secs(4), consumer.next()).await;
    assert!(waiting.is_err(), "the queue is empty");
    let asked = rig.proxy.calls("ReceiveMessage");
    assert!((1..=4).contains(&asked), "asked {asked} times in 4 s");
    publisher.publish(message("now")).await.unwrap();
    let delivery = tokio::time::timeout(Duration::from_secs(3), consumer.next()).await.unwrap();
    delivery.unwrap().unwrap().ack().await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
