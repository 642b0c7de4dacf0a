//! What is done in one transaction. The statements are in `insert`, `claim` and `settle`; here is what they share: ids,
//! counts, and who is to be woken once it is committed.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};
use throughline_core::{Error, Result, Timestamp};

use crate::config::{Config, Place};
use crate::error;
use crate::lease::Range;
use std::path::Path;

/// The next id: also where somebody has inserted rows by hand, and left the counter behind.
const NEXT: &str = "SELECT max(next, 1 + (SELECT ifnull(max(id), 0) FROM throughline_line), \
                    1 + (SELECT ifnull(max(id), 0) FROM throughline_messages)) FROM throughline_meta WHERE id = 1";

/// A transaction under way.
pub(crate) struct Store<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) path: &'a Path,
    pub(crate) now: Timestamp,
    /// The next id or place, once one was asked for.
    next: Option<i64>,
    /// By how much each queue's `held` is to change.
    held: BTreeMap<i64, i64>,
    /// Ranges that messages have left: one without any is to go.
    pub(crate) left_ranges: BTreeSet<Range>,
    /// Queues in which something became ready.
    pub(crate) woken: BTreeSet<i64>,
    /// Queues that were deleted: their messages are to be swept up, and their consumers told.
    pub(crate) deleted: BTreeSet<i64>,
}

/// A queue or subscription as it stands in its table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) id: i64,
    pub(crate) max_length: Option<u32>,
    held: i64,
}

impl Queue {
    /// From a row that begins with `id, max_length, held`.
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(0)?, max_length: row.get(1)?, held: row.get(2)? })
    }
}

impl<'a> Store<'a> {
    pub(crate) fn new(connection: &'a Connection, path: &'a Path) -> Self {
        Self {
            connection,
            path,
            now: Timestamp::now(),
            next: None,
            held: BTreeMap::new(),
            left_ranges: BTreeSet::new(),
            woken: BTreeSet::new(),
            deleted: BTreeSet::new(),
        }
    }

    /// The id or place that comes next.
    pub(crate) fn next(&mut self) -> Result<i64> {
        match self.next {
            Some(next) => Ok(next),
            None => self.prepare(NEXT)?.query_row([], |row| row.get(0)).map_err(error::sqlite),
        }
    }

    /// A new id or place, higher than all before it.
    pub(crate) fn take_next(&mut self) -> Result<i64> {
        let next = self.next()?;
        self.next = Some(next + 1);
        Ok(next)
    }

    /// Notes that a queue holds more or fewer messages.
    pub(crate) fn count(&mut self, queue: i64, by: i64) {
        *self.held.entry(queue).or_default() += by;
    }

    /// How many messages a queue has room for.
    pub(crate) fn room(&self, queue: &Queue) -> i64 {
        let Some(max) = queue.max_length else { return i64::MAX };
        let held = queue.held.saturating_add(self.held.get(&queue.id).copied().unwrap_or(0));
        i64::from(max).saturating_sub(held).max(0)
    }

