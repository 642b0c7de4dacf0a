//! Interleaved rounds of publishing and consuming.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::contenders::Contender;
use crate::load::{Broker, Load, Span};
use crate::report::{Service, Spans};
use crate::stub::Counts;

/// Requests that carry messages or settle them; what a client asks once, when it opens, is not among them.
const ACTIONS: [&str; 6] = [
    "SendMessage",
    "SendMessageBatch",
    "ReceiveMessage",
    "DeleteMessage",
    "DeleteMessageBatch",
    "ChangeMessageVisibilityBatch",
];

/// Runs all contenders in every round, the first one to warm up.
pub(crate) async fn run(
    broker: &mut Broker,
    contenders: &[Arc<dyn Contender>],
    service: &str,
    rounds: usize,
    messages: usize,
    bytes: usize,
) -> Result<Service> {
    let mut spans: Vec<_> =
        contenders.iter().map(|contender| Spans { name: contender.name(), ..Spans::default() }).collect();
    for round in 0..=rounds {
        for step in 0..contenders.len() {
            // Another goes first in each round, and the neighbours change sides in every other.
            let step = if round % 2 == 0 { step } else { contenders.len() - 1 - step };
            let at = (step + round) % contenders.len();
            let Some(contender) = contenders.get(at) else { continue };
            let name = contender.name();
            eprintln!("{service}, round {round} of {rounds}: {name}");
            let queue = format!("throughline-bench-{}-{round}-{name}", std::process::id());
            let load = broker.load(&queue, messages, bytes);
            broker.fresh(&queue).await?;
            let before = broker.counts().await?;
            let published = timed(contender.clone(), load.clone(), true).await?;
            let between = broker.counts().await?;
            let consumed = timed(contender.clone(), load.clone(), false).await?;
            let after = broker.counts().await?;
            if let Some(Counts { visible, in_flight, .. }) = after {
                ensure!(
                    (visible, in_flight) == (0, 0),
                    "{name} left {visible} messages, and {in_flight} in flight"
                );
            }
            broker.delete(&load).await?;
            if let Some(spans) = spans.get_mut(at).filter(|_| round > 0) {
                spans.publish.push(published);
                spans.consume.push(consumed);
                spans.publish_calls.extend(calls(before.as_ref(), between.as_ref()));
                spans.consume_calls.extend(calls(between.as_ref(), after.as_ref()));
            }
        }
    }
    Ok(Service::of(service, &spans, messages))
}

/// In a task of its own, as a service runs its work: `block_on`'s thread is not one of the runtime's.
async fn timed(contender: Arc<dyn Contender>, load: Load, publish: bool) -> Result<Span> {
    let name = contender.name();
    let work = tokio::spawn(async move {
        if publish { contender.publish(&load).await } else { contender.consume(&load).await }
    });
    work.await?.with_context(|| format!("{name}, {}", if publish { "publishing" } else { "consuming" }))
}

fn calls(before: Option<&Counts>, after: Option<&Counts>) -> Option<u64> {
    let all = |counts: &Counts| ACTIONS.iter().filter_map(|action| counts.requests.get(*action)).sum::<u64>();
    Some(all(after?) - all(before?))
}
