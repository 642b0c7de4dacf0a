//! Prefetch, acks, release, stale tokens, stop.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use throughline_core::driver::Settlement;
use throughline_core::{ConsumeOptions, ErrorKind};

use crate::rig::{Rig, body, message, next, nothing};

fn options(max_unsettled: usize) -> ConsumeOptions {
    ConsumeOptions { max_unsettled, ..ConsumeOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_prefetch_is_held() {
    let Some(rig) = Rig::new("no_more_than_the_prefetch_is_held").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish_batch((0..50).map(|n| message(n.to_string()))).await;
    let mut consumer = rig.consumer_with(&queue, options(10)).await;
    let held = next(&mut consumer).await;
    rig.settles_at(&queue, 40).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.depth(&queue).await, 40);
    held.ack().await.unwrap();
    rig.settles_at(&queue, 39).await;
    consumer.close().await.unwrap();
    // Closed, it gives back all that was not settled.
    rig.settles_at(&queue, 49).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_in_any_order_loses_nothing() {
    let Some(rig) = Rig::new("settling_in_any_order_loses_nothing").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    let count = 600_usize;
    publisher.publish_batch((0..count).map(|n| message(n.to_string()))).await;
    let mut consumer = rig.consumer_with(&queue, options(count)).await;
    let mut held = Vec::new();
    while held.len() < count {
        held.push(next(&mut consumer).await);
    }
    let mut kept = BTreeSet::new();
    // Shuffled, some released, some acked alone, most in batches with gaps.
    held.sort_by_key(|delivery| (body(delivery).parse::<usize>().unwrap() * 7_919) % 601);
    for (at, delivery) in held.into_iter().enumerate() {
        match at % 5 {
            0 => {
                kept.insert(body(&delivery));
                // Forgotten, as by a crash: neither settled nor released.
                std::mem::forget(delivery);
            }
            1 => {
                kept.insert(body(&delivery));
                delivery.release().await.unwrap();
            }
            _ => delivery.ack().await.unwrap(),
        }
    }
    assert_eq!(consumer.settle_errors(), 0);
    consumer.close().await.unwrap();
    let expected = u64::try_from(kept.len()).unwrap();
    rig.settles_at(&queue, expected).await;
    let mut again = rig.consumer_with(&queue, options(count)).await;
    let mut seen = BTreeSet::new();
    for _ in 0..expected {
        let delivery = next(&mut again).await;
        assert!(delivery.receive_count().unwrap() > 1);
        seen.insert(body(&delivery));
        delivery.ack().await.unwrap();
    }
    assert_eq!(seen, kept);
    again.close().await.unwrap();
    rig.settles_at(&queue, 0).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_lost_channel_is_stale() {
    let Some(rig) = Rig::new("a_token_of_a_lost_channel_is_stale").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish(message("x")).await.unwrap();
    let driver = rig.transport.consumer(&queue, &options(10)).await.unwrap();
    let (one, wait) = (NonZeroUsize::MIN, Duration::from_secs(10));
    let first = driver.receive(one, wait).await.unwrap().pop().unwrap();
    assert_eq!((first.token.epoch, driver.epoch()), (1, 1));
    // An unknown tag makes the broker close the channel.
    let mut unknown = first.token;
    unknown.tag = 999;
    let results = driver.settle(&[(unknown, Settlement::Ack)]).await;
    assert_eq!(results[0].as_ref().unwrap_err().kind(), ErrorKind::Stale, "never sent to the broker");
    driver.settle(&[(first.token, Settlement::Release)]).await.pop().unwrap().unwrap();
    let second = driver.receive(one, wait).await.unwrap().pop().unwrap();
    let results = driver.settle(&[(second.token, Settlement::Ack), (second.token, Settlement::Ack)]).await;
    assert!(results[0].is_ok());
    assert_eq!(results[1].as_ref().unwrap_err().kind(), ErrorKind::Stale, "acked once");
    assert_eq!(driver.epoch(), 1, "the channel has survived all of it");
    driver.close().await.unwrap();
    assert_eq!(driver.epoch(), 2);
    let results = driver.settle(&[(second.token, Settlement::Ack)]).await;
    assert_eq!(results[0].as_ref().unwrap_err().kind(), ErrorKind::Stale);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_gives_back_what_is_unread_and_held_deliveries_can_be_settled() {
    let Some(rig) = Rig::new("stop_gives_back_what_is_unread_and_held_deliveries_can_be_settled").await
    else {
        return;
    };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish_batch((0..100).map(|n| message(n.to_string()))).await;
    let driver = rig.transport.consumer(&queue, &options(50)).await.unwrap();
    let wait = Duration::from_secs(10);
    let held = driver.receive(NonZeroUsize::new(3).unwrap(), wait).await.unwrap();
    rig.settles_at(&queue, 50).await;
    driver.stop().await;
    let held_now = u64::try_from(held.len()).unwrap();
    rig.settles_at(&queue, 100 - held_now).await;
    assert!(driver.receive(NonZeroUsize::MIN, wait).await.unwrap().is_empty());
    let acks: Vec<_> = held.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    assert!(driver.settle(&acks).await.iter().all(Result::is_ok));
    driver.close().await.unwrap();
    rig.settles_at(&queue, 100 - held_now).await;
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_receive_returns_when_stopped() {
    let Some(rig) = Rig::new("a_waiting_receive_returns_when_stopped").await else { return };
    let queue = rig.queue("").await;
    let driver = rig.transport.consumer(&queue, &options(50)).await.unwrap();
    let waiting = {
        let driver = driver.clone();
        tokio::spawn(async move { driver.receive(NonZeroUsize::MIN, Duration::from_secs(60)).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    driver.stop().await;
    let received = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert!(received.unwrap().is_empty());
    driver.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_ends_the_stream() {
    let Some(rig) = Rig::new("a_queue_that_is_deleted_ends_the_stream").await else { return };
    let queue = rig.queue("").await;
    let mut consumer = rig.consumer(&queue).await;
    assert!(nothing(&mut consumer, Duration::from_millis(100)).await);
    rig.transport.delete(&queue).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await.unwrap();
    let error = end.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("throughline create"), "{error}");
    assert!(consumer.next().await.is_none());
    consumer.close().await.unwrap();
    rig.finish().await;
}
