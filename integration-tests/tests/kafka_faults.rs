//! A real Kafka that is killed, stopped and frozen under a steady flow: nothing that was accepted is lost, the order of each
//! key is kept, duplicates are counted, and both sides go on by themselves.
//!
//! `THROUGHLINE_SOAK=30m cargo test -p throughline-integration-tests --test kafka_faults -- --nocapture` repeats each fault
//! for so long.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use throughline::Bus;
use throughline_brokers::Kafka;
use throughline_integration_tests::faults::{self, Victim};
use throughline_integration_tests::unique;
use throughline_testkit::endpoint;

/// A Kafka to hurt, and a bus with a topic and a group of its own.
async fn victim(test: &str) -> Option<(Victim<Kafka>, Bus)> {
    let victim = Victim::<Kafka>::start(test).await?;
    let topic = unique(test);
    let address = format!("{}/{topic}?group={topic}&partitions=3", victim.broker.url());
    let bus = Bus::connect(address).await.unwrap();
    bus.create("").await.unwrap();
    Some((victim, bus))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted() {
    const TEST: &str = "kafka_killed_and_restarted";
    let Some((victim, bus)) = victim(TEST).await else { return };
    victim.killed_and_restarted(bus, TEST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_for_ten_seconds() {
    const TEST: &str = "kafka_frozen_for_ten_seconds";
    let Some((victim, bus)) = victim(TEST).await else { return };
    victim.frozen_for_ten_seconds(bus, TEST).await;
}

/// Not a test of its own: a process of [`consumer_killed_in_its_handler`].
#[tokio::test]
async fn consumer_process() {
    faults::consumer_process().await;
}

/// What it had not settled, and the little that it had not committed, go to the next one, in order.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_killed_in_its_handler() {
    const TEST: &str = "kafka_consumer_killed_in_its_handler";
    let Some(url) = endpoint::broker("kafka", TEST) else { return };
    let topic = unique(TEST);
    // A member that is gone is noticed after the session's time-out.
    let session = "kafka.session.timeout.ms=6000&commit_interval=100ms";
    let address = format!("{url}/{topic}?group={topic}&partitions=1&{session}");
    faults::killed_in_its_handler(&address, TEST).await;
}
