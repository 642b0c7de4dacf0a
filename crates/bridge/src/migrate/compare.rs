//! What is at the old place and at the new one, beside what the ledger says was moved.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use throughline::capabilities::{Browse, Level};
use throughline::{Bus, Envelope, Error, ErrorKind, Result, Timestamp};

use crate::identity::Parts;

/// So many ids are given as examples.
const EXAMPLES: usize = 20;

/// How a side of a comparison is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "evidence", rename_all = "snake_case", deny_unknown_fields)]
pub enum Side {
    /// Its messages were read.
    Read {
        /// How many.
        read: u64,
        /// Delivery counts have risen by it: the broker shows messages only by giving them out.
        disturbed: bool,
        /// Only the first so many were read, and there may be more.
        cut: bool,
    },
    /// It could not be read, or was not to be disturbed.
    NotRead {
        /// Why.
        why: String,
    },
}

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

/// Both sides, compared: by id, and by digests of key, fields, headers and payload. Counts are `None` where what they are
/// of could not be read, or not all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Compared {
    /// When, in RFC 3339.
    pub at: String,
    /// How the old place is known.
    pub old: Side,
    /// How the new place is known.
    pub new: Side,
    /// How many messages the ledger says were moved.
    pub moved: u64,
    /// Of those, how many it still knows by id and digest: the latest million.
    pub remembered: u64,
    /// How many are at both places.
    pub both: Option<u64>,
    /// How many are at the old place and were not moved yet.
    pub not_yet: Option<u64>,
    /// How many of the remembered are at the new place as they were sent.
    pub same: Option<u64>,
    /// How many of the remembered are not at the new place.
    pub missing: Option<u64>,
    /// Some of these, by id.
    pub missing_ids: Vec<String>,
    /// Consumers take from the new place at this phase, so that what is missing may have been consumed.
    pub may_be_consumed: bool,
    /// How many are at the new place once more than they were sent.
    pub duplicates: Option<u64>,
    /// Some of these, by id.
    pub duplicate_ids: Vec<String>,
    /// How many have another ordering key there.
    pub changed_key: u64,
    /// How many have another type, time or other field.
    pub changed_fields: u64,
    /// How many have other headers.
    pub changed_headers: u64,
    /// How many have another payload.
    pub changed_payload: u64,
    /// Some of the changed, by id.
    pub changed_ids: Vec<String>,
    /// How many come after a later one of their key. `None` also where the new place has no order.
    pub reordered: Option<u64>,
    /// How many at the new place the ledger does not know: of other producers, or no longer remembered.
    pub others: Option<u64>,
    /// Some of these, by id.
    pub other_ids: Vec<String>,
}

impl Default for Side {
    fn default() -> Self {
        Self::NotRead { why: "not looked at".into() }
    }
}

impl Compared {
    /// What it comes to. Duplicates are allowed, and told. What is missing counts where nobody consumes from the new place
    /// yet.
    pub fn agreement(&self) -> Agreement {
        let changed = self.changed_key + self.changed_fields + self.changed_headers + self.changed_payload;
        let missing = if self.may_be_consumed { 0 } else { self.missing.unwrap_or(0) };
        match &self.new {
            Side::NotRead { .. } => Agreement::Unknown,
            Side::Read { .. } if missing + changed + self.reordered.unwrap_or(0) > 0 => Agreement::Different,
            Side::Read { .. } => Agreement::Equal,
        }
    }
}

/// What was read, in a temporary file of SQLite's own, beside the ledger.
pub(super) struct Store {
    connection: Connection,
}

impl Store {
    /// `ledger` may be missing: then nothing was moved.
    pub(super) fn open(ledger: &Path) -> Result<Self> {
        Self::try_open(ledger).map_err(failed)
    }

    fn try_open(ledger: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open("")?;
        if ledger.exists() {
            // It is only read; as a writer of a log, SQLite cleans up behind a process that was killed.
            connection.execute("ATTACH ?1 AS ledger", [ledger.display().to_string()])?;
        } else {
            connection.execute_batch(
                "CREATE TABLE sent (place INTEGER PRIMARY KEY, id TEXT, key BLOB, fields BLOB, headers BLOB, payload BLOB);
                 CREATE INDEX sent_id ON sent (id);
                 CREATE TABLE run (moved INTEGER);",
            )?;
        }
        connection.execute_batch(
            "CREATE TABLE new (place INTEGER PRIMARY KEY, id TEXT, key BLOB, fields BLOB, headers BLOB, payload BLOB);
             CREATE INDEX new_id ON new (id);
             CREATE TABLE old (place INTEGER PRIMARY KEY, id TEXT);
             CREATE INDEX old_id ON old (id);",
        )?;
        Ok(Self { connection })
    }

