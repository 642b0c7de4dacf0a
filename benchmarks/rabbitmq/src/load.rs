//! What is sent where, and how it is timed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use cpu_time::ProcessTime;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};
use serde::Serialize;
use throughline_rabbitmq::lapin;

/// Unanswered publishes, and the prefetch.
pub(crate) const IN_FLIGHT: usize = 1_000;
/// Deliveries that one ack settles, where the contender can.
pub(crate) const ACKED_TOGETHER: usize = 100;

/// The kind of queue; durable, whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QueueType {
    Quorum,
    Classic,
}

impl QueueType {
    pub(crate) const ALL: [Self; 2] = [Self::Quorum, Self::Classic];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// The broker, and a channel of our own for making queues.
pub(crate) struct Broker {
    url: String,
    connection: Connection,
    channel: Channel,
}

impl Broker {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .context("the broker cannot be reached; check --url or THROUGHLINE_RABBITMQ_URL")?;
        let channel = connection.create_channel().await?;
        Ok(Self { url: url.to_owned(), connection, channel })
    }

    /// An empty queue of that name.
    pub(crate) async fn fresh(&self, queue: &str, queue_type: QueueType) -> Result<()> {
        self.delete(queue).await?;
        let mut arguments = FieldTable::default();
        if queue_type == QueueType::Quorum {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        }
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), durable, arguments).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, queue: &str) -> Result<()> {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// How many messages are ready.
    pub(crate) async fn ready(&self, queue: &str) -> Result<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count())
    }

    /// What one contender is to do.
    pub(crate) fn load(&self, queue: &str, messages: usize, bytes: usize) -> Load {
        Load { url: self.url.clone(), queue: queue.to_owned(), messages, body: vec![b'x'; bytes].into() }
    }

    pub(crate) async fn close(self) -> Result<()> {
        Ok(self.connection.close(200, "".into()).await?)
    }
}

/// So many messages, into or out of that queue.
pub(crate) struct Load {
    pub(crate) url: String,
    pub(crate) queue: String,
    pub(crate) messages: usize,
    pub(crate) body: Bytes,
}

/// The time that something took, on the wall and on this process's processors: the broker's are not counted.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

pub(crate) struct Stopwatch(Instant, ProcessTime);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), ProcessTime::now())
    }

    pub(crate) fn stop(&self) -> Span {
        Span { wall: self.0.elapsed(), cpu: self.1.elapsed() }
    }
}
