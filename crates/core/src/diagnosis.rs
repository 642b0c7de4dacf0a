//! What is there and what is wrong with it: the answer of [`Transport::diagnose`](crate::driver::Transport::diagnose).
//!
//! The types fit every broker: what was found is told as [`Fact`]s of named subjects, what is wrong as [`Finding`]s, each
//! with its remedy, and what could not be looked at as [`Unchecked`], so that silence always means that it is well.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::address::Address;
use crate::capabilities::{Capabilities, Lease};
use crate::consumer::ConsumeOptions;

/// What a diagnosis is to consider beyond the address.
#[derive(Clone, Debug, Default)]
pub struct DiagnoseOptions {
    /// How long a handler may take with one message. A lease that ends sooner is a finding; `None`: not compared.
    pub handler: Option<Duration>,
}

/// The state of one destination, as a transport sees it without disturbing anything.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// What was diagnosed, with secrets redacted.
    pub address: String,
    /// Who answers there.
    pub server: Server,
    /// What publishing to this address can do, its limits resolved; `None` where it names nothing to publish to.
    pub publisher: Option<Capabilities>,
    /// What consuming from this address can do; `None` where it names nothing to consume from.
    pub consumer: Option<Capabilities>,
    /// What was seen, in the order of the looking.
    pub facts: Vec<Fact>,
    /// What is wrong or worth knowing; [`sort`](Self::sort) puts the worst first.
    pub findings: Vec<Finding>,
    /// What could not be checked.
    pub unchecked: Vec<Unchecked>,
}

/// The broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Its product, as it names itself: `RabbitMQ`.
    pub product: String,
    /// Its version; `None` where it does not say.
    pub version: Option<String>,
}

/// One thing that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// What it is of: `queue 'jobs'`, `broker`.
    pub subject: String,
    /// What it says of it: `ready`, `durable`.
    pub name: Cow<'static, str>,
    /// Its value.
    pub value: Value,
}

/// A fact's value; in JSON a boolean, a number or a string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A count or a size, in the unit that the fact's name says.
    Number(u64),
    /// Anything else.
    Text(String),
}

/// Something that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Its stable name, for scripts: `queue-not-durable`. The transport's README lists its own.
    pub code: &'static str,
    /// What it is about: `queue 'jobs'`.
    pub subject: String,
    /// What is so.
    pub what: String,
    /// What comes of it.
    pub why: String,
    /// How it is mended.
    pub remedy: Remedy,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It does not work, or messages are lost in ordinary operation.
    Error,
    /// Messages can be lost or held up when something else goes wrong.
    Warning,
    /// It may be meant so.
    Note,
}

/// How a finding is mended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// What to do, in a sentence.
    pub text: String,
    /// Commands or settings that do it, to be pasted, in this order. Secrets in addresses are `***`.
    pub commands: Vec<String>,
}

/// A check that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    /// What was to be checked.
    pub what: String,
    /// Why it could not be.
    pub why: String,
    /// How it can be; empty where there is no way.
    pub remedy: String,
}

impl Diagnosis {
    /// A diagnosis of an address, with nothing seen yet.
    pub fn new(address: &Address, server: Server) -> Self {
        Self {
            address: address.to_string(),
            server,
            publisher: None,
            consumer: None,
            facts: Vec::new(),
            findings: Vec::new(),
            unchecked: Vec::new(),
        }
    }

    /// Adds something that was seen.
    pub fn fact(
        &mut self,
        subject: impl Into<String>,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Value>,
    ) {
        self.facts.push(Fact { subject: subject.into(), name: name.into(), value: value.into() });
    }

    /// Adds a check that could not be made: what, why, and how it can be.
    pub fn unchecked(&mut self, what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) {
        self.unchecked.push(Unchecked { what: what.into(), why: why.into(), remedy: remedy.into() });
    }

