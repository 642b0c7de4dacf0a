//! The handler itself: with a time limit, its panics caught, and dropped when nobody may go on with the message.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;

use crate::error::HandlerError;

/// Why a handler was dropped, without a failure of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interruption {
    /// The time to drain is over.
    Shutdown,
    /// The message may be another worker's.
    LeaseLost,
}

impl Interruption {
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::LeaseLost => "lease_lost",
        }
    }
}

/// How a handler ended: by itself, or not.
pub(crate) enum Ended<T> {
    Returned(T),
    Failed(HandlerError),
    Interrupted(Interruption),
}

/// Runs a handler. One that ends without waiting needs neither clock nor watch; they are made when it first waits.
pub(crate) async fn run<T>(
    handler: impl Future<Output = T>,
    timeout: Option<Duration>,
    interruption: impl Future<Output = Interruption>,
) -> Ended<T> {
    let mut caught = pin!(AssertUnwindSafe(handler).catch_unwind());
    let at_once = poll_fn(|cx| match caught.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending => Poll::Ready(None),
    });
    if let Some(ended) = at_once.await {
        return returned(ended);
    }
    let watched = async {
        let timed = async {
            match timeout {
                Some(timeout) => tokio::time::timeout(timeout, caught).await.map_err(|_| timeout),
                None => Ok(caught.await),
            }
        };
        tokio::select! {
            biased;
            ended = timed => match ended {
                Ok(ended) => returned(ended),
                Err(timeout) => {
                    let text = format!("no outcome within {timeout:?}");
                    Ended::Failed(HandlerError::retryable(text).with_class("timeout"))
                }
            },
            interruption = interruption => Ended::Interrupted(interruption),
        }
    };
    // On the heap, so that what rarely is needed does not make every task large.
    Box::pin(watched).await
}

fn returned<T>(ended: Result<T, Box<dyn Any + Send>>) -> Ended<T> {
    match ended {
        Ok(value) => Ended::Returned(value),
        Err(panic) => Ended::Failed(HandlerError::retryable(told(&*panic)).with_class("panic")),
    }
}

/// What a panic says.
fn told(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("(no text)"))
}
