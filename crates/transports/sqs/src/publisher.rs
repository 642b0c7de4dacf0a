//! The publisher: envelopes into batches of ten.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_sqs::error::BuildError;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
    SendMessageBatchRequestEntry,
};
use throughline_aws::codec::{self, Encoded, Hop};
use throughline_aws::group;
use throughline_core::capabilities::Level;
use throughline_core::driver::{self, Completions, Endpoint, OperationId, Outgoing};
use throughline_core::{Capabilities, Envelope, Error, ErrorKind, Result, Retry};

use crate::batch;
use crate::config::{Destination, round_up};
use crate::queue::Queue;
use crate::transport::Shared;

/// An open destination.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    queue: Queue,
    capabilities: Capabilities,
    endpoint: Endpoint,
    closed: AtomicBool,
}

impl Publisher {
    /// Opens a destination, which must exist.
    pub(crate) async fn open(shared: Arc<Shared>, destination: &Destination) -> Result<Self> {
        let queue = Queue::find(&shared, destination).await?;
        Ok(Self {
            capabilities: queue.capabilities(),
            endpoint: queue.endpoint(&shared),
            queue,
            shared,
            closed: AtomicBool::new(false),
        })
    }
}

/// What a message to send says beside its envelope.
fn hop(message: &Outgoing, is_fifo: bool) -> Hop<'_> {
    Hop {
        delay: message.delay,
        failed_attempts: message.failed_attempts,
        history: message.history.as_deref(),
        dead_letter: None,
        grouped: is_fifo,
    }
}

/// How large a message is for SQS, body and attributes together, in bytes, where a queue with the default
/// `MaximumMessageSize` can do this. It needs no connection.
///
/// # Errors
/// `LimitExceeded` for what such a queue would refuse, as publishing to it.
pub fn measure(message: &Outgoing, capabilities: &Capabilities) -> Result<usize> {
    let is_fifo = capabilities.order == Level::Native;
    let limit = capabilities.limits.batch_bytes.unwrap_or(usize::MAX);
    check_size(codec::size(&message.envelope, &hop(message, is_fifo), limit), limit)
}

/// A message as an entry of a batch.
pub(crate) fn entry(
    queue: &Queue,
    envelope: &Envelope,
    operation: OperationId,
    hop: &Hop<'_>,
) -> Result<SendMessageBatchRequestEntry> {
    let Encoded { body, attributes, xray } = codec::encode(envelope, hop);
    let mut entry = SendMessageBatchRequestEntry::builder().id("0").message_body(body);
    for attribute in attributes {
        let (name, data_type, text, bytes) = codec::into_parts(attribute);
        let value = MessageAttributeValue::builder()
            .data_type(data_type)
            .set_string_value(text)
            .set_binary_value(bytes.map(|bytes| Blob::new(Vec::from(bytes))))
            .build()
            .map_err(unexpected)?;
        entry = entry.message_attributes(name, value);
    }
    if let Some(xray) = xray {
        let value = MessageSystemAttributeValue::builder().data_type("String").string_value(xray);
        let value = value.build().map_err(unexpected)?;
        entry = entry.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, value);
    }
    if queue.is_fifo {
        entry = entry
            .message_group_id(group::of(envelope.ordering_key.as_deref(), operation))
            .message_deduplication_id(operation.to_string());
    } else if !hop.delay.is_zero() {
        entry = entry.delay_seconds(i32::try_from(round_up(hop.delay)).unwrap_or(i32::MAX));
    }
    entry.build().map_err(unexpected)
}

pub(crate) fn unexpected(error: BuildError) -> Error {
    Error::new(ErrorKind::Internal, "the request could not be built").with_source(error)
}

/// Refuses what a queue with this limit would refuse for its size.
pub(crate) fn check_size(size: usize, limit: usize) -> Result<usize> {
    if size <= limit {
        return Ok(size);
    }
    Err(Error::limit(
        "the message's size, body and attributes together (the queue's MaximumMessageSize),",
        format!("{size} bytes"),
        format!("{limit} bytes"),
    ))
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
        let hop = hop(message, self.queue.is_fifo);
        let limit = self.queue.limit();
        check_size(codec::size(&message.envelope, &hop, limit), limit)
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        if self.closed.load(Ordering::Acquire) {
            done.fail_rest(&Error::new(ErrorKind::Closed, "the publisher is closed"));
            return;
        }
        let mut places = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        for (place, message) in batch.iter().enumerate() {
            match entry(&self.queue, &message.envelope, message.operation, &hop(message, self.queue.is_fifo))
            {
                Ok(entry) => {
                    places.push(place);
                    entries.push(entry);
                }
                Err(error) => done.complete(place, Err(error)),
            }
        }
        if entries.is_empty() {
            return;
        }
        let answers = batch::send(&self.shared, &self.queue.url, entries).await;
        for (place, answer) in places.into_iter().zip(answers) {
            // A FIFO queue knows the operation again for five minutes, and takes it once.
            let answer = match answer {
                Err(error) if self.queue.is_fifo && error.retry() == Retry::Uncertain => {
                    Err(error.with_retry(Retry::Safe))
                }
                answer => answer,
            };
            done.complete(place, answer);
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("queue", &self.queue.name).finish_non_exhaustive()
    }
}
