//! What each transport can do: one table, which draws the checks, the docs and the README's matrix.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::carriage::{self, Carriage};
use crate::diagnosis::{optional_seconds, seconds};
use crate::error::{Error, ErrorKind, Result};

/// How far a transport supports something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The broker does it.
    Native,
    /// The adapter does it with the broker's means; the crate's docs say how, and what that costs.
    Emulated,
    /// It cannot be had: refused with `Unsupported`, or, for a field that only advises, carried with a warning.
    No,
}

/// Whether messages can be read without consuming them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Browse {
    /// Without a trace.
    Native,
    /// Delivery counts rise, or order changes.
    Disturbing,
    /// Not at all.
    No,
}

/// What `Ok` of a settlement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SettleMeaning {
    /// The broker has confirmed it.
    Confirmed,
    /// It was written to the connection; the broker does not answer.
    Written,
    /// It is recorded here and written a little later with others (see `ConsumeOptions::settle_linger`); lost with the
    /// process, which shows as a redelivery.
    Deferred,
}

/// How a message is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryMeans {
    /// The broker delivers the same message again; it cannot carry our history.
    InPlace,
    /// The message is published anew to the receiving queue, with its history.
    Republish,
}

/// How long a delivery is ours. In JSON `"none"`, `{"fixed": seconds}` or `{"renewable": seconds or null}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lease {
    /// For a time that can be extended, in all at most so long from the receipt (`None`: no maximum).
    Renewable(#[serde(serialize_with = "optional_seconds")] Option<Duration>),
    /// For a time that cannot be extended.
    Fixed(#[serde(serialize_with = "seconds")] Duration),
    /// Until settled, or until the connection is lost.
    None,
}

/// Who can reach what a transport holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Only this process; it dies with it.
    Process,
    /// Every process of this machine.
    Machine,
    /// Whoever reaches the broker.
    Network,
}

/// Whether several unresolved messages of one ordering key can be in flight without losing their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPipeline {
    /// They can: the broker or its client keeps the order even where one has to be sent again.
    Safe,
    /// A message that was sent may overtake an earlier one that failed.
    Unsafe,
}

/// Sizes and counts that a destination refuses to exceed. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// A message's payload, in bytes.
    pub payload_bytes: Option<usize>,
    /// All of a message's properties and headers, in bytes as encoded.
    pub header_bytes: Option<usize>,
    /// Messages in one publish call.
    pub batch_entries: usize,
    /// Bytes in one publish call, as the driver measures them.
    pub batch_bytes: Option<usize>,
    /// The longest delay of a send; in JSON, in seconds.
    #[serde(serialize_with = "optional_seconds")]
    pub delay: Option<Duration>,
}

impl Limits {
    /// No limit but a batch of 256, which bounds what one call can hold up.
    pub const NONE: Self =
        Self { payload_bytes: None, header_bytes: None, batch_entries: 256, batch_bytes: None, delay: None };
}

/// What a transport, or one destination of it, can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// The transport's name: its crate's folder, feature and environment prefix.
    pub transport: &'static str,
    /// The `messaging.system` attribute.
    pub system: &'static str,
    /// Who can reach what it holds.
    pub reach: Reach,
    /// Order within an ordering key, at the consumer.
    pub order: Level,
    /// A delay before the first delivery.
    pub delay: Level,
    /// A send of the same operation twice is delivered once.
    pub deduplication: Level,
    /// Higher priorities first.
    pub priority: Level,
    /// Expired messages are not delivered. `Emulated`: the portable consumer sees to it.
    pub expiry: Level,
    /// How often a message was delivered.
    pub delivery_count: Level,
    /// A rejected message goes to a dead-letter destination, with the reason.
    pub dead_letter: Level,
    /// Fan-out: each subscription gets every message.
    pub fan_out: Level,
    /// Publishing where nobody subscribes is told, as `Unroutable`. `No`: it is accepted, whether anybody will read it or not.
    pub unroutable: Level,
    /// Reading without consuming.
    pub browse: Browse,
    /// What `Ok` of a settlement means.
    pub settle: SettleMeaning,
    /// How a message is retried.
    pub retry: RetryMeans,
    /// How long a delivery is ours.
    pub lease: Lease,
    /// Whether messages of one key can be pipelined.
    pub key_pipeline: KeyPipeline,
    /// How many publish calls the portable publisher keeps running at once. 1 where a call returns as soon as its
    /// messages are written in order; more where it waits for the broker's answer.
    pub publish_calls: usize,
    /// Sizes and counts.
    pub limits: Limits,
    /// Where each part of a message is on the wire.
    #[serde(skip)]
    pub carriage: &'static Carriage,
}

