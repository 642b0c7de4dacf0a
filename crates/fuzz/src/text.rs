//! The text forms of core: what is packed, the history of failures, times, trace headers.

use throughline::headers::{BAGGAGE, TRACEPARENT, TRACESTATE};
use throughline::pack::Packed;
use throughline::trace::{check_trace_headers, creation_context, extract, inject, parse_traceparent};
use throughline::{Headers, History, Timestamp};

use crate::texts;

/// What is read is written so that it reads back the same, in ASCII.
pub(crate) fn packed(input: &[u8]) {
    let Some(packed) = Packed::from_text(&String::from_utf8_lossy(input)) else { return };
    let text = packed.to_text();
    assert!(text.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{text:?} is not printable ASCII");
    assert_eq!(Packed::from_text(&text), Some(packed), "{text}");
}

pub(crate) fn packed_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"f":{"type":"a","source":"\u00e4"},"h":[["n","v"],["n",null],["b",{"b":"/w=="}],["t",{"t":"amqp:i32","v":"7"}]]}"#,
        r#"{"h":[["traceparent","00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]]}"#,
        r#"{"h":[["a","\ud800"]]}"#,
        r#"{}"#,
        r#"[]"#,
    ])
}

/// What is read is bounded, and written so that it reads back the same.
pub(crate) fn history(input: &[u8]) {
    let Some(history) = History::from_header(&String::from_utf8_lossy(input)) else { return };
    assert!(history.failures().len() <= History::MAX_FAILURES);
    let header = history.to_header();
    assert!(header.is_ascii() && header.len() < 64 * 1024, "{} bytes", header.len());
    assert_eq!(History::from_header(&header), Some(history));
}

pub(crate) fn history_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"a":[{"at":1,"attempt":1,"error":"timeout","message":"m","dependency":"ads-api"}],"o":3,"p":true}"#,
        r#"{"a":[{"at":-9223372036854775808,"attempt":4294967295,"error":""},{"at":0,"attempt":0,"error":"\u0001"}]}"#,
        r#"{}"#,
        r#"[[],0,false]"#,
    ])
}

/// A time that is read is shown so that it reads back the same, and arithmetic on it does not overflow.
pub(crate) fn timestamp(input: &[u8]) {
    let Some(time) = Timestamp::parse(&String::from_utf8_lossy(input)) else { return };
    assert_eq!(Timestamp::parse(&time.to_string()), Some(time), "{time}");
    let _ = time.after(std::time::Duration::MAX);
    let _ = (
        time.millis_since(Timestamp::from_millis(i64::MAX)),
        time.millis_since(Timestamp::from_millis(i64::MIN)),
    );
    let _ = time.to_system_time();
}

pub(crate) fn timestamp_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "2026-11-22T10:00:00.123Z",
        "1970-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
    ])
}

/// Trace headers, one a line: they are judged, read and passed on without a panic, and what is judged right is read.
pub(crate) fn trace_headers(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut headers = Headers::new();
    for (name, value) in [TRACEPARENT, TRACESTATE, BAGGAGE].into_iter().zip(text.split('\n')) {
        if !value.is_empty() {
            headers.append(name, value);
        }
    }
    let creation = creation_context(&headers);
    if check_trace_headers(&headers).is_none() && headers.trace(TRACEPARENT).is_some() {
        assert!(creation.is_some(), "{text:?} is judged right and cannot be read");
    }
    if let Some(parent) = headers.trace(TRACEPARENT) {
        assert_eq!(parse_traceparent(parent).is_some(), creation.is_some(), "{parent:?}");
    }
    let mut onward = Headers::new();
    inject(&extract(&headers), &mut onward);
    // Without a propagator of the application, baggage goes on as it came, however long, and a parent in our own form.
    assert_eq!(onward.trace(BAGGAGE), headers.trace(BAGGAGE), "from {text:?}");
    assert_eq!(creation_context(&onward).is_some(), creation.is_some(), "{onward:?} from {text:?}");
}

pub(crate) fn trace_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\na=1,b@c=2\nuser=1;p,b=%C3%A4",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more\n\nx=",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01\na=1",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\n a = 1 ,, b=2\n=,;=;",
        "\nvendor=v\nonly=baggage",
    ])
}
