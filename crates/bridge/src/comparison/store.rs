//! The comparison itself, in SQL, so that memory stays flat.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, params};
use throughline::{Envelope, Error, ErrorKind, Result};

use super::row::{self, Expiry, Row};
use super::{Changed, ChangedMessage, Messages};

/// So many different parts are counted by name: names of headers are given by strangers.
const PARTS: usize = 1000;

/// One of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    First = 0,
    Second = 1,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) same: u64,
    /// Of each side: what the other has not at all.
    pub(crate) only: [Messages; 2],
    /// Of each side: what the other has, but not as often.
    pub(crate) more: [Messages; 2],
    pub(crate) changed: Changed,
    pub(crate) out_of_order: Messages,
}

pub(crate) struct Store {
    connection: Connection,
    /// How many messages each side has.
    count: [i64; 2],
    expiry: Expiry,
}

impl Store {
    /// Without a path it is a temporary file of SQLite's own.
    pub(crate) fn open(path: Option<&Path>, expiry: Expiry) -> Result<Self> {
        if let Some(path) = path.filter(|path| path.exists()) {
            let text = format!("{} exists; name a new file for the comparison", path.display());
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        let connection = path.map_or_else(|| Connection::open(""), Connection::open).map_err(failed)?;
        // What a power failure takes is read again.
        connection
            .execute_batch(concat!(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;",
                include_str!("schema.sql")
            ))
            .map_err(failed)?;
        Ok(Self { connection, count: [0; 2], expiry })
    }

    /// Adds messages, in the order of their side.
    pub(crate) fn add(&mut self, place: Place, envelopes: &[Arc<Envelope>]) -> Result<()> {
        let expiry = self.expiry;
        let [first, second] = &mut self.count;
        let count = if place == Place::First { first } else { second };
        let from = *count;
        *count += i64::try_from(envelopes.len()).unwrap_or(i64::MAX);
        let rows = envelopes.iter().map(|envelope| Row::of(envelope, expiry));
        self.add_rows(place, (from..).zip(rows))
    }

    /// Adds messages, each at a place of its own in the order of their side.
    pub(crate) fn add_rows(
        &mut self,
        place: Place,
        rows: impl IntoIterator<Item = (i64, Row)>,
    ) -> Result<()> {
        self.try_add(place, rows).map_err(failed)
    }

    fn try_add(&mut self, side: Place, rows: impl IntoIterator<Item = (i64, Row)>) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO message VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            for (place, Row { id, is_made_up, key, content, parts }) in rows {
                insert.execute(params![side as i64, place, id, is_made_up, key, content, parts])?;
            }
        }
        transaction.commit()
    }

    /// Pairs the messages, and tells what has no counterpart, or another one.
    pub(crate) fn compare(&mut self, examples: usize) -> Result<Found> {
        self.try_compare(examples).map_err(failed)
    }

    fn try_compare(&mut self, examples: usize) -> rusqlite::Result<Found> {
        self.connection.execute_batch(include_str!("pair.sql"))?;
        let same = "SELECT count(*) FROM pair WHERE is_same";
        let alone = |place: Place, known: &str| {
            let side = place as i64;
            let paired = if place == Place::First { "first" } else { "second" };
            let from = format!(
                "FROM message AS this WHERE side = {side} AND place NOT IN (SELECT {paired} FROM pair) AND {known} {KNOWN}"
            );
            self.messages(&from, examples)
        };
        Ok(Found {
            same: self.count(same)?,
            only: [alone(Place::First, "NOT")?, alone(Place::Second, "NOT")?],
            more: [alone(Place::First, "")?, alone(Place::Second, "")?],
            changed: self.changed(examples)?,
            out_of_order: self.messages(OUT_OF_ORDER, examples)?,
        })
    }

    fn count(&self, sql: &str) -> rusqlite::Result<u64> {
        self.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
    }

    /// What comes of this, which has an id and a place.
    fn messages(&self, from: &str, examples: usize) -> rusqlite::Result<Messages> {
        let count = self.count(&format!("SELECT count(*) {from}"))?;
        let mut ids = Vec::new();
        if count > 0 {
            let mut select = self.connection.prepare(&format!("SELECT id {from} ORDER BY place LIMIT ?1"))?;
            let limit = i64::try_from(examples).unwrap_or(i64::MAX);
            ids = select.query_map([limit], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        }
        Ok(Messages { count, ids })
    }

    fn changed(&self, examples: usize) -> rusqlite::Result<Changed> {
        let mut changed = Changed::default();
        let mut select = self.connection.prepare(
            "SELECT one.id, one.parts, other.parts FROM pair \
             JOIN message AS one ON one.side = 0 AND one.place = pair.first \
             JOIN message AS other ON other.side = 1 AND other.place = pair.second \
             WHERE NOT is_same ORDER BY pair.first",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let parts = row::differences(row.get_ref(1)?.as_blob()?, row.get_ref(2)?.as_blob()?);
            changed.count += 1;
            for part in &parts {
                if let Some(count) = changed.parts.get_mut(part) {
                    *count += 1;
                } else if changed.parts.len() < PARTS {
                    changed.parts.insert(part.clone(), 1);
                }
            }
            if changed.examples.len() < examples {
                changed.examples.push(ChangedMessage { id: row.get(0)?, parts });
            }
        }
        Ok(changed)
    }
}

/// That the other side has it, too, though not as often.
const KNOWN: &str = "(EXISTS (SELECT 1 FROM message AS other WHERE other.side = 1 - this.side AND other.id = this.id) \
     OR EXISTS (SELECT 1 FROM message AS other WHERE other.side = 1 - this.side AND other.content = this.content \
     AND (other.is_made_up OR this.is_made_up)))";

/// Those of a key that come in the second after one that is later in the first. Within a run of a bridge, which is in the
/// upper bits of the places of what it has sent: what an earlier one had sent and not noted is there before what this one
/// sends again.
const OUT_OF_ORDER: &str = "FROM (SELECT one.id AS id, pair.second AS place, pair.first AS was, \
         max(pair.first) OVER (PARTITION BY one.key, one.place >> 40 ORDER BY pair.second \
             ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS latest \
     FROM pair JOIN message AS one ON one.side = 0 AND one.place = pair.first \
     JOIN message AS other ON other.side = 1 AND other.place = pair.second \
     WHERE one.key IS NOT NULL AND one.key = other.key) WHERE was < latest";

fn failed(error: rusqlite::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("the comparison's file cannot be read or written ({error})"))
        .with_source(error)
}