    fn put_old<'a>(&mut self, messages: impl Iterator<Item = &'a Envelope>) -> Result<u64> {
        let put = |connection: &mut Connection| -> rusqlite::Result<u64> {
            let transaction = connection.transaction()?;
            let mut count = 0;
            {
                let mut insert = transaction.prepare("INSERT INTO old (id) VALUES (?1)")?;
                for envelope in messages {
                    insert.execute([&envelope.id])?;
                    count += 1;
                }
            }
            transaction.commit()?;
            Ok(count)
        };
        put(&mut self.connection).map_err(failed)
    }

    fn put_new<'a>(&mut self, messages: impl Iterator<Item = &'a Envelope>) -> Result<u64> {
        // Within the transaction that holds the ledger's snapshot, where there is one.
        let put = |connection: &Connection| -> rusqlite::Result<u64> {
            let mut insert = connection
                .prepare("INSERT INTO new (id, key, fields, headers, payload) VALUES (?1, ?2, ?3, ?4, ?5)")?;
            let mut count = 0;
            for envelope in messages {
                let parts = Parts::of(envelope);
                insert.execute(params![
                    envelope.id,
                    parts.key,
                    parts.fields,
                    parts.headers,
                    parts.payload
                ])?;
                count += 1;
            }
            Ok(count)
        };
        put(&self.connection).map_err(failed)
    }

    /// From now on, the ledger is seen as it is now.
    fn hold_ledger(&self) -> Result<()> {
        self.connection.execute_batch("BEGIN; SELECT 1 FROM sent LIMIT 1;").map_err(failed)
    }

    fn let_go(&self) -> Result<()> {
        self.connection.execute_batch("COMMIT").map_err(failed)
    }

    /// What of the new place the ledger does not know.
    fn others(&self) -> Result<(u64, Vec<String>)> {
        const OTHERS: &str = "FROM new WHERE NOT EXISTS (SELECT 1 FROM sent WHERE sent.id = new.id)";
        Ok((self.count(&format!("SELECT count(*) {OTHERS}"))?, self.ids(&format!("SELECT id {OTHERS}"))?))
    }

    fn compare_old(&self, compared: &mut Compared) -> Result<()> {
        compared.not_yet = Some(self.count(
            "SELECT count(*) FROM old WHERE NOT EXISTS (SELECT 1 FROM sent WHERE sent.id = old.id)",
        )?);
        Ok(())
    }

    fn compare_new(&self, compared: &mut Compared, has_old: bool, is_ordered: bool) -> Result<()> {
        const COUNTS: &str = "WITH counts AS (SELECT id, count(*) AS wanted, \
             (SELECT count(*) FROM new WHERE new.id = sent.id) AS there FROM sent GROUP BY id)";
        const CHANGED: &str = "FROM new WHERE EXISTS (SELECT 1 FROM sent WHERE sent.id = new.id) \
             AND NOT EXISTS (SELECT 1 FROM sent WHERE sent.id = new.id AND ";
        let sum = |what: &str, when: &str| {
            self.count(&format!("{COUNTS} SELECT coalesce(sum({what}), 0) FROM counts WHERE {when}"))
        };
        let examples = |when: &str| self.ids(&format!("{COUNTS} SELECT id FROM counts WHERE {when}"));
        let changed =
            |part: &str| self.count(&format!("SELECT count(*) {CHANGED}sent.{part} IS new.{part})"));
        compared.missing = Some(sum("wanted - there", "there < wanted")?);
        compared.missing_ids = examples("there < wanted")?;
        compared.duplicates = Some(sum("there - wanted", "there > wanted")?);
        compared.duplicate_ids = examples("there > wanted")?;
        compared.changed_key = changed("key")?;
        compared.changed_fields = changed("fields")?;
        compared.changed_headers = changed("headers")?;
        compared.changed_payload = changed("payload")?;
        const ALIKE: &str = "sent.key IS new.key AND sent.fields = new.fields AND sent.headers = new.headers AND \
             sent.payload = new.payload)";
        compared.changed_ids = self.ids(&format!("SELECT DISTINCT id {CHANGED}{ALIKE}"))?;
        compared.same = Some(self.count(&format!(
            "SELECT count(*) FROM sent WHERE EXISTS (SELECT 1 FROM new WHERE new.id = sent.id AND {ALIKE}"
        ))?);
        if has_old {
            compared.both =
                Some(self.count(
                    "SELECT count(*) FROM old WHERE EXISTS (SELECT 1 FROM new WHERE new.id = old.id)",
                )?);
        }
        if is_ordered {
            // By the first time that each is there, and the first time that it was sent, within a run: what an earlier one
            // had sent and not noted is there before what the next one sends again.
            compared.reordered = Some(self.count(
                "WITH firsts AS (
                     SELECT sent.key AS key, min(sent.place) AS sent_at, min(new.place) AS new_at
                     FROM new JOIN sent ON sent.id = new.id WHERE sent.key IS NOT NULL GROUP BY sent.id
                 ), before AS (
                     SELECT sent_at, max(sent_at) OVER (
                         PARTITION BY key, sent_at >> 40 ORDER BY new_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                     ) AS latest FROM firsts
                 )
                 SELECT count(*) FROM before WHERE sent_at < latest",
            )?);
        }
        Ok(())
    }

    fn count(&self, sql: &str) -> Result<u64> {
        let count = self.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        count.map(i64::unsigned_abs).map_err(failed)
    }

    fn ids(&self, sql: &str) -> Result<Vec<String>> {
        let ids = || -> rusqlite::Result<Vec<String>> {
            let mut select = self.connection.prepare(&format!("{sql} LIMIT {EXAMPLES}"))?;
            select.query_map([], |row| row.get(0))?.collect()
        };
        ids().map_err(failed)
    }
}

