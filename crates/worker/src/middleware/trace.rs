//! One attempt, from the process span to the settlement.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join_all, select_all};
use opentelemetry::context::FutureExt as _;
use opentelemetry::{Context, KeyValue};
use throughline_core::{Delivery, Error, ErrorKind, History, Process};
use tokio::time::Instant;

use super::Verdict;
use super::concurrency::{Retried, stable_id};
use super::dead_letter::{self, Decision, Done};
use super::idempotency::{Held, Idempotency};
use super::timeout::{self, Ended, Interruption};
use crate::error::HandlerError;
use crate::handler::Call;
use crate::job::{Message, Phase};
use crate::metrics::Outcome;
use crate::router::{Entry, Target};
use crate::shared::{LeaseLost, Shared, Slot};

const DUPLICATE: &str = "throughline.duplicate";
const IN_PROGRESS: &str = "throughline.in_progress";
const IDEMPOTENCY_KEY: &str = "throughline.idempotency_key";

/// How a message left the worker, for who keeps the order of its key.
pub(crate) struct End {
    pub(crate) key: Option<bytes::Bytes>,
    pub(crate) kind: EndKind,
}

impl End {
    /// Whether another message depends on it.
    pub(crate) fn matters(&self) -> bool {
        self.key.is_some() || matches!(self.kind, EndKind::Postponed(..))
    }
}

pub(crate) enum EndKind {
    Settled,
    /// It comes again.
    Retried(Retried),
    /// It is looked at again after a while. Still held.
    Postponed(Box<Delivery>, Duration),
}

/// Works on one message. What is rarely needed is on the heap: a task of this is made for every message.
pub(crate) async fn attend(shared: &Shared, slot: &Slot<'_>, mut delivery: Delivery, entry: &Entry) -> End {
    if delivery.is_lease_lost() {
        // It waited for too long, and comes again.
        return End { key: delivery.envelope().ordering_key.clone(), kind: EndKind::Settled };
    }
    if shared.may_recall(&delivery) {
        Box::pin(shared.recall(&mut delivery)).await;
    }
    let process = delivery.start_process(entry.span_name.clone());
    let context = process.context().clone();
    let message = Message::new(&delivery, &context, shared.phase.subscribe());
    let verdict = one(shared, &delivery, entry, message, &process).with_context(context).await;
    end(process, &verdict);
    settle(shared, slot, delivery, verdict, entry).await
}

/// Works on messages of a batch route, together. Each is told as it leaves: one that is long in leaving holds no other up.
pub(crate) async fn attend_batch(
    shared: &Shared,
    slot: &Slot<'_>,
    deliveries: Vec<Delivery>,
    entry: &Entry,
    ended: impl Fn(End),
) {
    // What waited for too long comes again: it is nobody's to work on here.
    let (lost, ours) = deliveries.into_iter().partition::<Vec<_>, _>(Delivery::is_lease_lost);
    for delivery in lost {
        ended(End { key: delivery.envelope().ordering_key.clone(), kind: EndKind::Settled });
    }
    let mut deliveries = ours;
    if deliveries.is_empty() {
        return;
    }
    for delivery in &mut deliveries {
        if shared.may_recall(delivery) {
            shared.recall(delivery).await;
        }
    }
    let process = Delivery::start_batch_process(&deliveries, entry.span_name.clone());
    let context = process.context().clone();
    let verdicts = many(shared, &deliveries, entry, &context).with_context(context.clone()).await;
    // The first that failed stands for all: the span is one.
    match verdicts.iter().find(|verdict| matches!(verdict, Verdict::Failed(_) | Verdict::Interrupted(_))) {
        Some(failed) => end(process, failed),
        None => process.end(),
    }
    let settled = deliveries.into_iter().zip(verdicts);
    let settling =
        settled.map(|(delivery, verdict)| settle(shared, slot, delivery, verdict, entry).map(&ended));
    join_all(settling).await;
}

fn end(process: Process<'_>, verdict: &Verdict) {
    match verdict {
        Verdict::Failed(error) => process.fail(error.class(), &error.to_string()),
        Verdict::Interrupted(why) => process.fail(why.class(), why.class()),
        Verdict::Duplicate => {
            process.set_attribute(KeyValue::new(DUPLICATE, true));
            process.end();
        }
        Verdict::Postponed(_) => {
            process.set_attribute(KeyValue::new(IN_PROGRESS, true));
            process.end();
        }
        Verdict::Done => process.end(),
    }
}

