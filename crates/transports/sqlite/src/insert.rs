//! Taking messages in.

use std::collections::HashSet;
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use throughline_core::driver::{OperationId, Outgoing, Receipt};
use throughline_core::{Envelope, Error, ErrorKind, History, Result, Retry, Timestamp};

use crate::codec::{self, Bound, envelope_columns};
use crate::config::{Config, Place};
use crate::error;
use crate::schema::state;
use crate::store::{Queue, Store};

/// How long a consumer's own subscription lives without a sign of life from it, until it is suspected, and again until it
/// ends.
const OWN_LIVES: Duration = Duration::from_secs(60);

/// A row by hand that is ahead of the counter, and has no message, stands in nobody's way.
const FRESH: &str =
    "INSERT OR REPLACE INTO throughline_fresh (id, queue, rank, enqueued) VALUES (?1, ?2, ?3, ?4)";

const LINE: &str = "INSERT INTO throughline_line (id, queue, state, due, rank, place, failed_attempts, enqueued, key, history) \
                    VALUES (?1, ?2, ?3, ?4, ?5, ?1, ?6, ?4, ?7, ?8)";

const MESSAGE: &str = concat!(
    "INSERT INTO throughline_messages (id, ",
    envelope_columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)"
);

/// The statements of an insertion, prepared once for many.
struct Insert<'a> {
    fresh: CachedStatement<'a>,
    line: CachedStatement<'a>,
    message: CachedStatement<'a>,
    /// What is bound of the message.
    bound: Bound,
    /// What a fresh message has in common with the one before, as a rule: its queue, rank and time.
    common: Option<[i64; 3]>,
}

impl<'a> Insert<'a> {
    fn new(connection: &'a Connection) -> Result<Self> {
        let prepare = |sql| connection.prepare_cached(sql).map_err(error::sqlite);
        Ok(Self {
            fresh: prepare(FRESH)?,
            line: prepare(LINE)?,
            message: prepare(MESSAGE)?,
            bound: Bound::default(),
            common: None,
        })
    }
}

/// Whether a message of the key is in line already.
pub(crate) const IN_LINE: &str =
    "SELECT 1 FROM throughline_line WHERE queue = ?1 AND key = ?2 AND key IS NOT NULL AND state <= 3 LIMIT 1";

/// A message as it goes into its queue.
pub(crate) struct New<'a> {
    pub(crate) envelope: &'a Envelope,
    pub(crate) delay: Duration,
    pub(crate) failed_attempts: u32,
    pub(crate) history: Option<&'a History>,
}

impl<'a> From<&'a Outgoing> for New<'a> {
    fn from(message: &'a Outgoing) -> Self {
        Self {
            envelope: &message.envelope,
            delay: message.delay,
            failed_attempts: message.failed_attempts,
            history: message.history.as_deref(),
        }
    }
}

