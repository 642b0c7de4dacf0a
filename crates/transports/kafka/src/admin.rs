//! Creating, deleting, purging, counting and browsing.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use throughline_core::driver::{Delivery, Depth, LogEnd, Pieces};
use throughline_core::{Error, ErrorKind, Result, Retry, Timestamp};

use crate::cluster::Cluster;
use crate::config::{Destination, From, Wanted};
use crate::connect::{Admin, Reader, blocking, not_found};
use crate::error;
use crate::memory::Memory;
use crate::message::receive;
use crate::native::Record;

/// The group that a browse without one reads as; nothing joins it, and nothing is committed for it.
const BROWSER: &str = "throughline-browse";
/// How long a new topic may take to be known to the brokers, and a deleted one to be forgotten.
const SETTLING: Duration = Duration::from_secs(10);

/// Creates the topic, and what the address names beside it: retry topic and dead-letter topic.
pub(crate) async fn create(cluster: &Cluster, destination: &Destination) -> Result<Vec<String>> {
    let admin = Admin::new(cluster)?;
    let made = create_all(&admin, cluster, destination).await;
    admin.close().await;
    made
}

async fn create_all(admin: &Admin, cluster: &Cluster, destination: &Destination) -> Result<Vec<String>> {
    let topic = destination.topic()?;
    let wanted = destination.wanted()?;
    let mut made = Vec::new();
    let partitions = create_topic(admin, cluster, topic, &wanted).await?;
    made.push(format!("topic '{topic}' with {partitions} partitions"));
    let beside = Wanted {
        partitions: i32::try_from(partitions).unwrap_or(-1),
        replicas: wanted.replicas,
        configs: Vec::new(),
    };
    if destination.retry_by_topic {
        let name = destination.retry_topic()?;
        create_topic(admin, cluster, &name, &beside).await?;
        made.push(format!("topic '{name}' for retries"));
    }
    if let Some(name) = &destination.dead_letter {
        // Whatever it has already is as good: only its existence counts.
        let any = Wanted { partitions: -1, ..beside };
        create_topic(admin, cluster, name, &any).await?;
        made.push(format!("topic '{name}' for dead letters"));
    }
    Ok(made)
}

/// Creates a topic, or compares the one that there is; gives its number of partitions.
async fn create_topic(admin: &Admin, cluster: &Cluster, name: &str, wanted: &Wanted) -> Result<usize> {
    let mut new = NewTopic::new(name, wanted.partitions, TopicReplication::Fixed(wanted.replicas));
    for (config, value) in &wanted.configs {
        new = new.set(config, value);
    }
    let results = admin.client.create_topics([&new], &admin.options).await.map_err(error::map)?;
    match results.into_iter().next() {
        Some(Ok(_)) | None => {}
        Some(Err((_, Code::TopicAlreadyExists))) => return compare(admin, cluster, name, wanted).await,
        Some(Err((_, code))) => {
            let error = error::of_code(code);
            let text = format!("topic '{name}' cannot be made: {}", error.message());
            return Err(Error::new(error.kind(), text).with_retry(error.retry()));
        }
    }
    let partitions = settled(cluster, name, true).await?;
    Ok(partitions.map_or(0, |partitions| partitions.len()))
}

/// A topic that exists is left as it is; where it has other properties than were asked for, that is a conflict.
async fn compare(admin: &Admin, cluster: &Cluster, name: &str, wanted: &Wanted) -> Result<usize> {
    let conflict = |what: &str, has: &str, asked: &str| {
        let text = format!("topic '{name}' exists with {what} {has}, not {asked}");
        Err(Error::new(ErrorKind::Conflict, text))
    };
    let (reader, topic) = (Reader::new(cluster, None)?, name.to_owned());
    let (partitions, replicas) = blocking(move || {
        let metadata = reader.ask(|client| client.fetch_metadata(Some(&topic), Duration::from_secs(1)))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map_or(&[][..], |found| found.partitions());
        Ok((partitions.len(), partitions.first().map_or(0, |partition| partition.replicas().len())))
    })
    .await?;
    let differs = |asked: i32, has: usize| asked > 0 && usize::try_from(asked) != Ok(has);
    if differs(wanted.partitions, partitions) {
        return conflict(
            "a number of partitions of",
            &partitions.to_string(),
            &wanted.partitions.to_string(),
        );
    }
    if differs(wanted.replicas, replicas) {
        return conflict("a number of replicas of", &replicas.to_string(), &wanted.replicas.to_string());
    }
    if !wanted.configs.is_empty() {
        let configs = admin.configs(name).await?;
        for (config, asked) in &wanted.configs {
            let has = configs.iter().find(|(name, _)| name == config).and_then(|(_, value)| value.as_deref());
            if has != Some(asked.as_str()) {
                return conflict(config, has.unwrap_or("unset"), asked);
            }
        }
    }
    Ok(partitions)
}

