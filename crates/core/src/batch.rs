//! The publisher's dispatcher: forms batches, keeps driver calls running, holds keys back and sends again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use opentelemetry::Context;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::answer::Slot;
use crate::capabilities::KeyPipeline;
use crate::driver::{Answer, Completions, OperationId, Outgoing, Receipt};
use crate::error::{Error, ErrorKind, Result, Retry};
use crate::publisher::{KeyOrder, Shared};

/// The first wait before sending again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A message on its way.
pub(crate) struct Item {
    pub(crate) message: Outgoing,
    /// On the wire, in bytes.
    pub(crate) size: usize,
    pub(crate) slot: Slot<Receipt>,
    /// The send span of a single message.
    pub(crate) span: Option<Context>,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    /// The broker may have it from an earlier try.
    pub(crate) uncertain: bool,
}

impl Item {
    /// What is left of it, once it is answered.
    #[inline]
    pub(crate) fn answered(&mut self, result: Result<Receipt>) -> Answered {
        let result = match result {
            // An earlier try may have come through, whatever became of the last.
            Err(error) if self.uncertain && error.retry() == Retry::Safe => {
                Err(error.with_retry(Retry::Uncertain))
            }
            result => result,
        };
        let key = self.message.envelope.ordering_key.clone().filter(|_| result.is_err());
        Answered { slot: self.slot.take(), span: self.span.take(), started: self.started, key, result }
    }
}

/// A message that is answered, before anyone is told.
pub(crate) struct Answered {
    pub(crate) slot: Slot<Receipt>,
    pub(crate) span: Option<Context>,
    pub(crate) started: Instant,
    /// Of one that failed.
    pub(crate) key: Option<Bytes>,
    pub(crate) result: Result<Receipt>,
}

/// What an answer tells the dispatcher.
pub(crate) enum Event {
    /// The message failed safely and is to be sent again.
    Resend(Item, Error),
    /// A message of a key that is sent one by one is answered.
    Released(Bytes),
    /// Nothing is unanswered any more.
    Idle,
}

/// A driver call: tells whether its batch was a partial one, and the keys that waited for its end.
type Call = Pin<Box<dyn Future<Output = (bool, Vec<Bytes>)> + Send>>;

pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    /// To be sent, in order.
    ready: VecDeque<Item>,
    /// Driver calls under way.
    calls: FuturesUnordered<Call>,
    partial_under_way: bool,
    /// Messages given to the driver and not answered.
    unanswered: Arc<AtomicUsize>,
    /// Keys with an unresolved message that others must not overtake, and how many.
    busy: HashMap<Bytes, usize>,
    /// What waits for a busy key.
    parked: HashMap<Bytes, VecDeque<Item>>,
    /// To be sent again, in their first order.
    resends: BTreeMap<OperationId, Item>,
    resend_at: Option<Instant>,
    backoff: Duration,
    one_by_one: bool,
}

