//! Creating, deleting, purging, counting and browsing, each on a channel of its own: a refusal closes it.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lapin::options::{
    BasicGetOptions, BasicNackOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use throughline_core::driver::{Depth, Pieces};
use throughline_core::{ErrorKind, Result, Timestamp};

use crate::config::{Destination, bad};
use crate::connect::{answer, close_channel};
use crate::delay::{TIERS, Target};
use crate::error::map;
use crate::message::deliver;
use crate::publisher::{check, missing};
use crate::transport::Shared;

/// A delivery limit that is none. RabbitMQ 4 drops or dead-letters a message after 20 deliveries otherwise, and every
/// version puts a message that is given back at the end of the queue where there is no limit, near its head where there
/// is one (<https://www.rabbitmq.com/docs/quorum-queues#repeated-requeues>). `-1`, which means none since 4.0, makes 3.x
/// drop a message at its first return (seen with 3.10).
pub(crate) const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// So many browsed messages are given back at once: half of what a channel sends to a quorum queue before it waits.
const GIVEN_BACK: usize = 16;
/// How long it may take until they are ready again.
const GIVING_BACK: Duration = Duration::from_millis(500);

/// Runs requests on a channel that is closed afterwards.
macro_rules! on_channel {
    ($shared:expr, $channel:ident => $requests:expr) => {{
        let $channel = $shared.publishing.link().await?.channel().await?;
        let result: Result<_> = async { $requests }.await;
        close_channel(&$channel).await;
        result
    }};
}

/// Creates what the address names: dead-letter queue, queue, exchange, binding.
pub(crate) async fn create(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let wanted = Wanted::of(destination)?;
    let mut made = Vec::new();
    if let Some(route) = &destination.dead_letter {
        if route.exchange.as_str().is_empty() {
            declare(shared, &route.key, Wanted::dead_letters()).await?;
            made.push(format!("quorum queue '{}' for dead letters", route.key));
        } else {
            let target = Target::Exchange(route.exchange.clone());
            check(&shared.publishing.link().await?.channel().await?, &target).await?;
        }
    }
    if let Some(exchange) = &destination.exchange {
        if exchange.as_str().starts_with("amq.") {
            // The broker's own: they exist, and must not be declared.
            let target = Target::Exchange(exchange.clone());
            check(&shared.publishing.link().await?.channel().await?, &target).await?;
        } else {
            let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            let kind = ExchangeKind::Custom(wanted.exchange_type.to_owned());
            on_channel!(shared, channel => {
                let declared = channel.exchange_declare(exchange.clone(), kind, durable, FieldTable::default());
                answer(declared).await
            })?;
            made.push(format!("{} exchange '{exchange}'", wanted.exchange_type));
        }
    }
    if let Some(queue) = &destination.queue {
        declare(shared, queue, wanted.arguments).await?;
        made.push(format!("{} queue '{queue}'", if wanted.is_quorum { "quorum" } else { "classic" }));
        if let Some(exchange) = &destination.exchange {
            let key = &wanted.binding;
            on_channel!(shared, channel => {
                let (queue, exchange, options) = (queue.clone(), exchange.clone(), QueueBindOptions::default());
                answer(channel.queue_bind(queue, exchange, key.clone(), options, FieldTable::default())).await
            })?;
            made.push(format!("binding of queue '{queue}' to exchange '{exchange}' with key '{key}'"));
        }
    }
    if made.is_empty() {
        return Err(bad(&destination.address, "names nothing to create; add ?queue=NAME or ?exchange=NAME"));
    }
    Ok(made)
}

/// What a create asks for.
struct Wanted {
    is_quorum: bool,
    arguments: FieldTable,
    exchange_type: &'static str,
    binding: ShortString,
}

