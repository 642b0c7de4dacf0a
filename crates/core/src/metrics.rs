//! The instruments of the messaging conventions (semantic-conventions 1.44), through whatever meter provider the
//! application installed before it opened the publisher or consumer.

use std::time::Duration;

use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};

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
            publish: with("publish"),
            receive: with("receive"),
            settle: SETTLEMENTS.map(with),
            processed: with("process"),
        }
    }

    pub(crate) fn sent(&self, took: Duration, error: Option<&Error>) {
        Self::record(&self.operation, Some((&self.sent, 1)), &self.publish, took, error);
    }

    pub(crate) fn received(&self, messages: usize, took: Duration, error: Option<&Error>) {
        Self::record(&self.operation, Some((&self.consumed, messages as u64)), &self.receive, took, error);
    }

    pub(crate) fn settled(&self, name: &'static str, took: Duration, error: Option<&Error>) {
        let attributes = SETTLEMENTS.iter().zip(&self.settle).find(|(settlement, _)| **settlement == name);
        let attributes = attributes.map_or(self.processed.as_slice(), |(_, attributes)| attributes);
        Self::record(&self.operation, None, attributes, took, error);
    }

    pub(crate) fn processed(&self, took: Duration, error: Option<&'static str>) {
        match error {
            None => self.process.record(took.as_secs_f64(), &self.processed),
            Some(error) => {
                let mut attributes = self.processed.clone();
                attributes.push(KeyValue::new(attribute::ERROR_TYPE, error));
                self.process.record(took.as_secs_f64(), &attributes);
            }
        }
    }

    fn record(
        histogram: &Histogram<f64>,
        counter: Option<(&Counter<u64>, u64)>,
        attributes: &[KeyValue],
        took: Duration,
        error: Option<&Error>,
    ) {
        let with_error;
        let attributes = match error {
            None => attributes,
            Some(error) => {
                let mut all = attributes.to_vec();
                all.push(error_type(error));
                with_error = all;
                &with_error
            }
        };
        histogram.record(took.as_secs_f64(), attributes);
        if let Some((counter, count)) = counter {
            counter.add(count, attributes);
        }
    }
}
