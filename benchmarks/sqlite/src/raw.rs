//! Plain rusqlite: a table with an index by queue, prepared statements, the batches of the other side. What is published
//! is synced, what is deleted is not, as the transport does it by default.

use anyhow::{Result, ensure};
use throughline_sqlite::rusqlite::{Connection, params};

use crate::{ACKED_TOGETHER, Load, PUBLISHED_TOGETHER, Span, Stopwatch};

const QUEUE: i64 = 1;

pub(crate) fn run(load: &Load) -> Result<(Span, Span)> {
    let mut connection = Connection::open(load.folder.join("raw.db"))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.execute_batch(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, message_id TEXT, type TEXT, time INTEGER, \
         payload BLOB); CREATE INDEX by_queue ON messages (queue, id)",
    )?;
    connection.pragma_update(None, "synchronous", "full")?;
    let watch = Stopwatch::start();
    let mut id = 0_i64;
    for _ in 0..load.messages / PUBLISHED_TOGETHER {
        let transaction = connection.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO messages VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
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
        let transaction = connection.transaction()?;
        {
            let sql = "SELECT id, message_id, type, time, payload FROM messages WHERE queue = ?1 ORDER BY id LIMIT ?2";
            let mut select = transaction.prepare_cached(sql)?;
            let mut delete = transaction.prepare_cached("DELETE FROM messages WHERE id = ?1")?;
            let mut rows = select.query(params![QUEUE, ACKED_TOGETHER as i64])?;
            let mut taken = Vec::with_capacity(ACKED_TOGETHER);
            while let Some(row) = rows.next()? {
                let message: (i64, String, String, i64, Vec<u8>) =
                    (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
                ensure!(message.4.len() == load.body.len(), "a message is not as it was sent");
                taken.push(message);
            }
            for message in &taken {
                delete.execute([message.0])?;
            }
            ensure!(!taken.is_empty(), "messages are missing");
            left -= taken.len();
        }
        transaction.commit()?;
    }
    Ok((published, watch.stop()))
}
