//! What the polling thread and the consumer share: the partitions that are ours, and what may be handed out.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustc_hash::FxHashMap;
use throughline_core::driver::{Clock, Delivery, Token};
use throughline_core::{Error, ErrorKind, History, Result, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::acked::Acked;
use crate::message::{Received, offset};
use crate::native::Record;
use crate::partition::{Entry, Partition};

/// How much may wait to be handed out before the polling thread takes no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// How many records of a partition may be read beyond its oldest unsettled one.
    pub(crate) window: usize,
}

pub(crate) struct Shared {
    pub(crate) keep_order: bool,
    pub(crate) bounds: Bounds,
    state: Mutex<State>,
    /// The epochs of the partitions in `state`: apart from it, because they are asked for at each settlement.
    live: RwLock<Vec<u64>>,
    /// Told when something may be handed out, or nothing will any more.
    pub(crate) arrived: Notify,
    /// Told when there is room again, a partition that is leaving is drained, or the consumer closes.
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    /// By epoch: each assignment of a partition is one.
    pub(crate) partitions: FxHashMap<u64, Partition>,
    /// What may be handed out, in order: epoch and offset.
    ready: VecDeque<(u64, i64)>,
    ready_bytes: usize,
    /// Settled: the polling thread takes it back before it takes more in.
    pub(crate) settled: Vec<Delivery>,
    epochs: u64,
    pub(crate) phase: Phase,
    /// What ended it.
    pub(crate) ended: Option<Error>,
}

/// Where a consumer is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Running,
    /// Hands out no more; what is held can be settled.
    Stopped,
    Closing,
}

pub(crate) fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the delivery is no longer ours: its partition was taken away, and who has it now gets the message again",
    )
}

