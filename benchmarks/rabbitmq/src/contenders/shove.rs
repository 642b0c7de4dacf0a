//! shove: batches of 1,000 published; its batch consumer, with batches of 1,000, which is its prefetch too.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use shove::rabbitmq::RabbitMqConfig;
use shove::{
    BatchConsumerOptions, BatchMessageHandler, Broker, Codec, MessageMetadata, NotSequenced, Outcome,
    QueueTopology, RabbitMq, Topic, TopologyBuilder,
};
use tokio_util::sync::CancellationToken;

use super::Contender;
use crate::load::{IN_FLIGHT, Load, Span, Stopwatch};

pub(crate) struct Shove;

/// Its topics are types, so there is one for the whole run.
static QUEUE: OnceLock<String> = OnceLock::new();
static TOPOLOGY: OnceLock<QueueTopology> = OnceLock::new();

struct Bench;

impl Topic for Bench {
    type Message = Vec<u8>;
    type Codec = Raw;

    fn topology() -> &'static QueueTopology {
        TOPOLOGY.get_or_init(|| TopologyBuilder::new(QUEUE.get().cloned().unwrap_or_default()).build())
    }
}

impl NotSequenced for Bench {}

/// Bytes as they are: the others pay for no format either.
struct Raw;

impl Codec<Vec<u8>> for Raw {
    const NAME: &'static str = "bytes";

    fn encode(value: &Vec<u8>) -> shove::error::Result<Vec<u8>> {
        Ok(value.clone())
    }

    fn decode(bytes: &[u8]) -> shove::error::Result<Vec<u8>> {
        Ok(bytes.to_vec())
    }
}

struct Count {
    left: AtomicUsize,
    over: CancellationToken,
}

impl BatchMessageHandler<Bench> for Count {
    type Context = ();

    async fn handle_batch(&self, messages: Vec<(Vec<u8>, MessageMetadata)>, (): &()) -> Outcome {
        if self.left.fetch_sub(messages.len(), Ordering::AcqRel) <= messages.len() {
            self.over.cancel();
        }
        Outcome::Ack
    }
}

async fn broker(load: &Load) -> Result<Broker<RabbitMq>> {
    if QUEUE.get_or_init(|| load.queue.clone()) != &load.queue {
        return Err(anyhow!("one queue for the whole run"));
    }
    Ok(Broker::<RabbitMq>::new(RabbitMqConfig::new(&load.url)).await?)
}

#[async_trait]
impl Contender for Shove {
    fn name(&self) -> &'static str {
        "shove"
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let broker = broker(load).await?;
        let publisher = broker.publisher().await?;
        let batch = vec![load.body.to_vec(); IN_FLIGHT];
        let watch = Stopwatch::start();
        for _ in 0..load.messages / IN_FLIGHT {
            publisher.publish_batch::<Bench>(&batch).await?;
        }
        let span = watch.stop();
        broker.close().await;
        Ok(span)
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let broker = broker(load).await?;
        let over = CancellationToken::new();
        let handler = Count { left: AtomicUsize::new(load.messages), over: over.clone() };
        let options = BatchConsumerOptions::new()
            .with_max_batch_size(IN_FLIGHT)
            .with_max_batch_age(Duration::from_millis(100))
            .with_shutdown(over);
        let watch = Stopwatch::start();
        broker.batch_consumer().run::<Bench, _>(handler, (), options).await?;
        let span = watch.stop();
        broker.close().await;
        Ok(span)
    }
}
