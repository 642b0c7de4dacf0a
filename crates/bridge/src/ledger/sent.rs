//! What became of messages, in digests, for the verification at the end.

use rusqlite::{Transaction, params};

use crate::comparison::Row;
use crate::verify::{Became, Sent};

/// So many are given at once.
const PAGE: i64 = 500;

/// Messages that were noted, each with its number here.
pub(crate) type Page = Vec<(i64, Sent)>;

/// How many were sent to the sink.
pub(super) fn expected(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM sent WHERE became = ?1";
    transaction.query_row(sql, [Became::Sent as i64], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

pub(super) fn note(transaction: &Transaction<'_>, run: i64, sent: &Sent) -> rusqlite::Result<()> {
    // Runs one after the other; within each, as they came.
    let place = run.saturating_mul(1 << 40).saturating_add(sent.place);
    let Row { id, is_made_up, key, content, parts } = &sent.row;
    transaction
        .prepare_cached(
            "INSERT INTO sent (place, became, id, is_made_up, key, content, parts) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![place, sent.became as i64, id, is_made_up, key, content, parts])
        .map(drop)
}

/// Those after this number.
pub(super) fn page(transaction: &Transaction<'_>, after: i64) -> rusqlite::Result<Page> {
    let mut select = transaction.prepare_cached(
        "SELECT number, place, became, id, is_made_up, key, content, parts FROM sent WHERE number > ?1 \
         ORDER BY number LIMIT ?2",
    )?;
    let rows = select.query_map([after, PAGE], |row| {
        let became = match row.get::<_, i64>(2)? {
            0 => Became::Sent,
            1 => Became::Rejected,
            _ => Became::MovedBefore,
        };
        let digests = Row {
            id: row.get(3)?,
            is_made_up: row.get(4)?,
            key: row.get(5)?,
            content: row.get(6)?,
            parts: row.get(7)?,
        };
        Ok((row.get(0)?, Sent { place: row.get(1)?, became, row: digests }))
    })?;
    rows.collect()
}
