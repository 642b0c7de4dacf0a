//! What can be handed out, in its order: read, and nothing changed.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use opentelemetry::KeyValue;
use rusqlite::{Connection, OptionalExtension, Row, Rows};
use throughline_core::driver::{Clock, Delivery, Native, Token};
use throughline_core::{HeaderValue, Timestamp};

use crate::codec::{self, envelope_columns, rare_columns};

/// Messages by rank and place, and the statements on them. A state is written out in them: only so does SQLite use the index
/// in which they stand in this order.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    /// Whether these are fresh, and leased by ranges: those up to the end of the last range are not to be had.
    is_fresh: bool,
    /// The first ones of a rank, from a place on.
    select: &'static str,
    /// Whether there is any.
    any: &'static str,
    /// The first rank after another.
    rank: &'static str,
}

const FRESH: Lane = Lane {
    is_fresh: true,
    select: concat!(
        "SELECT f.id, f.id, f.enqueued, 0, NULL, coalesce(",
        rare_columns!(),
        ") IS NOT NULL, 0, NULL, NULL, NULL, ",
        envelope_columns!(),
        " FROM throughline_fresh f LEFT JOIN throughline_messages m ON m.id = f.id \
         WHERE f.queue = ?1 AND f.rank = ?2 AND f.id >= ?3 ORDER BY f.id LIMIT ?4"
    ),
    any: "SELECT 1 FROM throughline_fresh WHERE queue = ?1 AND rank = ?2 AND id >= ?3 LIMIT 1",
    rank: "SELECT rank FROM throughline_fresh WHERE queue = ?1 AND rank > ?2 ORDER BY rank LIMIT 1",
};

macro_rules! lane {
    ($state:literal) => {
        Lane {
            is_fresh: false,
            select: concat!(
                "SELECT l.id, l.place, l.enqueued, l.receive_count, l.key, \
                 coalesce(nullif(l.failed_attempts, 0), l.history, l.dead_letter_source, l.dead_letter_reason, ",
                rare_columns!(),
                ") IS NOT NULL, l.failed_attempts, l.history, l.dead_letter_source, l.dead_letter_reason, ",
                envelope_columns!(),
                " FROM throughline_line l LEFT JOIN throughline_messages m ON m.id = l.id \
                 WHERE l.queue = ?1 AND l.state = ",
                $state,
                " AND l.rank = ?2 AND l.place >= ?3 ORDER BY l.place LIMIT ?4"
            ),
            any: concat!(
                "SELECT 1 FROM throughline_line WHERE queue = ?1 AND state = ",
                $state,
                " AND rank = ?2 AND place >= ?3 LIMIT 1"
            ),
            rank: concat!(
                "SELECT rank FROM throughline_line WHERE queue = ?1 AND state = ",
                $state,
                " AND rank > ?2 ORDER BY rank LIMIT 1"
            ),
        }
    };
}

/// What can be claimed.
pub(crate) const READY: &[Lane] = &[FRESH, lane!("0")];
/// What waits for an earlier message of its key.
pub(crate) const BEHIND: &[Lane] = &[lane!("1")];

/// Where the envelope's columns begin.
const AT: usize = 10;

/// The end of the last range of a rank: what is fresh behind it is nobody's.
const LAST_LEASED: &str =
    "SELECT last FROM throughline_ranges WHERE queue = ?1 AND rank = ?2 ORDER BY last DESC LIMIT 1";

impl Lane {
    fn rank_after(self, connection: &Connection, queue: i64, rank: i64) -> rusqlite::Result<Option<i64>> {
        connection.prepare_cached(self.rank)?.query_row([queue, rank], |row| row.get(0)).optional()
    }

    /// The first place of a rank that can be had.
    fn from(self, connection: &Connection, queue: i64, rank: i64) -> rusqlite::Result<i64> {
        if !self.is_fresh {
            return Ok(i64::MIN);
        }
        let mut last = connection.prepare_cached(LAST_LEASED)?;
        let last: Option<i64> = last.query_row([queue, rank], |row| row.get(0)).optional()?;
        Ok(last.map_or(i64::MIN, |last| last.saturating_add(1)))
    }
}

