//! Round trips through a list of headers, as the wire is one.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use rdkafka::Timestamp as Stamp;
use throughline_core::{Envelope, History, IdOrigin, Timestamp};

use super::encode::HEADER_OVERHEAD;
use super::*;
use crate::config::Style;
use crate::deadletter::Origin;

#[derive(Default)]
struct List(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Sink for List {
    fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.0.push((name.to_vec(), value.map(<[u8]>::to_vec)));
    }
}

fn hop() -> Hop<'static> {
    Hop {
        sent: Timestamp::now(),
        delay: Duration::ZERO,
        failed_attempts: 0,
        history: None,
        stamp: true,
        dead_letter: None,
    }
}

fn decode_list(key: Option<&[u8]>, payload: Option<&[u8]>, stamp: Stamp, list: &List) -> Decoded {
    let (key, payload) = (key.map(Bytes::copy_from_slice), payload.map(Bytes::copy_from_slice));
    let record = Record { topic: "t", partition: 3, offset: 42, key, payload, stamp };
    decode(record, Default::default(), |each| {
        list.0.iter().for_each(|(name, value)| each(name, value.as_deref()));
    })
}

fn round_trip(envelope: &Envelope, hop: &Hop<'_>) -> Decoded {
    let mut list = List::default();
    let stamp = encode(envelope, hop, &mut list);
    let mut sizer = Sizer::default();
    encode(envelope, hop, &mut sizer);
    let size: usize =
        list.0.iter().map(|(n, v)| HEADER_OVERHEAD + n.len() + v.as_ref().map_or(0, Vec::len)).sum();
    assert_eq!(sizer.0, size);
    assert!(list.0.iter().all(|(name, _)| !name.is_empty() && !name.contains(&0)));
    // Without one the producer stamps the record itself.
    let stamp = Stamp::CreateTime(stamp.unwrap_or(1));
    decode_list(envelope.ordering_key.as_deref(), envelope.payload.as_deref(), stamp, &list)
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z]{0,2}",
        2 => any::<String>(),
        1 => "[a-z\\\\xe9\0]{0,4}",
        2 => prop::sample::select(OWN.to_vec()).prop_map(str::to_owned),
        2 => prop::sample::select(vec![
            "traceparent", "TraceParent", "tracestate", "baggage", "tl-dead-letter-reason", "tl-other", "Content-Type",
            "kafka_dlt-exception-fqcn", "caf\\xe9",
        ]).prop_map(str::to_owned),
    ]
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    prop_oneof![
        any::<String>().prop_map(HeaderValue::Text),
        any::<Vec<u8>>().prop_map(HeaderValue::from),
        any::<String>().prop_map(|text| HeaderValue::from(text.into_bytes())),
        Just(HeaderValue::Null),
        ("(amqp|kafka|sqs):[a-z0-9]{1,6}", any::<String>())
            .prop_map(|(kind, text)| HeaderValue::Typed { kind: kind.into(), text }),
        any::<Vec<u8>>().prop_map(|name| from_raw(&name, Some(b"v")).1),
        Just(from_raw(b"caf\xe9", None).1),
    ]
}

