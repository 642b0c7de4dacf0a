//! One queue: what is ready, delayed, unsettled, and held for a busy key.

use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::KeyValue;
use rustc_hash::FxHashSet;
use slab::Slab;
use throughline_core::driver::{Clock, Delivery, Depth, Native, OperationId, Outgoing, Receipt, Token, wire};
use throughline_core::{Envelope, Error, ErrorKind, HeaderValue, History, Order, Result, Retry, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How many operations a queue remembers at least, to tell a second send.
const REMEMBERED: usize = 1024;

pub(crate) struct Queue {
    name: String,
    max_length: usize,
    state: Mutex<State>,
    /// Told when a message may be ready.
    arrived: Notify,
}

#[derive(Default)]
struct State {
    /// Goes first, in the order of arrival: what came back, and the next message of a key that became free.
    first: BTreeMap<u64, Stored>,
    /// What is ready, by priority, the highest first.
    lanes: Vec<(u8, VecDeque<Stored>)>,
    delayed: BTreeMap<(Instant, u64), Stored>,
    unsettled: Slab<Unsettled>,
    /// No lease ends before this.
    next_expiry: Option<Instant>,
    /// Keys with a message that is unsettled, or waits for its retry; and what waits behind it.
    busy: HashMap<Bytes, VecDeque<Stored>>,
    waiting_for_keys: usize,
    remembered: Remembered,
    /// Counts arrivals and deliveries.
    count: u64,
    deleted: bool,
}

/// A message that left its queue, and how often it had failed before.
pub(crate) type Rejected = (Arc<Envelope>, u32);

/// Where a message was rejected, and why: the native details of a dead letter.
pub(crate) struct DeadLetter {
    pub(crate) source: String,
    pub(crate) reason: String,
}

impl Native for DeadLetter {
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        vec![
            (wire::DEAD_LETTER_SOURCE.into(), self.source.as_str().into()),
            (wire::DEAD_LETTER_REASON.into(), self.reason.as_str().into()),
        ]
    }

    fn span_attributes(&self) -> Vec<KeyValue> {
        Vec::new()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Clone)]
struct Stored {
    envelope: Arc<Envelope>,
    /// The order of arrival.
    arrival: u64,
    enqueued: Timestamp,
    failed_attempts: u32,
    history: Option<Arc<History>>,
    /// Where it was rejected, and why. What was rejected is kept, however late somebody looks at it: it does not expire.
    dead_letter: Option<Arc<DeadLetter>>,
    receive_count: u32,
    /// Its key is locked for it.
    owns_key: bool,
}

/// The last operations: two generations, of which the older is forgotten as a whole. Operation ids are our own: nobody
/// can choose them to collide.
#[derive(Default)]
struct Remembered {
    recent: FxHashSet<OperationId>,
    older: FxHashSet<OperationId>,
}

impl Remembered {
    fn contains(&self, operation: OperationId) -> bool {
        self.recent.contains(&operation) || self.older.contains(&operation)
    }

    /// Whether the operation is new.
    fn insert(&mut self, operation: OperationId) -> bool {
        if self.older.contains(&operation) || !self.recent.insert(operation) {
            return false;
        }
        if self.recent.len() >= REMEMBERED {
            std::mem::swap(&mut self.recent, &mut self.older);
            self.recent.clear();
        }
        true
    }
}

struct Unsettled {
    stored: Stored,
    /// Tells this delivery from later ones in the same place.
    generation: u32,
    expires: Instant,
}

