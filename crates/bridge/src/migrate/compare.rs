//! What is at the old place and at the new one, beside what the ledger says was moved.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use throughline::capabilities::{Browse, Level};
use throughline::{Bus, Envelope, Error, ErrorKind, Result, Timestamp};

use crate::comparison::{Changed, EXAMPLES, Expiry, Messages, Pairing, Place, Reading, Side};
use crate::filter::Filter;
use crate::ledger::{self, Remembered};
use crate::map::Map;
use crate::verify::Became;

/// What a comparison comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Nothing missing, changed or out of order, as far as could be looked at.
    Equal,
    /// Something is.
    Different,
    /// The new place could not be read.
    Unknown,
}

/// Both places, compared with what the ledger says was moved: by id, or by content where an id was made up; and by digests of all
/// fields, the headers and the payload. What could not be told, since a place was not read or not to its end, is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Compared {
    /// When, in RFC 3339.
    pub at: String,
    /// The old place, and how it is known.
    pub old: Side,
    /// The new place, and how it is known.
    pub new: Side,
    /// How many messages the ledger says were moved.
    pub moved: u64,
    /// Of those, how many it still knows: the latest million.
    pub remembered: u64,
    /// How many are at the old place and were moved all the same: what a tap has copied, and nobody has consumed yet.
    pub still_old: Option<u64>,
    /// Those at the old place that were not moved yet.
    pub not_yet: Option<Messages>,
    /// How many of the remembered are at the new place as they were sent.
    pub same: u64,
    /// Those of the remembered that are not at the new place.
    pub missing: Option<Messages>,
    /// Consumers take from the new place at this phase, so that what is missing may have been consumed.
    pub may_be_consumed: bool,
    /// Those that are at the new place more often than they were sent.
    pub twice: Messages,
    /// Those that are there, and not as they were sent.
    pub changed: Changed,
    /// Those that come after a later one of their key. `None` where the new place has no order.
    pub out_of_order: Option<Messages>,
    /// Those at the new place that the ledger does not know: of other producers, or no longer remembered. What was moved
    /// while they were read is not counted.
    pub others: Option<Messages>,
}

impl Compared {
    pub(super) fn unread(old: &str, new: &str) -> Self {
        let nothing = |address: &str| Side {
            address: address.to_owned(),
            read: 0,
            evidence: Reading::Nothing { why: "it was not looked at".into() },
        };
        Self {
            at: Timestamp::now().to_string(),
            old: nothing(old),
            new: nothing(new),
            moved: 0,
            remembered: 0,
            still_old: None,
            not_yet: None,
            same: 0,
            missing: None,
            may_be_consumed: false,
            twice: Messages::default(),
            changed: Changed::default(),
            out_of_order: None,
            others: None,
        }
    }

    /// What it comes to. Duplicates are allowed, and told. What is missing counts where nobody consumes from the new place
    /// yet.
    pub fn agreement(&self) -> Agreement {
        let count = |messages: &Option<Messages>| messages.as_ref().map_or(0, |messages| messages.count);
        let missing = if self.may_be_consumed { 0 } else { count(&self.missing) };
        match &self.new.evidence {
            Reading::Nothing { .. } => Agreement::Unknown,
            Reading::ReadBack { .. } if missing + self.changed.count + count(&self.out_of_order) > 0 => {
                Agreement::Different
            }
            Reading::ReadBack { .. } => Agreement::Equal,
        }
    }
}

/// Runs what reads and writes files on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "a task of the migration failed").with_source(error))
    })
}

/// What is to be compared, and how.
pub(super) struct Comparing<'a> {
    pub(super) old: &'a Bus,
    pub(super) new: &'a Bus,
    pub(super) map: Map,
    pub(super) filter: Filter,
    /// Of the bridge that filled the new place.
    pub(super) ledger: PathBuf,
    pub(super) most: NonZeroUsize,
    pub(super) may_be_consumed: bool,
    /// Places that show messages only by giving them out are left alone.
    pub(super) undisturbed: bool,
}

