//! A store in an SQLite file.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use throughline_core::{Error, ErrorKind, History, Result, Retry, Timestamp};

use super::{AttemptStore, Attempts, Begun, Claim, IdempotencyStore};

/// How long a statement waits for another process's.
const BUSY: Duration = Duration::from_secs(5);
/// What is over is deleted once in so many statements that add something.
const SWEEP: u32 = 256;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS tl_worker_keys (
        key TEXT PRIMARY KEY, claim BLOB, until INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS tl_worker_keys_until ON tl_worker_keys (until);
    CREATE TABLE IF NOT EXISTS tl_worker_attempts (
        key TEXT PRIMARY KEY, failed INTEGER NOT NULL, history TEXT NOT NULL, until INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS tl_worker_attempts_until ON tl_worker_attempts (until);
";

/// A store in an SQLite file: it outlives the process, and several processes of one machine may use it.
///
/// It keeps two tables of its own, `tl_worker_keys` and `tl_worker_attempts`; the file may hold others. Written ahead
/// (WAL) and synced at checkpoints: what was noted survives the end of the process, and in a power failure the last of it
/// may be lost, as if the work had not been done yet. Times are the machine's clock.
///
/// Cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct SqliteStore(Arc<Mutex<Inner>>);

struct Inner {
    connection: Connection,
    until_sweep: u32,
}

impl SqliteStore {
    /// Opens a file, and makes it and the tables where they are missing.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        blocking(move || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.execute_batch(SCHEMA)?;
            Ok(Self(Arc::new(Mutex::new(Inner { connection, until_sweep: 0 }))))
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Inner) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        blocking(move || work(&mut inner.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteStore")
    }
}

/// SQLite waits for the disk and for other processes: not on a thread of the runtime's.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done =
        done.map_err(|error| Error::new(ErrorKind::Internal, "the store's task failed").with_source(error))?;
    done.map_err(|error| {
        let text = format!("the SQLite store failed: {error}");
        Error::new(ErrorKind::Disconnected, text).with_retry(Retry::Uncertain).with_source(error)
    })
}

impl Inner {
    fn sweep(&mut self, now: i64) -> rusqlite::Result<()> {
        if self.until_sweep > 0 {
            self.until_sweep -= 1;
            return Ok(());
        }
        self.until_sweep = SWEEP;
        self.connection.execute("DELETE FROM tl_worker_keys WHERE until <= ?1", [now])?;
        self.connection.execute("DELETE FROM tl_worker_attempts WHERE until <= ?1", [now])?;
        Ok(())
    }
}

/// Now, and so long from now, in milliseconds.
fn times(keep: Duration) -> (i64, i64) {
    let now = Timestamp::now();
    (now.as_millis(), now.after(keep).as_millis())
}

fn bytes(claim: Claim) -> [u8; 16] {
    claim.0.to_be_bytes()
}

#[async_trait]
impl IdempotencyStore for SqliteStore {
    async fn begin(&self, key: &str, claim: Duration) -> Result<Begun> {
        let key = key.to_owned();
        self.run(move |inner| {
            let (now, until) = times(claim);
            inner.sweep(now)?;
            // Immediate: of two processes one waits here, and not in the middle.
            let transaction = inner.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found: Option<(bool, i64)> = transaction
                .prepare_cached(
                    "SELECT claim IS NULL, until FROM tl_worker_keys WHERE key = ?1 AND until > ?2",
                )?
                .query_row(params![key, now], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let begun = match found {
                Some((true, _)) => Begun::Done,
                Some((false, until)) => {
                    Begun::InProgress(Duration::from_millis(until.saturating_sub(now).unsigned_abs()))
                }
                None => {
                    let new = Claim::unique();
                    transaction
                        .prepare_cached(
                            "INSERT OR REPLACE INTO tl_worker_keys (key, claim, until) VALUES (?1, ?2, ?3)",
                        )?
                        .execute(params![key, bytes(new), until])?;
                    Begun::New(new)
                }
            };
            transaction.commit()?;
            Ok(begun)
        })
        .await
    }

    async fn extend(&self, key: &str, claim: Claim, by: Duration) -> Result<bool> {
        let key = key.to_owned();
        self.run(move |inner| {
            let (now, until) = times(by);
            let changed = inner
                .connection
                .prepare_cached(
                    "UPDATE tl_worker_keys SET until = ?3 WHERE key = ?1 AND claim = ?2 AND until > ?4",
                )?
                .execute(params![key, bytes(claim), until, now])?;
            Ok(changed > 0)
        })
        .await
    }

    async fn done(&self, key: &str, claim: Claim, keep: Duration) -> Result<bool> {
        let key = key.to_owned();
        self.run(move |inner| {
            let (now, until) = times(keep);
            let changed = inner
                .connection
                .prepare_cached(
                    "INSERT INTO tl_worker_keys (key, claim, until) VALUES (?1, NULL, ?3)
                     ON CONFLICT (key) DO UPDATE SET claim = NULL, until = excluded.until
                     WHERE claim = ?2 OR until <= ?4",
                )?
                .execute(params![key, bytes(claim), until, now])?;
            Ok(changed > 0)
        })
        .await
    }

    async fn abandon(&self, key: &str, claim: Claim) -> Result<()> {
        let key = key.to_owned();
        self.run(move |inner| {
            inner
                .connection
                .prepare_cached("DELETE FROM tl_worker_keys WHERE key = ?1 AND claim = ?2")?
                .execute(params![key, bytes(claim)])?;
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl AttemptStore for SqliteStore {
    async fn load(&self, key: &str) -> Result<Option<Attempts>> {
        let key = key.to_owned();
        self.run(move |inner| {
            let now = Timestamp::now().as_millis();
            inner
                .connection
                .prepare_cached(
                    "SELECT failed, history FROM tl_worker_attempts WHERE key = ?1 AND until > ?2",
                )?
                .query_row(params![key, now], |row| {
                    let history: String = row.get(1)?;
                    let history = History::from_header(&history).unwrap_or_default();
                    Ok(Attempts { failed: row.get(0)?, history })
                })
                .optional()
        })
        .await
    }

    async fn save(&self, key: &str, attempts: &Attempts, keep: Duration) -> Result<()> {
        let (key, failed, history) = (key.to_owned(), attempts.failed, attempts.history.to_header());
        self.run(move |inner| {
            let (now, until) = times(keep);
            inner.sweep(now)?;
            inner
                .connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO tl_worker_attempts (key, failed, history, until) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![key, failed, history, until])?;
            Ok(())
        })
        .await
    }

    async fn forget(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.run(move |inner| {
            inner
                .connection
                .prepare_cached("DELETE FROM tl_worker_attempts WHERE key = ?1")?
                .execute([key])?;
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::law;
    use super::*;

    #[tokio::test]
    async fn holds_what_every_store_must() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| SqliteStore::open(folder.path().join(name));
        law::a_key_is_new_then_in_progress_then_done(&open("1").await.unwrap()).await;
        law::a_claim_that_is_over_is_anothers(&open("2").await.unwrap()).await;
        law::a_late_done_counts_where_nobody_else_began(&open("3").await.unwrap()).await;
        law::attempts_are_kept_until_forgotten(&open("4").await.unwrap()).await;
    }

    /// As of several processes: a connection each.
    struct Several(Vec<SqliteStore>, std::sync::atomic::AtomicUsize);

    impl Several {
        fn next(&self) -> &SqliteStore {
            let turn = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            &self.0[turn % self.0.len()]
        }
    }

    #[async_trait]
    impl IdempotencyStore for Several {
        async fn begin(&self, key: &str, claim: Duration) -> Result<Begun> {
            self.next().begin(key, claim).await
        }
        async fn extend(&self, key: &str, claim: Claim, by: Duration) -> Result<bool> {
            self.next().extend(key, claim, by).await
        }
        async fn done(&self, key: &str, claim: Claim, keep: Duration) -> Result<bool> {
            self.next().done(key, claim, keep).await
        }
        async fn abandon(&self, key: &str, claim: Claim) -> Result<()> {
            self.next().abandon(key, claim).await
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_of_many_gets_a_key_over_several_connections() {
        let folder = tempfile::tempdir().unwrap();
        let mut stores = Vec::new();
        for _ in 0..4 {
            stores.push(SqliteStore::open(folder.path().join("shared")).await.unwrap());
        }
        law::one_of_many_gets_a_key(Arc::new(Several(stores, Default::default()))).await;
    }

    #[tokio::test]
    async fn what_is_done_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let long = Duration::from_secs(600);
        let store = SqliteStore::open(&path).await.unwrap();
        let Begun::New(claim) = store.begin("a", long).await.unwrap() else { panic!() };
        store.done("a", claim, long).await.unwrap();
        drop(store);
        let store = SqliteStore::open(&path).await.unwrap();
        assert_eq!(store.begin("a", long).await.unwrap(), Begun::Done);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_opened_is_told() {
        let error = SqliteStore::open("/nowhere/store").await.unwrap_err();
        assert!(error.to_string().contains("SQLite"), "{error}");
    }
}