impl Wanted {
    fn of(destination: &Destination) -> Result<Self> {
        let address = &destination.address;
        let is_quorum = address.one_of("queue_type", &["quorum", "classic"])? != Some("classic");
        let types: [&'static str; 4] = ["topic", "fanout", "direct", "headers"];
        let exchange_type = address.one_of("exchange_type", &types)?;
        let exchange_type = types.into_iter().find(|name| Some(*name) == exchange_type).unwrap_or("topic");
        let binding = match (&destination.key, exchange_type) {
            (Some(key), _) => key.clone(),
            (None, "topic") => "#".into(),
            (None, "direct") if destination.queue.is_some() => {
                return Err(bad(
                    address,
                    "a direct exchange needs a key to bind the queue with; add &key=KEY",
                ));
            }
            (None, _) => ShortString::default(),
        };
        let mut arguments = FieldTable::default();
        set_text(&mut arguments, "x-queue-type", if is_quorum { "quorum" } else { "classic" });
        if address.one_of("single_active", &["true", "false"])? == Some("true") {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        if let Some(priority) = address.parsed::<u8>("max_priority", "a number from 1 to 255")? {
            if is_quorum {
                return Err(bad(address, "'max_priority' is for classic queues; add &queue_type=classic"));
            }
            arguments.insert("x-max-priority".into(), AMQPValue::ShortShortUInt(priority));
        }
        if let Some(length) = address.parsed::<u32>("max_length", "a number of messages")? {
            set_number(&mut arguments, "x-max-length", length.into());
            // The default drops the oldest message.
            set_text(&mut arguments, "x-overflow", "reject-publish");
        }
        match address.parsed::<u32>("delivery_limit", "a number of deliveries")? {
            Some(_) if !is_quorum => return Err(bad(address, "'delivery_limit' is for quorum queues")),
            Some(limit) => set_number(&mut arguments, "x-delivery-limit", limit.into()),
            None if is_quorum => set_number(&mut arguments, "x-delivery-limit", NO_DELIVERY_LIMIT),
            None => {}
        }
        if let Some(ttl) = address.duration("message_ttl")? {
            set_number(&mut arguments, "x-message-ttl", crate::codec::millis(ttl));
        }
        if let Some(route) = &destination.dead_letter {
            set_text(&mut arguments, "x-dead-letter-exchange", route.exchange.as_str());
            set_text(&mut arguments, "x-dead-letter-routing-key", route.key.as_str());
            if is_quorum {
                // At most once, the default, can lose a message that expires or exceeds the delivery limit.
                set_text(&mut arguments, "x-dead-letter-strategy", "at-least-once");
                set_text(&mut arguments, "x-overflow", "reject-publish");
            }
        }
        Ok(Self { is_quorum, arguments, exchange_type, binding })
    }

    fn dead_letters() -> FieldTable {
        let mut arguments = FieldTable::default();
        set_text(&mut arguments, "x-queue-type", "quorum");
        set_number(&mut arguments, "x-delivery-limit", NO_DELIVERY_LIMIT);
        arguments
    }
}

/// Whether an address contradicts itself.
#[cfg(feature = "fuzzing")]
pub(crate) fn check_wanted(destination: &Destination) -> Result<()> {
    Wanted::of(destination).map(drop)
}

fn set_text(arguments: &mut FieldTable, name: &'static str, value: &str) {
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
}

fn set_number(arguments: &mut FieldTable, name: &'static str, value: i64) {
    arguments.insert(name.into(), AMQPValue::LongLongInt(value));
}

async fn declare(shared: &Shared, queue: &ShortString, arguments: FieldTable) -> Result<()> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    on_channel!(shared, channel => answer(channel.queue_declare(queue.clone(), durable, arguments)).await)
        .map(drop)
}

/// Deletes the queue with its delay queues, and the exchange unless others are bound to it.
pub(crate) async fn delete(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let mut deleted = Vec::new();
    if let Some(queue) = &destination.queue {
        if exists(shared, &Target::Queue(queue.clone())).await? {
            let messages = delete_queue(shared, queue).await?;
            deleted.push(format!("queue '{queue}' with {messages} messages"));
        }
        delete_tiers(shared, &Target::Queue(queue.clone())).await?;
    }
    if let Some(exchange) = destination.exchange.as_ref().filter(|name| !name.as_str().starts_with("amq."))
        && exists(shared, &Target::Exchange(exchange.clone())).await?
    {
        let unused = ExchangeDeleteOptions { if_unused: true, ..ExchangeDeleteOptions::default() };
        match on_channel!(shared, channel => answer(channel.exchange_delete(exchange.clone(), unused)).await)
        {
            Ok(()) => {
                deleted.push(format!("exchange '{exchange}'"));
                delete_tiers(shared, &Target::Exchange(exchange.clone())).await?;
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                deleted.push(format!("not exchange '{exchange}': other queues are bound to it"));
            }
            Err(error) => return Err(error),
        }
    }
    if destination.queue.is_none() && destination.exchange.is_none() {
        return Err(bad(&destination.address, "names nothing to delete; add ?queue=NAME or ?exchange=NAME"));
    }
    if let Some(route) = destination.dead_letter.as_ref().filter(|route| route.exchange.as_str().is_empty()) {
        deleted.push(format!("not the dead-letter queue '{}': delete it by ?queue={}", route.key, route.key));
    }
    shared.tiers.forget_all();
    Ok(deleted)
}

async fn exists(shared: &Shared, target: &Target) -> Result<bool> {
    match check(&shared.publishing.link().await?.channel().await?, target).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn delete_queue(shared: &Shared, queue: &ShortString) -> Result<u32> {
    on_channel!(shared, channel => answer(channel.queue_delete(queue.clone(), QueueDeleteOptions::default())).await)
}

/// Deleting what does not exist is no error to the broker.
async fn delete_tiers(shared: &Shared, target: &Target) -> Result<()> {
    on_channel!(shared, channel => {
        for tier in TIERS {
            let name = target.tier_name(tier);
            answer(channel.queue_delete(name.clone(), QueueDeleteOptions::default())).await?;
            if let Target::Exchange(_) = target {
                answer(channel.exchange_delete(name, ExchangeDeleteOptions::default())).await?;
            }
        }
        Ok(())
    })
}

/// Deletes what is ready.
pub(crate) async fn purge(shared: &Shared, destination: &Destination) -> Result<u64> {
    let queue = destination.source()?;
    let purged = on_channel!(shared, channel => answer(channel.queue_purge(queue, QueuePurgeOptions::default())).await);
    purged.map(u64::from).map_err(|error| missing(error, destination))
}

/// Counts what is ready; the broker does not say by AMQP how much is unsettled.
pub(crate) async fn depth(shared: &Shared, destination: &Destination) -> Result<Depth> {
    let queue = destination.source()?;
    let counted: Result<usize> = on_channel!(shared, channel => ready(&channel, &queue).await);
    let ready = counted.map_err(|error| missing(error, destination))? as u64;
    Ok(Depth { ready, unsettled: None, delayed: None })
}

/// Takes messages off the queue, and gives them back: their delivery counts rise.
pub(crate) async fn browse(
    shared: &Shared,
    destination: &Destination,
    max: NonZeroUsize,
    mut pieces: Pieces,
) -> Result<()> {
    let queue = destination.source()?;
    let read: Result<()> = on_channel!(shared, channel => {
        let mut taken = Vec::new();
        let read = read(&channel, &queue, max.get(), &mut taken, &mut pieces).await;
        // Whatever its order, the broker gives back what is left.
        if let Err(error) = give_back(&channel, &queue, &taken).await {
            tracing::debug!(%error, "browsed messages are given back with their channel");
        }
        read
    });
    read.map_err(|error| missing(error, destination))?;
    pieces.finish().await;
    Ok(())
}

/// In their order, a few at a time. To a quorum queue each get is a consumer of its own, and of what is given back at once,
/// or with the channel, it goes by the consumers' names: the tenth before the second.
async fn give_back(channel: &Channel, queue: &ShortString, taken: &[u64]) -> Result<()> {
    let requeue = BasicNackOptions { multiple: false, requeue: true };
    let mut is_alone = true;
    for tags in taken.chunks(GIVEN_BACK) {
        let before = if is_alone { ready(channel, queue).await? } else { 0 };
        for tag in tags {
            channel.basic_nack(*tag, requeue).await.map_err(map)?;
        }
        // Others who consume meanwhile have them: there is no order to wait for.
        is_alone = is_alone && is_back(channel, queue, before + tags.len()).await?;
    }
    Ok(())
}

/// Whether so many become ready soon.
async fn is_back(channel: &Channel, queue: &ShortString, count: usize) -> Result<bool> {
    let deadline = Instant::now() + GIVING_BACK;
    while ready(channel, queue).await? < count {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(true)
}

async fn ready(channel: &Channel, queue: &ShortString) -> Result<usize> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = answer(channel.queue_declare(queue.clone(), passive, FieldTable::default())).await?;
    Ok(usize::try_from(declared.message_count()).unwrap_or(usize::MAX))
}

async fn read(
    channel: &Channel,
    queue: &ShortString,
    max: usize,
    taken: &mut Vec<u64>,
    pieces: &mut Pieces,
) -> Result<()> {
    for _ in 0..max {
        let got = answer(channel.basic_get(queue.clone(), BasicGetOptions::default())).await?;
        let Some(message) = got else { break };
        taken.push(message.delivery.delivery_tag);
        // Epoch 0: no consumer's, so that it cannot be settled.
        if !pieces.add(deliver(message.delivery, 0, Timestamp::now())).await {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Result<Wanted> {
        Wanted::of(&Destination::of(&text.parse().unwrap()).unwrap())
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (address, expected) in [
            ("amqp://h/?queue=q&max_priority=5", "classic"),
            ("amqp://h/?queue=q&queue_type=classic&delivery_limit=5", "quorum"),
            ("amqp://h/?queue=q&exchange=e&exchange_type=direct", "needs a key"),
            ("amqp://h/?queue=q&queue_type=mirrored", "quorum or classic"),
            ("amqp://h/?queue=q&max_length=many", "a number of messages"),
        ] {
            let error = wanted(address).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(expected), "{address}: {error}");
        }
    }

    #[test]
    fn a_dead_letter_queue_is_reached_at_least_once() {
        let arguments = wanted("amqp://h/?queue=q&dead_letter=d").unwrap().arguments;
        let text = |name: &str| {
            arguments.inner().get(name).and_then(AMQPValue::as_long_string).map(ToString::to_string)
        };
        assert_eq!(text("x-dead-letter-strategy").as_deref(), Some("at-least-once"));
        assert_eq!(text("x-dead-letter-exchange").as_deref(), Some(""));
        assert_eq!(text("x-dead-letter-routing-key").as_deref(), Some("d"));
        assert_eq!(text("x-overflow").as_deref(), Some("reject-publish"));
    }
}
