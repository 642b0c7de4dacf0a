//! The answers of a batch: filled in from any thread, awaited as one. One allocation for the whole batch and no channel
//! a message.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::driver::{Answer, Receipt};
use crate::error::{Error, ErrorKind, Result, Retry};

struct Inner<R> {
    state: Mutex<State<R>>,
    waker: AtomicWaker,
}

struct State<R> {
    results: Vec<Option<Result<R>>>,
    remaining: usize,
}

impl<R> Inner<R> {
    fn answer(&self, index: usize, result: Result<R>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place @ None) = state.results.get_mut(index) {
            *place = Some(result);
            state.remaining -= 1;
            if state.remaining == 0 {
                drop(state);
                self.waker.wake();
            }
        }
    }
}

/// Takes the answers by index.
pub(crate) struct Answers<R>(Arc<Inner<R>>);

impl<R> Answers<R> {
    /// The place of one answer; dropped without one, the answer is an error.
    pub(crate) fn slot(&self, index: usize) -> Slot<R> {
        Slot { inner: Some(self.0.clone()), index }
    }
}

impl Answer for Answers<Receipt> {
    fn answer(&self, index: usize, result: Result<Receipt>) {
        self.0.answer(index, result);
    }
}

/// The place of one answer.
pub(crate) struct Slot<R> {
    inner: Option<Arc<Inner<R>>>,
    index: usize,
}

impl<R> Slot<R> {
    pub(crate) fn answer(mut self, result: Result<R>) {
        if let Some(inner) = self.inner.take() {
            inner.answer(self.index, result);
        }
    }
}

impl<R> Drop for Slot<R> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            let error = Error::new(ErrorKind::Closed, "closed before there was an answer");
            inner.answer(self.index, Err(error.with_retry(Retry::Uncertain)));
        }
    }
}

/// All answers, in order.
pub(crate) struct All<R>(Arc<Inner<R>>);

impl<R> Future for All<R> {
    type Output = Vec<Result<R>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let take = || {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.remaining == 0).then(|| std::mem::take(&mut state.results).into_iter().flatten().collect())
        };
        if let Some(results) = take() {
            return Poll::Ready(results);
        }
        self.0.waker.register(cx.waker());
        // Again, for an answer that came between the look and the registration.
        take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<R> All<R> {
    /// The answers that there are; `missing` makes the others, by index.
    pub(crate) fn take_now(&self, mut missing: impl FnMut(usize) -> Error) -> Vec<Result<R>> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let results = std::mem::take(&mut state.results);
        let all = results.into_iter().enumerate();
        all.map(|(index, result)| result.unwrap_or_else(|| Err(missing(index)))).collect()
    }
}

/// Places for `len` answers, and the future of all.
pub(crate) fn answers<R>(len: usize) -> (Answers<R>, All<R>) {
    let results = std::iter::repeat_with(|| None).take(len).collect();
    let inner =
        Arc::new(Inner { state: Mutex::new(State { results, remaining: len }), waker: AtomicWaker::new() });
    (Answers(inner.clone()), All(inner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Completions;

    #[tokio::test]
    async fn answers_come_in_any_order_once_and_a_dropped_one_is_uncertain() {
        let (done, all) = Completions::collect(3);
        done.complete(2, Ok(Receipt::with_native_id("c")));
        done.complete(0, Ok(Receipt::with_native_id("a")));
        done.complete(0, Err(Error::new(ErrorKind::Internal, "twice")));
        drop(done);
        let all = all.await;
        assert_eq!(all[0].as_ref().unwrap().native_id.as_deref(), Some("a"));
        assert_eq!(all[1].as_ref().unwrap_err().retry(), Retry::Uncertain);
        assert_eq!(all[2].as_ref().unwrap().native_id.as_deref(), Some("c"));
    }

    #[tokio::test]
    async fn no_answers_are_ready_at_once_and_a_dropped_slot_is_an_error() {
        assert!(answers::<()>(0).1.await.is_empty());
        let (answers, all) = answers::<()>(1);
        drop(answers.slot(0));
        assert_eq!(all.await[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
    }
}
