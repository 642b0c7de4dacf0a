//! Messages in the application's own transaction.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use throughline_core::capabilities;
use throughline_core::driver::Endpoint;
use throughline_core::trace::SendSpan;
use throughline_core::{Envelope, Result};

use crate::config::{Config, Place};
use crate::error;
use crate::insert::New;
use crate::schema;
use crate::store::{self, Store};

/// A work queue in an application's own database, into which messages go in the application's own transactions: state and
/// messages commit together, or not at all.
///
/// `sqlite:FILE?queue=NAME` consumes it, in this process or another, once the transaction is committed; who relays it
/// elsewhere acks a message when the other side has accepted it.
#[derive(Clone, Debug)]
pub struct Outbox {
    config: Config,
    endpoint: Endpoint,
}

impl Outbox {
    /// Makes our tables in the database, where they are not there yet or of an older version, and the queue. Nothing else
    /// of the database is touched: not `user_version`, not its journal mode.
    ///
    /// A consumer of the file switches it to write-ahead logging, which lives in the file from then on.
    ///
    /// Errors: `Conflict` where the tables are of a newer version; what SQLite says (a full disk, a locked or damaged
    /// file).
    pub fn install(connection: &mut Connection, queue: impl Into<String>) -> Result<Self> {
        let queue = queue.into();
        let outbox = Self {
            endpoint: Endpoint { destination: queue.clone(), ..Endpoint::default() },
            config: Config {
                place: Place::Queue(queue),
                create: true,
                drop_unroutable: false,
                dead_letter: None,
                max_length: None,
                dedupe: Duration::ZERO,
            },
        };
        schema::migrate(connection)?;
        let name = outbox.config.place.name();
        if store::find(connection, "", name).map_err(error::sqlite)?.is_none() {
            // Somebody else may be making it at this moment.
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(error::sqlite)?;
            Store::new(&transaction, Path::new("")).destination(&outbox.config)?;
            transaction.commit().map_err(error::commit)?;
        }
        Ok(outbox)
    }

    /// Writes a message within a transaction. It is published when the transaction commits, and never was when it does
    /// not. The current OpenTelemetry context goes with it, unless the envelope carries one already, in the same send span
    /// that a publisher makes.
    ///
    /// A transaction that reads before it writes should begin as `IMMEDIATE`, as with any other writer: else SQLite may
    /// answer that the database is busy.
    ///
    /// Errors: `InvalidMessage` and `LimitExceeded`, and what SQLite says; then nothing of the message was written, and
    /// the transaction can go on, unless SQLite has rolled back all of it, as it may for a full disk
    /// (`Transaction::is_autocommit` says so).
    pub fn publish_in(
        &self,
        transaction: &Transaction<'_>,
        envelope: impl Into<Arc<Envelope>>,
    ) -> Result<()> {
        let mut envelope = envelope.into();
        let span = SendSpan::start(&mut envelope, &capabilities::SQLITE, &self.endpoint);
        let published = self.insert(transaction, &envelope);
        span.end(published.as_ref().err());
        published
    }

    fn insert(&self, transaction: &Transaction<'_>, envelope: &Envelope) -> Result<()> {
        envelope.validate()?;
        capabilities::SQLITE.check_payload(envelope.payload_len())?;
        let run = |sql: &str| transaction.execute_batch(sql).map_err(error::sqlite);
        run("SAVEPOINT throughline_outbox")?;
        let mut store = Store::new(transaction, Path::new(""));
        let message = New { envelope, delay: Duration::ZERO, failed_attempts: 0, history: None };
        let inserted = store
            // Written first: a transaction that has read, and then wants to write, is told at once that the database is busy.
            .execute("UPDATE throughline_meta SET next = next WHERE id = 1", [])
            .and_then(|_| store.destination(&self.config))
            .and_then(|queue| store.insert_one(queue.id, &message))
            .and_then(|_| store.flush());
        if inserted.is_err() {
            if transaction.is_autocommit() {
                // SQLite has rolled all of it back, as for a full disk.
                return inserted;
            }
            run("ROLLBACK TO throughline_outbox")?;
        }
        run("RELEASE throughline_outbox")?;
        inserted
    }
}
