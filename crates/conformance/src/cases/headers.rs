//! The envelope: what comes out is what went in, whatever the wire has no place for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use throughline_core::{Envelope, HeaderValue, Timestamp};

use super::cases;
use crate::cx::Cx;
use crate::messages::message;
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure};

pub(crate) const CASES: &[Case] = cases!["headers";
    every_field_survives: "Every field of an envelope comes out as it went in.",
    generated_envelopes_survive: "Sixty generated envelopes, of all kinds of fields, headers and bodies, come out as they went in.",
    more_headers_than_slots_survive: "Sixty headers all survive, however few attributes the broker has.",
    awkward_header_names_survive: "Header names that are empty, long, reserved, or not ASCII are carried as written.",
    awkward_header_values_survive: "Header values that are empty, null, binary, typed, multi-line or long come out as they were.",
    repeated_headers_keep_order: "A repeated header keeps all its values, in their order.",
    tombstone_is_not_empty: "A message without a payload stays apart from one with an empty payload.",
    absent_key_is_not_empty: "A message without an ordering key stays apart from one with an empty or a binary key.",
    any_body_survives: "A body of any bytes, UTF-8 or not, small or 100 KiB, comes out as it was.",
];

/// An envelope with every field set.
pub(crate) fn full(body: &str) -> Envelope {
    let mut envelope = Envelope::builder("conformance.full")
        .source("conformance/suite")
        .key("key-1")
        .time(Timestamp::from_millis(1_700_000_000_123))
        .content_type("text/plain; charset=utf-8")
        .content_encoding("identity")
        .correlation_id("correlation 1")
        .reply_to("replies")
        .priority(3)
        .idempotency_key("idempotent-1")
        .header("tenant", "5000")
        .header("repeated", "one")
        .header("repeated", "two")
        .header("binary", vec![0, 159, 146, 150])
        .payload(body.to_owned())
        .build();
    envelope.expires_at = Some(Timestamp::now().after(Duration::from_secs(3600)));
    envelope
}

/// Says in which field two envelopes differ.
pub(crate) fn same(sent: &Envelope, received: &Envelope) -> Result<(), Fail> {
    macro_rules! fields {
        ($($field:ident),+) => {
            $(ensure!(
                sent.$field == received.$field,
                concat!("the field '", stringify!($field), "' was {:?} and came out as {:?}"),
                sent.$field,
                received.$field
            );)+
        };
    }
    fields!(
        id,
        id_origin,
        message_type,
        source,
        ordering_key,
        time,
        content_type,
        content_encoding,
        correlation_id,
        reply_to,
        expires_at,
        priority,
        idempotency_key
    );
    for (name, _) in sent.headers.iter().chain(received.headers.iter()) {
        let (before, after): (Vec<_>, Vec<_>) =
            (sent.headers.get_all(name).collect(), received.headers.get_all(name).collect());
        ensure!(
            before == after,
            "the header {name:?} was {} and came out as {}",
            shown(&before),
            shown(&after)
        );
    }
    // After the headers: that is where the difference is told best.
    ensure!(
        sent.payload == received.payload,
        "the payload was {:?} and came out as {:?}",
        sent.payload,
        received.payload
    );
    ensure!(sent == received, "sent {sent:?}, received {received:?}");
    Ok(())
}

/// The suite's own values hold no secrets.
fn shown(values: &[&HeaderValue]) -> String {
    let value = |value: &&HeaderValue| match value {
        HeaderValue::Text(text) if text.len() < 80 => format!("{text:?}"),
        HeaderValue::Bytes(bytes) if bytes.len() < 80 => format!("{bytes:?}"),
        other => format!("{other:?}"),
    };
    if values.is_empty() {
        "absent".to_owned()
    } else {
        values.iter().map(value).collect::<Vec<_>>().join(", ")
    }
}

