//! X-Ray's trace header (`AWSTraceHeader`, `X-Amzn-Trace-Id`) and W3C's `traceparent`.
//!
//! `Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1`: the trace id's first eight digits stand
//! apart. <https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader>

use opentelemetry::trace::{SpanId, TraceId};
use throughline_core::trace::parse_traceparent;

/// The header for a valid `traceparent`; `None` for another text.
pub fn from_traceparent(traceparent: &str) -> Option<String> {
    let context = parse_traceparent(traceparent)?;
    let trace = context.trace_id().to_string();
    let (start, rest) = trace.split_at_checked(8)?;
    let sampled = u8::from(context.trace_flags().is_sampled());
    Some(format!("Root=1-{start}-{rest};Parent={};Sampled={sampled}", context.span_id()))
}

/// The `traceparent` of a header: in any order, what is unknown (`Self`, `Lineage`) ignored. `None` without a valid root
/// and parent: then there is no span to be a child of. What is not said to be sampled is not.
pub fn to_traceparent(header: &str) -> Option<String> {
    let (mut root, mut parent, mut sampled) = (None, None, false);
    for part in header.split(';') {
        match part.trim().split_once('=') {
            Some(("Root", value)) => root = root_id(value),
            Some(("Parent", value)) => parent = hex(value, 16),
            Some(("Sampled", value)) => sampled = value == "1",
            _ => {}
        }
    }
    let (root, parent) = (TraceId::from_hex(&root?).ok()?, SpanId::from_hex(parent?).ok()?);
    (root != TraceId::INVALID && parent != SpanId::INVALID)
        .then(|| format!("00-{root}-{parent}-0{}", u8::from(sampled)))
}

fn root_id(value: &str) -> Option<String> {
    let (start, rest) = value.strip_prefix("1-")?.split_once('-')?;
    Some(format!("{}{}", hex(start, 8)?, hex(rest, 24)?))
}

fn hex(text: &str, digits: usize) -> Option<&str> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const XRAY: &str = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";

    #[test]
    fn both_ways() {
        assert_eq!(from_traceparent(W3C).as_deref(), Some(XRAY));
        assert_eq!(to_traceparent(XRAY).as_deref(), Some(W3C));
        let shuffled = "Sampled=0; Self=1-x;Parent=b7ad6b7169203331 ;Lineage=a:0;Root=1-0af76519-16cd43dd8448eb211c80319c";
        assert_eq!(to_traceparent(shuffled).as_deref(), Some(&*W3C.replace("-01", "-00")));
    }

    #[test]
    fn what_names_no_span_is_none() {
        for header in [
            "",
            "Root=1-0af76519-16cd43dd8448eb211c80319c",
            "Root=1-0af76519-16cd43dd8448eb211c80319c;Sampled=1",
            "Root=2-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331",
            "Root=1-00000000-000000000000000000000000;Parent=b7ad6b7169203331",
            "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=0000000000000000",
            "Root=1-0af7651-916cd43dd8448eb211c80319c;Parent=b7ad6b7169203331",
        ] {
            assert_eq!(to_traceparent(header), None, "{header}");
        }
        assert!(to_traceparent(&XRAY.replace("Sampled=1", "Sampled=?")).unwrap().ends_with("-00"));
        assert_eq!(from_traceparent("00-x"), None);
    }

    proptest! {
        #[test]
        fn ids_round_trip(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let w3c = format!("00-{trace:032x}-{span:016x}-0{}", u8::from(sampled));
            prop_assert_eq!(to_traceparent(&from_traceparent(&w3c).unwrap()), Some(w3c));
        }

        #[test]
        fn no_input_panics(text in "\\PC*|(Root=1-[0-9a-f]{8}-[0-9a-f]{24}|Parent=[0-9a-fä]{16}|;|=){0,5}") {
            let _ = (to_traceparent(&text), from_traceparent(&text));
        }
    }
}
