//! `tl-headers`: the one packed attribute, for whatever finds no native place on a broker.
//!
//! It is ASCII-only JSON (legal on every wire): `{"f": {field: text, …}, "h": [[name, value], …]}`. `f` holds envelope
//! fields, `h` headers in order. A header's value is a string, `null`, `{"b": base64}` for bytes, or
//! `{"t": kind, "v": text}` for a broker's own type.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};

use crate::headers::{HeaderValue, Headers};

/// The attribute's name.
pub const PACKED_HEADER: &str = "tl-headers";

/// What found no native place. Fields are named by the adapter that packs them; any adapter unpacks all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Envelope fields, as text.
    pub fields: BTreeMap<Cow<'static, str>, String>,
    /// Headers, in order.
    pub headers: Headers,
}

impl Packed {
    /// Whether there is nothing to pack.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.headers.is_empty()
    }

    /// The attribute's value.
    pub fn to_text(&self) -> String {
        ascii_json(self)
    }

    /// Reads [`to_text`](Self::to_text). `None` where it is not that: a foreign header of the same name, to be kept as
    /// an ordinary one.
    pub fn from_text(text: &str) -> Option<Self> {
        // serde would read a list as the struct too.
        let wire: Wire = text.starts_with('{').then(|| serde_json::from_str(text).ok())??;
        let fields = wire.f.into_iter().map(|(name, value)| (Cow::Owned(name), value)).collect();
        let mut packed = Self { fields, headers: Headers::with_capacity(wire.h.len()) };
        for (name, value) in wire.h {
            let value = match value {
                WireValue::Null(()) => HeaderValue::Null,
                WireValue::Text(text) => HeaderValue::Text(text),
                WireValue::Bytes { b } => HeaderValue::Bytes(BASE64.decode(b).ok()?.into()),
                WireValue::Typed { t, v } => HeaderValue::Typed { kind: Cow::Owned(t), text: v },
            };
            packed.headers.append(name, value);
        }
        Some(packed)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default)]
    f: BTreeMap<String, String>,
    #[serde(default)]
    h: Vec<(String, WireValue)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WireValue {
    Null(()),
    Text(String),
    Bytes { b: String },
    Typed { t: String, v: String },
}

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.fields.is_empty() {
            map.serialize_entry("f", &self.fields)?;
        }
        if !self.headers.is_empty() {
            map.serialize_entry("h", &HeaderList(&self.headers))?;
        }
        map.end()
    }
}

struct HeaderList<'a>(&'a Headers);

impl Serialize for HeaderList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for (name, value) in self.0.iter() {
            list.serialize_element(&(name, PackedValue(value)))?;
        }
        list.end()
    }
}

struct PackedValue<'a>(&'a HeaderValue);

impl Serialize for PackedValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            HeaderValue::Text(text) => serializer.serialize_str(text),
            HeaderValue::Null => serializer.serialize_unit(),
            HeaderValue::Bytes(bytes) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("b", &BASE64.encode(bytes))?;
                map.end()
            }
            HeaderValue::Typed { kind, text } => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("t", kind)?;
                map.serialize_entry("v", text)?;
                map.end()
            }
        }
    }
}

/// A value as JSON in ASCII: other characters, and DEL, are `\u` escapes. Only for our own types, whose maps have text
/// keys, so that writing into memory cannot fail.
pub(crate) fn ascii_json(value: &impl Serialize) -> String {
    let mut out = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, AsciiOnly);
    let written = value.serialize(&mut serializer);
    debug_assert!(written.is_ok());
    String::from_utf8(out).unwrap_or_default()
}

struct AsciiOnly;

impl serde_json::ser::Formatter for AsciiOnly {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !c.is_ascii() || c == '\u{7f}') {
            let (plain, special) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = special.chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = HeaderValue> {
        prop_oneof![
            any::<String>().prop_map(HeaderValue::Text),
            any::<Vec<u8>>().prop_map(HeaderValue::from),
            Just(HeaderValue::Null),
            (any::<String>(), any::<String>())
                .prop_map(|(kind, text)| HeaderValue::Typed { kind: kind.into(), text }),
        ]
    }

    proptest! {
        #[test]
        fn round_trips_in_ascii(
            fields in prop::collection::btree_map(any::<String>(), any::<String>(), 0..4),
            headers in prop::collection::vec((any::<String>(), value()), 0..8),
        ) {
            let packed = Packed {
                fields: fields.into_iter().map(|(n, v)| (n.into(), v)).collect(),
                headers: headers.into_iter().collect(),
            };
            let text = packed.to_text();
            prop_assert!(text.bytes().all(|b| (b' '..0x7f).contains(&b)));
            prop_assert_eq!(Packed::from_text(&text), Some(packed));
        }

        #[test]
        fn no_input_panics(text in ".*") {
            let _ = Packed::from_text(&text);
        }
    }

    #[test]
    fn a_foreign_header_of_the_same_name_is_told_apart() {
        for foreign in ["", "x", "[]", r#"{"h":[["a",{"b":"%"}]]}"#, r#"{"other":1}"#] {
            assert_eq!(Packed::from_text(foreign), None, "{foreign}");
        }
        let mut packed = Packed::default();
        packed.headers.append("b", Bytes::from_static(b"\xff"));
        assert_eq!(packed.to_text(), r#"{"h":[["b",{"b":"/w=="}]]}"#);
    }
}