/// Sends envelopes and compares each with what comes out.
pub(crate) async fn round_trip(cx: &Cx, envelopes: Vec<Envelope>) -> Result<(), Fail> {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let mut sent: HashMap<String, Arc<Envelope>> = HashMap::new();
    for envelope in envelopes {
        let envelope = Arc::new(envelope);
        sent.insert(envelope.id.clone(), envelope.clone());
        cx.within("publishing", publisher.publish(envelope)).await??;
    }
    while !sent.is_empty() {
        let delivery = cx.next(&mut consumer).await?;
        let Some(expected) = sent.remove(delivery.id()) else {
            return Err(Fail(format!("a message came whose id '{}' was not sent, or twice", delivery.id())));
        };
        same(&expected, delivery.envelope())?;
        delivery.ack().await?;
    }
    Ok(())
}

async fn every_field_survives(cx: Cx) -> Checked {
    let mut odd = full("odd");
    odd.id = "an id: \u{fc}n\u{ef}c\u{f6}de, 'quoted' & spaced".to_owned();
    odd.time = None;
    odd.reply_to = Some("r".repeat(300));
    odd.message_type = None;
    odd.priority = Some(0);
    let mut bare = Envelope::foreign("bare".to_owned(), Some(Bytes::from_static(b"bare")));
    bare.source = Some(String::new());
    round_trip(&cx, vec![full("full"), odd, bare]).await?;
    Ok(Verdict::Passed)
}

async fn more_headers_than_slots_survive(cx: Cx) -> Checked {
    let mut envelope = message("many headers");
    for number in 0..60 {
        envelope.headers.append(format!("header-{number:02}"), format!("value {number}"));
    }
    round_trip(&cx, vec![envelope]).await?;
    Ok(Verdict::Passed)
}

async fn awkward_header_names_survive(cx: Cx) -> Checked {
    let long = "n".repeat(300);
    let names = [
        "",
        " ",
        ".",
        "a.b",
        "..",
        "a b",
        "a:b",
        "a=b",
        "a\u{0}b",
        "a\nb",
        "\u{fc}ber",
        "\u{1f680}",
        "Content-Type",
        "content-type",
        "AWS.Thing",
        "Amazon.x",
        "x-death",
        "x-delivery-count",
        "tl-sent",
        "tl-headers",
        "tl-key",
        "message_id",
        "\"",
        "'",
        "\\",
        "%00",
        &long,
    ];
    let one_each = names.iter().map(|name| {
        let mut envelope = message(name);
        envelope.headers.append(*name, "value");
        envelope
    });
    let mut all = message("all at once");
    all.headers.extend(names.iter().map(|name| (*name, "value")));
    round_trip(&cx, one_each.chain([all]).collect()).await?;
    Ok(Verdict::Passed)
}

/// Values that some wire or other has trouble with.
fn awkward_values() -> Vec<HeaderValue> {
    let typed = HeaderValue::Typed { kind: Cow::Borrowed("elsewhere:decimal"), text: "1.50".to_owned() };
    let texts =
        ["", " ", "null", "a\u{0}b", "line\nbreak\r\n", "\u{fc}\u{1f680}", "\"{}\"", "%41", "true", "12"];
    let bytes: [&[u8]; 5] = [b"", b"text", &[0xff, 0xfe, 0x00], &[0x80; 64], b"\xc3"];
    texts
        .into_iter()
        .map(HeaderValue::from)
        .chain(bytes.into_iter().map(|bytes| HeaderValue::Bytes(Bytes::from_static(bytes))))
        .chain([HeaderValue::Null, typed, "v".repeat(10_000).into()])
        .collect()
}

async fn awkward_header_values_survive(cx: Cx) -> Checked {
    let one_each = awkward_values().into_iter().enumerate().map(|(number, value)| {
        let mut envelope = message(number);
        envelope.headers.append("awkward", value);
        envelope
    });
    let mut all = message("all at once");
    let values = awkward_values().into_iter().enumerate();
    all.headers.extend(values.map(|(number, value)| (format!("awkward-{number}"), value)));
    round_trip(&cx, one_each.chain([all]).collect()).await?;
    Ok(Verdict::Passed)
}

