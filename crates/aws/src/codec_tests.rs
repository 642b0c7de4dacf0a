//! Round trips, and what AWS would refuse.

use proptest::prelude::*;
use throughline_core::driver::OperationId;
use throughline_core::{Failure, Headers};

use super::*;

/// As AWS would, with all that it refuses refused.
fn over_the_wire(encoded: Encoded, group: Option<String>) -> Received {
    assert!(!encoded.body.is_empty() && is_legal(&encoded.body), "the body is not legal");
    assert!(encoded.attributes.len() <= 10, "{} attributes", encoded.attributes.len());
    let mut names: Vec<_> = encoded.attributes.iter().map(|attribute| attribute.name.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), encoded.attributes.len(), "a name twice");
    for attribute in &encoded.attributes {
        assert!(is_attribute_name(&attribute.name), "{attribute:?}");
        match &attribute.value {
            AttributeValue::Text(text) => assert!(is_value(text), "{attribute:?}"),
            AttributeValue::Binary(bytes) => assert!(!bytes.is_empty(), "{attribute:?}"),
        }
    }
    // The broker gives them back in no order.
    let mut attributes = encoded.attributes;
    attributes.reverse();
    Received { body: encoded.body, attributes, message_id: "broker-1".into(), group, xray: encoded.xray }
}

fn round_trip(envelope: &Envelope, grouped: bool) -> Envelope {
    let group = grouped.then(|| group::of(envelope.ordering_key.as_deref(), OperationId(1)));
    let decoded = decode(over_the_wire(encode(envelope, &Hop { grouped, ..Hop::default() }), group));
    assert!(decoded.undecodable.is_none());
    decoded.envelope
}

proptest! {
    #[test]
    fn a_size_that_is_not_counted_out_is_no_less_than_the_real_one(envelope in envelopes(), grouped: bool) {
        let hop = Hop { grouped, delay: Duration::from_secs(7), failed_attempts: 3, ..Hop::default() };
        let real = encode(&envelope, &hop).size();
        prop_assert!(size(&envelope, &hop, usize::MAX) >= real);
        prop_assert_eq!(size(&envelope, &hop, 0), real);
        let real = event::encode(&envelope, &hop, "throughline", false).unwrap().size();
        prop_assert!(event::size(&envelope, &hop, "throughline", false, usize::MAX).unwrap() >= real);
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "\\PC{0,20}", 1 => any::<String>(), 1 => Just("ä".repeat(200)), 1 => Just("\0".into())]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z]{0,3}",
        2 => text(),
        2 => prop::sample::select(vec![
            "traceparent", "TraceParent", "tracestate", "baggage", "Baggage", "tl-headers", "tl-id", "tl-type", "tl-body",
            "content-type", "Content-Type", "tl-dead-letter-source", "tl-dead-letter-reason", "tl-other", "AWS.x", "a..b",
        ]).prop_map(str::to_owned),
    ]
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    prop_oneof![
        text().prop_map(HeaderValue::Text),
        any::<Vec<u8>>().prop_map(HeaderValue::from),
        Just(HeaderValue::Null),
        ("(sqs|amqp):(Number|String|Binary|Other)(\\.[a-z]{0,3})?", "[0-9]{0,3}|[A-Za-z+/]{0,6}=?|\\PC{0,4}")
            .prop_map(|(kind, text)| HeaderValue::Typed { kind: kind.into(), text }),
    ]
}

fn millis() -> impl Strategy<Value = Timestamp> {
    prop_oneof![any::<i64>(), 0..4_000_000_000_000_i64].prop_map(Timestamp::from_millis)
}

prop_compose! {
    pub(crate) fn envelopes()(
        id in text().prop_filter("an id is not empty", |id| !id.is_empty()),
        origin in prop::sample::select(vec![IdOrigin::Envelope, IdOrigin::Broker, IdOrigin::Synthetic]),
        strings in prop::collection::vec(prop::option::of(text()), 7),
        key in prop::option::of(prop_oneof![any::<Vec<u8>>(), "[ -~]{0,4}|tl:[a-z:]{0,9}".prop_map(String::into_bytes)]),
        time in prop::option::of(millis()),
        expires_at in prop::option::of(millis()),
        priority in prop::option::of(any::<u8>()),
        headers in prop::collection::vec((name(), header_value()), 0..24),
        payload in prop::option::of(prop_oneof![any::<Vec<u8>>(), text().prop_map(String::into_bytes)]),
    ) -> Envelope {
        let mut strings = strings.into_iter();
        let mut next = || strings.next().flatten();
        let mut envelope = Envelope::foreign(id, payload.map(Bytes::from));
        envelope.id_origin = origin;
        envelope.message_type = next();
        envelope.source = next();
        envelope.content_type = next();
        envelope.content_encoding = next();
        envelope.correlation_id = next();
        envelope.reply_to = next();
        envelope.idempotency_key = next();
        envelope.ordering_key = key.map(Bytes::from);
        envelope.time = time;
        envelope.expires_at = expires_at;
        envelope.priority = priority;
        envelope.headers = headers.into_iter().collect();
        envelope
    }
}