impl Store<'_> {
    /// Takes messages in, in order, with an answer for each; all that are taken, or none, are in every subscription.
    pub(crate) fn publish(&mut self, config: &Config, batch: &[Outgoing]) -> Result<Vec<Result<Receipt>>> {
        let destination = self.destination(config)?;
        let queues = match &config.place {
            Place::Queue(_) => vec![destination],
            Place::Topic { topic, .. } => self.subscriptions(topic)?,
        };
        let runs = runs(batch.iter().map(|message| message.operation));
        let mut seen = self.seen(destination.id, &runs, config)?;
        let connection = self.connection;
        let mut insert = Insert::new(connection)?;
        let mut results = Vec::with_capacity(batch.len());
        let mut taken = Vec::with_capacity(batch.len());
        for message in batch {
            let result = if seen.contains(&message.operation) {
                let mut receipt = Receipt::default();
                receipt.deduplicated = true;
                Ok(receipt)
            } else if let Some(full) = queues.iter().find(|queue| self.room(queue) == 0) {
                Err(full_queue(config, full))
            } else if queues.is_empty() {
                unroutable(config)
            } else {
                let mut id = 0;
                for queue in &queues {
                    id = self.insert(&mut insert, queue.id, &message.into())?;
                }
                taken.push(message.operation);
                if !config.dedupe.is_zero() && runs.len() > 1 {
                    // Should it come twice in one batch.
                    seen.insert(message.operation);
                }
                Ok(Receipt::with_native_id(id.to_string()))
            };
            results.push(result);
        }
        self.remember(destination.id, taken, config)?;
        Ok(results)
    }

    /// Takes one message in, and gives its id.
    pub(crate) fn insert_one(&mut self, queue: i64, message: &New<'_>) -> Result<i64> {
        let mut insert = Insert::new(self.connection)?;
        self.insert(&mut insert, queue, message)
    }

    fn insert(&mut self, insert: &mut Insert<'_>, queue: i64, message: &New<'_>) -> Result<i64> {
        let id = self.take_next()?;
        let envelope = message.envelope;
        let due = self.now.after(message.delay).as_millis();
        let key = envelope.ordering_key.as_deref();
        let history = message.history.filter(|history| !history.is_empty()).map(History::to_header);
        let is_fresh =
            message.delay.is_zero() && key.is_none() && message.failed_attempts == 0 && history.is_none();
        let state = if !message.delay.is_zero() {
            state::DELAYED
        } else if self.is_in_line(queue, key)? {
            state::BEHIND
        } else {
            state::READY
        };
        // Of what is delayed, too: somebody may be waiting for something later.
        self.woken.insert(queue);
        let mut bind = || {
            let common = [queue, rank(envelope), due];
            if is_fresh {
                insert.fresh.raw_bind_parameter(1, id)?;
                if insert.common != Some(common) {
                    for (index, value) in (2..).zip(common) {
                        insert.fresh.raw_bind_parameter(index, value)?;
                    }
                    insert.common = Some(common);
                }
                insert.fresh.raw_execute()?;
            } else {
                let [queue, rank, due] = common;
                let failed = message.failed_attempts;
                insert.line.execute(params![id, queue, state, due, rank, failed, key, history])?;
            }
            insert.message.raw_bind_parameter(1, id)?;
            codec::bind(&mut insert.message, &mut insert.bound, 2, envelope)?;
            insert.message.raw_execute()
        };
        bind().map_err(error::sqlite)?;
        self.count(queue, 1);
        Ok(id)
    }

    /// Whether a message of this key would have to wait for one before it.
    pub(crate) fn is_in_line(&self, queue: i64, key: Option<&[u8]>) -> Result<bool> {
        let Some(key) = key else { return Ok(false) };
        self.connection
            .prepare_cached(IN_LINE)
            .and_then(|mut statement| statement.exists(params![queue, key]))
            .map_err(error::sqlite)
    }

    /// The present subscriptions of a topic. Where the consumer of one gives no sign of life it is suspected at first: its
    /// process may have been held up, or the clock set. One that has stayed so is deleted.
    fn subscriptions(&mut self, topic: &str) -> Result<Vec<Queue>> {
        const ALL: &str = "SELECT id, max_length, held, alive_until, suspected_until FROM throughline_queues \
                           WHERE topic = ?1 AND name <> '' AND deleted = 0";
        let all = {
            let mut statement = self.connection.prepare_cached(ALL).map_err(error::sqlite)?;
            let rows = statement.query_map([topic], |row| {
                let time = |index| {
                    Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(index)?.map(Timestamp::from_millis))
                };
                Ok((Queue::read(row)?, time(3)?, time(4)?))
            });
            rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(error::sqlite)?
        };
        let mut present = Vec::with_capacity(all.len());
        for (queue, alive_until, suspected_until) in all {
            if alive_until.is_some_and(|until| until <= self.now) {
                match suspected_until {
                    Some(until) if until <= self.now => {
                        self.mark_deleted(queue.id)?;
                        continue;
                    }
                    Some(_) => {}
                    None => self.suspect(queue.id)?,
                }
            }
            present.push(queue);
        }
        Ok(present)
    }

    fn suspect(&self, subscription: i64) -> Result<()> {
        let sql = "UPDATE throughline_queues SET suspected_until = ?1 WHERE id = ?2";
        self.execute(sql, [self.now.after(OWN_LIVES).as_millis(), subscription]).map(drop)
    }

    /// A sign of life of a subscription's own consumer.
    pub(crate) fn keep_alive(&self, subscription: i64) -> Result<()> {
        let sql = "UPDATE throughline_queues SET alive_until = ?1, suspected_until = NULL WHERE id = ?2";
        self.execute(sql, [self.now.after(OWN_LIVES).as_millis(), subscription]).map(drop)
    }

    /// Which operations of these were taken in before.
    fn seen(&self, queue: i64, runs: &[Run], config: &Config) -> Result<HashSet<OperationId>> {
        if config.dedupe.is_zero() {
            return Ok(HashSet::new());
        }
        let sql = "SELECT first FROM throughline_operations WHERE queue = ?1 AND publisher = ?2 AND last >= ?3 \
                   AND until > ?4 ORDER BY last LIMIT 1";
        let mut statement = self.connection.prepare_cached(sql).map_err(error::sqlite)?;
        let now = self.now.as_millis();
        let mut run_before = |publisher: i64, at: i64| {
            statement
                .query_row([queue, publisher, at, now], |row| row.get::<_, i64>(0))
                .optional()
                .map_err(error::sqlite)
        };
        let mut seen = HashSet::new();
        for run in runs {
            // Nearly always the one look at a run tells that nothing of it is known.
            let overlaps = run_before(run.publisher, run.first)?.is_some_and(|first| first <= run.last);
            if !overlaps {
                continue;
            }
            for at in run.first..=run.last {
                if run_before(run.publisher, at)?.is_some_and(|first| first <= at) {
                    seen.insert(operation(run.publisher, at));
                }
            }
        }
        Ok(seen)
    }

    /// Keeps operations for as long as the address says, and forgets those whose time is over.
    fn remember(&self, queue: i64, operations: Vec<OperationId>, config: &Config) -> Result<()> {
        if config.dedupe.is_zero() || operations.is_empty() {
            return Ok(());
        }
        let sql = "DELETE FROM throughline_operations WHERE (queue, publisher, last) IN \
                   (SELECT queue, publisher, last FROM throughline_operations WHERE until <= ?1 LIMIT 100)";
        self.execute(sql, [self.now.as_millis()])?;
        let until = self.now.after(config.dedupe).as_millis();
        for run in runs(operations) {
            let Run { publisher, first, last } = run;
            // A publisher counts its operations: the run before this one, as a rule, grows.
            let sql = "UPDATE OR REPLACE throughline_operations SET last = ?1, until = max(until, ?2) \
                       WHERE queue = ?3 AND publisher = ?4 AND last = ?5";
            let before = first.checked_sub(1);
            let grown = match before {
                Some(before) => self.execute(sql, [last, until, queue, publisher, before])? > 0,
                None => false,
            };
            if !grown {
                let sql = "INSERT OR REPLACE INTO throughline_operations (queue, publisher, first, last, until) \
                           VALUES (?1, ?2, ?3, ?4, ?5)";
                self.execute(sql, [queue, publisher, first, last, until])?;
            }
        }
        Ok(())
    }
}

