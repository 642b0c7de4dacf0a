//! Leases: of many fresh messages by a range, or of one in its own row; what of them still holds, and how they end.
//!
//! A claim takes what is fresh in its order, and so what it takes stands together: one row of `throughline_ranges` leases it
//! all, and nothing of the messages themselves is written until they are acked. What makes that safe:
//!
//! - **Fresh** is a message from when it is published, with an id from the counter, and so behind all others of its rank; it
//!   never becomes so again. The fresh ones up to the end of a rank's last range are leased, each in one range, and those
//!   behind it are nobody's: a claim begins there, and passes by nothing. Each rank has ranges of its own, so that what is
//!   urgent goes first whatever is leased beside it.
//! - **Whatever is not an ack** of a running lease first gives the message a row of its own in `throughline_line`, in its
//!   place, leased as it was; from there on it goes its way as any other: retry, reject, release, an extension without the
//!   others of its range. It is fresh or has that row, never both. Claims take from both, by rank and place.
//! - **Keys**: a message with a key is never fresh, so that its order is the business of its own row alone.
//! - **Counts**: a fresh message was never delivered, so that the delivery in its range is the first, and its own row begins
//!   with that count. A delivery is known by message and count: a late settlement meets no other delivery.
//! - **The end of a lease**: whoever claims next gives the messages of the range rows of their own, ready, with the delivery
//!   and its failure counted. A range goes with that, or in the transaction in which its last message leaves it.
//! - **Processes**: all of this is in transactions that begin with SQLite's one lock for writing. What a process has claimed,
//!   and dies, is in its range until the lease ends.
//! - **Expiry, purge, browse, depth**: what a claim finds expired is leased with the rest, and then dropped. The others look
//!   behind the last range for what is ready, and count what is in ranges as unsettled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row};
use throughline_core::driver::Token;
use throughline_core::{Error, ErrorKind, Result, Timestamp};

use crate::error;
use crate::ready::Stored;
use crate::schema::state;
use crate::store::Store;

/// So many messages are in one range, and so many that are due are seen to in one transaction, at most.
pub(crate) const PIECE: usize = 1000;

/// Leases messages whose ids follow each other. By the index of their lane SQLite would have to note them all first.
const LEASE: &str = "UPDATE throughline_line NOT INDEXED SET state = 2, due = ?1, \
                     receive_count = receive_count + (receive_count < 4294967295) WHERE id BETWEEN ?2 AND ?3";

const LEASE_RANGE: &str =
    "INSERT INTO throughline_ranges (queue, rank, last, first, due) VALUES (?1, ?2, ?3, ?4, ?5)";

/// The range that may have an id in it.
const RANGE: &str = "SELECT last, first, due FROM throughline_ranges WHERE queue = ?1 AND rank = ?2 AND last >= ?3 \
                     ORDER BY last LIMIT 1";

const DROP_RANGE: &str = "DELETE FROM throughline_ranges WHERE queue = ?1 AND rank = ?2 AND last = ?3";

/// Rows of their own for the fresh messages of a range: with a state, due then, delivered once.
const TO_LINE: &str = "INSERT OR IGNORE INTO throughline_line \
                       (id, queue, state, due, rank, place, receive_count, failed_attempts, enqueued) \
                       SELECT id, queue, ?5, ?6, rank, id, 1, ?7, enqueued FROM throughline_fresh \
                       WHERE queue = ?1 AND rank = ?2 AND id BETWEEN ?3 AND ?4";

pub(crate) const DROP_FRESH: &str =
    "DELETE FROM throughline_fresh WHERE queue = ?1 AND rank = ?2 AND id = ?3";

/// Of a run of ids.
pub(crate) const DROP_FRESH_RUN: &str =
    "DELETE FROM throughline_fresh WHERE queue = ?1 AND rank = ?2 AND id BETWEEN ?3 AND ?4";

/// How many of a run of ids are fresh.
pub(crate) const COUNT_FRESH: &str =
    "SELECT count(*) FROM throughline_fresh WHERE queue = ?1 AND rank = ?2 AND id BETWEEN ?3 AND ?4";

