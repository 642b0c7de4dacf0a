//! What SQS, SNS and EventBridge deliver, and what is sent to them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use throughline::driver::OperationId;
use throughline::trace::parse_traceparent;
use throughline::{Envelope, HeaderValue};
use throughline_aws::attribute::{Attribute, AttributeValue, MAX_ATTRIBUTES};
use throughline_aws::codec::{self, Encoded, Hop, Received};
use throughline_aws::event;
use throughline_aws::notification::Notification;
use throughline_aws::text::{is_attribute_name, is_legal};
use throughline_aws::{group, xray};

use crate::texts;

/// A message as a queue gives it, of anybody: the id, the group and the X-Ray header, a line each; the attributes, a line
/// each with name, type and value between tabs, binary ones in base64; an empty line; the body.
fn received(text: &str) -> Received {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.split('\n');
    let mut next = || lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
    let (message_id, group, xray) = (next().unwrap_or_else(|| "m".to_owned()), next(), next());
    let attributes = lines.filter_map(|line| {
        let mut parts = line.splitn(3, '\t');
        let (name, data_type, value) = (parts.next()?, parts.next()?, parts.next()?);
        let value = match data_type.starts_with("Binary") {
            true => AttributeValue::Binary(BASE64.decode(value).ok()?.into()),
            false => AttributeValue::Text(value.to_owned()),
        };
        Some(Attribute { name: name.to_owned(), data_type: data_type.to_owned().into(), value })
    });
    Received { attributes: attributes.collect(), body: body.to_owned(), message_id, group, xray }
}

/// What is sent is what AWS takes, and comes back as it was, in whatever order the attributes come.
fn comes_back(envelope: &Envelope, grouped: bool) {
    let hop = Hop { grouped, ..Hop::default() };
    let encoded = codec::encode(envelope, &hop);
    let size = encoded.size();
    assert_eq!(codec::size(envelope, &hop, 0), size);
    assert!(codec::size(envelope, &hop, usize::MAX) >= size, "the bound of {envelope:?} is too low");
    let Encoded { body, mut attributes, xray } = encoded;
    assert!(!body.is_empty() && is_legal(&body), "the body of {envelope:?} is not legal");
    assert!(attributes.len() <= MAX_ATTRIBUTES, "{} attributes", attributes.len());
    for attribute in &attributes {
        assert!(is_attribute_name(&attribute.name), "{attribute:?}");
        let is_value = match &attribute.value {
            AttributeValue::Text(text) => !text.is_empty() && is_legal(text),
            AttributeValue::Binary(bytes) => !bytes.is_empty(),
        };
        assert!(is_value, "{attribute:?}");
    }
    attributes.reverse();
    let group = grouped.then(|| group::of(envelope.ordering_key.as_deref(), OperationId(7)));
    let again =
        codec::decode(Received { body, attributes, message_id: "other".to_owned(), group, xray }).envelope;
    assert_eq!(again, *envelope);
}

/// The same by way of an event, which a queue gets as JSON.
fn comes_back_as_event(envelope: &Envelope) {
    let hop = Hop::default();
    let Ok(event) = event::encode(envelope, &hop, "fuzz", false) else { return };
    let size = event::size(envelope, &hop, "fuzz", false, usize::MAX);
    assert!(size.is_ok_and(|size| size >= event.size()), "the bound of {envelope:?} is too low");
    assert!((1..=128).contains(&event.detail_type.len()) && !event.source.starts_with("aws."));
    let detail: Result<serde_json::Value, _> = serde_json::from_str(&event.detail);
    assert!(detail.is_ok_and(|detail| detail.is_object()), "{}", event.detail);
    // By hand: another writer's order of members is not to be ours.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let body = format!(
        r#"{{"version":"0","id":"e","detail-type":{},"source":{},"account":"1","resources":[],"detail":{}}}"#,
        quoted(&event.detail_type),
        quoted(&event.source),
        event.detail
    );
    assert!(is_legal(&body), "a queue would not take {body}");
    let received = Received { body, message_id: "m".to_owned(), xray: event.xray, ..Received::default() };
    assert_eq!(codec::decode(received).envelope, *envelope);
}

/// Whatever a queue gives, it decodes, and where it can be sent on, it comes back as it was.
pub(crate) fn message(input: &[u8]) {
    let decoded = codec::decode(received(&String::from_utf8_lossy(input)));
    if decoded.envelope.validate().is_ok() {
        comes_back(&decoded.envelope, input.len().is_multiple_of(2));
        comes_back_as_event(&decoded.envelope);
    }
}

pub(crate) fn message_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "m-1\n\n\ntl-id\tString\ti\ntl-type\tString\tt\ntraceparent\tString\t00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n\n{}",
        "m-1\nk\nRoot=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1\nb\tBinary.x\t/w==\nn\tNumber\t7\n\nbody",
        "m-1\n\n\ntl-id\tString\ti\ntl-body\tString\tbase64\n\n/w==",
        "m-1\n\n\ntl-id\tString\ti\ntl-body\tString\ttombstone\ntl-headers\tString\t{\"f\":{\"key\":\"k\",\"time\":\"5\"},\"h\":[[\"a\",null]]}\n\n-",
        "m-1\ntl:key:00\n\ntl-body\tString\tempty\ntl-headers\tString\t{\"f\":{\"history\":\"{}\",\"delay\":\"7\"}}\n\n-",
    ];
    texts(&seeds)
}

