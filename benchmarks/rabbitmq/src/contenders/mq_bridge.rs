//! mq-bridge's endpoints: batches of 1,000 sent, up to 100 received and committed together.

use anyhow::{Result, ensure};
use async_trait::async_trait;
use mq_bridge::CanonicalMessage;
use mq_bridge::endpoints::amqp::{AmqpConsumer, AmqpPublisher};
use mq_bridge::models::AmqpConfig;
use mq_bridge::outcomes::SentBatch;
use mq_bridge::traits::{MessageConsumer, MessageDisposition, MessagePublisher};

use super::Contender;
use crate::load::{ACKED_TOGETHER, IN_FLIGHT, Load, Span, Stopwatch};

pub(crate) struct MqBridge;

fn config(load: &Load) -> Result<AmqpConfig> {
    Ok(AmqpConfig {
        url: load.url.clone(),
        queue: Some(load.queue.clone()),
        prefetch_count: Some(u16::try_from(IN_FLIGHT)?),
        ..AmqpConfig::default()
    })
}

#[async_trait]
impl Contender for MqBridge {
    fn name(&self) -> &'static str {
        "mq-bridge"
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let publisher = AmqpPublisher::new(&config(load)?).await?;
        let watch = Stopwatch::start();
        for _ in 0..load.messages / IN_FLIGHT {
            let batch =
                (0..IN_FLIGHT).map(|_| CanonicalMessage::new_bytes(load.body.clone(), None)).collect();
            ensure!(matches!(publisher.send_batch(batch).await?, SentBatch::Ack), "messages were refused");
        }
        Ok(watch.stop())
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let watch = Stopwatch::start();
        let mut consumer = AmqpConsumer::new(&config(load)?).await?;
        let mut left = load.messages;
        while left > 0 {
            let batch = consumer.receive_batch(ACKED_TOGETHER).await?;
            left = left.saturating_sub(batch.messages.len());
            let acks = vec![MessageDisposition::Ack; batch.messages.len()];
            (batch.commit)(acks).await?;
        }
        let span = watch.stop();
        consumer.close().await?;
        Ok(span)
    }
}
