//! The consumer: one channel at a time, opened again when it was lost.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::{FieldTable, ShortString};
use throughline_core::capabilities::Lease;
use throughline_core::driver::{self, Delivery, Endpoint, Settlement, Token};
use throughline_core::gate::Gate;
use throughline_core::{Capabilities, ConsumeOptions, Error, ErrorKind, Order, Result, Retry, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config::{Destination, Route};
use crate::connect::{answer, backoff, close_channel, opened};
use crate::message::{deliver, has_expired_on_the_way};
use crate::publisher::missing;
use crate::republish::Republisher;
use crate::settle::Writes;
use crate::transport::Shared;
use crate::window::Window;

/// How long a quorum queue may take to apply the acks that the broker has read: some round trips between its replicas.
const SINK_IN: Duration = Duration::from_millis(100);

/// How long a receive that was told to stop may take to leave its stream; it does so at once.
const LEAVING: Duration = Duration::from_secs(5);

/// An open source.
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    destination: Destination,
    pub(crate) queue: ShortString,
    prefetch: u16,
    pub(crate) keep_order: bool,
    pub(crate) republisher: Republisher,
    epoch: AtomicU64,
    /// Whether the present channel is up: apart from `inner`, because it is asked at each settlement.
    channel_status: RwLock<Option<lapin::ChannelStatus>>,
    inner: Mutex<Inner>,
    /// Where [`receive`](driver::Consumer::receive) leaves its stream between calls.
    stream: Mutex<Option<(u64, lapin::Consumer)>>,
    stream_left: Notify,
    stopping: watch::Sender<bool>,
    /// Told when a message that was held back may go.
    pub(crate) freed: Notify,
    /// Attempts to open the channel that failed one after the other.
    failures: AtomicU32,
    capabilities: Capabilities,
    endpoint: Endpoint,
}

/// The present channel's state.
pub(crate) struct Inner {
    /// `None` between the loss of a channel and the next.
    pub(crate) session: Option<Session>,
    pub(crate) window: Window<Entry>,
    pub(crate) gate: Gate<Bytes>,
    /// Received and not handed out: they waited for another of their key.
    pub(crate) ready: VecDeque<u64>,
    /// When an ack was last written.
    pub(crate) last_ack: Option<Instant>,
}

#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) channel: Channel,
    tag: ShortString,
    pub(crate) epoch: u64,
}

/// An unsettled delivery.
pub(crate) struct Entry {
    pub(crate) delivery: Delivery,
    pub(crate) received: Instant,
}

impl Entry {
    pub(crate) fn key(&self) -> Option<&Bytes> {
        self.delivery.envelope.ordering_key.as_ref()
    }
}

impl Inner {
    fn empty() -> Self {
        Self {
            session: None,
            window: Window::new(),
            gate: Gate::default(),
            ready: VecDeque::new(),
            last_ack: None,
        }
    }

    /// A delivery has left: what waited for it may go.
    pub(crate) fn left(&mut self, tag: u64, entry: &Entry) {
        if let Some(key) = entry.key() {
            let freed = self.gate.settled(key, tag);
            self.ready.extend(freed);
        }
    }
}

