//! Handing messages out: those that are ready, in their order, on a lease.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use rusqlite::{Connection, OptionalExtension, Row, params};
use throughline_core::driver::{Clock, Delivery, Native, Token};
use throughline_core::{Envelope, HeaderValue, Order, Result, Timestamp};
use tokio::time::Instant;

use crate::codec::{self, envelope_columns, rare_columns};
use crate::error;
use crate::schema::state;
use crate::store::Store;

/// The statements on the messages of one state. The state is written out: only so does SQLite use the index that has just
/// these, in their order; with a parameter it would sort the whole queue for each claim.
#[derive(Clone, Copy)]
struct Lane {
    /// The first ones.
    select: &'static str,
    /// Whether there is any.
    any: &'static str,
}

macro_rules! lane {
    ($state:literal) => {
        Lane {
            select: concat!(
                "SELECT l.id, l.receive_count, l.enqueued, l.key, \
                 coalesce(nullif(l.failed_attempts, 0), l.history, l.dead_letter_source, l.dead_letter_reason, ",
                rare_columns!(),
                ") IS NOT NULL, l.failed_attempts, l.history, l.dead_letter_source, l.dead_letter_reason, ",
                envelope_columns!(),
                " FROM throughline_line l LEFT JOIN throughline_messages m ON m.id = l.id WHERE l.queue = ?1 AND l.state = ",
                $state,
                " ORDER BY l.rank, l.place LIMIT ?2"
            ),
            any: concat!("SELECT 1 FROM throughline_line WHERE queue = ?1 AND state = ", $state, " LIMIT 1"),
        }
    };
}

/// The messages that can be claimed, and those that wait for an earlier one of their key.
const READY: Lane = lane!("0");
const BEHIND: Lane = lane!("1");

/// Leases messages whose ids follow each other. By the index of their lane SQLite would have to note them all first.
const LEASE: &str = "UPDATE throughline_line NOT INDEXED SET state = 2, due = ?1, \
                     receive_count = receive_count + (receive_count < 4294967295) WHERE id BETWEEN ?2 AND ?3";

/// Where the envelope's columns begin.
const AT: usize = 9;

/// When something of a queue is due: a lease ends, a delay is over.
const NEXT_DUE: &str =
    "SELECT due FROM throughline_line WHERE queue = ?1 AND state >= 2 ORDER BY due LIMIT 1";

/// The first that are due, whatever for: each of them leaves this window, so that the next ones come into it.
const DUE: &str = "SELECT id, state, key FROM throughline_line WHERE queue = ?1 AND state >= 2 AND due <= ?2 \
                   ORDER BY due, id LIMIT ?3";

/// Ends a lease, or the wait for a retry.
const WAKE_IN_PLACE: &str = "UPDATE throughline_line AS m SET \
                   failed_attempts = failed_attempts + (state = 2 AND failed_attempts < 4294967295), \
                   state = CASE WHEN key IS NULL OR NOT EXISTS (SELECT 1 FROM throughline_line e \
                     WHERE e.queue = m.queue AND e.key = m.key AND e.key IS NOT NULL AND e.state <= 3 \
                     AND e.place < m.place) THEN 0 ELSE 1 END WHERE id = ?1";

/// Ends a delay.
const WAKE_AT_THE_END: &str = "UPDATE throughline_line SET state = ?1, place = ?2 WHERE id = ?3";

/// Lets the first message of a key go, if it waits.
const PROMOTE: &str = "UPDATE throughline_line SET state = 0 WHERE state = 1 AND id = (SELECT id FROM throughline_line \
                   WHERE queue = ?1 AND key = ?2 AND key IS NOT NULL AND state <= 3 ORDER BY place LIMIT 1)";

/// So many messages that are due, or have expired, are seen to in one transaction at most.
const PIECE: i64 = 1000;
/// A century: the longest lease that is told from one for ever.
const LONGEST_LEASE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The answer to a claim.
pub(crate) struct Claimed {
    pub(crate) deliveries: Vec<Delivery>,
    /// When something may be ready that is not now.
    pub(crate) next: Option<Timestamp>,
    /// Something is left that is ready.
    pub(crate) more: bool,
}

/// What a claim asks for.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) queue: i64,
    pub(crate) max: usize,
    /// Of payloads; one message may exceed it.
    pub(crate) max_bytes: usize,
    pub(crate) lease: Duration,
    pub(crate) order: Order,
}

