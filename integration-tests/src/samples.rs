//! Messages with all that is awkward to carry, each of a class that a table can name, and what became of them.

use std::collections::{BTreeMap, BTreeSet};

use throughline::{Envelope, HeaderValue};

/// The trace that every sample belongs to.
pub const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What is said of a key whose messages came in another order.
pub const OUT_OF_ORDER: &str = "out of order";

/// Messages of one key, which must stay in order.
const IN_ORDER: usize = 5;

/// A message, and what it is there for.
#[derive(Debug)]
pub struct Sample {
    /// The class: `binary payload`.
    pub class: &'static str,
    /// The message. No two samples have the same id.
    pub envelope: Envelope,
}

/// New messages, one or some of each class.
pub fn samples() -> Vec<Sample> {
    let mut all = Vec::new();
    let mut add = |class, envelope| all.push(Sample { class, envelope });
    let plain = || {
        Envelope::builder("campaign.sync_report")
            .header("traceparent", TRACEPARENT)
            .header("tracestate", "vendor=x,other=y:1")
            .header("baggage", "tenant=5000,user=%C3%BC")
    };
    add("text payload", plain().content_type("text/plain").payload("grüße \u{1f680}\r\n\t").build());
    let json = br#"{ "b": 1.50, "a" : "\u00fc" }"#;
    add("JSON payload", plain().content_type("application/json").payload(json.to_vec()).build());
    add("binary payload", plain().payload((0..=255).collect::<Vec<u8>>()).build());
    add("empty payload", plain().payload("").build());
    add("no payload", plain().tombstone().build());
    let large: Vec<u8> = (0..200 * 1024_u32).map(|at| b'a' + u8::try_from(at % 26).unwrap()).collect();
    add("200 KiB payload", plain().payload(large).build());
    add("no trace", Envelope::builder("campaign.sync_report").payload("x").build());
    let fields = plain()
        .source("ads/sync")
        .content_encoding("identity")
        .correlation_id("correlation \u{fc}")
        .reply_to("replies")
        .idempotency_key(format!("once-{}", uuid::Uuid::now_v7()))
        .time(throughline::Timestamp::from_millis(1_700_000_000_123))
        .expires_in(std::time::Duration::from_secs(3600));
    add("every field", fields.payload("x").build());
    let many = (0..60).map(|number| (format!("header-{number:02}"), format!("value {number}")));
    add("60 headers", plain().headers(many).payload("x").build());
    let long = plain().header("long", "v".repeat(10_000)).header("n".repeat(300), "of a long name");
    add("long headers", long.payload("x").build());
    let twice = plain().header("twice", "one").header("twice", "two").header("twice", "one");
    add("duplicate headers", twice.payload("x").build());
    let binary: [&[u8]; 4] = [b"", b"text", &[0xff, 0xfe, 0x00], &[0x80; 64]];
    let binary = binary.iter().map(|bytes| ("binary", HeaderValue::Bytes(bytes.to_vec().into())));
    add("binary headers", plain().headers(binary).payload("x").build());
    let texts = ["", " ", "null", "line\nbreak\r\n", "\u{fc}\u{1f680}", "a\u{0}b", "%41", "12"];
    let values = texts.iter().enumerate().map(|(at, text)| (format!("value-{at}"), *text));
    let names =
        ["", " ", "a.b", "a b", "\u{fc}ber", "\u{1f680}", "AWS.Thing", "Content-Type", "x-death", "tl-sent"];
    let names = names.iter().map(|name| (*name, "value"));
    add(
        "awkward headers",
        plain().headers(values).headers(names).header("none", HeaderValue::Null).payload("x").build(),
    );
    for key in ["a", "schl\u{fc}ssel"] {
        for place in 0..IN_ORDER {
            add("keys in order", plain().key(key).payload(format!("{key} {place}")).build());
        }
    }
    add("binary key", plain().key(vec![0_u8, 159, 146]).payload("x").build());
    add("empty key", plain().key("").payload("x").build());
    all
}