/// Operations of one publisher that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    publisher: i64,
    first: i64,
    last: i64,
}

/// The halves of an operation's id, as SQLite has integers: bit for bit.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "halves, bit for bit")]
fn halves(operation: OperationId) -> (i64, i64) {
    ((operation.0 >> 64) as i64, operation.0 as u64 as i64)
}

#[expect(clippy::cast_sign_loss, reason = "bit for bit")]
fn operation(publisher: i64, at: i64) -> OperationId {
    OperationId(u128::from(publisher as u64) << 64 | u128::from(at as u64))
}

fn runs(operations: impl IntoIterator<Item = OperationId>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for operation in operations {
        let (publisher, at) = halves(operation);
        match runs.last_mut() {
            Some(run) if run.publisher == publisher && run.last.checked_add(1) == Some(at) => run.last = at,
            _ => runs.push(Run { publisher, first: at, last: at }),
        }
    }
    runs
}

/// Lower goes first.
fn rank(envelope: &Envelope) -> i64 {
    255 - i64::from(envelope.priority.unwrap_or(0))
}

fn full_queue(config: &Config, queue: &Queue) -> Error {
    let max = queue.max_length.unwrap_or_default();
    let text = format!("'{}' is full: a queue of it holds {max} messages", config.place.name());
    Error::new(ErrorKind::Refused, text).with_retry(Retry::Safe)
}

fn unroutable(config: &Config) -> Result<Receipt> {
    if config.drop_unroutable {
        return Ok(Receipt::default());
    }
    let topic = config.place.name();
    let text = format!("topic '{topic}' has no subscription; consume from it first, or add unroutable=drop");
    Err(Error::new(ErrorKind::Unroutable, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use std::path::Path;

    #[test]
    fn a_subscription_ends_only_when_its_consumer_has_stayed_silent() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection).unwrap();
        let mut store = Store::new(&connection, Path::new(""));
        let id = store.make("t", "own", None).unwrap().id;
        let present = |store: &mut Store<'_>, passed: Duration| {
            store.now = store.now.after(passed);
            store.subscriptions("t").unwrap().len()
        };
        store.keep_alive(id).unwrap();
        assert_eq!(present(&mut store, OWN_LIVES / 2), 1);
        // A stall, or a step of the clock: a publish is there before its renewal.
        assert_eq!(present(&mut store, 100 * OWN_LIVES), 1);
        store.keep_alive(id).unwrap();
        assert_eq!(present(&mut store, 100 * OWN_LIVES), 1);
        assert_eq!(present(&mut store, OWN_LIVES / 2), 1);
        // It died.
        assert_eq!(present(&mut store, OWN_LIVES), 0);
    }

    #[test]
    fn operations_that_follow_each_other_are_one_run() {
        let at = |publisher: u64, at: u64| OperationId(u128::from(publisher) << 64 | u128::from(at));
        let all = [at(7, 0), at(7, 1), at(7, 3), at(8, 4), at(u64::MAX, u64::MAX)];
        let found: Vec<_> = runs(all).into_iter().map(|run| (run.publisher, run.first, run.last)).collect();
        assert_eq!(found, [(7, 0, 1), (7, 3, 3), (8, 4, 4), (-1, -1, -1)]);
        assert_eq!(operation(-1, -1), at(u64::MAX, u64::MAX));
    }
}
