//! For Throughline's own fuzzing: what is private here, as laws that hold on any input.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::protocol::basic::{gen_properties, parse_properties};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use throughline_core::{Address, Envelope, Error, HeaderValue, Timestamp};

use crate::codec::{Hop, decode, encode, size};
use crate::config::{Destination, Settings};
use crate::diagnose;
use crate::value::{from_amqp, to_amqp};

/// The longest properties that are read: at most some 600 tables within each other.
const LONGEST: usize = 4096;

/// What is wrong with an address.
pub fn configure(address: &Address) -> Vec<Error> {
    let mut errors: Vec<_> = Settings::of(address).err().into_iter().collect();
    match Destination::of(address) {
        Ok(destination) => errors.extend(crate::admin::check_wanted(&destination).err()),
        Err(error) => errors.push(error),
    }
    errors
}

/// Properties as they stand on the wire; the last byte is how much of the input is the payload.
///
/// Whatever a foreign message holds, it decodes, and goes on as an envelope that comes back equal.
pub fn message(input: &[u8]) {
    let Some((payload, wire)) = input.split_last() else { return };
    let (properties, payload) = wire.split_at(wire.len().saturating_sub(usize::from(*payload)));
    // The client library's parser goes down a nested table by recursion, and its stack ends with some thousand levels.
    if properties.len() > LONGEST {
        return;
    }
    let Ok((_, properties)) = parse_properties(properties) else { return };
    let foreign = decode(&properties, Bytes::copy_from_slice(payload), Timestamp::from_millis(0)).envelope;
    let hop = Hop::first();
    let encoded = encode(&foreign, &hop);
    let Some(wire) = written(&encoded) else { return };
    assert_eq!(size(&foreign, &hop), wire.len() + 12, "measured wrongly");
    let Ok((_, read)) = parse_properties(wire.as_slice()) else {
        assert!(wire.is_empty(), "what is written cannot be read");
        return;
    };
    let again =
        decode(&read, foreign.payload.clone().unwrap_or_default(), Timestamp::from_millis(0)).envelope;
    assert_eq!(again, foreign);
}

fn written(properties: &BasicProperties) -> Option<Vec<u8>> {
    gen_properties::<Vec<u8>>(properties)(Vec::new().into()).ok().map(|context| context.into_inner().0)
}

/// Messages of ours and of others.
pub fn message_seeds() -> Vec<Vec<u8>> {
    let ours = Envelope::builder("campaign.sync_report")
        .id("id-1")
        .source("ads")
        .key("k")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .header("n", HeaderValue::Typed { kind: "amqp:i32".into(), text: "7".into() })
        .header("n", "again")
        .header("b", vec![0xff])
        .payload("{}");
    let mut nested = FieldTable::default();
    nested.insert("array".into(), AMQPValue::FieldArray(vec![AMQPValue::Void, AMQPValue::Float(1.5)].into()));
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("x-delivery-count", AMQPValue::LongLongInt(2)),
        ("tl-headers", AMQPValue::LongString(r#"{"f":{"id":"i"},"h":[["a",null]]}"#.into())),
        ("tl-history", AMQPValue::LongString(r#"{"a":[{"at":1,"attempt":1,"error":"e"}]}"#.into())),
        ("tl-sent", AMQPValue::LongInt(5)),
        ("tl-tombstone", AMQPValue::Boolean(true)),
        ("table", AMQPValue::FieldTable(nested)),
        ("bytes", AMQPValue::LongString(vec![0xff, 0].into())),
    ] {
        headers.insert(name.into(), value);
    }
    let foreign = BasicProperties::default()
        .with_headers(headers)
        .with_expiration("5000".into())
        .with_timestamp(u64::MAX)
        .with_message_id("m".into())
        .with_priority(9);
    [encode(&ours.build(), &Hop::first()), foreign, BasicProperties::default()]
        .iter()
        .filter_map(written)
        .map(|mut wire| {
            wire.extend(b"body\x04");
            wire
        })
        .collect()
}

/// A kind and a text, one a line: what is taken as a native value is in the canonical form.
pub fn value(input: &[u8]) {
    let input = String::from_utf8_lossy(input);
    let (kind, text) = input.split_once('\n').unwrap_or((&input, ""));
    if let Some(value) = to_amqp(kind, text) {
        let typed = HeaderValue::Typed { kind: kind.to_owned().into(), text: text.to_owned() };
        assert_eq!(from_amqp(&value), typed);
    }
}

/// A value of each kind.
pub fn value_seeds() -> Vec<Vec<u8>> {
    [
        "amqp:bool\ntrue",
        "amqp:i8\n-7",
        "amqp:u64\n7",
        "amqp:f32\n1.5",
        "amqp:f64\nNaN:7ff8000000000000",
        "amqp:decimal\n12.50",
        "amqp:timestamp\n18446744073709551615",
        "amqp:string\n/w==",
        r#"amqp:array
["a",null,true,{"i32":7},{"f64":"1.5"},{"bytes":"/w=="},{"table":{"n":{"u8":1}}},[]]"#,
        r#"amqp:table
{"a":"b","c":{"table":{}}}"#,
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}

/// A broker's refusal: read or not, without a panic.
pub fn reply(input: &[u8]) {
    diagnose::read_reply(&String::from_utf8_lossy(input));
}

/// Refusals of RabbitMQ 3.10.
pub fn reply_seeds() -> Vec<Vec<u8>> {
    const START: &str = "PRECONDITION_FAILED - inequivalent arg";
    [
        "'x-max-length' for queue 'q' in vhost '/': received none but current is the value '10' of type 'signedint'",
        "'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
        "'alternate-exchange' for exchange 'e' in vhost '/': received the value '1' of type 'signedint' but current is none",
    ]
    .iter()
    .map(|text| format!("{START} {text}").into_bytes())
    .collect()
}

/// A broker's greeting: read or not, without a panic.
pub fn greeting(input: &[u8]) {
    diagnose::read_greeting(input);
}

/// A greeting with nested tables.
pub fn greeting_seeds() -> Vec<Vec<u8>> {
    let mut capabilities = FieldTable::default();
    capabilities.insert("connection.blocked".into(), AMQPValue::Boolean(true));
    let mut properties = FieldTable::default();
    properties.insert(ShortString::from("capabilities"), AMQPValue::FieldTable(capabilities));
    properties.insert("product".into(), AMQPValue::LongString("RabbitMQ".into()));
    let table = lapin::types::generation::gen_field_table::<Vec<u8>>(&properties)(Vec::new().into());
    let mut payload = vec![0, 10, 0, 10, 0, 9];
    payload.extend(table.map(|table| table.into_inner().0).unwrap_or_default());
    vec![payload]
}
