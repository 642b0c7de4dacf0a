//! A message attribute of SQS or SNS, apart from either client's own type.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use throughline_core::HeaderValue;

use crate::text::{is_legal, is_number};

/// How many attributes a message may have.
pub const MAX_ATTRIBUTES: usize = 10;

/// What the kinds of [`HeaderValue::Typed`] begin with: `sqs:Number`, `sqs:String.uuid`, `sqs:Binary.gif`.
const KIND: &str = "sqs:";

/// One attribute.
#[derive(Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// `String`, `Number` or `Binary`, with a label of the sender's own (`Number.int`) or without.
    pub data_type: Cow<'static, str>,
    /// Its value.
    pub value: AttributeValue,
}

/// An attribute's value.
#[derive(Clone, PartialEq, Eq)]
pub enum AttributeValue {
    /// Of a `String` or `Number`.
    Text(String),
    /// Of a `Binary`.
    Binary(Bytes),
}

impl Attribute {
    /// A `String`.
    pub fn text(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), data_type: "String".into(), value: AttributeValue::Text(value.into()) }
    }

    /// What it counts for in a message's size, in bytes: name, type and value.
    pub fn size(&self) -> usize {
        let value = match &self.value {
            AttributeValue::Text(text) => text.len(),
            AttributeValue::Binary(bytes) => bytes.len(),
        };
        self.name.len() + self.data_type.len() + value
    }

    /// A header as an attribute of this name; `None` where AWS has no place for the value.
    pub(crate) fn of_header(name: &str, value: &HeaderValue) -> Option<Self> {
        let (data_type, value) = match value {
            HeaderValue::Text(text) if is_value(text) => {
                (Cow::Borrowed("String"), AttributeValue::Text(text.clone()))
            }
            HeaderValue::Bytes(bytes) if !bytes.is_empty() => {
                (Cow::Borrowed("Binary"), AttributeValue::Binary(bytes.clone()))
            }
            HeaderValue::Typed { kind, text } => {
                let data_type = kind.strip_prefix(KIND)?;
                let (base, label) =
                    data_type.split_once('.').map_or((data_type, None), |(b, l)| (b, Some(l)));
                let is_label = label.is_none_or(|label| {
                    !label.is_empty()
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
                });
                if !is_label || data_type.len() > 256 {
                    return None;
                }
                let value = match (base, label) {
                    ("Number", _) if is_number(text) => AttributeValue::Text(text.clone()),
                    ("String", Some(_)) if is_value(text) => AttributeValue::Text(text.clone()),
                    ("Binary", Some(_)) => {
                        let bytes = BASE64.decode(text).ok().filter(|bytes| !bytes.is_empty())?;
                        // Only what comes back the same.
                        (BASE64.encode(&bytes) == *text).then(|| AttributeValue::Binary(bytes.into()))?
                    }
                    _ => return None,
                };
                (Cow::Owned(data_type.to_owned()), value)
            }
            HeaderValue::Text(_) | HeaderValue::Bytes(_) | HeaderValue::Null => return None,
        };
        Some(Self { name: name.to_owned(), data_type, value })
    }

    /// The same as a header's value.
    pub fn header_value(&self) -> HeaderValue {
        let typed = |text| HeaderValue::Typed { kind: format!("{KIND}{}", self.data_type).into(), text };
        match (&*self.data_type, &self.value) {
            ("String", AttributeValue::Text(text)) => HeaderValue::Text(text.clone()),
            ("Binary", AttributeValue::Binary(bytes)) => HeaderValue::Bytes(bytes.clone()),
            (_, AttributeValue::Text(text)) => typed(text.clone()),
            (_, AttributeValue::Binary(bytes)) => typed(BASE64.encode(bytes)),
        }
    }

    /// The value of a plain string.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            AttributeValue::Text(text) if self.data_type == "String" => Some(text),
            _ => None,
        }
    }
}

/// Whether a text can be an attribute's value.
pub(crate) fn is_value(text: &str) -> bool {
    !text.is_empty() && is_legal(text)
}

/// Shows no value: headers carry tokens.
impl std::fmt::Debug for Attribute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({} bytes in all)", self.name, self.data_type, self.size())
    }
}