/// When something of a queue is due: a lease ends, a delay is over.
const NEXT_DUE: [&str; 2] = [
    "SELECT due FROM throughline_line WHERE queue = ?1 AND state >= 2 ORDER BY due LIMIT 1",
    "SELECT due FROM throughline_ranges WHERE queue = ?1 ORDER BY due LIMIT 1",
];

/// The first that are due, whatever for: each of them leaves this window, so that the next ones come into it.
const DUE: &str = "SELECT id, state, key FROM throughline_line WHERE queue = ?1 AND state >= 2 AND due <= ?2 \
                   ORDER BY due, id LIMIT ?3";

const RANGE_DUE: &str = "SELECT last, first, due, rank FROM throughline_ranges WHERE queue = ?1 AND due <= ?2 ORDER BY due LIMIT 1";

/// Ends a lease, or the wait for a retry.
const WAKE_IN_PLACE: &str = "UPDATE throughline_line AS m SET \
                   failed_attempts = failed_attempts + (state = 2 AND failed_attempts < 4294967295), \
                   state = CASE WHEN key IS NULL OR NOT EXISTS (SELECT 1 FROM throughline_line e \
                     WHERE e.queue = m.queue AND e.key = m.key AND e.key IS NOT NULL AND e.state <= 3 \
                     AND e.place < m.place) THEN 0 ELSE 1 END WHERE id = ?1";

/// Ends a delay.
const WAKE_AT_THE_END: &str = "UPDATE throughline_line SET state = ?1, place = ?2 WHERE id = ?3";

/// Fresh messages that are leased together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) queue: i64,
    pub(crate) rank: i64,
    pub(crate) last: i64,
    pub(crate) first: i64,
    /// When the lease ends, in ms since the epoch.
    pub(crate) due: i64,
}

impl Range {
    /// From a row that begins with `last, first, due`.
    fn read(queue: i64, rank: i64, row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { queue, rank, last: row.get(0)?, first: row.get(1)?, due: row.get(2)? })
    }
}

/// A delivery's token: the row, and in place of an epoch which delivery of it that is, whether others wait for its key, and
/// the rank of one that was fresh.
#[expect(clippy::cast_sign_loss, reason = "bit for bit")]
pub(crate) fn token(id: i64, receive_count: i64, keyed: bool, fresh: Option<i64>) -> Token {
    let fresh = fresh.map_or(0, |rank| (rank as u64) << 2 | 2);
    Token { epoch: (receive_count as u64) << 10 | fresh | u64::from(keyed), tag: id as u64 }
}

/// What a [`token`] says: row, receive count, and whether it has a key.
#[expect(clippy::cast_possible_wrap, reason = "bit for bit")]
pub(crate) fn of_token(token: Token) -> (i64, i64, bool) {
    (token.tag as i64, (token.epoch >> 10) as i64, token.epoch & 1 == 1)
}

/// The rank that a [`token`] has for a message that was fresh.
pub(crate) fn fresh_rank(token: Token) -> Option<i64> {
    (token.epoch & 2 == 2).then_some(i64::from((token.epoch >> 2) as u8))
}

pub(crate) fn next_due(connection: &Connection, queue: i64) -> rusqlite::Result<Option<Timestamp>> {
    let mut next: Option<i64> = None;
    for sql in NEXT_DUE {
        let due = connection.prepare_cached(sql)?.query_row([queue], |row| row.get(0)).optional()?;
        next = next.into_iter().chain(due).min();
    }
    Ok(next.map(Timestamp::from_millis))
}

/// How many messages of a queue are in ranges whose lease runs, and in those where it is over.
pub(crate) fn in_ranges(connection: &Connection, queue: i64, now: Timestamp) -> rusqlite::Result<(u64, u64)> {
    const SQL: &str = "SELECT count(*) FILTER (WHERE r.due > ?2), count(*) FILTER (WHERE r.due <= ?2) \
                       FROM throughline_ranges r CROSS JOIN throughline_fresh f \
                       ON f.queue = r.queue AND f.rank = r.rank AND f.id BETWEEN r.first AND r.last WHERE r.queue = ?1";
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let mut statement = connection.prepare_cached(SQL)?;
    statement.query_row([queue, now.as_millis()], |row| Ok((count(row.get(0)?), count(row.get(1)?))))
}

