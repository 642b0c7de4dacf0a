//! The run loop: one task that owns what waits, and spawns what begins.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use throughline_core::{Consumer, Delivery, Error, ErrorKind, Result, SettleErrors};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::health::{Report, TICK};
use crate::job::Phase;
use crate::middleware::concurrency::{Lanes, Retried};
use crate::middleware::trace::{End, EndKind, attend, attend_batch};
use crate::router::{Entry, Table, Target};
use crate::shared::{Shared, Slot};
use crate::worker::FAR;

/// How long what was told to stop may take to settle.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) struct Run {
    consumer: Consumer,
    table: Table,
    shared: Arc<Shared>,
    /// So many handlers at once.
    limit: usize,
    lanes: Lanes,
    tasks: JoinSet<()>,
    backlog: Arc<Backlog>,
    /// How messages ended, as far as others depend on it. Bounded by the messages that are unsettled.
    ends: mpsc::UnboundedReceiver<End>,
    ended: mpsc::UnboundedSender<End>,
    /// Gathered for batch routes, by their index.
    batches: HashMap<usize, Gathering>,
    timers: Timers,
    /// A fault of our own, or of a span exporter's.
    failed: Option<Error>,
}

/// May begin as soon as there is room. A task takes its next from here, which is much cheaper than a new task.
#[derive(Default)]
struct Backlog {
    queue: Mutex<VecDeque<Start>>,
    /// Told when there is little left.
    low: Notify,
}

impl Backlog {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Start>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next, and a word where as few as this are left.
    fn take(&self, low: usize) -> Option<Start> {
        let mut queue = self.queue();
        let next = queue.pop_front();
        let is_low = queue.len() == low;
        drop(queue);
        if is_low {
            self.low.notify_one();
        }
        next
    }
}

enum Start {
    One(Delivery, Arc<Entry>),
    Many(Vec<Delivery>, Arc<Entry>),
}

struct Gathering {
    entry: Arc<Entry>,
    deliveries: Vec<Delivery>,
    /// Tells this gathering's timer from that of an earlier one.
    number: u64,
}

enum Timer {
    /// A retried message has not come back: its key goes on.
    GiveUp(Bytes),
    /// A message is looked at again.
    Again(Box<Delivery>),
    /// A batch has waited for long enough.
    Batch(usize, u64),
}

#[derive(Default)]
struct Timers {
    due: BTreeMap<(Instant, u64), Timer>,
    count: u64,
}

impl Timers {
    fn add(&mut self, at: Instant, timer: Timer) {
        self.count += 1;
        self.due.insert((at, self.count), timer);
    }

    fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    fn take(&mut self, now: Instant) -> Option<Timer> {
        let first = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    /// How many messages wait for a time.
    fn held(&self) -> usize {
        self.due.values().filter(|timer| matches!(timer, Timer::Again(_))).count()
    }
}

impl Run {
    pub(crate) fn new(
        consumer: Consumer,
        table: Table,
        shared: Arc<Shared>,
        limit: usize,
        lanes: Lanes,
    ) -> Self {
        let (ended, ends) = mpsc::unbounded_channel();
        Self {
            consumer,
            table,
            shared,
            limit,
            lanes,
            tasks: JoinSet::new(),
            backlog: Arc::default(),
            ends,
            ended,
            batches: HashMap::new(),
            timers: Timers::default(),
            failed: None,
        }
    }

    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()>, drain: Duration) -> Result<Report> {
        self.shared.stats.run();
        let worked = self.work(shutdown).await;
        self.shared.stats.drain();
        let drained = self.drain(drain).await;
        let Self { consumer, shared, .. } = self;
        let closed = consumer.close().await;
        if let Ok(SettleErrors { count, first: Some(error), .. }) = &closed {
            tracing::error!(count, %error, "acks were not made after all: these messages are delivered again");
            shared.stats.not_made(*count);
        }
        shared.stats.end();
        worked.and(drained).and(closed)?;
        Ok(crate::Health(shared.stats.clone()).report())
    }