/// Whether there is anything in these lanes.
pub(crate) fn any(connection: &Connection, queue: i64, lanes: &[Lane]) -> rusqlite::Result<bool> {
    for lane in lanes {
        let mut rank = -1;
        while let Some(next) = lane.rank_after(connection, queue, rank)? {
            rank = next;
            let from = lane.from(connection, queue, rank)?;
            if connection.prepare_cached(lane.any)?.exists([queue, rank, from])? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The first messages of these lanes by rank and place, until their payloads exceed so many bytes.
pub(crate) fn first(
    connection: &Connection,
    queue: i64,
    lanes: &[Lane],
    max: usize,
    max_bytes: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    each(connection, queue, lanes, max, |stored| {
        bytes += stored.delivery.envelope.payload_len();
        found.push(stored);
        bytes < max_bytes
    })?;
    Ok(found)
}

/// Gives the first messages of these lanes by rank and place, at most so many, until it is told to stop; says whether it was.
fn each(
    connection: &Connection,
    queue: i64,
    lanes: &[Lane],
    max: usize,
    mut give: impl FnMut(Stored) -> bool,
) -> rusqlite::Result<bool> {
    let (mut left, mut rank) = (max, -1);
    while left > 0 {
        let ranks = lanes.iter().map(|lane| lane.rank_after(connection, queue, rank));
        let ranks = ranks.collect::<rusqlite::Result<Vec<_>>>()?;
        let Some(next) = ranks.iter().flatten().min().copied() else { break };
        rank = next;
        let here =
            || lanes.iter().zip(&ranks).filter(|(_, first)| **first == Some(rank)).map(|(lane, _)| lane);
        let selects = here().map(|lane| connection.prepare_cached(lane.select));
        let mut selects = selects.collect::<rusqlite::Result<Vec<_>>>()?;
        let limit = i64::try_from(left).unwrap_or(i64::MAX);
        let mut lines = Vec::with_capacity(selects.len());
        for (lane, select) in here().zip(&mut selects) {
            let from = lane.from(connection, queue, rank)?;
            let rows = Some(select.query([queue, rank, from, limit])?);
            lines.push(Line { rows, head: None, is_fresh: lane.is_fresh, rank });
        }
        while left > 0 {
            for line in &mut lines {
                line.fill()?;
            }
            let first = lines.iter_mut().filter_map(|line| Some((line.head.as_ref()?.place, line)));
            let Some((_, line)) = first.min_by_key(|(place, _)| *place) else { break };
            if let Some(stored) = line.head.take() {
                left -= 1;
                if !give(stored) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// The messages of a lane and rank, one after the other.
struct Line<'a> {
    /// `None` when it has ended.
    rows: Option<Rows<'a>>,
    /// The next one.
    head: Option<Stored>,
    is_fresh: bool,
    rank: i64,
}

impl Line<'_> {
    fn fill(&mut self) -> rusqlite::Result<()> {
        if self.head.is_some() {
            return Ok(());
        }
        let Some(rows) = &mut self.rows else { return Ok(()) };
        match rows.next()? {
            Some(row) => self.head = Some(Stored::read(row, self.rank, self.is_fresh)?),
            None => self.rows = None,
        }
        Ok(())
    }
}

/// Gives the messages that are ready, in the order in which they would be delivered, and behind them those that wait for their
/// key, as they are, until it is told to stop.
pub(crate) fn browse(
    connection: &Connection,
    queue: i64,
    max: usize,
    mut give: impl FnMut(Delivery) -> bool,
) -> rusqlite::Result<()> {
    // One look at both: what leaves the one for the other meanwhile must not be missed.
    let transaction = connection.unchecked_transaction()?;
    let mut left = max;
    for lanes in [READY, BEHIND] {
        let is_enough = each(&transaction, queue, lanes, left, |stored| {
            left -= 1;
            give(stored.delivery)
        })?;
        if is_enough {
            break;
        }
    }
    Ok(())
}

/// Where a message was rejected, and why: the native details of a dead letter.
struct DeadLetter(Vec<(&'static str, String)>);

impl Native for DeadLetter {
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        self.0.iter().map(|(name, text)| ((*name).into(), text.as_str().into())).collect()
    }

    fn span_attributes(&self) -> Vec<KeyValue> {
        Vec::new()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// One row, read.
pub(crate) struct Stored {
    pub(crate) id: i64,
    pub(crate) rank: i64,
    pub(crate) place: i64,
    /// Whether it is leased by a range.
    pub(crate) is_fresh: bool,
    /// How often it was delivered before.
    pub(crate) receive_count: i64,
    pub(crate) delivery: Delivery,
}

impl Stored {
    fn read(row: &Row<'_>, rank: i64, is_fresh: bool) -> rusqlite::Result<Self> {
        let (id, place, receive_count): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(3)?);
        // Whether any of what most messages leave empty is set.
        let rare: bool = row.get(5)?;
        let mut envelope = codec::read(row, AT, id, rare)?;
        envelope.ordering_key = codec::bytes(row.get_ref(4)?);
        let mut delivery = Delivery::new(Arc::new(envelope), Token { epoch: 0, tag: u64::MAX });
        delivery.enqueued = Some((Timestamp::from_millis(row.get(2)?), Clock::Broker));
        delivery.receive_count = u32::try_from(receive_count).ok();
        if rare {
            delivery.failed_attempts = row.get(6)?;
            delivery.history = codec::history(row.get_ref(7)?).map(Arc::new);
            let details = codec::dead_letter(row.get_ref(8)?, row.get_ref(9)?);
            delivery.is_dead_letter = !details.is_empty();
            delivery.native =
                delivery.is_dead_letter.then(|| Arc::new(DeadLetter(details)) as Arc<dyn Native>);
        }
        Ok(Self { id, rank, place, is_fresh, receive_count, delivery })
    }

    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        // What was rejected is kept, however late somebody looks at it.
        !self.delivery.is_dead_letter && self.delivery.envelope.is_expired(now)
    }
}
