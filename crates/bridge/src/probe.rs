//! Messages with awkward parts through the real pair: what comes out.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use throughline::driver::Sibling;
use throughline::{
    Address, Bus, ConsumeOptions, Envelope, Error, ErrorKind, HeaderValue, Result, Timestamp, registered,
};

use crate::bridge::Bridge;
use crate::compare::differences;

/// How long the whole of it may take; a consumer that joins a group of Kafka takes seconds.
const AT_MOST: Duration = Duration::from_secs(90);

/// What came out of a probe.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Probe {
    /// Each message that was sent, and what became of it.
    pub messages: Vec<Probed>,
    /// What was made for it and could not be deleted.
    pub left_behind: Vec<String>,
}

/// What became of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// What is awkward about it.
    pub what: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: ProbeOutcome,
}

/// How a message of a probe ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// It came as it left.
    Same,
    /// It came, and these parts of it are not as they left.
    Changed {
        /// The parts, by name.
        parts: Vec<String>,
    },
    /// The sink does not take it.
    Refused {
        /// What it said.
        reason: String,
    },
    /// The source does not take it, so that it could not be tried.
    NotTried {
        /// What the source said.
        reason: String,
    },
    /// It was accepted by both, and did not come.
    Missing,
}

impl Probe {
    /// Whether the sink refused one, or one did not come.
    pub fn is_clean(&self) -> bool {
        let bad =
            |probed: &Probed| matches!(probed.outcome, ProbeOutcome::Refused { .. } | ProbeOutcome::Missing);
        !self.messages.iter().any(bad)
    }

    /// Sends messages with awkward parts from the source's broker to the sink's, through a bridge, between destinations that
    /// are made for it beside those of the two buses and deleted afterwards.
    ///
    /// Errors: `Unsupported` where an address gives no such place; what creating, publishing and consuming fail with.
    pub async fn run(from: &Bus, to: &Bus) -> Result<Self> {
        let name = format!("tlp-{:x}", Timestamp::now().as_millis());
        let places = Places {
            from: beside(from, &format!("{name}-from")).await?,
            to: beside(to, &format!("{name}-to")).await?,
            refused: beside(from, &format!("{name}-refused")).await?,
        };
        let probed = match places.create().await {
            Ok(()) => places.probe().await,
            Err(error) => Err(error),
        };
        let left_behind = places.remove().await;
        Ok(Self { messages: probed?, left_behind })
    }
}

/// What is made for a probe.
struct Places {
    from: Bus,
    to: Bus,
    refused: Bus,
}

/// A bus to a queue of its own, on the same broker.
async fn beside(bus: &Bus, name: &str) -> Result<Bus> {
    let address: Option<Address> = (registered(bus.address())?.sibling)(bus.address(), &Sibling::queue(name));
    let none = || {
        let text = "the address leaves no place for a probe beside it";
        Error::new(ErrorKind::Unsupported, text).at("probe", bus.address())
    };
    Bus::connect_to(address.ok_or_else(none)?).await
}

impl Places {
    fn all(&self) -> [&Bus; 3] {
        [&self.from, &self.to, &self.refused]
    }

    async fn create(&self) -> Result<()> {
        for bus in self.all() {
            bus.create("").await?;
        }
        Ok(())
    }

    async fn remove(&self) -> Vec<String> {
        let mut left = Vec::new();
        for bus in self.all() {
            left.extend(bus.delete("").await.err().map(|error| error.to_string()));
            left.extend(bus.close().await.err().map(|error| error.to_string()));
        }
        left
    }

