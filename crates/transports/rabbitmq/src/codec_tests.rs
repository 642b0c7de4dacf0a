//! Round trips through the real wire encoding.

use proptest::prelude::*;

use super::*;
use crate::value::tests::any_value;

/// Through the bytes that are sent.
fn over_the_wire(properties: &BasicProperties) -> (BasicProperties, usize) {
    use lapin::protocol::basic::{gen_properties, parse_properties};
    let generated = gen_properties::<Vec<u8>>(properties)(Vec::new().into());
    let bytes = generated.unwrap().into_inner().0;
    let (rest, parsed) = parse_properties(bytes.as_slice()).unwrap();
    assert!(rest.is_empty());
    (parsed, bytes.len())
}

fn round_trip(envelope: &Envelope) -> Decoded {
    let hop = Hop::first();
    let (properties, bytes) = over_the_wire(&encode(envelope, &hop));
    // Class, weight and body size stand before the properties.
    assert_eq!(size(envelope, &hop), bytes + 12);
    decode(&properties, envelope.payload.clone().unwrap_or_default(), Timestamp::now())
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "\\PC{0,20}",
        1 => any::<String>(),
        1 => (250_usize..300).prop_map(|n| "x".repeat(n)),
        1 => Just("ä".repeat(200)),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z]{0,3}",
        2 => text(),
        2 => prop::sample::select(vec![
            "traceparent", "TraceParent", "tracestate", "baggage", "x-death", "x-delivery-count", "CC", "BCC",
            "x-first-death-queue", "x-last-death-reason", "x-acquired-count", "x-stream-offset", "tl-headers",
            "tl-sent", "tl-delay", "tl-failed-attempts", "tl-history", "tl-time", "tl-expires-at", "tl-key",
            "tl-idempotency-key", "tl-id-origin", "tl-tombstone", "tl-dead-letter-source", "tl-dead-letter-reason",
            "tl-other", "x-other",
        ]).prop_map(str::to_owned),
    ]
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    prop_oneof![
        text().prop_map(HeaderValue::Text),
        any::<Vec<u8>>().prop_map(HeaderValue::from),
        Just(HeaderValue::Null),
        any_value().prop_map(|value| crate::value::from_amqp(&value)),
        ("(amqp|kafka|sqs):[a-z0-9]{1,6}", text())
            .prop_map(|(kind, text)| HeaderValue::Typed { kind: kind.into(), text }),
    ]
}

fn millis() -> impl Strategy<Value = Timestamp> {
    prop_oneof![any::<i64>(), 0..4_000_000_000_000_i64, (0..4_000_000_000_i64).prop_map(|s| s * 1000)]
        .prop_map(Timestamp::from_millis)
}

prop_compose! {
    fn envelopes()(
        id in text().prop_filter("an id is not empty", |id| !id.is_empty()),
        origin in prop::sample::select(vec![IdOrigin::Envelope, IdOrigin::Broker, IdOrigin::Synthetic]),
        strings in prop::collection::vec(prop::option::of(text()), 7),
        key in prop::option::of(any::<Vec<u8>>()),
        time in prop::option::of(millis()),
        expires_at in prop::option::of(millis()),
        priority in prop::option::of(any::<u8>()),
        headers in prop::collection::vec((name(), header_value()), 0..24),
        payload in prop::option::of(any::<Vec<u8>>()),
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_envelope_comes_back_equal(envelope in envelopes()) {
        prop_assert_eq!(round_trip(&envelope).envelope, envelope);
    }

    #[test]
    fn a_foreign_message_decodes_and_its_headers_go_back_as_they_came(
        headers in prop::collection::btree_map("[a-zA-Z-]{0,12}|tl-[a-z-]{0,12}|x-delivery-count|tl-sent|tl-headers", any_value(), 0..8),
        expiration in prop::option::of("[0-9]{0,22}|\\PC{0,8}"),
        timestamp in prop::option::of(any::<u64>()),
        message_id in prop::option::of("\\PC{0,40}"),
    ) {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(ShortString::try_new(name).unwrap(), value);
        }
        let mut properties = BasicProperties::default().with_headers(table);
        if let Some(expiration) = expiration {
            properties = properties.with_expiration(ShortString::try_new(expiration).unwrap());
        }
        if let Some(timestamp) = timestamp {
            properties = properties.with_timestamp(timestamp);
        }
        if let Some(id) = &message_id {
            properties = properties.with_message_id(ShortString::try_new(id.clone()).unwrap());
        }
        let foreign = decode(&properties, Bytes::from_static(b"x"), Timestamp::now()).envelope;
        prop_assert_eq!(round_trip(&foreign).envelope, foreign);
    }
}

#[test]
fn an_ordinary_message_is_plain_amqp() {
    let envelope = Envelope::builder("campaign.sync_report")
        .id("id-1")
        .source("ads")
        .key("k")
        .time(Timestamp::from_millis(1_700_000_000_000))
        .content_type("application/json")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("tenant", "5000")
        .payload("{}")
        .build();
    let hop = Hop { sent: Timestamp::from_millis(5), ..Hop::first() };
    let properties = encode(&envelope, &hop);
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "id-1");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "campaign.sync_report");
    assert_eq!(properties.app_id().as_ref().unwrap().as_str(), "ads");
    assert_eq!((*properties.timestamp(), *properties.delivery_mode()), (Some(1_700_000_000), Some(2)));
    let headers = properties.headers().as_ref().unwrap().inner();
    let names: Vec<_> = headers.keys().map(ShortString::as_str).collect();
    assert_eq!(names, ["tenant", "tl-key", "tl-sent", "traceparent"]);
    assert!(matches!(headers.get("traceparent"), Some(AMQPValue::LongString(_))));
    assert_eq!(headers.get("tl-sent"), Some(&AMQPValue::LongLongInt(5)));
}

