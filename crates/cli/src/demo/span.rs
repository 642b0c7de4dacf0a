//! A recorded span, and its JSON.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

/// A span as it is drawn and written; `demo --help` documents its JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Span {
    pub(super) trace_id: String,
    pub(super) span_id: String,
    pub(super) parent_span_id: Option<String>,
    pub(super) name: String,
    pub(super) kind: Kind,
    #[serde(serialize_with = "rfc3339")]
    pub(super) start: SystemTime,
    #[serde(serialize_with = "rfc3339")]
    pub(super) end: SystemTime,
    pub(super) status: Outcome,
    pub(super) attributes: Attributes,
    pub(super) links: Vec<Link>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "lowercase")]
pub(super) enum Outcome {
    Unset,
    Ok,
    Error { message: String },
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Link {
    pub(super) trace_id: String,
    pub(super) span_id: String,
    pub(super) attributes: Attributes,
}

/// Attributes in the order they were set; the last of a name counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<(String, Json)>);

impl Attributes {
    pub(super) fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    pub(super) fn seconds(&self, name: &str) -> Option<Duration> {
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
    pub(super) fn duration(&self) -> Duration {
        self.end.duration_since(self.start).unwrap_or_default()
    }

    pub(super) fn failed(&self) -> Option<&str> {
        match &self.status {
            Outcome::Error { message } => Some(message),
            Outcome::Unset | Outcome::Ok => None,
        }
    }

    /// The waiting in a queue.
    pub(super) fn is_queue_delay(&self) -> bool {
        self.attributes.get("throughline.queue.delay").is_some()
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

/// The spans of one trace, and how many others there were.
pub(super) fn of_trace(all: Vec<Span>, trace: &str) -> (Vec<Span>, usize) {
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
