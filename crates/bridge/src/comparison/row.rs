//! What is kept of a message: digests, no values.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};
use throughline::{Envelope, HeaderValue, IdOrigin};

use crate::identity::Content;

/// Half of a SHA-256.
pub(crate) type Half = [u8; 16];
/// Enough to tell which part differs, where the halves say that something does.
const SHORT: usize = 8;
/// Stands where a field's number would: a header, whose name follows.
const HEADER: u8 = u8::MAX;

/// What of an expiry is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// When it is.
    Exact,
    /// Whether there is one: of a foreign message it is counted from its receipt.
    There,
}

/// A message, as it is compared.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    /// Whether the id was made up at this reading.
    pub(crate) is_made_up: bool,
    pub(crate) key: Option<Half>,
    /// Of everything but the id.
    pub(crate) content: Half,
    /// For each field that is there, its number and a short digest; for each header, its name and one.
    pub(crate) parts: Vec<u8>,
}

type Field = (&'static str, fn(&Envelope) -> Option<Cow<'_, [u8]>>);

fn text(text: Option<&String>) -> Option<Cow<'_, [u8]>> {
    text.map(|text| Cow::Borrowed(text.as_bytes()))
}

/// The fields that count, in an order that is stored.
const FIELDS: [Field; 12] = [
    ("message type", |e| text(e.message_type.as_ref())),
    ("source", |e| text(e.source.as_ref())),
    ("ordering key", |e| e.ordering_key.as_deref().map(Cow::Borrowed)),
    ("time", |e| e.time.map(|time| time.as_millis().to_be_bytes().to_vec().into())),
    ("content type", |e| text(e.content_type.as_ref())),
    ("content encoding", |e| text(e.content_encoding.as_ref())),
    ("correlation id", |e| text(e.correlation_id.as_ref())),
    ("reply-to", |e| text(e.reply_to.as_ref())),
    ("expiry", |e| e.expires_at.map(|at| at.as_millis().to_be_bytes().to_vec().into())),
    ("priority", |e| e.priority.map(|priority| vec![priority].into())),
    ("idempotency key", |e| text(e.idempotency_key.as_ref())),
    ("payload", |e| e.payload.as_deref().map(Cow::Borrowed)),
];

impl Row {
    pub(crate) fn of(envelope: &Envelope, expiry: Expiry) -> Self {
        let mut whole = Sha256::new();
        let mut parts = Vec::new();
        let mut key = None;
        for ((name, value), number) in FIELDS.iter().zip(0_u8..) {
            let Some(mut value) = value(envelope) else { continue };
            if *name == "expiry" && expiry == Expiry::There {
                value = Cow::Borrowed(&[]);
            }
            let digest = Content::of(|content| content.bytes(&value));
            if *name == "ordering key" {
                key = Some(digest);
            }
            whole.update([number]);
            whole.update(digest);
            parts.push(number);
            parts.extend_from_slice(&digest[..SHORT]);
        }
        let mut headers: BTreeMap<&str, Vec<&HeaderValue>> = BTreeMap::new();
        for (name, value) in envelope.headers.iter() {
            headers.entry(name).or_default().push(value);
        }
        for (name, values) in headers {
            let digest = Content::of(|content| values.into_iter().for_each(|value| content.header(value)));
            let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
            for bytes in [&[HEADER][..], &length, name.as_bytes()] {
                whole.update(bytes);
                parts.extend_from_slice(bytes);
            }
            whole.update(digest);
            parts.extend_from_slice(&digest[..SHORT]);
        }
        Self {
            id: envelope.id.clone(),
            is_made_up: envelope.id_origin == IdOrigin::Synthetic,
            key,
            content: Content(whole).half(),
            parts,
        }
    }
}

/// A field's number, or that of headers with a name.
type Name<'a> = (u8, &'a [u8]);
type Digest<'a> = &'a [u8];

/// The parts in which two messages differ, by name.
pub(crate) fn differences(first: &[u8], second: &[u8]) -> Vec<String> {
    let (first, second) =
        (Named(first).collect::<BTreeMap<_, _>>(), Named(second).collect::<BTreeMap<_, _>>());
    let names: BTreeSet<Name<'_>> = first.keys().chain(second.keys()).copied().collect();
    let mut different = Vec::new();
    for (number, name) in names {
        let what = match (first.get(&(number, name)), second.get(&(number, name))) {
            (left, came) if left == came => continue,
            (Some(_), None) => "lost",
            (None, _) => "added",
            (Some(_), Some(_)) => "changed",
        };
        different.push(match FIELDS.get(usize::from(number)) {
            Some((field, _)) => (*field).to_owned(),
            None => format!("header '{}' {what}", String::from_utf8_lossy(name)),
        });
    }
    different
}

/// What [`Row::parts`] holds.
struct Named<'a>(&'a [u8]);

impl<'a> Named<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Named<'a> {
    type Item = (Name<'a>, Digest<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let number = *self.take(1)?.first()?;
        let name = match number {
            HEADER => {
                let length: [u8; 4] = self.take(4)?.try_into().ok()?;
                self.take(usize::try_from(u32::from_be_bytes(length)).ok()?)?
            }
            _ => &[],
        };
        Some(((number, name), self.take(SHORT)?))
    }
}
