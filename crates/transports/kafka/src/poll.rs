//! The polling thread: takes records, follows rebalances, pauses and resumes partitions, and commits.
//!
//! librdkafka tells a consumer of rebalances only when it polls, and evicts one that does not poll for
//! `max.poll.interval.ms`. So one thread polls all the time, whatever the application does, and what there is no room for is
//! paused. Rebalance callbacks run on this thread, which may wait; nothing here runs on the application's runtime.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientContext, Message as _, Offset, TopicPartitionList};
use throughline_core::{Error, ErrorKind, Retry, Timestamp};

use crate::config::Destination;
use crate::connect::{Events, not_found};
use crate::error;
use crate::message::{Received, receive};
use crate::partition::Partition;
use crate::state::{Phase, Shared};

/// How long one poll waits: as late as that a settlement can be committed when nothing arrives.
const POLL: Duration = Duration::from_millis(50);
/// How long there may be no room before partitions are paused: pausing discards what librdkafka has fetched.
const PATIENCE: Duration = Duration::from_millis(200);
/// So many records are taken in at once.
const BATCH: usize = 256;
/// How much payload a partition may hold beyond its oldest unsettled record, in bytes, before it is paused.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;
/// An idle consumer commits as soon as all is settled, and not more often than this.
const IDLE_COMMIT: Duration = Duration::from_millis(50);

/// What librdkafka calls back.
pub(crate) struct Context {
    shared: Arc<Shared>,
    events: Events,
    drain: Duration,
}

pub(crate) type Client = BaseConsumer<Context>;

impl Context {
    pub(crate) fn new(shared: Arc<Shared>, drain: Duration) -> Self {
        Self { shared, events: Events::default(), drain }
    }

    fn topic(&self, name: &str) -> Arc<str> {
        let state = self.shared.state();
        let known = state.partitions.values().find(|partition| *partition.topic == *name);
        known.map_or_else(|| name.into(), |partition| partition.topic.clone())
    }

    /// Partitions are taken away: what is out is given time to be settled, and that is committed, unless they are lost
    /// already.
    fn revoke(&self, client: &Client, partitions: &TopicPartitionList) {
        let names: Vec<_> =
            partitions.elements().iter().map(|e| (e.topic().to_owned(), e.partition())).collect();
        let (epochs, phase) = {
            let state = self.shared.state();
            (state.epochs_of(&names), state.phase)
        };
        // All was stored before closing.
        if phase < Phase::Closing && !client.assignment_lost() {
            self.shared.drain(&epochs, self.drain);
            // librdkafka commits what is stored as the partitions are unassigned.
            store(&self.shared, client);
        }
        self.shared.forget(&epochs);
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, client: &Client, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Revoke(partitions) => self.revoke(client, partitions),
            Rebalance::Assign(partitions) => {
                for element in partitions.elements() {
                    self.shared.assign(self.topic(element.topic()), element.partition());
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "a rebalance failed"),
        }
    }
}

/// Tells librdkafka the positions that can be committed, which it does at the interval, as partitions are taken away, and as
/// the consumer closes, and again where that fails. Says whether there were any.
fn store(shared: &Shared, client: &Client) -> bool {
    let mut positions = TopicPartitionList::new();
    let mut stored = Vec::new();
    for (epoch, partition) in &mut shared.state().partitions {
        let Some(position) = partition.take_unstored() else { continue };
        stored.push(*epoch);
        // It fails for a position that is none.
        let _ = positions.add_partition_offset(&partition.topic, partition.number, Offset::Offset(position));
    }
    if stored.is_empty() {
        return false;
    }
    if let Err(error) = client.store_offsets(&positions) {
        tracing::debug!(%error, partitions = stored.len(), "positions were not taken and are told again");
        let mut state = shared.state();
        for epoch in stored {
            if let Some(partition) = state.partitions.get_mut(&epoch) {
                partition.store_again();
            }
        }
    }
    true
}

/// Polls until the consumer is closed.
pub(crate) fn run(shared: &Shared, client: Client, destination: &Destination) {
    let mut committer = Committer { last: Instant::now(), is_behind: false };
    let mut is_full = false;
    loop {
        // Once partitions are paused, only what makes them go on again is waited for.
        is_full = !shared.wait_for_room(if is_full { Duration::ZERO } else { PATIENCE })
            || (is_full && shared.is_full(&shared.state(), 2));
        if shared.state().phase == Phase::Closing {
            break;
        }
        pause_and_resume(shared, &client, is_full);
        take_in(shared, &client, destination);
        committer.run(shared, &client);
    }
    store(shared, &client);
    // Commits, and leaves the group.
    drop(client);
}

