//! The consumer: several requests for messages at once, as many as the load asks for.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::types::{self, MessageSystemAttributeName};
use throughline_aws::error;
use throughline_core::driver::{self, Delivery, Endpoint, Settlement, Token};
use throughline_core::{Capabilities, ConsumeOptions, Error, ErrorKind, Order, Result, Retry};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::batch::{self, MAX_ENTRIES};
use crate::config::{Destination, round_up};
use crate::failures::Failures;
use crate::lanes::Lanes;
use crate::message::{Delivered, Message, deliver};
use crate::queue::Queue;
use crate::transport::{LONGEST_POLL, Shared};

/// The longest that a message can be held, from its receipt.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html>
pub(crate) const LONGEST_HOLD: Duration = Duration::from_secs(12 * 60 * 60);
/// No further request is made while so many messages wait to be taken.
const BUFFER: usize = 100;
/// The wait after a failed request for messages, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// An open source.
pub(crate) struct Consumer(pub(crate) Arc<Source>);

/// What the consumer and its requests share.
pub(crate) struct Source {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Queue,
    /// Where rejected messages go.
    pub(crate) dead_letter: Option<Queue>,
    pub(crate) capabilities: Capabilities,
    endpoint: Endpoint,
    /// In whole seconds.
    lease: Duration,
    poll: Duration,
    receivers: usize,
    keep_order: bool,
    inner: Mutex<Inner>,
    /// Told when there is something to take, or the consumer stops.
    ready: Notify,
}

/// A message that is received and not settled.
pub(crate) struct Entry {
    pub(crate) delivery: Delivery,
    /// Says its id, and what settles it.
    pub(crate) native: Arc<Message>,
    pub(crate) group: Option<String>,
    /// The body as it came, where nobody can decode the message.
    pub(crate) undecodable: Option<String>,
    pub(crate) received: Instant,
    pub(crate) expires: Instant,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) entries: HashMap<u64, Entry>,
    /// To be handed out, in order.
    ready: VecDeque<u64>,
    pub(crate) lanes: Lanes,
    pub(crate) failures: Failures,
    /// How many more messages may be unsettled.
    room: usize,
    /// Requests under way, and how many there may be.
    polling: usize,
    target: usize,
    /// Of the last request, to be told.
    error: Option<Error>,
    failed: u32,
    not_before: Option<Instant>,
    next_tag: u64,
    pub(crate) stopped: bool,
}

impl Consumer {
    /// Opens a source, which must exist.
    pub(crate) async fn open(
        shared: Arc<Shared>,
        destination: &Destination,
        options: &ConsumeOptions,
    ) -> Result<Self> {
        Self::open_as(shared, destination, options, None).await
    }

    /// Opens a source with the capabilities of the transport that fills it.
    pub(crate) async fn open_as(
        shared: Arc<Shared>,
        destination: &Destination,
        options: &ConsumeOptions,
        capabilities: Option<Capabilities>,
    ) -> Result<Self> {
        let queue = Queue::find(&shared, destination).await?;
        let dead_letter = match &destination.dead_letter {
            Some(name) => Some(Queue::open(&shared, name).await.map_err(|error| match error.kind() {
                ErrorKind::NotFound => Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "there is no dead-letter queue '{}'; make it with: {}",
                        name.name(),
                        destination.hint()
                    ),
                ),
                _ => error,
            })?),
            // It may be another account's, which does not let us look: then rejecting says so.
            None => match queue.redrive().and_then(|redrive| redrive.queue()) {
                Some(name) => Queue::open(&shared, &name).await.ok(),
                None => None,
            },
        };
        let lease = Duration::from_secs(round_up(options.lease).max(1)).min(LONGEST_HOLD);
        let source = Source {
            capabilities: capabilities.unwrap_or_else(|| queue.capabilities()),
            endpoint: queue.endpoint(&shared),
            keep_order: queue.is_fifo && options.order == Order::PerKey,
            lease,
            poll: options.poll.min(LONGEST_POLL),
            receivers: destination.receivers,
            inner: Mutex::new(Inner { room: options.max_unsettled, target: 1, ..Inner::default() }),
            ready: Notify::new(),
            shared,
            queue,
            dead_letter,
        };
        Ok(Self(Arc::new(source)))
    }
}

