//! Partitions that go to another consumer while a handler runs.

use std::collections::HashMap;
use std::time::Duration;

use throughline_core::{Delivery, ErrorKind};

use crate::rig::{Rig, body, keyed, message, next, nothing, record, unique};

/// Two consumers of one group, the second of which takes a partition from the first while it holds `held`.
async fn take_over(
    rig: &Rig,
    options: &str,
) -> (throughline_core::Address, throughline_core::Consumer, throughline_core::Consumer, Vec<Delivery>) {
    let topic = rig.topic(&format!("partitions=2&{options}")).await;
    let publisher = rig.publisher(&topic).await;
    let results = publisher.publish_batch((0..40).map(|n| keyed(&n.to_string(), n.to_string()))).await;
    assert!(results.iter().all(Result::is_ok));
    publisher.close().await.unwrap();
    let mut first = rig.consumer(&topic).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(next(&mut first).await);
    }
    let second = rig.consumer(&topic).await;
    (topic, first, second, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_while_its_partition_drains_is_not_delivered_again() {
    for protocol in ["classic", "consumer"] {
        let Some(rig) = Rig::new("what_is_settled_while_its_partition_drains_is_not_delivered_again").await
        else {
            return;
        };
        let options = format!("drain=25s&kafka.group.protocol={protocol}");
        let (topic, first, mut second, held) = take_over(&rig, &options).await;
        // The handlers go on while the rebalance waits for them.
        tokio::time::sleep(Duration::from_secs(4)).await;
        for delivery in held {
            delivery.ack().await.unwrap();
        }
        assert!(nothing(&mut second, Duration::from_secs(5)).await);
        rig.settles_at(&topic, 0).await;
        second.close().await.unwrap();
        first.close().await.unwrap();
        rig.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_ack_is_stale_and_never_commits_what_was_taken_away() {
    for protocol in ["classic", "consumer"] {
        let Some(rig) = Rig::new("a_late_ack_is_stale_and_never_commits_what_was_taken_away").await else {
            return;
        };
        let options = format!("drain=200ms&kafka.group.protocol={protocol}");
        let (topic, first, mut second, held) = take_over(&rig, &options).await;
        // The second has one of the partitions: what the first holds of it comes again.
        let again = next(&mut second).await;
        let taken = record(&again).partition;
        let of_taken = held.iter().filter(|delivery| record(delivery).partition == taken).count();
        let mut outcomes = HashMap::new();
        for delivery in held {
            let partition = record(&delivery).partition;
            let outcome = delivery.ack().await.map_err(|error| error.kind());
            *outcomes.entry((partition == taken, outcome)).or_insert(0) += 1;
        }
        assert_eq!(outcomes.get(&(true, Err(ErrorKind::Stale))), Some(&of_taken), "{outcomes:?}");
        assert_eq!(outcomes.get(&(false, Ok(()))), Some(&(40 - of_taken)), "{outcomes:?}");
        rig.settles_at(&topic, u64::try_from(of_taken).unwrap()).await;
        again.ack().await.unwrap();
        for _ in 1..of_taken {
            let delivery = next(&mut second).await;
            assert_eq!(record(&delivery).partition, taken, "{}", body(&delivery));
            delivery.ack().await.unwrap();
        }
        rig.settles_at(&topic, 0).await;
        first.close().await.unwrap();
        second.close().await.unwrap();
        rig.finish().await;
    }
}

/// Who closes in the middle of joining is no member that the others would have to wait for.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_closed_as_it_joins_keeps_nobody_waiting() {
    let Some(rig) = Rig::new("a_consumer_closed_as_it_joins_keeps_nobody_waiting").await else { return };
    let topic = rig.topic("").await;
    let publisher = rig.publisher(&topic).await;
    publisher.publish(message("for the second")).await.unwrap();
    publisher.close().await.unwrap();
    let joined = (0..40).map(async |n| {
        let topic = topic.clone().with_option("group", &unique("joining"));
        let first = rig.consumer(&topic).await;
        tokio::time::sleep(Duration::from_millis(6 * n)).await;
        first.close().await.unwrap();
        let mut second = rig.consumer(&topic).await;
        next(&mut second).await.ack().await.unwrap();
        second.close().await.unwrap();
    });
    futures_util::future::join_all(joined).await;
    rig.finish().await;
}
