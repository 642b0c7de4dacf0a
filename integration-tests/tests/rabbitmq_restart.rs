//! A real RabbitMQ that is killed and started again under a publisher and a consumer: both go on by themselves, and what
//! was accepted is not lost.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells what it measured"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use throughline::{Bus, Consumer, Envelope, PublishOptions, Publisher};
use throughline_brokers::{RabbitMq, StartOptions};
use throughline_integration_tests::unique;
use throughline_testkit::endpoint;

/// What [`wait_until_flowing`] publishes.
const PROBE: u64 = u64::MAX;

/// A broker of this test's own, because it is killed.
async fn private_broker(test: &str) -> Option<RabbitMq> {
    if !RabbitMq::installed() {
        endpoint::skip(test, "needs a RabbitMQ of its own to kill, and none is installed");
        return None;
    }
    let started = tokio::task::spawn_blocking(|| RabbitMq::start(&StartOptions::default()));
    Some(started.await.unwrap().unwrap())
}

/// Publishes numbers until told to stop; gives those that were accepted.
async fn publish(publisher: Publisher, stop: Arc<AtomicBool>) -> BTreeSet<u64> {
    let mut accepted = BTreeSet::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let envelope = Envelope::builder("count").payload(number.to_string()).build();
        // What is uncertain may or may not arrive; what is accepted must.
        if publisher.publish(envelope).await.is_ok() {
            accepted.insert(number);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    publisher.close().await.unwrap();
    accepted
}

/// Consumes until nothing comes for a while after the stop; gives how often each number came.
async fn consume(mut consumer: Consumer, stop: Arc<AtomicBool>) -> BTreeMap<u64, u32> {
    let mut received = BTreeMap::new();
    loop {
        let idle = Duration::from_secs(10);
        match tokio::time::timeout(idle, consumer.next()).await {
            Ok(Some(delivery)) => {
                let delivery = delivery.unwrap();
                let number = delivery.envelope().payload.as_deref().unwrap_or_default();
                let number = std::str::from_utf8(number).unwrap().parse().unwrap();
                *received.entry(number).or_default() += 1;
                // Stale after a cut: it comes again, and is counted again.
                let _ = delivery.ack().await;
            }
            Ok(None) => break,
            Err(_) if stop.load(Ordering::Relaxed) => break,
            Err(_) => {}
        }
    }
    consumer.close().await.unwrap();
    received
}

#[tokio::test(flavor = "multi_thread")]
async fn publisher_and_consumer_outlive_a_killed_and_a_restarted_broker() {
    const TEST: &str = "publisher_and_consumer_outlive_a_killed_and_a_restarted_broker";
    let Some(mut broker) = private_broker(TEST).await else { return };
    let bus = Bus::connect(format!("{}?queue={}", broker.url(), unique("restart"))).await.unwrap();
    bus.create("").await.unwrap();
    // A broker that is killed right after a quorum queue was declared forgets the queue.
    broker.sync_metadata().unwrap();

    let options = PublishOptions { timeout: Duration::from_secs(120), ..PublishOptions::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn(publish(bus.publisher_to("", options).await.unwrap(), stop.clone()));
    let consuming = tokio::spawn(consume(bus.consumer().await.unwrap(), stop.clone()));

    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut broker = tokio::task::spawn_blocking(move || {
        broker.kill();
        broker.restart().unwrap();
        broker
    })
    .await
    .unwrap();
    let restarted = Instant::now();
    wait_until_flowing(&bus).await;
    eprintln!("publishing again {:?} after the killed broker was back", restarted.elapsed());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let broker = tokio::task::spawn_blocking(move || {
        broker.stop();
        broker.restart().unwrap();
        broker
    })
    .await
    .unwrap();
    wait_until_flowing(&bus).await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    stop.store(true, Ordering::Relaxed);
    let accepted = tokio::time::timeout(Duration::from_secs(60), publishing).await.unwrap().unwrap();
    let received = tokio::time::timeout(Duration::from_secs(90), consuming).await.unwrap().unwrap();
    let mut received = received;
    // Ours, to see that it flows: not part of the ledger.
    received.remove(&PROBE);
    let lost: Vec<_> = accepted.iter().filter(|number| !received.contains_key(number)).collect();
    let duplicates = received.values().filter(|times| **times > 1).count();
    eprintln!(
        "accepted {}, received {}, lost {}, delivered more than once {duplicates}",
        accepted.len(),
        received.len(),
        lost.len(),
    );
    assert!(lost.is_empty(), "lost {lost:?}");
    assert!(accepted.len() > 500, "only {} were accepted: did it go on?", accepted.len());
    bus.close().await.unwrap();
    drop(broker);
}

/// Waits until a message of our own is accepted again.
async fn wait_until_flowing(bus: &Bus) {
    let options = PublishOptions { timeout: Duration::from_secs(90), ..PublishOptions::default() };
    // Opening asks the broker, which may not be back in full.
    let opening = async {
        loop {
            match bus.publisher_to("", options.clone()).await {
                Ok(publisher) => break publisher,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    let publisher = tokio::time::timeout(Duration::from_secs(90), opening).await.unwrap();
    let probe = Envelope::builder("count").payload(PROBE.to_string()).build();
    publisher.publish(probe).await.unwrap();
    publisher.close().await.unwrap();
}
