//! The publisher: an open topic.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::driver::{self, Completions, Endpoint, Outgoing};
use throughline_core::{Capabilities, Result, Timestamp, capabilities};

use crate::cluster::Cluster;
use crate::codec::Hop;
use crate::config::Destination;
use crate::producer::{MOST, Producer, measure_within};

/// What of a topic's limit is not promised to the payload, in bytes: key and headers need it.
const ALLOWANCE: usize = 2_048;

/// An open topic.
pub(crate) struct Publisher {
    producer: Producer,
    capabilities: Capabilities,
    endpoint: Endpoint,
}

impl Publisher {
    pub(crate) async fn open(cluster: &Cluster, destination: &Destination) -> Result<Self> {
        let topic = destination.topic()?;
        let producer = Producer::open(cluster, topic, destination).await?;
        let mut capabilities = capabilities::KAFKA;
        capabilities.limits.payload_bytes = Some(producer.limit().saturating_sub(ALLOWANCE));
        let endpoint = endpoint(cluster, topic);
        Ok(Self { producer, capabilities, endpoint })
    }
}

/// What an open topic is called in spans.
pub(crate) fn endpoint(cluster: &Cluster, topic: &str) -> Endpoint {
    Endpoint { destination: topic.to_owned(), server: Some(cluster.server.clone()), attributes: Vec::new() }
}

/// How large a message is for Kafka, in bytes, where a topic can do this. It needs no connection.
///
/// # Errors
/// `LimitExceeded` for what the topic would refuse, as publishing to it.
pub fn measure(message: &Outgoing, capabilities: &Capabilities) -> Result<usize> {
    let limit = capabilities.limits.payload_bytes.map_or(MOST, |payload| payload + ALLOWANCE);
    measure_within(limit, &message.envelope, &hop(message, true))
}

fn hop(message: &Outgoing, stamp: bool) -> Hop<'_> {
    Hop {
        sent: Timestamp::now(),
        delay: Duration::ZERO,
        failed_attempts: message.failed_attempts,
        history: message.history.as_deref(),
        stamp,
        dead_letter: None,
    }
}

#[async_trait]
impl driver::Publisher for Publisher {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        self.producer.measure(&message.envelope, &hop(message, self.producer.keeps_stamp()))
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        let stamp = self.producer.keeps_stamp();
        let messages = batch.iter().enumerate();
        let messages = messages.map(|(index, message)| (index, &message.envelope, hop(message, stamp)));
        self.producer.send(messages, &Arc::new(done)).await;
    }

    async fn close(&self) -> Result<()> {
        self.producer.close().await;
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("topic", &self.endpoint.destination).finish_non_exhaustive()
    }
}
