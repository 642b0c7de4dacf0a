//! Memory stays flat while messages pass through a real Kafka. A process of its own, because it measures the process.
//!
//! `THROUGHLINE_MESSAGES=10000000 cargo test -p throughline-integration-tests --test kafka_memory -- --nocapture` for more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::Instant;

use throughline::{Bus, Envelope};
use throughline_integration_tests::{log, unique};
use throughline_testkit::endpoint;

/// By how much the process may grow after the first fifth: far below what the messages measure, above what allocators and
/// librdkafka's buffers come to.
const SLACK: usize = 48 * 1024 * 1024;

/// Resident bytes; `None` where the system does not tell.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<usize>().ok().map(|kib| kib * 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_while_messages_pass() {
    const TEST: &str = "kafka_memory_stays_flat_while_messages_pass";
    let Some(url) = endpoint::broker("kafka", TEST) else { return };
    if resident().is_none() {
        endpoint::skip(TEST, "needs /proc/self/status to measure memory");
        return;
    }
    log();
    let messages: usize =
        std::env::var("THROUGHLINE_MESSAGES").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let topic = unique(TEST);
    let bus = Bus::connect(format!("{url}/{topic}?group={topic}&partitions=3")).await.unwrap();
    bus.create("").await.unwrap();
    let started = Instant::now();
    let publisher = bus.publisher().await.unwrap();
    let publishing = tokio::spawn(async move {
        let body = vec![b'x'; 1_024];
        for first in (0..messages).step_by(500) {
            let batch = (first..(first + 500).min(messages))
                .map(|n| Envelope::builder("memory").key((n % 97).to_string()).payload(body.clone()).build());
            assert!(publisher.publish_batch(batch).await.iter().all(Result::is_ok));
        }
        publisher.close().await.unwrap();
    });
    let mut consumer = bus.consumer().await.unwrap();
    let (mut early, mut most) = (0, 0);
    for count in 1..=messages {
        let delivery = consumer.next().await.unwrap().unwrap();
        assert_eq!(delivery.payload().len(), 1_024);
        delivery.ack().await.unwrap();
        if count == messages / 5 {
            early = resident().unwrap();
        }
        if count % 1_000 == 0 {
            most = most.max(resident().unwrap());
        }
    }
    publishing.await.unwrap();
    consumer.close().await.unwrap();
    assert_eq!(bus.depth("").await.unwrap().ready, 0);
    let mib = |bytes: usize| bytes / (1024 * 1024);
    endpoint::measured(
        TEST,
        &format!(
            "{messages} messages of 1 KiB in {:.0?}: {} MiB after a fifth, {} MiB at most",
            started.elapsed(),
            mib(early),
            mib(most)
        ),
    );
    assert!(most < early + SLACK, "grew from {} to {} MiB", mib(early), mib(most));
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}
