//! Two destinations, read and compared.

mod pairing;
mod row;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use throughline::capabilities::Level;
use throughline::{Bus, Result};

use crate::filter::Filter;
use crate::map::Map;
pub(crate) use pairing::Pairing;
pub(crate) use row::{Expiry, Half, Row};
pub(crate) use store::Place;

/// So many messages are read of each side, where nothing else is said.
const AT_MOST: usize = 1_000_000;
/// So many examples of each difference.
pub(crate) const EXAMPLES: usize = 20;

/// Reads two destinations and compares what is in them: what is in both, in one only, changed, there more often, and out
/// of order in its key.
///
/// The first side is read before the second, so that what is copied from the first to the second meanwhile is not taken
/// for missing; what arrives in the first meanwhile is not looked at. Memory stays flat: digests of the messages are in a
/// file, some 250 bytes a message and 10 more a header; no payloads, no values of headers.
///
/// # What is the same message
/// Messages are paired by id, each with one: first those that are alike, then the others, which have *changed*. A message
/// whose id was made up when it was read (a foreign one, on a broker that gives none) is paired by its content instead; such
/// a one that has changed cannot be recognised, and is on both sides only there. All fields count, and headers by name, each
/// name's values in order. Of an expiry only whether there is one: of a foreign message it is counted from its receipt.
///
/// ```
/// use throughline::{Bus, Envelope};
/// use throughline_bridge::Comparison;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> throughline::Result<()> {
/// let old = Bus::connect("memory:compare?queue=old").await?;
/// let new = Bus::connect("memory:compare?queue=new").await?;
/// let message = Envelope::json("campaign.sync_report", &7)?;
/// old.publisher().await?.publish(message.clone()).await?;
/// new.publisher().await?.publish(message).await?;
/// new.publisher().await?.publish(Envelope::json("campaign.sync_report", &8)?).await?;
///
/// let differences = Comparison::between(&old, &new).run().await?;
/// assert_eq!((differences.same, differences.only_second.count), (1, 1));
/// assert!(!differences.is_equal());
/// # Ok(())
/// # }
/// ```
#[must_use = "run it"]
#[derive(Clone)]
pub struct Comparison {
    first: Bus,
    second: Bus,
    map: Map,
    filter: Filter,
    at_most: NonZeroUsize,
    examples: usize,
    file: Option<PathBuf>,
}

/// What a [`Comparison`] has found. Messages are named by their ids only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Differences {
    /// How the first side is known.
    pub first: Side,
    /// How the second side is known.
    pub second: Side,
    /// How many messages are in both, alike.
    pub same: u64,
    /// Those whose id is in the first only. Where the second was not read to its end, some may be there all the same.
    pub only_first: Messages,
    /// Those whose id is in the second only. Where the first was not read to its end, some may be there all the same.
    pub only_second: Messages,
    /// Those that both have, and the first more often: each time counts that has no counterpart.
    pub more_in_first: Messages,
    /// Those that both have, and the second more often: duplicates, where the second is a copy.
    pub more_in_second: Messages,
    /// Those that are in both, and not alike.
    pub changed: Changed,
    /// Those in both that come in the second after one of their key that is later in the first. `None` where one of them
    /// has no order.
    pub out_of_order: Option<Messages>,
}

/// One side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Side {
    /// Its address, without secrets.
    pub address: String,
    /// How many messages were compared; what the filter does not take is not among them.
    pub read: u64,
    /// How they are known.
    pub evidence: Reading,
}

/// How the messages of one side are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "level", rename_all = "snake_case")]
pub enum Reading {
    /// They were read.
    ReadBack {
        /// Reading has disturbed: delivery counts have risen.
        disturbed: bool,
        /// There are more than were read ([`Comparison::at_most`]).
        cut: bool,
    },
    /// They were not: the transport shows none.
    Nothing {
        /// Why.
        why: String,
    },
}

