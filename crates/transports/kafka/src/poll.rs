//! The polling thread: takes records, follows rebalances, pauses and resumes partitions, and commits.
//!
//! librdkafka tells a consumer of rebalances only when it polls, and evicts one that does not poll for
//! `max.poll.interval.ms`. So one thread polls all the time, whatever the application does, and what there is no room for is
//! paused. Rebalance callbacks run on this thread, which may wait; nothing here runs on the application's runtime.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use throughline_core::{Error, ErrorKind, Retry, Timestamp};

use crate::acked::Acked;
use crate::config::Destination;
use crate::connect::{Events, not_found};
use crate::error;
use crate::memory::Memory;
use crate::message::{Received, receive};
use crate::native::{self, Record, Records};
use crate::partition::{Partition, Position};
use crate::state::{Phase, Shared, State};

/// How long one poll waits: as late as that a settlement can be committed when nothing arrives.
const POLL: Duration = Duration::from_millis(50);
/// How long there may be no room before partitions are paused: pausing discards what librdkafka has fetched.
const PATIENCE: Duration = Duration::from_millis(200);
/// So many records are taken in at once.
const BATCH: usize = 256;
/// How much payload a partition may hold beyond its oldest unsettled record, in bytes, before it is paused.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;
/// How long it may take to ask what is acked above the position. Without an answer that is delivered again.
const ASKING: Duration = Duration::from_secs(5);
/// An idle consumer commits as soon as all is settled, and not more often than this.
const IDLE_COMMIT: Duration = Duration::from_millis(50);

/// What librdkafka calls back.
pub(crate) struct Context {
    shared: Arc<Shared>,
    events: Events,
    drain: Duration,
    /// How long it may take to hear what the group calls us, without which nobody can leave it, and then to leave. None where
    /// members name themselves (the brokers' protocol).
    leaving: Duration,
    /// Where the records of assigned partitions go.
    records: Mutex<Weak<Records>>,
    /// The broker takes no metadata of our length.
    is_plain: AtomicBool,
    /// The last commit failed.
    is_failing: AtomicBool,
}

pub(crate) type Client = BaseConsumer<Context>;

impl Context {
    pub(crate) fn new(shared: Arc<Shared>, drain: Duration, leaving: Duration) -> Self {
        Self {
            shared,
            events: Events::default(),
            drain,
            leaving,
            records: Mutex::default(),
            is_plain: AtomicBool::default(),
            is_failing: AtomicBool::default(),
        }
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
        let epochs = self.shared.state().epochs_of(&names);
        if !client.assignment_lost() {
            // At once where the consumer closes.
            self.shared.drain(&epochs, self.drain);
            store(&self.shared, client, Some(&epochs));
        }
        self.shared.forget(&epochs);
    }

