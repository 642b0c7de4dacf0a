//! What a bridge will do with messages, told before any is sent.

use serde::Serialize;
use throughline::capabilities::{Browse, Capabilities, Lease, Level, SettleMeaning};
use throughline::carriage::Carried;
use throughline::{Bus, DiagnoseOptions, Result};

/// What becomes of a part of a message, or of something that the source promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// As it was, at the broker's own place for it.
    Kept,
    /// As it was, under a name of ours that other programs may look for.
    Renamed,
    /// In another form, from which a consumer of Throughline reads it back.
    Encoded,
    /// In the packed attribute, from which a consumer of Throughline reads it back.
    Spilled,
    /// Done with the broker's means, or by the consumer.
    Emulated,
    /// Carried along, and without effect.
    NoEffect,
    /// Not taken by the sink: it goes to the reject address, or stops the bridge.
    Refused,
}

/// One line of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it is of: `ordering key`, `payload size`.
    pub what: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// Where it is afterwards, or why.
    pub detail: String,
}

/// What a bridge will do, drawn from the tables of both transports' capabilities. A consumer of Throughline gets every
/// part of a message that the sink takes as it was; the plan says what other programs see.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The source's address, without secrets.
    pub from: String,
    /// The sink's.
    pub to: String,
    /// The source's transport.
    pub source: &'static str,
    /// The sink's.
    pub sink: &'static str,
    /// Each field of the envelope, each kind of payload and each class of headers.
    pub parts: Vec<Step>,
    /// Sizes that the sink limits more than the source does.
    pub limits: Vec<Step>,
    /// Order, expiry, duplicates and the like.
    pub behaviour: Vec<Step>,
    /// What could not be asked, so that the transport's best was taken for it.
    pub unchecked: Vec<String>,
}

impl Plan {
    /// The plan between the own destinations of two buses. It asks both brokers what their destinations are (FIFO or not,
    /// their limits) and disturbs nothing.
    ///
    /// Errors: what asking fails with. A missing destination is told in [`unchecked`](Self::unchecked).
    pub async fn between(from: &Bus, to: &Bus) -> Result<Self> {
        let options = DiagnoseOptions::default();
        let (source, sink) = (from.diagnose("", &options).await?, to.diagnose("", &options).await?);
        let mut unchecked = Vec::new();
        let mut known = |resolved: Option<Capabilities>, bus: &Bus, role: &str| {
            resolved.unwrap_or_else(|| {
                unchecked.push(format!(
                    "{}: is no {role}, or is missing; taken for the best of its transport (see `throughline doctor`)",
                    bus.address()
                ));
                bus.capabilities().clone()
            })
        };
        let (source, sink) =
            (known(source.consumer, from, "source"), known(sink.publisher, to, "destination"));
        Ok(Self {
            from: from.address().to_string(),
            to: to.address().to_string(),
            source: source.transport,
            sink: sink.transport,
            parts: parts(&sink),
            limits: limits(&source, &sink),
            behaviour: behaviour(&source, &sink),
            unchecked,
        })
    }

    /// Whether the sink refuses something that the source can hold.
    pub fn may_refuse(&self) -> bool {
        self.steps().any(|step| step.fate == Fate::Refused)
    }

    /// Every line.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.parts.iter().chain(&self.limits).chain(&self.behaviour)
    }
}

fn step(what: &'static str, fate: Fate, detail: impl Into<String>) -> Step {
    Step { what, fate, detail: detail.into() }
}

fn parts(sink: &Capabilities) -> Vec<Step> {
    let fate = |carried| match carried {
        Carried::Native(place) => (Fate::Kept, place.to_owned()),
        Carried::Named(name) => (Fate::Renamed, name.to_owned()),
        Carried::Encoded(how) => (Fate::Encoded, how.to_owned()),
        Carried::Packed => (Fate::Spilled, "tl-headers, in JSON".to_owned()),
    };
    let parts = sink.carriage.parts().into_iter();
    parts
        .map(|(what, carried)| {
            let (fate, detail) = fate(carried);
            Step { what, fate, detail }
        })
        .collect()
}

fn limits(source: &Capabilities, sink: &Capabilities) -> Vec<Step> {
    [
        ("payload size", source.limits.payload_bytes, sink.limits.payload_bytes, "payloads"),
        (
            "size of properties and headers",
            source.limits.header_bytes,
            sink.limits.header_bytes,
            "properties and headers",
        ),
    ]
    .into_iter()
    .map(|(what, source, sink, of)| match (source, sink) {
        (_, None) => step(what, Fate::Kept, "no limit of its own"),
        (Some(source), Some(sink)) if source <= sink => {
            step(what, Fate::Kept, format!("up to {sink} bytes; the source holds up to {source}"))
        }
        (_, Some(sink)) => step(what, Fate::Refused, format!("{of} over {sink} bytes")),
    })
    .collect()
}