prop_compose! {
    fn envelopes()(
        id in any::<String>().prop_filter("an id is not empty", |id| !id.is_empty()),
        origin in prop::sample::select(vec![IdOrigin::Envelope, IdOrigin::Broker, IdOrigin::Synthetic]),
        strings in prop::collection::vec(prop::option::of(any::<String>()), 7),
        key in prop::option::of(any::<Vec<u8>>()),
        time in prop::option::of(prop_oneof![any::<i64>(), 0..4_000_000_000_000_i64].prop_map(Timestamp::from_millis)),
        expires_at in prop::option::of(any::<i64>().prop_map(Timestamp::from_millis)),
        priority in prop::option::of(any::<u8>()),
        headers in prop::collection::vec((name(), header_value()), 0..16),
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
    fn every_envelope_comes_back_equal(envelope in envelopes(), stamp: bool) {
        prop_assert_eq!(round_trip(&envelope, &Hop { stamp, ..hop() }).envelope, envelope);
    }

    #[test]
    fn a_foreign_record_decodes_and_goes_back_as_it_came(
        headers in prop::collection::vec((
            prop_oneof![any::<Vec<u8>>(), name().prop_map(String::into_bytes)],
            prop::option::of(prop_oneof![any::<Vec<u8>>(), "[0-9,]{0,4}".prop_map(String::into_bytes)]),
        ), 0..12),
        key in prop::option::of(any::<Vec<u8>>()),
        payload in prop::option::of(any::<Vec<u8>>()),
        stamp in any::<i64>(),
        by_broker: bool,
    ) {
        let stamp = if by_broker { Stamp::LogAppendTime(stamp) } else { Stamp::CreateTime(stamp) };
        let headers = headers.into_iter().map(|(mut name, value)| {
            name.retain(|byte| *byte != 0);
            (name, value)
        });
        let decoded = decode_list(key.as_deref(), payload.as_deref(), stamp, &List(headers.collect()));
        prop_assert!(!decoded.envelope.id.is_empty());
        prop_assert_eq!(&round_trip(&decoded.envelope, &hop()).envelope, &decoded.envelope);
    }
}

#[test]
fn a_foreign_record_gets_its_place_for_an_id_and_keeps_every_header() {
    let mut list = List::default();
    for (name, value) in [
        (&b"a"[..], Some(&b"1"[..])),
        (b"b", None),
        (b"a", Some(b"")),
        (b"caf\xe9", Some(b"\xff")),
        (b"bin", Some(b"\xff")),
        (b"content-type", Some(b"text/plain")),
        (b"TraceParent", Some(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
    ] {
        list.header(name, value);
    }
    let Decoded { envelope, enqueued, .. } = decode_list(None, Some(b""), Stamp::CreateTime(7), &list);
    assert_eq!((envelope.id.as_str(), envelope.id_origin), ("t-3-42", IdOrigin::Broker));
    assert_eq!((envelope.time, enqueued), (Some(Timestamp::from_millis(7)), None));
    assert_eq!(envelope.content_type.as_deref(), Some("text/plain"));
    assert_eq!((envelope.ordering_key.clone(), envelope.payload.clone()), (None, Some(Bytes::new())));
    let values: Vec<_> = envelope.headers.get_all("a").cloned().collect();
    assert_eq!(values, [HeaderValue::from("1"), HeaderValue::from("")]);
    assert_eq!(envelope.headers.get("b"), Some(&HeaderValue::Null));
    assert!(
        matches!(envelope.headers.get("bin"), Some(HeaderValue::Bytes(bytes)) if bytes.as_ref() == b"\xff")
    );
    assert!(matches!(envelope.headers.get("caf\\xe9"), Some(HeaderValue::Typed { .. })));
    assert!(envelope.headers.trace("traceparent").is_some());
    // Sent on, the name that is not UTF-8 is what it was; and trace headers come first.
    let mut again = List::default();
    encode(&envelope, &hop(), &mut again);
    assert_eq!(again.0[0].0, b"TraceParent");
    assert!(again.0.contains(&(b"caf\xe9".to_vec(), Some(b"\xff".to_vec()))));
}

#[test]
fn what_looks_like_ours_and_is_not_stays_a_header() {
    let mut list = List::default();
    for (name, value) in [
        ("tl-sent", &b"soon"[..]),
        ("tl-priority", b"300"),
        ("tl-headers", b"{\"f\":{\"id\":\"x\"}}"),
        ("tl-id", b"\xff"),
        ("content-type", b"a"),
        ("content-type", b"b"),
        ("tl-binary", b"x"),
    ] {
        list.header(name.as_bytes(), Some(value));
    }
    let decoded = decode_list(None, None, Stamp::NotAvailable, &list);
    assert_eq!(decoded.envelope.headers.len(), 6);
    assert_eq!(decoded.envelope.content_type.as_deref(), Some("a"));
    assert_eq!(decoded.envelope.headers.get_str("content-type"), Some("b"));
    assert_eq!((decoded.envelope.payload, decoded.envelope.time), (None, None));
}

#[test]
fn times_that_a_record_cannot_have_travel_in_a_header() {
    let now = Timestamp::now().as_millis();
    for (time, stamps) in [(0, false), (-5, false), (now, true), (now + 2 * AHEAD, false), (1, true)] {
        let mut envelope = Envelope::new("x");
        envelope.time = Some(Timestamp::from_millis(time));
        let mut list = List::default();
        assert_eq!(encode(&envelope, &hop(), &mut list), stamps.then_some(time));
        assert_eq!(list.0.iter().any(|(name, _)| name == b"tl-time"), !stamps);
    }
}

#[test]
fn a_dead_letter_is_read_in_three_dialects() {
    let mut history = History::default();
    history.push(throughline_core::Failure::new("http_503").message("no answer"));
    let origin = Origin {
        topic: "orders".into(),
        partition: 1,
        offset: 9,
        stamp: Stamp::CreateTime(5),
        group: "g".into(),
    };
    for style in [None, Some(Style::Spring), Some(Style::Connect)] {
        let letter = DeadLetter { origin: &origin, style };
        let hop = Hop { failed_attempts: 1, history: Some(&history), dead_letter: Some(letter), ..hop() };
        let decoded = round_trip(&Envelope::new("x"), &hop);
        assert_eq!(decoded.history.as_deref(), Some(&history));
        assert_eq!(decoded.dead_letter[0], ("tl-dead-letter-source", "orders".to_owned()));
        assert_eq!(decoded.dead_letter[1], ("tl-dead-letter-reason", "http_503: no answer".to_owned()));
        // The same without what is ours: as another application writes it.
        let mut list = List::default();
        encode(&Envelope::new("x"), &hop, &mut list);
        list.0.retain(|(name, _)| !name.starts_with(b"tl-"));
        let foreign = decode_list(None, None, Stamp::NotAvailable, &list);
        assert_eq!(foreign.failed_attempts, u32::from(style.is_some()));
        let read = foreign.history.map(|history| history.last().unwrap().to_string());
        assert_eq!(read.as_deref(), style.map(|_| "http_503: no answer"));
    }
}

#[test]
fn the_capability_table_says_where_things_are() {
    throughline_testkit::carriage::check(&throughline_core::carriage::KAFKA, |envelope| {
        let mut list = List::default();
        encode(envelope, &hop(), &mut list);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let mut wire: Vec<_> = list
            .0
            .into_iter()
            .map(|(name, value)| (text(name), value.map(text).unwrap_or_default()))
            .collect();
        let key = envelope.ordering_key.as_deref().map(<[u8]>::to_vec);
        wire.extend(key.map(|key| ("key".to_owned(), text(key))));
        wire
    });
}