impl Queue {
    pub(crate) fn new(name: &str, max_length: usize) -> Self {
        Self { name: name.to_owned(), max_length, state: Mutex::default(), arrived: Notify::new() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes messages in, in order, with an answer for each.
    pub(crate) fn push(&self, batch: &[Outgoing]) -> Vec<Result<Receipt>> {
        let now = Timestamp::now();
        let mut state = self.state();
        let mut room = self.max_length.saturating_sub(state.len());
        let results = batch.iter().map(|message| state.push(self, message, now, &mut room)).collect();
        drop(state);
        self.arrived.notify_one();
        results
    }

    /// Takes in what another queue rejected.
    pub(crate) fn push_dead_letter(&self, rejected: Rejected, history: Arc<History>, why: DeadLetter) {
        let mut state = self.state();
        let (envelope, failed) = rejected;
        let priority = envelope.priority.unwrap_or(0);
        let arrival = state.arrival();
        state.lane(priority).push_back(Stored {
            envelope,
            arrival,
            enqueued: Timestamp::now(),
            failed_attempts: failed.saturating_add(1),
            history: Some(history),
            dead_letter: Some(Arc::new(why)),
            receive_count: 0,
            owns_key: false,
        });
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes out what is ready, or says when something may be. An error when the queue is deleted.
    pub(crate) fn take(
        &self,
        max: usize,
        lease: Duration,
        order: Order,
    ) -> Result<(Vec<Delivery>, Option<Instant>)> {
        let mut state = self.state();
        if state.deleted {
            return Err(self.gone());
        }
        let now = Instant::now();
        state.wake_up(now);
        let seen = state.next_event();
        let taken = state.take(max, now + lease, order);
        let (more, next) = (state.has_ready(), state.next_event());
        drop(state);
        // Another consumer may take the rest, or is to know when a lease of these ends.
        if !taken.is_empty() && (more || next.is_some_and(|next| seen.is_none_or(|seen| next < seen))) {
            self.arrived.notify_one();
        }
        Ok((taken, next))
    }

    /// Waits until something may be ready.
    pub(crate) async fn arrival(&self) {
        self.arrived.notified().await;
    }

    /// Passes a wake-up on to another consumer.
    pub(crate) fn pass_on(&self) {
        self.arrived.notify_one();
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.state().deleted
    }

    pub(crate) fn max_length(&self) -> usize {
        self.max_length
    }

    /// Ends a delivery: gives what it was, and lets the next message of its key go.
    pub(crate) fn remove(&self, token: Token) -> Result<Rejected> {
        let mut state = self.state();
        state.wake_up(Instant::now());
        let stored = state.settle(token)?;
        let unlocked = state.unlock(&stored);
        drop(state);
        if unlocked {
            self.arrived.notify_one();
        }
        Ok((stored.envelope, stored.failed_attempts))
    }

    /// Ends deliveries, as [`remove`](Self::remove), with an answer for each.
    pub(crate) fn ack(&self, tokens: impl Iterator<Item = Token>, results: &mut Vec<Result<()>>) {
        let mut state = self.state();
        state.wake_up(Instant::now());
        let mut unlocked = false;
        results.extend(tokens.map(|token| {
            let stored = state.settle(token)?;
            unlocked |= state.unlock(&stored);
            Ok(())
        }));
        drop(state);
        if unlocked {
            self.arrived.notify_one();
        }
    }

    /// Puts a delivery back: after a failure with a delay, or as it was.
    pub(crate) fn put_back(&self, token: Token, retry: Option<(Duration, &Arc<History>)>) -> Result<()> {
        let mut state = self.state();
        state.wake_up(Instant::now());
        let mut stored = state.settle(token)?;
        match retry {
            None => state.go_first(stored),
            Some((after, history)) => {
                stored.failed_attempts = stored.failed_attempts.saturating_add(1);
                stored.history = Some(history.clone());
                stored.enqueued = Timestamp::now().after(after);
                if !after.is_zero() {
                    state.delay(stored, after);
                } else if stored.owns_key {
                    state.go_first(stored);
                } else {
                    state.lane(stored.envelope.priority.unwrap_or(0)).push_back(stored);
                }
            }
        }
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    pub(crate) fn extend(&self, token: Token, by: Duration) -> Result<()> {
        let mut state = self.state();
        let now = Instant::now();
        state.wake_up(now);
        let entry = state.unsettled_mut(token)?;
        entry.expires = now + by;
        Ok(())
    }

    pub(crate) fn depth(&self) -> Depth {
        let mut state = self.state();
        state.wake_up(Instant::now());
        let ready = state.first.len()
            + state.lanes.iter().map(|(_, lane)| lane.len()).sum::<usize>()
            + state.waiting_for_keys;
        Depth {
            ready: ready as u64,
            unsettled: Some(state.unsettled.len() as u64),
            delayed: Some(state.delayed.len() as u64),
        }
    }

    /// Drops what is ready; what waits for a key counts as ready.
    pub(crate) fn purge(&self) -> u64 {
        let mut state = self.state();
        state.wake_up(Instant::now());
        let first = std::mem::take(&mut state.first);
        let mut purged = first.len() + state.waiting_for_keys;
        for (_, lane) in &mut state.lanes {
            purged += lane.len();
            lane.clear();
        }
        state.waiting_for_keys = 0;
        for waiting in state.busy.values_mut() {
            waiting.clear();
        }
        for stored in first.values() {
            state.unlock(stored);
        }
        purged as u64
    }

    /// The ready messages, in the order in which they would be delivered, without taking them.
    pub(crate) fn browse(&self, max: usize) -> Vec<Delivery> {
        let mut state = self.state();
        state.wake_up(Instant::now());
        let lanes = state.lanes.iter().flat_map(|(_, lane)| lane);
        let waiting = state.busy.values().flatten();
        let all = state.first.values().chain(lanes).chain(waiting);
        all.take(max).map(|stored| stored.delivery(Token { epoch: 0, tag: u64::MAX })).collect()
    }

    pub(crate) fn delete(&self) {
        let mut state = self.state();
        *state = State { deleted: true, ..State::default() };
        drop(state);
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("queue '{}' has been deleted", self.name))
    }
}

impl State {
    fn push(
        &mut self,
        queue: &Queue,
        message: &Outgoing,
        now: Timestamp,
        room: &mut usize,
    ) -> Result<Receipt> {
        if self.deleted {
            return Err(queue.gone());
        }
        if *room == 0 && !self.remembered.contains(message.operation) {
            let text = format!("queue '{}' is full: it holds {} messages", queue.name, queue.max_length);
            return Err(Error::new(ErrorKind::Refused, text).with_retry(Retry::Safe));
        }
        if !self.remembered.insert(message.operation) {
            let mut receipt = Receipt::default();
            receipt.deduplicated = true;
            return Ok(receipt);
        }
        *room -= 1;
        let stored = Stored {
            envelope: message.envelope.clone(),
            arrival: self.arrival(),
            enqueued: if message.delay.is_zero() { now } else { now.after(message.delay) },
            failed_attempts: message.failed_attempts,
            history: message.history.clone(),
            dead_letter: None,
            receive_count: 0,
            owns_key: false,
        };
        if message.delay.is_zero() {
            self.lane(stored.envelope.priority.unwrap_or(0)).push_back(stored);
        } else {
            self.delay(stored, message.delay);
        }
        Ok(Receipt::default())
    }

    fn len(&self) -> usize {
        self.first.len()
            + self.lanes.iter().map(|(_, lane)| lane.len()).sum::<usize>()
            + self.delayed.len()
            + self.unsettled.len()
            + self.waiting_for_keys
    }

    fn lane(&mut self, priority: u8) -> &mut VecDeque<Stored> {
        let index = self.lanes.partition_point(|(p, _)| *p > priority);
        if self.lanes.get(index).is_none_or(|(p, _)| *p != priority) {
            self.lanes.insert(index, (priority, VecDeque::new()));
        }
        #[expect(clippy::indexing_slicing, reason = "there, or inserted just now")]
        &mut self.lanes[index].1
    }

    fn arrival(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn go_first(&mut self, stored: Stored) {
        self.first.insert(stored.arrival, stored);
    }

    fn delay(&mut self, stored: Stored, by: Duration) {
        let now = Instant::now();
        // A delay beyond what the clock can count is as good as for ever: about 30 years, as tokio has it.
        let due = now.checked_add(by).unwrap_or_else(|| now + Duration::from_secs(86_400 * 365 * 30));
        self.delayed.insert((due, stored.arrival), stored);
    }

    /// Makes ready what is due, and takes back what was not settled in time.
    fn wake_up(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let stored = entry.remove();
            if stored.owns_key {
                self.go_first(stored);
            } else {
                self.lane(stored.envelope.priority.unwrap_or(0)).push_back(stored);
            }
        }
        if self.next_expiry.is_none_or(|at| at > now) {
            return;
        }
        let expired: Vec<_> =
            self.unsettled.iter().filter(|(_, entry)| entry.expires <= now).map(|(index, _)| index).collect();
        for index in expired {
            let mut stored = self.unsettled.remove(index).stored;
            stored.failed_attempts = stored.failed_attempts.saturating_add(1);
            self.go_first(stored);
        }
        self.next_expiry = self.unsettled.iter().map(|(_, entry)| entry.expires).min();
    }

    fn next_event(&self) -> Option<Instant> {
        let due = self.delayed.first_key_value().map(|((due, _), _)| *due);
        due.into_iter().chain(self.next_expiry).min()
    }

    fn has_ready(&self) -> bool {
        !self.first.is_empty() || self.lanes.iter().any(|(_, lane)| !lane.is_empty())
    }

    fn next_ready(&mut self) -> Option<Stored> {
        self.first
            .pop_first()
            .map(|(_, stored)| stored)
            .or_else(|| self.lanes.iter_mut().find_map(|(_, lane)| lane.pop_front()))
    }

    fn take(&mut self, max: usize, expires: Instant, order: Order) -> Vec<Delivery> {
        let mut taken = Vec::with_capacity(max.min(self.len()));
        let now = Timestamp::now();
        while taken.len() < max {
            let Some(mut stored) = self.next_ready() else { break };
            if stored.envelope.is_expired(now) && stored.dead_letter.is_none() {
                self.unlock(&stored);
                continue;
            }
            if order == Order::PerKey
                && !stored.owns_key
                && let Some(key) = &stored.envelope.ordering_key
            {
                if let Some(waiting) = self.busy.get_mut(key) {
                    waiting.push_back(stored);
                    self.waiting_for_keys += 1;
                    continue;
                }
                self.busy.insert(key.clone(), VecDeque::new());
                stored.owns_key = true;
            }
            stored.receive_count = stored.receive_count.saturating_add(1);
            #[expect(clippy::cast_possible_truncation, reason = "wraps after four billion deliveries")]
            let generation = self.arrival() as u32;
            let entry = self.unsettled.vacant_entry();
            let token = Token { epoch: 0, tag: u64::from(generation) << 32 | entry.key() as u64 };
            let mut delivery = stored.delivery(token);
            delivery.lease_expires = Some(expires);
            taken.push(delivery);
            entry.insert(Unsettled { stored, generation, expires });
        }
        if !taken.is_empty() {
            self.next_expiry = Some(self.next_expiry.map_or(expires, |at| at.min(expires)));
        }
        taken
    }

    fn unsettled_mut(&mut self, token: Token) -> Result<&mut Unsettled> {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the place")]
        let index = token.tag as u32 as usize;
        self.unsettled
            .get_mut(index)
            .filter(|entry| u64::from(entry.generation) == token.tag >> 32)
            .ok_or_else(|| {
                Error::new(ErrorKind::Stale, "the lease has expired, and the message is delivered again")
            })
    }

    fn settle(&mut self, token: Token) -> Result<Stored> {
        self.unsettled_mut(token)?;
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the place")]
        let entry = self.unsettled.remove(token.tag as u32 as usize);
        Ok(entry.stored)
    }

    /// Gives the lock of a message's key to the next message that waits for it. Says whether there was one.
    fn unlock(&mut self, stored: &Stored) -> bool {
        let Some(key) = stored.envelope.ordering_key.as_ref().filter(|_| stored.owns_key) else {
            return false;
        };
        match self.busy.get_mut(key).and_then(VecDeque::pop_front) {
            Some(mut next) => {
                self.waiting_for_keys -= 1;
                next.owns_key = true;
                self.go_first(next);
                true
            }
            None => {
                self.busy.remove(key);
                false
            }
        }
    }
}

impl Stored {
    fn delivery(&self, token: Token) -> Delivery {
        let mut delivery = Delivery::new(self.envelope.clone(), token);
        delivery.receive_count = Some(self.receive_count);
        delivery.failed_attempts = self.failed_attempts;
        delivery.history.clone_from(&self.history);
        delivery.enqueued = Some((self.enqueued, Clock::Broker));
        delivery.is_dead_letter = self.dead_letter.is_some();
        delivery.native = self.dead_letter.clone().map(|why| why as Arc<dyn Native>);
        delivery
    }
}
