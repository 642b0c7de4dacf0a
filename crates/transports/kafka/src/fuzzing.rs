//! For Throughline's own fuzzing: what is private here, as laws that hold on any input.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::Timestamp as Stamp;
use throughline_core::{Address, Error, Failure, History, Timestamp};

use crate::acked::Acked;
use crate::cluster::Cluster;
use crate::codec::{DeadLetter, Decoded, Hop, Record, Sink, decode, encode};
use crate::config::{Destination, Style};
use crate::deadletter::Origin;

/// What is wrong with an address.
pub fn configure(address: &Address) -> Vec<Error> {
    let mut errors: Vec<_> = Cluster::of(address).err().into_iter().collect();
    match Destination::of(address) {
        Ok(destination) => errors.extend(destination.wanted().err()),
        Err(error) => errors.push(error),
    }
    errors
}

/// Headers as they stand on the wire, and key and value among them.
#[derive(Default)]
struct Wire {
    key: Option<Bytes>,
    payload: Option<Bytes>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Sink for Wire {
    fn header(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.headers.push((name.to_vec(), value.map(<[u8]>::to_vec)));
    }
}

impl Wire {
    /// Fields, each with its length in a byte before it, 255 for null: key, value, and names and values of headers.
    fn read(input: &[u8]) -> Self {
        let mut rest = input;
        let mut next = || {
            let (length, after) = rest.split_first()?;
            if *length == u8::MAX {
                rest = after;
                return Some(None);
            }
            let (field, left) = after.split_at(usize::from(*length).min(after.len()));
            rest = left;
            Some(Some(field))
        };
        let bytes = |field: Option<Option<&[u8]>>| field.flatten().map(Bytes::copy_from_slice);
        let mut wire = Self { key: bytes(next()), payload: bytes(next()), headers: Vec::new() };
        while let (Some(name), Some(value)) = (next(), next()) {
            // librdkafka reads a name up to its first NUL.
            let name = name.unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
            wire.header(name, value);
        }
        wire
    }

    fn written(&self) -> Vec<u8> {
        let names = self.headers.iter().flat_map(|(name, value)| [Some(&name[..]), value.as_deref()]);
        let mut written = Vec::new();
        for field in [self.key.as_deref(), self.payload.as_deref()].into_iter().chain(names) {
            match field {
                Some(field) => {
                    // 255 is null.
                    let length = u8::try_from(field.len()).map_or(254, |length| length.min(254));
                    written.push(length);
                    written.extend(field.iter().take(length.into()));
                }
                None => written.push(u8::MAX),
            }
        }
        written
    }

    fn decoded(&self, stamp: Stamp) -> Decoded {
        let (key, payload) = (self.key.clone(), self.payload.clone());
        let record = Record { topic: "t", partition: 3, offset: 42, key, payload, stamp };
        decode(record, Default::default(), |each| {
            self.headers.iter().for_each(|(name, value)| each(name, value.as_deref()));
        })
    }

    /// What one hop writes, and the record's timestamp.
    fn of(decoded: &Decoded, hop: &Hop<'_>) -> (Self, Stamp) {
        let envelope = &decoded.envelope;
        let mut wire = Self {
            key: envelope.ordering_key.clone(),
            payload: envelope.payload.clone(),
            headers: Vec::new(),
        };
        let stamp = encode(envelope, hop, &mut wire);
        (wire, Stamp::CreateTime(stamp.unwrap_or(1)))
    }
}

fn hop(history: Option<&History>) -> Hop<'_> {
    Hop {
        sent: Timestamp::from_millis(1_700_000_000_000),
        delay: Duration::ZERO,
        failed_attempts: u32::from(history.is_some()),
        history,
        stamp: true,
        dead_letter: None,
    }
}

