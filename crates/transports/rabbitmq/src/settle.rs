//! Settlement: acks many at once, retries and rejects by publishing first.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use lapin::options::BasicAckOptions;
use throughline_core::driver::{Clock, Settlement, Token};
use throughline_core::{Envelope, Error, ErrorKind, History, Result, Retry, Timestamp};
use tokio::time::Instant;

use crate::codec::{DeadLetter, Hop};
use crate::config::Route;
use crate::consumer::{Consumer, Inner, Session, nack, poll_once, stale};
use crate::republish::{Destined, Onward};

type Writing = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send>>;

/// Frames that were handed to the client, in order, and whose writing is awaited later, outside of any lock.
#[derive(Default)]
pub(crate) struct Writes(Vec<(Vec<usize>, Writing)>);

impl Writes {
    /// Hands a frame over at once; `settles` are the places in the batch that depend on it.
    pub(crate) fn start(
        &mut self,
        settles: impl Into<Vec<usize>>,
        frame: impl Future<Output = lapin::Result<()>> + Send + 'static,
    ) {
        let mut writing: Writing = Box::pin(frame);
        match poll_once(writing.as_mut()) {
            Poll::Pending => self.0.push((settles.into(), writing)),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => self.0.push((settles.into(), Box::pin(async { Err(error) }))),
        }
    }

    /// Waits until all is written; gives the places whose frames were not.
    pub(crate) async fn written(self) -> Vec<usize> {
        let mut failed = Vec::new();
        for (settles, writing) in self.0 {
            if writing.await.is_err() {
                failed.extend(settles);
            }
        }
        failed
    }
}

/// A delivery that is sent on before it is acked.
struct SendOn {
    at: usize,
    tag: u64,
    envelope: Arc<Envelope>,
    failed_attempts: u32,
    history: Arc<History>,
    to: To,
}

enum To {
    /// Back to the queue, after a while.
    Queue(Duration),
    DeadLetter(Route),
}

impl Consumer {
    pub(crate) async fn settle_batch(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let mut acks = Vec::new();
        let mut onward = Vec::new();
        let mut writes = Writes::default();
        let session = {
            let mut inner = self.inner();
            let Some(session) = inner.session.clone() else {
                return batch.iter().map(|_| Err(stale())).collect();
            };
            for ((at, (token, settlement)), result) in batch.iter().enumerate().zip(&mut results) {
                let mine = token.epoch == session.epoch;
                match settlement {
                    Settlement::Ack if mine => acks.push((at, token.tag)),
                    Settlement::Release if mine => {
                        *result = release(&mut inner, &session, at, token.tag, &mut writes);
                    }
                    Settlement::Retry { after, history } if mine => {
                        let (open, place) = ((&mut *inner, &session), (at, token.tag));
                        *result = self
                            .retry(open, place, (*after, history), &mut writes)
                            .map(|send_on| onward.extend(send_on));
                    }
                    Settlement::Reject { history } if mine => {
                        let rejected = self.reject(&inner, (at, token.tag), history);
                        *result = rejected.map(|send_on| onward.push(send_on));
                    }
                    _ => *result = Err(stale()),
                }
            }
            ack(&mut inner, &session, &acks, &mut writes, &mut results);
            self.tell(&inner);
            session
        };
        let mut failed = writes.written().await;
        if !onward.is_empty() {
            failed.extend(self.send_on(&session, onward, &mut results).await);
        }
        if !failed.is_empty() {
            for at in failed {
                if let Some(result) = results.get_mut(at) {
                    *result = Err(stale());
                }
            }
            self.lose(session.epoch).await;
        }
        results
    }

    /// Holds a keyed message in its place; others are sent on.
    fn retry(
        &self,
        (inner, session): (&mut Inner, &Session),
        (at, tag): (usize, u64),
        (after, history): (Duration, &Arc<History>),
        writes: &mut Writes,
    ) -> Result<Option<SendOn>> {
        let entry = inner.window.get_mut(tag).ok_or_else(stale)?;
        let failed_attempts = entry.delivery.failed_attempts.saturating_add(1);
        match entry.key().filter(|_| self.keep_order).cloned() {
            // Nobody would hand it out again here; another consumer finds it at its place in the queue.
            Some(_) if self.is_stopping() => release(inner, session, at, tag, writes).map(|()| None),
            Some(key) if entry.received.elapsed().saturating_add(after) <= self.longest_hold() => {
                let delivery = &mut entry.delivery;
                delivery.failed_attempts = failed_attempts;
                delivery.history = Some(history.clone());
                delivery.receive_count = delivery.receive_count.map(|count| count.saturating_add(1));
                delivery.enqueued = Some((Timestamp::now().after(after), Clock::Publisher));
                inner.gate.hold(&key, tag, Instant::now() + after);
                Ok(None)
            }
            _ => {
                let envelope = entry.delivery.envelope.clone();
                let to = To::Queue(after);
                Ok(Some(SendOn { at, tag, envelope, failed_attempts, history: history.clone(), to }))
            }
        }
    }