impl Comparing<'_> {
    /// The old place first, the ledger as it is then, and the new place last: what the ledger says was moved is at the new
    /// place by then, and what it does not know had not been moved when it was seen.
    pub(super) async fn run(self) -> Result<Compared> {
        let [old, new] = [self.old, self.new].map(|bus| bus.address().to_string());
        let mut compared = Compared { may_be_consumed: self.may_be_consumed, ..Compared::unread(&old, &new) };
        let mut with_old = Pairing::open(None, Expiry::Exact);
        let expected =
            |envelope: Arc<Envelope>| self.filter.takes(&envelope).then(|| self.map.apply(&envelope));
        compared.old = self.read(&mut with_old, Place::First, self.old, expected).await;
        let known = remembered(&self.ledger).await?;
        (compared.moved, compared.remembered) = (known.moved, known.count);
        if matches!(compared.old.evidence, Reading::ReadBack { .. }) {
            add_sent(&mut with_old, Place::Second, &self.ledger, known.last).await?;
            let found = with_old.compare(EXAMPLES).await?;
            let [only, _] = found.only;
            let [more, _] = found.more;
            compared.still_old = Some(found.same + found.changed.count);
            compared.not_yet = Some(both(only, more));
        }

        let mut with_new = Pairing::open(None, Expiry::Exact);
        add_sent(&mut with_new, Place::First, &self.ledger, known.last).await?;
        compared.new = self.read(&mut with_new, Place::Second, self.new, Some).await;
        let Reading::ReadBack { cut, .. } = compared.new.evidence else { return Ok(compared) };
        let found = with_new.compare(EXAMPLES).await?;
        let ([missing, mut others], [fewer, twice]) = (found.only, found.more);
        let meanwhile = remembered(&self.ledger).await?.moved.saturating_sub(known.moved);
        if meanwhile > 0 {
            others.count = others.count.saturating_sub(meanwhile);
            others.ids.clear();
        }
        (compared.same, compared.twice, compared.changed) = (found.same, twice, found.changed);
        compared.missing = (!cut).then(|| both(missing, fewer));
        compared.others = Some(others);
        compared.out_of_order = (self.new.capabilities().order != Level::No).then_some(found.out_of_order);
        Ok(compared)
    }

    /// That a place cannot be read is told, and fails nothing.
    async fn read(
        &self,
        pairing: &mut Pairing,
        place: Place,
        bus: &Bus,
        expected: impl Fn(Arc<Envelope>) -> Option<Arc<Envelope>>,
    ) -> Side {
        let nothing = |why: String| Side {
            address: bus.address().to_string(),
            read: 0,
            evidence: Reading::Nothing { why },
        };
        if self.undisturbed && bus.capabilities().browse == Browse::Disturbing {
            return nothing("it shows messages only by giving them out, and was not to be disturbed".into());
        }
        match pairing.read(place, bus, self.most, expected).await {
            Ok(side) => side,
            Err(error) => nothing(error.to_string()),
        }
    }
}

fn both(mut one: Messages, other: Messages) -> Messages {
    one.count += other.count;
    one.ids.extend(other.ids);
    one.ids.truncate(EXAMPLES);
    one
}

/// Where there is no ledger, nothing was moved.
async fn remembered(path: &Path) -> Result<Remembered> {
    let path = path.to_owned();
    blocking(move || if path.exists() { ledger::remembered(&path) } else { Ok(Remembered::default()) }).await
}

/// Adds what the ledger remembers as sent, up to this number.
async fn add_sent(pairing: &mut Pairing, place: Place, ledger: &Path, last: i64) -> Result<()> {
    let mut after = 0;
    while after < last {
        let path = ledger.to_owned();
        let page = blocking(move || ledger::page(&path, after)).await?;
        let Some((number, _)) = page.last() else { return Ok(()) };
        after = *number;
        let sent = page.into_iter().filter(|(number, sent)| *number <= last && sent.became == Became::Sent);
        pairing.add(place, sent.map(|(_, sent)| (sent.place, sent.row)).collect()).await?;
    }
    Ok(())
}

/// How many messages the new place holds, if it holds nothing but copies that the ledger knows; else why they cannot be
/// purged. Nothing is moved meanwhile.
pub(super) async fn only_copies(
    new: &Bus,
    ledger: &Path,
    most: NonZeroUsize,
) -> Result<std::result::Result<u64, String>> {
    let mut pairing = Pairing::open(None, Expiry::Exact);
    add_sent(&mut pairing, Place::First, ledger, remembered(ledger).await?.last).await?;
    let side = pairing.read(Place::Second, new, most, Some).await?;
    match side.evidence {
        Reading::Nothing { why } => return Ok(Err(why)),
        Reading::ReadBack { cut: true, .. } => {
            return Ok(Err(format!("it holds more than {most} messages, and no more are looked at")));
        }
        Reading::ReadBack { .. } => {}
    }
    let found = pairing.compare(EXAMPLES).await?;
    let [_, others] = found.only;
    // One that has a copy's id and another content is a stranger, too.
    let strangers = others.count + found.changed.count;
    let mut ids = others.ids.iter().chain(found.changed.examples.iter().map(|changed| &changed.id));
    Ok(match ids.next() {
        None => Ok(side.read),
        Some(id) => Err(format!(
            "{strangers} of its {} messages are not among the copies that the ledger knows, such as '{id}'",
            side.read
        )),
    })
}
