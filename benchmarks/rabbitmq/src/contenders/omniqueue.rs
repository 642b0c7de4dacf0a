//! omniqueue: no confirms, so that a message can be lost; up to 100 received together, one ack a message.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use omniqueue::backends::rabbitmq::{
    BasicConsumeOptions, BasicProperties, BasicPublishOptions, ConnectionProperties, FieldTable,
};
use omniqueue::backends::{RabbitMqBackend, RabbitMqConfig};

use super::Contender;
use crate::load::{ACKED_TOGETHER, IN_FLIGHT, Load, Span, Stopwatch};

pub(crate) struct Omniqueue;

fn config(load: &Load) -> Result<RabbitMqConfig> {
    Ok(RabbitMqConfig {
        uri: load.url.clone(),
        connection_properties: ConnectionProperties::default()
            .with_executor(tokio_executor_trait::Tokio::current())
            .with_reactor(tokio_reactor_trait::Tokio),
        publish_exchange: String::new(),
        publish_routing_key: load.queue.clone(),
        publish_options: BasicPublishOptions::default(),
        publish_properties: BasicProperties::default().with_delivery_mode(2),
        consume_queue: load.queue.clone(),
        consumer_tag: String::new(),
        consume_options: BasicConsumeOptions::default(),
        consume_arguments: FieldTable::default(),
        consume_prefetch_count: Some(u16::try_from(IN_FLIGHT)?),
        requeue_on_nack: true,
    })
}

#[async_trait]
impl Contender for Omniqueue {
    fn name(&self) -> &'static str {
        "omniqueue"
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let producer = RabbitMqBackend::builder(config(load)?).build_producer().await?;
        let watch = Stopwatch::start();
        for _ in 0..load.messages {
            producer.send_raw(&load.body).await?;
        }
        Ok(watch.stop())
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let watch = Stopwatch::start();
        let mut consumer = RabbitMqBackend::builder(config(load)?).build_consumer().await?;
        let mut left = load.messages;
        while left > 0 {
            let deliveries = consumer.receive_all(ACKED_TOGETHER, Duration::from_secs(10)).await?;
            left = left.saturating_sub(deliveries.len());
            for delivery in deliveries {
                delivery.ack().await.map_err(|(error, _)| error)?;
            }
        }
        Ok(watch.stop())
    }
}