impl Store<'_> {
    pub(crate) fn next_due(&self, queue: i64) -> Result<Option<Timestamp>> {
        next_due(self.connection, queue).map_err(error::sqlite)
    }

    /// Leases what was read.
    pub(crate) fn lease(&mut self, queue: i64, stored: &[Stored], due: Timestamp) -> Result<()> {
        let due = due.as_millis();
        let (fresh, others): (Vec<_>, Vec<_>) = stored.iter().partition(|stored| stored.is_fresh);
        // One by hand may be ahead of the counter: a range up to it would have in it what is published next.
        let next = if fresh.is_empty() { 0 } else { self.next()? };
        let (fresh, ahead): (Vec<_>, Vec<_>) = fresh.into_iter().partition(|stored| stored.id < next);
        for of_rank in fresh.chunk_by(|one, next| one.rank == next.rank) {
            for piece in of_rank.chunks(PIECE) {
                if let (Some(first), Some(last)) = (piece.first(), piece.last()) {
                    self.execute(LEASE_RANGE, [queue, first.rank, last.id, first.id, due])?;
                }
            }
        }
        for Stored { id, rank, .. } in ahead {
            self.put_in_line(Range { queue, rank: *rank, first: *id, last: *id, due }, state::LEASED)?;
        }
        let mut lease = self.prepare(LEASE)?;
        for run in others.chunk_by(|one, next| one.id.checked_add(1) == Some(next.id)) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                lease.execute([due, first.id, last.id]).map_err(error::sqlite)?;
            }
        }
        Ok(())
    }

    /// The range that has an id in it, if its lease runs.
    pub(crate) fn range(&self, queue: i64, rank: i64, id: i64) -> Result<Option<Range>> {
        let read = |row: &Row<'_>| Range::read(queue, rank, row);
        let found =
            self.prepare(RANGE)?.query_row([queue, rank, id], read).optional().map_err(error::sqlite)?;
        Ok(found.filter(|range| range.first <= id && range.due > self.now.as_millis()))
    }

    /// Gives the fresh messages of a range rows of their own, in that state. Says how many there were.
    fn put_in_line(&mut self, range: Range, state: i64) -> Result<usize> {
        let Range { queue, rank, last, first, due } = range;
        // One that is ready again has failed by the end of its lease.
        let failed = i64::from(state == state::READY);
        self.execute(TO_LINE, [queue, rank, first, last, state, due, failed])?;
        self.execute(DROP_FRESH_RUN, [queue, rank, first, last])
    }

    /// Gives a delivery that is in a range a row of its own, with the same lease, if it is still there and its lease runs.
    pub(crate) fn take_out(&mut self, queue: i64, token: Token) -> Result<()> {
        let Some(rank) = fresh_rank(token) else { return Ok(()) };
        let (id, ..) = of_token(token);
        if let Some(range) = self.range(queue, rank, id)? {
            self.put_in_line(Range { first: id, last: id, ..range }, state::LEASED)?;
            self.left_ranges.insert(range);
        }
        Ok(())
    }

    /// Drops the ranges that have lost their last message; the last thing before the commit.
    pub(crate) fn drop_empty_ranges(&mut self) -> Result<()> {
        const ANY: &str =
            "SELECT 1 FROM throughline_fresh WHERE queue = ?1 AND rank = ?2 AND id BETWEEN ?3 AND ?4 LIMIT 1";
        for Range { queue, rank, last, first, .. } in std::mem::take(&mut self.left_ranges) {
            if !self.prepare(ANY)?.exists([queue, rank, first, last]).map_err(error::sqlite)? {
                self.execute(DROP_RANGE, [queue, rank, last])?;
            }
        }
        Ok(())
    }

    /// Lets leases end that long from now, with an answer for each. A range is extended as one if it is extended whole; what
    /// is extended without the others of its range gets a row of its own.
    pub(crate) fn extend(&mut self, queue: i64, tokens: &[Token], by: Duration) -> Result<Vec<Result<()>>> {
        const ALONE: &str = "UPDATE throughline_line SET due = ?4 \
                             WHERE id = ?1 AND receive_count = ?2 AND state = 2 AND due > ?3";
        const RANGE: &str =
            "UPDATE throughline_ranges SET due = ?4 WHERE queue = ?1 AND rank = ?2 AND last = ?3";
        let due = self.now.after(by).as_millis();
        let mut together = BTreeSet::new();
        for (range, of_range) in self.whole_ranges(queue, tokens)? {
            self.execute(RANGE, [range.queue, range.rank, range.last, due])?;
            together.extend(of_range);
        }
        let mut results = Vec::with_capacity(tokens.len());
        for token in tokens {
            let (id, count, _) = of_token(*token);
            let extended = together.contains(token) || {
                self.take_out(queue, *token)?;
                self.execute(ALONE, [id, count, self.now.as_millis(), due])? > 0
            };
            results.push(if extended { Ok(()) } else { Err(stale()) });
        }
        Ok(results)
    }

    /// The ranges of which all messages that are left are among these.
    fn whole_ranges(&self, queue: i64, tokens: &[Token]) -> Result<BTreeMap<Range, BTreeSet<Token>>> {
        let mut ranges: BTreeMap<Range, BTreeSet<Token>> = BTreeMap::new();
        let count = |rank: i64, first: i64, last: i64| -> Result<usize> {
            let mut count = self.prepare(COUNT_FRESH)?;
            let count = count.query_row([queue, rank, first, last], |row| row.get::<_, i64>(0));
            Ok(usize::try_from(count.map_err(error::sqlite)?).unwrap_or(usize::MAX))
        };
        for token in tokens {
            let (Some(rank), (id, ..)) = (fresh_rank(*token), of_token(*token)) else { continue };
            if count(rank, id, id)? > 0
                && let Some(range) = self.range(queue, rank, id)?
            {
                ranges.entry(range).or_default().insert(*token);
            }
        }
        let mut whole = BTreeMap::new();
        for (range, tokens) in ranges {
            if count(range.rank, range.first, range.last)? == tokens.len() {
                whole.insert(range, tokens);
            }
        }
        Ok(whole)
    }

    /// Makes ready what is due, a piece of it at most: delays that are over, and messages whose lease has ended. Says how
    /// many there were.
    pub(crate) fn wake_due(&mut self, queue: i64) -> Result<usize> {
        let mut woken = self.wake_ranges(queue)?;
        let limit = i64::try_from(PIECE.saturating_sub(woken)).unwrap_or(0);
        let due = {
            let mut statement = self.prepare(DUE)?;
            let rows = statement.query_map([queue, self.now.as_millis(), limit], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<Vec<u8>>>(2)?))
            });
            rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(error::sqlite)?
        };
        for (id, state, key) in &due {
            if *state != state::DELAYED {
                // In its place: ahead of what came after it. One whose lease has ended has failed.
                self.execute(WAKE_IN_PLACE, [id])?;
                continue;
            }
            let behind = self.is_in_line(queue, key.as_deref())?;
            let state = if behind { state::BEHIND } else { state::READY };
            let place = self.take_next()?;
            self.execute(WAKE_AT_THE_END, [state, place, *id])?;
        }
        woken += due.len();
        if woken > 0 {
            self.woken.insert(queue);
        }
        Ok(woken)
    }

    /// Ends the ranges whose leases are over, until that was a piece.
    fn wake_ranges(&mut self, queue: i64) -> Result<usize> {
        let mut woken = 0;
        while woken < PIECE {
            let read = |row: &Row<'_>| Range::read(queue, row.get(3)?, row);
            let mut next = self.prepare(RANGE_DUE)?;
            let next = next.query_row([queue, self.now.as_millis()], read).optional();
            let Some(range) = next.map_err(error::sqlite)? else { break };
            // One that somebody has emptied by hand counts, too: something was done.
            woken += self.put_in_line(range, state::READY)?.max(1);
            self.execute(DROP_RANGE, [queue, range.rank, range.last])?;
        }
        Ok(woken)
    }
}

pub(crate) fn stale() -> Error {
    Error::new(ErrorKind::Stale, "the lease has expired, and the message is delivered again")
}