    /// The worst severity found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).min()
    }

    /// Puts the worst findings first; those of one severity keep their order.
    pub fn sort(&mut self) {
        self.findings.sort_by_key(|finding| finding.severity);
    }

    /// Compares the time that a handler may take with the consumer's lease. `longer` says how this broker's lease is
    /// made longer, where that can be done.
    pub fn check_lease(
        &mut self,
        subject: &str,
        options: &DiagnoseOptions,
        longer: impl FnOnce(Duration) -> Remedy,
    ) {
        let (Some(handler), Some(consumer)) = (options.handler, &self.consumer) else { return };
        let takes = humantime::format_duration(handler);
        let default = ConsumeOptions::default().max_lease;
        let (code, what, remedy) = match consumer.lease {
            Lease::Fixed(lease) if handler >= lease => (
                "lease-too-short",
                format!(
                    "a handler may take {takes}, and a delivery is ours for {}",
                    humantime::format_duration(lease)
                ),
                longer(handler),
            ),
            Lease::Renewable(Some(most)) if handler >= most => (
                "lease-too-short",
                format!(
                    "a handler may take {takes}, and a lease can be renewed for {} in all",
                    humantime::format_duration(most)
                ),
                longer(handler),
            ),
            Lease::Renewable(_) if handler >= default => (
                "lease-not-renewed-long-enough",
                format!(
                    "a handler may take {takes}, and a consumer renews a lease for {} unless told otherwise",
                    humantime::format_duration(default)
                ),
                Remedy::text("give the consumer a longer time").command(format!(
                    "ConsumeOptions {{ max_lease: Duration::from_secs({}), ..ConsumeOptions::default() }}",
                    handler.as_secs().saturating_mul(2)
                )),
            ),
            Lease::Fixed(_) | Lease::Renewable(_) | Lease::None => return,
        };
        self.findings.push(Finding {
            severity: Severity::Error,
            code,
            subject: subject.to_owned(),
            what,
            why:
                "the message is delivered again while it is still being processed, and its ack comes too late"
                    .into(),
            remedy,
        });
    }
}

impl Remedy {
    /// A remedy in words.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), commands: Vec::new() }
    }

    /// The same, with a further command or setting.
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A duration as seconds, for JSON.
pub(crate) fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// An optional duration as seconds, for JSON.
pub(crate) fn optional_seconds<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;

    fn diagnosed(lease: Lease, handler: u64) -> Diagnosis {
        let address = "amqp://guest:hunter2@h/?queue=q".parse().unwrap();
        let mut diagnosis = Diagnosis::new(&address, Server::default());
        diagnosis.consumer = Some(Capabilities { lease, ..capabilities::RABBITMQ });
        let options = DiagnoseOptions { handler: Some(Duration::from_secs(handler)) };
        diagnosis.check_lease("queue 'q'", &options, |needed| {
            Remedy::text("longer").command(format!("{needed:?}"))
        });
        diagnosis
    }

    #[test]
    fn a_lease_is_compared_with_what_a_handler_takes() {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        for (lease, handler, expected) in [
            (Lease::Fixed(minutes(30)), 1799, None),
            (Lease::Fixed(minutes(30)), 1800, Some("lease-too-short")),
            (Lease::Renewable(Some(minutes(720))), 600, None),
            (Lease::Renewable(Some(minutes(720))), 7200, Some("lease-not-renewed-long-enough")),
            (Lease::Renewable(Some(minutes(720))), 43_200, Some("lease-too-short")),
            (Lease::Renewable(None), 43_200, Some("lease-not-renewed-long-enough")),
            (Lease::None, 1_000_000, None),
        ] {
            let found: Vec<_> =
                diagnosed(lease, handler).findings.iter().map(|finding| finding.code).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{lease:?} {handler}");
        }
        let found = &diagnosed(Lease::Fixed(minutes(30)), 1800).findings[0];
        assert_eq!(found.remedy, Remedy::text("longer").command("1800s"));
        assert_eq!(found.what, "a handler may take 30m, and a delivery is ours for 30m");
    }

    #[test]
    fn the_worst_comes_first_and_the_json_is_stable() {
        let mut diagnosis = diagnosed(Lease::Fixed(Duration::from_millis(1500)), 2);
        assert_eq!(diagnosis.worst(), Some(Severity::Error));
        let mut note = diagnosis.findings[0].clone();
        note.severity = Severity::Note;
        diagnosis.findings.insert(0, note);
        diagnosis.sort();
        assert_eq!(diagnosis.findings[0].severity, Severity::Error);
        diagnosis.fact("queue 'q'", "ready", 3);
        diagnosis.fact("queue 'q'", "durable", true);
        diagnosis.unchecked("policies", "no way to see them", "");
        let json = serde_json::to_value(&diagnosis).unwrap();
        assert_eq!(json["address"], "amqp://***@h/?queue=q");
        assert_eq!(json["findings"][0]["severity"], "error");
        assert_eq!(json["findings"][0]["remedy"]["commands"][0], "2s");
        assert_eq!((&json["facts"][0]["value"], &json["facts"][1]["value"]), (&3.into(), &true.into()));
        assert_eq!(json["consumer"]["lease"]["fixed"], 1.5);
        assert_eq!(json["consumer"]["limits"]["delay"], 86_400.0);
        assert_eq!(json["unchecked"][0]["what"], "policies");
        assert!(json["publisher"].is_null());
        assert!(!json.to_string().contains("hunter2"));
    }
}
