//! From a queue in this process to a file. By hand: a deque, and rusqlite with synced transactions of as many rows as the
//! bridge has on its way.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::Result;
use throughline::{Bus, Envelope};
use throughline_sqlite::rusqlite::{Connection, params};
use uuid::Uuid;

use crate::{Load, Span, Stopwatch, bridge};

pub(crate) async fn run(folder: &Path, load: Load, by_hand: bool) -> Result<Span> {
    if by_hand {
        let queue: VecDeque<Envelope> = (0..load.messages).map(|_| load.message()).collect();
        let file = folder.join("raw.db");
        return tokio::task::spawn_blocking(move || raw(&file, queue, load.in_flight.into())).await?;
    }
    let from = format!("memory:{}?queue=q", Uuid::now_v7().simple());
    let to = format!("sqlite:{}?queue=q", folder.join("ours.db").display());
    // Held: the queue ends with the last who has it.
    let queue = Bus::connect(&from).await?;
    load.fill(&queue).await?;
    let span = bridge(&from, &to, folder, load).await?;
    queue.close().await?;
    Ok(span)
}

fn raw(file: &Path, mut queue: VecDeque<Envelope>, in_flight: usize) -> Result<Span> {
    let watch = Stopwatch::start();
    let mut connection = Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.execute_batch(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, message_id TEXT, type TEXT, \
         traceparent TEXT, time INTEGER, payload BLOB); CREATE INDEX by_queue ON messages (queue, id)",
    )?;
    while !queue.is_empty() {
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO messages (queue, message_id, type, traceparent, time, payload) \
                 VALUES (1, ?1, ?2, ?3, ?4, ?5)",
            )?;
            for message in queue.drain(..in_flight.min(queue.len())) {
                let trace = message.headers.trace("traceparent");
                let time = message.time.map(|time| time.as_millis());
                let payload = message.payload.as_deref();
                insert.execute(params![message.id, message.message_type, trace, time, payload])?;
            }
        }
        transaction.commit()?;
    }
    connection.close().map_err(|(_, error)| error)?;
    Ok(watch.stop())
}
