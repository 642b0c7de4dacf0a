//! The public suite. One case by name: `cargo test -p throughline-sqlite --test conformance -- NAME`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::ExitCode;

use throughline_conformance::{Registered, libtest};
use throughline_core::{Address, Error, ErrorKind, Result};
use throughline_sqlite::REGISTRATION;

fn main() -> ExitCode {
    // One file for all cases, which run at once.
    let folder = tempfile::tempdir().unwrap();
    let base = format!("sqlite:{}", folder.path().join("conformance.db").display());
    let harness = base.parse().and_then(|base| Registered::new(&REGISTRATION, base));
    libtest::main(harness.map(|harness| harness.with_foreign(|to| Box::pin(async move { put_foreign(&to) }))))
}

/// A row as somebody else's SQL writes it: without an id, and with headers and a history that are not JSON.
fn put_foreign(to: &Address) -> Result<()> {
    let put = || {
        let connection = rusqlite::Connection::open(to.path())?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.execute_batch("BEGIN IMMEDIATE; UPDATE throughline_meta SET next = next + 1")?;
        connection.execute(
            "INSERT INTO throughline_line (id, place, state, due, queue, rank, enqueued, key, history) \
             SELECT next - 1, next - 1, 0, 0, (SELECT id FROM throughline_queues WHERE name = ?1 AND deleted = 0), 255, 0, \
             NULL, 'not a history' FROM throughline_meta",
            [to.option("queue")],
        )?;
        connection.execute(
            "INSERT INTO throughline_messages (id, time, priority, traceparent, headers, payload) \
             SELECT next - 1, 'noon', 'high', x'ff00', '{\"h\":', 'foreign' FROM throughline_meta",
            [],
        )?;
        connection.execute_batch("COMMIT")
    };
    put().map_err(|error: rusqlite::Error| {
        Error::new(ErrorKind::Internal, "cannot insert a foreign row").with_source(error)
    })
}
