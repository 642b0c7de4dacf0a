//! Which messages are meant.

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;

use throughline::{Envelope, Error, ErrorKind, HeaderValue};

use crate::comparison::{Expiry, Half, Row};

/// Which messages the bridge takes: one of the types, where any is named, and every header that is named.
///
/// As text, one condition a time: `type=campaign.sync_report`, `header:tenant=5000`.
///
/// ```
/// use throughline_bridge::Filter;
/// let filter = Filter::default().message_type("report").header("tenant", "5000");
/// let message = throughline::Envelope::builder("report").header("tenant", "5000").build();
/// assert!(filter.takes(&message));
/// # let parsed: Filter = "type=report".parse()?;
/// # assert!(parsed.takes(&message));
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Filter {
    types: Vec<String>,
    headers: Vec<(String, String)>,
    /// Messages that are not taken.
    except: Option<Arc<HashSet<Copied>>>,
}

/// A message by its id and a digest of its content.
pub(crate) type Copied = (String, Half);

/// What becomes of messages that the [`Filter`] does not take. Either way they are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rest {
    /// They are held until the end and given back, so that they stay in the source. So many may be held at once
    /// ([`Bridge::hold`](crate::Bridge::hold)); when that is full, the bridge ends.
    #[default]
    Leave,
    /// They are acked without being copied: **gone** from a queue. For a group or subscription of the bridge's own, whose
    /// topic keeps them for others.
    Skip,
}

impl Filter {
    /// Takes messages of this type, besides those of other types named.
    pub fn message_type(mut self, name: impl Into<String>) -> Self {
        self.types.push(name.into());
        self
    }

    /// Takes only messages that have this header with this text as one of its values.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Both: the types of either, and the headers of both.
    pub fn and(mut self, other: Self) -> Self {
        self.types.extend(other.types);
        self.headers.extend(other.headers);
        self.except = other.except.or(self.except);
        self
    }

    /// Takes none of these. One with the id of one and another content is a stranger, and taken.
    pub(crate) fn except(mut self, copies: HashSet<Copied>) -> Self {
        self.except = Some(Arc::new(copies));
        self
    }

    /// Whether it takes a message.
    pub fn takes(&self, envelope: &Envelope) -> bool {
        let message_type = envelope.message_type.as_deref();
        let is = |value: &HeaderValue, wanted: &str| match value {
            HeaderValue::Bytes(bytes) => bytes == wanted.as_bytes(),
            value => value.as_str() == Some(wanted),
        };
        (self.types.is_empty() || self.types.iter().any(|wanted| message_type == Some(wanted)))
            && self
                .headers
                .iter()
                .all(|(name, wanted)| envelope.headers.get_all(name).any(|value| is(value, wanted)))
            && self.except.as_ref().is_none_or(|copies| {
                let row = Row::of(envelope, Expiry::Exact);
                !copies.contains(&(row.id, row.content))
            })
    }

    /// Whether it takes everything.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty() && self.headers.is_empty() && self.except.is_none()
    }
}

/// Shows no header's value.
impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Filter").field("types", &self.types).field("headers", &headers).finish()
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('=') {
            Some(("type", name)) if !name.is_empty() => Ok(Self::default().message_type(name)),
            Some((header, value)) if header.len() > "header:".len() && header.starts_with("header:") => {
                Ok(Self::default().header(header.trim_start_matches("header:"), value))
            }
            _ => Err(Error::new(
                ErrorKind::InvalidMessage,
                "not a filter: it is type=NAME or header:NAME=VALUE, such as type=campaign.sync_report",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_types_and_all_of_the_headers() {
        let message = |name: &str| Envelope::builder(name).header("a", "1").header("a", "2").build();
        let filter =
            |texts: &[&str]| texts.iter().fold(Filter::default(), |all, text| all.and(text.parse().unwrap()));
        assert!(Filter::default().takes(&message("x")));
        assert!(filter(&["type=x", "type=y"]).takes(&message("y")));
        assert!(!filter(&["type=x", "type=y"]).takes(&message("z")));
        assert!(filter(&["type=x", "header:a=2"]).takes(&message("x")), "any of a header's values");
        assert!(!filter(&["header:a=2", "header:b=1"]).takes(&message("x")));
        assert!(filter(&["header:a=="]).takes(&Envelope::builder("x").header("a", vec![b'=']).build()));
        for bad in ["", "x", "type=", "header:=1", "kind=1"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
        let secret = format!("{:?}", filter(&["header:authorization=hunter2"]));
        assert!(!secret.contains("hunter2"), "{secret}");
    }
}