impl Consumer {
    /// Opens a source, which must exist.
    pub(crate) async fn open(
        shared: Arc<Shared>,
        destination: Destination,
        options: &ConsumeOptions,
    ) -> Result<Self> {
        let queue = destination.source()?;
        let capabilities = destination.capabilities();
        let consumer = Self {
            republisher: Republisher::new(shared.clone()),
            endpoint: Endpoint {
                destination: queue.to_string(),
                server: shared.server(),
                attributes: Vec::new(),
            },
            shared,
            destination,
            queue,
            prefetch: u16::try_from(options.max_unsettled).unwrap_or(u16::MAX).max(1),
            keep_order: options.order == Order::PerKey,
            epoch: AtomicU64::new(1),
            channel_status: RwLock::default(),
            inner: Mutex::new(Inner::empty()),
            stream: Mutex::default(),
            stream_left: Notify::new(),
            stopping: watch::channel(false).0,
            freed: Notify::new(),
            failures: AtomicU32::new(0),
            capabilities,
        };
        consumer.connect().await?;
        Ok(consumer)
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest that a keyed message is held in place, from its receipt: well below the broker's consumer_timeout, which
    /// closes the channel. A longer retry goes by the delay queues.
    pub(crate) fn longest_hold(&self) -> Duration {
        match self.capabilities.lease {
            Lease::Fixed(lease) => lease / 6 * 5,
            Lease::Renewable(_) | Lease::None => Duration::MAX,
        }
    }

    pub(crate) fn dead_letter(&self) -> Option<&Route> {
        self.destination.dead_letter.as_ref()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Opens a channel and begins to consume.
    async fn connect(&self) -> Result<()> {
        let channel = self.shared.consuming.link().await?.channel().await?;
        let opened = async {
            opened(channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
            let (tag, options) = (ShortString::default(), BasicConsumeOptions::default());
            opened(channel.basic_consume(self.queue.clone(), tag, options, FieldTable::default())).await
        };
        let stream = match opened.await {
            Ok(stream) => stream,
            Err(error) => {
                close_channel(&channel).await;
                return Err(missing(error, &self.destination));
            }
        };
        let epoch = self.epoch.load(Ordering::Acquire);
        let status = channel.status().clone();
        let session = Session { channel, tag: stream.tag(), epoch };
        *self.inner() = Inner { session: Some(session), ..Inner::empty() };
        *self.channel_status.write().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.leave_stream(epoch, stream);
        Ok(())
    }

    fn leave_stream(&self, epoch: u64, stream: lapin::Consumer) {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some((epoch, stream));
        self.stream_left.notify_one();
    }

    fn take_stream(&self) -> Option<(u64, lapin::Consumer)> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The channel of an epoch is lost, or no longer wanted: its deliveries are no longer ours.
    pub(crate) async fn lose(&self, epoch: u64) {
        let lost = {
            let mut inner = self.inner();
            match &inner.session {
                Some(session) if session.epoch == epoch => {
                    {
                        // Together: the epoch of a lost channel is one more, once.
                        let mut status = self.channel_status.write().unwrap_or_else(PoisonError::into_inner);
                        *status = None;
                        self.epoch.store(epoch + 1, Ordering::Release);
                    }
                    std::mem::replace(&mut *inner, Inner::empty()).session
                }
                _ => None,
            }
        };
        if let Some(session) = lost {
            close_channel(&session.channel).await;
        }
    }

    /// Tries to open a channel; after a failure that waiting may mend, waits a while.
    async fn reconnect(&self) -> Result<()> {
        let mut stopping = self.stopping.subscribe();
        let error = tokio::select! {
            connected = self.connect() => match connected {
                Ok(()) => {
                    self.failures.store(0, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => error,
            },
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        };
        if error.retry() == Retry::Never {
            return Err(error);
        }
        let pause = async {
            // The connection has its own pause; only what fails on a good one is counted here.
            if !self.shared.consuming.pause().await {
                tokio::time::sleep(backoff(self.failures.fetch_add(1, Ordering::Relaxed))).await;
            }
        };
        tokio::select! {
            () = pause => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
        Err(error)
    }

    /// What was held back in the driver and may go now.
    fn take_held(&self, max: usize) -> Vec<Delivery> {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let mut tags = inner.gate.take_due(Instant::now(), max);
        while tags.len() < max {
            let Some(tag) = inner.ready.pop_front() else { break };
            let key = inner.window.get(tag).and_then(Entry::key);
            // It may have to wait again: another of its key failed meanwhile.
            if key.is_some_and(|key| inner.gate.park(key, tag)) {
                continue;
            }
            tags.push(tag);
        }
        tags.into_iter().filter_map(|tag| inner.window.get(tag)).map(|entry| entry.delivery.clone()).collect()
    }

    /// Takes received messages in; gives those that need not wait.
    fn admit(&self, epoch: u64, deliveries: Vec<Delivery>, out: &mut Vec<Delivery>) {
        let now = Timestamp::now();
        out.reserve(deliveries.len());
        let mut writes = Writes::default();
        let mut inner = self.inner();
        let Some(session) = inner.session.clone().filter(|session| session.epoch == epoch) else {
            // Lost meanwhile: the broker delivers them again.
            return;
        };
        let received = Instant::now();
        for delivery in deliveries {
            let tag = delivery.token.tag;
            if has_expired_on_the_way(&delivery, now) {
                let channel = session.channel.clone();
                writes.start([], async move {
                    channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await
                });
                continue;
            }
            let entry = Entry { delivery: delivery.clone(), received };
            let key = entry.key().filter(|_| self.keep_order).cloned();
            inner.window.insert(tag, entry);
            if !key.is_some_and(|key| inner.gate.park(&key, tag)) {
                out.push(delivery);
            }
        }
    }

    /// Waits for messages on the present channel. `Err` gives the reason of its end.
    async fn read(
        &self,
        (epoch, stream): (u64, &mut lapin::Consumer),
        max: usize,
        deadline: Instant,
    ) -> Result<Vec<Delivery>, Option<lapin::Error>> {
        let mut stopping = self.stopping.subscribe();
        let mut received = Vec::new();
        let next_due = self.inner().gate.next_due();
        let until = next_due.map_or(deadline, |due| due.min(deadline));
        let first = tokio::select! {
            biased;
            first = stream.next() => first,
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(received),
            () = self.freed.notified() => return Ok(received),
            () = tokio::time::sleep_until(until) => return Ok(received),
        };
        // The client's messages are large: each is taken apart as it comes.
        let now = Timestamp::now();
        received.push(deliver(first.ok_or(None)?.map_err(Some)?, epoch, now));
        while received.len() < max {
            match stream.next().now_or_never() {
                Some(Some(Ok(next))) => received.push(deliver(next, epoch, now)),
                // The end comes again with the next call.
                Some(Some(Err(_)) | None) | None => break,
            }
        }
        Ok(received)
    }

    /// Gives messages back to the queue.
    fn give_back(&self, session: &Session, tags: impl IntoIterator<Item = u64>) -> Writes {
        let mut writes = Writes::default();
        for tag in tags {
            writes.start([], nack(session.channel.clone(), tag));
        }
        writes
    }

    /// Waits until the broker's queue has the last acks. A quorum queue takes settlements from the broker's side of the
    /// channel a few at a time, and forgets those that still wait there when the channel closes (seen with 3.10: the
    /// messages come again). The answer to a request says that the channel has read all acks; how far it has passed them
    /// on, nothing says.
    async fn let_acks_sink_in(&self) {
        let (session, last) = {
            let inner = self.inner();
            (inner.session.clone(), inner.last_ack)
        };
        if let (Some(session), Some(last)) = (session, last)
            && last.elapsed() < SINK_IN
        {
            let _ = answer(session.channel.basic_qos(self.prefetch, BasicQosOptions::default())).await;
            tokio::time::sleep(SINK_IN).await;
        }
    }

    /// The stream, once [`receive`](driver::Consumer::receive) has left it.
    async fn wait_for_stream(&self) -> Option<(u64, lapin::Consumer)> {
        let until = Instant::now() + LEAVING;
        loop {
            let left = self.stream_left.notified();
            if let Some(stream) = self.take_stream() {
                return Some(stream);
            }
            // Between two channels there is none.
            self.inner().session.as_ref()?;
            tokio::time::timeout_at(until, left).await.ok()?;
        }
    }
}

/// Makes a message available again, at its place as far as the broker keeps it.
pub(crate) async fn nack(channel: Channel, tag: u64) -> lapin::Result<()> {
    channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
}

/// Polls a future once, without anyone to be woken.
pub(crate) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

pub(crate) fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the delivery is no longer ours: its channel was lost, and the broker delivers it again",
    )
}

#[async_trait]
impl driver::Consumer for Consumer {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let deadline = Instant::now() + wait;
        loop {
            if self.is_stopping() {
                return Ok(Vec::new());
            }
            let mut out = self.take_held(max.get());
            if !out.is_empty() {
                return Ok(out);
            }
            let Some((epoch, mut stream)) = self.take_stream() else {
                self.reconnect().await?;
                continue;
            };
            let read = self.read((epoch, &mut stream), max.get(), deadline).await;
            match read {
                Ok(received) => {
                    self.leave_stream(epoch, stream);
                    self.admit(epoch, received, &mut out);
                    if !out.is_empty() || Instant::now() >= deadline {
                        return Ok(out);
                    }
                }
                Err(_) if self.is_stopping() => {
                    self.leave_stream(epoch, stream);
                    return Ok(out);
                }
                Err(reason) => {
                    let reason = reason.map_or_else(
                        || "the broker cancelled the consumer".to_owned(),
                        |error| crate::error::map(error).message().to_owned(),
                    );
                    tracing::warn!(queue = %self.queue, reason, "consuming was interrupted, opening it again");
                    self.lose(epoch).await;
                }
            }
        }
    }

    fn has_dead_letter(&self) -> bool {
        self.dead_letter().is_some()
    }

    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        self.settle_batch(batch).await
    }

    async fn extend(&self, tokens: &[Token], _: Duration) -> Vec<Result<()>> {
        let error = Error::new(ErrorKind::Unsupported, "RabbitMQ's deliveries have no lease to extend");
        tokens.iter().map(|_| Err(error.clone())).collect()
    }

    fn epoch(&self) -> u64 {
        let status = self.channel_status.read().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.epoch.load(Ordering::Acquire);
        match &*status {
            // Lost, and not noticed yet by a receive.
            Some(status) if !status.connected() => epoch + 1,
            _ => epoch,
        }
    }

    async fn stop(&self) {
        if self.stopping.send_replace(true) {
            return;
        }
        let Some(session) = self.inner().session.clone() else { return };
        let cancel = session.channel.basic_cancel(session.tag.clone(), BasicCancelOptions::default());
        let cancelled = answer(cancel).await.is_ok();
        let mut unread = Vec::new();
        if let Some((epoch, mut stream)) = self.wait_for_stream().await
            && epoch == session.epoch
            && cancelled
        {
            // After the broker's answer there are no more, and the stream ends behind the last.
            while let Some(Some(Ok(received))) = stream.next().now_or_never() {
                unread.push(received.delivery_tag);
            }
        }
        let writes = {
            let mut inner = self.inner();
            if inner.session.as_ref().is_none_or(|present| present.epoch != session.epoch) {
                return;
            }
            let mut kept: Vec<u64> = inner.gate.drain();
            kept.extend(std::mem::take(&mut inner.ready));
            kept.retain(|tag| inner.window.remove(*tag).is_some());
            self.give_back(&session, kept.into_iter().chain(unread))
        };
        let _ = writes.written().await;
    }

    async fn close(&self) -> Result<()> {
        self.stop().await;
        self.let_acks_sink_in().await;
        let epoch = self.epoch.load(Ordering::Acquire);
        self.lose(epoch).await;
        self.republisher.close().await;
        Ok(())
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.queue).finish_non_exhaustive()
    }
}
