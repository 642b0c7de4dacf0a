//! What the source held and what is in the sink, compared with what was sent.

mod account;

use std::num::NonZeroUsize;

use serde::Serialize;
use throughline::capabilities::{Capabilities, Level};
use throughline::{Bus, Envelope, Result};

use account::Held;
pub use account::{Source, SourceEvidence};

use crate::comparison::{Changed, EXAMPLES, Expiry, Pairing, Place, Reading, Row};
use crate::filter::Filter;
use crate::ledger::Writer;
use crate::map::Map;

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
    /// Nothing could be read back, but the sink's broker says how many messages it held before and after.
    BrokerCount {
        /// Why nothing could be read.
        why: String,
        /// Before the bridge began.
        before: u64,
        /// When it had ended.
        after: u64,
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

/// What a verification has found. Messages that went to the reject address are not looked for in the sink.
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
    /// What the source held when the bridge began, and whether all of that is accounted for.
    pub source: Source,
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
    /// Those that are there, and not as they were sent.
    pub changed: Changed,
    /// How many come after a later one of their key. `None` where the sink has no order.
    pub reordered: Option<u64>,
    /// Some of these, by id.
    pub reordered_ids: Vec<String>,
    /// How many are of somebody else: there before, or published meanwhile.
    pub others: u64,
}

impl Verification {
    /// Whether what could be looked at is all right: nothing missing, changed or out of order. Duplicates are allowed: they
    /// are told.
    pub fn is_clean(&self) -> bool {
        let has_failed = matches!(self.evidence, Evidence::Failed { .. });
        !has_failed
            && self.source.unaccounted.unwrap_or(0) == 0
            && self.found.as_ref().is_none_or(|found| {
                found.missing.unwrap_or(0) == 0
                    && found.reordered.unwrap_or(0) == 0
                    && found.changed.count == 0
            })
    }

    /// What it has come to, as a sentence or two on the sink, and one or two on the source.
    pub fn summary(&self) -> String {
        let mut text = self.of_sink();
        text.push(' ');
        text.push_str(&self.source.summary());
        text
    }

