//! The publisher: envelopes into events, ten a request.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use throughline_aws::codec::Hop;
use throughline_aws::error;
use throughline_aws::event::{self, Event};
use throughline_core::driver::{self, Completions, Endpoint, Outgoing, Receipt};
use throughline_core::{Capabilities, Error, ErrorKind, Result, Retry, capabilities};

use crate::admin;
use crate::config::{Destination, SOURCE};
use crate::transport::Shared;

/// An open event bus.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    destination: Destination,
    endpoint: Endpoint,
    closed: AtomicBool,
    /// Somebody listens, or that is all the same.
    routed: AtomicBool,
}

impl Publisher {
    /// Opens a bus, which must exist.
    pub(crate) async fn open(shared: Arc<Shared>, destination: Destination) -> Result<Self> {
        admin::find(&shared, &destination).await?;
        let endpoint = Endpoint {
            destination: destination.bus.clone(),
            server: Some(shared.connection.server.clone()),
            attributes: Vec::new(),
        };
        let routed = AtomicBool::new(!destination.must_route);
        Ok(Self { shared, destination, endpoint, closed: AtomicBool::new(false), routed })
    }

    fn entry(&self, message: &Outgoing) -> Result<PutEventsRequestEntry> {
        let Destination { source, is_raw, .. } = &self.destination;
        let Event { source, detail_type, detail, time, xray } =
            event::encode(&message.envelope, &hop(message), source, *is_raw)?;
        Ok(PutEventsRequestEntry::builder()
            .event_bus_name(&self.destination.bus)
            .source(source)
            .detail_type(detail_type)
            .detail(detail)
            .set_time(time.map(|time| DateTime::from_millis(time.as_millis())))
            .set_trace_header(xray)
            .build())
    }

    /// EventBridge takes an event that no rule could take, and drops it. Asked until there is a rule.
    async fn check_routed(&self) -> Result<()> {
        if self.routed.load(Ordering::Relaxed) {
            return Ok(());
        }
        match admin::rules(&self.shared, &self.destination).await {
            Ok(0) => {
                let text = "the bus has no rule, and would drop the event; ?unroutable=drop allows that";
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
fn hop(message: &Outgoing) -> Hop<'_> {
    Hop {
        delay: message.delay,
        failed_attempts: message.failed_attempts,
        history: message.history.as_deref(),
        ..Hop::default()
    }
}

fn measure_as(message: &Outgoing, source: &str, is_raw: bool, capabilities: &Capabilities) -> Result<usize> {
    let limit = capabilities.limits.batch_bytes.unwrap_or(usize::MAX);
    let size = event::size(&message.envelope, &hop(message), source, is_raw, limit)?;
    if size <= limit {
        return Ok(size);
    }
    Err(Error::limit(
        "the event's size, source, detail type and detail together,",
        format!("{size} bytes"),
        format!("{limit} bytes"),
    ))
}

/// How large a message is for EventBridge, in bytes, where a bus can do this and the address says neither `source` nor
/// `raw`. It needs no connection.
///
/// # Errors
/// `LimitExceeded` for what the bus would refuse, as publishing to it.
pub fn measure(message: &Outgoing, capabilities: &Capabilities) -> Result<usize> {
    measure_as(message, SOURCE, false, capabilities)
}

#[async_trait]
impl driver::Publisher for Publisher {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::EVENTBRIDGE
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        let Destination { source, is_raw, .. } = &self.destination;
        measure_as(message, source, *is_raw, &capabilities::EVENTBRIDGE)
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        if self.closed.load(Ordering::Acquire) {
            done.fail_rest(&Error::new(ErrorKind::Closed, "the publisher is closed"));
            return;
        }
        let mut places = Vec::with_capacity(batch.len());
        if let Err(error) = self.check_routed().await {
            done.fail_rest(&error);
            return;
        }
        let mut entries = Vec::with_capacity(batch.len());
        for (place, message) in batch.iter().enumerate() {
            match self.entry(message) {
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
        match self
            .shared
            .client
            .put_events()
            .set_entries(Some(entries))
            .send()
            .await
            .map_err(error::of_request)
        {
            // The answers are in the order of the entries.
            Ok(answer) => {
                for (place, entry) in places.into_iter().zip(answer.entries.unwrap_or_default()) {
                    let result = match (entry.error_code, entry.event_id) {
                        (Some(code), _) => {
                            let is_theirs = matches!(
                                code.as_str(),
                                "InternalFailure" | "InternalException" | "ThrottlingException"
                            );
                            Err(error::of_entry(&code, &entry.error_message.unwrap_or_default(), !is_theirs))
                        }
                        (None, Some(id)) => Ok(Receipt::with_native_id(id)),
                        (None, None) => continue,
                    };
                    done.complete(place, result);
                }
                let unanswered =
                    Error::new(ErrorKind::Internal, "AWS answered the request, but not for this message");
                done.fail_rest(&unanswered.with_retry(Retry::Uncertain));
            }
            Err(error) => done.fail_rest(&error),
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("bus", &self.destination.bus).finish_non_exhaustive()
    }
}
