//! What all clients share: librdkafka's log, the first connection, what the cluster says of a topic.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use throughline_core::{Error, ErrorKind, Result, Retry};

use crate::cluster::Cluster;
use crate::config::Destination;
use crate::error;

/// How long one call to librdkafka waits, so that what it tells meanwhile is seen.
const SLICE: Duration = Duration::from_millis(200);

/// What librdkafka tells beside its answers. Its log goes to the application's subscriber; it holds no payloads.
#[derive(Default)]
pub(crate) struct Events {
    /// The latest error that says why a broker cannot be reached.
    reason: Mutex<Option<(Code, String)>>,
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug => tracing::trace!(facility, message, "librdkafka"),
            RDKafkaLogLevel::Warning if facility == "COMMITFAIL" => {
                tracing::warn!(message, "a commit failed");
            }
            // Each lost connection is one, and a property that is for the other kind of client: both are told by our own errors,
            // where they matter.
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        tracing::debug!(%code, reason, "librdkafka");
        let mut latest = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        match (code, &*latest) {
            // It only sums up what was told before.
            (Code::AllBrokersDown, Some(_)) => {}
            _ => *latest = Some((code, reason.to_owned())),
        }
    }
}

impl ConsumerContext for Events {}

impl Events {
    /// Why no broker can be reached, as far as that was told.
    pub(crate) fn why(&self) -> Error {
        match &*self.reason.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((code, reason)) => {
                let error = error::of_code(*code);
                let text = format!("{}: {reason}", error.message());
                Error::new(error.kind(), text)
                    .with_retry(error.retry())
                    .with_source(KafkaError::Global(*code))
            }
            None => Error::new(ErrorKind::Timeout, "the brokers do not answer").with_retry(Retry::Safe),
        }
    }
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "a call to librdkafka failed").with_source(error))
    })
}

/// A client that reads what the cluster knows, and no messages unless partitions are assigned to it. Its calls block.
pub(crate) struct Reader {
    pub(crate) client: BaseConsumer<Events>,
    pub(crate) timeout: Duration,
}

impl Reader {
    /// With a group it can ask for that group's positions; it does not join it.
    pub(crate) fn new(cluster: &Cluster, group: Option<&str>) -> Result<Self> {
        let mut config = cluster.client(
            &[],
            &[
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("auto.offset.reset", "earliest"),
                // Tells the end of what can be read, where the last offsets are marks of transactions.
                ("enable.partition.eof", "true"),
            ],
        );
        if let Some(group) = group {
            config.set("group.id", group);
        }
        let client = config.create_with_context(Events::default()).map_err(error::map)?;
        Ok(Self { client, timeout: cluster.timeout })
    }

    /// Fails at once with what is wrong where no broker can be reached or none lets us in.
    pub(crate) fn reach(&self) -> Result<()> {
        // Any topic will do: what is asked for is an answer.
        self.ask(|client| client.fetch_metadata(Some("throughline"), SLICE).map(drop))
    }

    /// The numbers of a topic's partitions, in order; `None` where there is no such topic.
    pub(crate) fn partitions(&self, topic: &str) -> Result<Option<Vec<i32>>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let metadata = self.ask(|client| client.fetch_metadata(Some(topic), SLICE))?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            match found.map(|found| (found.error(), found.partitions())) {
                Some((None, partitions)) if partitions.iter().all(|partition| partition.leader() >= 0) => {
                    let mut ids: Vec<_> = partitions.iter().map(|partition| partition.id()).collect();
                    ids.sort_unstable();
                    return Ok(Some(ids));
                }
                Some((Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART), _)) => return Ok(None),
                Some((Some(other), _)) if error::of_code(other.into()).retry() == Retry::Never => {
                    return Err(error::of_code(other.into()));
                }
                // No leader yet, or no more.
                _ if Instant::now() >= deadline => {
                    return Err(error::of_code(Code::LeaderNotAvailable));
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Repeats a call until it succeeds, the time is over, or no broker can be reached.
    pub(crate) fn ask<T>(
        &self,
        mut call: impl FnMut(&BaseConsumer<Events>) -> Result<T, KafkaError>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        let mut refusals = 0;
        loop {
            let error = match call(&self.client) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // A message would be of a partition that is assigned, and none is while this is called.
            while let Some(event) = self.client.poll(Duration::ZERO) {
                match event.err().and_then(|error| error.rdkafka_error_code()) {
                    Some(Code::AllBrokersDown) => return Err(self.client.context().why()),
                    // A broker that is only starting can refuse once.
                    Some(Code::Authentication | Code::SSL) if refusals > 0 => {
                        return Err(self.client.context().why());
                    }
                    Some(Code::Authentication | Code::SSL) => refusals += 1,
                    _ => {}
                }
            }
            let error = error::map(error);
            if error.retry() == Retry::Never {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(self.client.context().why());
            }
        }
    }
}

/// What a topic says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopicFacts {
    /// The most that a batch of records may measure, in bytes: `max.message.bytes`.
    pub(crate) limit: usize,
    /// Whether a record keeps the timestamp that we give it.
    pub(crate) keeps_stamp: bool,
}

