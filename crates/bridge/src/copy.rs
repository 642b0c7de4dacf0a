//! The loop that owns all that is on its way: it takes from the source, sends in order, and decides what a failure means.
//! What waits for answers are tasks; they change nothing but what they return.

mod job;
mod quiet;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use throughline::capabilities::KeyPipeline;
use throughline::{Consumer, Delivery, Error, ErrorKind, KeyOrder, Publisher, Result, Retry};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use crate::bridge::Settings;
use crate::filter::Rest;
use crate::identity::{Identity, may_come_again};
use crate::lanes::Lanes;
use crate::ledger::Writer;
use crate::pace::Pace;
use crate::progress::Progress;
use crate::report::{End, Totals};
use crate::verdict::Verdict;
use crate::verify::{Became, Sent};
use job::{Done, Job};
pub(crate) use quiet::{DepthOf, Look};
use quiet::{Quiet, answer};

/// At most so many messages are sent, noted and acked together: as many as the consumer asks for at once.
const CHUNK: usize = 100;
/// Where a sink is given one message of a key after the other, so many of it are handed to the publisher at once: those that
/// wait there must get their turn within the time that a send may take.
const ONE_BY_ONE: usize = 16;
/// So long a send may wait for room.
const ROOM: Duration = Duration::from_millis(100);
/// The first wait before sending again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What the loop leaves behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) totals: Totals,
    pub(crate) left: u64,
    pub(crate) unacked: u64,
    pub(crate) depth: Option<u64>,
}

/// Where messages go.
pub(crate) struct Sinks {
    pub(crate) sink: Publisher,
    pub(crate) reject: Option<Publisher>,
}

pub(crate) struct Copy<'a> {
    settings: &'a Settings,
    sinks: Sinks,
    depth_of: DepthOf,
    writer: Writer,
    progress: Progress,
    lanes: Lanes<Job>,
    tasks: JoinSet<Done>,
    /// What is on its way, by what it is recognised by, with the deliveries of it that came meanwhile.
    under_way: HashMap<Identity, Vec<Delivery>>,
    in_flight: usize,
    /// Not taken by the filter.
    held: Vec<Delivery>,
    taken: u64,
    pace: Option<Pace>,
    trouble: Trouble,
    quiet: Quiet,
    look: Option<JoinHandle<Result<Look>>>,
    end: Option<End>,
    totals: Totals,
    /// What the source did not take the ack of, until it comes again.
    unacked: HashSet<Identity>,
    /// How many more of those there are that cannot be recognised.
    unacked_unknown: u64,
}

/// The sends that have failed in passing.
#[derive(Default)]
struct Trouble {
    /// When to send again.
    at: Option<Instant>,
    wait: Duration,
    /// Since when nothing was accepted, and why.
    since: Option<(Instant, Error)>,
}

impl<'a> Copy<'a> {
    pub(crate) fn new(
        settings: &'a Settings,
        sinks: Sinks,
        depth_of: DepthOf,
        writer: Writer,
        progress: Progress,
    ) -> Self {
        let now = Instant::now();
        let one_by_one = settings.key_order == KeyOrder::Strict
            && sinks.sink.capabilities().key_pipeline == KeyPipeline::Unsafe;
        Self {
            settings,
            sinks,
            depth_of,
            writer,
            progress,
            lanes: Lanes::new(if one_by_one { ONE_BY_ONE } else { usize::MAX }),
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            in_flight: 0,
            held: Vec::new(),
            taken: 0,
            pace: settings.rate.map(|rate| Pace::new(rate, now)),
            trouble: Trouble { wait: BACKOFF.0, ..Trouble::default() },
            quiet: Quiet { since: now, looks: 0, looked: None, is_idle: false, depth: None },
            look: None,
            end: None,
            totals: Totals::default(),
            unacked: HashSet::new(),
            unacked_unknown: 0,
        }
    }

    /// Held messages whose lease was lost are somebody else's, or will come again.
    fn forget_lost(&mut self) {
        self.held.retain(|delivery| !delivery.is_lease_lost());
    }