/// What became of samples, by class: empty where all came as they were, each once, those of a key in order.
pub fn differences(sent: &[Sample], came: &[Envelope]) -> BTreeMap<&'static str, String> {
    let mut found = BTreeMap::new();
    let mut note = |class: &'static str, what: String| {
        found.entry(class).or_insert(what);
    };
    for Sample { class, envelope } in sent {
        let mut copies = came.iter().filter(|other| other.id == envelope.id);
        match (copies.next(), copies.count()) {
            (None, _) => note(class, "missing".to_owned()),
            (Some(_), 1..) => note(class, "came more than once".to_owned()),
            (Some(other), 0) => {
                if let Some(field) = differing(envelope, other) {
                    note(class, field);
                }
            }
        }
    }
    let ids: BTreeSet<_> = sent.iter().map(|sample| &sample.envelope.id).collect();
    if came.iter().any(|envelope| !ids.contains(&envelope.id)) {
        note("stranger", "a message came that nobody sent".to_owned());
    }
    for key in sent.iter().filter_map(|sample| sample.envelope.ordering_key.as_ref()) {
        let of_key = |envelope: &&Envelope| envelope.ordering_key.as_ref() == Some(key);
        let sent: Vec<_> = sent.iter().map(|sample| &sample.envelope).filter(of_key).map(|e| &e.id).collect();
        let came: Vec<_> = came.iter().filter(of_key).map(|e| &e.id).collect();
        if came.len() == sent.len() && came != sent {
            note("keys in order", OUT_OF_ORDER.to_owned());
        }
    }
    found
}

/// The first field in which two envelopes differ.
fn differing(sent: &Envelope, came: &Envelope) -> Option<String> {
    if sent == came {
        return None;
    }
    macro_rules! fields {
        ($($field:ident),+) => {
            $(if sent.$field != came.$field {
                let text = format!("{} was {:?}, came as {:?}", stringify!($field), sent.$field, came.$field);
                return Some(text.chars().take(300).collect());
            })+
        };
    }
    fields!(id_origin, message_type, source, ordering_key, time, content_type, content_encoding);
    fields!(correlation_id, reply_to, expires_at, priority, idempotency_key);
    for (name, _) in sent.headers.iter().chain(came.headers.iter()) {
        let before: Vec<_> = sent.headers.get_all(name).collect();
        let after: Vec<_> = came.headers.get_all(name).collect();
        if before != after {
            let text = format!("header {name:?} was {before:?}, came as {after:?}");
            return Some(text.chars().take(300).collect());
        }
    }
    Some("payload".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(sent: &[Sample]) -> Vec<Envelope> {
        sent.iter().map(|sample| sample.envelope.clone()).collect()
    }

    #[test]
    fn what_came_as_it_was_does_not_differ() {
        let sent = samples();
        assert_eq!(differences(&sent, &came(&sent)), BTreeMap::new());
    }

    #[test]
    fn every_difference_is_found() {
        let sent = samples();
        let at = |class| sent.iter().position(|sample| sample.class == class).unwrap();
        type Change = Box<dyn Fn(&mut Vec<Envelope>)>;
        let changes: [(&str, &str, Change); 6] = [
            ("text payload", "payload", Box::new(|came| came[0].payload = Some("grusse".into()))),
            ("text payload", "missing", Box::new(|came| drop(came.remove(0)))),
            ("text payload", "more than once", Box::new(|came| came.push(came[0].clone()))),
            ("stranger", "nobody sent", Box::new(|came| came.push(Envelope::new("x")))),
            ("keys in order", "out of order", {
                let first = at("keys in order");
                Box::new(move |came| came.swap(first, first + 1))
            }),
            ("no payload", "traceparent", {
                let at = at("no payload");
                Box::new(move |came| assert!(came[at].headers.remove("traceparent")))
            }),
        ];
        for (class, what, change) in changes {
            let mut came = came(&sent);
            change(&mut came);
            let found = differences(&sent, &came);
            assert!(found.len() == 1 && found[class].contains(what), "{class}, {what}: {found:?}");
        }
    }
}