/// A queue's body, as SNS wraps or EventBridge writes it, or nearly: it decodes, and goes on.
pub(crate) fn body(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let unwrapped = Notification::unwrap(&text);
    let received =
        Received { body: text.clone().into_owned(), message_id: "m".to_owned(), ..Received::default() };
    let decoded = codec::decode(received);
    assert_eq!(decoded.topic, unwrapped.map(|notification| notification.topic), "from {text:?}");
    if decoded.envelope.validate().is_ok() {
        comes_back(&decoded.envelope, false);
        comes_back_as_event(&decoded.envelope);
    }
}

pub(crate) fn body_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"Type":"Notification","MessageId":"m","TopicArn":"arn:t","Message":"{}","Timestamp":"2026-11-22T10:00:00.123Z","MessageAttributes":{"tl-id":{"Type":"String","Value":"i"},"b":{"Type":"Binary","Value":"/w=="}}}"#,
        r#"{"Type":"Notification","MessageId":"m","TopicArn":"arn:t","Message":"{\"version\":\"0\",\"id\":\"e\",\"detail-type\":\"d\",\"source\":\"s\",\"detail\":{}}"}"#,
        r#"{"version":"0","id":"e","detail-type":"message","source":"s","time":"2026-11-22T10:00:00Z","account":"1","region":"r","resources":["a"],"detail":{"metadata":{"tl-data":"json","id":"i","headers":{"a":"b"}},"data":[1,2.5,null]}}"#,
        r#"{"version":"0","id":"e","detail-type":"t","source":"s","detail":{"a":1,"metadata":{"tl-data":"raw","id":"i","tl-headers":"{\"h\":[[\"n\",null]]}"}}}"#,
        r#"{"version":"0","id":"e","detail-type":"t","source":"s","detail":{"metadata":{"tl-data":"base64","id":"i"},"data":"/w=="}}"#,
        r#"{"version":"0","id":"e","detail-type":"EC2 Instance State-change","source":"aws.ec2","resources":[],"detail":{"state":"x"}}"#,
        r#""detail-type" and "TopicArn" in a text"#,
    ])
}

/// A payload of any bytes is sent as text that AWS takes, and comes back byte for byte.
pub(crate) fn payload(input: &[u8]) {
    let envelope = Envelope::builder("fuzz").id("i").payload(input.to_vec()).build();
    comes_back(&envelope, false);
    comes_back_as_event(&envelope);
}

pub(crate) fn payload_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "",
        "-",
        "{\"a\":1}",
        "{\"a\": 1.50}",
        "\u{1}",
        "\u{fffe}",
        "\"\\u0001\"",
        "tombstone",
        "\u{feff}7",
    ])
}

/// Headers, a line each with name, kind and value between tabs: `b` is bytes, `n` nothing, any other a native type.
pub(crate) fn headers(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut envelope = Envelope::builder("fuzz").id("i").payload("p").build();
    for line in text.split('\n') {
        let mut parts = line.splitn(3, '\t');
        let (name, kind, value) = (parts.next(), parts.next(), parts.next());
        let value = value.unwrap_or_default();
        let value = match kind.unwrap_or_default() {
            "" => HeaderValue::Text(value.to_owned()),
            "b" => HeaderValue::Bytes(value.as_bytes().to_vec().into()),
            "n" => HeaderValue::Null,
            kind => HeaderValue::Typed { kind: kind.to_owned().into(), text: value.to_owned() },
        };
        envelope.headers.append(name.unwrap_or_default(), value);
    }
    if envelope.validate().is_ok() {
        comes_back(&envelope, true);
        comes_back_as_event(&envelope);
    }
}

pub(crate) fn headers_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "a\t\tb\na\t\tc\nTraceParent\t\t00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate\t\ta=1",
        "n\tsqs:Number\t-1.5e3\nl\tsqs:String.uuid\tu\ng\tsqs:Binary.gif\t/w==\nx\tsqs:Number\t1e999\ny\tamqp:i32\t7",
        "tl-id\t\tx\ntl-headers\t\t{}\ntl-body\t\tbase64\ncontent-type\tn\t\nAWS.x\t\ty\na..b\tb\tz\n\t\t",
        "a\t\t1\nb\t\t2\nc\t\t3\nd\t\t4\ne\t\t5\nf\t\t6\ng\t\t7\nh\t\t8\ni\t\t9\nj\t\t10\nk\t\t11",
        "baggage\t\tk=v\nBaggage\t\tk=w\ntraceparent\tb\t00-x",
    ])
}

/// X-Ray's header and a `traceparent`: what either says is a span, and is the same one there and back.
pub(crate) fn trace_header(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(traceparent) = xray::to_traceparent(&text) {
        assert!(parse_traceparent(&traceparent).is_some(), "{traceparent} from {text:?}");
        let header = xray::from_traceparent(&traceparent);
        assert_eq!(header.as_deref().and_then(xray::to_traceparent), Some(traceparent));
    }
    if let Some(header) = xray::from_traceparent(&text) {
        // EventBridge takes 500 characters.
        assert!(header.len() <= 500, "{header}");
        let back = xray::to_traceparent(&header);
        let of = |text: &str| {
            let context = parse_traceparent(text)?;
            Some((context.trace_id(), context.span_id(), context.trace_flags().is_sampled()))
        };
        assert_eq!(back.as_deref().and_then(of), of(&text), "from {text:?}");
    }
}

pub(crate) fn trace_header_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1",
        "Sampled=?; Self=1-x;Parent=b7ad6b7169203331 ;Lineage=a:0;Root=1-0af76519-16cd43dd8448eb211c80319c",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more",
        "Root=1-00000000-000000000000000000000000;Parent=0000000000000000",
    ])
}
