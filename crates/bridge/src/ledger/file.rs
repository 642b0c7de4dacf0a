//! The ledger's file.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};
use throughline::{Error, ErrorKind, Result, Timestamp};

use super::{Before, Entry, Remembered, sent};
use crate::filter::Copied;
use crate::identity::Identity;
use crate::report::{Rejected, Totals};

/// "TLbr": what `PRAGMA application_id` says of a ledger of ours.
const APPLICATION_ID: i32 = 0x544c_6272;
const VERSION: i64 = 2;
/// How many identities one table takes before the older is emptied: at least so many are remembered, and the file stays
/// below some 100 bytes for twice as many. Far more than any broker delivers again after it took an ack.
const GENERATION: i64 = 1_000_000;
/// How many sent messages a shared ledger remembers at least, some 200 bytes each; so many more at most.
const REMEMBERED: (i64, i64) = (1_000_000, 100_000);
const REMEMBERED_SENT: &str = "SELECT count(*) FROM sent WHERE became = 0";
/// How long to wait for a bridge that is just ending.
const BUSY: Duration = Duration::from_secs(10);
/// How many rejected messages a report names.
const REPORTED: usize = 1000;

pub(super) type RunId = i64;

pub(super) struct File {
    connection: Connection,
    tables: Tables,
    memory: Memory,
}

/// What a shared ledger remembers of what was sent.
struct Memory {
    /// Else what was sent is forgotten with the run.
    is_kept: bool,
    /// How many were added since the oldest were forgotten.
    added: i64,
    at_least: i64,
    more: i64,
}

/// The two tables of identities.
struct Tables {
    /// The one that is being filled, and how far.
    filling: i64,
    filled: i64,
    /// Whether the other holds anything: until then there is nothing to look for in it.
    has_older: bool,
    generation: i64,
}