    fn reject(&self, inner: &Inner, (at, tag): (usize, u64), history: &Arc<History>) -> Result<SendOn> {
        let entry = inner.window.get(tag).ok_or_else(stale)?;
        let Some(route) = self.dead_letter() else {
            return Err(Error::new(
                ErrorKind::NoDeadLetter,
                "no dead-letter destination is known: add ?dead_letter=QUEUE to the address; the message stays",
            ));
        };
        let failed_attempts = history.failed_attempts(entry.delivery.failed_attempts);
        let envelope = entry.delivery.envelope.clone();
        let to = To::DeadLetter(route.clone());
        Ok(SendOn { at, tag, envelope, failed_attempts, history: history.clone(), to })
    }

    /// Publishes, and acks what the broker has; what it has not taken stays held. Gives the places whose settlement could
    /// not be written.
    async fn send_on(
        &self,
        session: &Session,
        onward: Vec<SendOn>,
        results: &mut [Result<()>],
    ) -> Vec<usize> {
        let messages = onward.iter().map(|send_on| self.onward(send_on)).collect();
        let answers = self.republisher.send(messages).await;
        let mut writes = Writes::default();
        {
            let mut inner = self.inner();
            let still_ours = inner.session.as_ref().is_some_and(|present| present.epoch == session.epoch);
            let mut acks = Vec::new();
            for (send_on, answer) in onward.iter().zip(answers) {
                let outcome = match answer {
                    Ok(()) => {
                        acks.push((send_on.at, send_on.tag));
                        Ok(())
                    }
                    // It was tried as often as makes sense at once.
                    Err(error) if still_ours => Err(error.with_retry(Retry::Never)),
                    Err(_) => Err(stale()),
                };
                if let Some(result) = results.get_mut(send_on.at) {
                    *result = outcome;
                }
            }
            if still_ours {
                ack(&mut inner, session, &acks, &mut writes, results);
            } else {
                // The broker delivers the original again, beside the one that was sent on.
                for (at, _) in acks {
                    if let Some(result) = results.get_mut(at) {
                        *result = Err(stale());
                    }
                }
            }
            self.tell(&inner);
        }
        writes.written().await
    }

    /// Wakes a waiting receive, where there is something for it.
    fn tell(&self, inner: &Inner) {
        if !inner.ready.is_empty() || inner.gate.next_due().is_some() {
            self.freed.notify_one();
        }
    }

    fn onward<'a>(&'a self, send_on: &'a SendOn) -> Onward<'a> {
        let mut hop =
            Hop { failed_attempts: send_on.failed_attempts, history: Some(&send_on.history), ..Hop::first() };
        let to = match &send_on.to {
            To::Queue(after) => {
                hop.delay = *after;
                Destined::Queue(&self.queue, *after)
            }
            To::DeadLetter(route) => {
                hop.dead_letter =
                    Some(DeadLetter { source: self.queue.as_str(), reason: reason(&send_on.history) });
                // What was rejected is kept, however late somebody looks at it.
                hop.expires = false;
                Destined::DeadLetter(route)
            }
        };
        Onward { envelope: send_on.envelope.clone(), hop, to }
    }
}

fn release(inner: &mut Inner, session: &Session, at: usize, tag: u64, writes: &mut Writes) -> Result<()> {
    let entry = inner.window.remove(tag).ok_or_else(stale)?;
    inner.left(tag, &entry);
    writes.start([at], nack(session.channel.clone(), tag));
    Ok(())
}

fn ack(
    inner: &mut Inner,
    session: &Session,
    settled: &[(usize, u64)],
    writes: &mut Writes,
    results: &mut [Result<()>],
) {
    if settled.is_empty() {
        return;
    }
    let tags: Vec<_> = settled.iter().map(|(_, tag)| *tag).collect();
    let (taken, acks) = inner.window.ack(&tags);
    for ((at, tag), taken) in settled.iter().zip(&taken) {
        match taken {
            Some(entry) => inner.left(*tag, entry),
            None => {
                if let Some(result) = results.get_mut(*at) {
                    *result = Err(stale());
                }
            }
        }
    }
    if !acks.is_empty() {
        inner.last_ack = Some(Instant::now());
    }
    for ack in acks {
        let covered =
            settled.iter().filter(|(_, tag)| if ack.multiple { *tag <= ack.tag } else { *tag == ack.tag });
        let covered: Vec<usize> = covered.map(|(at, _)| *at).collect();
        let channel = session.channel.clone();
        writes.start(covered, async move {
            channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await
        });
    }
}

/// The last failure, for people. Long texts are cut by `Failure` already.
fn reason(history: &History) -> String {
    history.last().map_or_else(|| "rejected".to_owned(), ToString::to_string)
}