    /// Takes and starts messages until the shutdown, or the end of the source.
    async fn work(&mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut shutdown = pin!(shutdown);
        let mut alarm = pin!(tokio::time::sleep(TICK));
        loop {
            self.start_ready();
            let now = Instant::now();
            let wake = self.timers.next().map_or(now + TICK, |next| next.min(now + TICK));
            // Moved only where it would ring too late: a timer costs more than a message.
            if wake < alarm.deadline() {
                alarm.as_mut().reset(wake);
            }
            let room = self.room();
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                Some(joined) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.joined(joined);
                    while let Some(joined) = self.tasks.try_join_next() {
                        self.joined(joined);
                    }
                }
                Some(end) = self.ends.recv() => {
                    self.left(end);
                    while let Ok(end) = self.ends.try_recv() {
                        self.left(end);
                    }
                }
                () = self.backlog.low.notified() => {}
                () = self.shared.parking.notified() => {}
                received = self.consumer.next_batch(room.unwrap_or(NonZeroUsize::MIN)), if room.is_some() => {
                    let received = received?;
                    if received.is_empty() {
                        return Ok(());
                    }
                    self.received(received);
                }
                () = &mut alarm => {
                    self.ring(Instant::now());
                    alarm.as_mut().reset(Instant::now() + TICK);
                }
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
        }
    }

    /// How many tasks do more than to wait for a settlement.
    fn at_work(&self) -> usize {
        self.tasks.len().saturating_sub(self.parked())
    }

    fn parked(&self) -> usize {
        self.shared.parked.load(Ordering::Relaxed)
    }

    /// How many more messages are taken: those that may begin, and as many that are next.
    fn room(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new((2 * self.limit).saturating_sub(self.at_work() + self.backlog.queue().len()))
    }

    fn received(&mut self, deliveries: Vec<Delivery>) {
        if let Some(waited) = deliveries.iter().rev().find_map(Delivery::queue_delay) {
            self.shared.stats.waited(waited.delay);
        }
        for delivery in deliveries {
            if let Some(delivery) = self.lanes.admit(delivery) {
                self.begin(delivery);
            }
        }
    }

    /// Begins with a message that waited for its key; what was lost meanwhile gives its place to the next.
    fn begin_held(&mut self, mut next: Option<Delivery>) {
        while let Some(delivery) = next.take() {
            if !delivery.is_lease_lost() {
                return self.begin(delivery);
            }
            next = delivery.envelope().ordering_key.as_ref().and_then(|key| self.lanes.finished(key, None));
        }
    }

    /// Lets a message begin, or gathers it.
    fn begin(&mut self, delivery: Delivery) {
        let entry = self.table.get(delivery.envelope().message_type.as_deref()).clone();
        let Target::Many(_, options) = &entry.target else {
            self.backlog.queue().push_back(Start::One(delivery, entry));
            return;
        };
        let (max, linger, index) = (options.max.max(1), options.linger.min(FAR), entry.index);
        self.timers.count += 1;
        let number = self.timers.count;
        let gathering = self.batches.entry(index).or_insert_with(|| {
            self.timers.due.insert((Instant::now() + linger, number), Timer::Batch(index, number));
            Gathering { entry, deliveries: Vec::new(), number }
        });
        gathering.deliveries.push(delivery);
        if gathering.deliveries.len() >= max {
            self.gathered(index);
        }
    }

    fn gathered(&mut self, index: usize) {
        if let Some(Gathering { entry, deliveries, .. }) = self.batches.remove(&index) {
            self.backlog.queue().push_back(Start::Many(deliveries, entry));
        }
    }

    /// Makes a task for each message that may begin, as long as there is room.
    fn start_ready(&mut self) {
        while self.at_work() < self.limit
            && let Some(start) = self.backlog.take(usize::MAX)
        {
            let (shared, backlog, ended) = (self.shared.clone(), self.backlog.clone(), self.ended.clone());
            self.tasks.spawn(work_off(shared, backlog, ended, start, self.limit / 2));
        }
    }

    fn joined(&mut self, joined: Result<(), JoinError>) {
        // Handlers' panics are caught; this is a fault of ours, or of what spans are exported to. Its message was
        // released, but its key may be held for ever: better to end, and be told.
        if let Err(error) = joined {
            let text = "a task of the worker panicked outside of any handler";
            let error = Error::new(ErrorKind::Internal, text).with_source(error);
            self.failed = Some(error.at("work", self.consumer.address()));
        }
    }

    /// A message has left: the next of its key may begin.
    fn left(&mut self, End { key, kind }: End) {
        let retried = match kind {
            EndKind::Settled => None,
            EndKind::Retried(retried) => Some(retried),
            EndKind::Postponed(delivery, after) => {
                // Its key stays busy.
                self.timers.add(Instant::now() + after, Timer::Again(delivery));
                return;
            }
        };
        let Some(key) = key else { return };
        let given_up = retried.as_ref().map(Retried::given_up);
        let next = self.lanes.finished(&key, retried);
        self.begin_held(next);
        if let Some(at) = given_up {
            self.timers.add(at, Timer::GiveUp(key));
        }
    }

    /// Does what is due.
    fn ring(&mut self, now: Instant) {
        while let Some(timer) = self.timers.take(now) {
            match timer {
                Timer::GiveUp(key) => {
                    let next = self.lanes.give_up(&key, now);
                    self.begin_held(next);
                }
                Timer::Again(delivery) => self.begin_held(Some(*delivery)),
                Timer::Batch(index, number) => {
                    if self.batches.get(&index).is_some_and(|gathering| gathering.number == number) {
                        self.gathered(index);
                    }
                }
            }
        }
        let held = self.lanes.held() + self.timers.held() + self.parked();
        self.shared.stats.look_up(self.at_work(), held);
        self.shared.stats.not_made(self.consumer.settle_errors());
    }

    /// Gives back what was not begun, waits for what was, and drops what takes too long.
    async fn drain(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        self.shared.phase.send_replace(Phase::Draining);
        // Taken at once, so that none of it begins any more; released once nothing is received, or it would come again.
        let waiting = std::mem::take(&mut *self.backlog.queue());
        let gathered = std::mem::take(&mut self.batches);
        let timers = std::mem::take(&mut self.timers.due);
        self.consumer.stop().await;
        drop((waiting, gathered, timers, self.lanes.drain()));
        self.finish(until).await;
        self.shared.phase.send_replace(Phase::Cancelling);
        self.finish(Instant::now() + GRACE).await;
        let unfinished = self.tasks.len();
        if unfinished > 0 {
            tracing::error!(unfinished, "handlers block their threads and do not end: they are left behind");
            self.shared.stats.unfinished(unfinished as u64);
            self.tasks.abort_all();
        }
        // What was put off at the end is dropped, and so released.
        while self.ends.try_recv().is_ok() {}
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for the handlers that run.
    async fn finish(&mut self, until: Instant) {
        loop {
            self.shared.stats.look_up(self.at_work(), self.parked());
            let tick = until.min(Instant::now() + TICK);
            match tokio::time::timeout_at(tick, self.tasks.join_next()).await {
                Ok(None) => return,
                Ok(Some(joined)) => self.joined(joined),
                Err(_) if Instant::now() >= until => return,
                Err(_) => {}
            }
        }
    }
}

/// Works on messages, one after the other, until none waits.
async fn work_off(
    shared: Arc<Shared>,
    backlog: Arc<Backlog>,
    ended: mpsc::UnboundedSender<End>,
    first: Start,
    low: usize,
) {
    let mut next = Some(first);
    while let Some(start) = next {
        let slot = Slot::new(&shared);
        match start {
            Start::One(delivery, entry) => {
                let end = attend(&shared, &slot, delivery, &entry).await;
                if end.matters() {
                    let _ = ended.send(end);
                }
            }
            Start::Many(deliveries, entry) => {
                let tell = |end| _ = ended.send(end);
                Box::pin(attend_batch(&shared, &slot, deliveries, &entry, tell)).await;
            }
        }
        if slot.is_parked() {
            // Its place is another's.
            return;
        }
        next = backlog.take(low);
    }
}
