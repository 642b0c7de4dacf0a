//! Ending deliveries.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use throughline_core::driver::{Settlement, Token};
use throughline_core::{Error, ErrorKind, History, Result};

use crate::config::Config;
use crate::error;
use crate::lease::{COUNT_FRESH, DROP_FRESH, DROP_FRESH_RUN, fresh_rank, of_token, stale};
use crate::schema::state;
use crate::store::Store;

/// What may be settled: this delivery, as long as its lease runs.
macro_rules! ours {
    () => {
        "WHERE id = ?1 AND receive_count = ?2 AND state = 2 AND due > ?3"
    };
}

impl Store<'_> {
    /// Settles deliveries of a queue, with an answer for each.
    pub(crate) fn settle(
        &mut self,
        queue: i64,
        config: &Config,
        batch: &[(Token, Settlement)],
    ) -> Result<Vec<Result<()>>> {
        let mut results = Vec::with_capacity(batch.len());
        for mut run in batch.chunk_by(follow) {
            while run.len() > 1 {
                let acked = self.ack_run(queue, run)?;
                if acked == 0 {
                    break;
                }
                results.extend((0..acked).map(|_| Ok(())));
                run = run.get(acked..).unwrap_or_default();
            }
            for (token, settlement) in run {
                results.push(self.settle_one(queue, config, *token, settlement)?);
            }
        }
        Ok(results)
    }

    fn settle_one(
        &mut self,
        queue: i64,
        config: &Config,
        token: Token,
        settlement: &Settlement,
    ) -> Result<Result<()>> {
        if !matches!(settlement, Settlement::Ack) {
            self.take_out(queue, token)?;
        }
        let settled = match settlement {
            Settlement::Ack => self.ack_fresh(queue, token)? || self.ack(queue, token)?,
            Settlement::Release => self.release(queue, token)?,
            Settlement::Retry { after, history } => self.retry(queue, token, *after, history)?,
            Settlement::Reject { history } => match &config.dead_letter {
                Some(dead_letters) => match self.reject(queue, token, history, config, dead_letters) {
                    // Told before anything was settled: the others of the batch are.
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Err(error)),
                    rejected => rejected?,
                },
                None => return Ok(Err(no_dead_letter())),
            },
        };
        Ok(if settled { Ok(()) } else { Err(stale()) })
    }

    /// Acks messages whose ids follow each other, together, and says how many: as far as their range goes, or all. None,
    /// where one of them is not ours any more.
    fn ack_run(&mut self, queue: i64, run: &[(Token, Settlement)]) -> Result<usize> {
        const OURS: &str = "SELECT count(*) FROM throughline_line WHERE id BETWEEN ?1 AND ?2 AND receive_count = ?3 \
                            AND state = 2 AND due > ?4";
        let (Some((token, _)), Some((last, _))) = (run.first(), run.last()) else { return Ok(0) };
        let ((first, count, _), (mut last, ..)) = (of_token(*token), of_token(*last));
        let fresh = match fresh_rank(*token) {
            Some(rank) => self.range(queue, rank, first)?,
            None => None,
        };
        let ours = match fresh {
            Some(range) => {
                last = last.min(range.last);
                self.prepare(COUNT_FRESH)?.query_row([queue, range.rank, first, last], |row| row.get(0))
            }
            None => {
                self.prepare(OURS)?.query_row([first, last, count, self.now.as_millis()], |row| row.get(0))
            }
        };
        let (ours, all): (i64, i64) = (ours.map_err(error::sqlite)?, last - first + 1);
        if ours != all {
            return Ok(0);
        }
        if let Some(range) = fresh {
            self.left_ranges.insert(range);
            self.execute(DROP_FRESH_RUN, [queue, range.rank, first, last])?;
        } else {
            self.execute("DELETE FROM throughline_line WHERE id BETWEEN ?1 AND ?2", [first, last])?;
        }
        self.execute("DELETE FROM throughline_messages WHERE id BETWEEN ?1 AND ?2", [first, last])?;
        self.count(queue, -all);
        Ok(usize::try_from(all).unwrap_or(0))
    }

    /// Acks a delivery that is in a range, if it is still there and its lease runs.
    fn ack_fresh(&mut self, queue: i64, token: Token) -> Result<bool> {
        let (Some(rank), (id, ..)) = (fresh_rank(token), of_token(token)) else { return Ok(false) };
        let Some(range) = self.range(queue, rank, id)? else { return Ok(false) };
        if self.execute(DROP_FRESH, [queue, rank, id])? == 0 {
            return Ok(false);
        }
        self.left_ranges.insert(range);
        self.left(queue, id)?;
        Ok(true)
    }

    fn ack(&mut self, queue: i64, token: Token) -> Result<bool> {
        const PLAIN: &str = concat!("DELETE FROM throughline_line ", ours!());
        const KEYED: &str = concat!("DELETE FROM throughline_line ", ours!(), " RETURNING key");
        let (id, count, keyed) = of_token(token);
        let parameters = [id, count, self.now.as_millis()];
        if !keyed {
            let acked = self.execute(PLAIN, parameters)? > 0;
            if acked {
                self.left(queue, id)?;
            }
            return Ok(acked);
        }
        let key: Option<Vec<u8>> = self
            .connection
            .prepare_cached(KEYED)
            .and_then(|mut statement| statement.query_row(parameters, |row| row.get(0)).optional())
            .map_err(error::sqlite)?;
        let Some(key) = key else { return Ok(false) };
        self.left(queue, id)?;
        self.promote(queue, &key)?;
        Ok(true)
    }

    /// A message is out of its line: it goes, too.
    fn left(&mut self, queue: i64, id: i64) -> Result<()> {
        self.execute("DELETE FROM throughline_messages WHERE id = ?1", [id])?;
        self.count(queue, -1);
        Ok(())
    }

    /// Back to its place, as it was.
    fn release(&mut self, queue: i64, token: Token) -> Result<bool> {
        const SQL: &str = concat!(
            "UPDATE throughline_line AS m SET state = CASE WHEN key IS NULL OR NOT EXISTS \
             (SELECT 1 FROM throughline_line e WHERE e.queue = m.queue AND e.key = m.key AND e.key IS NOT NULL \
              AND e.state <= 3 AND e.place < m.place) THEN 0 ELSE 1 END ",
            ours!()
        );
        let (id, count, _) = of_token(token);
        let released = self.execute(SQL, [id, count, self.now.as_millis()])? > 0;
        if released {
            self.woken.insert(queue);
        }
        Ok(released)
    }

    /// Back with its failure: one of a key in its place, any other at the end of the queue.
    fn retry(&mut self, queue: i64, token: Token, after: Duration, history: &Arc<History>) -> Result<bool> {
        const SQL: &str = concat!(
            "UPDATE throughline_line SET state = ?4, due = ?5, enqueued = ?5, place = coalesce(?6, place), \
             history = ?7, failed_attempts = failed_attempts + (failed_attempts < 4294967295) ",
            ours!()
        );
        let (id, count, keyed) = of_token(token);
        let (state, place) = match (keyed, after.is_zero()) {
            (true, true) => (state::READY, None),
            (true, false) => (state::HELD, None),
            (false, true) => (state::READY, Some(self.take_next()?)),
            (false, false) => (state::DELAYED, None),
        };
        let (now, due) = (self.now.as_millis(), self.now.after(after).as_millis());
        let parameters = params![id, count, now, state, due, place, history.to_header()];
        let retried = self.execute(SQL, parameters)? > 0;
        if retried {
            self.woken.insert(queue);
        }
        Ok(retried)
    }

    /// To the dead letters: the same row under a new id, so that it is never in both queues nor in none.
    fn reject(
        &mut self,
        queue: i64,
        token: Token,
        history: &Arc<History>,
        config: &Config,
        dead_letters: &str,
    ) -> Result<bool> {
        const KEY: &str = concat!("SELECT key FROM throughline_line ", ours!());
        const MOVE: &str = "UPDATE throughline_line SET id = ?2, place = ?2, queue = ?3, state = ?4, enqueued = ?5, \
                            due = ?5, receive_count = 0, history = ?6, \
                            failed_attempts = coalesce(?9, failed_attempts + (failed_attempts < 4294967295)), \
                            dead_letter_source = ?7, dead_letter_reason = ?8 WHERE id = ?1";
        let (id, count, _) = of_token(token);
        let now = self.now.as_millis();
        let key: Option<Option<Vec<u8>>> = self
            .connection
            .prepare_cached(KEY)
            .and_then(|mut statement| statement.query_row([id, count, now], |row| row.get(0)).optional())
            .map_err(error::sqlite)?;
        let Some(key) = key else { return Ok(false) };
        let graveyard = self.queue("", dead_letters, "dead-letter queue", config)?;
        let behind = self.is_in_line(graveyard.id, key.as_deref())?;
        let state = if behind { state::BEHIND } else { state::READY };
        let reason = history.last().map_or_else(|| "rejected".to_owned(), ToString::to_string);
        let place = self.take_next()?;
        let header = history.to_header();
        let source = config.source_name();
        self.execute("UPDATE throughline_messages SET id = ?2 WHERE id = ?1", [id, place])?;
        let failed = history.last().map(|failure| failure.attempt).filter(|attempt| *attempt > 0);
        self.execute(MOVE, params![id, place, graveyard.id, state, now, header, source, reason, failed])?;
        self.count(queue, -1);
        self.count(graveyard.id, 1);
        self.woken.insert(graveyard.id);
        if let Some(key) = key {
            self.promote(queue, &key)?;
        }
        Ok(true)
    }
}

/// Whether two settlements are acks of messages without a key, one directly after the other: they can be done as one.
fn follow(one: &(Token, Settlement), next: &(Token, Settlement)) -> bool {
    let ((token, Settlement::Ack), (after, Settlement::Ack)) = (one, next) else { return false };
    let ((id, _, keyed), (next, ..)) = (of_token(*token), of_token(*after));
    !keyed && token.epoch == after.epoch && id.checked_add(1) == Some(next)
}

fn no_dead_letter() -> Error {
    Error::new(
        ErrorKind::NoDeadLetter,
        "no dead-letter queue is known, so the message stays; add dead_letter=QUEUE to the address",
    )
}
