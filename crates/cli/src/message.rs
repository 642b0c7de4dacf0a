//! A received message as JSON, and for people.

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use throughline::trace::creation_context;
use throughline::{Delivery, Failure as Attempt, HeaderValue, Headers, History, IdOrigin};

use crate::failure::{Exit, Failure};
use crate::output::{BOLD, CYAN, DIM, Paint, RED, visible};

/// One line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let mut line = serde_json::to_string(value)
        .map_err(|error| Failure::new(Exit::Failed, "cannot write the result as JSON").caused_by(&error))?;
    line.push('\n');
    Ok(line)
}

/// The trace that a message belongs to, where it carries a context.
pub(crate) fn trace_id(headers: &Headers) -> Option<String> {
    creation_context(headers).map(|context| context.trace_id().to_string())
}

/// The JSON object of a message; `consume --help` documents it.
pub(crate) struct Message<'a>(pub(crate) &'a Delivery);

impl Serialize for Message<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (delivery, envelope) = (self.0, &**self.0.envelope());
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &envelope.id)?;
        optional(&mut map, "id_origin", origin(envelope.id_origin))?;
        map.serialize_entry("type", &envelope.message_type)?;
        map.serialize_entry("key", &envelope.ordering_key.as_deref().map(Data::of))?;
        map.serialize_entry("time", &envelope.time.map(|time| time.to_string()))?;
        map.serialize_entry("content_type", &envelope.content_type)?;
        optional(&mut map, "content_encoding", envelope.content_encoding.as_ref())?;
        optional(&mut map, "source", envelope.source.as_ref())?;
        optional(&mut map, "correlation_id", envelope.correlation_id.as_ref())?;
        optional(&mut map, "reply_to", envelope.reply_to.as_ref())?;
        optional(&mut map, "expires_at", envelope.expires_at.map(|time| time.to_string()))?;
        optional(&mut map, "priority", envelope.priority)?;
        optional(&mut map, "idempotency_key", envelope.idempotency_key.as_ref())?;
        optional(&mut map, "trace_id", trace_id(&envelope.headers))?;
        map.serialize_entry("headers", &Object(&envelope.headers))?;
        match envelope.payload.as_deref().map(std::str::from_utf8) {
            // A tombstone.
            None => map.serialize_entry("payload", &None::<&str>)?,
            Some(Ok(text)) => map.serialize_entry("payload", text)?,
            Some(Err(_)) => map.serialize_entry("payload_base64", &BASE64.encode(delivery.payload()))?,
        }
        map.serialize_entry("attempt", &delivery.attempt())?;
        map.serialize_entry("receive_count", &delivery.receive_count())?;
        map.serialize_entry("queue_delay_ms", &delivery.queue_delay().map(|queue| queue.delay.as_millis()))?;
        optional(&mut map, "failures", delivery.history().map(failures))?;
        map.serialize_entry("native", &Object(&native(delivery)))?;
        map.end()
    }
}

fn optional<M: SerializeMap>(map: &mut M, name: &str, value: Option<impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

fn origin(origin: IdOrigin) -> Option<&'static str> {
    match origin {
        IdOrigin::Envelope => None,
        IdOrigin::Broker => Some("broker"),
        IdOrigin::Synthetic => Some("synthetic"),
    }
}

fn native(delivery: &Delivery) -> Headers {
    delivery.native_details().into_iter().map(|(name, value)| (name.into_owned(), value)).collect()
}

fn failures(history: &History) -> Vec<serde_json::Value> {
    let object = |failure: &Attempt| {
        serde_json::json!({
            "attempt": failure.attempt,
            "at": failure.at.to_string(),
            "error": failure.error,
            "message": failure.message,
            "dependency": failure.dependency,
        })
    };
    history.failures().iter().map(object).collect()
}

/// Bytes as text where they are UTF-8, else as `{"base64": …}`.
enum Data<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl<'a> Data<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        std::str::from_utf8(bytes).map_or(Self::Bytes(bytes), Self::Text)
    }
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &BASE64.encode(bytes))?;
                map.end()
            }
        }
    }
}

/// Headers as an object, in their order; a repeated name once, with an array.
pub(crate) struct Object<'a>(pub(crate) &'a Headers);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut seen = std::collections::HashSet::new();
        for (name, value) in self.0.iter() {
            if !seen.insert(name) {
                continue;
            }
            if self.0.is_repeated(name) {
                map.serialize_entry(name, &self.0.get_all(name).map(Value).collect::<Vec<_>>())?;
            } else {
                map.serialize_entry(name, &Value(value))?;
            }
        }
        map.end()
    }
}