impl Source {
    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for messages, as often at once as there is room and load for.
    fn ask(self: &Arc<Self>, inner: &mut Inner) {
        let now = Instant::now();
        if inner.stopped || inner.not_before.is_some_and(|at| at > now) {
            return;
        }
        while inner.polling < inner.target && inner.room > 0 && inner.ready.len() < BUFFER {
            let max = inner.room.min(MAX_ENTRIES);
            inner.room -= max;
            inner.polling += 1;
            self.shared.keep(tokio::spawn(self.clone().poll(max)));
        }
    }

    /// One request for messages. It goes on when the consumer has stopped: a message that SQS has given to it would be
    /// hidden until its lease is over. What it then brings is given back at once.
    async fn poll(self: Arc<Self>, max: usize) {
        let request = self
            .shared
            .receiving
            .receive_message()
            .queue_url(&self.queue.url)
            .max_number_of_messages(i32::try_from(max).unwrap_or(1))
            .visibility_timeout(i32::try_from(self.lease.as_secs()).unwrap_or(i32::MAX))
            .wait_time_seconds(i32::try_from(self.poll.as_secs()).unwrap_or(0))
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All);
        let answer = request.send().await.map_err(error::of_request);
        let late = {
            let mut inner = self.inner();
            inner.polling -= 1;
            match answer {
                Ok(answer) => {
                    let messages = answer.messages.unwrap_or_default();
                    inner.room += max.saturating_sub(messages.len());
                    inner.answered(max, messages.len(), self.receivers);
                    self.admit(&mut inner, messages);
                    if inner.stopped { inner.drain() } else { Vec::new() }
                }
                Err(error) => {
                    inner.room += max;
                    inner.failed(error);
                    Vec::new()
                }
            }
        };
        self.ready.notify_one();
        self.give_back(late).await;
    }

    /// Takes received messages in.
    fn admit(&self, inner: &mut Inner, messages: Vec<types::Message>) {
        let received = Instant::now();
        let expires = received + self.lease;
        for message in messages {
            let tag = inner.next_tag;
            inner.next_tag += 1;
            let delivered = deliver(message, tag, |id| inner.failures.get(id).cloned());
            let Delivered { mut delivery, native, group, undecodable } = delivered;
            delivery.lease_expires = Some(expires);
            let group = group.filter(|_| self.keep_order);
            if group.as_deref().is_none_or(|group| inner.lanes.enter(group, tag)) {
                inner.ready.push_back(tag);
            }
            inner.entries.insert(tag, Entry { delivery, native, group, undecodable, received, expires });
        }
    }

    /// Wakes a waiting receive: there may be something to take, or room.
    pub(crate) fn tell(&self) {
        self.ready.notify_one();
    }

    /// Makes messages that nobody has seen visible again.
    pub(crate) async fn give_back(&self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut handles = Vec::with_capacity(entries.len());
        {
            let mut inner = self.inner();
            for entry in entries {
                inner.failures.released(&entry.native.message_id);
                handles.push((entry.native.receipt_handle.clone(), 0));
            }
        }
        for answer in batch::set_visibility(&self.shared, &self.queue.url, handles).await {
            if let Err(error) = answer {
                tracing::debug!(%error, "an unread message could not be given back: it comes when its lease is over");
            }
        }
    }
}

impl Inner {
    /// Fits the number of requests to the load: one more while they come back full and nothing waits to be taken, one when
    /// there is nothing.
    fn answered(&mut self, asked: usize, got: usize, most: usize) {
        self.failed = 0;
        self.not_before = None;
        if got == 0 {
            self.target = 1;
        } else if got == asked {
            if !self.ready.is_empty() {
                return;
            }
            self.target = (self.target + 1).min(most);
        } else if got * 2 < asked {
            self.target = (self.target - 1).max(1);
        }
    }

