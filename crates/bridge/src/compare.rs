//! What of a message is not as it left.

use std::collections::BTreeSet;

use throughline::Envelope;

/// The parts in which two envelopes differ, by name: `time`, `header 'x' changed`. No values: they may be secrets.
pub(crate) fn differences(left: &Envelope, came: &Envelope) -> Vec<String> {
    let mut different = Vec::new();
    for (name, same) in [
        ("id", left.id == came.id),
        ("id origin", left.id_origin == came.id_origin),
        ("message type", left.message_type == came.message_type),
        ("source", left.source == came.source),
        ("ordering key", left.ordering_key == came.ordering_key),
        ("time", left.time == came.time),
        ("content type", left.content_type == came.content_type),
        ("content encoding", left.content_encoding == came.content_encoding),
        ("correlation id", left.correlation_id == came.correlation_id),
        ("reply-to", left.reply_to == came.reply_to),
        ("expiry", left.expires_at == came.expires_at),
        ("priority", left.priority == came.priority),
        ("idempotency key", left.idempotency_key == came.idempotency_key),
        ("payload", left.payload == came.payload),
    ] {
        if !same {
            different.push(name.to_owned());
        }
    }
    let names: BTreeSet<_> = left.headers.iter().chain(came.headers.iter()).map(|(name, _)| name).collect();
    for name in names {
        let (mut before, mut after) = (left.headers.get_all(name), came.headers.get_all(name));
        let what = match (left.headers.get(name), came.headers.get(name)) {
            (Some(_), None) => "lost",
            (None, Some(_)) => "added",
            _ if before.by_ref().eq(after.by_ref()) => continue,
            _ => "changed",
        };
        different.push(format!("header '{name}' {what}"));
    }
    different
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_and_values_are_not() {
        let left =
            Envelope::builder("a").id("1").header("x", "1").header("x", "2").header("y", "hunter2").build();
        assert!(differences(&left, &left).is_empty());
        let mut came = left.clone();
        came.message_type = None;
        came.headers = [("x", "2"), ("x", "1"), ("z", "hunter2")].into_iter().collect();
        assert_eq!(
            differences(&left, &came),
            ["message type", "header 'x' changed", "header 'y' lost", "header 'z' added"]
        );
    }
}
