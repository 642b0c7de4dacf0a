//! The mutant's publisher: what goes wrong on the way to the broker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::capabilities::Capabilities;
use throughline_core::driver::{Completions, Endpoint, OperationId, Outgoing, Publisher, Receipt};
use throughline_core::headers::{TRACESTATE, is_trace_header};
use throughline_core::{Envelope, Error, ErrorKind, HeaderValue, Headers, Result, Retry};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{LIMIT, Mutation};

pub(super) struct MutantPublisher {
    inner: Arc<dyn Publisher>,
    mutation: Mutation,
    capabilities: Capabilities,
    count: AtomicU64,
    failed: AtomicBool,
    /// The connection that the last call went to.
    seen_cuts: AtomicU64,
    cuts: Option<Arc<watch::Sender<u64>>>,
    later: Mutex<Vec<JoinHandle<()>>>,
}

impl MutantPublisher {
    pub(super) fn new(
        inner: Arc<dyn Publisher>,
        mutation: Mutation,
        capabilities: Capabilities,
        cuts: Option<Arc<watch::Sender<u64>>>,
    ) -> Self {
        let seen_cuts = AtomicU64::new(cuts.as_ref().map_or(0, |cuts| *cuts.borrow()));
        let (count, failed, later) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::default());
        Self { inner, mutation, capabilities, count, failed, seen_cuts, cuts, later }
    }

    fn refusal(&self, message: &Outgoing, batch: usize) -> Option<Error> {
        let refused = match self.mutation {
            Mutation::FailsBatches => batch > 1,
            Mutation::RefusesLongCalls => batch > 100,
            Mutation::RefusesHalfTheLimit => message.envelope.payload_len() > LIMIT / 2,
            Mutation::RefusesLongDelays => message.delay > Duration::from_secs(1),
            Mutation::WedgesAfterAnError => self.failed.load(Ordering::SeqCst),
            _ => false,
        };
        refused.then(|| Error::new(ErrorKind::Refused, "the mutant refuses"))
    }

    fn mutate(&self, message: &mut Outgoing) {
        match self.mutation {
            Mutation::IgnoresDelay => message.delay = Duration::ZERO,
            Mutation::NeverDeduplicates => {
                let count = self.count.fetch_add(1, Ordering::SeqCst);
                message.operation = OperationId(message.operation.0.wrapping_add(u128::from(count) << 40));
            }
            _ => {}
        }
        mutate(self.mutation, Arc::make_mut(&mut message.envelope));
    }

    /// Whether the connection was cut since the last call.
    fn is_cut(&self) -> bool {
        let Some(cuts) = &self.cuts else { return false };
        let now = *cuts.borrow();
        self.seen_cuts.swap(now, Ordering::SeqCst) != now
    }

    async fn through(&self, batch: Vec<Outgoing>) -> Vec<Result<Receipt>> {
        let (done, answers) = Completions::collect(batch.len());
        self.inner.publish(batch, done).await;
        answers.await
    }
}

/// What becomes of an envelope on a wire that is broken.
fn mutate(mutation: Mutation, envelope: &mut Envelope) {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = &mut envelope.headers;
    match mutation {
        Mutation::IgnoresExpiry => envelope.expires_at = None,
        Mutation::IgnoresPriority => envelope.priority = None,
        Mutation::LosesReplyTo => envelope.reply_to = None,
        Mutation::LossyBody => {
            envelope.payload = envelope.payload.as_ref().map(|payload| lossy(payload).into());
        }
        Mutation::TombstoneBecomesEmpty => {
            envelope.payload.get_or_insert_default();
        }
        Mutation::EmptyKeyBecomesAbsent => {
            envelope.ordering_key = envelope.ordering_key.take().filter(|key| !key.is_empty());
        }
        Mutation::LossyHeaders => {
            *headers = changed(headers, |name, value| match value {
                HeaderValue::Bytes(bytes) => (name, lossy(&bytes).into()),
                value => (name, value),
            });
        }
        Mutation::LowercasesNames => *headers = changed(headers, |name, value| (name.to_lowercase(), value)),
        Mutation::KeepsTenHeaders => {
            let mut sorted: Vec<_> = std::mem::take(headers).into_iter().collect();
            sorted.sort_by(|(one, _), (other, _)| one.cmp(other));
            *headers = sorted.into_iter().take(10).collect();
        }
        Mutation::LastValueWins => {
            let all: HashMap<_, _> = std::mem::take(headers).into_iter().collect();
            *headers = all.into_iter().collect();
        }
        Mutation::TrimsTracestate => {
            *headers = changed(headers, |name, value| match value {
                HeaderValue::Text(text) if name == TRACESTATE && is_trace_header(&name) => {
                    (name, text.replace(char::is_whitespace, "").into())
                }
                value => (name, value),
            });
        }
        _ => {}
    }
}

