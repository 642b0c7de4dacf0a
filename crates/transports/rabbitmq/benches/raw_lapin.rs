//! Ours against the client library used well, on the same broker in the same run: interleaved rounds of durable messages
//! of 1 KiB on quorum queues. It prints messages a second and the ratio of the medians; it judges nothing.
//!
//! ```text
//! THROUGHLINE_RABBITMQ_URL=amqp://guest:guest@127.0.0.1:5672/%2f cargo bench -p throughline-rabbitmq --bench raw_lapin
//! ```
//!
//! `THROUGHLINE_BENCH_MESSAGES` (20,000 a round) and `THROUGHLINE_BENCH_ROUNDS` (5) change the size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark fails by panicking, and prints its result"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Envelope, Pending, PublishOptions, Publisher, SendOptions,
};
use throughline_rabbitmq::{REGISTRATION, lapin};
use uuid::Uuid;

/// Unanswered publishes, and the prefetch.
const IN_FLIGHT: usize = 1_000;
/// Deliveries that one `multiple` ack of the raw client settles.
const ACKED_TOGETHER: usize = 100;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

struct Bench {
    messages: usize,
    queue: String,
    body: Bytes,
    channel: Channel,
    address: Address,
    transport: Arc<dyn Transport>,
}

fn main() {
    let Ok(url) = std::env::var("THROUGHLINE_RABBITMQ_URL") else {
        println!("skipped: THROUGHLINE_RABBITMQ_URL is not set");
        return;
    };
    // `cargo test --benches` runs this, too; only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::new(&url).await;
        bench.run(setting("THROUGHLINE_BENCH_ROUNDS", 5)).await;
    });
}

impl Bench {
    async fn new(url: &str) -> Self {
        let queue = format!("bench-{}", Uuid::now_v7());
        let address: Address = format!("{url}?queue={queue}").parse().unwrap();
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let transport = (REGISTRATION.connect)(url.parse().unwrap()).await.unwrap();
        let messages = setting("THROUGHLINE_BENCH_MESSAGES", 20_000);
        // The connection lives as long as its channel.
        Self { messages, queue, body: vec![b'x'; 1_024].into(), channel, address, transport }
    }

    async fn run(&self, rounds: usize) {
        let mut rates: [Vec<f64>; 4] = Default::default();
        println!("{} messages a round, per second", self.messages);
        println!("{:>12} {:>12} {:>12} {:>12}", "publish raw", "ours", "consume raw", "ours");
        for round in 0..=rounds {
            let mut row = [0.0; 4];
            // Who goes first changes with the round. What one side has published, the other consumes in half of them.
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                self.fresh().await;
                row[side] = if side == 0 { self.publish_raw().await } else { self.publish_ours().await };
                let consumer = if (round / 2) % 2 == 0 { side } else { 1 - side };
                row[2 + consumer] =
                    if consumer == 0 { self.consume_raw().await } else { self.consume_ours().await };
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
        self.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        self.transport.close().await.unwrap();
    }

    async fn fresh(&self) {
        let queue = || self.queue.as_str().into();
        self.channel.queue_delete(queue(), QueueDeleteOptions::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue(), durable, arguments).await.unwrap();
    }

    fn rate(&self, started: Instant) -> f64 {
        self.messages as f64 / started.elapsed().as_secs_f64()
    }

    async fn publish_raw(&self) -> f64 {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let started = Instant::now();
        let mut confirms = VecDeque::with_capacity(IN_FLIGHT);
        for _ in 0..self.messages {
            if confirms.len() == IN_FLIGHT {
                let oldest: lapin::PublisherConfirm = confirms.pop_front().unwrap();
                assert!(oldest.await.unwrap().is_ack());
            }
            // What an application would set: an id and a type.
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(Uuid::now_v7().to_string().into())
                .with_type("bench".into());
            let queue = self.queue.as_str().into();
            let sent = channel.basic_publish("".into(), queue, options, &self.body, properties);
            confirms.push_back(sent.await.unwrap());
        }
        for confirm in confirms {
            assert!(confirm.await.unwrap().is_ack());
        }
        let rate = self.rate(started);
        connection.close(200, "".into()).await.unwrap();
        rate
    }

    async fn publish_ours(&self) -> f64 {
        let driver = self.transport.publisher(&self.address).await.unwrap();
        let options = PublishOptions { max_in_flight: IN_FLIGHT, ..PublishOptions::default() };
        let publisher = Publisher::new(driver, &self.address, options);
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

    async fn consume_raw(&self) -> f64 {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.basic_qos(u16::try_from(IN_FLIGHT).unwrap(), BasicQosOptions::default()).await.unwrap();
        let queue = self.queue.as_str().into();
        let options = BasicConsumeOptions::default();
        let started = Instant::now();
        let mut consumer =
            channel.basic_consume(queue, "".into(), options, FieldTable::default()).await.unwrap();
        for count in 1..=self.messages {
            let delivery = consumer.next().await.unwrap().unwrap();
            assert_eq!(delivery.data.len(), self.body.len());
            if count % ACKED_TOGETHER == 0 || count == self.messages {
                delivery.ack(BasicAckOptions { multiple: true }).await.unwrap();
            }
        }
        let rate = self.rate(started);
        drop(consumer);
        connection.close(200, "".into()).await.unwrap();
        rate
    }

    async fn consume_ours(&self) -> f64 {
        let options = ConsumeOptions { max_unsettled: IN_FLIGHT, ..ConsumeOptions::default() };
        let started = Instant::now();
        let driver = self.transport.consumer(&self.address, &options).await.unwrap();
        let mut consumer = Consumer::new(driver, &self.address, options);
        for _ in 0..self.messages {
            let delivery = consumer.next().await.unwrap().unwrap();
            assert_eq!(delivery.payload().len(), self.body.len());
            delivery.ack().await.unwrap();
        }
        let rate = self.rate(started);
        assert_eq!(consumer.settle_errors(), 0);
        consumer.close().await.unwrap();
        rate
    }

    /// The broker's address, as the client library reads it.
    fn url(&self) -> String {
        std::env::var("THROUGHLINE_RABBITMQ_URL").unwrap()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