    /// Runs until the end of one kind or another, with nothing left on its way. What was not moved is released.
    pub(crate) async fn run(
        mut self,
        consumer: &mut Consumer,
        shutdown: impl Future<Output = ()>,
    ) -> Outcome {
        let mut shutdown = pin!(shutdown);
        let mut asked = false;
        let mut tick = tokio::time::interval(self.settings.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped = false;
        if self.settings.max == Some(0) {
            self.finish(End::Max);
        }
        while !self.is_over() {
            if self.end.is_some() && !stopped {
                stopped = true;
                consumer.stop().await;
                continue;
            }
            let (max, pace_at) = self.wanted();
            tokio::select! {
                biased;
                () = &mut shutdown, if !asked => {
                    asked = true;
                    self.finish(End::Stopped);
                }
                Some(done) = self.tasks.join_next() => {
                    let freed = self.on_done(done);
                    self.send(freed).await;
                }
                () = sleep_until(self.trouble.at), if self.trouble.at.is_some() && !self.gives_up() => {
                    self.trouble.at = None;
                    self.send_again().await;
                }
                depth = answer(&mut self.look), if self.look.is_some() => {
                    self.look = None;
                    self.on_depth(depth, consumer);
                }
                _ = tick.tick() => self.on_tick(),
                batch = next_batch(consumer, max), if max.is_some() => match batch {
                    Ok(batch) => self.take(batch).await,
                    Err(error) => self.finish(End::Failed { error }),
                },
                () = sleep_until(pace_at), if pace_at.is_some() => {}
            }
        }
        if let Some(look) = self.look.take() {
            look.abort();
        }
        self.forget_lost();
        self.show();
        // What was sent with an unknown outcome, and is given back: the next run sends it again.
        let again = Totals {
            sent_again: self.lanes.iter().map(|job| job.sent_again.min(1)).sum(),
            ..Totals::default()
        };
        self.totals += again;
        if let Err(error) = self.writer.note(Vec::new(), again).await {
            self.finish(End::Failed { error });
        }
        Outcome {
            left: self.held.len() as u64,
            end: self.end.unwrap_or(End::Stopped),
            totals: self.totals,
            unacked: self.unacked.len() as u64 + self.unacked_unknown,
            depth: self.quiet.depth,
        }
    }

    /// How many messages may come now; or when.
    fn wanted(&self) -> (Option<NonZeroUsize>, Option<Instant>) {
        if self.end.is_some() {
            return (None, None);
        }
        let left = self.settings.max.map_or(u64::MAX, |max| max.saturating_sub(self.taken));
        let most = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        match self.pace.as_ref().map(|pace| pace.allowed(Instant::now())) {
            Some(Err(at)) => (None, Some(at)),
            Some(Ok(allowed)) => (NonZeroUsize::new(most.min(allowed)), None),
            None => (NonZeroUsize::new(most), None),
        }
    }

    fn is_over(&self) -> bool {
        self.end.is_some() && self.tasks.is_empty() && (self.gives_up() || self.lanes.waiting() == 0)
    }

    /// Whether what has failed is not sent again any more.
    fn gives_up(&self) -> bool {
        matches!(&self.end, Some(End::Stopped | End::Refused { .. } | End::Failed { .. }))
    }

    /// Takes no more. The first reason counts, but for one that also gives up what waits.
    fn finish(&mut self, end: End) {
        let gives_up = matches!(end, End::Stopped | End::Refused { .. } | End::Failed { .. });
        if self.end.is_none() || (gives_up && !self.gives_up()) {
            self.end = Some(end);
        }
    }

    async fn take(&mut self, batch: Vec<Delivery>) {
        self.quiet.since = Instant::now();
        self.quiet.looks = 0;
        self.quiet.is_idle = false;
        let mut skipped = Vec::new();
        let mut meant = Vec::with_capacity(batch.len());
        for delivery in batch {
            if self.settings.filter.takes(delivery.envelope()) {
                meant.push((Identity::of(&delivery), delivery));
            } else if self.settings.rest == Rest::Skip {
                skipped.push(delivery);
            } else {
                self.held.push(delivery);
            }
        }
        if self.held.len() >= self.settings.hold {
            self.forget_lost();
            if self.held.len() >= self.settings.hold {
                self.finish(End::Full);
            }
        }
        if !skipped.is_empty() {
            let totals = Totals { skipped: skipped.len() as u64, ..Totals::default() };
            self.tasks.spawn(job::ack_only(skipped, totals, Vec::new(), self.writer.clone()));
        }
        let asked = meant.iter().filter(|(_, delivery)| may_come_again(delivery));
        let asked: Vec<_> = asked.filter_map(|(identity, _)| identity.clone()).collect();
        let known = match self.writer.known(asked).await {
            Ok(known) => known,
            Err(error) => return self.finish(End::Failed { error }),
        };
        let mut known = known.into_iter();
        let mut already = Vec::new();
        let mut jobs = Vec::with_capacity(meant.len());
        let mut admitted = 0;
        for (identity, delivery) in meant {
            let may_be_known = identity.is_some() && may_come_again(&delivery);
            if may_be_known && known.next() == Some(true) {
                already.push(delivery);
                continue;
            }
            if let Some(identity) = &identity {
                match self.under_way.get_mut(identity) {
                    // The same message again, while it is on its way: the newer delivery may be the one that can be acked.
                    Some(echoes) if may_be_known => {
                        echoes.push(delivery);
                        self.in_flight += 1;
                        continue;
                    }
                    // Another one like it in all.
                    Some(_) => {}
                    None => drop(self.under_way.insert(identity.clone(), Vec::new())),
                }
            }
            self.in_flight += 1;
            let envelope = self.settings.map.apply(delivery.envelope());
            let key = envelope.ordering_key.clone();
            jobs.extend(self.lanes.admit(key.as_ref(), Job::new(delivery, envelope, identity)));
            self.taken += 1;
            admitted += 1;
        }
        if let Some(pace) = &mut self.pace {
            pace.took(admitted, Instant::now());
        }
        self.spawn_already(already);
        if self.settings.max.is_some_and(|max| self.taken >= max) {
            self.finish(End::Max);
        }
        self.send(jobs).await;
    }

    fn spawn_already(&mut self, deliveries: Vec<Delivery>) {
        if !deliveries.is_empty() {
            let totals = Totals { already_moved: deliveries.len() as u64, ..Totals::default() };
            let sent = |delivery: &Delivery| {
                Sent::new(Became::MovedBefore, 0, &self.settings.map.apply(delivery.envelope()))
            };
            let verified = self.settings.verify.is_some();
            let sent = if verified { deliveries.iter().map(sent).collect() } else { Vec::new() };
            self.tasks.spawn(job::ack_only(deliveries, totals, sent, self.writer.clone()));
        }
    }

    /// Sends what waits, once its time has come.
    async fn send_again(&mut self) {
        let due = self.lanes.due();
        // Before any of them is sent: a key must not be resumed between two of its messages.
        for (_, job) in &due {
            if let Some(key) = job.key() {
                self.sinks.sink.resume(key);
            }
        }
        self.send(due).await;
        if self.lanes.has_failed() {
            self.send_later();
        }
    }

    async fn send(&mut self, jobs: Vec<(u64, Job)>) {
        let mut sent = Vec::with_capacity(jobs.len());
        let mut is_full = false;
        for (number, job) in jobs {
            if is_full || self.gives_up() {
                // One before it was refused, or had no room: what comes later must not overtake it.
                self.lanes.failed(number, job.key().cloned().as_ref(), job);
            } else if job.refused.is_some() {
                self.spawn_reject(number, job);
            } else {
                // Without room nothing is sent. This loop is not to wait for it: it has answers and the end to see to.
                let enqueued = self.sinks.sink.enqueue(job.envelope.clone(), job.options());
                match tokio::time::timeout(ROOM, enqueued).await {
                    Ok(Ok(pending)) => sent.push((number, job, pending)),
                    Ok(Err(error)) => self.on_failure(number, job, error),
                    Err(_) => {
                        is_full = true;
                        let error = Error::new(
                            ErrorKind::Timeout,
                            "the sink has answered too few sends to take more",
                        );
                        self.on_failure(number, job, error.with_retry(Retry::Safe));
                    }
                }
            }
        }
        if !sent.is_empty() {
            let is_noted = self.settings.verify.is_some() || self.settings.remember;
            self.tasks.spawn(job::settle(sent, self.writer.clone(), is_noted));
        }
        self.show();
    }

    fn spawn_reject(&mut self, number: u64, job: Job) {
        if let Some(reject) = &self.sinks.reject {
            self.tasks.spawn(job::reject(
                number,
                job,
                reject.clone(),
                self.writer.clone(),
                self.settings.verify.is_some(),
            ));
        }
    }

    /// Gives what may follow.
    fn on_done(&mut self, done: std::result::Result<Done, tokio::task::JoinError>) -> Vec<(u64, Job)> {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                let error = Error::new(ErrorKind::Internal, "a task of the bridge failed").with_source(error);
                self.finish(End::Failed { error });
                return Vec::new();
            }
        };
        self.totals += done.totals;
        for identity in done.unacked {
            match identity {
                Some(identity) => drop(self.unacked.insert(identity)),
                None => self.unacked_unknown += 1,
            }
        }
        for identity in done.acked_again {
            self.unacked.remove(&identity);
        }
        self.progress.add(done.totals);
        if done.totals.moved + done.totals.rejected > 0 {
            self.trouble.since = None;
            self.trouble.wait = BACKOFF.0;
        }
        let mut echoes = Vec::new();
        let mut keys = Vec::new();
        for (key, identity) in done.finished {
            self.in_flight -= 1;
            self.lanes.done(key.as_ref());
            keys.extend(key);
            echoes
                .extend(identity.and_then(|identity| self.under_way.remove(&identity)).into_iter().flatten());
        }
        self.in_flight -= echoes.len();
        if let Some(error) = done.fatal {
            self.finish(End::Failed { error });
        } else {
            self.spawn_already(echoes);
        }
        for (number, job, error) in done.failed {
            self.on_failure(number, job, error);
        }
        // Only now: of a key that has failed, nothing follows yet.
        let mut freed: Vec<_> = keys.iter().flat_map(|key| self.lanes.freed(key)).collect();
        freed.sort_unstable_by_key(|(number, _)| *number);
        freed
    }

    /// A send has failed, or a send to the reject address.
    fn on_failure(&mut self, number: u64, mut job: Job, error: Error) {
        let key = job.key().cloned();
        match Verdict::of(&error) {
            Verdict::Passing => {
                job.sent_again += u64::from(error.retry() == Retry::Uncertain);
                if error.kind() != ErrorKind::HeldBack {
                    tracing::debug!(%error, "a send has failed, and is made again");
                    self.progress.set_trouble(error.to_string());
                    let since = self.trouble.since.take().map_or_else(Instant::now, |(since, _)| since);
                    self.trouble.since = Some((since, error));
                }
                self.lanes.failed(number, key.as_ref(), job);
                self.send_later();
            }
            Verdict::Message if job.refused.is_none() && self.sinks.reject.is_some() => {
                job.refused = Some(error);
                self.spawn_reject(number, job);
            }
            Verdict::Message if job.refused.is_none() => {
                let envelope = job.delivery.envelope();
                let (id, message_type) = (envelope.id.clone(), envelope.message_type.clone());
                self.lanes.failed(number, key.as_ref(), job);
                self.finish(End::Refused { id, message_type, error });
            }
            Verdict::Message | Verdict::Sink => {
                self.lanes.failed(number, key.as_ref(), job);
                self.finish(End::Failed { error });
            }
        }
    }

    fn send_later(&mut self) {
        if self.trouble.at.is_none() {
            self.trouble.at = Some(Instant::now() + self.trouble.wait);
            self.trouble.wait = (self.trouble.wait * 2).min(BACKOFF.1);
        }
    }

    fn show(&self) {
        self.progress.set_held(self.in_flight, self.held.len());
    }
}

/// At least one; that the stream has ended is an error here.
async fn next_batch(consumer: &mut Consumer, max: Option<NonZeroUsize>) -> Result<Vec<Delivery>> {
    let batch = consumer.next_batch(max.unwrap_or(NonZeroUsize::MIN)).await?;
    if batch.is_empty() {
        return Err(Error::new(ErrorKind::Closed, "the source's stream has ended"));
    }
    Ok(batch)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a finished message was recognised by.
pub(crate) type Finished = (Option<Bytes>, Option<Identity>);

#[cfg(test)]
mod tests;