async fn repeated_headers_keep_order(cx: Cx) -> Checked {
    let mut envelope = message("repeated");
    for value in ["b", "a", "", "b"] {
        envelope.headers.append("repeated", value);
        envelope.headers.append("Repeated", value.to_uppercase());
    }
    envelope.headers.append("repeated", HeaderValue::Null);
    envelope.headers.append("repeated", vec![0xff]);
    round_trip(&cx, vec![envelope]).await?;
    Ok(Verdict::Passed)
}

async fn tombstone_is_not_empty(cx: Cx) -> Checked {
    let tombstone = Envelope::builder("conformance.case").key("deleted").tombstone().build();
    let empty = Envelope::builder("conformance.case").key("deleted").payload(Bytes::new()).build();
    round_trip(&cx, vec![tombstone, empty]).await?;
    Ok(Verdict::Passed)
}

async fn absent_key_is_not_empty(cx: Cx) -> Checked {
    let absent = message("absent");
    let keys: [&'static [u8]; 4] = [b"", b"key", &[0xff, 0x00, 0x80], &[b'k'; 200]];
    let keyed = keys.into_iter().map(|key| {
        let mut envelope = message("keyed");
        envelope.ordering_key = Some(Bytes::from_static(key));
        envelope
    });
    round_trip(&cx, keyed.chain([absent]).collect()).await?;
    Ok(Verdict::Passed)
}

async fn any_body_survives(cx: Cx) -> Checked {
    let every_byte: Vec<u8> = (0..=255).collect();
    let bodies = [
        Vec::new(),
        vec![0],
        vec![0xff; 3],
        b"\r\n.\r\n".to_vec(),
        every_byte.clone(),
        every_byte.repeat(400),
    ];
    let envelopes =
        bodies.into_iter().map(|body| Envelope::builder("conformance.case").payload(body).build());
    round_trip(&cx, envelopes.collect()).await?;
    Ok(Verdict::Passed)
}

/// Numbers that look random and are the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit.max(1) as u64).unwrap_or(0)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = self.below(from.len());
        from.get(at).cloned()
    }

    /// One of these texts, or, as often as not, none.
    fn maybe(&mut self) -> Option<String> {
        const TEXTS: [&str; 8] =
            ["", "plain", "two words", "\u{e4}\u{f6}\u{fc}", "a/b;c=d", "\u{1f680}", "tab\there", "0"];
        if self.below(2) == 0 { None } else { self.pick(&TEXTS).map(str::to_owned) }
    }

    fn bytes(&mut self, limit: usize) -> Bytes {
        let length = self.below(limit);
        (0..length).map(|_| u8::try_from(self.below(256)).unwrap_or(0)).collect::<Vec<_>>().into()
    }

    fn envelope(&mut self) -> Envelope {
        let mut envelope = message("");
        envelope.message_type = self.maybe();
        envelope.source = self.maybe();
        envelope.ordering_key = (self.below(2) == 0).then(|| self.bytes(12));
        envelope.time = (self.below(3) > 0)
            .then(|| Timestamp::from_millis(i64::try_from(self.below(4_000_000_000_000)).unwrap_or(0)));
        envelope.content_type = self.maybe();
        envelope.content_encoding = self.maybe();
        envelope.correlation_id = self.maybe();
        envelope.reply_to = self.maybe();
        envelope.priority = (self.below(2) == 0).then(|| u8::try_from(self.below(256)).unwrap_or(0));
        envelope.idempotency_key = self.maybe();
        if self.below(4) == 0 {
            envelope.expires_at = Some(Timestamp::now().after(Duration::from_secs(3600)));
        }
        let names = ["a", "A", "b", "tl-x", "x-y", "\u{fc}", "content-type", "traceparent"];
        let values = awkward_values();
        for _ in 0..self.below(14) {
            if let (Some(name), Some(value)) = (self.pick(&names), self.pick(&values)) {
                envelope.headers.append(name, value);
            }
        }
        envelope.payload = (self.below(8) > 0).then(|| self.bytes(200));
        envelope
    }
}

async fn generated_envelopes_survive(cx: Cx) -> Checked {
    let mut numbers = Numbers(7);
    let envelopes = (0..60).map(|_| numbers.envelope()).collect();
    round_trip(&cx, envelopes).await?;
    Ok(Verdict::Passed)
}