impl TopicFacts {
    /// Where the topic may not be described: what librdkafka allows by default, below every broker's default.
    const UNKNOWN: Self = Self { limit: 1_000_000, keeps_stamp: false };
}

/// A client for administration. Close it: dropping it blocks.
pub(crate) struct Admin {
    pub(crate) client: AdminClient<Events>,
    pub(crate) options: AdminOptions,
}

impl Admin {
    pub(crate) fn new(cluster: &Cluster) -> Result<Self> {
        let client = cluster.client(&[], &[]).create_with_context(Events::default()).map_err(error::map)?;
        let options = AdminOptions::new()
            .request_timeout(Some(cluster.timeout))
            .operation_timeout(Some(cluster.timeout));
        Ok(Self { client, options })
    }

    pub(crate) async fn close(self) {
        // It joins its thread.
        let _ = blocking(move || {
            drop(self);
            Ok(())
        })
        .await;
    }

    /// The topic's configurations, by name; fails where we may not ask.
    pub(crate) async fn configs(&self, topic: &str) -> Result<Vec<(String, Option<String>)>> {
        let topic = ResourceSpecifier::Topic(topic);
        let mut resources =
            self.client.describe_configs([&topic], &self.options).await.map_err(error::map)?;
        let resource = resources.pop().ok_or_else(|| error::of_code(Code::UnknownTopicOrPartition))?;
        let resource = resource.map_err(error::of_code)?;
        Ok(resource.entries.into_iter().map(|entry| (entry.name, entry.value)).collect())
    }
}

/// Checks that a topic exists, and asks what it allows.
pub(crate) async fn facts(cluster: &Cluster, topic: &str, missing: &Destination) -> Result<TopicFacts> {
    let admin = Admin::new(cluster)?;
    // Each connects first, so side by side. Where the one fails, the other is not waited for.
    let configs = async { Ok(admin.configs(topic).await) };
    let asked = futures_util::future::try_join(exists(cluster, topic, missing), configs).await;
    admin.close().await;
    let Ok(configs) = asked?.1 else { return Ok(TopicFacts::UNKNOWN) };
    let value = |wanted: &str| {
        configs.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.as_deref())
    };
    Ok(TopicFacts {
        limit: value("max.message.bytes")
            .and_then(|bytes| bytes.parse().ok())
            .unwrap_or(TopicFacts::UNKNOWN.limit),
        keeps_stamp: value("message.timestamp.type") == Some("CreateTime"),
    })
}

/// Fails with `NotFound`, and the command that makes it, where there is no such topic.
pub(crate) async fn exists(cluster: &Cluster, topic: &str, missing: &Destination) -> Result<()> {
    let (reader, name) = (Reader::new(cluster, None)?, topic.to_owned());
    let partitions = blocking(move || reader.partitions(&name)).await?;
    partitions.map(drop).ok_or_else(|| not_found(topic, missing))
}

/// The error of a missing topic.
pub(crate) fn not_found(topic: &str, destination: &Destination) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no topic '{topic}'; make it with: {}", destination.hint()),
    )
}
