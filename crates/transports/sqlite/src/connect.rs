//! Connections: opened, checked and set up.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use throughline_core::{Error, ErrorKind, Result};

use crate::config::Durability;
use crate::schema::{self, Found};
use crate::{error, network};

/// So long a connection waits for others before it says so.
const PATIENCE: Duration = Duration::from_secs(20);
/// So long one attempt of a transaction waits for its turn; the writing thread then tries again.
const TURN: Duration = Duration::from_secs(5);
/// The write-ahead log is copied into the database when it has so many pages (of 4 KiB), by whoever commits then.
const CHECKPOINT_PAGES: u32 = 4000;
/// A log that has grown beyond this, because a reader kept it from being copied, is cut again.
pub(crate) const LOG_LIMIT: u64 = 64 * 1024 * 1024;

/// The connection that writes. A new file gets our tables.
pub(crate) fn writer(path: &Path, durability: Durability, create: bool) -> Result<Connection> {
    if !create && !path.exists() {
        return Err(error::missing_file(path));
    }
    network::check(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let flags = if create { flags | OpenFlags::SQLITE_OPEN_CREATE } else { flags };
    let mut connection = Connection::open_with_flags(path, flags).map_err(error::sqlite)?;
    patient(&mut connection)?;
    in_turn(|| schema::check(&connection))?;
    write_ahead(&connection)?;
    let set_up = || {
        connection.pragma_update(None, "journal_size_limit", i64::try_from(LOG_LIMIT).unwrap_or(i64::MAX))?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        // In KiB: both ends of a long queue, and a large batch.
        connection.pragma_update(None, "cache_size", -16_384)?;
        connection.pragma_update(None, "temp_store", "memory")?;
        connection.pragma_update(None, "synchronous", durability.as_str())
    };
    set_up().map_err(error::sqlite)?;
    // A statement is prepared once: without this, SQLite prepares each that has a `LIMIT ?` anew when a value is bound to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(error::sqlite)?;
    connection.set_prepared_statement_cache_capacity(64);
    in_turn(|| schema::migrate(&mut connection))?;
    Ok(connection)
}

/// A connection that only reads. `NotFound` where there is no file, or nothing in it.
pub(crate) fn reader(path: &Path) -> Result<Connection> {
    match look(path)? {
        (connection, Found::Version(_)) => Ok(connection),
        (_, Found::Empty | Found::Foreign) => Err(error::missing_file(path)),
    }
}

/// Opens a file for reading, and tells what is in it that we may touch.
pub(crate) fn look(path: &Path) -> Result<(Connection, Found)> {
    if !path.exists() {
        return Err(error::missing_file(path));
    }
    // One that may write takes its log away when it is the last to leave; where it may not, SQLite makes do with reading.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(error::sqlite)?;
    patient(&mut connection)?;
    connection.pragma_update(None, "query_only", true).map_err(error::sqlite)?;
    let found = in_turn(|| schema::check(&connection))?;
    Ok((connection, found))
}

/// Lets a connection wait for its turn. SQLite's own waits grow, so that who came last is first; these are short and of
/// random length, so that every process has the same chance.
pub(crate) fn patient(connection: &mut Connection) -> Result<()> {
    let mut since = Instant::now();
    let wait = move |count: i32| {
        if count == 0 {
            since = Instant::now();
        }
        let noise = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let longest = if count < 20 { 500 } else { 3000 };
        std::thread::sleep(Duration::from_micros(100 + u64::from(noise / 7) % longest));
        since.elapsed() < TURN
    };
    connection.busy_handler(Some(wait)).map_err(error::sqlite)
}

/// Does what SQLite does not wait with for its turn, or not for long.
fn in_turn<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let since = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Throttled && since.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

/// Switches to write-ahead logging, which lives in the file from then on.
fn write_ahead(connection: &Connection) -> Result<()> {
    let set =
        || connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0)).map_err(error::sqlite);
    let mode: String = in_turn(set)?;
    if mode == "wal" {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "the file system cannot do write-ahead logging (it stays '{mode}'); put the file on a local disk"
        ),
    ))
}