fn behaviour(source: &Capabilities, sink: &Capabilities) -> Vec<Step> {
    let order = match (source.order, sink.order) {
        (Level::No, _) => step("order per key", Fate::NoEffect, "the source has none"),
        (_, Level::No) => step("order per key", Fate::NoEffect, "sent in order; the sink does not keep it"),
        (_, Level::Native) => step("order per key", Fate::Kept, "by the sink, for each key"),
        (_, Level::Emulated) => {
            step("order per key", Fate::Emulated, "as far as the sink's consumers keep it")
        }
    };
    let level = |what, level, kept: &str, emulated: &str, none: &str| match level {
        Level::Native => step(what, Fate::Kept, kept),
        Level::Emulated => step(what, Fate::Emulated, emulated),
        Level::No => step(what, Fate::NoEffect, none),
    };
    let read_back = match sink.browse {
        Browse::Native => "can be read back",
        Browse::Disturbing => "can be read back, and delivery counts rise by it",
        Browse::No => "cannot be read back",
    };
    let accounted = match source.browse {
        Browse::Native => "is read before the first message is taken",
        Browse::Disturbing | Browse::No => "is not read, only counted",
    };
    vec![
        order,
        level(
            "expiry takes effect",
            sink.expiry,
            "by the broker, at the same moment as before",
            "by the consumer, at the same moment as before",
            "carried only",
        ),
        level(
            "priority takes effect",
            sink.priority,
            "higher ones first",
            "where the queue was made for it",
            "carried only",
        ),
        level(
            "delivery count",
            sink.delivery_count,
            "begins anew; failed attempts go along",
            "begins anew; failed attempts go along",
            "not counted by the broker; failed attempts go along",
        ),
        level(
            "duplicates of a resend",
            sink.deduplication,
            "recognised by the sink",
            "recognised by the sink, within its window",
            "sent again only where nobody knows what became of the first; counted",
        ),
        level(
            "nobody subscribes",
            sink.unroutable,
            "told, and stops the bridge",
            "told, and stops the bridge",
            "not told: the sink accepts it, and keeps it or not by its own rules",
        ),
        step(
            "a delay that is not over",
            Fate::Kept,
            "the message stays in the source until it is; --until-empty waits for it where the source counts it",
        ),
        if source.settle == SettleMeaning::Confirmed || source.lease == Lease::None {
            step(
                "--until-empty",
                Fate::Kept,
                "the source counts what is left; a log, up to where it ends at the start",
            )
        } else {
            step(
                "--until-empty",
                Fate::Emulated,
                "the source estimates: it is empty after three looks at zero",
            )
        },
        step("--verify, at the source", Fate::Kept, accounted),
        step("--verify, at the sink", Fate::Kept, read_back),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use throughline::capabilities::{
        EVENTBRIDGE, KAFKA, MEMORY, RABBITMQ, SNS, SNS_FIFO, SQLITE, SQS, SQS_FIFO,
    };

    fn fate(steps: &[Step], what: &str) -> Fate {
        steps.iter().find(|step| step.what == what).unwrap().fate
    }

    #[test]
    fn a_smaller_limit_refuses_and_a_larger_one_does_not() {
        let refuses =
            |source: &Capabilities, sink: &Capabilities| fate(&limits(source, sink), "payload size");
        assert_eq!(refuses(&RABBITMQ, &SQS), Fate::Refused);
        assert_eq!(refuses(&SQS, &RABBITMQ), Fate::Kept);
        assert_eq!(refuses(&MEMORY, &SQLITE), Fate::Refused);
        assert_eq!(refuses(&SQLITE, &MEMORY), Fate::Kept);
        assert_eq!(fate(&limits(&KAFKA, &RABBITMQ), "size of properties and headers"), Fate::Refused);
    }

    #[test]
    fn order_is_told_for_every_pair() {
        let order =
            |source: &Capabilities, sink: &Capabilities| fate(&behaviour(source, sink), "order per key");
        assert_eq!(order(&KAFKA, &SQS), Fate::NoEffect);
        assert_eq!(order(&SQS, &KAFKA), Fate::NoEffect);
        assert_eq!(order(&KAFKA, &SQS_FIFO), Fate::Kept);
        assert_eq!(order(&SQS_FIFO, &KAFKA), Fate::Emulated);
    }

    #[test]
    fn every_transport_says_where_every_part_is() {
        for sink in [MEMORY, SQLITE, RABBITMQ, KAFKA, SQS, SQS_FIFO, SNS, SNS_FIFO, EVENTBRIDGE] {
            let parts = parts(&sink);
            assert_eq!(parts.len(), MEMORY.carriage.parts().len(), "{}", sink.transport);
            assert!(
                fate(&parts, "trace headers") <= Fate::Renamed,
                "{}: the trace is for everybody",
                sink.transport
            );
            assert!(parts.iter().all(|step| !step.detail.is_empty()));
        }
        assert_eq!(fate(&parts(&SQS), "ordering key"), Fate::Spilled);
        assert_eq!(fate(&parts(&SNS_FIFO), "ordering key"), Fate::Kept);
    }
}