/// Waits until a topic is known, or forgotten.
async fn settled(cluster: &Cluster, name: &str, there: bool) -> Result<Option<Vec<i32>>> {
    let (reader, topic) = (Reader::new(cluster, None)?, name.to_owned());
    blocking(move || {
        let deadline = Instant::now() + SETTLING;
        loop {
            let partitions = reader.partitions(&topic)?;
            if partitions.is_some() == there || Instant::now() >= deadline {
                return Ok(partitions);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })
    .await
}

/// Deletes the topic with the group's retry topic and position; leaves the dead-letter topic.
pub(crate) async fn delete(cluster: &Cluster, destination: &Destination) -> Result<Vec<String>> {
    let admin = Admin::new(cluster)?;
    let deleted = delete_all(&admin, cluster, destination).await;
    admin.close().await;
    deleted
}

async fn delete_all(admin: &Admin, cluster: &Cluster, destination: &Destination) -> Result<Vec<String>> {
    let mut names = vec![destination.topic()?.to_owned()];
    if destination.retry_by_topic {
        names.push(destination.retry_topic()?);
    }
    let mut deleted = Vec::new();
    for name in names {
        let results = admin.client.delete_topics(&[&name], &admin.options).await.map_err(error::map)?;
        match results.into_iter().next() {
            Some(Err((_, Code::UnknownTopicOrPartition))) => continue,
            Some(Err((_, code))) => return Err(error::of_code(code)),
            Some(Ok(_)) | None => {}
        }
        settled(cluster, &name, false).await?;
        deleted.push(format!("topic '{name}'"));
    }
    if let Some(group) = destination.maybe_group() {
        let results = admin.client.delete_groups(&[group], &admin.options).await.map_err(error::map)?;
        match results.into_iter().next() {
            Some(Ok(_)) => deleted.push(format!("group '{group}'")),
            Some(Err((_, Code::NonEmptyGroup))) => {
                deleted.push(format!("not group '{group}': it has consumers"));
            }
            // There is none, or none that we may delete: it holds nothing without its topic.
            _ => {}
        }
    }
    if let Some(name) = &destination.dead_letter {
        deleted.push(format!("not the dead-letter topic '{name}': delete it by its own address"));
    }
    Ok(deleted)
}

/// What is to be read of one partition.
#[derive(Clone, Copy, Debug)]
struct Span {
    partition: i32,
    from: i64,
    to: i64,
}

impl Span {
    fn len(&self) -> u64 {
        u64::try_from(self.to.saturating_sub(self.from)).unwrap_or(0)
    }
}

/// What the group has not committed, of each partition; without a group, all that there is. Blocks.
fn spans(reader: &Reader, destination: &Destination) -> Result<Vec<Span>> {
    let topic = destination.topic()?;
    let partitions = reader.partitions(topic)?.ok_or_else(|| not_found(topic, destination))?;
    let mut asked = TopicPartitionList::new();
    for partition in &partitions {
        asked.add_partition(topic, *partition);
    }
    let committed = match destination.maybe_group() {
        Some(_) => reader.ask(|client| client.committed_offsets(asked.clone(), reader.timeout))?,
        None => TopicPartitionList::new(),
    };
    let mut spans = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let (low, high) =
            reader.ask(|client| client.fetch_watermarks(topic, partition, Duration::from_secs(1)))?;
        let position = committed.find_partition(topic, partition).map(|element| element.offset());
        let from = match (position, destination.maybe_group(), destination.from) {
            // Below the low mark is what the topic's retention has deleted.
            (Some(Offset::Offset(position)), ..) => position.max(low),
            (_, Some(_), From::Latest) => high,
            _ => low,
        };
        spans.push(Span { partition, from, to: high });
    }
    Ok(spans)
}

/// The group's lag; without a group, what the topic holds. Offsets that a transaction or compaction took count as messages.
pub(crate) async fn depth(cluster: Cluster, destination: Destination) -> Result<Depth> {
    blocking(move || {
        let reader = Reader::new(&cluster, destination.maybe_group())?;
        let ready = spans(&reader, &destination)?.iter().map(Span::len).sum();
        Ok(Depth { ready, unsettled: None, delayed: None })
    })
    .await
}

/// Where the partitions end now.
pub(crate) async fn log_end(cluster: Cluster, destination: Destination) -> Result<LogEnd> {
    blocking(move || {
        let reader = Reader::new(&cluster, destination.maybe_group())?;
        let ends = spans(&reader, &destination)?.into_iter().map(|span| (span.partition, span.to));
        Ok(LogEnd { positions: ends.collect() })
    })
    .await
}

/// The group's lag up to this end.
pub(crate) async fn depth_before(cluster: Cluster, destination: Destination, end: LogEnd) -> Result<u64> {
    blocking(move || {
        let reader = Reader::new(&cluster, destination.maybe_group())?;
        let before = spans(&reader, &destination)?.into_iter().map(|span| {
            let to = end.positions.get(&span.partition).copied().unwrap_or(0);
            Span { to, ..span }.len()
        });
        Ok(before.sum())
    })
    .await
}

/// With a group, moves its position to the end; other groups keep the messages. Without one, deletes the records.
pub(crate) async fn purge(cluster: &Cluster, destination: &Destination) -> Result<u64> {
    let (to_read, whose) = (cluster.clone(), destination.clone());
    let spans = blocking(move || {
        let reader = Reader::new(&to_read, whose.maybe_group())?;
        let spans = spans(&reader, &whose)?;
        if whose.maybe_group().is_some() {
            let ends = ends(&whose, &spans)?;
            reader
                .ask(|client| client.commit(&ends, CommitMode::Sync))
                .map_err(|error| in_use(&whose, error))?;
        }
        Ok(spans)
    })
    .await?;
    if destination.maybe_group().is_none() {
        let admin = Admin::new(cluster)?;
        let ends = ends(destination, &spans)?;
        let results = admin.client.delete_records(&ends, &admin.options).await.map_err(error::map);
        admin.close().await;
        for element in results?.elements() {
            element.error().map_err(error::map)?;
        }
    }
    Ok(spans.iter().map(Span::len).sum())
}

fn ends(destination: &Destination, spans: &[Span]) -> Result<TopicPartitionList> {
    let mut ends = TopicPartitionList::new();
    for span in spans {
        ends.add_partition_offset(destination.topic()?, span.partition, Offset::Offset(span.to))
            .map_err(error::map)?;
    }
    Ok(ends)
}

/// The broker lets nobody move a group's position while it has members.
fn in_use(destination: &Destination, error: Error) -> Error {
    if error.kind() != ErrorKind::Stale {
        return error;
    }
    let group = destination.maybe_group().unwrap_or_default();
    Error::new(
        ErrorKind::Conflict,
        format!("group '{group}' has consumers; close them before its position is moved"),
    )
}

/// Reads from the group's position on without joining the group; without one, from the beginning.
pub(crate) async fn browse(
    cluster: Cluster,
    destination: Destination,
    max: NonZeroUsize,
    mut pieces: Pieces,
) -> Result<()> {
    let read = blocking(move || {
        let reader = Reader::new(&cluster, Some(destination.maybe_group().unwrap_or(BROWSER)))?;
        let spans: Vec<_> = spans(&reader, &destination)?.into_iter().filter(|span| span.len() > 0).collect();
        read(&reader, &destination, spans, max.get(), |delivery| pieces.blocking_add(delivery))?;
        Ok(pieces)
    });
    read.await?.finish().await;
    Ok(())
}

fn read(
    reader: &Reader,
    destination: &Destination,
    spans: Vec<Span>,
    max: usize,
    mut give: impl FnMut(Delivery) -> bool,
) -> Result<()> {
    let topic: Arc<str> = destination.topic()?.into();
    let mut begin = TopicPartitionList::new();
    for span in &spans {
        begin.add_partition_offset(&topic, span.partition, Offset::Offset(span.from)).map_err(error::map)?;
    }
    reader.client.assign(&begin).map_err(error::map)?;
    let mut open = spans;
    let (mut seen, mut memory) = (0, Memory::default());
    // Against brokers that say nothing. The end of a partition is told, also where its last offset is a transaction's marker.
    let mut deadline = Instant::now() + reader.timeout;
    while seen < max && !open.is_empty() && Instant::now() < deadline {
        let message = match reader.client.poll(Duration::from_millis(200)) {
            None => continue,
            Some(Ok(message)) => message,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.retain(|span| span.partition != partition);
                continue;
            }
            Some(Err(failed)) => {
                let error = error::map(failed);
                if error.retry() == Retry::Never && error.kind() != ErrorKind::Internal {
                    return Err(error);
                }
                continue;
            }
        };
        let (partition, offset) = (message.partition(), message.offset());
        if open.iter().any(|span| span.partition == partition && offset < span.to) {
            // Epoch 0: no consumer's, so that it cannot be settled.
            let (record, now) = (Record::of(&message), Timestamp::now());
            seen += 1;
            if !give(receive(record, topic.clone(), 0, now, &mut memory).delivery) {
                return Ok(());
            }
        }
        open.retain(|span| span.partition != partition || offset + 1 < span.to);
        // Who takes them may take its time.
        deadline = Instant::now() + reader.timeout;
    }
    if seen < max && !open.is_empty() {
        let text =
            format!("the brokers gave nothing of {} partitions within {:?}", open.len(), reader.timeout);
        return Err(Error::new(ErrorKind::Timeout, text).with_retry(Retry::Safe));
    }
    Ok(())
}
