//! Ours against the client library used well, on the same broker in the same run: interleaved rounds of messages of 1 KiB
//! on topics of one partition. It prints rates, ratios to raw in the same round, and this process's processor time; it
//! judges nothing.
//!
//! ```text
//! THROUGHLINE_KAFKA_URL=kafka://127.0.0.1:9092 cargo bench -p throughline-kafka --bench raw_rdkafka
//! ```
//!
//! `THROUGHLINE_BENCH_MESSAGES` (200,000 a round) and `THROUGHLINE_BENCH_ROUNDS` (5) change the size;
//! `THROUGHLINE_BENCH_ONLY` (`consume`, `publish: raw`, `latency`) runs only the contenders whose names contain it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking, and prints its result"
)]

#[path = "raw_rdkafka/consume.rs"]
mod consume;
#[path = "raw_rdkafka/latency.rs"]
mod latency;
#[path = "raw_rdkafka/publish.rs"]
mod publish;
#[path = "raw_rdkafka/report.rs"]
mod report;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use throughline_core::Address;
use throughline_core::driver::Transport;
use throughline_kafka::REGISTRATION;
use throughline_kafka::rdkafka::ClientConfig;
use uuid::Uuid;

use self::report::{Span, Table};

/// Unanswered publishes, and the prefetch.
const IN_FLIGHT: usize = 1_000;
/// What one call of the batch interfaces takes.
const BATCH: usize = 100;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

struct Bench {
    messages: usize,
    base: String,
    body: Bytes,
    transport: Arc<dyn Transport>,
}

/// One way to publish or consume so many messages of a topic.
type Contender = (&'static str, for<'a> fn(&'a Bench, &'a Address) -> Running<'a>);
type Running<'a> = Pin<Box<dyn Future<Output = Span> + 'a>>;

/// The first is what the others are compared with.
const PUBLISH: [Contender; 4] = [
    ("raw FutureProducer", |bench, to| Box::pin(bench.publish_raw(to, "0"))),
    ("raw, linger.ms=5, its default", |bench, to| Box::pin(bench.publish_raw(to, "5"))),
    ("throughline, enqueue", |bench, to| Box::pin(bench.publish_singly(to))),
    ("throughline, publish_batch", |bench, to| Box::pin(bench.publish_batches(to))),
];

/// The other one that consuming is compared with: it has of each message what an application gets from ours.
const TAKEN: &str = "raw, headers and payload taken";

const CONSUME: [Contender; 4] = [
    ("raw StreamConsumer", |bench, from| Box::pin(bench.consume_raw(from, false))),
    (TAKEN, |bench, from| Box::pin(bench.consume_raw(from, true))),
    ("throughline, next and ack", |bench, from| Box::pin(bench.consume_singly(from))),
    ("throughline, next_batch and ack_all", |bench, from| Box::pin(bench.consume_batches(from))),
];

fn main() {
    let Ok(url) = std::env::var("THROUGHLINE_KAFKA_URL") else {
        println!("skipped: THROUGHLINE_KAFKA_URL is not set");
        return;
    };
    // `cargo test --benches` runs this, too; only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let transport = (REGISTRATION.connect)(url.parse().unwrap()).await.unwrap();
        let messages = setting("THROUGHLINE_BENCH_MESSAGES", 200_000);
        let bench = Bench { messages, base: url, body: vec![b'x'; 1_024].into(), transport };
        bench.run(setting("THROUGHLINE_BENCH_ROUNDS", 5)).await;
        bench.transport.close().await.unwrap();
    });
}

impl Bench {
    async fn run(&self, rounds: usize) {
        let only = std::env::var("THROUGHLINE_BENCH_ONLY").unwrap_or_default();
        let wanted = |what: &str, name: &str| format!("{what}: {name}").contains(&only);
        let publishers: Vec<_> = PUBLISH.iter().filter(|(name, _)| wanted("publish", name)).collect();
        let consumers: Vec<_> = CONSUME.iter().filter(|(name, _)| wanted("consume", name)).collect();
        let mut published = Table::new("publish", publishers.iter().map(|(name, _)| *name));
        let mut consumed = Table::new("consume + settle", consumers.iter().map(|(name, _)| *name));
        // All read the same records, each as a group of its own.
        let source = self.fresh().await;
        if !consumers.is_empty() {
            self.publish_batches(&source).await;
        }
        println!(
            "{} messages of {} bytes a round; the first round is not counted",
            self.messages,
            self.body.len()
        );
        for round in 0..=rounds {
            // Who goes first changes with the round.
            for at in rotated(publishers.len(), round) {
                let topic = self.fresh().await;
                let span = (publishers[at].1)(self, &topic).await;
                self.transport.delete(&topic).await.unwrap();
                published.put(at, round, span);
            }
            for at in rotated(consumers.len(), round) {
                let group = Uuid::now_v7().to_string();
                let source = source.clone().without_options(&["group"]).with_option("group", &group);
                consumed.put(at, round, (consumers[at].1)(self, &source).await);
            }
        }
        self.transport.delete(&source).await.unwrap();
        published.print(self.messages, None);
        consumed.print(self.messages, Some(TAKEN));
        if wanted("latency", "") {
            self.latency(1_000).await;
        }
    }

    async fn fresh(&self) -> Address {
        let topic = format!("bench-{}", Uuid::now_v7());
        let address: Address = format!("{}/{topic}?group={topic}&partitions=1", self.base).parse().unwrap();
        self.transport.create(&address).await.unwrap();
        address
    }

    /// As ours has it, beside what the contenders set.
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.base.strip_prefix("kafka://").unwrap());
        config
    }
}

fn rotated(len: usize, by: usize) -> impl Iterator<Item = usize> {
    (0..len).map(move |at| (at + by) % len)
}

fn name(topic: &Address) -> &str {
    topic.path().trim_start_matches('/')
}
