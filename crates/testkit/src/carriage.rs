//! Whether an adapter's codec puts each part of a message where the capability table says.

use throughline_core::carriage::{Carriage, Carried};
use throughline_core::pack::PACKED_HEADER;
use throughline_core::{Envelope, Timestamp};

/// What of a message is on a wire, apart from its payload: names, and texts as they stand there.
pub type Wire = Vec<(String, String)>;

/// Encodes a message of which each field says its own name, and looks for each where the table says that it is.
pub fn check(carriage: &Carriage, encode: impl Fn(&Envelope) -> Wire) {
    let message = Envelope::builder("the-type")
        .id("the-id")
        .source("the-source")
        .key("the-key")
        .time(Timestamp::from_millis(1_700_000_000_123))
        .content_type("the/content-type")
        .content_encoding("the-encoding")
        .correlation_id("the-correlation")
        .reply_to("the-reply")
        .idempotency_key("the-unique")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03")
        .header("plain", "the-header");
    let wire = encode(&message.build());
    for (part, carried, text) in [
        ("id", carriage.id, "the-id"),
        ("message type", carriage.message_type, "the-type"),
        ("source", carriage.source, "the-source"),
        ("ordering key", carriage.ordering_key, "the-key"),
        ("content type", carriage.content_type, "the/content-type"),
        ("content encoding", carriage.content_encoding, "the-encoding"),
        ("correlation id", carriage.correlation_id, "the-correlation"),
        ("reply-to", carriage.reply_to, "the-reply"),
        ("idempotency key", carriage.idempotency_key, "the-unique"),
        ("trace headers", carriage.trace_headers, "0af7651916cd43dd8448eb211c80319c"),
        ("text header", carriage.text_header, "the-header"),
    ] {
        find(&wire, part, carried, text);
    }
    let one = |name: &str, value: &str| Envelope::builder("t").header(name, value).build();
    find(&encode(&one("näme", "odd")), "odd name", carriage.odd_name, "odd");
    let twice = Envelope::builder("t").header("x", "first").header("x", "second").build();
    find(&encode(&twice), "repeated header", carriage.repeated_header, "second");
    let many = (0..12).fold(Envelope::builder("t"), |many, n| many.header(format!("h{n}"), format!("v{n}")));
    find(&encode(&many.build()), "many headers", carriage.many_headers, "v11");
}

fn find(wire: &Wire, part: &str, carried: Carried, text: &str) {
    let places: Vec<_> =
        wire.iter().filter(|(_, value)| value.contains(text)).map(|(name, _)| name).collect();
    let is_packed = places.iter().any(|name| *name == PACKED_HEADER);
    let is_ours = |name: &&&String| name.starts_with("tl-") && **name != PACKED_HEADER;
    let fits = match carried {
        Carried::Packed => is_packed && places.len() == 1,
        Carried::Named(names) => {
            !is_packed && places.iter().any(|name| names.split(", ").any(|n| n == *name))
        }
        // The broker's own, which no name of ours is.
        Carried::Native(_) => !is_packed && !places.is_empty() && places.iter().filter(is_ours).count() == 0,
        Carried::Encoded(_) => !places.is_empty(),
    };
    assert!(fits, "{part}: the table says {carried:?}, the codec has it in {places:?}");
}