impl File {
    pub(super) fn open(
        path: Option<&Path>,
        source: &str,
        sink: &str,
        in_flight: usize,
        shared: bool,
    ) -> Result<(Self, RunId, Before)> {
        let told = |error| of(error, path);
        let connection = match path {
            Some(path) => Connection::open(path),
            // A temporary file of SQLite's own.
            None => Connection::open(""),
        };
        let mut connection = connection.map_err(told)?;
        connection.busy_timeout(BUSY).map_err(told)?;
        if !shared {
            // One process at a time, so that what another has in flight is never taken for what was killed.
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(told)?;
        }
        let application: i32 =
            connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(told)?;
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(told)?;
        if application != APPLICATION_ID && tables > 0 {
            return Err(conflict(path, "is a database, but no ledger of a bridge; it is left as it is"));
        }
        if path.is_some() {
            connection.pragma_update(None, "journal_mode", "WAL").map_err(told)?;
        }
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(told)?;
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(told)?;
        if tables == 0 {
            transaction.execute_batch(include_str!("schema.sql")).map_err(told)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(told)?;
            transaction
                .execute(
                    "INSERT INTO bridge (version, source, sink) VALUES (?1, ?2, ?3)",
                    params![VERSION, source, sink],
                )
                .map_err(told)?;
        }
        let (version, of_source, of_sink, filling, filled): (i64, String, String, i64, i64) = transaction
            .query_row("SELECT version, source, sink, filling, filled FROM bridge", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            })
            .map_err(told)?;
        if version != VERSION {
            let text = format!("is of version {version}; this program knows version {VERSION}");
            return Err(conflict(path, &text));
        }
        if (of_source.as_str(), of_sink.as_str()) != (source, sink) {
            let text =
                format!("is of the bridge from {of_source} to {of_sink}; give this one a ledger of its own");
            return Err(conflict(path, &text));
        }
        let older = if filling == 0 { "SELECT 1 FROM moved_1" } else { "SELECT 1 FROM moved_0" };
        let has_older = transaction.prepare(older).and_then(|mut any| any.exists([])).map_err(told)?;
        let before = before(&transaction).map_err(told)?;
        transaction
            .execute(
                "INSERT INTO run (began, in_flight) VALUES (?1, ?2)",
                params![Timestamp::now().as_millis(), i64::try_from(in_flight).unwrap_or(i64::MAX)],
            )
            .map_err(told)?;
        let run = transaction.last_insert_rowid();
        transaction.commit().map_err(told)?;
        // Whatever the runs before have left is looked at soon.
        let (at_least, more) = REMEMBERED;
        let memory = Memory { is_kept: shared, added: more, at_least, more };
        let tables = Tables { filling, filled, has_older, generation: GENERATION };
        let file = Self { connection, tables, memory };
        Ok((file, run, before))
    }

    pub(super) fn peek(path: &Path, is_running: bool) -> Result<Before> {
        const LATEST: &str =
            "SELECT in_flight FROM run WHERE ended IS NULL AND id = (SELECT max(id) FROM run)";
        Self::look(path, Default::default(), |connection| {
            // One look: a run may begin meanwhile.
            let transaction = connection.unchecked_transaction()?;
            let mut known = before(&transaction)?;
            let latest = transaction.query_row(LATEST, [], |row| row.get::<_, i64>(0)).optional()?;
            if let (true, Some(in_flight)) = (is_running, latest) {
                known.killed = known.killed.saturating_sub(1);
                known.killed_in_flight = known.killed_in_flight.saturating_sub(in_flight.unsigned_abs());
            }
            Ok(known)
        })
    }

    pub(super) fn all_sent(path: &Path) -> Result<Option<HashSet<Copied>>> {
        Self::look(path, Some(HashSet::new()), |connection| {
            let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
            if count("SELECT coalesce(sum(moved), 0) FROM run")? > count(REMEMBERED_SENT)? {
                return Ok(None);
            }
            let mut select = connection.prepare("SELECT id, content FROM sent WHERE became = 0")?;
            select
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()
                .map(Some)
        })
    }

    pub(super) fn remembered(path: &Path) -> Result<Remembered> {
        Self::look(path, Remembered::default(), |connection| {
            let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
            Ok(Remembered {
                moved: count("SELECT coalesce(sum(moved), 0) FROM run")?.unsigned_abs(),
                count: count(REMEMBERED_SENT)?.unsigned_abs(),
                last: count("SELECT coalesce(max(number), 0) FROM sent")?,
            })
        })
    }

    pub(super) fn page(path: &Path, after: i64) -> Result<sent::Page> {
        Self::look(path, Vec::new(), |connection| sent::page(&connection.unchecked_transaction()?, after))
    }

    /// Looks into a shared ledger, which another process may have open, or just be making: then there is nothing yet.
    fn look<T>(path: &Path, nothing: T, look: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let looked = Connection::open_with_flags(path, flags).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            let is_made = connection.prepare("SELECT 1 FROM sqlite_schema")?.exists([])?;
            if is_made { look(&connection) } else { Ok(nothing) }
        });
        looked.map_err(|error| of(error, Some(path)))
    }

    pub(super) fn begin(&mut self) -> Result<Begun<'_>> {
        let transaction = self.connection.transaction().map_err(|error| of(error, None))?;
        Ok(Begun { transaction, tables: &mut self.tables, memory: &mut self.memory })
    }

    #[cfg(test)]
    pub(super) fn set_generation(&mut self, generation: i64) {
        self.tables.generation = generation;
    }

    #[cfg(test)]
    pub(super) fn set_memory(&mut self, at_least: i64, more: i64) {
        (self.memory.at_least, self.memory.more) = (at_least, more);
    }
}

