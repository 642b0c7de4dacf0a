//! What is in the sink, compared with what was sent.

use std::num::NonZeroUsize;

use serde::Serialize;
use throughline::capabilities::{Browse, Capabilities, Level};
use throughline::{Bus, Envelope, Result};

use crate::identity::Parts;
use crate::ledger::Writer;

/// How the sink's side of a verification is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "level", rename_all = "snake_case")]
pub enum Evidence {
    /// The messages were read back from the sink, and digests of id, key, fields, headers and payload compared.
    ReadBack {
        /// Reading has disturbed: delivery counts have risen.
        disturbed: bool,
        /// Only the first so many were read ([`Bridge::verify`](crate::Bridge::verify) says how many at most): what is
        /// missing cannot be told.
        cut: bool,
    },
    /// Reading back, or comparing, has failed: nothing is known but the sink's receipts.
    Failed {
        /// Why.
        why: String,
    },
    /// Nothing could be read back: the sink has confirmed each message, and that is all that is known.
    ReceiptsOnly {
        /// Why nothing could be read.
        why: String,
    },
}

/// What a verification has found. Messages that went to the reject address are not looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// How it is known.
    #[serde(flatten)]
    pub evidence: Evidence,
    /// How many messages should be there: moved by this run, and by those before it that were killed.
    pub expected: u64,
    /// What was found. `None` where nothing could be read.
    pub found: Option<Found>,
}

/// What is in the sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Found {
    /// How many messages were read.
    pub read: u64,
    /// Of those that should be there, how many are, each as it was sent.
    pub same: u64,
    /// Of those that should be there, how many are not: lost, or taken by another consumer already. Not told where only a
    /// part was read.
    pub missing: Option<u64>,
    /// Some of the missing, by id.
    pub missing_ids: Vec<String>,
    /// How many are there once more than they were sent.
    pub duplicates: u64,
    /// Some of these, by id.
    pub duplicate_ids: Vec<String>,
    /// How many have other headers than were sent.
    pub changed_headers: u64,
    /// How many have another payload.
    pub changed_payload: u64,
    /// How many have another ordering key.
    pub changed_key: u64,
    /// How many have another type, time or other field.
    pub changed_fields: u64,
    /// How many come after a later one of their key. `None` where the sink has no order.
    pub reordered: Option<u64>,
    /// How many are of somebody else: there before, or published meanwhile.
    pub others: u64,
}

impl Verification {
    /// Whether what could be looked at is all right: nothing missing, changed or out of order. Duplicates are allowed: they
    /// are told.
    pub fn is_clean(&self) -> bool {
        let has_failed = matches!(self.evidence, Evidence::Failed { .. });
        !has_failed
            && self.found.as_ref().is_none_or(|found| {
                found.missing.unwrap_or(0) == 0
                    && found.reordered.unwrap_or(0) == 0
                    && found.changed_headers
                        + found.changed_payload
                        + found.changed_key
                        + found.changed_fields
                        == 0
            })
    }

    /// What it has come to, as a sentence or two.
    pub fn summary(&self) -> String {
        let verdict = if self.is_clean() { "all as sent" } else { "not all is as it was sent" };
        match &self.evidence {
            Evidence::ReceiptsOnly { why } | Evidence::Failed { why } => {
                format!("Could not be verified: {why}. What is known are the sink's receipts.")
            }
            Evidence::ReadBack { disturbed, cut } => {
                let read = self.found.as_ref().map_or(0, |found| found.read);
                let mut text = format!("Read back {read} messages: {verdict}");
                match self.found.as_ref().map_or(0, |found| found.duplicates) {
                    0 => text.push('.'),
                    duplicates => text.push_str(&format!(", {duplicates} of them once more than that.")),
                }
                if *cut {
                    text.push_str(" No more were read, so what is missing cannot be told.");
                }
                if *disturbed {
                    text.push_str(" Delivery counts have risen by it.");
                }
                if self.found.as_ref().is_some_and(|found| found.missing.unwrap_or(0) > 0) {
                    text.push_str(" A missing message is lost, or another consumer has taken it already.");
                }
                text
            }
        }
    }

    /// Whether the sink could be read back as far as it had to be.
    pub fn is_complete(&self) -> bool {
        matches!(&self.evidence, Evidence::ReadBack { cut: false, .. })
    }
}

/// What is noted of a message that was sent.
pub(crate) struct Sent {
    /// Its place in the order of arrival.
    pub(crate) order: i64,
    pub(crate) id: String,
    pub(crate) parts: Parts,
}

impl Sent {
    pub(crate) fn new(order: u64, envelope: &Envelope) -> Self {
        let order = i64::try_from(order).unwrap_or(i64::MAX);
        Self { order, id: envelope.id.clone(), parts: Parts::of(envelope) }
    }
}

/// Reads the sink back, and compares.
pub(crate) async fn verify(
    to: &Bus,
    sink: &Capabilities,
    most: NonZeroUsize,
    ledger: &Writer,
) -> Result<Verification> {
    let only = |why: String| Evidence::ReceiptsOnly { why };
    let disturbed = match sink.browse {
        Browse::Native => false,
        Browse::Disturbing => true,
        Browse::No => {
            let why = format!("{} cannot show messages without consuming them", sink.transport);
            return Ok(Verification { evidence: only(why), expected: ledger.expected().await?, found: None });
        }
    };
    let messages = match to.browse("", most).await {
        Ok(messages) => messages,
        Err(error) => {
            let why = format!("reading back has failed: {error}");
            return Ok(Verification { evidence: only(why), expected: ledger.expected().await?, found: None });
        }
    };
    let cut = messages.len() >= most.get();
    let seen = messages.into_iter().zip(0..).map(|(message, place)| Sent::new(place, &message.envelope));
    let (expected, mut found) = ledger.compare(seen.collect()).await?;
    if cut {
        found.missing = None;
        found.missing_ids.clear();
    }
    if sink.order == Level::No {
        found.reordered = None;
    }
    Ok(Verification { evidence: Evidence::ReadBack { disturbed, cut }, expected, found: Some(found) })
}
