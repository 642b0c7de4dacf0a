//! The answers of a batch: filled in from any thread, awaited as one. One allocation for the whole batch and no channel
//! a message.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

impl<R> State<R> {
    /// The first answer counts.
    fn put(&mut self, index: usize, result: Result<R>) {
        if let Some(place @ None) = self.results.get_mut(index) {
            *place = Some(result);
            self.remaining -= 1;
        }
    }

    fn take(&mut self, mut missing: impl FnMut(usize) -> Error) -> Vec<Result<R>> {
        let results = std::mem::take(&mut self.results).into_iter().enumerate();
        results.map(|(index, result)| result.unwrap_or_else(|| Err(missing(index)))).collect()
    }
}

impl<R> Inner<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who waits, if these were the last.
    fn put_back(&self, state: MutexGuard<'_, State<R>>) {
        let complete = state.remaining == 0;
        drop(state);
        if complete {
            self.waker.wake();
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
    fn answer(&self, answers: &mut dyn Iterator<Item = (usize, Result<Receipt>)>) {
        let mut state = self.0.state();
        for (index, result) in answers {
            state.put(index, result);
        }
        self.0.put_back(state);
    }
}

/// The place of one answer.
pub(crate) struct Slot<R> {
    inner: Option<Arc<Inner<R>>>,
    index: usize,
}

impl<R> Slot<R> {
    pub(crate) fn answer(mut self, result: Result<R>) {
        self.put(result);
    }

    /// Whether anybody still waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| Arc::strong_count(inner) > 1)
    }

    fn put(&mut self, result: Result<R>) {
        if let Some(inner) = self.inner.take() {
            let mut state = inner.state();
            state.put(self.index, result);
            inner.put_back(state);
        }
    }

    /// The place itself, leaving none behind.
    pub(crate) fn take(&mut self) -> Self {
        Self { inner: self.inner.take(), index: self.index }
    }
}

impl<R> Drop for Slot<R> {
    // Inlined, because nearly all are empty by then.
    #[inline]
    fn drop(&mut self) {
        if self.inner.is_some() {
            self.put(Err(no_answer()));
        }
    }
}

/// All answers, in order.
pub(crate) struct All<R>(Arc<Inner<R>>);

impl<R> Future for All<R> {
    type Output = Vec<Result<R>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(results) = self.complete() {
            return Poll::Ready(results);
        }
        self.0.waker.register(cx.waker());
        // Again, for an answer that came between the look and the registration.
        self.complete().map_or(Poll::Pending, Poll::Ready)
    }
}

impl<R> All<R> {
    fn complete(&self) -> Option<Vec<Result<R>>> {
        let mut state = self.0.state();
        (state.remaining == 0).then(|| state.take(|_| no_answer()))
    }

    /// The answers that there are; `missing` makes the others, by index.
    pub(crate) fn take_now(&self, missing: impl FnMut(usize) -> Error) -> Vec<Result<R>> {
        self.0.state().take(missing)
    }
}

pub(crate) fn no_answer() -> Error {
    Error::new(ErrorKind::Closed, "closed before there was an answer").with_retry(Retry::Uncertain)
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
