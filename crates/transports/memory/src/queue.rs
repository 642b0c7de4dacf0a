//! One queue: what is ready, delayed, unsettled, and held for a busy key.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use throughline_core::capabilities::{Capabilities, Lease};
use throughline_core::driver::{Delivery, Depth, Outgoing, Receipt, Token};
use throughline_core::{Envelope, Error, ErrorKind, History, Order, Result, Retry, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::like::Rules;
use crate::stored::{DeadLetter, Remembered, Stored};

pub(crate) struct Queue {
    name: String,
    max_length: usize,
    rules: Rules,
    state: Mutex<State>,
    /// Told when a message may be ready.
    arrived: Notify,
}

struct State {
    rules: Rules,
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
    /// Whose turn it is to be overtaken, where messages are.
    overtaken: bool,
    deleted: bool,
}

/// A message that left its queue, and how often it had failed before.
pub(crate) type Rejected = (Arc<Envelope>, u32);

struct Unsettled {
    stored: Stored,
    /// Tells this delivery from later ones in the same place.
    generation: u32,
    expires: Instant,
    /// The consumer that has it.
    held_by: u64,
}

/// About 30 years: as good as for ever, and what tokio has for it.
const FOR_EVER: Duration = Duration::from_secs(86_400 * 365 * 30);

impl Queue {
    pub(crate) fn new(name: &str, max_length: usize, capabilities: &Capabilities) -> Self {
        let rules = Rules::of(capabilities);
        let (state, arrived) = (Mutex::new(State::new(rules)), Notify::new());
        Self { name: name.to_owned(), max_length, rules, state, arrived }
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
        let arrival = state.arrival();
        state.line_up(Stored {
            envelope,
            arrival,
            enqueued: Timestamp::now(),
            failed_attempts: history.failed_attempts(failed),
            history: Some(history),
            dead_letter: Some(Arc::new(why)),
            receive_count: 0,
            owns_key: false,
            known: None,
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
        consumer: u64,
    ) -> Result<(Vec<Delivery>, Option<Instant>)> {
        let mut state = self.state();
        if state.deleted {
            return Err(self.gone());
        }
        let now = Instant::now();
        state.wake_up(now);
        let seen = state.next_event();
        let lease = match self.rules.lease {
            Lease::Renewable(_) => lease,
            Lease::Fixed(time) => time,
            Lease::None => FOR_EVER,
        };
        let taken = state.take(max, now + lease, order, consumer);
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

    /// Whether a delivery can still be settled.
    pub(crate) fn holds(&self, token: Token) -> bool {
        self.state().unsettled_mut(token).is_ok()
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
        let Unsettled { stored, held_by, .. } = state.settle(token)?;
        let unlocked = state.unlock(&stored);
        drop(state);
        if unlocked {
            self.arrived.notify_one();
        }
        let failed_attempts = stored.failed(self.rules, held_by);
        Ok((stored.envelope, failed_attempts))
    }

    /// Ends deliveries, as [`remove`](Self::remove), with an answer for each.
    pub(crate) fn ack(&self, tokens: impl Iterator<Item = Token>, results: &mut Vec<Result<()>>) {
        let mut state = self.state();
        state.wake_up(Instant::now());
        let mut unlocked = false;
        results.extend(tokens.map(|token| {
            let entry = state.settle(token)?;
            unlocked |= state.unlock(&entry.stored);
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
        let Unsettled { mut stored, held_by, .. } = state.settle(token)?;
        if self.rules.in_place {
            stored.learn(held_by, retry.map(|(_, history)| history));
        } else if let Some((_, history)) = retry {
            stored.failed_attempts = stored.failed_attempts.saturating_add(1);
            stored.history = Some(history.clone());
        }
        match retry {
            None => state.go_first(stored),
            Some((after, _)) => {
                stored.enqueued = Timestamp::now().after(after);
                state.hold(&mut stored);
                if after.is_zero() {
                    state.come_back(stored);
                } else {
                    state.delay(stored, after);
                }
            }
        }
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Gives back what a consumer holds when it closes, where no lease of the consumer's own choosing does.
    pub(crate) fn let_go(&self, consumer: u64) {
        if matches!(self.rules.lease, Lease::Renewable(_)) {
            return;
        }
        let mut state = self.state();
        let held = state.unsettled.iter().filter(|(_, entry)| entry.held_by == consumer);
        for index in held.map(|(index, _)| index).collect::<Vec<_>>() {
            let stored = state.unsettled.remove(index).stored;
            state.go_first(stored);
        }
        drop(state);
        self.arrived.notify_one();
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
        let rules = state.rules;
        let State { first, lanes, busy, .. } = &mut *state;
        let lanes = lanes.iter_mut().flat_map(|(_, lane)| lane);
        let waiting = busy.values_mut().flatten();
        let all = first.values_mut().chain(lanes).chain(waiting);
        let shown = all.take(max).map(|stored| {
            stored.receive_count = stored.receive_count.saturating_add(u32::from(rules.browse_counts));
            stored.delivery(Token { epoch: 0, tag: u64::MAX }, rules, 0)
        });
        shown.collect()
    }

    pub(crate) fn delete(&self) {
        let mut state = self.state();
        *state = State { deleted: true, ..State::new(self.rules) };
        drop(state);
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("queue '{}' has been deleted", self.name))
    }
}

impl State {
    fn new(rules: Rules) -> Self {
        Self {
            rules,
            first: BTreeMap::new(),
            lanes: Vec::new(),
            delayed: BTreeMap::new(),
            unsettled: Slab::new(),
            next_expiry: None,
            busy: HashMap::new(),
            waiting_for_keys: 0,
            remembered: Remembered::default(),
            count: 0,
            overtaken: false,
            deleted: false,
        }
    }

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
        let deduplicates = self.rules.deduplicates;
        if *room == 0 && !(deduplicates && self.remembered.contains(message.operation)) {
            let text = format!("queue '{}' is full: it holds {} messages", queue.name, queue.max_length);
            return Err(Error::new(ErrorKind::Refused, text).with_retry(Retry::Safe));
        }
        if deduplicates && !self.remembered.insert(message.operation) {
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
            known: None,
        };
        if message.delay.is_zero() {
            self.line_up(stored);
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

    /// To the end of its lane.
    fn line_up(&mut self, stored: Stored) {
        let priority = if self.rules.has_priorities { stored.envelope.priority.unwrap_or(0) } else { 0 };
        self.lane(priority).push_back(stored);
    }

    /// Locks the key of a message that is to be tried again, where that keeps its place.
    fn hold(&mut self, stored: &mut Stored) {
        if let Some(key) = stored.envelope.ordering_key.as_ref().filter(|_| self.rules.holds_retried)
            && !self.busy.contains_key(key)
        {
            self.busy.insert(key.clone(), VecDeque::new());
            stored.owns_key = true;
        }
    }

    /// After a retry: to its place, where it has kept one.
    fn come_back(&mut self, stored: Stored) {
        if stored.owns_key || self.rules.in_place {
            self.go_first(stored);
        } else {
            self.line_up(stored);
        }
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
        // A delay beyond what the clock can count.
        let due = now.checked_add(by).unwrap_or_else(|| now + FOR_EVER);
        self.delayed.insert((due, stored.arrival), stored);
    }

    /// Makes ready what is due, and takes back what was not settled in time.
    fn wake_up(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let stored = entry.remove();
            // A message that has been delivered waits for its retry, another one for its first delivery.
            if stored.receive_count > 0 {
                self.come_back(stored);
            } else {
                self.line_up(stored);
            }
        }
        if self.next_expiry.is_none_or(|at| at > now) {
            return;
        }
        let expired: Vec<_> =
            self.unsettled.iter().filter(|(_, entry)| entry.expires <= now).map(|(index, _)| index).collect();
        for index in expired {
            let mut stored = self.unsettled.remove(index).stored;
            // Where a retry is in place, the deliveries say so.
            if !self.rules.in_place {
                stored.failed_attempts = stored.failed_attempts.saturating_add(1);
            }
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
        if let Some((_, stored)) = self.first.pop_first() {
            return Some(stored);
        }
        let lane = self.lanes.iter_mut().map(|(_, lane)| lane).find(|lane| !lane.is_empty())?;
        if self.rules.overtakes {
            self.overtaken = !self.overtaken && lane.len() > 1;
            if self.overtaken {
                lane.swap(0, 1);
            }
        }
        lane.pop_front()
    }

    fn take(&mut self, max: usize, expires: Instant, order: Order, consumer: u64) -> Vec<Delivery> {
        let rules = self.rules;
        let mut taken = Vec::with_capacity(max.min(self.len()));
        let now = Timestamp::now();
        while taken.len() < max {
            let Some(mut stored) = self.next_ready() else { break };
            if rules.drops_expired && stored.envelope.is_expired(now) && stored.dead_letter.is_none() {
                self.unlock(&stored);
                continue;
            }
            if (rules.locks_keys && order == Order::PerKey || rules.holds_retried)
                && !stored.owns_key
                && let Some(key) = &stored.envelope.ordering_key
            {
                if let Some(waiting) = self.busy.get_mut(key) {
                    waiting.push_back(stored);
                    self.waiting_for_keys += 1;
                    continue;
                }
                if rules.locks_keys {
                    self.busy.insert(key.clone(), VecDeque::new());
                    stored.owns_key = true;
                }
            }
            if rules.holds_retried && stored.owns_key {
                // It is handed out again: those behind it follow.
                self.unlock(&stored);
                stored.owns_key = false;
            }
            stored.receive_count = stored.receive_count.saturating_add(1);
            #[expect(clippy::cast_possible_truncation, reason = "wraps after four billion deliveries")]
            let generation = self.arrival() as u32;
            let entry = self.unsettled.vacant_entry();
            let token = Token { epoch: 0, tag: u64::from(generation) << 32 | entry.key() as u64 };
            let mut delivery = stored.delivery(token, rules, consumer);
            delivery.lease_expires = matches!(rules.lease, Lease::Renewable(_)).then_some(expires);
            taken.push(delivery);
            entry.insert(Unsettled { stored, generation, expires, held_by: consumer });
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

    fn settle(&mut self, token: Token) -> Result<Unsettled> {
        self.unsettled_mut(token)?;
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the place")]
        Ok(self.unsettled.remove(token.tag as u32 as usize))
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