    async fn probe(&self) -> Result<Vec<Probed>> {
        let mut outcomes: HashMap<String, ProbeOutcome> = HashMap::new();
        let messages = messages();
        let publisher = self.from.publisher().await?;
        for (_, envelope) in &messages {
            let outcome = match publisher.publish(envelope.clone()).await {
                Ok(_) => ProbeOutcome::Missing,
                Err(error) => ProbeOutcome::NotTried { reason: error.to_string() },
            };
            outcomes.insert(envelope.id.clone(), outcome);
        }
        publisher.close().await?;
        let sent = outcomes.values().filter(|outcome| **outcome == ProbeOutcome::Missing).count();
        let bridge = Bridge::new(&self.from, &self.to).reject(&self.refused).max(sent as u64);
        let report = bridge.run(tokio::time::sleep(AT_MOST)).await?;
        for rejected in &report.rejected {
            let reason = rejected.reason.clone();
            outcomes.insert(rejected.id.clone(), ProbeOutcome::Refused { reason });
        }
        let moved = usize::try_from(report.totals.moved).unwrap_or(usize::MAX);
        within(AT_MOST, self.collect(moved, &messages, &mut outcomes)).await?;
        let probed = messages.into_iter().map(|(what, envelope)| Probed {
            what,
            outcome: outcomes.remove(&envelope.id).unwrap_or(ProbeOutcome::Missing),
        });
        Ok(probed.collect())
    }

    /// Takes what has come, and compares it with what was sent.
    async fn collect(
        &self,
        count: usize,
        messages: &[(&'static str, Arc<Envelope>)],
        outcomes: &mut HashMap<String, ProbeOutcome>,
    ) -> Result<()> {
        let mut consumer = self.to.consumer_of("", ConsumeOptions::default()).await?;
        for _ in 0..count {
            let Some(delivery) = consumer.next().await.transpose()? else { break };
            let sent = messages.iter().find(|(_, envelope)| envelope.id == delivery.id());
            if let Some((_, sent)) = sent {
                let parts = differences(sent, delivery.envelope());
                let same = parts.is_empty();
                let outcome = if same { ProbeOutcome::Same } else { ProbeOutcome::Changed { parts } };
                outcomes.insert(sent.id.clone(), outcome);
            }
            delivery.ack().await?;
        }
        consumer.close().await.map(drop)
    }
}

/// What does not come in time is missing.
async fn within(time: Duration, work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::time::timeout(time, work).await.unwrap_or(Ok(()))
}

/// What is awkward about messages, and one each.
fn messages() -> Vec<(&'static str, Arc<Envelope>)> {
    let plain = || Envelope::builder("probe").payload("probe");
    let headers = |name: fn(usize) -> String, count| (0..count).map(move |n| (name(n), "value"));
    vec![
        (
            "every field",
            plain()
                .source("throughline")
                .key("key")
                .content_type("text/plain")
                .content_encoding("identity")
                .correlation_id("correlation")
                .reply_to("reply")
                .expires_in(Duration::from_secs(86_400))
                .priority(1)
                .idempotency_key("idempotency"),
        ),
        (
            "trace headers",
            plain()
                .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03")
                .header("tracestate", "vendor=value")
                .header("baggage", "user=probe"),
        ),
        ("a payload of bytes", plain().payload(vec![0, 159, 146, 150])),
        ("an empty payload", plain().payload("")),
        ("no payload", plain().tombstone()),
        ("a payload of 200 KiB", plain().payload(vec![b'x'; 200 * 1024])),
        ("a key of bytes", plain().key(vec![0, 255, 254])),
        ("a long key", plain().key("k".repeat(300))),
        ("20 headers", plain().headers(headers(|n| format!("header-{n}"), 20))),
        ("200 headers", plain().headers(headers(|n| format!("header-{n}"), 200))),
        ("a header of bytes", plain().header("bytes", vec![0, 159, 146, 150])),
        ("a null header", plain().header("null", HeaderValue::Null)),
        ("an empty header", plain().header("empty", "")),
        ("a repeated header", plain().header("twice", "1").header("twice", "2")),
        ("header names that differ by case", plain().header("Case", "1").header("case", "2")),
        ("a non-ASCII header", plain().header("grüße", "wörld")),
        ("a header name with a space", plain().header("with space", "1")),
        ("a header name of 300 bytes", plain().header("n".repeat(300), "1")),
        ("a header of 20 KiB", plain().header("long", "v".repeat(20 * 1024))),
        ("a header with control characters", plain().header("control", "a\nb\u{1}")),
        (
            "another broker's integer",
            plain().header("integer", HeaderValue::Typed { kind: "amqp:i32".into(), text: "7".into() }),
        ),
        ("an id of spaces and slashes", plain().id(format!("order 7/{}", Timestamp::now().as_millis()))),
    ]
    .into_iter()
    .map(|(what, envelope)| (what, Arc::new(envelope.build())))
    .collect()
}