    fn of_sink(&self) -> String {
        match &self.evidence {
            Evidence::ReceiptsOnly { why } | Evidence::Failed { why } => {
                format!("Could not be verified: {why}. What is known are the sink's receipts.")
            }
            Evidence::BrokerCount { why, before, after } => format!(
                "Could not be read back: {why}. What is known are the sink's receipts, and that its broker counted {before} \
                 messages before and {after} after."
            ),
            Evidence::ReadBack { disturbed, cut } => {
                let found = self.found.as_ref();
                let is_right = found.is_none_or(|found| {
                    found.missing.unwrap_or(0) + found.reordered.unwrap_or(0) + found.changed.count == 0
                });
                let verdict = if is_right { "all as sent" } else { "not all is as it was sent" };
                let mut text =
                    format!("Read back {} messages: {verdict}", found.map_or(0, |found| found.read));
                match found.map_or(0, |found| found.duplicates) {
                    0 => text.push('.'),
                    duplicates => text.push_str(&format!(", {duplicates} of them once more than that.")),
                }
                if *cut {
                    text.push_str(" No more were read, so what is missing cannot be told.");
                }
                if *disturbed {
                    text.push_str(" Delivery counts have risen by it.");
                }
                if found.is_some_and(|found| found.missing.unwrap_or(0) > 0) {
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

/// What became of a message that was taken from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    /// The sink has it.
    Sent = 0,
    /// The reject address has it.
    Rejected = 1,
    /// It came again after it had been moved.
    MovedBefore = 2,
}

/// What is noted of it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) became: Became,
    /// Its place in the order of arrival.
    pub(crate) place: i64,
    pub(crate) row: Row,
}

impl Sent {
    pub(crate) fn new(became: Became, place: u64, envelope: &Envelope) -> Self {
        let place = i64::try_from(place).unwrap_or(i64::MAX);
        Self { became, place, row: Row::of(envelope, Expiry::Exact) }
    }
}

/// What both ends held before anything was moved.
pub(crate) struct Account {
    source: Held,
    sink: Option<u64>,
}

impl Account {
    pub(crate) async fn open(from: &Bus, to: &Bus, most: NonZeroUsize, filter: &Filter, map: &Map) -> Self {
        let sink = to.depth("").await.ok().map(|depth| depth.ready);
        Self { source: Held::open(from, most, filter, map).await, sink }
    }
}

/// What is compared at the end.
pub(crate) struct Verifying {
    pub(crate) most: NonZeroUsize,
    /// `None` where the bridge was stopped before it was known.
    pub(crate) account: Option<Account>,
    pub(crate) expired: u64,
    pub(crate) moved: u64,
}

impl Verifying {
    pub(crate) async fn run(
        self,
        from: &Bus,
        to: &Bus,
        sink: &Capabilities,
        ledger: &Writer,
    ) -> Verification {
        let failed = |error: throughline::Error| Evidence::Failed { why: error.to_string() };
        let (source, before) = match self.account {
            Some(Account { source, sink }) => {
                let settled = source.settle(from, self.most, self.expired, ledger).await;
                (settled.unwrap_or_else(|error| Source::nothing(error.to_string())), sink)
            }
            None => (Source::nothing("the bridge was stopped before it was read".to_owned()), None),
        };
        let compared = compare(to, sink, self.most, before, ledger).await;
        let (evidence, found) = compared.unwrap_or_else(|error| (failed(error), None));
        match ledger.expected().await {
            Ok(expected) => Verification { evidence, expected, found, source },
            Err(error) => Verification { evidence: failed(error), expected: self.moved, found: None, source },
        }
    }
}

/// Reads the sink back, and compares it with what was sent; `before` is how many messages it held before.
async fn compare(
    to: &Bus,
    sink: &Capabilities,
    most: NonZeroUsize,
    before: Option<u64>,
    ledger: &Writer,
) -> Result<(Evidence, Option<Found>)> {
    let mut pairing = Pairing::open(None, Expiry::Exact);
    let mut last = i64::MIN;
    loop {
        let page = ledger.sent(last).await?;
        let Some((number, _)) = page.last() else { break };
        last = *number;
        let sent = page.into_iter().filter(|(_, sent)| sent.became == Became::Sent);
        pairing.add(Place::First, sent.map(|(_, sent)| (sent.place, sent.row)).collect()).await?;
    }
    let read = match pairing.read(Place::Second, to, most, Some).await {
        Ok(read) => read,
        Err(error) => {
            return Ok((unread(to, before, format!("reading back has failed: {error}")).await, None));
        }
    };
    let (disturbed, cut) = match read.evidence {
        Reading::ReadBack { disturbed, cut } => (disturbed, cut),
        Reading::Nothing { why } => return Ok((unread(to, before, why).await, None)),
    };
    let paired = pairing.compare(EXAMPLES).await?;
    let ([lost, others], [less, duplicates]) = (paired.only, paired.more);
    let is_ordered = sink.order != Level::No;
    let mut found = Found {
        read: read.read,
        same: paired.same,
        missing: Some(lost.count + less.count),
        missing_ids: lost.ids.into_iter().chain(less.ids).take(EXAMPLES).collect(),
        duplicates: duplicates.count,
        duplicate_ids: duplicates.ids,
        changed: paired.changed,
        reordered: is_ordered.then_some(paired.out_of_order.count),
        reordered_ids: if is_ordered { paired.out_of_order.ids } else { Vec::new() },
        others: others.count,
    };
    if cut {
        found.missing = None;
        found.missing_ids.clear();
    }
    Ok((Evidence::ReadBack { disturbed, cut }, Some(found)))
}

/// The level of the evidence where nothing can be read back.
async fn unread(to: &Bus, before: Option<u64>, why: String) -> Evidence {
    match (before, to.depth("").await) {
        (Some(before), Ok(after)) => Evidence::BrokerCount { why, before, after: after.ready },
        _ => Evidence::ReceiptsOnly { why },
    }
}