/// One header's value.
struct Value<'a>(&'a HeaderValue);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            HeaderValue::Text(text) => serializer.serialize_str(text),
            HeaderValue::Bytes(bytes) => Data::Bytes(bytes).serialize(serializer),
            HeaderValue::Null => serializer.serialize_none(),
            HeaderValue::Typed { kind, text } => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("type", kind)?;
                map.serialize_entry("value", text)?;
                map.end()
            }
        }
    }
}

/// The message for people: what it is, a line of facts, its headers, its payload.
pub(crate) fn for_people(delivery: &Delivery, paint: Paint) -> String {
    let envelope = delivery.envelope();
    let name = envelope.message_type.as_deref().unwrap_or("(no type)");
    let time = envelope.time.map(|time| time.to_string()).unwrap_or_default();
    let mut text = format!(
        "{}  {}  {}\n",
        paint.apply(BOLD.fg_color(CYAN.get_fg_color()), visible_line(name)),
        visible_line(&envelope.id),
        paint.apply(DIM, time)
    );
    let mut facts = vec![format!("attempt {}", delivery.attempt())];
    facts.extend(delivery.receive_count().map(|count| format!("received {count}")));
    facts.extend(delivery.queue_delay().map(|queue| format!("queued {} ms", queue.delay.as_millis())));
    facts.extend(envelope.ordering_key.as_deref().map(|key| format!("key {}", bytes_for_people(key))));
    facts.extend(envelope.content_type.as_ref().map(|it| format!("content type {it}")));
    facts.extend(envelope.content_encoding.as_ref().map(|it| format!("content encoding {it}")));
    facts.extend(envelope.source.as_ref().map(|it| format!("from {it}")));
    facts.extend(envelope.correlation_id.as_ref().map(|it| format!("correlation {it}")));
    facts.extend(envelope.reply_to.as_ref().map(|it| format!("reply to {it}")));
    facts.extend(envelope.priority.map(|it| format!("priority {it}")));
    facts.extend(envelope.expires_at.map(|it| format!("expires {it}")));
    facts.extend(envelope.idempotency_key.as_ref().map(|it| format!("idempotency key {it}")));
    let _ = writeln!(text, "  {}", paint.apply(DIM, visible_line(&facts.join(" · "))));
    for (name, value) in envelope.headers.iter() {
        let (name, value) = (visible_line(name), value_for_people(value));
        let _ = writeln!(text, "  {} {}", paint.apply(CYAN, format_args!("{name}:")), visible_line(&value));
    }
    for failure in delivery.history().into_iter().flat_map(History::failures) {
        let of = failure.dependency.as_ref().map(|it| format!(" of {it}")).unwrap_or_default();
        let line = format!("attempt {} failed: {}{of} {}", failure.attempt, failure.error, failure.message);
        let _ = writeln!(text, "  {}", paint.apply(RED, visible_line(line.trim_end())));
    }
    match envelope.payload.as_deref().map(std::str::from_utf8) {
        None => text.push_str("  (tombstone: no payload)\n"),
        Some(Ok("")) => text.push_str("  (empty payload)\n"),
        Some(Ok(payload)) => {
            for line in visible(payload).lines() {
                let _ = writeln!(text, "  {line}");
            }
        }
        Some(Err(_)) => {
            let payload = delivery.payload();
            let _ = writeln!(text, "  ({} bytes, base64) {}", payload.len(), BASE64.encode(payload));
        }
    }
    text
}

pub(crate) fn value_for_people(value: &HeaderValue) -> Cow<'_, str> {
    match value {
        HeaderValue::Text(text) => text.as_str().into(),
        HeaderValue::Bytes(bytes) => bytes_for_people(bytes),
        HeaderValue::Null => "(null)".into(),
        HeaderValue::Typed { kind, text } => format!("{text} ({kind})").into(),
    }
}

fn bytes_for_people(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => format!("(base64) {}", BASE64.encode(bytes)).into(),
    }
}

