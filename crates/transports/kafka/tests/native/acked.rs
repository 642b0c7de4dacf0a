//! What is acked above the position: it does not come again, whoever has the partition next.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use throughline_core::{Address, Consumer, Delivery, PublishOptions, Publisher};
use throughline_kafka::rdkafka;

use crate::rig::{Rig, body, connect, message, name, next, nothing, options};

async fn publish(publisher: &Publisher, count: usize) {
    let answers = publisher.publish_batch((0..count).map(|n| message(n.to_string()))).await;
    assert!(answers.iter().all(Result::is_ok));
}

/// Takes so many, and acks all but these.
async fn take_all_but(consumer: &mut Consumer, count: usize, held: &[&str]) -> Vec<Delivery> {
    let mut unsettled = Vec::new();
    for _ in 0..count {
        let delivery = next(consumer).await;
        if held.contains(&body(&delivery).as_str()) {
            unsettled.push(delivery);
        } else {
            delivery.ack().await.unwrap();
        }
    }
    unsettled
}

/// Waits until a group has this of the first partition, as another client reads it.
async fn commits(servers: &str, of: &Address, position: i64, metadata: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", of.option("group").unwrap());
    let client: BaseConsumer = config.create().unwrap();
    let (topic, wanted) = (name(of).to_owned(), (Offset::Offset(position), metadata.to_owned()));
    let waiting = tokio::task::spawn_blocking(move || {
        let mut found = None;
        for _ in 0..100 {
            let mut asked = TopicPartitionList::new();
            asked.add_partition(&topic, 0);
            let answer = client.committed_offsets(asked, Duration::from_secs(20)).unwrap();
            let element = &answer.elements()[0];
            found = Some((element.offset(), element.metadata().to_owned()));
            if found.as_ref() == Some(&wanted) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(found, Some(wanted));
    });
    waiting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_above_the_position_are_committed_while_it_stays_and_kept_until_it_passes_them() {
    for protocol in ["classic", "consumer"] {
        let test = "acks_above_the_position_are_committed_while_it_stays_and_kept_until_it_passes_them";
        let Some(rig) = Rig::new(test).await else { return };
        let topic =
            rig.topic(&format!("partitions=1&commit_interval=200ms&kafka.group.protocol={protocol}")).await;
        let publisher = rig.publisher(&topic).await;
        publish(&publisher, 10).await;
        let mut consumer = rig.consumer(&topic).await;
        let held = take_all_but(&mut consumer, 10, &["2", "5", "8"]).await;
        // As a crash would leave it: the position stays at 2, and the metadata goes on.
        commits(rig.servers(), &topic, 2, "tl-acks/1:AgEBAQEBAA").await;
        drop(held);
        consumer.close().await.unwrap();
        // The next moves the position, and hands on what it has not got to.
        let mut consumer = rig.consumer(&topic).await;
        for expected in ["2", "5", "8"] {
            let delivery = next(&mut consumer).await;
            assert_eq!((body(&delivery).as_str(), delivery.attempt()), (expected, 1));
            if expected != "5" {
                delivery.ack().await.unwrap();
            }
        }
        consumer.close().await.unwrap();
        let mut consumer = rig.consumer(&topic).await;
        let last = next(&mut consumer).await;
        assert_eq!(body(&last), "5");
        assert!(nothing(&mut consumer, Duration::from_secs(1)).await);
        last.ack().await.unwrap();
        consumer.close().await.unwrap();
        commits(rig.servers(), &topic, 10, "").await;
        publisher.close().await.unwrap();
        rig.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_of_others_and_of_other_positions_skips_nothing() {
    let test = "metadata_of_others_and_of_other_positions_skips_nothing";
    let Some(rig) = Rig::new(test).await else { return };
    // Garbage, broken, and of the position 2.
    for metadata in ["somebody's own", "tl-acks/1:!", "tl-acks/1:AgEBAQEBAA"] {
        let topic = rig.topic("partitions=1").await;
        let publisher = rig.publisher(&topic).await;
        publish(&publisher, 10).await;
        let mut position = TopicPartitionList::new();
        let mut element = position.add_partition(name(&topic), 0);
        element.set_offset(Offset::Offset(3)).unwrap();
        element.set_metadata(metadata);
        let client: BaseConsumer =
            rig.config().set("group.id", topic.option("group").unwrap()).create().unwrap();
        tokio::task::spawn_blocking(move || client.commit(&position, CommitMode::Sync))
            .await
            .unwrap()
            .unwrap();
        let mut consumer = rig.consumer(&topic).await;
        for expected in 3..10 {
            let delivery = next(&mut consumer).await;
            assert_eq!(body(&delivery), expected.to_string(), "{metadata}");
            delivery.ack().await.unwrap();
        }
        consumer.close().await.unwrap();
        publisher.close().await.unwrap();
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_broker_that_takes_less_metadata_gets_the_position_without() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let address = format!("kafka://{}/t?group=g&commit_interval=100ms", cluster.bootstrap_servers());
    let address: Address = address.parse().unwrap();
    let transport = connect(&address.to_string()).await.unwrap();
    let driver = transport.publisher(&address).await.unwrap();
    let publisher = Publisher::new(driver, &address, PublishOptions::default());
    publish(&publisher, 6).await;
    let mut consumer =
        Consumer::new(transport.consumer(&address, &options()).await.unwrap(), &address, options());
    let mut held = take_all_but(&mut consumer, 6, &["1", "4"]).await;
    let servers = cluster.bootstrap_servers();
    commits(&servers, &address, 1, "tl-acks/1:AQEBAQA").await;
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[too_large]);
    held.remove(1).ack().await.unwrap();
    commits(&servers, &address, 1, "").await;
    held.remove(0).ack().await.unwrap();
    commits(&servers, &address, 6, "").await;
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    drop(cluster);
}
