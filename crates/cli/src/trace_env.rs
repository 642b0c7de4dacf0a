//! The W3C trace context of the environment: `TRACEPARENT`, `TRACESTATE`, `BAGGAGE`.

use std::env::{self, VarError};

use throughline::Headers;
use throughline::headers::{BAGGAGE, TRACEPARENT, TRACESTATE};
use throughline::trace::{check_trace_headers, parse_traceparent};

/// What of it can be used, verbatim, as trace headers; and what was ignored, and why.
#[derive(Debug, Default)]
pub(crate) struct TraceEnv {
    pub(crate) headers: Headers,
    pub(crate) ignored: Vec<String>,
}

impl TraceEnv {
    pub(crate) fn read() -> Self {
        Self::from(|name| env::var(name))
    }

    fn from(get: impl Fn(&str) -> Result<String, VarError>) -> Self {
        let mut read = Self::default();
        let traceparent = read.variable(&get, TRACEPARENT);
        let tracestate = read.variable(&get, TRACESTATE);
        let baggage = read.variable(&get, BAGGAGE);
        match traceparent {
            Some(text) if parse_traceparent(&text).is_some() => {
                read.headers.set_trace(TRACEPARENT, text);
                read.take(TRACESTATE, tracestate);
            }
            Some(_) => {
                let also = if tracestate.is_some() { ", and TRACESTATE with it" } else { "" };
                read.ignored.push(format!(
                    "TRACEPARENT is not of the form 00-{{32 hex}}-{{16 hex}}-{{2 hex}}: ignored{also}"
                ));
            }
            None if tracestate.is_some() => {
                read.ignored.push("TRACESTATE without a TRACEPARENT says nothing: ignored".into());
            }
            None => {}
        }
        read.take(BAGGAGE, baggage);
        read
    }

    /// A variable that is set, not empty, and can be a header.
    fn variable(&mut self, get: impl Fn(&str) -> Result<String, VarError>, header: &str) -> Option<String> {
        let name = header.to_ascii_uppercase();
        match get(&name) {
            Ok(text) if text.is_empty() => None,
            Ok(text) if text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) => Some(text),
            Ok(_) | Err(VarError::NotUnicode(_)) => {
                self.ignored.push(format!("{name} holds characters that no trace header can: ignored"));
                None
            }
            Err(VarError::NotPresent) => None,
        }
    }

    fn take(&mut self, header: &'static str, value: Option<String>) {
        let Some(value) = value else { return };
        let alone: Headers = [(header, value.as_str())].into_iter().collect();
        match check_trace_headers(&alone) {
            Some(wrong) => self.ignored.push(format!("{}: {wrong}: ignored", header.to_ascii_uppercase())),
            None => self.headers.set_trace(header, value),
        }
    }

    /// The headers for a message that has some given by hand, which win. A state belongs to its parent: with another
    /// parent, it is left out.
    pub(crate) fn beside(&self, given: &Headers) -> Headers {
        let mut beside = self.headers.clone();
        if given.trace(TRACEPARENT).is_some() {
            beside.remove(TRACEPARENT);
            beside.remove(TRACESTATE);
        }
        if given.trace(TRACESTATE).is_some() {
            beside.remove(TRACESTATE);
        }
        if given.trace(BAGGAGE).is_some() {
            beside.remove(BAGGAGE);
        }
        beside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(set: &[(&str, &str)]) -> TraceEnv {
        TraceEnv::from(|name| {
            let found = set.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned()).ok_or(VarError::NotPresent)
        })
    }

    fn headers(of: &TraceEnv) -> Vec<(&str, &str)> {
        of.headers.iter().map(|(name, value)| (name, value.as_str().unwrap())).collect()
    }

    #[test]
    fn is_carried_verbatim() {
        let all = read(&[("TRACEPARENT", GOOD), ("TRACESTATE", "a=1, b=2"), ("BAGGAGE", "x=1;p")]);
        assert_eq!(headers(&all), [("traceparent", GOOD), ("tracestate", "a=1, b=2"), ("baggage", "x=1;p")]);
        assert!(all.ignored.is_empty());
        let empty = read(&[("TRACEPARENT", ""), ("BAGGAGE", "x=1")]);
        assert_eq!(headers(&empty), [("baggage", "x=1")]);
        assert!(empty.ignored.is_empty());
    }

    #[test]
    fn what_is_bad_is_ignored_and_told() {
        let bad = read(&[("TRACEPARENT", "00-hunter2"), ("TRACESTATE", "a=1"), ("BAGGAGE", "x=1")]);
        assert_eq!(headers(&bad), [("baggage", "x=1")]);
        assert!(bad.ignored[0].contains("TRACESTATE with it") && !bad.ignored[0].contains("hunter2"));
        assert_eq!(read(&[("TRACESTATE", "a=1")]).ignored.len(), 1);
        let control = read(&[("TRACEPARENT", GOOD), ("TRACESTATE", "a=\u{1b}")]);
        assert_eq!((headers(&control), control.ignored.len()), (vec![("traceparent", GOOD)], 1));
        let many = read(&[("TRACEPARENT", GOOD), ("TRACESTATE", &vec!["a=1"; 33].join(","))]);
        assert_eq!((headers(&many), many.ignored.len()), (vec![("traceparent", GOOD)], 1));
    }

    #[test]
    fn what_is_given_by_hand_wins() {
        let env = read(&[("TRACEPARENT", GOOD), ("TRACESTATE", "a=1"), ("BAGGAGE", "x=1")]);
        let given: Headers = [("TraceParent", GOOD)].into_iter().collect();
        assert_eq!(env.beside(&given), [("baggage", "x=1")].into_iter().collect());
        assert_eq!(env.beside(&Headers::new()), env.headers);
    }
}
