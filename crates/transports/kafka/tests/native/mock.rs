//! Errors that a real broker gives only by chance, injected into librdkafka's own stand-in for a cluster (`MockCluster`).

use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use throughline_core::{Address, Consumer, ErrorKind, PublishOptions, Publisher, Retry};
use throughline_kafka::rdkafka;

use crate::rig::{body, connect, keyed, message, next, options};

fn cluster() -> (MockCluster<'static, DefaultProducerContext>, Address) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    let address = format!("kafka://{}/t?group=g&commit_interval=100ms", cluster.bootstrap_servers());
    (cluster, address.parse().unwrap())
}

#[tokio::test]
async fn a_produce_error_that_passes_is_not_seen_and_one_that_stays_is_told_as_it_is() {
    let (cluster, address) = cluster();
    let transport = connect(&address.to_string()).await.unwrap();
    let driver = transport.publisher(&address).await.unwrap();
    let publisher = Publisher::new(driver, &address, PublishOptions::default());
    publisher.publish(message("0")).await.unwrap();
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        ],
    );
    publisher.publish(message("1")).await.unwrap();
    for (code, kind) in [
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, ErrorKind::LimitExceeded),
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, ErrorKind::Refused),
        // librdkafka remembers it, so that it comes last.
        (RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, ErrorKind::PermissionDenied),
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[code]);
        let error = publisher.publish(keyed("k", "refused")).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (kind, Retry::Never), "{error:?}");
        // What comes after it is held back until somebody has decided.
        let held = publisher.publish(keyed("k", "held")).await.unwrap_err();
        assert_eq!(held.kind(), ErrorKind::HeldBack);
        assert!(publisher.resume(b"k"));
    }
    let mut consumer =
        Consumer::new(transport.consumer(&address, &options()).await.unwrap(), &address, options());
    for expected in ["0", "1"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(body(&delivery), expected);
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    drop(cluster);
}

#[tokio::test]
async fn a_producer_that_cannot_go_on_is_made_anew() {
    let (cluster, address) = cluster();
    let transport = connect(&address.to_string()).await.unwrap();
    let driver = transport.publisher(&address).await.unwrap();
    let publisher = Publisher::new(driver, &address, PublishOptions::default());
    publisher.publish(message("0")).await.unwrap();
    // What librdkafka takes for lost data: fatal for an idempotent producer.
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[lost]);
    let error = publisher.publish(message("1")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Disconnected, Retry::Uncertain), "{error:?}");
    publisher.publish(message("2")).await.unwrap();
    publisher.close().await.unwrap();
    drop(cluster);
}

#[tokio::test]
async fn a_commit_that_fails_is_made_again() {
    let (cluster, address) = cluster();
    let transport = connect(&address.to_string()).await.unwrap();
    let driver = transport.publisher(&address).await.unwrap();
    let publisher = Publisher::new(driver, &address, PublishOptions::default());
    for n in 0..5 {
        publisher.publish(message(n.to_string())).await.unwrap();
    }
    let mut consumer =
        Consumer::new(transport.consumer(&address, &options()).await.unwrap(), &address, options());
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(next(&mut consumer).await);
    }
    cluster.request_errors(
        RDKafkaApiKey::OffsetCommit,
        &[
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN,
        ],
    );
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    let mut ready = u64::MAX;
    for _ in 0..100 {
        ready = transport.depth(&address).await.unwrap().ready;
        if ready == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ready, 0);
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    drop(cluster);
}

#[tokio::test]
async fn closing_ends_soon_though_the_brokers_are_gone() {
    let (cluster, address) = cluster();
    let address = address.with_option("connect_timeout", "2s");
    let transport = connect(&address.to_string()).await.unwrap();
    let driver = transport.publisher(&address).await.unwrap();
    let publisher = Publisher::new(driver, &address, PublishOptions::default());
    publisher.publish(message("0")).await.unwrap();
    let mut consumer =
        Consumer::new(transport.consumer(&address, &options()).await.unwrap(), &address, options());
    let delivery = next(&mut consumer).await;
    cluster.broker_down(1).unwrap();
    delivery.ack().await.unwrap();
    // librdkafka itself would wait for as long as the group's session lasts: 45 s.
    let started = Instant::now();
    assert_eq!(consumer.close().await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    publisher.close().await.unwrap();
    drop(cluster);
}
