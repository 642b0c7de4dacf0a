//! What the bridge has done.

use std::ops::AddAssign;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use throughline::{Error, Timestamp};

use crate::page::page;
use crate::verify::Verification;

/// What was done with messages, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Accepted by the sink.
    pub moved: u64,
    /// Their payloads, in bytes.
    pub bytes: u64,
    /// Refused by the sink, and accepted by the reject address.
    pub rejected: u64,
    /// Not taken by the filter, and acked without being copied ([`Rest::Skip`](crate::Rest::Skip)).
    pub skipped: u64,
    /// Delivered again after they had been moved: acked without being sent again.
    pub already_moved: u64,
    /// Moved although a message of the same id and content had been moved before: the source held it twice, or delivered it
    /// again without saying so. Of those moved, so many may be duplicates in the sink.
    pub copies: u64,
    /// Sent again after a send of which nobody knows what became: of each the sink may have two.
    pub sent_again: u64,
    /// Recognised by the sink as sent before, and not taken again.
    pub deduplicated: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.moved += other.moved;
        self.bytes += other.bytes;
        self.rejected += other.rejected;
        self.skipped += other.skipped;
        self.already_moved += other.already_moved;
        self.copies += other.copies;
        self.sent_again += other.sent_again;
        self.deduplicated += other.deduplicated;
    }
}

/// Why the bridge ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum End {
    /// The source is empty, as [`Bridge::until_empty`](crate::Bridge::until_empty) asked for.
    Empty {
        /// The broker only estimates how much there is, or does not say what other consumers hold.
        approximate: bool,
    },
    /// As many were moved as [`Bridge::max`](crate::Bridge::max) allows.
    Max,
    /// It was asked to stop.
    Stopped,
    /// The sink does not take a message, and there is no reject address. The message is still in the source.
    Refused {
        /// Its id.
        id: String,
        /// Its type.
        message_type: Option<String>,
        /// What the sink, or a check before it, said.
        #[serde(serialize_with = "text")]
        error: Error,
    },
    /// As many messages that the filter does not take are held as [`Bridge::hold`](crate::Bridge::hold) allows.
    Full,
    /// Nothing has come for a while, although the source says that it holds so many: another consumer has them, or the
    /// broker gives them to none.
    Starved {
        /// Ready, as the source says.
        ready: u64,
    },
    /// The source, the sink, the reject address or the ledger failed for good, or for longer than
    /// [`Bridge::patience`](crate::Bridge::patience).
    Failed {
        /// What failed.
        #[serde(serialize_with = "text")]
        error: Error,
    },
}

impl End {
    /// Whether that was what was asked for.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Empty { .. } | Self::Max | Self::Stopped)
    }
}

/// A message that went to the reject address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// When, in RFC 3339.
    pub at: String,
    /// Its id.
    pub id: String,
    /// Its type.
    pub message_type: Option<String>,
    /// The class of the refusal: `limit_exceeded`, `refused`, `invalid_message`.
    pub class: String,
    /// What the sink, or a check before it, said.
    pub reason: String,
}

/// What a run of the bridge has done, and how it ended.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The source's address, without secrets.
    pub from: String,
    /// The sink's.
    pub to: String,
    /// The reject address.
    pub reject: Option<String>,
    /// When it began.
    #[serde(serialize_with = "time")]
    pub began: Timestamp,
    /// How long it took; in JSON, in seconds.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// Why it ended.
    pub end: End,
    /// What this run has done.
    pub totals: Totals,
    /// What earlier runs with the same ledger have done.
    pub earlier: Totals,
    /// How many runs there were before.
    pub earlier_runs: u64,
    /// How many of them were killed.
    pub killed_runs: u64,
    /// How many messages those had in flight at most: so many, and no more, may be in the sink twice without having been
    /// counted.
    pub killed_in_flight: u64,
    /// Not taken by the filter, and given back.
    pub left: u64,
    /// Expired before they could be moved: rejected by the source, or removed from it.
    pub expired: u64,
    /// Moved, but the source did not take the ack: they come again, and are then known.
    pub unacked: u64,
    /// How many are left in the source, where it says: ready, and waiting for a delay or held by others where it says that,
    /// too.
    pub depth: Option<u64>,
    /// What went to the reject address in this run, the first 1,000.
    pub rejected: Vec<Rejected>,
    /// What was found in the sink, where that was asked for ([`Bridge::verify`](crate::Bridge::verify)).
    pub verification: Option<Verification>,
    /// What could not be done at the end, such as closing the source.
    pub warnings: Vec<String>,
}

impl Report {
    /// Messages a second, over the whole run.
    pub fn rate(&self) -> f64 {
        let seconds = self.took.as_secs_f64();
        if seconds > 0.0 { self.totals.moved as f64 / seconds } else { 0.0 }
    }

    /// Whether it ended as asked for, with every message that it took in the sink or at the reject address, and the
    /// verification, where there was one, found nothing missing, changed or out of order.
    pub fn is_success(&self) -> bool {
        self.end.is_success() && self.verification.as_ref().is_none_or(Verification::is_clean)
    }

    /// The report as one HTML page that needs nothing else: no network, no script; readable on light and dark screens.
    pub fn html(&self) -> String {
        page(self)
    }
}

fn text<S: Serializer>(error: &Error, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(error)
}

fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
