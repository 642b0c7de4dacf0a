//! The publisher: envelopes into batches of ten.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_sns::error::BuildError;
use aws_sdk_sns::primitives::Blob;
use aws_sdk_sns::types::{BatchResultErrorEntry, MessageAttributeValue, PublishBatchRequestEntry};
use opentelemetry::KeyValue;
use throughline_aws::codec::{self, Encoded, Hop};
use throughline_aws::{error, group};
use throughline_core::capabilities::Level;
use throughline_core::driver::{self, Completions, Endpoint, Outgoing, Receipt};
use throughline_core::{Capabilities, Error, ErrorKind, Result, Retry, capabilities};

use crate::admin;
use crate::config::Destination;
use crate::transport::Shared;

/// The header of the trace: SNS passes it on to queues as `AWSTraceHeader`.
const XRAY_HEADER: &str = "X-Amzn-Trace-Id";

/// How large a message may be where the address does not say, in bytes: the default of MaximumMessageSize.
const MAX_MESSAGE: usize = 262_144;

/// An open topic.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    arn: String,
    is_fifo: bool,
    capabilities: Capabilities,
    endpoint: Endpoint,
    closed: AtomicBool,
    /// Somebody listens, or that is all the same.
    routed: AtomicBool,
}

impl Publisher {
    /// Opens a topic, which must exist.
    pub(crate) async fn open(shared: Arc<Shared>, destination: &Destination) -> Result<Self> {
        let arn = admin::find(&shared, destination).await?;
        let is_fifo = destination.is_fifo();
        let mut capabilities = if is_fifo { capabilities::SNS_FIFO } else { capabilities::SNS };
        let limit = destination.message_limit.unwrap_or(MAX_MESSAGE);
        capabilities.limits.payload_bytes = Some(codec::payload_limit(limit));
        capabilities.limits.batch_bytes = Some(limit);
        let endpoint = Endpoint {
            destination: destination.topic.clone(),
            server: Some(shared.connection.server.clone()),
            attributes: vec![KeyValue::new("aws.sns.topic.arn", arn.clone())],
        };
        let routed = AtomicBool::new(!destination.must_route);
        Ok(Self { shared, arn, is_fifo, capabilities, endpoint, closed: AtomicBool::new(false), routed })
    }

    /// A message as an entry of a batch, and its X-Ray header.
    fn entry(&self, place: usize, message: &Outgoing) -> Result<(PublishBatchRequestEntry, Option<String>)> {
        let unexpected = |error: BuildError| {
            Error::new(ErrorKind::Internal, "the request could not be built").with_source(error)
        };
        let Encoded { body, attributes, xray } =
            codec::encode(&message.envelope, &hop(message, self.is_fifo));
        let mut entry = PublishBatchRequestEntry::builder().id(place.to_string()).message(body);
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
        if self.is_fifo {
            entry = entry
                .message_group_id(group::of(message.envelope.ordering_key.as_deref(), message.operation))
                .message_deduplication_id(message.operation.to_string());
        }
        Ok((entry.build().map_err(unexpected)?, xray))
    }

    /// A FIFO topic knows the operation again for five minutes, and takes it once.
    fn classed(&self, error: Error) -> Error {
        if self.is_fifo && error.retry() == Retry::Uncertain { error.with_retry(Retry::Safe) } else { error }
    }

    /// SNS takes a message that nobody is subscribed to, and drops it. Asked until somebody is.
    async fn check_routed(&self) -> Result<()> {
        if self.routed.load(Ordering::Relaxed) {
            return Ok(());
        }
        match admin::subscriptions(&self.shared, &self.arn).await {
            Ok(all) if all.is_empty() => {
                let text =
                    "the topic has no subscription, and would drop the message; ?unroutable=drop allows that";
                return Err(Error::new(ErrorKind::Unroutable, text));
            }
            Err(error) if error.kind() != ErrorKind::PermissionDenied => {
                return Err(error.with_retry(Retry::Safe));
            }
            _ => {}
        }
        self.routed.store(true, Ordering::Relaxed);
        Ok(())
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

/// How large a message is for SNS, body and attributes together, in bytes, where a topic can do this. It needs no
/// connection.
///
/// # Errors
/// `LimitExceeded` for what the topic would refuse, as publishing to it.
pub fn measure(message: &Outgoing, capabilities: &Capabilities) -> Result<usize> {
    let limit = capabilities.limits.batch_bytes.unwrap_or(usize::MAX);
    let hop = hop(message, capabilities.order == Level::Native);
    let size = codec::size(&message.envelope, &hop, limit);
    if size <= limit {
        return Ok(size);
    }
    Err(Error::limit(
        "the message's size, body and attributes together (the topic's MaximumMessageSize),",
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
        measure(message, &self.capabilities)
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        if self.closed.load(Ordering::Acquire) {
            done.fail_rest(&Error::new(ErrorKind::Closed, "the publisher is closed"));
            return;
        }
        if let Err(error) = self.check_routed().await {
            done.fail_rest(&error);
            return;
        }
        let mut entries = Vec::with_capacity(batch.len());
        let mut xrays = Vec::with_capacity(batch.len());
        for (place, message) in batch.iter().enumerate() {
            match self.entry(place, message) {
                Ok((entry, xray)) => {
                    entries.push(entry);
                    xrays.push(xray);
                }
                Err(error) => done.complete(place, Err(error)),
            }
        }
        if entries.is_empty() {
            return;
        }
        // One header a request: only where it is true of all its messages.
        let xray =
            xrays.first().cloned().flatten().filter(|first| xrays.iter().all(|x| x.as_ref() == Some(first)));
        let request = self.shared.client.publish_batch().topic_arn(&self.arn);
        let request = request.set_publish_batch_request_entries(Some(entries)).customize();
        let request = request.mutate_request(move |request| {
            if let Some(xray) = &xray {
                request.headers_mut().insert(XRAY_HEADER, xray.clone());
            }
        });
        match request.send().await.map_err(error::of_request) {
            Ok(answer) => {
                for entry in answer.successful.unwrap_or_default() {
                    if let Some(place) = entry.id.and_then(|id| id.parse().ok()) {
                        let mut receipt = Receipt::default();
                        receipt.native_id = entry.message_id;
                        done.complete(place, Ok(receipt));
                    }
                }
                for BatchResultErrorEntry { id, code, message, sender_fault, .. } in
                    answer.failed.unwrap_or_default()
                {
                    if let Ok(place) = id.parse() {
                        let error = error::of_entry(&code, &message.unwrap_or_default(), sender_fault);
                        done.complete(place, Err(self.classed(error)));
                    }
                }
                let unanswered =
                    Error::new(ErrorKind::Internal, "AWS answered the request, but not for this message");
                done.fail_rest(&self.classed(unanswered.with_retry(Retry::Uncertain)));
            }
            Err(error) => done.fail_rest(&self.classed(error)),
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("topic", &self.arn).finish_non_exhaustive()
    }
}
