//! Handlers of several messages of one type at once.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::HandlerError;
use crate::handler::Outcome;
use crate::job::{FromJob, Job, Message};

/// How messages are gathered for a batch handler.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// So many go at once; 100 by default.
    pub max: usize,
    /// How long the first waits for others; 20 ms by default.
    pub linger: Duration,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { max: 100, linger: Duration::from_millis(20) }
    }
}

/// Messages of one type that are handled together, each as what was asked for. At most one of each ordering key (as many
/// as `per_key` allows): a key's next message waits for the batch.
pub struct Batch<T, S = ()> {
    items: Vec<T>,
    jobs: Vec<Job<S>>,
}

impl<T, S> Batch<T, S> {
    /// What was made of the messages, in the order of their arrival.
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// The messages, in the same order.
    pub fn jobs(&self) -> &[Job<S>] {
        &self.jobs
    }

    /// Both, one by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&T, &Job<S>)> {
        self.items.iter().zip(&self.jobs)
    }

    /// What was made of the messages.
    pub fn into_items(self) -> Vec<T> {
        self.items
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none; a handler is not called with none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

impl<T, S> fmt::Debug for Batch<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// What a batch handler may return: one outcome for all, or a `Vec` with one a message, in their order.
pub trait IntoOutcomes {
    /// One outcome a message. What a handler left out is retried.
    fn into_outcomes(self, len: usize) -> Vec<Outcome>;
}

impl IntoOutcomes for () {
    fn into_outcomes(self, len: usize) -> Vec<Outcome> {
        vec![Ok(()); len]
    }
}

impl<E: Into<HandlerError>> IntoOutcomes for Result<(), E> {
    fn into_outcomes(self, len: usize) -> Vec<Outcome> {
        vec![self.map_err(Into::into); len]
    }
}

impl<E: Into<HandlerError>> IntoOutcomes for Vec<Result<(), E>> {
    fn into_outcomes(self, len: usize) -> Vec<Outcome> {
        let mut outcomes: Vec<_> = self.into_iter().map(|outcome| outcome.map_err(Into::into)).collect();
        outcomes.resize_with(len, || Err(no_outcome()));
        outcomes
    }
}

fn no_outcome() -> HandlerError {
    HandlerError::retryable("the batch handler gave no outcome for this message").with_class("no_outcome")
}

/// Handles several messages at once: an async function of a [`Batch`]. One that fails as a whole, or panics, fails for each
/// of its messages; what cannot be made into the batch's items fails alone, before.
pub trait BatchHandler<T, S>: Clone + Send + Sync + 'static {
    /// Handles a batch.
    fn handle(self, batch: Batch<T, S>) -> impl Future<Output = Vec<Outcome>> + Send + 'static;
}

impl<F, Fut, T, S> BatchHandler<T, S> for F
where
    F: Fn(Batch<T, S>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcomes,
    T: Send + 'static,
    S: Send + Sync + 'static,
{
    async fn handle(self, batch: Batch<T, S>) -> Vec<Outcome> {
        let len = batch.len();
        self(batch).await.into_outcomes(len)
    }
}

pub(crate) type OutcomesFuture = Pin<Box<dyn Future<Output = Vec<Outcome>> + Send>>;

pub(crate) trait ErasedBatch<S>: Send + Sync {
    fn call(&self, jobs: Vec<Job<S>>) -> OutcomesFuture;
}

pub(crate) struct TypedBatch<H, T>(H, PhantomData<fn(T)>);

impl<H, T> TypedBatch<H, T> {
    pub(crate) fn new(handler: H) -> Self {
        Self(handler, PhantomData)
    }
}

impl<H, T, S> ErasedBatch<S> for TypedBatch<H, T>
where
    H: BatchHandler<T, S>,
    T: FromJob<S> + 'static,
    S: Send + Sync + 'static,
{
    fn call(&self, jobs: Vec<Job<S>>) -> OutcomesFuture {
        let handler = self.0.clone();
        Box::pin(async move {
            let mut batch =
                Batch { items: Vec::with_capacity(jobs.len()), jobs: Vec::with_capacity(jobs.len()) };
            // `Ok` stands for one that is in the batch.
            let mut outcomes = Vec::with_capacity(jobs.len());
            for job in jobs {
                outcomes.push(T::from_job(&job).map(|item| {
                    batch.items.push(item);
                    batch.jobs.push(job);
                }));
            }
            if batch.is_empty() {
                return outcomes;
            }
            let mut handled = handler.handle(batch).await.into_iter();
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                // What was left out, by whatever the handler returns, is not done.
                *outcome = handled.next().unwrap_or_else(|| Err(no_outcome()));
            }
            outcomes
        })
    }
}

/// A batch handler with its state: what the run loop sees.
pub(crate) trait CallBatch: Send + Sync {
    fn call(&self, messages: Vec<Arc<Message>>) -> OutcomesFuture;
}

pub(crate) struct BoundBatch<S> {
    pub(crate) handler: Arc<dyn ErasedBatch<S>>,
    pub(crate) state: Arc<S>,
}

impl<S: Send + Sync> CallBatch for BoundBatch<S> {
    fn call(&self, messages: Vec<Arc<Message>>) -> OutcomesFuture {
        let jobs = messages.into_iter().map(|message| Job { message, state: self.state.clone() });
        self.handler.call(jobs.collect())
    }
}
