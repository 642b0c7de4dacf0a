//! Throughline, by its portable types: in batches, or message by message.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use anyhow::{Context, Result, ensure};
use throughline::{Bus, Consumer, Delivery, Envelope, Pending, Publisher, SendOptions};

use crate::{ACKED_TOGETHER, Load, PUBLISHED_TOGETHER, Span, Stopwatch};

pub(crate) async fn run(load: Load, batches: bool) -> Result<(Span, Span)> {
    let bus = Bus::connect(format!("sqlite:{}?queue=q", load.folder.join("ours.db").display())).await?;
    let publisher = bus.publisher().await?;
    let watch = Stopwatch::start();
    if batches {
        publish(&publisher, load.messages, &load.body).await?;
    } else {
        let mut pending: VecDeque<Pending> = VecDeque::with_capacity(PUBLISHED_TOGETHER);
        for _ in 0..load.messages {
            if pending.len() == PUBLISHED_TOGETHER
                && let Some(oldest) = pending.pop_front()
            {
                oldest.receipt().await?;
            }
            pending.push_back(publisher.enqueue(envelope(&load.body), SendOptions::default()).await?);
        }
        for receipt in pending {
            receipt.receipt().await?;
        }
    }
    let published = watch.stop();
    publisher.close().await?;
    let mut consumer = bus.consumer().await?;
    let watch = Stopwatch::start();
    if batches {
        consume(&mut consumer, load.messages).await?;
    } else {
        // Handlers at work side by side: each acks its own message.
        let mut acks = tokio::task::JoinSet::new();
        for _ in 0..load.messages {
            let delivery = consumer.next().await.context("the stream ended")??;
            ensure!(delivery.payload().len() == load.body.len(), "a message is not as it was sent");
            acks.spawn(delivery.ack());
            while let Some(acked) = acks.try_join_next() {
                acked??;
            }
        }
        while let Some(acked) = acks.join_next().await {
            acked??;
        }
    }
    let consumed = watch.stop();
    consumer.close().await?;
    bus.close().await?;
    Ok((published, consumed))
}

fn envelope(body: &[u8]) -> Envelope {
    Envelope::builder("bench").payload(body.to_vec()).build()
}

/// Publishes in batches.
pub(crate) async fn publish(publisher: &Publisher, messages: usize, body: &[u8]) -> Result<()> {
    for _ in 0..messages / PUBLISHED_TOGETHER {
        for answer in publisher.publish_batch((0..PUBLISHED_TOGETHER).map(|_| envelope(body))).await {
            answer?;
        }
    }
    Ok(())
}

/// Consumes and acks in batches.
pub(crate) async fn consume(consumer: &mut Consumer, messages: usize) -> Result<()> {
    let most = NonZeroUsize::new(ACKED_TOGETHER).context("no batch")?;
    let mut left = messages;
    while left > 0 {
        let deliveries = consumer.next_batch(most).await?;
        ensure!(!deliveries.is_empty(), "the stream ended");
        left = left.saturating_sub(deliveries.len());
        for result in Delivery::ack_all(deliveries).await {
            result?;
        }
    }
    Ok(())
}
