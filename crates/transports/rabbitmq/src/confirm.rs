//! Publishing with confirms, pipelined: one channel, messages written in order, answers as they come.
//!
//! A collector task for each channel waits for all outstanding confirms at once. It also finds out whom a returned
//! message belongs to: the client hands a returned message to whichever confirm resolves next, while RabbitMQ sends
//! returns at once and confirms later, in any order and many in one frame (seen in the sources of both).

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use throughline_core::driver::{Completions, Receipt};
use throughline_core::{Envelope, Error, ErrorKind, Result, Retry};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::codec::SHORT;
use crate::config::Route;
use crate::connect::{Keeper, close_channel, opened};
use crate::error;

/// How many bytes may be handed to the client and not yet be written to the socket, in KiB: 16 MiB, the largest message
/// that RabbitMQ takes by default. A larger message goes alone.
const UNWRITTEN_KIB: u32 = 16 * 1024;
/// How long after the loss of a channel its confirms may stay open; the client fails them at once, this is for certainty.
const GRACE: Duration = Duration::from_secs(5);

/// Makes the error of a message that nothing takes, from the broker's reply.
pub(crate) type Unroutable = Arc<dyn Fn(&str) -> Error + Send + Sync>;

/// A message to publish.
pub(crate) struct Job {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) properties: BasicProperties,
    pub(crate) route: Route,
    pub(crate) mandatory: bool,
    /// The error if nothing is bound that takes it.
    pub(crate) unroutable: Unroutable,
    /// Its place in the completions.
    pub(crate) index: usize,
}

/// Publishes over one confirm channel, which it opens anew when it was lost.
pub(crate) struct Sender {
    keeper: Arc<Keeper>,
    room: Arc<Semaphore>,
    state: Mutex<State>,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    collectors: Vec<JoinHandle<()>>,
}

/// A channel in confirm mode, and what was published on it that its collector has not seen yet.
struct Live {
    channel: Channel,
    inbox: Mutex<Inbox>,
    told: Notify,
}

#[derive(Default)]
struct Inbox {
    published: Vec<Published>,
    closed: bool,
}

impl Sender {
    pub(crate) fn new(keeper: Arc<Keeper>) -> Self {
        let room = Arc::new(Semaphore::new(UNWRITTEN_KIB as usize));
        Self { keeper, room, state: Mutex::default(), closed: AtomicBool::new(false) }
    }

    /// Publishes messages, in order. Returns once their order is fixed; each is answered by its index.
    pub(crate) async fn send(&self, jobs: Vec<Job>, done: &Arc<Completions>) {
        if jobs.is_empty() {
            return;
        }
        let fail = |error: &Error| {
            for job in &jobs {
                done.complete(job.index, Err(error.clone()));
            }
        };
        if self.closed.load(Ordering::Acquire) {
            return fail(&Error::new(ErrorKind::Closed, "the publisher is closed"));
        }
        let live = match self.live().await {
            Ok(live) => live,
            Err(error) => return fail(&error),
        };
        let bytes: usize = jobs.iter().map(|job| job.envelope.payload_len() + 1024).sum();
        let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(1, UNWRITTEN_KIB);
        let Ok(permit) = self.room.clone().acquire_many_owned(kib).await else {
            return fail(&Error::new(ErrorKind::Closed, "the publisher is closed"));
        };
        live.publish(jobs, permit, done);
    }