#[test]
fn a_repeated_trace_header_is_native_too_and_reserved_names_never_are() {
    let mut envelope = Envelope::new("x");
    for (name, value) in
        [("traceparent", "a"), ("traceparent", "b"), ("CC", "q"), ("x-death", "1"), ("tl-sent", "0")]
    {
        envelope.headers.append(name, value);
    }
    let properties = encode(&envelope, &Hop::first());
    let headers = properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers.get("traceparent"), Some(&AMQPValue::LongString("b".into())));
    assert!(!headers.contains_key("CC") && !headers.contains_key("x-death"));
    assert!(matches!(headers.get("tl-sent"), Some(AMQPValue::LongLongInt(_))));
    assert_eq!(round_trip(&envelope).envelope, envelope);
}

#[test]
fn bookkeeping_travels_beside_the_envelope() {
    let mut history = History::default();
    history.push(throughline_core::Failure::new("timeout").dependency("ads-api"));
    let hop = Hop {
        sent: Timestamp::from_millis(1_000),
        delay: Duration::from_millis(250),
        failed_attempts: 3,
        history: Some(&history),
        expires: true,
        dead_letter: Some(DeadLetter { source: "jobs", reason: "timeout".into() }),
    };
    let envelope = Envelope::new("x");
    let (properties, bytes) = over_the_wire(&encode(&envelope, &hop));
    assert_eq!(size(&envelope, &hop), bytes + 12);
    let decoded = decode(&properties, Bytes::from_static(b"x"), Timestamp::now());
    assert_eq!(decoded.failed_attempts, 3);
    assert_eq!(decoded.history.as_deref(), Some(&history));
    assert_eq!(decoded.enqueued, Some(Timestamp::from_millis(1_250)));
    assert_eq!(decoded.envelope, envelope);
}

#[test]
fn expiry_is_relative_for_the_broker_and_absolute_for_us() {
    let mut envelope = Envelope::new("x");
    let at = |millis| Some(Timestamp::from_millis(millis));
    let expiration = |envelope: &Envelope, expires| {
        let hop = Hop { sent: Timestamp::from_millis(10_000), expires, ..Hop::first() };
        encode(envelope, &hop).expiration().as_ref().map(ToString::to_string)
    };
    for (expires_at, expected) in [
        (15_000, Some("5000")),
        (9_000, Some("0")),
        (i64::MIN, Some("0")),
        (10_000 + 4_294_967_295, Some("4294967295")),
        // More than the broker takes: only in our header.
        (10_001 + 4_294_967_295, None),
    ] {
        envelope.expires_at = at(expires_at);
        assert_eq!(expiration(&envelope, true).as_deref(), expected);
        assert_eq!(expiration(&envelope, false), None);
        assert_eq!(round_trip(&envelope).envelope.expires_at, at(expires_at));
    }
    // A foreign message: from its timestamp, else from its receipt.
    let received = Timestamp::from_millis(50_000);
    let properties = BasicProperties::default().with_expiration("5000".into());
    let decoded = decode(&properties, Bytes::new(), received);
    assert_eq!(decoded.envelope.expires_at, at(55_000));
    let decoded = decode(&properties.with_timestamp(20), Bytes::new(), received);
    assert_eq!(decoded.envelope.expires_at, at(25_000));
}

#[test]
fn counts_of_the_broker_are_read_and_are_no_headers() {
    let mut table = FieldTable::default();
    table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(2));
    table.insert("x-death".into(), AMQPValue::FieldArray(Vec::new().into()));
    let decoded = decode(&BasicProperties::default().with_headers(table), Bytes::new(), Timestamp::now());
    assert_eq!(decoded.delivery_count, Some(2));
    assert!(decoded.envelope.headers.is_empty());
    assert_eq!(decoded.envelope.id_origin, IdOrigin::Synthetic);
    assert_eq!(decoded.enqueued, None);
}

#[test]
fn the_capability_table_says_where_things_are() {
    throughline_testkit::carriage::check(&throughline_core::carriage::RABBITMQ, |envelope| {
        let (properties, _) = over_the_wire(&encode(envelope, &Hop::first()));
        let of = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
        let own = [
            ("message_id", of(properties.message_id())),
            ("type", of(properties.kind())),
            ("app_id", of(properties.app_id())),
            ("content_type", of(properties.content_type())),
            ("content_encoding", of(properties.content_encoding())),
            ("correlation_id", of(properties.correlation_id())),
            ("reply_to", of(properties.reply_to())),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let headers = properties.headers().iter().flatten();
        let headers = headers.map(|(name, value)| {
            let value = crate::value::from_amqp(value);
            (name.to_string(), value.as_str().unwrap_or_default().to_owned())
        });
        own.chain(headers).collect()
    });
}
