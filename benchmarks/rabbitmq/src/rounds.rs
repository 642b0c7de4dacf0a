//! Interleaved rounds of publishing and consuming.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contenders::Contender;
use crate::load::{Broker, Load, QueueType, Span};
use crate::report::{Spans, Throughput};

/// How long the broker may take to apply the last acks.
const SETTLES_WITHIN: Duration = Duration::from_millis(300);

/// Runs all contenders in every round, the first one to warm up.
pub(crate) async fn run(
    broker: &Broker,
    contenders: &[Arc<dyn Contender>],
    queue_type: QueueType,
    rounds: usize,
    messages: usize,
    bytes: usize,
) -> Result<Throughput> {
    let mut spans: Vec<_> =
        contenders.iter().map(|contender| Spans { name: contender.name(), ..Spans::default() }).collect();
    for round in 0..=rounds {
        for step in 0..contenders.len() {
            // Another goes first in each round, and the neighbours change sides in every other.
            let step = if round % 2 == 0 { step } else { contenders.len() - 1 - step };
            let at = (step + round) % contenders.len();
            let Some(contender) = contenders.get(at) else { continue };
            let name = contender.name();
            eprintln!("{} queue, round {round} of {rounds}: {name}", queue_type.name());
            // One queue for each, because shove's topics are static.
            let queue = format!("throughline-bench-{}-{name}", std::process::id());
            let load = broker.load(&queue, messages, bytes);
            broker.fresh(&queue, queue_type).await?;
            let work = run_one(contender.clone(), load);
            let (published, consumed) = work.await.with_context(|| name.to_owned())?;
            let back = came_back(broker, &queue).await?;
            broker.delete(&queue).await?;
            if let Some(spans) = spans.get_mut(at).filter(|_| round > 0) {
                spans.publish.push(published);
                spans.consume.push(consumed);
                spans.came_back += back;
            }
        }
    }
    Ok(Throughput::of(queue_type, &spans, messages))
}

/// In a task of its own, as a service runs its work: `block_on`'s thread is not one of the runtime's.
async fn run_one(contender: Arc<dyn Contender>, load: Load) -> Result<(Span, Span)> {
    let work = tokio::spawn(async move {
        let published = contender.publish(&load).await.context("publishing")?;
        let consumed = contender.consume(&load).await.context("consuming")?;
        Ok((published, consumed))
    });
    work.await?
}

/// How many messages are in the queue again although they were acked: RabbitMQ forgets acks that it has read and not
/// yet applied when their channel closes.
async fn came_back(broker: &Broker, queue: &str) -> Result<u32> {
    tokio::time::sleep(SETTLES_WITHIN).await;
    broker.ready(queue).await
}
