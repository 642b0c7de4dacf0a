//! Round trips through an event as a queue gets it, written again by someone with another taste.

use proptest::prelude::*;

use super::*;
use crate::codec::{self, Received};

/// As EventBridge would deliver it: parsed and written again, with blanks.
fn delivered(event: &Event) -> Received {
    assert!(!event.source.is_empty() && !event.source.starts_with("aws."));
    assert!((1..=128).contains(&event.detail_type.len()));
    let detail: Json = serde_json::from_str(&event.detail).unwrap();
    assert!(matches!(detail, Json::Object(_)));
    let text = |text: &str| Json::Text(text.to_owned());
    let body = Json::Object(vec![
        ("version".into(), text("0")),
        ("id".into(), text("eb-1")),
        ("detail-type".into(), text(&event.detail_type)),
        ("source".into(), text(&event.source)),
        ("account".into(), text("123")),
        ("time".into(), text("2026-11-22T10:00:00Z")),
        ("region".into(), text("eu-west-1")),
        ("resources".into(), Json::Array(Vec::new())),
        ("detail".into(), detail),
    ]);
    let body = serde_json::to_string_pretty(&body).unwrap();
    assert!(is_legal(&body), "a queue would not take it");
    Received { body, message_id: "sqs-1".into(), xray: event.xray.clone(), ..Received::default() }
}

fn round_trip(envelope: &Envelope) -> Envelope {
    codec::decode(delivered(&encode(envelope, &Hop::default(), "throughline", false).unwrap())).envelope
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_envelope_comes_back_equal(envelope in codec::tests::envelopes()) {
        let back = round_trip(&envelope);
        for name in throughline_core::headers::TRACE_HEADERS {
            prop_assert_eq!(back.headers.trace(name), envelope.headers.trace(name));
        }
        prop_assert_eq!(back, envelope);
    }

    #[test]
    fn no_body_panics(text in "\\{\"detail-type\"\\PC*|\\{\"version\":\"0\",\"id\":\"i\",\"source\":\"s\",\"detail-type\":\"t\",\"detail\":\\PC*\\}") {
        let _ = decode(&text);
    }
}

#[test]
fn json_is_data_that_rules_can_match_and_other_text_comes_back_exactly() {
    let payload = |text: &str| Envelope::builder("order.placed").payload(text.to_owned()).build();
    for (text, in_detail) in [
        (r#"{"z":1,"a":[1.5,"ä"]}"#, r#""data":{"z":1,"a":[1.5,"ä"]}"#),
        (r#"{"a": 1}"#, r#""data":"{\"a\": 1}""#),
        ("hello", r#""data":"hello""#),
        ("", r#""data":"""#),
    ] {
        let envelope = payload(text);
        let event = encode(&envelope, &Hop::default(), "throughline", false).unwrap();
        assert!(event.detail.contains(in_detail), "{}", event.detail);
        assert_eq!((event.source.as_str(), event.detail_type.as_str()), ("throughline", "order.placed"));
        assert_eq!(round_trip(&envelope), envelope);
    }
}

#[test]
fn a_raw_event_is_the_payload_itself() {
    let envelope = Envelope::builder("t").header("tenant", "5000").payload(r#"{"z":1,"a":2}"#).build();
    let event = encode(&envelope, &Hop::default(), "shop", true).unwrap();
    assert!(event.detail.starts_with(r#"{"z":1,"a":2,"metadata":{"#), "{}", event.detail);
    assert_eq!(codec::decode(delivered(&event)).envelope, envelope);
    for payload in ["7", "x", r#"{"metadata":1}"#, r#"{"a": 1}"#] {
        let error = encode(&Envelope::new(payload), &Hop::default(), "shop", true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidMessage);
    }
}

#[test]
fn an_aws_services_own_event_and_a_targets_dead_letter_say_what_they_can() {
    let body = r#"{"version":"0","id":"e-1","detail-type":"EC2 Instance State-change Notification","source":"aws.ec2",
        "account":"123","time":"2026-11-22T10:00:00Z","region":"eu-west-1","resources":["arn:x"],"detail":{"state": "stopped"}}"#;
    let mut received = Received { body: body.into(), message_id: "sqs-1".into(), ..Received::default() };
    received.attributes.push(crate::attribute::Attribute::text("ERROR_CODE", "NO_PERMISSIONS"));
    let envelope = codec::decode(received).envelope;
    assert_eq!((envelope.id.as_str(), envelope.id_origin), ("e-1", IdOrigin::Broker));
    assert_eq!(envelope.message_type.as_deref(), Some("EC2 Instance State-change Notification"));
    assert_eq!(envelope.source.as_deref(), Some("aws.ec2"));
    assert_eq!(envelope.payload.as_deref(), Some(&br#"{"state":"stopped"}"#[..]));
    assert_eq!(envelope.headers.get_str("resources"), Some(r#"["arn:x"]"#));
    assert_eq!(envelope.headers.get_str("ERROR_CODE"), Some("NO_PERMISSIONS"));
    // Taken apart by an input transformer: what is left is the payload.
    let transformed =
        Received { body: r#"{"state":"stopped"}"#.into(), message_id: "m".into(), ..Received::default() };
    assert_eq!(codec::decode(transformed).envelope.payload.as_deref(), Some(&br#"{"state":"stopped"}"#[..]));
}

#[test]
fn what_nobody_can_read_is_delivered_and_told() {
    let body = |metadata: &str| {
        format!(
            r#"{{"version":"0","id":"e-1","detail-type":"t","source":"shop","detail":{{"metadata":{metadata},"data":"?"}}}}"#
        )
    };
    for (metadata, is_broken) in [
        (r#"{"tl-data":"base64"}"#, true),
        (r#"{"tl-data":"text","tl-headers":"{"}"#, true),
        (r#"{"tl-data":"text"}"#, false),
        (r#"{"version":"1"}"#, false),
    ] {
        let body = body(metadata);
        let decoded = codec::decode(Received { body: body.clone(), ..Received::default() });
        assert_eq!(decoded.undecodable, is_broken.then_some(body), "{metadata}");
        assert!(decoded.envelope.payload.is_some_and(|payload| !payload.is_empty()));
    }
}