/// Why a message does not even begin.
fn refused(delivery: &Delivery, entry: &Entry) -> Option<HandlerError> {
    if let Some(failure) = delivery.history().filter(|history| history.is_given_up()).and_then(History::last)
    {
        return Some(HandlerError::of_the_past(failure));
    }
    if entry.retry.is_exhausted(delivery.attempt()) {
        let text =
            format!("{} attempts have begun, and the last ended without an outcome", delivery.attempt() - 1);
        return Some(HandlerError::permanent(text).with_class("attempts_exhausted"));
    }
    if let Target::Nobody = entry.target {
        let text = match &delivery.envelope().message_type {
            Some(message_type) => format!("no handler for messages of type '{message_type}'"),
            None => "no handler for messages without a type".to_owned(),
        };
        return Some(HandlerError::permanent(text).with_class("no_handler"));
    }
    None
}

async fn one(
    shared: &Shared,
    delivery: &Delivery,
    entry: &Entry,
    message: Arc<Message>,
    process: &Process<'_>,
) -> Verdict {
    if let Some(error) = refused(delivery, entry) {
        return Verdict::Failed(error);
    }
    let Target::One(handler) = &entry.target else {
        return Verdict::Failed(HandlerError::permanent("a batch route was given one message"));
    };
    let Some(idempotency) = &shared.idempotency else {
        let handling = handler.call(message.clone());
        return Verdict::of(handle(shared, delivery, entry, message, handling).await);
    };
    Box::pin(once(shared, idempotency, delivery, entry, message, handler.as_ref(), process)).await
}

/// Handles a message unless that was done before.
async fn once(
    shared: &Shared,
    idempotency: &Idempotency,
    delivery: &Delivery,
    entry: &Entry,
    message: Arc<Message>,
    handler: &dyn Call,
    process: &Process<'_>,
) -> Verdict {
    if let Some(key) = delivery.envelope().dedupe_key() {
        process.set_attribute(KeyValue::new(IDEMPOTENCY_KEY, key.to_owned()));
    }
    let held = match idempotency.begin(delivery).await {
        Ok(held) => held,
        Err(verdict) => return verdict,
    };
    let handling = handle(shared, delivery, entry, message.clone(), handler.call(message));
    let verdict = Verdict::of(keeping(held.as_slice(), handling).await);
    if let Some(held) = held {
        held.end(&verdict).await;
    }
    verdict
}

/// Runs a handler until it ends, or its message may not be worked on any more.
async fn handle(
    shared: &Shared,
    delivery: &Delivery,
    entry: &Entry,
    message: Arc<Message>,
    handler: impl Future<Output = crate::Outcome>,
) -> Ended<crate::Outcome> {
    let lost = async {
        delivery.lease_lost().await;
        message.lease.raise();
        if shared.lease_lost == LeaseLost::Tell {
            std::future::pending::<()>().await;
        }
    };
    timeout::run(handler, entry.timeout, interruption(shared, lost)).await
}

pub(crate) async fn interruption(shared: &Shared, lost: impl Future<Output = ()>) -> Interruption {
    let mut phase = shared.phase.subscribe();
    tokio::select! {
        () = lost => Interruption::LeaseLost,
        Ok(_) = phase.wait_for(|phase| *phase >= Phase::Cancelling) => Interruption::Shutdown,
    }
}