    /// What was acked above the group's positions, by topic and partition.
    fn acked(&self, client: &Client, partitions: &TopicPartitionList) -> HashMap<(String, i32), Acked> {
        // Nothing is read any more, and so nothing is committed.
        if self.shared.state().phase > Phase::Running {
            return HashMap::new();
        }
        let mut asked = TopicPartitionList::new();
        for element in partitions.elements() {
            asked.add_partition(element.topic(), element.partition());
        }
        let committed = match client.committed_offsets(asked, ASKING) {
            Ok(committed) => committed,
            Err(error) => {
                tracing::debug!(%error, "what is acked above the positions is not known, and is delivered again");
                return HashMap::new();
            }
        };
        let mut acked = HashMap::new();
        for (element, metadata) in committed.elements().iter().zip(native::metadata(&committed)) {
            let Offset::Offset(position) = element.offset() else { continue };
            if metadata.is_empty() {
                continue;
            }
            let (topic, partition) = (element.topic(), element.partition());
            match Acked::decode(&metadata, position) {
                Some(read) => drop(acked.insert((topic.to_owned(), partition), read)),
                None => tracing::debug!(topic, partition, position, "a position's metadata is not of ours"),
            }
        }
        acked
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
                let records = self.records.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
                let mut acked = self.acked(client, partitions);
                for element in partitions.elements() {
                    let (topic, number) = (element.topic(), element.partition());
                    let acked = acked.remove(&(topic.to_owned(), number)).unwrap_or_default();
                    self.shared.assign(self.topic(topic), number, acked);
                    if let Some(records) = &records {
                        records.forward(client.client(), topic, number);
                    }
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "a rebalance failed"),
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, positions: &TopicPartitionList) {
        if result.as_ref().is_err_and(|error| error.rdkafka_error_code() == Some(Code::NoOffset)) {
            return;
        }
        let elements = positions.elements();
        let failed =
            |element: &TopicPartitionListElem<'_>| result.clone().and_then(|()| element.error()).err();
        let failed: Vec<_> = elements.iter().filter_map(|e| failed(e).map(|error| (e, error))).collect();
        self.is_failing.store(result.is_err() || !failed.is_empty(), Ordering::Relaxed);
        let is_too_large =
            |(_, error): &(_, KafkaError)| error.rdkafka_error_code() == Some(Code::OffsetMetadataTooLarge);
        if failed.iter().any(is_too_large) && !self.is_plain.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the broker's offset.metadata.max.bytes is below 4096: what is acked above the position comes again \
                 after a restart"
            );
        }
        let names: Vec<_> = failed.iter().map(|(e, _)| (e.topic().to_owned(), e.partition())).collect();
        let mut state = self.shared.state();
        let epochs = state.epochs_of(&names);
        // A failure that names no partition may be of any.
        let is_of_any = result.is_err() && names.is_empty();
        for (epoch, partition) in &mut state.partitions {
            if is_of_any || epochs.contains(epoch) {
                partition.tell_again();
            }
        }
    }
}

/// Gathers what is to be committed of each partition.
fn positions(
    state: &mut State,
    mut of: impl FnMut(u64, &mut Partition) -> Option<Position>,
) -> Option<TopicPartitionList> {
    let mut positions = TopicPartitionList::new();
    for (epoch, partition) in &mut state.partitions {
        let Some(Position { offset, metadata }) = of(*epoch, partition) else { continue };
        let mut element = positions.add_partition(&partition.topic, partition.number);
        // It fails for a position that is none.
        let _ = element.set_offset(Offset::Offset(offset));
        if let Some(metadata) = metadata {
            element.set_metadata(metadata);
        }
    }
    (positions.count() > 0).then_some(positions)
}

/// Tells librdkafka the positions that it is to commit as it gives these partitions back, or all, which it does for certain,
/// and without our waiting for it.
fn store(shared: &Shared, client: &Client, epochs: Option<&[u64]>) {
    let sparse = !client.context().is_plain.load(Ordering::Relaxed);
    let is_meant = |epoch| epochs.is_none_or(|epochs| epochs.contains(&epoch));
    let last = positions(&mut shared.state(), |epoch, partition| {
        is_meant(epoch).then(|| partition.take_last(sparse)).flatten()
    });
    if let Some(Err(error)) = last.map(|last| client.store_offsets(&last)) {
        tracing::debug!(%error, "the last positions were not taken");
    }
}

/// Polls until the consumer is closed.
pub(crate) fn run(shared: &Shared, client: Client, destination: &Destination) {
    let mut committer = Committer { last: Instant::now(), interval: destination.commit_interval };
    let mut is_full = false;
    let mut has_left = false;
    let mut memory = Memory::default();
    let Some(records) = Records::new(client.client()).map(Arc::new) else {
        return shared.end(Error::new(ErrorKind::Internal, "librdkafka has no memory for a queue"));
    };
    *client.context().records.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&records);
    loop {
        // Once partitions are paused, only what makes them go on again is waited for.
        is_full = !shared.wait_for_room(if is_full { Duration::ZERO } else { PATIENCE })
            || (is_full && shared.is_full(&shared.state(), 2));
        if shared.state().phase == Phase::Closing {
            break;
        }
        memory.take_back(shared.take_settled());
        pause_and_resume(shared, &client, is_full);
        take_in(shared, &client, &records, destination, &mut memory);
        committer.run(shared, &client);
        // A group gives partitions to its members only, and all or none are ours.
        if !has_left && shared.is_done() {
            has_left = true;
            leave(&client);
        }
    }
    if !has_left && shared.state().partitions.is_empty() {
        leave(&client);
    }
    store(shared, &client, None);
    drop(records);
    // Commits, and leaves the group.
    drop(client);
}

