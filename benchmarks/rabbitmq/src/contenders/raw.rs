//! lapin used well: one confirm channel with 1,000 in flight; one `multiple` ack for 100 deliveries.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties, PublisherConfirm};
use throughline_rabbitmq::lapin;
use uuid::Uuid;

use super::Contender;
use crate::load::{ACKED_TOGETHER, IN_FLIGHT, Load, Span, Stopwatch};

pub(crate) struct Raw;

/// What an application would set: durable, an id and a type.
pub(crate) fn properties() -> BasicProperties {
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(Uuid::now_v7().to_string().into())
        .with_type("bench".into())
}

pub(crate) const MANDATORY: BasicPublishOptions = BasicPublishOptions { mandatory: true, immediate: false };

#[async_trait]
impl Contender for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let connection = Connection::connect(&load.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let watch = Stopwatch::start();
        let mut confirms: VecDeque<PublisherConfirm> = VecDeque::with_capacity(IN_FLIGHT);
        for _ in 0..load.messages {
            if confirms.len() == IN_FLIGHT
                && let Some(oldest) = confirms.pop_front()
            {
                ensure!(oldest.await?.is_ack(), "the broker refused a message");
            }
            let queue = load.queue.as_str().into();
            let sent = channel.basic_publish("".into(), queue, MANDATORY, &load.body, properties());
            confirms.push_back(sent.await?);
        }
        for confirm in confirms {
            ensure!(confirm.await?.is_ack(), "the broker refused a message");
        }
        let span = watch.stop();
        connection.close(200, "".into()).await?;
        Ok(span)
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let connection = Connection::connect(&load.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(u16::try_from(IN_FLIGHT)?, BasicQosOptions::default()).await?;
        let watch = Stopwatch::start();
        let (queue, options) = (load.queue.as_str().into(), BasicConsumeOptions::default());
        let mut consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
        for count in 1..=load.messages {
            let delivery = consumer.next().await.context("the stream ended")??;
            ensure!(delivery.data.len() == load.body.len(), "a message is not as it was sent");
            if count % ACKED_TOGETHER == 0 || count == load.messages {
                delivery.ack(BasicAckOptions { multiple: true }).await?;
            }
        }
        let span = watch.stop();
        drop(consumer);
        connection.close(200, "".into()).await?;
        Ok(span)
    }
}
