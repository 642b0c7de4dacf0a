//! The tables, and how they come to be: migrations, each in one transaction.
//!
//! All names begin with `throughline_`, and the version is in a table of ours, not in `user_version`: the same tables live in
//! an application's own database, as its outbox, and that number is the application's there.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use throughline_core::{Error, ErrorKind, Result};

use crate::error;

/// "Tl01": what `file` and others tell our files by. Only a file that we have made has it.
pub(crate) const APPLICATION_ID: i32 = 0x546C_3031;

/// What makes each version of the one before it. Those that were released never change.
const MIGRATIONS: &[&str] = &[include_str!("schema/1.sql")];

/// Where a message stands that is not fresh.
pub(crate) mod state {
    /// Can be claimed.
    pub(crate) const READY: i64 = 0;
    /// Waits for an earlier message of its key.
    pub(crate) const BEHIND: i64 = 1;
    /// Delivered, and not settled; `due` is when its lease ends.
    pub(crate) const LEASED: i64 = 2;
    /// Waits in its place for its retry, which is `due`; it keeps its key's later messages behind.
    pub(crate) const HELD: i64 = 3;
    /// Takes its place at the end of the queue when it is `due`.
    pub(crate) const DELAYED: i64 = 4;
}

/// What a database holds of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing at all: a new file.
    Empty,
    /// Tables, none of them ours.
    Foreign,
    /// Our tables, of this version.
    Version(u32),
}

/// Looks, and changes nothing.
pub(crate) fn found(connection: &Connection) -> rusqlite::Result<Found> {
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(Found::Empty);
    }
    let ours = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'throughline_meta'";
    if connection.query_row(ours, [], |_| Ok(())).optional()?.is_none() {
        return Ok(Found::Foreign);
    }
    let version = connection.query_row("SELECT version FROM throughline_meta", [], |row| row.get(0))?;
    Ok(Found::Version(version))
}

/// The newest version that this build knows.
pub(crate) fn newest() -> u32 {
    count(MIGRATIONS)
}

/// Refuses what is not ours to touch: tables of a version that does not exist yet, and a file that is another application's.
pub(crate) fn check(connection: &Connection) -> Result<Found> {
    let found = found(connection).map_err(error::sqlite)?;
    match found {
        Found::Version(version) if version > newest() => Err(newer(version)),
        Found::Foreign => {
            let id: i32 = pragma(connection, "application_id").map_err(error::sqlite)?;
            Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "the file is another application's database (application_id {id:#010x}, without tables of ours), \
                     and is left as it is; name another file, or make it an outbox by Outbox::install"
                ),
            ))
        }
        found => Ok(found),
    }
}

fn count(migrations: &[&str]) -> u32 {
    u32::try_from(migrations.len()).unwrap_or(u32::MAX)
}

fn newer(version: u32) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "the tables are of version {version}, and this build knows versions up to {}; update Throughline in this process",
            newest()
        ),
    )
}

/// Brings the tables to the newest version; several processes may do so at once, and one that dies halfway has changed
/// nothing.
pub(crate) fn migrate(connection: &mut Connection) -> Result<()> {
    migrate_by(connection, MIGRATIONS)
}

fn migrate_by(connection: &mut Connection, migrations: &[&str]) -> Result<()> {
    let version = |found| if let Found::Version(version) = found { version } else { 0 };
    // Without the lock at first: there is nothing to do, as a rule.
    if version(found(connection).map_err(error::sqlite)?) == count(migrations) {
        return Ok(());
    }
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error::sqlite)?;
    let before = found(&transaction).map_err(error::sqlite)?;
    let at = version(before);
    if at > count(migrations) {
        return Err(newer(at));
    }
    if before == Found::Empty {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(error::sqlite)?;
    }
    for migration in migrations.iter().skip(at as usize) {
        transaction.execute_batch(migration).map_err(error::sqlite)?;
    }
    if at < count(migrations) {
        transaction
            .execute("UPDATE throughline_meta SET version = ?1", [count(migrations)])
            .map_err(error::sqlite)?;
    }
    transaction.commit().map_err(error::commit)
}

/// The value of a pragma.
pub(crate) fn pragma<T: rusqlite::types::FromSql>(
    connection: &Connection,
    name: &str,
) -> rusqlite::Result<T> {
    connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// A second version, which never ends: its process has to be killed.
    const ENDLESS: &str = "ALTER TABLE throughline_messages ADD COLUMN half TEXT; \
        UPDATE throughline_messages SET half = 'done'; UPDATE throughline_meta SET version = 2; \
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n;";

    /// Not a test of its own: started by another test, and killed.
    #[test]
    fn migrates_for_ever() {
        let Some(path) = std::env::var_os("SQLITE_TEST_FILE") else { return };
        let mut connection = Connection::open(path).unwrap();
        migrate_by(&mut connection, &[MIGRATIONS[0], ENDLESS]).unwrap();
    }

    #[test]
    fn a_process_that_dies_in_a_migration_has_changed_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus.db");
        let mut connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        migrate(&mut connection).unwrap();
        let row = "INSERT INTO throughline_messages (id) VALUES (1)";
        connection.execute(row, []).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "schema::tests::migrates_for_ever"])
            .env("SQLITE_TEST_FILE", &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Once nobody else can write, it is in the middle of it.
        connection.busy_timeout(Duration::ZERO).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while connection.execute_batch("BEGIN IMMEDIATE; COMMIT").is_ok() {
            assert!(Instant::now() < until, "it does not begin");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(100));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(connection);
        let mut connection = Connection::open(&path).unwrap();
        assert_eq!(found(&connection).unwrap(), Found::Version(1));
        assert!(connection.prepare("SELECT half FROM throughline_messages").is_err());
        // And the next one can do it.
        let second = "ALTER TABLE throughline_messages ADD COLUMN half TEXT";
        migrate_by(&mut connection, &[MIGRATIONS[0], second]).unwrap();
        assert_eq!(found(&connection).unwrap(), Found::Version(2));
        for refused in [check(&connection).map(drop), migrate(&mut connection)] {
            assert!(matches!(refused, Err(error) if error.kind() == ErrorKind::Conflict));
        }
        let rows: i64 =
            connection.query_row("SELECT count(*) FROM throughline_messages", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        migrate(&mut connection).unwrap();
        let bad = "ALTER TABLE throughline_queues ADD COLUMN half TEXT; SELECT nonsense";
        migrate_by(&mut connection, &[MIGRATIONS[0], bad]).unwrap_err();
        assert_eq!(found(&connection).unwrap(), Found::Version(1));
        assert!(connection.prepare("SELECT half FROM throughline_queues").is_err());
    }
}