/// Some messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// How many.
    pub count: u64,
    /// The ids of the first of them, in the order of their side.
    pub ids: Vec<String>,
}

/// Messages that are in both, and not alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Changed {
    /// How many.
    pub count: u64,
    /// In how many of them each part differs: `payload`, `ordering key`, `header 'x' lost`, `header 'x' added`,
    /// `header 'x' changed`. No more than a thousand parts.
    pub parts: BTreeMap<String, u64>,
    /// The first of them, each with the parts that differ.
    pub examples: Vec<ChangedMessage>,
}

/// A message that is in both, and not alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedMessage {
    /// Its id.
    pub id: String,
    /// The parts that differ, as in [`Changed::parts`].
    pub parts: Vec<String>,
}

impl Differences {
    /// Whether both sides were read to their ends. If not, what is in one only is not certain.
    pub fn is_complete(&self) -> bool {
        [&self.first, &self.second]
            .iter()
            .all(|side| matches!(side.evidence, Reading::ReadBack { cut: false, .. }))
    }

    /// Whether both were read to their ends, and have the same messages, each as often, in the same order of each key.
    pub fn is_equal(&self) -> bool {
        let all = [&self.only_first, &self.only_second, &self.more_in_first, &self.more_in_second];
        self.is_complete()
            && self.changed.count == 0
            && all.into_iter().chain(&self.out_of_order).all(|messages| messages.count == 0)
    }
}

impl Comparison {
    /// A comparison of the own destinations of two buses. Neither is closed by it.
    pub fn between(first: &Bus, second: &Bus) -> Self {
        Self {
            first: first.clone(),
            second: second.clone(),
            map: Map::default(),
            filter: Filter::default(),
            at_most: NonZeroUsize::new(AT_MOST).unwrap_or(NonZeroUsize::MAX),
            examples: EXAMPLES,
            file: None,
        }
    }

    /// What a bridge renames on the way from the first to the second: the second is expected to have it so.
    pub fn map(mut self, map: Map) -> Self {
        self.map = map;
        self
    }

    /// Which messages of the first are expected in the second; the others are not looked at.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// How many messages of each side are read; 1,000,000 by default. That there are more is said.
    pub fn at_most(mut self, messages: NonZeroUsize) -> Self {
        self.at_most = messages;
        self
    }

    /// How many examples of each difference are named; 20 by default.
    pub fn examples(mut self, count: usize) -> Self {
        self.examples = count;
        self
    }

    /// The SQLite file that digests are held in. It must not exist, and is left for a closer look. Without one it is a
    /// temporary file that nobody finds again.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Reads both sides, and compares. Where a broker cannot show messages without taking them (RabbitMQ, SQS), they are
    /// given back and their delivery counts rise; what others hold unsettled is not seen.
    ///
    /// Dropping the future ends the reading.
    ///
    /// Errors: what reading a side, or writing the file, fails with; `Conflict` where the file exists.
    pub async fn run(self) -> Result<Differences> {
        let mut pairing = Pairing::open(self.file.clone(), Expiry::There);
        let expected = |envelope: Arc<_>| self.filter.takes(&envelope).then(|| self.map.apply(&envelope));
        let first = pairing.read(Place::First, &self.first, self.at_most, expected).await?;
        let second = pairing.read(Place::Second, &self.second, self.at_most, Some).await?;
        let found = pairing.compare(self.examples).await?;
        let is_ordered = [&self.first, &self.second].iter().all(|bus| bus.capabilities().order != Level::No);
        let ([only_first, only_second], [more_in_first, more_in_second]) = (found.only, found.more);
        Ok(Differences {
            first,
            second,
            same: found.same,
            only_first,
            only_second,
            more_in_first,
            more_in_second,
            changed: found.changed,
            out_of_order: is_ordered.then_some(found.out_of_order),
        })
    }
}

impl fmt::Debug for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comparison")
            .field("first", self.first.address())
            .field("second", self.second.address())
            .field("at_most", &self.at_most)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
