//! Handlers: async functions of what can be made from a job.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use crate::error::HandlerError;
use crate::job::{FromJob, Job, Message};

/// What an attempt came to.
pub type Outcome = Result<(), HandlerError>;

pub(crate) type OutcomeFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What a handler may return: nothing, or a `Result` of nothing whose error is a [`HandlerError`] or becomes one.
pub trait IntoOutcome {
    /// As an outcome.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Ok(())
    }
}

impl<E: Into<HandlerError>> IntoOutcome for Result<(), E> {
    fn into_outcome(self) -> Outcome {
        self.map_err(Into::into)
    }
}

/// Handles messages of a type. Implemented for async functions of up to four arguments that are [`FromJob`], in any
/// order:
///
/// ```
/// # use throughline_worker::{HandlerError, Job, Json};
/// # #[derive(serde::Deserialize)] struct SyncReport;
/// # struct State;
/// async fn sync_report(Json(report): Json<SyncReport>, job: Job<State>) -> Result<(), HandlerError> {
/// #   let _ = (report, job);
///     Ok(())
/// }
/// ```
///
/// Its future is dropped when the worker's time to drain is over, when a timeout is, and (unless told otherwise) when the
/// lease is lost: what must not stop half-way belongs into a task of its own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of messages with the state `{S}`",
    note = "a handler is an async function whose arguments are `Json<T>`, `Job<State>`, `Bytes` or other `FromJob`, and which returns `()` or `Result<(), HandlerError>`"
)]
pub trait Handler<Args, S>: Clone + Send + Sync + 'static {
    /// Handles one message.
    fn handle(self, job: Job<S>) -> impl Future<Output = Outcome> + Send + 'static;
}

macro_rules! handlers {
    ($($arg:ident)*) => {
        impl<F, Fut, S, $($arg,)*> Handler<($($arg,)*), S> for F
        where
            F: Fn($($arg),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future + Send + 'static,
            Fut::Output: IntoOutcome,
            S: Send + Sync + 'static,
            $($arg: FromJob<S> + 'static,)*
        {
            #[allow(unused_variables, reason = "a handler without arguments")]
            async fn handle(self, job: Job<S>) -> Outcome {
                self($($arg::from_job(&job)?),*).await.into_outcome()
            }
        }
    };
}

handlers!();
handlers!(A1);
handlers!(A1 A2);
handlers!(A1 A2 A3);
handlers!(A1 A2 A3 A4);

/// A handler whose arguments are forgotten.
pub(crate) trait Erased<S>: Send + Sync {
    fn call(&self, job: Job<S>) -> OutcomeFuture;
}

pub(crate) struct Typed<H, Args>(H, PhantomData<fn(Args)>);

impl<H, Args> Typed<H, Args> {
    pub(crate) fn new(handler: H) -> Self {
        Self(handler, PhantomData)
    }
}

impl<H, Args: 'static, S: Send + Sync + 'static> Erased<S> for Typed<H, Args>
where
    H: Handler<Args, S>,
{
    fn call(&self, job: Job<S>) -> OutcomeFuture {
        Box::pin(self.0.clone().handle(job))
    }
}

/// A handler with its state: what the run loop sees.
pub(crate) trait Call: Send + Sync {
    fn call(&self, message: Arc<Message>) -> OutcomeFuture;
}

pub(crate) struct Bound<S> {
    pub(crate) handler: Arc<dyn Erased<S>>,
    pub(crate) state: Arc<S>,
}

impl<S: Send + Sync> Call for Bound<S> {
    fn call(&self, message: Arc<Message>) -> OutcomeFuture {
        self.handler.call(Job { message, state: self.state.clone() })
    }
}
