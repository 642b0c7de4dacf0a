//! Delays: a ladder of queues whose messages expire and are dead-lettered back.
//!
//! One queue a tier and destination, because RabbitMQ expires messages only at the head of a queue: with one time to live
//! a queue, the head is always the first to go. They are quorum queues that dead-letter at least once, so that the way
//! back cannot lose a message; the default, at most once, can.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use throughline_core::{Error, Result};

use crate::codec::SHORT;
use crate::config::Route;
use crate::connect::{Keeper, answer, close_channel};

/// The tiers, in ms: a delay is rounded up to the next, which is at most three times as long.
pub(crate) const TIERS: [u64; 20] = [
    100, 250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_200_000,
    1_800_000, 3_600_000, 7_200_000, 21_600_000, 43_200_000, 86_400_000,
];

/// The longest delay: the highest tier.
pub(crate) const MAX_DELAY: Duration = Duration::from_millis(86_400_000);

/// How the name of a delay queue begins.
const TIER: &str = "tl.delay.";

/// Whether a queue is a delay queue, by its name.
pub(crate) fn is_tier(queue: &[u8]) -> bool {
    queue.starts_with(TIER.as_bytes())
}

/// Where a delayed message goes when its time has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// To a queue, through the default exchange.
    Queue(ShortString),
    /// To an exchange, with the routing key that it has.
    Exchange(ShortString),
}

impl Target {
    /// The tier's queue, and for an exchange the tier's own exchange too, which keeps the routing key.
    pub(crate) fn tier_name(&self, tier: u64) -> ShortString {
        let (kind, name) = match self {
            Self::Queue(name) => ("q", name.as_str()),
            Self::Exchange(name) => ("x", name.as_str()),
        };
        let full = format!("{TIER}{kind}.{name}.{tier}");
        ShortString::try_new(full).unwrap_or_else(|_| hashed(kind, name, tier))
    }
}

/// A name that would be too long: its beginning, and a hash of all of it.
fn hashed(kind: &str, name: &str, tier: u64) -> ShortString {
    // Keys of zero: the same in every process and version of the standard library so far; should it ever change, new
    // tiers are made beside the old ones, whose messages still come back.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let tail = format!(".{:016x}.{tier}", hasher.finish());
    let head = format!("{TIER}{kind}.");
    let room = SHORT - head.len() - tail.len();
    let end = (0..=room).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    let kept = name.get(..end).unwrap_or_default();
    ShortString::try_new(format!("{head}{kept}{tail}")).unwrap_or_default()
}

/// The tier for a delay; `None` above the highest.
pub(crate) fn tier(delay: Duration) -> Option<u64> {
    TIERS.into_iter().find(|tier| Duration::from_millis(*tier) >= delay)
}

/// The tiers that this transport has declared.
pub(crate) struct Tiers {
    keeper: Arc<Keeper>,
    declared: Mutex<HashSet<ShortString>>,
}

impl Tiers {
    pub(crate) fn new(keeper: Arc<Keeper>) -> Self {
        Self { keeper, declared: Mutex::default() }
    }

    /// Where to publish a message so that it comes to the target after the delay; makes the tier if need be. `key` is the
    /// routing key that it has then.
    pub(crate) async fn route(&self, target: &Target, key: &ShortString, delay: Duration) -> Result<Route> {
        let Some(tier) = tier(delay) else {
            return Err(Error::limit("the delay", format!("{delay:?}"), format!("{MAX_DELAY:?}")));
        };
        let name = target.tier_name(tier);
        let known = self.declared.lock().unwrap_or_else(PoisonError::into_inner).contains(&name);
        if !known {
            let channel = self.keeper.link().await?.channel().await?;
            let declared = declare(&channel, target, &name, tier).await;
            close_channel(&channel).await;
            declared?;
            self.declared.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        }
        Ok(match target {
            Target::Queue(_) => Route::to_queue(name),
            Target::Exchange(_) => Route { exchange: name, key: key.clone() },
        })
    }

    /// A tier was deleted meanwhile: the next message makes it again.
    pub(crate) fn forget_all(&self) {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl fmt::Debug for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiers").finish_non_exhaustive()
    }
}

async fn declare(channel: &Channel, target: &Target, name: &ShortString, tier: u64) -> Result<()> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(i64::try_from(tier).unwrap_or(i64::MAX)));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    // What at-least-once asks for: https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering
    arguments.insert("x-overflow".into(), text("reject-publish"));
    match target {
        Target::Queue(queue) => {
            arguments.insert("x-dead-letter-exchange".into(), text(""));
            arguments.insert("x-dead-letter-routing-key".into(), text(queue.as_str()));
        }
        // Without a routing key of its own, the message keeps the one it was published with.
        Target::Exchange(exchange) => {
            arguments.insert("x-dead-letter-exchange".into(), text(exchange.as_str()));
        }
    }
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    answer(channel.queue_declare(name.clone(), durable, arguments)).await?;
    if let Target::Exchange(_) = target {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default;
        answer(channel.exchange_declare(name.clone(), ExchangeKind::Fanout, durable, none())).await?;
        let (queue, key) = (name.clone(), ShortString::default());
        answer(channel.queue_bind(queue, name.clone(), key, QueueBindOptions::default(), none())).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_rounded_up_never_down() {
        assert!(TIERS.is_sorted());
        // What the capability table promises.
        assert_eq!(throughline_core::capabilities::RABBITMQ.limits.delay, Some(MAX_DELAY));
        assert_eq!(tier(Duration::from_millis(1)), Some(100));
        assert_eq!(tier(Duration::from_millis(100)), Some(100));
        assert_eq!(tier(Duration::from_micros(100_001)), Some(250));
        assert_eq!(tier(MAX_DELAY), Some(86_400_000));
        assert_eq!(tier(MAX_DELAY + Duration::from_nanos(1)), None);
        for pair in TIERS.windows(2) {
            assert!(pair[1] <= pair[0] * 3, "{pair:?}");
        }
    }

    #[test]
    fn names_fit_and_differ() {
        let queue = Target::Queue("jobs".into());
        assert_eq!(queue.tier_name(100).as_str(), "tl.delay.q.jobs.100");
        assert_ne!(queue.tier_name(100), Target::Exchange("jobs".into()).tier_name(100));
        let long = |end: char| {
            let name = format!("{}{end}", "ä".repeat(127));
            Target::Queue(ShortString::try_new(name).unwrap()).tier_name(86_400_000)
        };
        assert_ne!(long('a'), long('b'));
        assert!(long('a').as_str().starts_with("tl.delay.q.ä"));
    }
}