    /// Waits for the answers still out, then closes.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let (live, collectors) = {
            let mut state = self.state();
            (state.live.take(), std::mem::take(&mut state.collectors))
        };
        if let Some(live) = &live {
            live.end();
        }
        for collector in collectors {
            if let Err(error) = collector.await {
                tracing::error!(%error, "the task that collects confirms failed");
            }
        }
        if let Some(live) = live {
            close_channel(&live.channel).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<Live>> {
        let mut state = self.state();
        if state.live.as_ref().is_some_and(|live| !live.is_up())
            && let Some(lost) = state.live.take()
        {
            lost.end();
        }
        state.live.clone()
    }

    async fn live(&self) -> Result<Arc<Live>> {
        if let Some(live) = self.current() {
            return Ok(live);
        }
        let channel = self.keeper.link().await?.channel().await?;
        opened(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let live = Arc::new(Live { channel, inbox: Mutex::default(), told: Notify::new() });
        let mut state = self.state();
        // Another call may have been quicker; its channel is as good, and ours closes as it is dropped.
        if let Some(other) = state.live.as_ref().filter(|other| other.is_up()) {
            return Ok(other.clone());
        }
        state.collectors.retain(|collector| !collector.is_finished());
        state.collectors.push(tokio::spawn(Collector::new(live.clone()).run()));
        if let Some(lost) = state.live.replace(live.clone()) {
            lost.end();
        }
        Ok(live)
    }
}

/// Without a close, the collector still ends once all is answered.
impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(live) = self.state().live.take() {
            live.end();
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Live {
    fn is_up(&self) -> bool {
        self.channel.status().connected()
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more; the collector ends when all is answered.
    fn end(&self) {
        self.inbox().closed = true;
        self.told.notify_one();
    }

    fn publish(self: &Arc<Self>, jobs: Vec<Job>, permit: OwnedSemaphorePermit, done: &Arc<Completions>) {
        let permit = Arc::new(permit);
        // Held over all: whatever confirm may be resolved is then known to the collector.
        let mut inbox = self.inbox();
        if inbox.closed {
            let error = error::disconnected("the channel was lost before the message was written");
            for job in &jobs {
                done.complete(job.index, Err(error.clone()));
            }
            return;
        }
        for job in jobs {
            let mut published = Published::new(self.clone(), job, permit.clone(), done.clone());
            // The first poll hands the frames to the client, in this order; the collector polls on.
            published.start();
            inbox.published.push(published);
        }
        drop(inbox);
        self.told.notify_one();
    }
}

type Publishing = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>;

/// Where a message is on its way.
enum Stage {
    Writing(Publishing),
    Confirming(PublisherConfirm),
    /// Answered during the first poll.
    Over(Outcome),
    Done,
}

enum Outcome {
    /// Not written: the broker has certainly not accepted it.
    Unwritten(lapin::Error),
    /// Written, and the channel was lost before its confirm.
    Lost(lapin::Error),
    /// Whether the broker took it, and a returned message, which may be another's.
    Confirmed(bool, Option<Box<BasicReturnMessage>>),
}

struct Published {
    stage: Stage,
    /// Given back when it is written.
    permit: Option<Arc<OwnedSemaphorePermit>>,
    ticket: Option<Ticket>,
}

/// Whose answer it is.
struct Ticket {
    envelope: Arc<Envelope>,
    route: Route,
    unroutable: Unroutable,
    done: Arc<Completions>,
    index: usize,
}

impl Published {
    fn new(live: Arc<Live>, job: Job, permit: Arc<OwnedSemaphorePermit>, done: Arc<Completions>) -> Self {
        let ticket = Ticket {
            envelope: job.envelope.clone(),
            route: job.route.clone(),
            unroutable: job.unroutable,
            done,
            index: job.index,
        };
        let Route { exchange, key } = job.route;
        let options = BasicPublishOptions { mandatory: job.mandatory, ..BasicPublishOptions::default() };
        let (envelope, properties) = (job.envelope, job.properties);
        let publishing: Publishing = Box::pin(async move {
            let payload = envelope.payload.as_deref().unwrap_or_default();
            live.channel.basic_publish(exchange, key, options, payload, properties).await
        });
        Self { stage: Stage::Writing(publishing), permit: Some(permit), ticket: Some(ticket) }
    }

    fn start(&mut self) {
        if let Poll::Ready(outcome) = self.advance(&mut Context::from_waker(Waker::noop())) {
            self.stage = Stage::Over(outcome);
        }
    }

    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            match &mut self.stage {
                Stage::Writing(publishing) => match publishing.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(written) => {
                        self.permit = None;
                        match written {
                            Ok(confirm) => self.stage = Stage::Confirming(confirm),
                            Err(error) => {
                                self.stage = Stage::Done;
                                return Poll::Ready(Outcome::Unwritten(error));
                            }
                        }
                    }
                },
                Stage::Confirming(confirm) => match Pin::new(confirm).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(confirmed) => {
                        self.stage = Stage::Done;
                        return Poll::Ready(match confirmed {
                            Ok(Confirmation::Nack(returned)) => {
                                Outcome::Confirmed(false, returned.map(Box::new))
                            }
                            Ok(Confirmation::Ack(returned)) => {
                                Outcome::Confirmed(true, returned.map(Box::new))
                            }
                            Ok(Confirmation::NotRequested) => Outcome::Confirmed(true, None),
                            Err(error) => Outcome::Lost(error),
                        });
                    }
                },
                Stage::Over(_) | Stage::Done => {
                    return match std::mem::replace(&mut self.stage, Stage::Done) {
                        Stage::Over(outcome) => Poll::Ready(outcome),
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl Future for Published {
    type Output = (Ticket, Outcome);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.advance(cx) {
            Poll::Ready(outcome) => match self.ticket.take() {
                Some(ticket) => Poll::Ready((ticket, outcome)),
                None => Poll::Pending,
            },
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Waits for the confirms of one channel.
struct Collector {
    live: Arc<Live>,
    pending: FuturesUnordered<Published>,
    /// Returned messages whose owner has not been confirmed yet.
    returned: Vec<BasicReturnMessage>,
    flag: Arc<Flag>,
}

/// Tells whether a poll gave up for fairness, and not because nothing was ready.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl Collector {
    fn new(live: Arc<Live>) -> Self {
        Self { live, pending: FuturesUnordered::new(), returned: Vec::new(), flag: Arc::default() }
    }

    async fn run(mut self) {
        loop {
            let closed = self.take_new();
            if self.pending.is_empty() && closed {
                return;
            }
            let mut done = Vec::new();
            tokio::select! {
                Some(first) = self.pending.next(), if !self.pending.is_empty() => done.push(first),
                () = self.live.told.notified() => {}
                () = tokio::time::sleep(GRACE), if !self.pending.is_empty() && !self.live.is_up() => {
                    return self.give_up();
                }
            }
            self.drain(&mut done);
            if done.iter().any(|(_, outcome)| matches!(outcome, Outcome::Confirmed(..))) {
                self.barrier();
                self.take_new();
                self.drain(&mut done);
            }
            self.answer(done);
        }
    }

    fn take_new(&mut self) -> bool {
        let mut inbox = self.live.inbox();
        self.pending.extend(inbox.published.drain(..));
        inbox.closed
    }

    /// All that is ready.
    fn drain(&mut self, done: &mut Vec<(Ticket, Outcome)>) {
        let waker = Waker::from(self.flag.clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            self.flag.0.store(false, Ordering::Release);
            match self.pending.poll_next_unpin(&mut cx) {
                Poll::Ready(Some(ready)) => done.push(ready),
                Poll::Ready(None) => return,
                Poll::Pending if self.flag.0.load(Ordering::Acquire) => {}
                Poll::Pending => return,
            }
        }
    }

    /// Waits until the client has dealt with the frame that resolved the confirms seen so far: it resolves all confirms
    /// of a frame under one lock, which the first poll of this takes. A returned message of any of them is then with a
    /// confirm that is resolved, too.
    fn barrier(&mut self) {
        let confirms = std::pin::pin!(self.live.channel.wait_for_confirms());
        if let Poll::Ready(Ok(returned)) = confirms.poll(&mut Context::from_waker(Waker::noop())) {
            self.returned.extend(returned);
        }
    }

    fn answer(&mut self, mut done: Vec<(Ticket, Outcome)>) {
        for (_, outcome) in &mut done {
            if let Outcome::Confirmed(_, returned) = outcome {
                self.returned.extend(returned.take().map(|returned| *returned));
            }
        }
        // How sure a channel's death makes us of a message's fate depends on whether another may have caused it.
        let alone = done.len() + self.pending.len() == 1;
        let mut lost: HashMap<u16, Error> = HashMap::new();
        let mut answers = Vec::with_capacity(done.len());
        for (ticket, outcome) in done {
            let result = match outcome {
                Outcome::Confirmed(false, _) => Err(refused()),
                Outcome::Confirmed(true, _) => match self.take_returned(&ticket) {
                    Some(returned) => Err((ticket.unroutable)(returned.reply_text.as_str())),
                    None => Ok(Receipt::default()),
                },
                Outcome::Unwritten(error) => Err(error::map(error)),
                // One clone of the cause for all that it took with it.
                Outcome::Lost(error) => Err(lost
                    .entry(error::reply(&error).map_or(0, |(code, _)| code))
                    .or_insert_with(|| unconfirmed(error, alone))
                    .clone()),
            };
            answers.push((ticket.done, ticket.index, result));
        }
        // What one call published is answered together, as far as it was confirmed together.
        for run in answers.chunk_by(|a, b| Arc::ptr_eq(&a.0, &b.0)) {
            let Some((completions, ..)) = run.first() else { continue };
            completions.complete_many(run.iter().map(|(_, index, result)| (*index, result.clone())));
        }
        if self.pending.is_empty() && !self.returned.is_empty() {
            tracing::warn!(count = self.returned.len(), "the broker returned messages that are not ours");
            self.returned.clear();
        }
    }

    fn take_returned(&mut self, ticket: &Ticket) -> Option<BasicReturnMessage> {
        if self.returned.is_empty() {
            return None;
        }
        let at = self.returned.iter().position(|message| ticket.is_of(message))?;
        Some(self.returned.swap_remove(at))
    }

    /// The channel is gone and its confirms are not resolved.
    fn give_up(mut self) {
        // First, so that nothing is published behind the look at what is new.
        self.live.end();
        self.take_new();
        for published in self.pending.iter_mut() {
            if let Some(ticket) = published.ticket.take() {
                let error =
                    error::disconnected("the connection was lost before the broker confirmed the message");
                ticket.done.complete(ticket.index, Err(error.with_retry(Retry::Uncertain)));
            }
        }
    }
}

impl Ticket {
    /// Whether a returned message is this one. Two that are alike in all of this are routed alike.
    fn is_of(&self, message: &BasicReturnMessage) -> bool {
        let sent_id = Some(self.envelope.id.as_str()).filter(|id| id.len() <= SHORT);
        let id = message.delivery.properties.message_id().as_ref().map(lapin::types::ShortString::as_str);
        message.delivery.routing_key == self.route.key
            && message.delivery.exchange == self.route.exchange
            && id == sent_id
            && message.delivery.data == self.envelope.payload.as_deref().unwrap_or_default()
    }
}

fn refused() -> Error {
    Error::new(ErrorKind::Refused, "the broker refused the message (nack): its queue is full or unavailable")
        .with_retry(Retry::Safe)
}

/// A message that was written and whose confirm will never come. Where nothing else was on its way, the broker's reply is
/// about it, and it was certainly not accepted.
fn unconfirmed(error: lapin::Error, alone: bool) -> Error {
    let certain = alone && error::reply(&error).is_some() && error.is_amqp_soft_error();
    let mapped = error::map(error);
    if certain { mapped } else { mapped.with_retry(Retry::Uncertain) }
}