/// Text of unknown origin that must stay on its line.
pub(crate) fn visible_line(text: &str) -> String {
    visible(text).replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn json(headers: &Headers) -> String {
        serde_json::to_string(&Object(headers)).unwrap()
    }

    #[test]
    fn headers_are_an_object_that_loses_nothing() {
        let mut headers = Headers::new();
        headers.append("b", "1");
        headers.append("bin", Bytes::from_static(b"\xff\x00"));
        headers.append("null", HeaderValue::Null);
        headers.append("n", HeaderValue::Typed { kind: "amqp:i32".into(), text: "42".into() });
        headers.append("b", Bytes::from_static(b"text"));
        headers.append("a", "");
        let expected = concat!(
            r#"{"b":["1",{"base64":"dGV4dA=="}],"bin":{"base64":"/wA="},"null":null,"#,
            r#""n":{"type":"amqp:i32","value":"42"},"a":""}"#
        );
        assert_eq!(json(&headers), expected);
        assert_eq!(json(&Headers::new()), "{}");
    }

    async fn received(name: &str, envelope: throughline::Envelope) -> (throughline::Consumer, Delivery) {
        let bus = throughline::Bus::connect(format!("memory:{name}?queue=q")).await.unwrap();
        bus.publisher().await.unwrap().publish(envelope).await.unwrap();
        let mut consumer = bus.consumer().await.unwrap();
        let delivery = consumer.next().await.unwrap().unwrap();
        (consumer, delivery)
    }

    fn object(delivery: &Delivery) -> serde_json::Value {
        let line = json_line(&Message(delivery)).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        serde_json::from_str(&line).unwrap()
    }

    const ALWAYS: [&str; 10] = [
        "id",
        "type",
        "key",
        "time",
        "content_type",
        "headers",
        "attempt",
        "receive_count",
        "queue_delay_ms",
        "native",
    ];

    #[tokio::test]
    async fn a_bare_message_has_all_documented_members_and_no_others() {
        let mut envelope = throughline::Envelope::new("a\nb");
        envelope.time = None;
        let (_consumer, delivery) = received("message-bare", envelope).await;
        let json = object(&delivery);
        let names: std::collections::BTreeSet<_> =
            json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ALWAYS.into_iter().chain(["payload"]).collect());
        assert_eq!(json["payload"], "a\nb");
        assert!(json["type"].is_null() && json["key"].is_null() && json["time"].is_null());
        assert_eq!((&json["attempt"], &json["receive_count"]), (&1.into(), &1.into()));
        assert!(json["queue_delay_ms"].is_u64() && json["native"].is_object());
        delivery.ack().await.unwrap();
    }

    #[tokio::test]
    async fn a_full_message_loses_nothing() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let envelope = throughline::Envelope::builder("t")
            .id("i")
            .source("s")
            .key(&b"\xff"[..])
            .time(throughline::Timestamp::from_millis(0))
            .content_type("c")
            .content_encoding("e")
            .correlation_id("co")
            .reply_to("r")
            .expires_at(throughline::Timestamp::from_millis(32_503_680_000_000))
            .priority(7)
            .idempotency_key("ik")
            .header("traceparent", trace)
            .payload(&b"\xfe\xff"[..])
            .build();
        let (_consumer, delivery) = received("message-full", envelope).await;
        let mut json = object(&delivery);
        for unstable in ["queue_delay_ms", "native"] {
            json.as_object_mut().unwrap().remove(unstable);
        }
        let expected = serde_json::json!({
            "id": "i", "type": "t", "key": { "base64": "/w==" }, "time": "1970-01-01T00:00:00.000Z",
            "content_type": "c", "content_encoding": "e", "source": "s", "correlation_id": "co", "reply_to": "r",
            "expires_at": "3000-01-01T00:00:00.000Z", "priority": 7, "idempotency_key": "ik",
            "trace_id": "0af7651916cd43dd8448eb211c80319c", "headers": { "traceparent": trace },
            "payload_base64": "/v8=", "attempt": 1, "receive_count": 1,
        });
        assert_eq!(json, expected);
        delivery.ack().await.unwrap();
    }

    #[tokio::test]
    async fn a_retried_tombstone_shows_its_failure() {
        let envelope = throughline::Envelope::builder("t").tombstone().build();
        let (mut consumer, delivery) = received("message-retried", envelope).await;
        assert!(object(&delivery)["payload"].is_null());
        let failure = Attempt::new("http_503").message("down").dependency("ads-api");
        delivery.retry(std::time::Duration::ZERO, failure).await.unwrap();
        let delivery = consumer.next().await.unwrap().unwrap();
        let json = object(&delivery);
        assert_eq!(json["attempt"], 2);
        assert_eq!(
            (&json["failures"][0]["error"], &json["failures"][0]["dependency"]),
            (&"http_503".into(), &"ads-api".into())
        );
        let text = for_people(&delivery, Paint::OFF);
        assert!(
            text.contains("attempt 1 failed: http_503 of ads-api down") && text.contains("tombstone"),
            "{text}"
        );
        delivery.ack().await.unwrap();
    }

    #[tokio::test]
    async fn text_for_people_cannot_steer_their_terminal() {
        let bad = "\u{1b}]0;x\u{7}\r";
        let envelope =
            throughline::Envelope::builder(bad).id(bad).key(bad).header(bad, bad).payload(bad).build();
        let (_consumer, delivery) = received("message-bad", envelope).await;
        let text = for_people(&delivery, Paint::OFF);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        delivery.ack().await.unwrap();
    }

    #[test]
    fn a_key_is_text_or_base64() {
        let text = |key: &[u8]| serde_json::to_string(&Data::of(key)).unwrap();
        assert_eq!(text(b""), r#""""#);
        assert_eq!(text("ä".as_bytes()), r#""ä""#);
        assert_eq!(text(b"\xff"), r#"{"base64":"/w=="}"#);
    }
}