/// Waits for records, and takes in what there is.
fn take_in(shared: &Shared, client: &Client, destination: &Destination) {
    let now = Timestamp::now();
    let mut received = Vec::new();
    // The partition of the last record: the next is mostly of the same.
    let mut known: Option<(u64, Arc<str>, i32)> = None;
    let mut wait = POLL;
    while received.len() < BATCH {
        match client.poll(wait) {
            None => break,
            Some(Ok(message)) => received.extend(decode(shared, &message, &mut known, now)),
            Some(Err(error)) => {
                if let Some(end) = fatal(error, client, destination) {
                    shared.end(end);
                }
                // A rebalance may have come with it.
                known = None;
            }
        }
        wait = Duration::ZERO;
    }
    if !received.is_empty() {
        shared.insert(received);
    }
}

fn decode(
    shared: &Shared,
    message: &BorrowedMessage<'_>,
    known: &mut Option<(u64, Arc<str>, i32)>,
    now: Timestamp,
) -> Option<(u64, Received)> {
    let is_known = known.as_ref().is_some_and(|(epoch, topic, number)| {
        *number == message.partition() && **topic == *message.topic() && shared.is_live(*epoch)
    });
    if !is_known {
        let state = shared.state();
        let epoch = *state.epochs_of(&[(message.topic().to_owned(), message.partition())]).first()?;
        let topic = state.partitions.get(&epoch)?.topic.clone();
        *known = Some((epoch, topic, message.partition()));
    }
    let (epoch, topic, _) = known.as_ref()?;
    Some((*epoch, receive(message, topic.clone(), *epoch, now)))
}

/// Pauses what has no room, and resumes what has it again.
fn pause_and_resume(shared: &Shared, client: &Client, is_full: bool) {
    let (mut pause, mut resume) = (TopicPartitionList::new(), TopicPartitionList::new());
    {
        let mut state = shared.state();
        let is_full = is_full || state.phase > Phase::Running;
        for partition in state.partitions.values_mut() {
            let wanted = is_full || is_far_ahead(partition, shared.bounds.window);
            if wanted != partition.is_paused {
                partition.is_paused = wanted;
                let list = if wanted { &mut pause } else { &mut resume };
                list.add_partition(&partition.topic, partition.number);
            }
        }
    }
    for (list, result) in [
        (&pause, (pause.count() > 0).then(|| client.pause(&pause))),
        (&resume, (resume.count() > 0).then(|| client.resume(&resume))),
    ] {
        if let Some(Err(error)) = result {
            tracing::warn!(%error, partitions = list.count(), "partitions could not be paused or resumed");
        }
    }
}

/// Whether a partition has to wait for its oldest unsettled record; once it waits, until half of that is settled.
fn is_far_ahead(partition: &Partition, window: usize) -> bool {
    let (records, bytes) = partition.ahead();
    let part = if partition.is_paused { 2 } else { 1 };
    records > window / part || bytes > WINDOW_BYTES / part
}

/// Has what is stored committed at once when nothing is unsettled; the rest is the interval's.
struct Committer {
    last: Instant,
    is_behind: bool,
}

impl Committer {
    fn run(&mut self, shared: &Shared, client: &Client) {
        self.is_behind |= store(shared, client);
        if self.is_behind && self.last.elapsed() >= IDLE_COMMIT && is_idle(shared) {
            self.is_behind = false;
            self.last = Instant::now();
            // Where it fails, the interval's commit makes up for it.
            let _ = client.commit_consumer_state(CommitMode::Async);
        }
    }
}

fn is_idle(shared: &Shared) -> bool {
    shared.state().partitions.values().all(|partition| partition.ahead().0 == 0)
}

/// The error that ends the stream, where waiting will not mend it.
fn fatal(error: KafkaError, client: &Client, destination: &Destination) -> Option<Error> {
    if let KafkaError::MessageConsumptionFatal(_) = error {
        let reason = client.client().fatal_error().map(|(_, reason)| reason).unwrap_or_default();
        let mapped = error::map(error);
        let kind = if mapped.kind() == ErrorKind::Internal { ErrorKind::Unsupported } else { mapped.kind() };
        return Some(Error::new(kind, format!("the consumer cannot go on: {reason}")));
    }
    let code = error.rdkafka_error_code();
    match code {
        // A broker that is restarting can refuse, or break off, a login.
        Some(Code::Authentication | Code::SSL) | None => return None,
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            return Some(not_found(destination.topic().unwrap_or_default(), destination));
        }
        Some(_) => {}
    }
    let mapped = error::map(error);
    match mapped.kind() {
        ErrorKind::PermissionDenied
        | ErrorKind::Refused
        | ErrorKind::Unsupported
        | ErrorKind::InvalidAddress => Some(mapped.with_retry(Retry::Never)),
        _ => {
            tracing::debug!(error = %mapped, "consuming");
            None
        }
    }
}