/// The header that counts, as a consumer would look it up.
fn trace(headers: &Headers) -> [Option<&str>; 3] {
    ["traceparent", "tracestate", "baggage"].map(|name| headers.trace(name))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_envelope_comes_back_equal(envelope in envelopes(), grouped: bool) {
        let back = round_trip(&envelope, grouped);
        prop_assert_eq!(trace(&back.headers), trace(&envelope.headers));
        prop_assert_eq!(back, envelope);
    }

    #[test]
    fn a_foreign_message_decodes_to_what_there_is(
        body in "\\PC{1,20}",
        attributes in prop::collection::btree_map(name(), header_value(), 0..8),
        group in prop::option::of("\\PC{0,9}"),
        xray in prop::option::of("\\PC{0,40}"),
    ) {
        let attributes: Vec<_> =
            attributes.iter().filter_map(|(name, value)| Attribute::of_header(name, value)).collect();
        let count = attributes.len();
        let received = Received { body, attributes, message_id: "broker-1".into(), group, xray };
        let decoded = decode(received).envelope;
        prop_assert!(!decoded.id.is_empty());
        prop_assert!(decoded.headers.len() <= count + 1 || decoded.headers.get("tl-headers").is_none());
    }
}

fn value<'a>(encoded: &'a Encoded, name: &str) -> Option<&'a str> {
    encoded.attributes.iter().find(|attribute| attribute.name == name).and_then(Attribute::as_text)
}

#[test]
fn the_slots_go_to_the_trace_first_and_the_rest_is_packed() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let many = (0..60).map(|n| (format!("h{n:02}"), format!("v{n}")));
    let envelope = Envelope::builder("campaign.sync_report")
        .headers(many)
        .header("traceparent", TRACE)
        .header("tracestate", "vendor=x")
        .header("baggage", "user=1")
        .json(&7)
        .unwrap()
        .build();
    let encoded = encode(&envelope, &Hop::default());
    let names: Vec<_> = encoded.attributes.iter().map(|attribute| attribute.name.as_str()).collect();
    let first =
        ["traceparent", "content-type", "tl-id", "tl-type", "tracestate", "baggage", "h00", "h01", "h02"];
    assert_eq!(names, [&first[..], &["tl-headers"]].concat());
    assert_eq!(value(&encoded, "traceparent"), Some(TRACE));
    assert_eq!(encoded.body, "7");
    assert!(encoded.xray.as_deref().unwrap().starts_with("Root=1-0af76519-16cd"));
    assert_eq!(round_trip(&envelope, false), envelope);
}

#[test]
fn a_dead_letter_explains_itself_in_the_open_and_carries_its_history() {
    let mut history = History::default();
    history.push(Failure::new("http_503").dependency("ads-api"));
    let reason = history.last().unwrap().to_string();
    let hop = Hop {
        failed_attempts: 3,
        history: Some(&history),
        delay: Duration::from_secs(2),
        dead_letter: Some(DeadLetter { source: "reports", reason }),
        grouped: false,
    };
    let envelope = Envelope::builder("t").build();
    let encoded = encode(&envelope, &hop);
    assert_eq!(value(&encoded, "tl-dead-letter-reason"), Some("http_503 (ads-api)"));
    assert_eq!(value(&encoded, "tl-dead-letter-source"), Some("reports"));
    let decoded = decode(over_the_wire(encoded, None));
    assert_eq!(decoded.envelope, envelope);
    assert_eq!((decoded.failed_attempts, decoded.delay), (3, Duration::from_secs(2)));
    assert_eq!(decoded.history.as_deref(), Some(&history));
}

#[test]
fn a_foreign_message_has_the_brokers_id_and_x_rays_trace_where_there_is_no_other() {
    let xray = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";
    let mut received = Received {
        body: "x".into(),
        message_id: "m-1".into(),
        xray: Some(xray.into()),
        ..Received::default()
    };
    let decoded = decode(received.clone());
    assert_eq!((decoded.envelope.id.as_str(), decoded.envelope.id_origin), ("m-1", IdOrigin::Broker));
    let w3c = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(decoded.envelope.headers.trace(TRACEPARENT), Some(w3c));
    received.attributes.push(Attribute::text("TraceParent", "another"));
    assert_eq!(decode(received).envelope.headers.trace(TRACEPARENT), Some("another"));
}