fn failed(error: rusqlite::Error) -> Error {
    Error::new(ErrorKind::Internal, format!("the comparison failed ({error})")).with_source(error)
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
pub(super) struct Comparison<'a> {
    pub(super) old: &'a Bus,
    pub(super) new: &'a Bus,
    /// Of the bridge that filled the new place.
    pub(super) ledger: PathBuf,
    pub(super) most: NonZeroUsize,
    pub(super) may_be_consumed: bool,
    /// Places that show messages only by giving them out are left alone.
    pub(super) undisturbed: bool,
}

impl Comparison<'_> {
    pub(super) async fn run(self) -> Result<Compared> {
        let mut compared = Compared {
            at: Timestamp::now().to_string(),
            may_be_consumed: self.may_be_consumed,
            ..Compared::default()
        };
        let ledger = self.ledger.clone();
        let mut store = blocking(move || Store::open(&ledger)).await?;
        // The old place first, the ledger as it is then, and the new place last: what the ledger says was moved is at the
        // new place by then, and what it does not know had not been moved when it was seen.
        (compared.old, store) = self.read(self.old, store, false).await?;
        store = blocking(move || store.hold_ledger().map(|()| store)).await?;
        (compared.new, store) = self.read(self.new, store, true).await?;
        let is_ordered = self.new.capabilities().order != Level::No;
        blocking(move || {
            compared.moved = store.count("SELECT coalesce(sum(moved), 0) FROM run")?;
            compared.remembered = store.count("SELECT count(*) FROM sent")?;
            let has_old = matches!(compared.old, Side::Read { .. });
            if has_old {
                store.compare_old(&mut compared)?;
            }
            if let Side::Read { cut, .. } = compared.new {
                store.compare_new(&mut compared, has_old, is_ordered)?;
                if cut {
                    (compared.missing, compared.missing_ids) = (None, Vec::new());
                }
            }
            store.let_go()?;
            if matches!(compared.new, Side::Read { .. }) {
                // With what the ledger has learned meanwhile.
                let (others, ids) = store.others()?;
                (compared.others, compared.other_ids) = (Some(others), ids);
            }
            Ok(compared)
        })
        .await
    }

    async fn read(&self, bus: &Bus, mut store: Store, is_new: bool) -> Result<(Side, Store)> {
        let disturbed = match bus.capabilities().browse {
            Browse::No => {
                let why =
                    format!("{} cannot show messages without consuming them", bus.capabilities().transport);
                return Ok((Side::NotRead { why }, store));
            }
            Browse::Disturbing if self.undisturbed => {
                let why = "it shows messages only by giving them out, and was not to be disturbed".into();
                return Ok((Side::NotRead { why }, store));
            }
            browse => browse == Browse::Disturbing,
        };
        let messages = match bus.browse("", self.most).await {
            Ok(messages) => messages,
            Err(error) => return Ok((Side::NotRead { why: error.to_string() }, store)),
        };
        let cut = messages.len() >= self.most.get();
        blocking(move || {
            let envelopes = messages.iter().map(|message| &*message.envelope);
            let read = if is_new { store.put_new(envelopes)? } else { store.put_old(envelopes)? };
            Ok((Side::Read { read, disturbed, cut }, store))
        })
        .await
    }
}

/// Whether the new place holds anything but copies that the ledger knows.
pub(super) async fn strangers(
    new: &Bus,
    ledger: PathBuf,
    most: NonZeroUsize,
) -> Result<std::result::Result<u64, String>> {
    if new.capabilities().browse == Browse::No {
        return Ok(Err(format!("{} does not show what it holds", new.capabilities().transport)));
    }
    let messages = new.browse("", most).await?;
    if messages.len() >= most.get() {
        return Ok(Err(format!("it holds {most} messages or more, and no more are looked at")));
    }
    blocking(move || {
        let mut store = Store::open(&ledger)?;
        let read = store.put_new(messages.iter().map(|message| &*message.envelope))?;
        let (others, ids) = store.others()?;
        Ok(match ids.first() {
            None => Ok(read),
            Some(id) => Err(format!(
                "{others} of its {read} messages are not among the copies that the ledger knows, such as '{id}'"
            )),
        })
    })
    .await
}
