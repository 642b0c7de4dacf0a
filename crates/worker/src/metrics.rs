//! What the worker counts, through whatever meter provider the application installed before it ran. How long handlers take
//! is core's `messaging.process.duration`.

use std::sync::{Arc, Weak};

use opentelemetry::metrics::{Counter, ObservableUpDownCounter};
use opentelemetry::{KeyValue, global};
use throughline_core::{Failure, Result};

use crate::health::Stats;

const OUTCOME: &str = "throughline.worker.outcome";
const STATE: &str = "throughline.worker.state";
const DEPENDENCY: &str = "throughline.failure.dependency";
const ERROR_TYPE: &str = "error.type";

/// The instruments of one worker, with the attributes of its source.
pub(crate) struct Metrics {
    handled: Counter<u64>,
    source: Vec<KeyValue>,
    done: Vec<KeyValue>,
    /// Dropped with the worker: what it observes is gone then.
    _in_flight: ObservableUpDownCounter<i64>,
}

/// How a message left the worker, or left it for a while.
#[derive(Clone, Copy)]
pub(crate) enum Outcome<'a> {
    Done,
    Duplicate,
    Postponed,
    Released,
    Retried(&'a Failure),
    DeadLettered(&'a Failure),
}

impl Metrics {
    pub(crate) fn new(source: Vec<KeyValue>, stats: &Arc<Stats>) -> Self {
        let meter = global::meter("throughline");
        let handled = meter
            .u64_counter("throughline.worker.messages")
            .with_unit("{message}")
            .with_description("Number of messages that the worker was done with, by outcome.")
            .build();
        let (of, stats): (_, Weak<Stats>) = (source.clone(), Arc::downgrade(stats));
        let in_flight = meter
            .i64_observable_up_down_counter("throughline.worker.in_flight")
            .with_unit("{message}")
            .with_description("Number of messages that the worker is at, as of the last second, by state.")
            .with_callback(move |observer| {
                let Some(stats) = stats.upgrade() else { return };
                for (state, count) in [("running", stats.running()), ("held", stats.held())] {
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    observer.observe(count, &with(&of, [KeyValue::new(STATE, state)]));
                }
            })
            .build();
        let done = with(&source, [KeyValue::new(OUTCOME, "done")]);
        Self { handled, source, done, _in_flight: in_flight }
    }

    /// Counts a message whose settlement was made.
    pub(crate) fn count(&self, outcome: Outcome<'_>, settled: &Result<()>) {
        if settled.is_err() {
            return;
        }
        let (name, failure) = match outcome {
            Outcome::Done => return self.handled.add(1, &self.done),
            Outcome::Duplicate => ("duplicate", None),
            Outcome::Postponed => ("postponed", None),
            Outcome::Released => ("released", None),
            Outcome::Retried(failure) => ("retried", Some(failure)),
            Outcome::DeadLettered(failure) => ("dead_lettered", Some(failure)),
        };
        let mut attributes = with(&self.source, [KeyValue::new(OUTCOME, name)]);
        if let Some(failure) = failure {
            attributes.push(KeyValue::new(ERROR_TYPE, failure.error.clone()));
            let dependency = failure.dependency.clone();
            attributes.extend(dependency.map(|dependency| KeyValue::new(DEPENDENCY, dependency)));
        }
        self.handled.add(1, &attributes);
    }
}

fn with<const N: usize>(source: &[KeyValue], more: [KeyValue; N]) -> Vec<KeyValue> {
    source.iter().cloned().chain(more).collect()
}