impl Capabilities {
    /// Refuses a delay that the destination cannot do.
    pub fn check_delay(&self, delay: Duration) -> Result<()> {
        if delay.is_zero() {
            return Ok(());
        }
        if self.delay == Level::No {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{} cannot delay a message; publish it without a delay", self.transport),
            ));
        }
        match self.limits.delay {
            Some(max) if delay > max => Err(Error::limit(
                "the delay",
                humantime::format_duration(delay),
                humantime::format_duration(max),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a retry that the source cannot do: published again, over the longest delay; in place, later than a message
    /// can be held at all.
    pub fn check_retry(&self, after: Duration) -> Result<()> {
        let seconds = |duration: Duration| format!("{} s", duration.as_secs());
        match (self.retry, self.lease) {
            (RetryMeans::Republish, _) => self.check_delay(after),
            (RetryMeans::InPlace, Lease::Renewable(Some(most))) if after > most => {
                Err(Error::limit("the delay of the retry", seconds(after), seconds(most)))
            }
            (RetryMeans::InPlace, _) => Ok(()),
        }
    }

    /// Refuses a payload larger than the destination takes.
    pub fn check_payload(&self, bytes: usize) -> Result<()> {
        match self.limits.payload_bytes {
            Some(max) if bytes > max => {
                Err(Error::limit("the payload", format!("{bytes} bytes"), format!("{max} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// What the README's matrix shows of this transport: label and value, in a fixed order.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let bytes = |limit: Option<usize>| limit.map_or("no limit".to_owned(), |n| format!("{n} B"));
        let lease = match self.lease {
            Lease::Renewable(None) => "renewable".to_owned(),
            Lease::Renewable(Some(max)) => format!("renewable, {} in all", humantime::format_duration(max)),
            Lease::Fixed(time) => format!("fixed, {}", humantime::format_duration(time)),
            Lease::None => "none".to_owned(),
        };
        let key_order = match self.key_pipeline {
            KeyPipeline::Safe => "safe",
            KeyPipeline::Unsafe => "may overtake a failed one",
        };
        vec![
            ("reach", format!("{:?}", self.reach).to_lowercase()),
            ("order per key", self.order.to_string()),
            ("fan-out", self.fan_out.to_string()),
            ("nobody subscribes: told", self.unroutable.to_string()),
            ("delay", self.delay.to_string()),
            ("deduplication", self.deduplication.to_string()),
            ("priority", self.priority.to_string()),
            ("expiry", self.expiry.to_string()),
            ("delivery count", self.delivery_count.to_string()),
            ("dead letter with reason", self.dead_letter.to_string()),
            ("browse", format!("{:?}", self.browse).to_lowercase()),
            ("`Ok` of a settlement", format!("{:?}", self.settle).to_lowercase()),
            (
                "retry",
                match self.retry {
                    RetryMeans::InPlace => "in place".to_owned(),
                    RetryMeans::Republish => "republish".to_owned(),
                },
            ),
            ("lease", lease),
            ("pipelined messages of a key", key_order.to_owned()),
            ("payload limit", bytes(self.limits.payload_bytes)),
            ("properties and headers limit", bytes(self.limits.header_bytes)),
            (
                "longest delay",
                self.limits
                    .delay
                    .map_or("no limit".to_owned(), |d| humantime::format_duration(d).to_string()),
            ),
        ]
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Emulated => "emulated",
            Self::No => "no",
        })
    }
}

/// The memory transport: it carries everything natively and is the reference.
pub const MEMORY: Capabilities = Capabilities {
    transport: "memory",
    system: "memory",
    reach: Reach::Process,
    order: Level::Native,
    delay: Level::Native,
    deduplication: Level::Native,
    priority: Level::Native,
    expiry: Level::Native,
    delivery_count: Level::Native,
    dead_letter: Level::Native,
    fan_out: Level::Native,
    unroutable: Level::Native,
    browse: Browse::Native,
    settle: SettleMeaning::Confirmed,
    retry: RetryMeans::Republish,
    lease: Lease::Renewable(None),
    key_pipeline: KeyPipeline::Safe,
    publish_calls: 1,
    limits: Limits::NONE,
    carriage: &carriage::MEMORY,
};

/// SQLite: one file, shared by the processes of a machine.
pub const SQLITE: Capabilities = Capabilities {
    transport: "sqlite",
    system: "sqlite",
    reach: Reach::Machine,
    order: Level::Native,
    delay: Level::Native,
    deduplication: Level::Native,
    priority: Level::Native,
    expiry: Level::Native,
    delivery_count: Level::Native,
    dead_letter: Level::Native,
    fan_out: Level::Native,
    unroutable: Level::Native,
    browse: Browse::Native,
    settle: SettleMeaning::Confirmed,
    // In its place, with its history.
    retry: RetryMeans::Republish,
    lease: Lease::Renewable(None),
    // A call returns with its transaction; the next one comes after it.
    key_pipeline: KeyPipeline::Safe,
    publish_calls: 1,
    limits: Limits {
        // Ours: SQLite takes rows of 10^9 bytes (SQLITE_MAX_LENGTH), but whatever else waits for the file waits for each.
        payload_bytes: Some(16 * 1024 * 1024),
        header_bytes: None,
        batch_entries: 1000,
        batch_bytes: Some(4 * 1024 * 1024),
        delay: None,
    },
    carriage: &carriage::SQLITE,
};

/// RabbitMQ, with quorum queues, over AMQP 0.9.1.
pub const RABBITMQ: Capabilities = Capabilities {
    transport: "rabbitmq",
    system: "rabbitmq",
    reach: Reach::Network,
    // Queue order, per consumer; one active consumer a queue keeps it among several.
    order: Level::Emulated,
    // Time-to-live queues that dead-letter back.
    delay: Level::Emulated,
    deduplication: Level::No,
    // Classic queues with x-max-priority; quorum queues have two levels since 4.0.
    priority: Level::Emulated,
    expiry: Level::Native,
    // x-delivery-count, from the second delivery on, quorum queues only.
    delivery_count: Level::Native,
    // A confirmed publish with the reason, then the ack.
    dead_letter: Level::Emulated,
    fan_out: Level::Native,
    // The broker returns what it can route to no queue.
    unroutable: Level::Native,
    browse: Browse::Disturbing,
    settle: SettleMeaning::Deferred,
    retry: RetryMeans::Republish,
    // consumer_timeout, 30 minutes by default: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
    lease: Lease::Fixed(Duration::from_secs(30 * 60)),
    key_pipeline: KeyPipeline::Unsafe,
    publish_calls: 1,
    limits: Limits {
        // max_message_size, 16 MiB by default since 4.0: https://www.rabbitmq.com/docs/configure
        payload_bytes: Some(16 * 1024 * 1024),
        // frame_max 131,072 less the frame's own 8 bytes: a header frame cannot be split.
        header_bytes: Some(131_064),
        batch_entries: 256,
        batch_bytes: None,
        // The highest tier of the delay queues.
        delay: Some(Duration::from_secs(24 * 60 * 60)),
    },
    carriage: &carriage::RABBITMQ,
};

/// SQS, a standard queue. [`SQS_FIFO`] is what a FIFO queue has in its place.
pub const SQS: Capabilities = Capabilities {
    transport: "sqs",
    system: "aws_sqs",
    reach: Reach::Network,
    // Best effort only, and a message may come twice.
    order: Level::No,
    delay: Level::Native,
    deduplication: Level::No,
    priority: Level::No,
    // Checked by the portable consumer.
    expiry: Level::Emulated,
    // ApproximateReceiveCount.
    delivery_count: Level::Native,
    // Sent to the dead-letter queue with the reason, then deleted.
    dead_letter: Level::Emulated,
    fan_out: Level::No,
    // Told by a look at subscriptions or rules: only SNS and EventBridge have such a thing.
    unroutable: Level::Native,
    // Received and given back: receive counts rise.
    browse: Browse::Disturbing,
    // Deletes go in batches of ten.
    settle: SettleMeaning::Deferred,
    // By the visibility timeout.
    retry: RetryMeans::InPlace,
    // https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
    lease: Lease::Renewable(Some(Duration::from_secs(12 * 60 * 60))),
    key_pipeline: KeyPipeline::Unsafe,
    publish_calls: 8,
    // https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
    limits: Limits {
        // 1 MiB, attributes included, less 1 KiB for those that we add; the queue's own MaximumMessageSize may be less.
        payload_bytes: Some(1_047_552),
        header_bytes: None,
        batch_entries: 10,
        batch_bytes: Some(1_048_576),
        delay: Some(Duration::from_secs(15 * 60)),
    },
    carriage: &carriage::SQS,
};

/// SQS, a FIFO queue: order within a message group, and deduplication for five minutes, but no delay of one message.
pub const SQS_FIFO: Capabilities = Capabilities {
    order: Level::Native,
    delay: Level::No,
    deduplication: Level::Native,
    limits: Limits { delay: None, ..SQS.limits },
    carriage: &carriage::SQS_FIFO,
    ..SQS
};

/// SNS, a standard topic, consumed through a subscribed queue. [`SNS_FIFO`] is what a FIFO topic has in its place.
pub const SNS: Capabilities = Capabilities {
    transport: "sns",
    system: "aws.sns",
    fan_out: Level::Native,
    delay: Level::No,
    // https://docs.aws.amazon.com/sns/latest/dg/sns-large-payload-raw-message-delivery.html
    limits: Limits {
        // 256 KiB, attributes included, less 1 KiB for those that we add; a topic's MaximumMessageSize may be set higher.
        payload_bytes: Some(261_120),
        batch_bytes: Some(262_144),
        delay: None,
        ..SQS.limits
    },
    ..SQS
};

/// SNS, a FIFO topic with FIFO queues: order within a message group, and deduplication for five minutes.
pub const SNS_FIFO: Capabilities =
    Capabilities { order: Level::Native, deduplication: Level::Native, carriage: &carriage::SQS_FIFO, ..SNS };

/// EventBridge, consumed through a rule's target queue.
pub const EVENTBRIDGE: Capabilities = Capabilities {
    transport: "eventbridge",
    system: "aws.eventbridge",
    fan_out: Level::Native,
    delay: Level::No,
    // https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-putevents.html
    limits: Limits {
        // Source, detail type and detail together, less than 1 MB a request; 1 KiB of it for what we add.
        payload_bytes: Some(998_976),
        batch_bytes: Some(1_000_000),
        delay: None,
        ..SQS.limits
    },
    carriage: &carriage::EVENTBRIDGE,
    ..SQS
};

/// Apache Kafka, with consumer groups.
pub const KAFKA: Capabilities = Capabilities {
    transport: "kafka",
    system: "kafka",
    reach: Reach::Network,
    // A key's messages are in one partition, which is a log; what was handed out before one of them is retried is not
    // called back.
    order: Level::Emulated,
    delay: Level::No,
    // The idempotent producer drops its own resends only, not a second publish of the same operation.
    deduplication: Level::No,
    priority: Level::No,
    // Checked by the consumer.
    expiry: Level::Emulated,
    // The broker keeps a position, not a count; attempts are counted by our own header.
    delivery_count: Level::No,
    // A publish to the dead-letter topic with the reason, then the commit.
    dead_letter: Level::Emulated,
    fan_out: Level::Native,
    // A topic is a log: it keeps what a group may read that does not exist yet.
    unroutable: Level::No,
    browse: Browse::Native,
    settle: SettleMeaning::Deferred,
    retry: RetryMeans::InPlace,
    lease: Lease::None,
    // The idempotent producer keeps a partition's order over its resends.
    key_pipeline: KeyPipeline::Safe,
    publish_calls: 1,
    limits: Limits {
        // max.message.bytes, 1,048,588 by default, headers and key included: https://kafka.apache.org/documentation/#topicconfigs_max.message.bytes
        // Less what key and headers are given of it.
        payload_bytes: Some(1_048_588 - 2_048),
        header_bytes: None,
        // What accumulates while a request is under way goes with the next: as many as may be unanswered by default.
        batch_entries: 1_000,
        batch_bytes: None,
        delay: None,
    },
    carriage: &carriage::KAFKA,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_is_refused_and_a_limit_is_named() {
        let mut capabilities = RABBITMQ;
        let day = Duration::from_secs(86_400);
        assert!(capabilities.check_delay(day).is_ok());
        let error = capabilities.check_delay(day * 2).unwrap_err();
        assert_eq!(error.to_string(), "the delay is 2days, the limit is 1day");
        capabilities.delay = Level::No;
        assert_eq!(capabilities.check_delay(day).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(capabilities.check_delay(Duration::ZERO).is_ok());
        let error = capabilities.check_payload(16_777_217).unwrap_err();
        assert_eq!(error.to_string(), "the payload is 16777217 bytes, the limit is 16777216 bytes");
    }
}