#[test]
fn what_sns_wrapped_is_what_was_published_and_what_only_looks_so_is_left_alone() {
    let envelope = Envelope::builder("t").id("i").header("h", vec![0xff]).payload("body").build();
    let Encoded { body, attributes, .. } = encode(&envelope, &Hop::default());
    let attributes = attributes.into_iter().map(|attribute| {
        let (name, data_type, text, bytes) = into_parts(attribute);
        let value = text.unwrap_or_else(|| BASE64.encode(bytes.unwrap_or_default()));
        (name, serde_json::json!({ "Type": data_type, "Value": value }))
    });
    let wrapped = serde_json::json!({
        "Type": "Notification", "MessageId": "sns-1", "TopicArn": "arn:aws:sns:eu-west-1:1:t", "Message": body,
        "MessageAttributes": attributes.collect::<serde_json::Map<_, _>>(),
    });
    let received = Received { body: wrapped.to_string(), message_id: "sqs-1".into(), ..Received::default() };
    let decoded = decode(received.clone());
    assert_eq!(decoded.envelope, envelope);
    assert_eq!(decoded.topic.as_deref(), Some("arn:aws:sns:eu-west-1:1:t"));
    // The same text as a payload of our own.
    let envelope = Envelope::new(received.body);
    assert_eq!(round_trip(&envelope, false), envelope);
}

#[test]
fn the_size_is_what_aws_counts() {
    let mut envelope = Envelope::builder("t").id("i").header("h", "v").payload("body").build();
    envelope.time = None;
    let encoded = encode(&envelope, &Hop::default());
    // The body; tl-id, tl-type and h, each with "String" and one byte.
    assert_eq!(encoded.size(), 4 + (5 + 6 + 1) + (7 + 6 + 1) + (1 + 6 + 1));
}

#[test]
fn what_is_ours_by_name_and_cannot_be_read_is_delivered_and_told() {
    let received = |attributes: Vec<Attribute>| Received {
        body: "not base64".to_owned(),
        attributes,
        message_id: "m-1".to_owned(),
        ..Received::default()
    };
    for (name, text) in [("tl-body", "base64"), ("tl-body", "rot13"), ("tl-headers", "{\"h\":[[")] {
        let decoded = decode(received(vec![Attribute::text(name, text)]));
        assert_eq!(decoded.undecodable.as_deref(), Some("not base64"), "{name}={text}");
        assert_eq!(decoded.envelope.payload.as_deref(), Some(&b"not base64"[..]));
    }
    let odd = Attribute { data_type: "Number".into(), ..Attribute::text("tl-id", "7") };
    assert!(decode(received(vec![odd])).undecodable.is_some());
    // What is not ours is never that.
    for attributes in [vec![], vec![Attribute::text("other", "x"), Attribute::text("tl-other", "x")]] {
        assert!(decode(received(attributes)).undecodable.is_none());
    }
    // In SNS's wrapping, it is the wrapping that goes on.
    let body = r#"{"Type":"Notification","MessageId":"m","TopicArn":"t","Message":"?",
        "MessageAttributes":{"tl-body":{"Type":"String","Value":"base64"}}}"#;
    let decoded = decode(Received { body: body.to_owned(), ..Received::default() });
    assert_eq!(decoded.undecodable.as_deref(), Some(body));
    assert_eq!(decoded.envelope.payload.as_deref(), Some(&b"?"[..]));
}

#[test]
fn the_capability_table_says_where_things_are() {
    use throughline_core::carriage::{SQS, SQS_FIFO};
    let wire = |envelope: &Envelope, grouped: bool| {
        let encoded = encode(envelope, &Hop { grouped, ..Hop::default() });
        let text = |attribute: Attribute| match attribute.value {
            AttributeValue::Text(text) => (attribute.name, text),
            AttributeValue::Binary(_) => (attribute.name, String::new()),
        };
        let mut wire: Vec<_> = encoded.attributes.into_iter().map(text).collect();
        if grouped {
            let group = group::of(envelope.ordering_key.as_deref(), OperationId(1));
            wire.push(("MessageGroupId".to_owned(), group));
        }
        wire
    };
    throughline_testkit::carriage::check(&SQS, |envelope| wire(envelope, false));
    throughline_testkit::carriage::check(&SQS_FIFO, |envelope| wire(envelope, true));
}
