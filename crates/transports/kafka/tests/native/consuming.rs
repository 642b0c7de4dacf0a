//! Groups, the contiguous watermark, back-pressure, stopping.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use throughline_core::driver::Settlement;
use throughline_core::{ConsumeOptions, Envelope, ErrorKind, Timestamp};

use crate::rig::{Rig, body, keyed, message, next, nothing, options, record};

#[tokio::test(flavor = "multi_thread")]
async fn groups_each_get_everything_and_consumers_of_one_share() {
    let Some(rig) = Rig::new("groups_each_get_everything_and_consumers_of_one_share").await else { return };
    let topic = rig.topic("partitions=4").await;
    let other = topic.clone().with_option("group", "other");
    let publisher = rig.publisher(&topic).await;
    let results = publisher.publish_batch((0..200).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    assert!(results.iter().all(Result::is_ok));
    let all: BTreeSet<String> = (0..200).map(|n| n.to_string()).collect();
    let (mut a, mut b) = (rig.consumer(&topic).await, rig.consumer(&topic).await);
    let mut seen = BTreeSet::new();
    while seen.len() < 200 {
        let delivery = tokio::select! {
            delivery = next(&mut a) => delivery,
            delivery = next(&mut b) => delivery,
        };
        seen.insert(body(&delivery));
        delivery.ack().await.unwrap();
    }
    assert_eq!(seen, all);
    let mut third = rig.consumer(&other).await;
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let delivery = next(&mut third).await;
        seen.insert(body(&delivery));
        delivery.ack().await.unwrap();
    }
    assert_eq!(seen, all);
    for consumer in [a, b, third] {
        consumer.close().await.unwrap();
    }
    assert_eq!((rig.depth(&topic).await, rig.depth(&other).await), (0, 0));
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_groups_of_the_brokers_protocol_work_the_same() {
    let Some(rig) = Rig::new("the_groups_of_the_brokers_protocol_work_the_same").await else { return };
    let topic = rig.topic("partitions=2&kafka.group.protocol=consumer").await;
    let publisher = rig.publisher(&topic).await;
    let results = publisher.publish_batch((0..50).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    assert!(results.iter().all(Result::is_ok));
    let mut a = rig.consumer(&topic).await;
    let mut count = 0;
    for _ in 0..20 {
        next(&mut a).await.ack().await.unwrap();
        count += 1;
    }
    let mut b = rig.consumer(&topic).await;
    let publishing = publisher.publish_batch((0..500).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    assert!(publishing.iter().all(Result::is_ok));
    let mut by_b = 0;
    let deadline = Instant::now() + Duration::from_secs(40);
    while (count < 550 || by_b == 0) && Instant::now() < deadline {
        tokio::select! {
            delivery = a.next() => delivery.unwrap().unwrap().ack().await.unwrap_or_default(),
            delivery = b.next() => {
                by_b += 1;
                delivery.unwrap().unwrap().ack().await.unwrap_or_default();
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                // The second gets its share only when its assignment comes.
                publisher.publish_batch((0..20).map(|n| keyed(&n.to_string(), "more"))).await;
                continue;
            }
        }
        count += 1;
    }
    assert!(by_b > 0 && count >= 550, "{by_b} of {count}");
    a.close().await.unwrap();
    b.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_never_passes_an_unsettled_message() {
    let Some(rig) = Rig::new("a_commit_never_passes_an_unsettled_message").await else { return };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    for n in 0..10 {
        publisher.publish(message(n.to_string())).await.unwrap();
    }
    let mut consumer = rig.consumer(&topic).await;
    let mut held = Vec::new();
    for n in 0..10 {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), n.to_string());
        // All but the fourth and the seventh.
        if n == 3 || n == 6 { held.push(delivery) } else { delivery.ack().await.unwrap() }
    }
    rig.settles_at(&topic, 7).await;
    held.remove(0).ack().await.unwrap();
    rig.settles_at(&topic, 4).await;
    consumer.close().await.unwrap();
    assert_eq!(rig.depth(&topic).await, 4);
    let mut consumer = rig.consumer(&topic).await;
    assert_eq!(body(&next(&mut consumer).await), "6");
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_full_keeps_its_membership_and_goes_on_later() {
    let Some(rig) = Rig::new("a_consumer_that_is_full_keeps_its_membership_and_goes_on_later").await else {
        return;
    };
    // A poll that is missed for so long evicts the member.
    let limits = "kafka.max.poll.interval.ms=6000&kafka.session.timeout.ms=6000";
    let topic = rig.topic(&format!("partitions=2&{limits}")).await;
    let publisher = rig.publisher(&topic).await;
    let results = publisher.publish_batch((0..400).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    assert!(results.iter().all(Result::is_ok));
    let options = ConsumeOptions { max_unsettled: 5, ..options() };
    let mut consumer = rig.consumer_with(&topic, options).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(next(&mut consumer).await);
    }
    assert!(nothing(&mut consumer, Duration::from_secs(8)).await);
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    let mut seen = BTreeSet::new();
    for _ in 5..400 {
        let delivery = next(&mut consumer).await;
        assert!(seen.insert(body(&delivery)), "{} came twice", body(&delivery));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    assert_eq!(rig.depth(&topic).await, 0);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_waits_at_its_window_and_others_go_on() {
    let Some(rig) = Rig::new("a_partition_waits_at_its_window_and_others_go_on").await else { return };
    let topic = rig.topic("partitions=2&window=300").await;
    let publisher = rig.publisher(&topic).await;
    let results = publisher.publish_batch((0..4_000).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    assert!(results.iter().all(Result::is_ok));
    let mut consumer = rig.consumer(&topic).await;
    let stuck = next(&mut consumer).await;
    let waits = record(&stuck).partition;
    let (mut of_stuck, mut of_other) = (0, 0);
    loop {
        let Ok(delivery) = tokio::time::timeout(Duration::from_secs(3), consumer.next()).await else { break };
        let delivery = delivery.unwrap().unwrap();
        if record(&delivery).partition == waits {
            of_stuck += 1;
        } else {
            of_other += 1;
        }
        delivery.ack().await.unwrap();
    }
    // One batch may come beyond it.
    assert!((1..=300 + 512).contains(&of_stuck), "{of_stuck}");
    assert!(of_other > 1_500, "{of_other}");
    stuck.ack().await.unwrap();
    while of_stuck + of_other < 3_999 {
        let delivery = next(&mut consumer).await;
        of_stuck += 1;
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    assert_eq!(rig.depth(&topic).await, 0);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_receive_returns_when_stopped_and_what_is_held_can_be_settled() {
    let test = "a_waiting_receive_returns_when_stopped_and_what_is_held_can_be_settled";
    let Some(rig) = Rig::new(test).await else { return };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    for n in 0..3 {
        publisher.publish(message(n.to_string())).await.unwrap();
    }
    let driver = rig.transport.consumer(&topic, &options()).await.unwrap();
    let wait = Duration::from_secs(60);
    let first = driver.receive(NonZeroUsize::MIN, wait).await.unwrap();
    let mut rest = Vec::new();
    while rest.len() < 2 {
        rest.extend(driver.receive(NonZeroUsize::new(5).unwrap(), wait).await.unwrap());
    }
    let waiting = {
        let driver = driver.clone();
        tokio::spawn(async move { driver.receive(NonZeroUsize::MIN, wait).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    driver.stop().await;
    let received = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert!(received.unwrap().is_empty());
    let token = first[0].token;
    assert!(driver.settle(&[(token, Settlement::Ack)]).await[0].is_ok());
    let twice = driver.settle(&[(token, Settlement::Ack)]).await.remove(0).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Stale);
    driver.close().await.unwrap();
    let late = driver.settle(&[(rest[0].token, Settlement::Ack)]).await.remove(0).unwrap_err();
    assert_eq!((late.kind(), driver.is_current(&rest[0].token)), (ErrorKind::Stale, false));
    assert_eq!(rig.depth(&topic).await, 2);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_consumer_has_not_handed_out_goes_to_others_once_the_rest_is_settled() {
    let test = "what_a_stopped_consumer_has_not_handed_out_goes_to_others_once_the_rest_is_settled";
    let Some(rig) = Rig::new(test).await else { return };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    for n in 0..10 {
        publisher.publish(message(n.to_string())).await.unwrap();
    }
    let first = rig.transport.consumer(&topic, &options()).await.unwrap();
    let held = first.receive(NonZeroUsize::MIN, Duration::from_secs(60)).await.unwrap();
    first.stop().await;
    let mut second = rig.consumer(&topic).await;
    assert!(nothing(&mut second, Duration::from_secs(5)).await);
    assert!(first.settle(&[(held[0].token, Settlement::Ack)]).await[0].is_ok());
    // The first is still open.
    for n in 1..10 {
        let delivery = next(&mut second).await;
        assert_eq!(body(&delivery), n.to_string());
        delivery.ack().await.unwrap();
    }
    first.close().await.unwrap();
    second.close().await.unwrap();
    assert_eq!(rig.depth(&topic).await, 0);
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_new_group_begins_is_the_addresss_choice() {
    let Some(rig) = Rig::new("where_a_new_group_begins_is_the_addresss_choice").await else { return };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    publisher.publish(message("old")).await.unwrap();
    let latest = topic.clone().with_option("group", "latest").with_option("from", "latest");
    let mut consumer = rig.consumer(&latest).await;
    assert!(nothing(&mut consumer, Duration::from_secs(4)).await);
    publisher.publish(message("new")).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "new");
    consumer.close().await.unwrap();
    let none = topic.clone().with_option("group", "none").with_option("from", "none");
    let mut consumer = rig.consumer(&none).await;
    let end = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await.unwrap();
    let error = end.unwrap().unwrap_err();
    assert!(error.to_string().contains("from=none"), "{error}");
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_message_is_not_delivered_and_does_not_hold_the_position() {
    let Some(rig) = Rig::new("an_expired_message_is_not_delivered_and_does_not_hold_the_position").await
    else {
        return;
    };
    let topic = rig.topic("partitions=1").await;
    let publisher = rig.publisher(&topic).await;
    let past = Timestamp::from_millis(Timestamp::now().as_millis() - 1000);
    publisher.publish(Envelope::builder("t").expires_at(past).payload("late").build()).await.unwrap();
    publisher.publish(message("good")).await.unwrap();
    let mut consumer = rig.consumer(&topic).await;
    let delivery = next(&mut consumer).await;
    assert_eq!(body(&delivery), "good");
    delivery.ack().await.unwrap();
    rig.settles_at(&topic, 0).await;
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_ends_the_stream() {
    let Some(rig) = Rig::new("a_topic_that_is_deleted_ends_the_stream").await else { return };
    let topic = rig.topic("partitions=1&kafka.topic.metadata.refresh.interval.ms=1000").await;
    let mut consumer = rig.consumer(&topic).await;
    assert!(nothing(&mut consumer, Duration::from_secs(1)).await);
    rig.transport.delete(&topic).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await.unwrap();
    let error = end.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("throughline create"), "{error}");
    assert!(consumer.next().await.is_none());
    consumer.close().await.unwrap();
    rig.finish().await;
}
