//! What is renamed on the way.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use throughline::headers::is_trace_header;
use throughline::{Envelope, Error, ErrorKind, HeaderValue, Headers};

/// What the bridge renames. Ids, times, payloads and the trace headers are never changed.
///
/// As text, one rule a time: `type:old.name=new.name`, `header:old=new`, `key=header:NAME`, `key=id`, `key=type`,
/// `key=none`.
///
/// ```
/// use throughline_bridge::{KeyFrom, Map};
/// let map = Map::default().message_type("sync", "campaign.sync_report").key(KeyFrom::Header("tenant".into()));
/// # let _ = map;
/// let parsed: Map = "header:x-tenant=tenant".parse()?;
/// # let _ = parsed;
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    types: HashMap<String, String>,
    headers: HashMap<String, String>,
    key: Option<KeyFrom>,
}

/// Where the ordering key comes from, in place of the message's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFrom {
    /// The first value of a header; a message without it keeps its own key.
    Header(String),
    /// The message's id.
    Id,
    /// The message's type; a message without one keeps its own key.
    Type,
    /// No key.
    None,
}

impl Map {
    /// Renames a message type.
    pub fn message_type(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.types.insert(from.into(), to.into());
        self
    }

    /// Renames a header: all its values, at their places. The trace headers keep their names.
    pub fn header(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.headers.insert(from.into(), to.into());
        self
    }

    /// Takes the ordering key from elsewhere. Order is kept by the new key.
    pub fn key(mut self, from: KeyFrom) -> Self {
        self.key = Some(from);
        self
    }

    /// Both; where they disagree, the other's rule.
    pub fn and(mut self, other: Self) -> Self {
        self.types.extend(other.types);
        self.headers.extend(other.headers);
        self.key = other.key.or(self.key);
        self
    }

    /// The renames of the way back.
    ///
    /// Errors: `Unsupported`, with the rule, where what was renamed cannot be told from what had the name before: a key
    /// that was taken from elsewhere, and two names that became one.
    pub fn inverse(&self) -> Result<Self, Error> {
        let refuse = |why: String| Error::new(ErrorKind::Unsupported, format!("cannot be undone: {why}"));
        if self.key.is_some() {
            return Err(refuse(
                "a message's own key is not kept where it was taken from elsewhere (key=…)".into(),
            ));
        }
        let undo = |what: &str, names: &HashMap<String, String>| {
            let mut back = HashMap::with_capacity(names.len());
            for (from, to) in names {
                if let Some(other) = back.insert(to.clone(), from.clone()) {
                    let text = format!("{what} '{from}' and '{other}' both became '{to}'");
                    return Err(refuse(text));
                }
            }
            Ok(back)
        };
        Ok(Self { types: undo("types", &self.types)?, headers: undo("headers", &self.headers)?, key: None })
    }

    /// Whether nothing is renamed.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty() && self.headers.is_empty() && self.key.is_none()
    }

    /// The message as it goes on; the same one where nothing of it is renamed.
    pub fn apply(&self, envelope: &Arc<Envelope>) -> Arc<Envelope> {
        if self.is_empty() {
            return envelope.clone();
        }
        let mut mapped = Envelope::clone(envelope);
        mapped.ordering_key = self.key_of(envelope);
        if let Some(renamed) = mapped.message_type.as_ref().and_then(|name| self.types.get(name)) {
            mapped.message_type = Some(renamed.clone());
        }
        if mapped.headers.iter().any(|(name, _)| self.renamed(name).is_some()) {
            mapped.headers = mapped
                .headers
                .into_iter()
                .map(|(name, value)| (self.renamed(&name).cloned().unwrap_or(name), value))
                .collect::<Headers>();
        }
        Arc::new(mapped)
    }

    fn renamed(&self, name: &str) -> Option<&String> {
        if is_trace_header(name) { None } else { self.headers.get(name) }
    }

    fn key_of(&self, envelope: &Envelope) -> Option<Bytes> {
        let text = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
        let own = envelope.ordering_key.clone();
        match &self.key {
            None => own,
            Some(KeyFrom::None) => None,
            Some(KeyFrom::Id) => text(&envelope.id),
            Some(KeyFrom::Type) => envelope.message_type.as_deref().and_then(text).or(own),
            Some(KeyFrom::Header(name)) => match envelope.headers.get_all(name).next() {
                Some(HeaderValue::Bytes(bytes)) => Some(bytes.clone()),
                Some(HeaderValue::Text(value) | HeaderValue::Typed { text: value, .. }) => text(value),
                Some(HeaderValue::Null) | None => own,
            },
        }
    }
}

