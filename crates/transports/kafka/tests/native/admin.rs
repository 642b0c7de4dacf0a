//! Creating, counting, purging, browsing, deleting.

use std::num::NonZeroUsize;

use throughline_core::ErrorKind;

use crate::rig::{Rig, keyed, message, name, next, unique};

#[tokio::test(flavor = "multi_thread")]
async fn create_is_repeatable_and_another_number_of_partitions_is_a_conflict() {
    let Some(rig) = Rig::new("create_is_repeatable_and_another_number_of_partitions_is_a_conflict").await
    else {
        return;
    };
    let topic = unique("native");
    let options = "group=native-create&partitions=3&config.retention.ms=86400000&dead_letter&retry=topic";
    let address = rig.create(&topic, options).await;
    let made = rig.transport.create(&address).await.unwrap();
    assert_eq!(made.len(), 3, "{made:?}");
    assert!(
        made[0].contains("3 partitions")
            && made[1].contains(".native-create.retry")
            && made[2].contains(".dlq")
    );
    for (other, expected) in
        [("partitions=4", "4"), ("config.retention.ms=1000", "retention.ms"), ("replication=2", "2")]
    {
        let error = rig.transport.create(&rig.address(&topic, other)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = rig.transport.create(&rig.address(&unique("native"), "config.nonsense=1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidAddress, "{error}");
    let letters = rig.address(&format!("{topic}.dlq"), "");
    let deleted = rig.transport.delete(&address).await.unwrap();
    assert!(deleted.iter().any(|line| line.contains("not the dead-letter topic")), "{deleted:?}");
    rig.transport.delete(&letters).await.unwrap();
    assert_eq!(rig.transport.delete(&letters).await.unwrap(), Vec::<String>::new());
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_is_the_lag_of_the_group_and_a_purge_is_of_that_group_only() {
    let Some(rig) = Rig::new("depth_is_the_lag_of_the_group_and_a_purge_is_of_that_group_only").await else {
        return;
    };
    let topic = rig.topic("partitions=3").await;
    let other = topic.clone().with_option("group", "other");
    let none: throughline_core::Address = rig.address(name(&topic), "");
    let publisher = rig.publisher(&topic).await;
    let results = publisher.publish_batch((0..30).map(|n| keyed(&n.to_string(), "x"))).await;
    assert!(results.iter().all(Result::is_ok));
    let mut consumer = rig.consumer(&topic).await;
    for _ in 0..10 {
        next(&mut consumer).await.ack().await.unwrap();
    }
    let error = rig.transport.purge(&topic).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    consumer.close().await.unwrap();
    assert_eq!((rig.depth(&topic).await, rig.depth(&other).await, rig.depth(&none).await), (20, 30, 30));
    assert_eq!(rig.transport.purge(&topic).await.unwrap(), 20);
    assert_eq!((rig.depth(&topic).await, rig.depth(&other).await), (0, 30));
    assert_eq!(rig.transport.purge(&none).await.unwrap(), 30);
    assert_eq!((rig.depth(&other).await, rig.depth(&none).await), (0, 0));
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logs_end_stays_where_it_was_while_the_log_grows() {
    let Some(rig) = Rig::new("a_logs_end_stays_where_it_was_while_the_log_grows").await else { return };
    let topic = rig.topic("partitions=2").await;
    let publisher = rig.publisher(&topic).await;
    for n in 0..6 {
        publisher.publish(keyed(&n.to_string(), n.to_string())).await.unwrap();
    }
    let end = rig.transport.log_end(&topic).await.unwrap().unwrap();
    assert_eq!((end.positions.len(), end.positions.values().sum::<i64>()), (2, 6));
    for n in 0..4 {
        publisher.publish(keyed(&n.to_string(), "later")).await.unwrap();
    }
    assert_eq!(rig.transport.depth_before(&topic, &end).await.unwrap(), 6);
    let mut consumer = rig.consumer(&topic).await;
    for _ in 0..10 {
        next(&mut consumer).await.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.publish(message("last")).await.unwrap();
    assert_eq!((rig.transport.depth_before(&topic, &end).await.unwrap(), rig.depth(&topic).await), (0, 1));
    publisher.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsing_shows_what_the_group_has_not_had_and_takes_nothing() {
    let Some(rig) = Rig::new("browsing_shows_what_the_group_has_not_had_and_takes_nothing").await else {
        return;
    };
    let topic = rig.topic("partitions=2").await;
    let publisher = rig.publisher(&topic).await;
    for n in 0..6 {
        publisher.publish(keyed(&n.to_string(), n.to_string())).await.unwrap();
    }
    let mut consumer = rig.consumer(&topic).await;
    for _ in 0..2 {
        next(&mut consumer).await.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    let left = rig.depth(&topic).await;
    for max in [3, 100] {
        let seen = rig.transport.browse(&topic, NonZeroUsize::new(max).unwrap()).await.unwrap();
        assert_eq!(seen.len(), max.min(usize::try_from(left).unwrap()));
    }
    assert_eq!(rig.depth(&topic).await, left);
    let groupless = rig.address(name(&topic), "");
    assert_eq!(rig.transport.browse(&groupless, NonZeroUsize::new(9).unwrap()).await.unwrap().len(), 6);
    let empty = rig.topic("partitions=1").await;
    assert!(rig.transport.browse(&empty, NonZeroUsize::MIN).await.unwrap().is_empty());
    publisher.publish(message("last")).await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
