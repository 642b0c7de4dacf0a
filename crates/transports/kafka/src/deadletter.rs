//! What a dead letter says of itself: in our own headers, and, read always and written on request, in those of Spring
//! Kafka's `DeadLetterPublishingRecoverer` and of Kafka Connect's sinks.

use rdkafka::Timestamp as Stamp;
use throughline_core::driver::wire;
use throughline_core::{Failure, HeaderValue, Headers, History};

use crate::codec::{DeadLetter, Sink};
use crate::config::Style;

/// Where a dead letter was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) stamp: Stamp,
    pub(crate) group: String,
}

/// <https://docs.spring.io/spring-kafka/reference/kafka/annotation-error-handling.html#dead-letters>
mod spring {
    pub(super) const TOPIC: &str = "kafka_dlt-original-topic";
    /// Four bytes, big-endian.
    pub(super) const PARTITION: &str = "kafka_dlt-original-partition";
    /// Eight bytes, big-endian.
    pub(super) const OFFSET: &str = "kafka_dlt-original-offset";
    /// Eight bytes, big-endian: ms since the epoch.
    pub(super) const TIMESTAMP: &str = "kafka_dlt-original-timestamp";
    pub(super) const TIMESTAMP_TYPE: &str = "kafka_dlt-original-timestamp-type";
    pub(super) const GROUP: &str = "kafka_dlt-original-consumer-group";
    pub(super) const CLASS: &str = "kafka_dlt-exception-fqcn";
    pub(super) const MESSAGE: &str = "kafka_dlt-exception-message";
}

/// <https://kafka.apache.org/documentation/#connect_errorreporting>: all as text.
mod connect {
    pub(super) const TOPIC: &str = "__connect.errors.topic";
    pub(super) const PARTITION: &str = "__connect.errors.partition";
    pub(super) const OFFSET: &str = "__connect.errors.offset";
    pub(super) const STAGE: &str = "__connect.errors.stage";
    pub(super) const CLASS: &str = "__connect.errors.exception.class.name";
    pub(super) const MESSAGE: &str = "__connect.errors.exception.message";
    /// The stage of Connect in which a sink's own work fails.
    pub(super) const TASK_PUT: &str = "TASK_PUT";
}

/// Writes what a dead letter says of itself. A foreign name that the message has already is left as it is: the message
/// was a dead letter before, and that is its first one.
pub(crate) fn write(
    letter: &DeadLetter<'_>,
    history: Option<&History>,
    present: &Headers,
    sink: &mut impl Sink,
) {
    let origin = letter.origin;
    let last = history.and_then(History::last);
    let reason = last.map_or_else(|| "rejected".to_owned(), ToString::to_string);
    sink.header(wire::DEAD_LETTER_SOURCE.as_bytes(), Some(origin.topic.as_bytes()));
    sink.header(wire::DEAD_LETTER_REASON.as_bytes(), Some(reason.as_bytes()));
    let class = last.map_or("rejected", |failure| failure.error.as_str());
    let message = last.map_or("", |failure| failure.message.as_str());
    let mut add = |name: &str, value: &[u8]| {
        if present.get(name).is_none() {
            sink.header(name.as_bytes(), Some(value));
        }
    };
    match letter.style {
        Some(Style::Spring) => {
            add(spring::TOPIC, origin.topic.as_bytes());
            add(spring::PARTITION, &origin.partition.to_be_bytes());
            add(spring::OFFSET, &origin.offset.to_be_bytes());
            add(spring::TIMESTAMP, &origin.stamp.to_millis().unwrap_or(-1).to_be_bytes());
            let kind = match origin.stamp {
                Stamp::CreateTime(_) => "CreateTime",
                Stamp::LogAppendTime(_) => "LogAppendTime",
                Stamp::NotAvailable => "NoTimestampType",
            };
            add(spring::TIMESTAMP_TYPE, kind.as_bytes());
            add(spring::GROUP, origin.group.as_bytes());
            add(spring::CLASS, class.as_bytes());
            add(spring::MESSAGE, message.as_bytes());
        }
        Some(Style::Connect) => {
            add(connect::TOPIC, origin.topic.as_bytes());
            add(connect::PARTITION, origin.partition.to_string().as_bytes());
            add(connect::OFFSET, origin.offset.to_string().as_bytes());
            add(connect::STAGE, connect::TASK_PUT.as_bytes());
            add(connect::CLASS, class.as_bytes());
            add(connect::MESSAGE, message.as_bytes());
        }
        None => {}
    }
}

/// The failure that a foreign dead letter tells of. Earlier ones it does not know.
pub(crate) fn read(headers: &Headers) -> Option<History> {
    let (class, message) = [(spring::CLASS, spring::MESSAGE), (connect::CLASS, connect::MESSAGE)]
        .into_iter()
        .find_map(|(class, message)| Some((text(headers, class)?, text(headers, message))))?;
    let mut failure = Failure::new(class).message(message.unwrap_or_default());
    failure.attempt = 1;
    let mut history = History::default();
    history.push(failure);
    history.set_partial();
    Some(history)
}

fn text<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    match headers.get(name) {
        Some(HeaderValue::Text(text)) => Some(text),
        _ => None,
    }
}
