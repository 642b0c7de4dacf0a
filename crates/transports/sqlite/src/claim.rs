//! Handing messages out: those that are ready, in their order, on a lease.

use std::time::Duration;

use rusqlite::{Connection, params};
use throughline_core::driver::Delivery;
use throughline_core::{Envelope, Order, Result, Timestamp};
use tokio::time::Instant;

use crate::error;
use crate::lease::{self, PIECE};
use crate::ready::{self, BEHIND, READY, Stored};
use crate::store::Store;

/// Lets the first message of a key go, if it waits.
const PROMOTE: &str = "UPDATE throughline_line SET state = 0 WHERE state = 1 AND id = (SELECT id FROM throughline_line \
                   WHERE queue = ?1 AND key = ?2 AND key IS NOT NULL AND state <= 3 ORDER BY place LIMIT 1)";

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

impl Claim {
    /// Answers without a transaction where there is nothing to claim.
    pub(crate) fn peek(&self, connection: &Connection) -> rusqlite::Result<Option<Claimed>> {
        let next = lease::next_due(connection, self.queue)?;
        let is_due = next.is_some_and(|due| due <= Timestamp::now());
        let any = self.order == Order::Any && ready::any(connection, self.queue, BEHIND)?;
        if is_due || any || ready::any(connection, self.queue, READY)? {
            return Ok(None);
        }
        let sql = "SELECT 1 FROM throughline_queues WHERE id = ?1 AND deleted = 0";
        let there = connection.prepare_cached(sql)?.exists([self.queue])?;
        Ok(there.then_some(Claimed { deliveries: Vec::new(), next, more: false }))
    }
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
        let kinds = if claim.order == Order::Any { &[READY, BEHIND][..] } else { &[READY] };
        let (mut expired, mut bytes) = (0, 0);
        for lanes in kinds {
            while claimed.deliveries.len() < claim.max && bytes < claim.max_bytes && expired < PIECE {
                let wanted = claim.max - claimed.deliveries.len();
                let stored = ready::first(self.connection, claim.queue, lanes, wanted, claim.max_bytes)
                    .map_err(error::sqlite)?;
                let were_all = stored.len() < wanted;
                // All of them, and only then those out of it that have expired: what takes the place of one of these in its
                // key's line must not be leased along.
                self.lease(claim.queue, &stored, due)?;
                let (gone, stored): (Vec<_>, Vec<_>) =
                    stored.into_iter().partition(|stored| stored.is_expired(self.now));
                for stored in &gone {
                    expired += 1;
                    self.drop_expired(claim.queue, stored)?;
                }
                bytes += stored.iter().map(|stored| stored.delivery.envelope.payload_len()).sum::<usize>();
                claimed.deliveries.extend(stored.into_iter().map(|stored| leased(stored, until)));
                if were_all && gone.is_empty() {
                    break;
                }
            }
        }
        let is_full = claimed.deliveries.len() >= claim.max || bytes >= claim.max_bytes;
        claimed.more = expired >= PIECE;
        for lanes in kinds {
            let any = || ready::any(self.connection, claim.queue, lanes).map_err(error::sqlite);
            claimed.more = claimed.more || is_full && any()?;
        }
        if claimed.deliveries.is_empty() {
            claimed.next = self.next_due(claim.queue)?;
        }
        Ok(claimed)
    }

    /// Drops a message that was leased, and has expired.
    fn drop_expired(&mut self, queue: i64, stored: &Stored) -> Result<()> {
        let Stored { id, rank, .. } = *stored;
        let envelope: &Envelope = &stored.delivery.envelope;
        if stored.is_fresh {
            self.left_ranges.extend(self.range(queue, rank, id)?);
            self.execute(lease::DROP_FRESH, [queue, rank, id])?;
        }
        self.execute("DELETE FROM throughline_line WHERE id = ?1", [id])?;
        self.execute("DELETE FROM throughline_messages WHERE id = ?1", [id])?;
        self.count(queue, -1);
        if let Some(key) = &envelope.ordering_key {
            self.promote(queue, key)?;
        }
        Ok(())
    }

    /// Lets the first message of a key go, if it waits: the one before it has left.
    pub(crate) fn promote(&mut self, queue: i64, key: &[u8]) -> Result<()> {
        if self.execute(PROMOTE, params![queue, key])? > 0 {
            self.woken.insert(queue);
        }
        Ok(())
    }
}

/// As it is handed out.
fn leased(stored: Stored, until: Instant) -> Delivery {
    let receive_count = stored.receive_count.saturating_add(1).min(i64::from(u32::MAX));
    let mut delivery = stored.delivery;
    let keyed = delivery.envelope.ordering_key.is_some();
    delivery.token = lease::token(stored.id, receive_count, keyed, stored.is_fresh.then_some(stored.rank));
    delivery.receive_count = u32::try_from(receive_count).ok();
    delivery.lease_expires = Some(until);
    delivery
}
