//! The instruments of the messaging conventions (semantic-conventions 1.44), through whatever meter provider the
//! application installed before it opened the publisher or consumer.

use std::time::Duration;

use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};
use tokio::time::Instant;

use crate::capabilities::Capabilities;
use crate::driver::Endpoint;
use crate::error::Error;
use crate::trace::{attribute, error_type};

/// Boundaries that the convention asks for, in seconds.
const BOUNDARIES: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The instruments of one publisher or consumer, with the attributes that all its points share.
pub(crate) struct Instruments {
    operation: Histogram<f64>,
    process: Histogram<f64>,
    sent: Counter<u64>,
    consumed: Counter<u64>,
    expired: Counter<u64>,
    publish: Vec<KeyValue>,
    receive: Vec<KeyValue>,
    /// By the operation's name, in the order of [`SETTLEMENTS`].
    settle: [Vec<KeyValue>; 4],
    processed: Vec<KeyValue>,
}

const SETTLEMENTS: [&str; 4] = ["ack", "retry", "reject", "release"];

impl Instruments {
    pub(crate) fn new(capabilities: &Capabilities, endpoint: &Endpoint) -> Self {
        let meter = global::meter(crate::trace::SCOPE);
        let seconds = |name: &'static str, description: &'static str| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(description)
                .with_boundaries(BOUNDARIES.to_vec())
                .build()
        };
        let messages = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_unit("{message}").with_description(description).build()
        };
        let base = attribute::of_endpoint(capabilities, endpoint);
        let with = |operation| {
            let mut attributes = base.clone();
            attributes.push(KeyValue::new(attribute::OPERATION_NAME, operation));
            attributes
        };
        Self {
            operation: seconds(
                "messaging.client.operation.duration",
                "Duration of messaging operation initiated by a producer or consumer client.",
            ),
            process: seconds("messaging.process.duration", "Duration of processing operation."),
            sent: messages(
                "messaging.client.sent.messages",
                "Number of messages producer attempted to send to the broker.",
            ),
            consumed: messages(
                "messaging.client.consumed.messages",
                "Number of messages that were delivered to the application.",
            ),
            expired: messages(
                "throughline.consumer.expired.messages",
                "Number of messages that had expired before they could be handed to the application.",
            ),
            publish: with("publish"),
            receive: with("receive"),
            settle: SETTLEMENTS.map(with),
            processed: with("process"),
        }
    }

    /// Messages that were answered together: when each was sent, and how it failed.
    pub(crate) fn sent<'a>(
        &self,
        answered: Instant,
        messages: impl Iterator<Item = (Instant, Option<&'a Error>)>,
    ) {
        let mut accepted = 0;
        // Those of one batch were sent together.
        let (mut since, mut took) = (answered, 0.0);
        for (sent, error) in messages {
            if sent != since {
                (since, took) = (sent, (answered - sent).as_secs_f64());
            }
            match error {
                None => {
                    accepted += 1;
                    self.operation.record(took, &self.publish);
                }
                Some(error) => {
                    let attributes = with_error(&self.publish, error);
                    self.operation.record(took, &attributes);
                    self.sent.add(1, &attributes);
                }
            }
        }
        if accepted > 0 {
            self.sent.add(accepted, &self.publish);
        }
    }

    pub(crate) fn received(&self, messages: usize, took: Duration, error: Option<&Error>) {
        let failed;
        let attributes = match error {
            None => &self.receive,
            Some(error) => {
                failed = with_error(&self.receive, error);
                &failed
            }
        };
        self.operation.record(took.as_secs_f64(), attributes);
        self.consumed.add(messages as u64, attributes);
    }

    /// Settlements that took equally long: what each is called, and how it failed.
    pub(crate) fn settled<'a>(
        &self,
        took: Duration,
        settlements: impl Iterator<Item = (&'static str, Option<&'a Error>)>,
    ) {
        let took = took.as_secs_f64();
        for (name, error) in settlements {
            let attributes =
                SETTLEMENTS.iter().zip(&self.settle).find(|(settlement, _)| **settlement == name);
            let attributes = attributes.map_or(self.processed.as_slice(), |(_, attributes)| attributes);
            match error {
                None => self.operation.record(took, attributes),
                Some(error) => self.operation.record(took, &with_error(attributes, error)),
            }
        }
    }

    pub(crate) fn expired(&self) {
        self.expired.add(1, &self.receive);
    }

    pub(crate) fn processed(&self, took: Duration, error: Option<&str>) {
        match error {
            None => self.process.record(took.as_secs_f64(), &self.processed),
            Some(error) => {
                let mut attributes = self.processed.clone();
                attributes.push(KeyValue::new(attribute::ERROR_TYPE, error.to_owned()));
                self.process.record(took.as_secs_f64(), &attributes);
            }
        }
    }
}

fn with_error(attributes: &[KeyValue], error: &Error) -> Vec<KeyValue> {
    let mut all = attributes.to_vec();
    all.push(error_type(error));
    all
}