/// Where a message was rejected, and why: the native details of a dead letter.
struct DeadLetter(Vec<(&'static str, String)>);

impl Native for DeadLetter {
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        self.0.iter().map(|(name, text)| ((*name).into(), text.as_str().into())).collect()
    }

    fn span_attributes(&self) -> Vec<KeyValue> {
        Vec::new()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// One row, read.
struct Stored {
    id: i64,
    receive_count: i64,
    delivery: Delivery,
}

impl Stored {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (id, receive_count): (i64, i64) = (row.get(0)?, row.get(1)?);
        // Whether any of what most messages leave empty is set.
        let rare: bool = row.get(4)?;
        let mut envelope = codec::read(row, AT, id, rare)?;
        envelope.ordering_key = codec::bytes(row.get_ref(3)?);
        let mut delivery = Delivery::new(Arc::new(envelope), Token { epoch: 0, tag: u64::MAX });
        delivery.enqueued = Some((Timestamp::from_millis(row.get(2)?), Clock::Broker));
        delivery.receive_count = u32::try_from(receive_count).ok();
        if rare {
            delivery.failed_attempts = row.get(5)?;
            delivery.history = codec::history(row.get_ref(6)?).map(Arc::new);
            let details = codec::dead_letter(row.get_ref(7)?, row.get_ref(8)?);
            delivery.is_dead_letter = !details.is_empty();
            delivery.native =
                delivery.is_dead_letter.then(|| Arc::new(DeadLetter(details)) as Arc<dyn Native>);
        }
        Ok(Self { id, receive_count, delivery })
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        // What was rejected is kept, however late somebody looks at it.
        !self.delivery.is_dead_letter && self.delivery.envelope.is_expired(now)
    }

    /// As it is handed out.
    fn leased(self, until: Instant) -> Delivery {
        let receive_count = self.receive_count.saturating_add(1).min(i64::from(u32::MAX));
        let mut delivery = self.delivery;
        delivery.token = token(self.id, receive_count, delivery.envelope.ordering_key.is_some());
        delivery.receive_count = u32::try_from(receive_count).ok();
        delivery.lease_expires = Some(until);
        delivery
    }
}

/// A delivery's token: the row, and in place of an epoch which delivery of it that is, and whether others wait for its key.
#[expect(clippy::cast_sign_loss, reason = "bit for bit")]
fn token(id: i64, receive_count: i64, keyed: bool) -> Token {
    Token { epoch: (receive_count as u64) << 1 | u64::from(keyed), tag: id as u64 }
}

/// What a [`token`] says: row, receive count, and whether it has a key.
#[expect(clippy::cast_possible_wrap, reason = "bit for bit")]
pub(crate) fn of_token(token: Token) -> (i64, i64, bool) {
    (token.tag as i64, (token.epoch >> 1) as i64, token.epoch & 1 == 1)
}

impl Claim {
    /// Answers without a transaction where there is nothing to claim.
    pub(crate) fn peek(&self, connection: &Connection) -> rusqlite::Result<Option<Claimed>> {
        let next = next_due(connection, self.queue)?;
        let any_in = |lane: Lane| connection.prepare_cached(lane.any)?.exists([self.queue]);
        let is_due = next.is_some_and(|due| due <= Timestamp::now());
        let any = self.order == Order::Any && any_in(BEHIND)?;
        if is_due || any || any_in(READY)? {
            return Ok(None);
        }
        let sql = "SELECT 1 FROM throughline_queues WHERE id = ?1 AND deleted = 0";
        let there = connection.prepare_cached(sql)?.exists([self.queue])?;
        Ok(there.then_some(Claimed { deliveries: Vec::new(), next, more: false }))
    }
}

fn next_due(connection: &Connection, queue: i64) -> rusqlite::Result<Option<Timestamp>> {
    let due: Option<i64> =
        connection.prepare_cached(NEXT_DUE)?.query_row([queue], |row| row.get(0)).optional()?;
    Ok(due.map(Timestamp::from_millis))
}

/// Gives the ready messages, in the order in which they would be delivered, as they are, until it is told to stop.
pub(crate) fn browse(
    connection: &Connection,
    queue: i64,
    max: usize,
    mut give: impl FnMut(Delivery) -> bool,
) -> rusqlite::Result<()> {
    // One look at both: what leaves the one lane for the other meanwhile must not be missed.
    let transaction = connection.unchecked_transaction()?;
    let mut left = max;
    for lane in [READY, BEHIND] {
        let mut select = transaction.prepare_cached(lane.select)?;
        let limit = i64::try_from(left).unwrap_or(i64::MAX);
        for stored in select.query_map([queue, limit], Stored::read)? {
            left -= 1;
            if !give(stored?.delivery) {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Store<'_> {
    /// Hands out what is ready.
    pub(crate) fn claim(&mut self, claim: Claim) -> Result<Claimed> {
        self.check(claim.queue)?;
        if self.next_due(claim.queue)?.is_some_and(|due| due <= self.now) {
            self.wake_due(claim.queue)?;
        }
        // What is further off than a clock can say is for ever.
        let lease = claim.lease.min(LONGEST_LEASE);
        let (due, until) = (self.now.after(lease), Instant::now() + lease);
        let mut claimed = Claimed { deliveries: Vec::new(), next: None, more: false };
        // A PerKey consumer sees the first of each key only; any other sees those behind them, too.
        let lanes: &[Lane] = if claim.order == Order::Any { &[READY, BEHIND] } else { &[READY] };
        let (mut expired, mut bytes) = (0, 0);
        for lane in lanes {
            while claimed.deliveries.len() < claim.max && bytes < claim.max_bytes && expired < PIECE {
                let wanted = claim.max - claimed.deliveries.len();
                let stored = self.ready(claim, *lane, wanted)?;
                let were_all = stored.len() < wanted;
                // All of them, and only then those out of it that have expired: what takes the place of one of these in its
                // key's line must not be leased along.
                self.lease(&stored, due)?;
                let (gone, stored): (Vec<_>, Vec<_>) =
                    stored.into_iter().partition(|stored| stored.is_expired(self.now));
                for stored in &gone {
                    expired += 1;
                    self.drop_expired(claim.queue, stored.id, &stored.delivery.envelope)?;
                }
                bytes += stored.iter().map(|stored| stored.delivery.envelope.payload_len()).sum::<usize>();
                claimed.deliveries.extend(stored.into_iter().map(|stored| stored.leased(until)));
                if were_all && gone.is_empty() {
                    break;
                }
            }
        }
        let is_full = claimed.deliveries.len() >= claim.max || bytes >= claim.max_bytes;
        claimed.more = expired >= PIECE;
        for lane in lanes {
            claimed.more = claimed.more || is_full && self.any_in(claim.queue, *lane)?;
        }
        if claimed.deliveries.is_empty() {
            claimed.next = self.next_due(claim.queue)?;
        }
        Ok(claimed)
    }

    /// Leases what was read.
    fn lease(&self, stored: &[Stored], due: Timestamp) -> Result<()> {
        let mut lease = self.connection.prepare_cached(LEASE).map_err(error::sqlite)?;
        for run in stored.chunk_by(|one, next| one.id.checked_add(1) == Some(next.id)) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                lease.execute([due.as_millis(), first.id, last.id]).map_err(error::sqlite)?;
            }
        }
        Ok(())
    }

    /// The next messages, as many as a claim may hold.
    fn ready(&self, claim: Claim, lane: Lane, max: usize) -> Result<Vec<Stored>> {
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(lane.select).map_err(error::sqlite)?;
        let mut rows = statement.query([claim.queue, limit]).map_err(error::sqlite)?;
        let (mut stored, mut bytes) = (Vec::with_capacity(max), 0);
        while bytes < claim.max_bytes
            && let Some(row) = rows.next().map_err(error::sqlite)?
        {
            let next = Stored::read(row).map_err(error::sqlite)?;
            bytes += next.delivery.envelope.payload_len();
            stored.push(next);
        }
        Ok(stored)
    }

    fn any_in(&self, queue: i64, lane: Lane) -> Result<bool> {
        let mut statement = self.connection.prepare_cached(lane.any).map_err(error::sqlite)?;
        statement.exists([queue]).map_err(error::sqlite)
    }

    fn next_due(&self, queue: i64) -> Result<Option<Timestamp>> {
        next_due(self.connection, queue).map_err(error::sqlite)
    }

    fn drop_expired(&mut self, queue: i64, id: i64, envelope: &Envelope) -> Result<()> {
        self.execute("DELETE FROM throughline_line WHERE id = ?1", [id])?;
        self.execute("DELETE FROM throughline_messages WHERE id = ?1", [id])?;
        self.count(queue, -1);
        if let Some(key) = &envelope.ordering_key {
            self.promote(queue, key)?;
        }
        Ok(())
    }

    /// Makes ready what is due, a piece of it at most: delays that are over, and messages whose lease has ended. Says how
    /// many there were.
    pub(crate) fn wake_due(&mut self, queue: i64) -> Result<usize> {
        let due = {
            let mut statement = self.connection.prepare_cached(DUE).map_err(error::sqlite)?;
            let rows = statement.query_map([queue, self.now.as_millis(), PIECE], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<Vec<u8>>>(2)?))
            });
            rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(error::sqlite)?
        };
        for (id, state, key) in &due {
            if *state != state::DELAYED {
                // In its place: ahead of what came after it. One whose lease has ended has failed.
                self.execute(WAKE_IN_PLACE, [id])?;
                continue;
            }
            let behind = self.is_in_line(queue, key.as_deref())?;
            let state = if behind { state::BEHIND } else { state::READY };
            let place = self.take_next()?;
            self.execute(WAKE_AT_THE_END, [state, place, *id])?;
        }
        if !due.is_empty() {
            self.woken.insert(queue);
        }
        Ok(due.len())
    }

    /// Lets the first message of a key go, if it waits: the one before it has left.
    pub(crate) fn promote(&mut self, queue: i64, key: &[u8]) -> Result<()> {
        if self.execute(PROMOTE, params![queue, key])? > 0 {
            self.woken.insert(queue);
        }
        Ok(())
    }
}