/// Works, and keeps claims up meanwhile.
async fn keeping<T>(held: &[Held<'_>], work: impl Future<Output = T>) -> T {
    if held.is_empty() {
        return work.await;
    }
    let claims = select_all(held.iter().map(|held| held.keep_up().boxed()));
    tokio::select! {
        biased;
        value = work => value,
        (never, ..) = claims => match never {},
    }
}

async fn many(shared: &Shared, deliveries: &[Delivery], entry: &Entry, context: &Context) -> Vec<Verdict> {
    let Target::Many(handler, _) = &entry.target else { return Vec::new() };
    let mut verdicts: Vec<Option<Verdict>> = Vec::with_capacity(deliveries.len());
    let mut messages = Vec::with_capacity(deliveries.len());
    let (mut begun, mut held): (Vec<&Delivery>, Vec<Held<'_>>) = (Vec::new(), Vec::new());
    // For each message that is in the batch, the claim that it has.
    let mut claims = Vec::new();
    for delivery in deliveries {
        let claim = match (refused(delivery, entry), &shared.idempotency) {
            (Some(error), _) => Err(Verdict::Failed(error)),
            (None, Some(idempotency)) => idempotency.begin(delivery).await,
            (None, None) => Ok(None),
        };
        match claim {
            Err(verdict) => verdicts.push(Some(verdict)),
            Ok(claim) => {
                verdicts.push(None);
                claims.push(claim.is_some());
                held.extend(claim);
                messages.push(Message::new(delivery, context, shared.phase.subscribe()));
                begun.push(delivery);
            }
        }
    }
    if begun.is_empty() {
        return verdicts.into_iter().flatten().collect();
    }
    let count = begun.len();
    let leases: Vec<_> =
        messages.iter().zip(&begun).map(|(message, delivery)| (message.clone(), *delivery)).collect();
    let told = leases.iter().map(|(message, delivery)| {
        async move {
            delivery.lease_lost().await;
            message.lease.raise();
        }
        .boxed()
    });
    // One that is lost is no reason to drop the work on the others: it is told, and comes again.
    let lost = async {
        join_all(told).await;
        if shared.lease_lost == LeaseLost::Tell {
            std::future::pending::<()>().await;
        }
    };
    let handling = timeout::run(handler.call(messages), entry.timeout, interruption(shared, lost));
    let ended = keeping(&held, handling).await;
    let mut outcomes: Vec<Verdict> = match ended {
        Ended::Returned(outcomes) => {
            outcomes.into_iter().map(|outcome| Verdict::of(Ended::Returned(outcome))).collect()
        }
        Ended::Failed(error) => (0..count).map(|_| Verdict::Failed(error.clone())).collect(),
        Ended::Interrupted(why) => (0..count).map(|_| Verdict::Interrupted(why)).collect(),
    };
    let mut held = held.into_iter();
    for (verdict, claimed) in outcomes.iter().zip(claims) {
        if claimed && let Some(held) = held.next() {
            held.end(verdict).await;
        }
    }
    let mut outcomes = outcomes.drain(..);
    verdicts.into_iter().filter_map(|verdict| verdict.or_else(|| outcomes.next())).collect()
}

/// Settles a message by what its attempt came to.
async fn settle(
    shared: &Shared,
    slot: &Slot<'_>,
    delivery: Delivery,
    verdict: Verdict,
    entry: &Entry,
) -> End {
    let key = delivery.envelope().ordering_key.clone();
    let end = |kind| End { key: key.clone(), kind };
    match verdict {
        Verdict::Done => {
            if shared.in_place && delivery.attempt() > 1 {
                Box::pin(shared.forget(shared.stored_key(&delivery))).await;
            }
            shared.count(&shared.stats.acked, Outcome::Done, delivery.ack().await);
        }
        Verdict::Duplicate => {
            shared.count(&shared.stats.duplicates, Outcome::Duplicate, delivery.ack().await);
        }
        Verdict::Postponed(after) => {
            shared.count(&shared.stats.postponed, Outcome::Postponed, Ok(()));
            return end(EndKind::Postponed(Box::new(delivery), after));
        }
        Verdict::Interrupted(_) => {
            shared.count(&shared.stats.released, Outcome::Released, delivery.release().await);
        }
        Verdict::Failed(error) => return end(Box::pin(failed(shared, slot, delivery, error, entry)).await),
    }
    end(EndKind::Settled)
}

async fn failed(
    shared: &Shared,
    slot: &Slot<'_>,
    delivery: Delivery,
    error: HandlerError,
    entry: &Entry,
) -> EndKind {
    let failure = error.failure(&shared.name);
    let retry = entry.retry.next(&delivery, &error, shared.longest_retry);
    let decision = retry.map_or(Decision::Bury, Decision::Retry);
    if let Some(after) = retry
        && shared.in_place
    {
        shared.remember(&delivery, &failure, after).await;
    }
    let (id, attempt) = (stable_id(&delivery), delivery.attempt());
    let stored = shared.stored_key(&delivery);
    let settled = dead_letter::settle(shared, slot, delivery, entry, decision, failure.clone()).await;
    let after = if let Ok(Done::Later(after)) = settled { Some(after) } else { retry };
    let (count, outcome) = match after {
        Some(_) => (&shared.stats.retried, Outcome::Retried(&failure)),
        None => (&shared.stats.dead_lettered, Outcome::DeadLettered(&failure)),
    };
    if let (Ok(Done::Yes), None) = (&settled, retry) {
        shared.forget(stored).await;
    }
    let comes_again = settled.is_ok();
    shared.count(count, outcome, settled.map(drop));
    match after {
        Some(after) if comes_again => EndKind::Retried(Retried { id, attempt, due: Instant::now() + after }),
        _ => EndKind::Settled,
    }
}

/// Whether a settlement only came too late: the message is delivered again, as it would have been anyway.
pub(crate) fn is_late(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Stale | ErrorKind::Closed)
}