/// All earlier runs, added up.
fn before(connection: &Connection) -> rusqlite::Result<Before> {
    const SUMS: &str = "SELECT count(*), coalesce(sum(ended IS NULL), 0), \
        coalesce(sum(in_flight) FILTER (WHERE ended IS NULL), 0), coalesce(sum(moved), 0), coalesce(sum(bytes), 0), \
        coalesce(sum(rejected), 0), coalesce(sum(skipped), 0), coalesce(sum(already_moved), 0), \
        coalesce(sum(copies), 0), coalesce(sum(sent_again), 0), coalesce(sum(deduplicated), 0) FROM run";
    connection.query_row(SUMS, [], |row| {
        let count = |at| row.get::<_, i64>(at).map(i64::unsigned_abs);
        Ok(Before {
            runs: count(0)?,
            killed: count(1)?,
            killed_in_flight: count(2)?,
            totals: Totals {
                moved: count(3)?,
                bytes: count(4)?,
                rejected: count(5)?,
                skipped: count(6)?,
                already_moved: count(7)?,
                copies: count(8)?,
                sent_again: count(9)?,
                deduplicated: count(10)?,
            },
        })
    })
}

/// A transaction.
pub(super) struct Begun<'a> {
    transaction: Transaction<'a>,
    tables: &'a mut Tables,
    memory: &'a mut Memory,
}