impl Dispatcher {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let one_by_one = shared.options.key_order == KeyOrder::Strict
            && shared.driver.capabilities().key_pipeline == KeyPipeline::Unsafe;
        Self {
            shared,
            ready: VecDeque::new(),
            calls: FuturesUnordered::new(),
            partial_under_way: false,
            unanswered: Arc::default(),
            busy: HashMap::new(),
            parked: HashMap::new(),
            resends: BTreeMap::new(),
            resend_at: None,
            backoff: BACKOFF.0,
            one_by_one,
        }
    }

    /// Runs until the queue is closed and everything is answered, then closes the driver.
    pub(crate) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Vec<Item>>,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) -> Result<()> {
        let mut open = true;
        loop {
            // The count is read before the events: an answer sends its event first, and lowers the count then. And the
            // events before the calls: what failed is sent again before what comes after it.
            let unanswered = self.unanswered.load(Ordering::Acquire);
            while let Ok(event) = events.try_recv() {
                self.on_event(event);
            }
            self.start_calls();
            if !open && unanswered == 0 && self.calls.is_empty() && self.is_idle() {
                return self.shared.driver.close().await;
            }
            let resend_at = self.resend_at;
            tokio::select! {
                biased;
                Some((partial, keys)) = self.calls.next(), if !self.calls.is_empty() => {
                    self.partial_under_way &= !partial;
                    for key in &keys {
                        self.release(key);
                    }
                }
                Some(event) = events.recv() => self.on_event(event),
                () = sleep_until(resend_at), if resend_at.is_some() => self.resend(),
                chunk = queue.recv(), if open => match chunk {
                    Some(chunk) => {
                        self.queue(chunk);
                        // What has accumulated goes together.
                        while let Ok(chunk) = queue.try_recv() {
                            self.queue(chunk);
                        }
                    }
                    None => open = false,
                },
            }
        }
    }

    fn queue(&mut self, chunk: Vec<Item>) {
        if self.ready.is_empty() {
            self.ready = chunk.into();
        } else {
            self.ready.extend(chunk);
        }
    }

    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.resends.is_empty() && self.parked.is_empty()
    }

    fn call_limit(&self) -> usize {
        self.shared.driver.capabilities().publish_calls.max(1)
    }

    fn can_start(&self) -> bool {
        self.calls.len() < self.call_limit() && (!self.partial_under_way || self.has_full_batch())
    }

    fn has_full_batch(&self) -> bool {
        let limits = &self.shared.driver.capabilities().limits;
        self.ready.len() >= limits.batch_entries.max(1)
            || limits.batch_bytes.is_some_and(|max| {
                let mut bytes = 0;
                self.ready.iter().any(|item| {
                    bytes += item.size;
                    bytes > max
                })
            })
    }

    fn start_calls(&mut self) {
        while !self.ready.is_empty() && self.can_start() {
            let partial = !self.has_full_batch();
            let items = self.take_batch();
            if items.is_empty() {
                continue;
            }
            let batch: Vec<_> = items.iter().map(|item| item.message.clone()).collect();
            let keys = self.keys_to_hold(&batch);
            self.unanswered.fetch_add(items.len(), Ordering::AcqRel);
            self.partial_under_way |= partial;
            let len = items.len();
            let answers = InFlight {
                items: Mutex::new(items.into_iter().map(Some).collect()),
                shared: self.shared.clone(),
                unanswered: self.unanswered.clone(),
                one_by_one: self.one_by_one,
            };
            let done = Completions::new(len, Arc::new(answers));
            let driver = self.shared.driver.clone();
            let call = async move { driver.publish(batch, done).await };
            self.calls.push(if self.call_limit() == 1 {
                Box::pin(async move {
                    call.await;
                    (partial, keys)
                })
            } else {
                // Each on a thread of its own: such a call makes a whole request.
                let call = tokio::spawn(call);
                Box::pin(async move {
                    if let Err(error) = call.await {
                        tracing::error!(%error, "a call to the driver failed");
                    }
                    (partial, keys)
                })
            });
        }
    }

    /// Where calls run side by side, a key's later messages wait until the call with its earlier ones is over.
    fn keys_to_hold(&mut self, batch: &[Outgoing]) -> Vec<Bytes> {
        if self.call_limit() == 1 {
            return Vec::new();
        }
        let mut keys: Vec<_> =
            batch.iter().filter_map(|message| message.envelope.ordering_key.clone()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in &keys {
            *self.busy.entry(key.clone()).or_default() += 1;
        }
        keys
    }

    /// Takes the next batch off the queue; messages of fenced and busy keys are answered or parked on the way.
    fn take_batch(&mut self) -> Vec<Item> {
        let limits = &self.shared.driver.capabilities().limits;
        let entries = limits.batch_entries.max(1);
        let (mut count, mut bytes) = (0, 0);
        for item in self.ready.iter().take(entries) {
            bytes += item.size;
            if count > 0 && limits.batch_bytes.is_some_and(|max| bytes > max) {
                break;
            }
            count += 1;
        }
        let batch: Vec<_> = if count == self.ready.len() {
            std::mem::take(&mut self.ready).into()
        } else {
            self.ready.drain(..count).collect()
        };
        if batch.iter().all(|item| item.message.envelope.ordering_key.is_none()) {
            return batch;
        }
        batch.into_iter().filter_map(|item| self.admit(item)).collect()
    }

    /// Gives the item back if its key lets it go.
    fn admit(&mut self, item: Item) -> Option<Item> {
        let Some(key) = &item.message.envelope.ordering_key else { return Some(item) };
        if self.shared.is_fenced(key) {
            // With it what waits behind it: nothing else would let that go.
            let behind = if self.busy.contains_key(key) { None } else { self.parked.remove(key) };
            let held = std::iter::once(item).chain(behind.into_iter().flatten());
            self.shared.finish(held.map(|mut item| item.answered(Err(held_back()))).collect());
            return None;
        }
        if self.busy.contains_key(key) {
            self.parked.entry(key.clone()).or_default().push_back(item);
            return None;
        }
        if self.one_by_one {
            *self.busy.entry(key.clone()).or_default() += 1;
        }
        Some(item)
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Idle => {}
            Event::Released(key) => self.release(&key),
            Event::Resend(mut item, error) => {
                let due = Instant::now() + self.backoff;
                if due >= item.deadline {
                    let key = item.message.envelope.ordering_key.clone();
                    self.shared.finish(vec![item.answered(Err(error))]);
                    if let Some(key) = key.filter(|_| self.one_by_one) {
                        self.release(&key);
                    }
                    return;
                }
                tracing::debug!(error = %error, "publish failed safely, sending again");
                if let Some(key) = &item.message.envelope.ordering_key
                    && !self.one_by_one
                {
                    *self.busy.entry(key.clone()).or_default() += 1;
                }
                self.resends.insert(item.message.operation, item);
                self.resend_at.get_or_insert(due);
            }
        }
    }

    /// All resends go at once, before what is queued, in their first order.
    fn resend(&mut self) {
        self.resend_at = None;
        // Something was accepted meanwhile: the broker is well.
        let well = self.shared.accepted.swap(false, Ordering::Relaxed);
        self.backoff = if well { BACKOFF.0 } else { (self.backoff * 2).min(BACKOFF.1) };
        let resends = std::mem::take(&mut self.resends);
        for item in resends.values() {
            if let Some(key) = item.message.envelope.ordering_key.clone() {
                self.release_all(&key);
            }
        }
        for item in resends.into_values().rev() {
            self.ready.push_front(item);
        }
    }

    /// One message of a busy key is resolved. Where they go one by one, so does the next: the others would only be parked
    /// again.
    fn release(&mut self, key: &Bytes) {
        if self.one_by_one && self.unbusy(key) {
            let Some(parked) = self.parked.get_mut(key) else { return };
            if let Some(next) = parked.pop_front() {
                self.ready.push_front(next);
            }
            if parked.is_empty() {
                self.parked.remove(key);
            }
        } else if !self.one_by_one {
            self.release_all(key);
        }
    }

    /// One message of a busy key is resolved, or about to be sent again ahead of those parked.
    fn release_all(&mut self, key: &Bytes) {
        if self.unbusy(key)
            && let Some(parked) = self.parked.remove(key)
        {
            for item in parked.into_iter().rev() {
                self.ready.push_front(item);
            }
        }
    }

    /// One reason less for a key to be busy; whether it was the last.
    fn unbusy(&mut self, key: &Bytes) -> bool {
        match self.busy.get_mut(key) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                self.busy.remove(key);
                true
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn held_back() -> Error {
    Error::new(
        ErrorKind::HeldBack,
        "not sent: an earlier message of this ordering key failed; call resume(key) to go on",
    )
    .with_retry(Retry::Safe)
}

/// The answers of one driver call.
struct InFlight {
    items: Mutex<Vec<Option<Item>>>,
    shared: Arc<Shared>,
    unanswered: Arc<AtomicUsize>,
    one_by_one: bool,
}

impl Answer for InFlight {
    fn answer(&self, answers: &mut dyn Iterator<Item = (usize, Result<Receipt>)>) {
        let mut answered = Vec::with_capacity(answers.size_hint().1.unwrap_or(0));
        // The dispatcher may be gone only when nothing is unanswered, so its events are always received.
        let (mut resent, mut released) = (0, Vec::new());
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, result) in answers {
            let Some(place) = items.get_mut(index) else { continue };
            match (place.as_mut(), result) {
                (None, _) => {}
                (Some(item), Err(error)) if self.sends_again(&error) => {
                    item.uncertain |= error.retry() == Retry::Uncertain;
                    // Before anyone is told of the others: what is published upon that comes after this one.
                    if let Some(item) = place.take() {
                        let _ = self.shared.events.send(Event::Resend(item, error));
                        resent += 1;
                    }
                }
                (Some(item), result) => {
                    if self.one_by_one {
                        released.extend(item.message.envelope.ordering_key.clone());
                    }
                    answered.push(item.answered(result));
                    *place = None;
                }
            }
        }
        drop(items);
        let count = answered.len() + resent;
        self.shared.finish(answered);
        for key in released {
            let _ = self.shared.events.send(Event::Released(key));
        }
        // The last one wakes a dispatcher that waits to close.
        if count > 0 && self.unanswered.fetch_sub(count, Ordering::AcqRel) == count {
            let _ = self.shared.events.send(Event::Idle);
        }
    }
}

impl InFlight {
    fn sends_again(&self, error: &Error) -> bool {
        match error.retry() {
            Retry::Never => false,
            Retry::Safe => true,
            Retry::Uncertain => self.shared.options.allow_duplicates,
        }
    }
}