/// Whatever a foreign record holds, it decodes, and goes on as an envelope that comes back equal; its dead letter, with the
/// headers of Spring or Connect too, says why.
pub fn message(input: &[u8]) {
    let foreign = Wire::read(input).decoded(Stamp::CreateTime(5));
    assert!(!foreign.envelope.id.is_empty());
    let (wire, stamp) = Wire::of(&foreign, &hop(None));
    assert_eq!(wire.decoded(stamp).envelope, foreign.envelope);
    let origin = Origin { topic: "t".to_owned(), partition: 3, offset: 42, stamp, group: "g".to_owned() };
    let mut history = History::default();
    history.push(Failure::new("http_503").message("no answer"));
    for style in [None, Some(Style::Spring), Some(Style::Connect)] {
        let letter = DeadLetter { origin: &origin, style };
        let (wire, stamp) = Wire::of(&foreign, &Hop { dead_letter: Some(letter), ..hop(Some(&history)) });
        let letter = wire.decoded(stamp);
        assert!(letter.dead_letter.iter().any(|(_, text)| text.contains("http_503")), "{style:?}");
        assert_eq!(letter.history.as_deref(), Some(&history), "{style:?}");
        assert_eq!(letter.envelope.payload, foreign.envelope.payload);
    }
}

/// Messages of ours, and dead letters of Spring and Connect.
pub fn message_seeds() -> Vec<Vec<u8>> {
    let of = |headers: &[(&str, Option<&[u8]>)]| {
        let mut wire = Wire { key: Some("k".into()), payload: Some("{}".into()), headers: Vec::new() };
        headers.iter().for_each(|(name, value)| wire.header(name.as_bytes(), *value));
        wire.written()
    };
    vec![
        of(&[
            ("traceparent", Some(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
            ("tl-id", Some(b"id-1")),
            ("tl-type", Some(b"campaign.sync_report")),
            ("tl-time", Some(b"")),
            ("tl-sent", Some(b"1700000000000")),
            ("tl-binary", Some(b"0,1")),
            ("n", Some(b"v")),
            ("n", None),
            ("tl-headers", Some(br#"{"h":[["a",null],["t",{"t":"amqp:i32","v":"7"}]]}"#)),
            ("tl-history", Some(br#"{"a":[{"at":1,"attempt":1,"error":"e"}]}"#)),
        ]),
        of(&[
            ("kafka_dlt-exception-fqcn", Some(b"java.lang.IllegalStateException")),
            ("kafka_dlt-exception-message", Some(b"no answer")),
            ("kafka_dlt-original-offset", Some(&[0, 0, 0, 0, 0, 0, 0, 7])),
        ]),
        of(&[
            ("__connect.errors.exception.class.name", Some(b"org.apache.kafka.connect.errors.DataException")),
            ("__connect.errors.exception.message", None),
            ("__connect.errors.stage", Some(b"TASK_PUT")),
        ]),
        of(&[("tl-dead-letter-source", Some(b"t")), ("caf\\xe9", Some(b"\xff\x00")), ("", None)]),
    ]
}

/// A position and what is kept with it, one a line: what is read is above the position, and is written so that it reads back
/// the same.
pub fn metadata(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Some((position, text)) = text.split_once('\n') else { return };
    let Ok(position) = position.parse() else { return };
    let Some(acked) = Acked::decode(text.as_bytes(), position) else { return };
    if let Some(again) = acked.encode(position) {
        assert!(again.len() <= 4_096);
        let read = Acked::decode(again.as_bytes(), position);
        assert!(read.as_ref() == Some(&acked) || again.len() > 4_000, "{again}");
    }
    let mut below = acked;
    assert!(!below.take(position.saturating_sub(1)));
}

/// Metadata of ours.
pub fn metadata_seeds() -> Vec<Vec<u8>> {
    ["2\ntl-acks/1:AgEBAQEBAA", "1042\ntl-acks/1:kggBAZsBAA", "0\ntl-acks/1:AA", "7\nsomebody else's"]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect()
}