fn changed(
    headers: &mut Headers,
    change: impl FnMut(String, HeaderValue) -> (String, HeaderValue),
) -> Headers {
    let mut change = change;
    std::mem::take(headers).into_iter().map(|(name, value)| change(name, value)).collect()
}

#[async_trait]
impl Publisher for MutantPublisher {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        self.inner.endpoint()
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        self.inner.measure(message)
    }

    async fn publish(&self, mut batch: Vec<Outgoing>, done: Completions) {
        let length = batch.len();
        if self.is_cut() {
            if self.mutation == Mutation::LosesWhatIsInFlight {
                (0..length).for_each(|index| done.complete(index, Ok(Receipt::default())));
            }
            let error = Error::new(ErrorKind::Disconnected, "the mutant's connection was cut");
            return done.fail_rest(&error.with_retry(Retry::Safe));
        }
        let mut kept = Vec::new();
        for (index, message) in batch.iter_mut().enumerate() {
            if let Some(error) = self.refusal(message, length) {
                done.complete(index, Err(error));
                continue;
            }
            self.mutate(message);
            let count = self.count.fetch_add(1, Ordering::SeqCst);
            if self.mutation == Mutation::LosesSome && count % 50 == 49 {
                done.complete(index, Ok(Receipt::default()));
                continue;
            }
            kept.push((index, message.clone()));
            if self.mutation == Mutation::DeliversTwice {
                let operation = OperationId(!message.operation.0);
                kept.push((index, Outgoing { operation, ..message.clone() }));
            }
        }
        if self.mutation == Mutation::Reorders {
            kept.reverse();
        }
        let messages: Vec<_> = kept.iter().map(|(_, message)| message.clone()).collect();
        if self.mutation == Mutation::AnswersBeforeStoring {
            let inner = self.inner.clone();
            let later = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let (done, answers) = Completions::collect(messages.len());
                inner.publish(messages, done).await;
                answers.await;
            });
            self.later.lock().unwrap().push(later);
            return (0..length).for_each(|index| done.complete(index, Ok(Receipt::default())));
        }
        let answers = self.through(messages).await;
        for ((index, _), answer) in kept.into_iter().zip(answers) {
            let answer = match answer {
                Err(error)
                    if error.kind() == ErrorKind::Unroutable
                        && self.mutation == Mutation::DropsUnroutable =>
                {
                    Ok(Receipt::default())
                }
                answer => answer,
            };
            self.failed.fetch_or(answer.is_err(), Ordering::SeqCst);
            if self.mutation != Mutation::ForgetsAnAnswer || index != 0 {
                done.complete(index, answer);
            }
        }
        if self.mutation == Mutation::ForgetsAnAnswer {
            // Dropped, it would answer.
            std::mem::forget(done);
        }
    }

    async fn close(&self) -> Result<()> {
        // What it had answered and not stored is gone.
        self.later.lock().unwrap().drain(..).for_each(|later| later.abort());
        if self.mutation == Mutation::PublishesAfterClose {
            return Ok(());
        }
        self.inner.close().await
    }
}