impl Begun<'_> {
    pub(super) fn note(
        &mut self,
        run: RunId,
        entries: &[Entry],
        totals: &Totals,
        now: Timestamp,
    ) -> Result<u64> {
        self.try_note(run, entries, totals, now).map_err(|error| of(error, None))
    }

    fn try_note(
        &mut self,
        run: RunId,
        entries: &[Entry],
        totals: &Totals,
        now: Timestamp,
    ) -> rusqlite::Result<u64> {
        let mut copies = 0_u64;
        let mut added = 0_i64;
        {
            let (new, old) = match self.tables.filling {
                0 => {
                    ("INSERT OR IGNORE INTO moved_0 VALUES (?1)", "SELECT 1 FROM moved_1 WHERE identity = ?1")
                }
                _ => {
                    ("INSERT OR IGNORE INTO moved_1 VALUES (?1)", "SELECT 1 FROM moved_0 WHERE identity = ?1")
                }
            };
            let mut insert = self.transaction.prepare_cached(new)?;
            let mut in_older = self.transaction.prepare_cached(old)?;
            let mut reject =
                self.transaction.prepare_cached("INSERT INTO rejected VALUES (?1, ?2, ?3, ?4, ?5)")?;
            for entry in entries {
                if let Some(identity) = &entry.identity {
                    let is_new = insert.execute([identity.as_bytes()])? > 0;
                    added += i64::from(is_new);
                    let is_copy =
                        !is_new || (self.tables.has_older && in_older.exists([identity.as_bytes()])?);
                    copies += u64::from(is_copy);
                }
                if let Some(sent) = &entry.sent {
                    sent::note(&self.transaction, run, sent)?;
                    self.memory.added += 1;
                }
                if let Some(Rejected { id, message_type, class, reason, .. }) = &entry.rejected {
                    reject.execute(params![now.as_millis(), id, message_type, class, reason])?;
                }
            }
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.transaction
                .prepare_cached(
                    "UPDATE run SET moved = moved + ?2, bytes = bytes + ?3, rejected = rejected + ?4, \
                     skipped = skipped + ?5, already_moved = already_moved + ?6, copies = copies + ?7, \
                     sent_again = sent_again + ?8, deduplicated = deduplicated + ?9 WHERE id = ?1",
                )?
                .execute(params![
                    run,
                    count(totals.moved),
                    count(totals.bytes),
                    count(totals.rejected),
                    count(totals.skipped),
                    count(totals.already_moved),
                    count(copies),
                    count(totals.sent_again),
                    count(totals.deduplicated),
                ])?;
        }
        if self.memory.is_kept && self.memory.added >= self.memory.more {
            self.memory.added = 0;
            self.transaction.execute(
                "DELETE FROM sent WHERE number <= (SELECT number FROM sent ORDER BY number DESC LIMIT 1 OFFSET ?1)",
                [self.memory.at_least],
            )?;
        }
        self.tables.filled += added;
        if self.tables.filled >= self.tables.generation {
            // The older of the two becomes the one that is filled.
            self.tables.filling = 1 - self.tables.filling;
            self.tables.filled = 0;
            self.tables.has_older = true;
            self.empty(self.tables.filling)?;
            self.turn()?;
        }
        Ok(copies)
    }

    fn empty(&self, table: i64) -> rusqlite::Result<()> {
        // Without a condition SQLite drops the pages at once.
        let delete = if table == 0 { "DELETE FROM moved_0" } else { "DELETE FROM moved_1" };
        self.transaction.execute(delete, []).map(drop)
    }

    fn turn(&self) -> rusqlite::Result<()> {
        self.transaction
            .execute(
                "UPDATE bridge SET filling = ?1, filled = ?2",
                params![self.tables.filling, self.tables.filled],
            )
            .map(drop)
    }

    pub(super) fn known(&mut self, identities: &[Identity]) -> Result<Vec<bool>> {
        let find = || -> rusqlite::Result<Vec<bool>> {
            let mut find = self.transaction.prepare_cached(
                "SELECT 1 FROM moved_0 WHERE identity = ?1 UNION ALL SELECT 1 FROM moved_1 WHERE identity = ?1",
            )?;
            identities.iter().map(|identity| find.exists([identity.as_bytes()])).collect()
        };
        find().map_err(|error| of(error, None))
    }

    pub(super) fn expected(&mut self) -> Result<u64> {
        sent::expected(&self.transaction).map_err(|error| of(error, None))
    }

    pub(super) fn sent(&mut self, after: i64) -> Result<sent::Page> {
        sent::page(&self.transaction, after).map_err(|error| of(error, None))
    }

    pub(super) fn end(&mut self, run: RunId, settled: bool, now: Timestamp) -> Result<Vec<Rejected>> {
        self.try_end(run, settled, now).map_err(|error| of(error, None))
    }

    fn try_end(&mut self, run: RunId, settled: bool, now: Timestamp) -> rusqlite::Result<Vec<Rejected>> {
        if settled {
            self.empty(0)?;
            self.empty(1)?;
            if !self.memory.is_kept {
                self.transaction.execute("DELETE FROM sent", [])?;
            }
            self.tables.filled = 0;
            self.tables.has_older = false;
        }
        self.turn()?;
        self.transaction.execute("UPDATE run SET ended = ?2 WHERE id = ?1", params![run, now.as_millis()])?;
        let began: Option<i64> = self
            .transaction
            .query_row("SELECT began FROM run WHERE id = ?1", [run], |row| row.get(0))
            .optional()?;
        let mut rejected = self.transaction.prepare(
            "SELECT at, id, message_type, class, reason FROM rejected WHERE at >= ?1 ORDER BY rowid LIMIT ?2",
        )?;
        let limit = i64::try_from(REPORTED).unwrap_or(i64::MAX);
        let rows = rejected.query_map(params![began.unwrap_or(0), limit], |row| {
            Ok(Rejected {
                at: Timestamp::from_millis(row.get(0)?).to_string(),
                id: row.get(1)?,
                message_type: row.get(2)?,
                class: row.get(3)?,
                reason: row.get(4)?,
            })
        })?;
        rows.collect()
    }

    pub(super) fn commit(self) -> Result<()> {
        self.transaction.commit().map_err(|error| of(error, None))
    }
}

fn conflict(path: Option<&Path>, text: &str) -> Error {
    let path = path.map_or("the ledger".to_owned(), |path| format!("the ledger {}", path.display()));
    Error::new(ErrorKind::Conflict, format!("{path} {text}"))
}

fn of(error: rusqlite::Error, path: Option<&Path>) -> Error {
    let text = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "is in use by another bridge; one runs at a time".to_owned()
        }
        Some(ErrorCode::NotADatabase) => "is no ledger: name another file".to_owned(),
        Some(ErrorCode::DiskFull) => format!("cannot be written: the disk is full ({error})"),
        _ => format!("cannot be read or written ({error})"),
    };
    let kind = conflict(path, &text);
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::NotADatabase) => kind,
        _ => Error::new(ErrorKind::Internal, kind.message().to_owned()).with_source(error),
    }
}
