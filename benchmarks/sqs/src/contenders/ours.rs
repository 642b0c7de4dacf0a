//! Throughline, by its portable types: message by message, or in batches of 100.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use throughline::{Bus, ConsumeOptions, Delivery, Envelope, Pending, PublishOptions, SendOptions};

use super::Contender;
use crate::load::{IN_FLIGHT, Load, POLL, Span, Stopwatch};

/// Deliveries that the application takes and acks together.
const TOGETHER: usize = 100;

pub(crate) struct Ours {
    /// `publish_batch`, `next_batch` and `ack_all`, in place of `enqueue`, `next` and `ack`.
    pub(crate) batches: bool,
}

fn envelope(load: &Load) -> Envelope {
    Envelope::builder("bench").payload(load.body.clone()).build()
}

fn address(load: &Load) -> String {
    format!("sqs://{}?region=us-east-1&endpoint={}", load.queue, load.endpoint)
}

#[async_trait]
impl Contender for Ours {
    fn name(&self) -> &'static str {
        if self.batches { "throughline-batches" } else { "throughline" }
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let bus = Bus::connect(&address(load)).await?;
        let options = PublishOptions { max_in_flight: IN_FLIGHT, ..PublishOptions::default() };
        let publisher = bus.publisher_to(&address(load), options).await?;
        let watch = Stopwatch::start();
        if self.batches {
            for _ in 0..load.messages / IN_FLIGHT {
                let envelopes = (0..IN_FLIGHT).map(|_| envelope(load));
                for result in publisher.publish_batch(envelopes).await {
                    result?;
                }
            }
        } else {
            let mut pending: VecDeque<Pending> = VecDeque::with_capacity(IN_FLIGHT);
            for _ in 0..load.messages {
                if pending.len() == IN_FLIGHT
                    && let Some(oldest) = pending.pop_front()
                {
                    oldest.receipt().await?;
                }
                pending.push_back(publisher.enqueue(envelope(load), SendOptions::default()).await?);
            }
            for receipt in pending {
                receipt.receipt().await?;
            }
        }
        let span = watch.stop();
        publisher.close().await?;
        bus.close().await?;
        Ok(span)
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let bus = Bus::connect(&address(load)).await?;
        let options = ConsumeOptions { max_unsettled: IN_FLIGHT, poll: POLL, ..ConsumeOptions::default() };
        let watch = Stopwatch::start();
        let mut consumer = bus.consumer_of(&address(load), options).await?;
        if self.batches {
            let most = NonZeroUsize::new(TOGETHER).context("no batch")?;
            let mut left = load.messages;
            while left > 0 {
                let deliveries = consumer.next_batch(most).await?;
                ensure!(!deliveries.is_empty(), "the stream ended");
                left = left.saturating_sub(deliveries.len());
                for result in Delivery::ack_all(deliveries).await {
                    result?;
                }
            }
        } else {
            for _ in 0..load.messages {
                let delivery = consumer.next().await.context("the stream ended")??;
                ensure!(delivery.payload().len() == load.body.len(), "a message is not as it was sent");
                delivery.ack().await?;
            }
        }
        let errors = consumer.settle_errors();
        consumer.close().await?;
        let span = watch.stop();
        ensure!(errors == 0, "acks were lost");
        bus.close().await?;
        Ok(span)
    }
}