impl Shared {
    pub(crate) fn new(keep_order: bool, bounds: Bounds) -> Self {
        Self {
            keep_order,
            bounds,
            state: Mutex::default(),
            live: RwLock::default(),
            arrived: Notify::new(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_live(&self, epoch: u64) -> bool {
        self.live.read().unwrap_or_else(PoisonError::into_inner).contains(&epoch)
    }

    /// The epoch and the topic of a record's partition, if it is ours.
    pub(crate) fn owner(&self, record: &Record<'_>) -> Option<(u64, Arc<str>)> {
        let state = self.state();
        let topic = record.topic()?;
        let mut all = state.partitions.iter();
        let (epoch, found) = all.find(|(_, p)| p.number == record.partition() && *p.topic == *topic)?;
        Some((*epoch, found.topic.clone()))
    }

    /// The latest epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.state().epochs
    }

    /// A partition is ours from now on; `acked` is what was acked above the group's position.
    pub(crate) fn assign(&self, topic: Arc<str>, number: i32, acked: Acked) {
        let mut state = self.state();
        state.epochs += 1;
        let epoch = state.epochs;
        state.partitions.insert(epoch, Partition::new(topic, number, acked));
        self.live.write().unwrap_or_else(PoisonError::into_inner).push(epoch);
    }

    /// Partitions are no longer ours: a settlement of theirs is stale from now on.
    pub(crate) fn forget(&self, epochs: &[u64]) {
        let mut state = self.state();
        for epoch in epochs {
            state.partitions.remove(epoch);
        }
        self.live.write().unwrap_or_else(PoisonError::into_inner).retain(|live| !epochs.contains(live));
        drop(state);
        // Who waits for what was held in them waits for nothing.
        self.arrived.notify_one();
    }

    /// Hands nothing of these partitions out any more, and waits until what is out is settled, at most so long.
    pub(crate) fn drain(&self, epochs: &[u64], longest: Duration) {
        let mut state = self.state();
        state.leave(epochs);
        let drained = self.changed.wait_timeout_while(state, longest, |state| {
            state.phase < Phase::Closing
                && epochs.iter().any(|epoch| state.partitions.get(epoch).is_some_and(|p| p.out > 0))
        });
        drop(drained);
    }

    /// Whether nothing is handed out any more, and nothing is out.
    pub(crate) fn is_done(&self) -> bool {
        let state = self.state();
        state.phase > Phase::Running && state.partitions.values().all(|partition| partition.out == 0)
    }

    /// Takes records in, by the epoch of their partition, and wakes who waits for them.
    pub(crate) fn insert(&self, runs: Vec<(u64, Vec<Received>)>) {
        let now = (Instant::now(), Timestamp::now());
        let mut state = self.state();
        for (epoch, run) in runs {
            state.insert(epoch, run, now);
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits, where it is full, until half of that is handed out, at most so long; says whether there is room.
    pub(crate) fn wait_for_room(&self, longest: Duration) -> bool {
        let state = self.state();
        if !self.is_full(&state, 1) {
            return true;
        }
        let is_full = |state: &mut State| state.phase < Phase::Closing && self.is_full(state, 2);
        let waited = self.changed.wait_timeout_while(state, longest, is_full);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !is_full(&mut state)
    }

    /// Whether more waits to be handed out than the bounds allow, or than a part of them.
    pub(crate) fn is_full(&self, state: &State, part: usize) -> bool {
        state.ready.len() >= (self.bounds.messages / part).max(1)
            || state.ready_bytes >= (self.bounds.bytes / part).max(1)
    }

    /// Hands out at most `max`; and says when something that is held is due.
    pub(crate) fn take(&self, max: usize) -> (Vec<Delivery>, Option<Instant>) {
        let mut state = self.state();
        if state.phase > Phase::Running {
            return (Vec::new(), None);
        }
        let was_full = self.is_full(&state, 2);
        let out = state.take(max, self.keep_order);
        let due = state.partitions.values().filter_map(Partition::next_due).min();
        if was_full && !self.is_full(&state, 2) {
            self.changed.notify_all();
        }
        (out, due)
    }

    /// What was settled since.
    pub(crate) fn take_settled(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.state().settled)
    }

    /// Goes on to a later phase; says whether it did.
    pub(crate) fn advance(&self, to: Phase) -> bool {
        let mut state = self.state();
        if state.phase >= to {
            return false;
        }
        state.phase = to;
        state.ready.clear();
        state.ready_bytes = 0;
        drop(state);
        self.arrived.notify_one();
        self.changed.notify_all();
        true
    }

    /// Ends the stream with an error.
    pub(crate) fn end(&self, error: Error) {
        self.state().ended.get_or_insert(error);
        self.arrived.notify_one();
    }

    /// Tells who waits that deliveries were settled.
    pub(crate) fn tell(&self, state: &State) {
        if state.partitions.values().any(|partition| partition.is_leaving) {
            self.changed.notify_all();
        }
        if !state.ready.is_empty() || state.partitions.values().any(|partition| !partition.gate.is_empty()) {
            self.arrived.notify_one();
        }
    }
}

impl State {
    /// The epochs of partitions, as far as they are ours.
    pub(crate) fn epochs_of(&self, wanted: &[(String, i32)]) -> Vec<u64> {
        let is_wanted = |partition: &Partition| {
            wanted.iter().any(|(topic, number)| **topic == *partition.topic && *number == partition.number)
        };
        let found = self.partitions.iter().filter(|(_, partition)| is_wanted(partition));
        found.map(|(epoch, _)| *epoch).collect()
    }

    fn leave(&mut self, epochs: &[u64]) {
        for epoch in epochs {
            if let Some(partition) = self.partitions.get_mut(epoch) {
                partition.is_leaving = true;
            }
        }
        self.ready.retain(|(epoch, _)| !epochs.contains(epoch));
        self.count();
    }

    /// The bytes of what is ready, after it was changed from within.
    fn count(&mut self) {
        let Self { ready, partitions, .. } = self;
        let bytes = |(epoch, offset): &(u64, i64)| {
            partitions
                .get_mut(epoch)
                .and_then(|partition| partition.get_mut(*offset))
                .map_or(0, |entry| entry.bytes())
        };
        self.ready_bytes = ready.iter().map(bytes).sum();
    }

    fn insert(&mut self, epoch: u64, run: Vec<Received>, (now, clock): (Instant, Timestamp)) {
        let Some(partition) = self.partitions.get_mut(&epoch) else { return };
        let is_wanted = self.phase == Phase::Running && !partition.is_leaving;
        for Received { delivery, due } in run {
            let at = offset(&delivery.token);
            let bytes = delivery.envelope.payload_len();
            if !partition.insert(at, delivery) {
                continue;
            }
            if let Some(due) = due {
                // Alone, whatever its key: what is retried by a topic keeps no order.
                let wait = u64::try_from(due.millis_since(clock)).unwrap_or(0);
                let turn = crate::partition::Turn::Alone(at);
                partition.gate.hold(&turn, at.cast_unsigned(), now + Duration::from_millis(wait));
            } else if is_wanted {
                self.ready.push_back((epoch, at));
                self.ready_bytes += bytes;
            }
        }
    }

    fn take(&mut self, max: usize, keep_order: bool) -> Vec<Delivery> {
        let mut out = Vec::new();
        let now = Instant::now();
        for partition in self.partitions.values_mut().filter(|partition| !partition.is_leaving) {
            if partition.gate.is_empty() {
                continue;
            }
            for tag in partition.gate.take_due(now, max.saturating_sub(out.len())) {
                out.extend(partition.hand_out(tag.cast_signed()));
            }
        }
        while out.len() < max {
            let Some((epoch, offset)) = self.ready.pop_front() else { break };
            let Some(partition) = self.partitions.get_mut(&epoch) else { continue };
            let Some(entry) = partition.get_mut(offset) else { continue };
            self.ready_bytes = self.ready_bytes.saturating_sub(entry.bytes());
            if keep_order && entry.delivery.envelope.ordering_key.is_some() {
                let turn = Partition::turn(entry, offset, keep_order);
                // It may have to wait for another of its key.
                if partition.gate.park(&turn, offset.cast_unsigned()) {
                    continue;
                }
            }
            out.extend(partition.hand_out(offset));
        }
        out
    }

    /// Makes messages available again, each before what comes after it in its partition.
    fn requeue(&mut self, epoch: u64, offsets: impl IntoIterator<Item = i64>) {
        if self.phase > Phase::Running
            || self.partitions.get(&epoch).is_none_or(|partition| partition.is_leaving)
        {
            return;
        }
        for offset in offsets {
            let later = |(e, o): &(u64, i64)| *e == epoch && *o > offset;
            let place = self.ready.iter().position(later).unwrap_or(self.ready.len());
            self.ready.insert(place, (epoch, offset));
            let entry = self.partitions.get_mut(&epoch).and_then(|partition| partition.get_mut(offset));
            self.ready_bytes += entry.map_or(0, |entry| entry.bytes());
        }
    }

    /// A delivery that can still be settled.
    pub(crate) fn entry(&mut self, token: &Token) -> Result<&mut Entry> {
        let partition = self.partitions.get_mut(&token.epoch);
        partition.and_then(|partition| partition.get_mut(offset(token))).ok_or_else(stale)
    }

    /// Settles a delivery for good: what waited for it may go.
    pub(crate) fn settle(&mut self, token: &Token, keep_order: bool) -> Result<()> {
        let partition = self.partitions.get_mut(&token.epoch).ok_or_else(stale)?;
        let at = offset(token);
        let entry = partition.settle(at).ok_or_else(stale)?;
        if !partition.gate.is_empty() {
            let turn = Partition::turn(&entry, at, keep_order);
            let mut freed = partition.gate.settled(&turn, token.tag);
            if let crate::partition::Turn::Key(_) = turn {
                // Held alone because it was delayed.
                freed.extend(partition.gate.settled(&crate::partition::Turn::Alone(at), token.tag));
            }
            self.requeue(token.epoch, freed.into_iter().map(u64::cast_signed));
        }
        self.settled.push(entry.delivery);
        Ok(())
    }

    /// Makes a delivery available again at once.
    pub(crate) fn release(&mut self, token: &Token, keep_order: bool) -> Result<()> {
        let partition = self.partitions.get_mut(&token.epoch).ok_or_else(stale)?;
        let at = offset(token);
        let entry = partition.take_back(at).ok_or_else(stale)?;
        let turn = Partition::turn(entry, at, keep_order);
        if partition.gate.is_retried(&turn, token.tag) {
            partition.gate.hold(&turn, token.tag, Instant::now());
        } else {
            self.requeue(token.epoch, [at]);
        }
        Ok(())
    }

    /// Holds a delivery in its place until its delay is over; later messages of its key wait for it.
    pub(crate) fn hold(
        &mut self,
        token: &Token,
        after: Duration,
        history: &Arc<History>,
        keep_order: bool,
    ) -> Result<()> {
        let partition = self.partitions.get_mut(&token.epoch).ok_or_else(stale)?;
        let at = offset(token);
        let entry = partition.take_back(at).ok_or_else(stale)?;
        let delivery = &mut entry.delivery;
        delivery.failed_attempts = delivery.failed_attempts.saturating_add(1);
        delivery.history = Some(history.clone());
        delivery.enqueued = Some((Timestamp::now().after(after), Clock::Publisher));
        let turn = Partition::turn(entry, at, keep_order);
        partition.gate.hold(&turn, token.tag, Instant::now() + after);
        Ok(())
    }
}
