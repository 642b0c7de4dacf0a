//! The run loop: one task that owns what waits, and spawns what begins.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use throughline_core::{Consumer, Delivery, Error, ErrorKind, Result};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::health::{Report, TICK};
use crate::job::Phase;
use crate::middleware::concurrency::{Lanes, Retried};
use crate::middleware::trace::{End, EndKind, attend, attend_batch};
use crate::router::{Entry, Table, Target};
use crate::shared::Shared;

/// How long what was told to stop may take to settle.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) struct Run {
    consumer: Consumer,
    table: Table,
    shared: Arc<Shared>,
    /// So many handlers at once.
    limit: usize,
    lanes: Lanes,
    tasks: JoinSet<Ends>,
    /// May begin as soon as there is room.
    ready: VecDeque<Start>,
    /// Gathered for batch routes, by their index.
    batches: HashMap<usize, Gathering>,
    timers: Timers,
    /// A fault of our own, or of a span exporter's.
    failed: Option<Error>,
}

/// What a task came to.
enum Ends {
    One(End),
    Many(Vec<End>),
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
        Self {
            consumer,
            table,
            shared,
            limit,
            lanes,
            tasks: JoinSet::new(),
            ready: VecDeque::new(),
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
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.ended(ended);
                    while let Some(ended) = self.tasks.try_join_next() {
                        self.ended(ended);
                    }
                }
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

    /// How many more messages may begin; none while others wait for room.
    fn room(&self) -> Option<NonZeroUsize> {
        if !self.ready.is_empty() {
            return None;
        }
        NonZeroUsize::new(self.limit.saturating_sub(self.tasks.len()))
    }

    fn received(&mut self, deliveries: Vec<Delivery>) {
        if let Some(waited) = deliveries.iter().rev().find_map(Delivery::queue_delay) {
            self.shared.stats.waited(waited.delay);
        }
        for delivery in deliveries {
            let admitted = self.lanes.admit(delivery);
            self.begin(admitted);
        }
    }

    /// Starts a message, or gathers it; what was lost while it waited gives its place to the next of its key.
    fn begin(&mut self, mut next: Option<Delivery>) {
        while let Some(delivery) = next.take() {
            if delivery.is_lease_lost() {
                let key = delivery.envelope().ordering_key.clone();
                next = key.and_then(|key| self.lanes.finished(&key, None));
                continue;
            }
            let entry = self.table.get(delivery.envelope().message_type.as_deref()).clone();
            let Target::Many(_, options) = &entry.target else {
                self.ready.push_back(Start::One(delivery, entry));
                return;
            };
            let (max, linger, index) = (options.max.max(1), options.linger, entry.index);
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
    }

    fn gathered(&mut self, index: usize) {
        if let Some(Gathering { entry, deliveries, .. }) = self.batches.remove(&index) {
            self.ready.push_back(Start::Many(deliveries, entry));
        }
    }

    fn start_ready(&mut self) {
        while self.tasks.len() < self.limit
            && let Some(start) = self.ready.pop_front()
        {
            let shared = self.shared.clone();
            match start {
                Start::One(delivery, entry) => {
                    self.tasks.spawn(attend(shared, delivery, entry).map(Ends::One));
                }
                Start::Many(deliveries, entry) => {
                    self.tasks.spawn(attend_batch(shared, deliveries, entry).map(Ends::Many));
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<Ends, JoinError>) {
        match ended {
            Ok(Ends::One(end)) => self.left(end),
            Ok(Ends::Many(ends)) => ends.into_iter().for_each(|end| self.left(end)),
            // Handlers' panics are caught; this is a fault of ours, or of what spans are exported to. Its message was
            // released, but its key may be held for ever: better to end, and be told.
            Err(error) => {
                let error =
                    Error::new(ErrorKind::Internal, "a task of the worker panicked outside of any handler")
                        .with_source(error);
                self.failed = Some(error.at("work", self.consumer.address()));
            }
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
        self.begin(next);
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
                    self.begin(next);
                }
                Timer::Again(delivery) => self.begin(Some(*delivery)),
                Timer::Batch(index, number) => {
                    if self.batches.get(&index).is_some_and(|gathering| gathering.number == number) {
                        self.gathered(index);
                    }
                }
            }
        }
        self.shared.stats.look_up(self.tasks.len(), self.lanes.held() + self.timers.held());
    }

    /// Gives back what was not begun, waits for what was, and drops what takes too long.
    async fn drain(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        self.shared.phase.send_replace(Phase::Draining);
        self.consumer.stop().await;
        // Dropped, and so released.
        self.ready.clear();
        self.batches.clear();
        self.timers.due.clear();
        drop(self.lanes.drain());
        self.finish(until).await;
        self.shared.phase.send_replace(Phase::Cancelling);
        self.finish(Instant::now() + GRACE).await;
        let unfinished = self.tasks.len();
        if unfinished > 0 {
            tracing::error!(unfinished, "handlers block their threads and do not end: they are left behind");
            self.shared.stats.unfinished(unfinished as u64);
            self.tasks.abort_all();
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for the handlers that run.
    async fn finish(&mut self, until: Instant) {
        loop {
            self.shared.stats.look_up(self.tasks.len(), 0);
            let tick = until.min(Instant::now() + TICK);
            match tokio::time::timeout_at(tick, self.tasks.join_next()).await {
                Ok(None) => return,
                Ok(Some(ended)) => {
                    self.ended(ended);
                    // Nothing begins any more.
                    self.ready.clear();
                    self.timers.due.clear();
                }
                Err(_) if Instant::now() >= until => return,
                Err(_) => {}
            }
        }
    }
}
