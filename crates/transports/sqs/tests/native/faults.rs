//! What SQS refuses, in part or in whole, injected by the proxy.

use std::collections::HashSet;
use std::time::Duration;

use throughline_core::{ConsumeOptions, ErrorKind, PublishOptions, Publisher, Retry};
use throughline_testkit::aws_proxy::Fault;

use crate::rig::{Rig, body, message, next};

fn entries(places: &[usize], code: &'static str, sender: bool) -> Fault {
    Fault::Entries { places: places.to_vec(), code, sender }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_fails_in_part_only_the_rest_is_sent_again() {
    let Some(rig) = Rig::new("of_a_batch_that_fails_in_part_only_the_rest_is_sent_again").await else {
        return;
    };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    rig.proxy.inject(
        "SendMessageBatch",
        [entries(&[1, 4], "ThrottlingException", false), entries(&[0], "InternalError", false)],
    );
    for result in publisher.publish_batch((0..10).map(|n| message(n.to_string()))).await {
        result.unwrap();
    }
    rig.settles_at(&queue, 10).await;
    // And what is the sender's fault is told, for that message alone, and not sent again.
    let before = rig.proxy.calls("SendMessageBatch");
    rig.proxy.inject("SendMessageBatch", [entries(&[2], "InvalidMessageContents", true)]);
    let results = publisher.publish_batch((0..10).map(|n| message(n.to_string()))).await;
    for (place, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), place == 2, "{result:?}");
    }
    let error = results[2].as_ref().unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::InvalidMessage, Retry::Never));
    assert_eq!(rig.proxy.calls("SendMessageBatch"), before + 1);
    rig.settles_at(&queue, 19).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_request_is_sent_again_and_a_lost_answer_is_uncertain() {
    let Some(rig) = Rig::new("a_throttled_request_is_sent_again_and_a_lost_answer_is_uncertain").await else {
        return;
    };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let throttled = Fault::Refuse { status: 400, code: "ThrottlingException" };
    let unavailable = Fault::Refuse { status: 503, code: "ServiceUnavailable" };
    rig.proxy.inject("SendMessageBatch", [throttled.clone(), unavailable, throttled]);
    publisher.publish(message("x")).await.unwrap();
    rig.settles_at(&queue, 1).await;

    rig.proxy.inject("SendMessageBatch", [Fault::LoseAnswer]);
    let error = publisher.publish(message("y")).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Uncertain, "{error}");
    rig.settles_at(&queue, 2).await;

    // A FIFO queue knows it again.
    let fifo = rig.queue("&fifo=true").await;
    let publisher = rig.publisher(&fifo).await;
    rig.proxy.inject("SendMessageBatch", [Fault::LoseAnswer]);
    publisher.publish(message("y")).await.unwrap();
    rig.settles_at(&fifo, 1).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_that_fail_are_tried_again_and_what_stays_is_told() {
    let Some(rig) = Rig::new("deletes_that_fail_are_tried_again_and_what_stays_is_told").await else {
        return;
    };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch((0..10).map(|n| message(n.to_string()))).await {
        result.unwrap();
    }
    let throttled = Fault::Refuse { status: 400, code: "ThrottlingException" };
    rig.proxy.inject("DeleteMessageBatch", [entries(&[0, 3], "InternalError", false), throttled]);
    // Each ack waits for SQS.
    let options = ConsumeOptions { settle_linger: Duration::ZERO, ..ConsumeOptions::default() };
    let mut consumer = rig.consumer_with(&queue, options.clone()).await;
    let mut all = Vec::new();
    while all.len() < 10 {
        all.push(next(&mut consumer).await);
    }
    for result in throughline_core::Delivery::ack_all(all).await {
        result.unwrap();
    }
    rig.settles_at(&queue, 0).await;
    publisher.publish(message("gone")).await.unwrap();
    let delivery = next(&mut consumer).await;
    rig.proxy.inject("DeleteMessageBatch", [entries(&[0], "ReceiptHandleIsInvalid", true)]);
    assert_eq!(delivery.ack().await.unwrap_err().kind(), ErrorKind::Stale);
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_fails_is_tried_again_before_the_lease_is_over() {
    let Some(rig) = Rig::new("an_extension_that_fails_is_tried_again_before_the_lease_is_over").await else {
        return;
    };
    let queue = rig.queue("").await;
    rig.publisher(&queue).await.publish(message("x")).await.unwrap();
    let options = ConsumeOptions { lease: Duration::from_secs(4), ..ConsumeOptions::default() };
    let mut consumer = rig.consumer_with(&queue, options).await;
    let delivery = next(&mut consumer).await;
    // One in each lease: when it was received between two looks at the leases decides whether there is time for a third try.
    let unavailable = Fault::Refuse { status: 503, code: "ServiceUnavailable" };
    for fault in [entries(&[0], "InternalError", false), unavailable] {
        rig.proxy.inject("ChangeMessageVisibilityBatch", [fault]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!delivery.is_lease_lost());
    }
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_stays_until_its_dead_letter_is_accepted() {
    let Some(rig) = Rig::new("a_rejected_message_stays_until_its_dead_letter_is_accepted").await else {
        return;
    };
    let (queue, dead) = rig.queue_with_dead_letters("").await;
    rig.publisher(&queue).await.publish(message("bad")).await.unwrap();
    let mut consumer = rig.consumer(&queue).await;
    rig.proxy.inject("SendMessageBatch", [entries(&[0], "KmsDisabled", true)]);
    let error = next(&mut consumer).await.reject("undecodable").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    rig.settles_at(&queue, 1).await;
    // It is there again at once, and a throttled dead letter is sent again.
    rig.proxy.inject("SendMessageBatch", [entries(&[0], "ThrottlingException", false)]);
    next(&mut consumer).await.reject("undecodable").await.unwrap();
    rig.settles_at(&queue, 0).await;
    rig.settles_at(&dead, 1).await;
    consumer.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receiving_goes_on_after_what_passes() {
    let Some(rig) = Rig::new("receiving_goes_on_after_what_passes").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    for result in publisher.publish_batch((0..30).map(|n| message(n.to_string()))).await {
        result.unwrap();
    }
    let throttled = Fault::Refuse { status: 400, code: "ThrottlingException" };
    rig.proxy.inject("ReceiveMessage", [throttled, Fault::Delay(Duration::from_millis(300))]);
    let mut consumer = rig.consumer(&queue).await;
    let mut seen = HashSet::new();
    while seen.len() < 30 {
        let delivery = next(&mut consumer).await;
        assert!(seen.insert(body(&delivery)));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_put_right() {
    let Some(rig) = Rig::new("a_clock_that_is_wrong_is_put_right").await else { return };
    let queue = rig.queue("").await;
    let driver = rig.transport.publisher(&queue).await.unwrap();
    rig.proxy.set_clock_ahead(Duration::from_secs(3600));
    let options = PublishOptions { timeout: Duration::from_secs(20), ..PublishOptions::default() };
    let publisher = Publisher::new(driver, &queue, options);
    publisher.publish(message("x")).await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
