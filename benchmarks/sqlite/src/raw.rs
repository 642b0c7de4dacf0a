//! Plain rusqlite: a table with an index by queue, prepared statements, the batches of the other side. What is published
//! is synced, what is leased and deleted is not, as the transport does it by default.

use anyhow::{Result, ensure};
use throughline_sqlite::rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::{ACKED_TOGETHER, Load, PUBLISHED_TOGETHER, Span, Stopwatch};

const QUEUE: i64 = 1;
/// As far off as the transport's own lease, in ms.
const LEASE: i64 = 30_000;

/// How messages are taken out.
#[derive(Clone, Copy)]
pub(crate) enum Take {
    /// One transaction reads and deletes: a process that dies with them has lost them, and there is one consumer.
    AtOnce,
    /// As a queue must do it: one transaction reads and leases, another deletes what is still leased.
    Leased,
}

/// A message as it is read.
type Message = (i64, String, String, i64, Vec<u8>);

pub(crate) fn run(load: &Load, take: Take) -> Result<(Span, Span)> {
    let mut connection = Connection::open(load.folder.join("raw.db"))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.execute_batch(match take {
        Take::AtOnce => {
            "CREATE TABLE messages (id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, message_id TEXT, type TEXT, \
             time INTEGER, payload BLOB); CREATE INDEX by_queue ON messages (queue, id)"
        }
        Take::Leased => {
            "CREATE TABLE messages (id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, message_id TEXT, type TEXT, \
             time INTEGER, payload BLOB, leased_until INTEGER NOT NULL DEFAULT 0); \
             CREATE INDEX by_queue ON messages (queue, leased_until, id)"
        }
    })?;
    connection.pragma_update(None, "synchronous", "full")?;
    let watch = Stopwatch::start();
    let mut id = 0_i64;
    for _ in 0..load.messages / PUBLISHED_TOGETHER {
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO messages (id, queue, message_id, type, time, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for _ in 0..PUBLISHED_TOGETHER {
                id += 1;
                // As long as a message's own.
                let message_id = format!("{id:036}");
                insert.execute(params![id, QUEUE, message_id, "bench", 1_700_000_000_000_i64, load.body])?;
            }
        }
        transaction.commit()?;
    }
    let published = watch.stop();
    connection.pragma_update(None, "synchronous", "normal")?;
    let watch = Stopwatch::start();
    let mut left = load.messages;
    while left > 0 {
        left -= match take {
            Take::AtOnce => take_at_once(&mut connection, load)?,
            Take::Leased => take_leased(&mut connection, load)?,
        };
    }
    Ok((published, watch.stop()))
}

fn take_at_once(connection: &mut Connection, load: &Load) -> Result<usize> {
    let transaction = connection.transaction()?;
    let sql =
        "SELECT id, message_id, type, time, payload FROM messages WHERE queue = ?1 ORDER BY id LIMIT ?2";
    let taken = read(&transaction, sql, load)?;
    {
        let mut delete = transaction.prepare_cached("DELETE FROM messages WHERE id = ?1")?;
        for message in &taken {
            delete.execute([message.0])?;
        }
    }
    transaction.commit()?;
    Ok(taken.len())
}

fn take_leased(connection: &mut Connection, load: &Load) -> Result<usize> {
    let until = now() + LEASE;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let sql = "SELECT id, message_id, type, time, payload FROM messages WHERE queue = ?1 AND leased_until = 0 \
               ORDER BY id LIMIT ?2";
    let taken = read(&transaction, sql, load)?;
    {
        let mut lease = transaction.prepare_cached("UPDATE messages SET leased_until = ?2 WHERE id = ?1")?;
        for message in &taken {
            lease.execute([message.0, until])?;
        }
    }
    transaction.commit()?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let sql = "DELETE FROM messages WHERE id = ?1 AND leased_until = ?2";
        let mut delete = transaction.prepare_cached(sql)?;
        for message in &taken {
            ensure!(delete.execute([message.0, until])? == 1, "a lease was lost");
        }
    }
    transaction.commit()?;
    Ok(taken.len())
}

fn read(transaction: &Transaction<'_>, sql: &str, load: &Load) -> Result<Vec<Message>> {
    let mut select = transaction.prepare_cached(sql)?;
    let mut rows = select.query(params![QUEUE, ACKED_TOGETHER as i64])?;
    let mut taken: Vec<Message> = Vec::with_capacity(ACKED_TOGETHER);
    while let Some(row) = rows.next()? {
        let message: Message = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
        ensure!(message.4.len() == load.body.len(), "a message is not as it was sent");
        taken.push(message);
    }
    ensure!(!taken.is_empty(), "messages are missing");
    Ok(taken)
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