    /// Writes what was noted; the last thing before the commit.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.drop_empty_ranges()?;
        if let Some(next) = self.next.take() {
            self.execute("UPDATE throughline_meta SET next = ?1 WHERE id = 1", [next])?;
        }
        for (queue, by) in std::mem::take(&mut self.held) {
            if by != 0 {
                self.execute("UPDATE throughline_queues SET held = held + ?1 WHERE id = ?2", [by, queue])?;
            }
        }
        Ok(())
    }

    /// A statement, prepared once.
    pub(crate) fn prepare(&self, sql: &str) -> Result<CachedStatement<'a>> {
        self.connection.prepare_cached(sql).map_err(error::sqlite)
    }

    /// Runs a statement, and says how many rows it changed.
    pub(crate) fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<usize> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(parameters))
            .map_err(error::sqlite)
    }

    /// A row of the table of queues, by its names.
    pub(crate) fn find(&self, topic: &str, name: &str) -> Result<Option<Queue>> {
        find(self.connection, topic, name).map_err(error::sqlite)
    }

    /// The queue or subscription that an address consumes from, created where it may be.
    pub(crate) fn source(&mut self, config: &Config) -> Result<Queue> {
        match &config.place {
            Place::Queue(name) => self.queue("", name, "queue", config),
            Place::Topic { topic, subscription } => {
                let subscription = subscription.as_deref().ok_or_else(crate::admin::no_subscription)?;
                self.queue(topic, "", "topic", config)?;
                self.queue(topic, subscription, "subscription", config)
            }
        }
    }

    /// What an address publishes to: a queue, or the row of a topic itself.
    pub(crate) fn destination(&mut self, config: &Config) -> Result<Queue> {
        match &config.place {
            Place::Queue(name) => self.queue("", name, "queue", config),
            Place::Topic { topic, .. } => self.queue(topic, "", "topic", config),
        }
    }

    /// A queue, subscription or topic, created where it may be.
    pub(crate) fn queue(&mut self, topic: &str, name: &str, what: &str, config: &Config) -> Result<Queue> {
        match self.find(topic, name)? {
            Some(queue) => Ok(queue),
            None if config.create => self.make(topic, name, config.max_length),
            None => {
                let shown = if name.is_empty() { topic } else { name };
                Err(error::missing(what, shown, self.path))
            }
        }
    }

    pub(crate) fn make(&mut self, topic: &str, name: &str, max_length: Option<u32>) -> Result<Queue> {
        let sql = "INSERT INTO throughline_queues (topic, name, max_length) VALUES (?1, ?2, ?3)";
        self.execute(sql, params![topic, name, max_length])?;
        Ok(Queue { id: self.connection.last_insert_rowid(), max_length, held: 0 })
    }

    /// Makes a row invisible; its messages go afterwards, a piece at a time.
    pub(crate) fn mark_deleted(&mut self, id: i64) -> Result<()> {
        self.execute("UPDATE throughline_queues SET deleted = 1 WHERE id = ?1", [id])?;
        self.deleted.insert(id);
        Ok(())
    }

    /// Deletes a piece of what deleted queues have left. Says whether there is more.
    pub(crate) fn sweep(&mut self) -> Result<bool> {
        const PIECE: i64 = 2000;
        let queue: Option<i64> = self
            .connection
            .prepare_cached("SELECT id FROM throughline_queues WHERE deleted = 1 LIMIT 1")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)).optional())
            .map_err(error::sqlite)?;
        let Some(queue) = queue else { return Ok(false) };
        // In the order of an index, so that no piece looks at the whole.
        for (table, which) in [
            ("fresh", "true ORDER BY rank, id LIMIT ?2"),
            ("line", "state = 0 ORDER BY rank, place LIMIT ?2"),
            ("line", "state = 1 ORDER BY rank, place LIMIT ?2"),
            ("line", "state >= 2 ORDER BY due LIMIT ?2"),
        ] {
            if self.delete(table, which, &[queue, PIECE])? > 0 {
                return Ok(true);
            }
        }
        self.execute("DELETE FROM throughline_ranges WHERE queue = ?1", [queue])?;
        self.execute("DELETE FROM throughline_operations WHERE queue = ?1", [queue])?;
        self.execute("DELETE FROM throughline_queues WHERE id = ?1", [queue])?;
        Ok(true)
    }

    /// Deletes a piece of what is ready and was there before `place`. Says how much that was.
    pub(crate) fn purge(&mut self, queue: i64, before: i64) -> Result<usize> {
        const PIECE: i64 = 2000;
        // What is in a range is leased.
        let fresh = "id < ?2 AND NOT EXISTS (SELECT 1 FROM throughline_ranges r \
                     WHERE r.queue = t.queue AND r.rank = t.rank AND r.last >= t.id) ORDER BY rank, id LIMIT ?3";
        let mut purged = self.delete("fresh", fresh, &[queue, before, PIECE])?;
        let mut keys = BTreeSet::new();
        for state in ["state = 0", "state = 1"] {
            let ids = format!(
                "SELECT id FROM throughline_line WHERE queue = ?1 AND {state} AND place < ?2 ORDER BY rank, place LIMIT ?3"
            );
            let parameters = [queue, before, PIECE];
            self.execute(&format!("DELETE FROM throughline_messages WHERE id IN ({ids})"), parameters)?;
            let sql = format!("DELETE FROM throughline_line WHERE id IN ({ids}) RETURNING key");
            let mut statement = self.connection.prepare_cached(&sql).map_err(error::sqlite)?;
            let mut rows = statement.query(parameters).map_err(error::sqlite)?;
            while let Some(row) = rows.next().map_err(error::sqlite)? {
                purged += 1;
                keys.extend(row.get::<_, Option<Vec<u8>>>(0).map_err(error::sqlite)?);
            }
        }
        // What was published meanwhile may have waited for one of these.
        for key in keys {
            self.promote(queue, &key)?;
        }
        self.count(queue, -i64::try_from(purged).unwrap_or(i64::MAX));
        Ok(purged)
    }

    /// Deletes messages of a queue that a table has, and says how many there were.
    fn delete(&self, table: &str, which: &str, parameters: &[i64]) -> Result<usize> {
        let parameters = || rusqlite::params_from_iter(parameters);
        let key = if table == "fresh" { "queue, rank, id" } else { "id" };
        let found = |key| format!("SELECT {key} FROM throughline_{table} t WHERE queue = ?1 AND {which}");
        self.execute(
            &format!("DELETE FROM throughline_messages WHERE id IN ({})", found("id")),
            parameters(),
        )?;
        self.execute(
            &format!("DELETE FROM throughline_{table} WHERE ({key}) IN ({})", found(key)),
            parameters(),
        )
    }

    /// Whether a queue is still there; `NotFound` where it was deleted.
    pub(crate) fn check(&self, id: i64) -> Result<()> {
        let there = self
            .connection
            .prepare_cached("SELECT 1 FROM throughline_queues WHERE id = ?1 AND deleted = 0")
            .and_then(|mut statement| statement.exists([id]))
            .map_err(error::sqlite)?;
        if there { Ok(()) } else { Err(gone()) }
    }
}

/// A row of the table of queues, by its names.
pub(crate) fn find(connection: &Connection, topic: &str, name: &str) -> rusqlite::Result<Option<Queue>> {
    let sql =
        "SELECT id, max_length, held FROM throughline_queues WHERE topic = ?1 AND name = ?2 AND deleted = 0";
    connection.prepare_cached(sql)?.query_row([topic, name], Queue::read).optional()
}

pub(crate) fn gone() -> Error {
    Error::new(throughline_core::ErrorKind::NotFound, "the queue has been deleted")
}
