//! An ordered multimap of headers. Nothing a broker can carry is lost in it: text, bytes, null, and native types.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// The W3C `traceparent` header's name.
pub const TRACEPARENT: &str = "traceparent";
/// The W3C `tracestate` header's name.
pub const TRACESTATE: &str = "tracestate";
/// The W3C `baggage` header's name.
pub const BAGGAGE: &str = "baggage";
/// The trace headers, which every transport places before all others.
pub const TRACE_HEADERS: [&str; 3] = [TRACEPARENT, TRACESTATE, BAGGAGE];

/// One header's value.
///
/// `Debug` shows kind and length, not the value: headers carry tokens.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum HeaderValue {
    /// UTF-8 text.
    Text(String),
    /// Arbitrary bytes.
    Bytes(Bytes),
    /// Present without a value; not the same as empty.
    Null,
    /// A value of a broker's own type, kept so that it goes back as it came.
    Typed {
        /// The type, as `broker:type`, such as `amqp:i32`.
        kind: Cow<'static, str>,
        /// The value as canonical text, defined by the adapter that owns the kind.
        text: String,
    },
}

impl HeaderValue {
    /// The text of a `Text` or `Typed` value.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Typed { text, .. } => Some(text),
            Self::Bytes(_) | Self::Null => None,
        }
    }

    /// The value's length in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Text(text) | Self::Typed { text, .. } => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Null => 0,
        }
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Bytes> for HeaderValue {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for HeaderValue {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Null => f.write_str("Null"),
            Self::Typed { kind, text } => write!(f, "Typed({kind}, {} bytes)", text.len()),
        }
    }
}

/// Headers in the order they were added; a name may come more than once. Names are case-sensitive and carried as
/// written, but the three trace headers are found whatever their case.
///
/// Two sets are equal when each name has the same values in the same order; the order across names does not count,
/// because most brokers do not keep it.
#[derive(Clone, Default)]
pub struct Headers(Vec<(String, HeaderValue)>);

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// No headers, with room for `capacity`.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Adds a value, after those that the name already has.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<HeaderValue>) {
        self.0.push((name.into(), value.into()));
    }

    /// Sets a name to one value, in place of all that it had.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<HeaderValue>) {
        let name = name.into();
        self.remove(&name);
        self.append(name, value);
    }

    /// Removes all values of a name; says whether there were any.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|(n, _)| n != name);
        self.0.len() != before
    }

    /// The last value of a name.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// The last value of a name, as text.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(HeaderValue::as_str)
    }

    /// All values of a name, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a HeaderValue> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v)
    }

    /// All headers, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// How many headers there are, each value of a repeated name counted.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A trace header's text, whatever the case of its name; the last one wins, and a value that is not text is none.
    pub fn trace(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(n, _)| n.len() == name.len() && n.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| match value {
            HeaderValue::Text(text) => Some(text.as_str()),
            HeaderValue::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            HeaderValue::Null | HeaderValue::Typed { .. } => None,
        })
    }

    /// Sets a trace header, in place of every spelling of its name.
    pub fn set_trace(&mut self, name: &'static str, value: String) {
        self.remove_trace(name);
        self.append(name, value);
    }

    /// Removes every spelling of a trace header.
    pub fn remove_trace(&mut self, name: &str) {
        self.0.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    /// Whether a name comes more than once.
    pub fn is_repeated(&self, name: &str) -> bool {
        self.get_all(name).nth(1).is_some()
    }
}

/// Whether a header is one of the three trace headers, whatever its case.
pub fn is_trace_header(name: &str) -> bool {
    TRACE_HEADERS.iter().any(|trace| trace.eq_ignore_ascii_case(name))
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(name, _)| self.get_all(name).eq(other.get_all(name)))
    }
}

impl Eq for Headers {}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: Into<String>, V: Into<HeaderValue>> Extend<(N, V)> for Headers {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, headers: I) {
        for (name, value) in headers {
            self.append(name, value);
        }
    }
}

impl<N: Into<String>, V: Into<HeaderValue>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        let mut all = Self::new();
        all.extend(headers);
        all
    }
}

impl IntoIterator for Headers {
    type Item = (String, HeaderValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equality_ignores_the_order_across_names_only() {
        let a: Headers = [("x", "1"), ("y", "2"), ("x", "3")].into_iter().collect();
        let b: Headers = [("y", "2"), ("x", "1"), ("x", "3")].into_iter().collect();
        let c: Headers = [("x", "3"), ("y", "2"), ("x", "1")].into_iter().collect();
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_ne!(a, [("x", "1"), ("y", "2")].into_iter().collect());
    }

    #[test]
    fn trace_headers_are_found_in_any_case_and_set_once() {
        let mut headers: Headers = [("TraceParent", "a"), ("traceparent", "b")].into_iter().collect();
        assert_eq!(headers.trace(TRACEPARENT), Some("b"));
        headers.set_trace(TRACEPARENT, "c".into());
        assert_eq!(headers.len(), 1);
        headers.set(TRACEPARENT, HeaderValue::Null);
        assert_eq!(headers.trace(TRACEPARENT), None);
    }

    #[test]
    fn debug_shows_no_value() {
        let headers: Headers = [("authorization", "hunter2")].into_iter().collect();
        assert_eq!(format!("{headers:?}"), r#"{"authorization": Text(7 bytes)}"#);
    }
}