/// Leaves the group for certain, also while joining it. librdkafka does not say that it leaves before it was told its name,
/// nor where it is closed before what it has joined was told to us. The group would wait for such a member until its session
/// is over, 45 s by default, and give nobody anything meanwhile.
fn leave(client: &Client) {
    // What comes meanwhile is left to the next.
    let until = Instant::now() + client.context().leaving;
    let poll_until = |is_so: &dyn Fn() -> bool| {
        while Instant::now() < until && !is_so() {
            let _ = client.poll(Duration::from_millis(10));
        }
    };
    poll_until(&|| native::is_named(client.client()));
    client.unsubscribe();
    poll_until(&|| !native::is_named(client.client()));
}

/// Waits for records, and takes in what there is.
fn take_in(
    shared: &Shared,
    client: &Client,
    records: &Records,
    destination: &Destination,
    memory: &mut Memory,
) {
    let told = |error| {
        if let Some(end) = fatal(error, client, destination) {
            shared.end(end);
        }
    };
    let now = Timestamp::now();
    let mut runs: Vec<(u64, Vec<Received>)> = Vec::new();
    // The partition of the last record: the next is mostly of the same.
    let mut known: Option<(usize, i32, Arc<str>)> = None;
    let mut put = |record: Record<'_>, known: &mut Option<(usize, i32, Arc<str>)>| {
        if !known.as_ref().is_some_and(|(topic, number, _)| record.is_beside(*topic, *number)) {
            let Some((epoch, topic)) = shared.owner(&record) else { return };
            *known = Some((record.topic_id(), record.partition(), topic));
            runs.push((epoch, Vec::with_capacity(BATCH)));
        }
        if let (Some((_, _, topic)), Some((epoch, run))) = (known, runs.last_mut()) {
            run.push(receive(record, topic.clone(), *epoch, now, memory));
        }
    };
    // Rebalances, errors, what became of commits: all but the records, whose queue is their own. A record that came by this one
    // is not lost.
    while let Some(event) = client.poll(Duration::ZERO) {
        match event {
            Ok(message) => put(Record::of(&message), &mut known),
            Err(error) => told(error),
        }
        // A rebalance may have come with it; while records are taken, none does.
        known = None;
    }
    records.take::<BATCH>(POLL, |record| match record {
        Ok(record) => put(record, &mut known),
        Err(error) => told(error),
    });
    if !runs.is_empty() {
        shared.insert(runs);
    }
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

/// Commits, at once where nothing is unsettled, else at the interval.
struct Committer {
    last: Instant,
    interval: Duration,
}

impl Committer {
    fn run(&mut self, shared: &Shared, client: &Client) {
        let since = self.last.elapsed();
        let is_due = since >= self.interval.max(IDLE_COMMIT);
        let context = client.context();
        let may_be_early = since >= IDLE_COMMIT && !context.is_failing.load(Ordering::Relaxed);
        if !(is_due || may_be_early && is_idle(shared)) {
            return;
        }
        let sparse = !context.is_plain.load(Ordering::Relaxed);
        let untold = positions(&mut shared.state(), |_, partition| partition.take_untold(sparse));
        if is_due || untold.is_some() {
            self.last = Instant::now();
        }
        let Some(untold) = untold else { return };
        if let Err(error) = native::commit(client.client(), &untold) {
            context.commit_callback(Err(error), &untold);
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