impl FromStr for Map {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |what: &'static str| Error::new(ErrorKind::InvalidMessage, what);
        let header =
            |header: &str| header.strip_prefix("header:").filter(|name| !name.is_empty()).map(str::to_owned);
        match text.split_once('=') {
            Some(("key", "id")) => Ok(Self::default().key(KeyFrom::Id)),
            Some(("key", "type")) => Ok(Self::default().key(KeyFrom::Type)),
            Some(("key", "none")) => Ok(Self::default().key(KeyFrom::None)),
            Some(("key", from)) => match header(from) {
                Some(name) => Ok(Self::default().key(KeyFrom::Header(name))),
                None => Err(bad("a key comes from key=header:NAME, key=id, key=type or key=none")),
            },
            Some((from, to)) if !to.is_empty() => match (from.strip_prefix("type:"), header(from)) {
                (Some(name), _) if !name.is_empty() => Ok(Self::default().message_type(name, to)),
                (_, Some(name)) if is_trace_header(&name) || is_trace_header(to) => {
                    Err(bad("the trace headers keep their names, so that the trace does not break"))
                }
                (_, Some(name)) => Ok(Self::default().header(name, to)),
                _ => Err(bad("not a rule: it is type:OLD=NEW, header:OLD=NEW or key=…")),
            },
            _ => Err(bad("not a rule: it is type:OLD=NEW, header:OLD=NEW or key=…")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(texts: &[&str]) -> Map {
        texts.iter().fold(Map::default(), |all, text| all.and(text.parse().unwrap()))
    }

    #[test]
    fn renames_what_it_is_told_and_leaves_the_rest() {
        let message = Envelope::builder("old").key("k").header("a", "1").header("b", "2").header("a", "3");
        let message = Arc::new(message.header("traceparent", "t").build());
        assert!(Arc::ptr_eq(&map(&[]).apply(&message), &message));
        let mapped = map(&["type:old=new", "header:a=c", "key=header:b"]).apply(&message);
        let mut expected = Envelope::clone(&message);
        expected.message_type = Some("new".into());
        expected.ordering_key = Some(Bytes::from_static(b"2"));
        expected.headers = [("c", "1"), ("b", "2"), ("c", "3"), ("traceparent", "t")].into_iter().collect();
        assert_eq!(*mapped, expected);
        assert_eq!(map(&["key=none"]).apply(&message).ordering_key, None);
        assert_eq!(map(&["key=header:none"]).apply(&message).ordering_key, message.ordering_key);
        assert_eq!(map(&["key=id"]).apply(&message).ordering_key.as_deref(), Some(message.id.as_bytes()));
    }

    #[test]
    fn what_was_renamed_is_undone_where_that_can_be_told() {
        let rules = map(&["type:old=new", "header:a=b", "header:b=a"]);
        let message = Envelope::builder("old").header("a", "1").header("b", "2").header("a", "3").build();
        let message = Arc::new(message);
        let there = rules.apply(&message);
        assert_ne!(there, message);
        assert_eq!(rules.inverse().unwrap().apply(&there), message);
        for rules in [&["key=id"][..], &["type:a=c", "type:b=c"], &["header:a=c", "header:b=c"]] {
            assert_eq!(map(rules).inverse().unwrap_err().kind(), ErrorKind::Unsupported, "{rules:?}");
        }
    }

    #[test]
    fn trace_headers_keep_their_names() {
        let message = Arc::new(Envelope::builder("x").header("Traceparent", "t").build());
        let mapped = Map::default().header("Traceparent", "x").apply(&message);
        assert_eq!(mapped.headers, message.headers);
        for bad in
            ["header:traceparent=x", "header:x=TraceState", "type:a=", "x=y", "key=topic", "header:=x", ""]
        {
            assert!(bad.parse::<Map>().is_err(), "{bad}");
        }
    }
}
