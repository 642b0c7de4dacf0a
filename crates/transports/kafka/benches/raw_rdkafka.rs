//! Ours against the client library used well, on the same broker in the same run: interleaved rounds of messages of 1 KiB
//! on a topic of one partition. It prints messages a second and the ratio of the medians; it judges nothing.
//!
//! ```text
//! THROUGHLINE_KAFKA_URL=kafka://127.0.0.1:9092 cargo bench -p throughline-kafka --bench raw_rdkafka
//! ```
//!
//! `THROUGHLINE_BENCH_MESSAGES` (100,000 a round) and `THROUGHLINE_BENCH_ROUNDS` (5) change the size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking, and prints its result"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{ClientConfig, util::Timeout};
use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Envelope, Pending, PublishOptions, Publisher, SendOptions,
};
use throughline_kafka::{REGISTRATION, rdkafka};
use uuid::Uuid;

/// Unanswered publishes, and the prefetch.
const IN_FLIGHT: usize = 1_000;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

struct Bench {
    messages: usize,
    base: String,
    body: Bytes,
    transport: Arc<dyn Transport>,
}

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
        let messages = setting("THROUGHLINE_BENCH_MESSAGES", 100_000);
        let bench = Bench { messages, base: url, body: vec![b'x'; 1_024].into(), transport };
        bench.run(setting("THROUGHLINE_BENCH_ROUNDS", 5)).await;
    });
}

impl Bench {
    async fn run(&self, rounds: usize) {
        let mut rates: [Vec<f64>; 4] = Default::default();
        println!("{} messages a round, per second", self.messages);
        println!("{:>12} {:>12} {:>12} {:>12}", "publish raw", "ours", "consume raw", "ours");
        for round in 0..=rounds {
            let mut row = [0.0; 4];
            // Who goes first changes with the round. What one side has published, the other consumes in half of them.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let topic = self.fresh().await;
                row[side] =
                    if side == 0 { self.publish_raw(&topic).await } else { self.publish_ours(&topic).await };
                let consumer = if (round / 2) % 2 == 0 { side } else { 1 - side };
                row[2 + consumer] = if consumer == 0 {
                    self.consume_raw(&topic).await
                } else {
                    self.consume_ours(&topic).await
                };
                self.transport.delete(&topic).await.unwrap();
            }
            let name = if round == 0 { " (warm-up)" } else { "" };
            println!("{:>12.0} {:>12.0} {:>12.0} {:>12.0}{name}", row[0], row[1], row[2], row[3]);
            if round > 0 {
                rates.iter_mut().zip(row).for_each(|(rates, rate)| rates.push(rate));
            }
        }
        let [raw_publish, publish, raw_consume, consume] = rates.map(median);
        println!(
            "medians: publish {:.2} of raw, consume {:.2} of raw",
            publish / raw_publish,
            consume / raw_consume
        );
        self.transport.close().await.unwrap();
    }

    async fn fresh(&self) -> Address {
        let topic = format!("bench-{}", Uuid::now_v7());
        let address: Address = format!("{}/{topic}?group={topic}&partitions=1", self.base).parse().unwrap();
        self.transport.create(&address).await.unwrap();
        address
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.base.strip_prefix("kafka://").unwrap());
        config
    }

    fn rate(&self, started: Instant) -> f64 {
        self.messages as f64 / started.elapsed().as_secs_f64()
    }

    /// As ours: idempotent, acks=all, so many in flight; an id and a type, as an application would set.
    async fn publish_raw(&self, topic: &Address) -> f64 {
        let producer: FutureProducer =
            self.config().set("enable.idempotence", "true").set("acks", "all").create().unwrap();
        let started = Instant::now();
        let mut reports = VecDeque::with_capacity(IN_FLIGHT);
        for _ in 0..self.messages {
            if reports.len() == IN_FLIGHT {
                let oldest: rdkafka::producer::DeliveryFuture = reports.pop_front().unwrap();
                oldest.await.unwrap().unwrap();
            }
            let id = Uuid::now_v7().to_string();
            let headers = OwnedHeaders::new()
                .insert(Header { key: "id", value: Some(&id) })
                .insert(Header { key: "type", value: Some("bench") });
            let record = FutureRecord::<(), [u8]>::to(name(topic)).payload(&self.body).headers(headers);
            reports.push_back(producer.send_result(record).map_err(|(error, _)| error).unwrap());
        }
        for report in reports {
            report.await.unwrap().unwrap();
        }
        let rate = self.rate(started);
        producer.flush(Timeout::After(Duration::from_secs(5))).unwrap();
        rate
    }

    async fn publish_ours(&self, topic: &Address) -> f64 {
        let driver = self.transport.publisher(topic).await.unwrap();
        let options = PublishOptions { max_in_flight: IN_FLIGHT, ..PublishOptions::default() };
        let publisher = Publisher::new(driver, topic, options);
        let started = Instant::now();
        let mut pending: VecDeque<Pending> = VecDeque::with_capacity(IN_FLIGHT);
        for _ in 0..self.messages {
            if pending.len() == IN_FLIGHT {
                pending.pop_front().unwrap().await.unwrap();
            }
            let envelope = Envelope::builder("bench").payload(self.body.clone()).build();
            pending.push_back(publisher.enqueue(envelope, SendOptions::default()).await.unwrap());
        }
        for receipt in pending {
            receipt.await.unwrap();
        }
        let rate = self.rate(started);
        publisher.close().await.unwrap();
        rate
    }

    /// From the first message on: joining the group takes seconds, and is nobody's throughput.
    async fn consume_raw(&self, topic: &Address) -> f64 {
        let consumer: StreamConsumer = self
            .config()
            .set("group.id", name(topic))
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.offset.store", "false")
            .set("auto.commit.interval.ms", "1000")
            .create()
            .unwrap();
        consumer.subscribe(&[name(topic)]).unwrap();
        let mut started = Instant::now();
        for count in 0..self.messages {
            let message = consumer.recv().await.unwrap();
            if count == 0 {
                started = Instant::now();
            }
            assert_eq!(message.payload().unwrap().len(), self.body.len());
            consumer.store_offset_from_message(&message).unwrap();
        }
        self.rate(started)
    }

    async fn consume_ours(&self, topic: &Address) -> f64 {
        let options = ConsumeOptions { max_unsettled: IN_FLIGHT, ..ConsumeOptions::default() };
        let driver = self.transport.consumer(topic, &options).await.unwrap();
        let mut consumer = Consumer::new(driver, topic, options);
        let mut started = Instant::now();
        for count in 0..self.messages {
            let delivery = consumer.next().await.unwrap().unwrap();
            if count == 0 {
                started = Instant::now();
            }
            assert_eq!(delivery.payload().len(), self.body.len());
            delivery.ack().await.unwrap();
        }
        let rate = self.rate(started);
        assert_eq!(consumer.settle_errors(), 0);
        consumer.close().await.unwrap();
        rate
    }
}

fn name(topic: &Address) -> &str {
    topic.path().trim_start_matches('/')
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