    fn failed(&mut self, error: Error) {
        let retry = match error.retry() {
            Retry::Uncertain => Retry::Safe,
            retry => retry,
        };
        self.target = 1;
        let wait = BACKOFF.0.saturating_mul(1 << self.failed.min(6)).min(BACKOFF.1);
        self.failed = self.failed.saturating_add(1);
        self.not_before = Some(Instant::now() + wait);
        self.error = Some(error.with_retry(retry));
    }

    /// Takes what may be handed out, at most `max`. What has expired meanwhile is left out: it comes again.
    fn take(&mut self, max: usize) -> Vec<Delivery> {
        let now = Instant::now();
        let mut deliveries = Vec::new();
        while deliveries.len() < max {
            let Some(tag) = self.ready.pop_front() else { break };
            match self.entries.get(&tag) {
                Some(entry) if entry.expires > now => {
                    let mut delivery = entry.delivery.clone();
                    delivery.lease_expires = Some(entry.expires);
                    deliveries.push(delivery);
                }
                Some(_) => {
                    self.leave(tag, false);
                }
                None => {}
            }
        }
        deliveries
    }

    /// Forgets what is held no longer, because nobody extended it.
    fn forget_expired(&mut self) {
        let now = Instant::now();
        let expired = self.entries.iter().filter(|(_, entry)| entry.expires <= now).map(|(tag, _)| *tag);
        for tag in expired.collect::<Vec<_>>() {
            self.leave(tag, false);
        }
    }

    /// A message is gone, for good or back to the queue: makes room. Gives it, and those that have to go back behind it.
    pub(crate) fn leave(&mut self, tag: u64, for_good: bool) -> (Option<Entry>, Vec<Entry>) {
        let Some(entry) = self.entries.remove(&tag) else { return (None, Vec::new()) };
        self.room += 1;
        let mut back = Vec::new();
        if let Some(group) = &entry.group {
            let freed = self.lanes.leave(group, tag, for_good);
            self.ready.extend(freed.next);
            for tag in freed.back {
                if let Some(entry) = self.entries.remove(&tag) {
                    self.room += 1;
                    back.push(entry);
                }
            }
        }
        (Some(entry), back)
    }

    /// All that was received and not handed out.
    fn drain(&mut self) -> Vec<Entry> {
        let mut tags: Vec<u64> = self.ready.drain(..).collect();
        tags.extend(self.lanes.waiting());
        let mut unread = Vec::with_capacity(tags.len());
        for tag in tags {
            let (entry, back) = self.leave(tag, false);
            unread.extend(entry);
            unread.extend(back);
        }
        unread
    }
}

#[async_trait]
impl driver::Consumer for Consumer {
    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.0.endpoint
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let source = &self.0;
        let deadline = Instant::now() + wait;
        loop {
            let until = {
                let mut inner = source.inner();
                if inner.stopped {
                    return Ok(Vec::new());
                }
                inner.forget_expired();
                let deliveries = inner.take(max.get());
                if deliveries.is_empty()
                    && let Some(error) = inner.error.take()
                {
                    return Err(error);
                }
                source.ask(&mut inner);
                if !deliveries.is_empty() {
                    return Ok(deliveries);
                }
                inner.not_before.map_or(deadline, |at| at.min(deadline))
            };
            if Instant::now() >= deadline {
                return Ok(Vec::new());
            }
            let _ = tokio::time::timeout_at(until, source.ready.notified()).await;
        }
    }

    fn has_dead_letter(&self) -> bool {
        self.0.dead_letter.is_some()
    }

    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        self.0.settle(batch).await
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<()>> {
        self.0.extend(tokens, by).await
    }

    fn epoch(&self) -> u64 {
        0
    }

    async fn stop(&self) {
        let unread = {
            let mut inner = self.0.inner();
            inner.stopped = true;
            inner.drain()
        };
        self.0.ready.notify_one();
        self.0.give_back(unread).await;
    }

    async fn close(&self) -> Result<()> {
        self.stop().await;
        Ok(())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.0.queue.name).finish_non_exhaustive()
    }
}
