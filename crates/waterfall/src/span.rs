//! A recorded span, and its JSON.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

/// The attribute that marks a span as one of something that only plays a part, such as a stand-in of a database.
pub const STAND_IN: &str = "demo.stand_in";

/// A recorded span. As JSON: `trace_id`, `span_id`, `parent_span_id` (null for a root), `name`, `kind` (`internal`, `server`,
/// `client`, `producer`, `consumer`), `start` and `end` (RFC 3339 with nanoseconds, UTC), `status` (`code` `unset`, `ok` or
/// `error`, this with a `message`), `attributes` (an object) and `links` (`trace_id`, `span_id`, `attributes`).
#[derive(Clone, Debug, Serialize)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The span that this one is a part of.
    pub parent_span_id: Option<String>,
    /// What was done.
    pub name: String,
    /// Its part in the exchange.
    pub kind: Kind,
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    pub start: SystemTime,
    /// When it ended.
    #[serde(serialize_with = "rfc3339")]
    pub end: SystemTime,
    /// How it ended.
    pub status: Outcome,
    /// What it says of itself.
    pub attributes: Attributes,
    /// Spans that it came of, of this trace or others.
    pub links: Vec<Link>,
}

/// A span's part in an exchange, as OpenTelemetry has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "OpenTelemetry's own names")]
pub enum Kind {
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

impl Kind {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// How a span ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing is said: it went well.
    Unset,
    /// It is said that it went well.
    Ok,
    /// It failed.
    Error {
        /// Why.
        message: String,
    },
}

/// Another span that a span came of.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// Its trace.
    pub trace_id: String,
    /// The span.
    pub span_id: String,
    /// What is said of the link.
    pub attributes: Attributes,
}

/// Attributes in the order they were set; the last of a name counts.
#[derive(Clone, Debug, Default)]
pub struct Attributes(Vec<(String, Json)>);

impl Attributes {
    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// All, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The value of one that counts seconds.
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        self.get(name).and_then(Json::as_f64).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    }
}

impl<'a> FromIterator<&'a KeyValue> for Attributes {
    fn from_iter<I: IntoIterator<Item = &'a KeyValue>>(attributes: I) -> Self {
        let mut all: Vec<(String, Json)> = Vec::new();
        for KeyValue { key, value, .. } in attributes {
            match all.iter_mut().find(|(name, _)| name == key.as_str()) {
                Some((_, old)) => *old = json(value),
                None => all.push((key.to_string(), json(value))),
            }
        }
        Self(all)
    }
}

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Span {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        self.end.duration_since(self.start).unwrap_or_default()
    }

    /// Why it failed, if it did.
    pub fn failed(&self) -> Option<&str> {
        match &self.status {
            Outcome::Error { message } => Some(message),
            Outcome::Unset | Outcome::Ok => None,
        }
    }

    /// Whether it is the waiting of a message in a queue.
    pub fn is_queue_delay(&self) -> bool {
        self.attributes.get("throughline.queue.delay").is_some()
    }

    /// How long after its end the message is put off: what a retry asked for.
    pub fn put_off(&self) -> Option<Duration> {
        // The process span of the next attempt may say it, too, of the time before it.
        (self.kind == Kind::Client).then(|| self.attributes.seconds("throughline.retry.delay")).flatten()
    }

    /// What it is called in a waterfall: its name on one line, marked where it failed or stands in for something real.
    pub fn label(&self) -> String {
        let failed = if self.failed().is_some() { "✗ " } else { "" };
        let stand_in = if self.attributes.get(STAND_IN).is_some() { " (stand-in)" } else { "" };
        format!("{failed}{}{stand_in}", one_line(&self.name))
    }
}

impl From<&SpanData> for Span {
    fn from(data: &SpanData) -> Self {
        Self {
            trace_id: data.span_context.trace_id().to_string(),
            span_id: data.span_context.span_id().to_string(),
            parent_span_id: (data.parent_span_id != SpanId::INVALID).then(|| data.parent_span_id.to_string()),
            name: data.name.to_string(),
            kind: match data.span_kind {
                SpanKind::Client => Kind::Client,
                SpanKind::Server => Kind::Server,
                SpanKind::Producer => Kind::Producer,
                SpanKind::Consumer => Kind::Consumer,
                SpanKind::Internal => Kind::Internal,
            },
            start: data.start_time,
            end: data.end_time,
            status: match &data.status {
                Status::Unset => Outcome::Unset,
                Status::Ok => Outcome::Ok,
                Status::Error { description } => Outcome::Error { message: description.to_string() },
            },
            attributes: data.attributes.iter().collect(),
            links: data
                .links
                .iter()
                .map(|link| Link {
                    trace_id: link.span_context.trace_id().to_string(),
                    span_id: link.span_context.span_id().to_string(),
                    attributes: link.attributes.iter().collect(),
                })
                .collect(),
        }
    }
}

/// Text of unknown origin for people, on one line: control characters, which could steer a terminal, are shown escaped.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => " ".to_owned(),
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        })
        .collect()
}

/// A duration in milliseconds, with its unit.
pub fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

pub(crate) fn since(time: SystemTime, begin: SystemTime) -> Duration {
    time.duration_since(begin).unwrap_or_default()
}

/// The spans of one trace, and how many others there were.
pub fn of_trace(all: Vec<Span>, trace: &str) -> (Vec<Span>, usize) {
    let (of, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|span| span.trace_id == trace);
    (of, others.len())
}

fn json(value: &Value) -> Json {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::F64(value) => (*value).into(),
        Value::String(value) => value.as_str().into(),
        Value::Array(Array::Bool(values)) => values.clone().into(),
        Value::Array(Array::I64(values)) => values.clone().into(),
        Value::Array(Array::F64(values)) => values.clone().into(),
        Value::Array(Array::String(values)) => {
            values.iter().map(|value| Json::from(value.as_str())).collect::<Vec<_>>().into()
        }
        other => other.to_string().into(),
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_nanos(*time))
}
