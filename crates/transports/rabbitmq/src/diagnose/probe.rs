//! Questions to the broker that change nothing, each on a channel of its own, because a refusal closes it.
//!
//! What AMQP cannot ask is asked by requests that the broker must refuse: the reason of the refusal is the answer. Each
//! has a part that is never valid, so that it cannot succeed even where the destination vanishes meanwhile:
//!
//! - how a queue was declared: a declaration with an argument of streams that is not valid (`x-max-age`). Where the queue
//!   exists and is none, the broker does not look at it, and compares the others ([`Inequivalent`]); where the queue does
//!   not exist, it refuses to make one;
//! - how an exchange was declared: one with an alternate exchange that is a number;
//! - whether we may consume: a consumer whose priority is a text. Permission is checked first;
//! - whether we may publish: a message whose expiration is not a number. Permission is checked first, nothing is routed;
//! - whether we may make delay queues: a queue that expires after a text.
//!
//! The orders of these checks are RabbitMQ's (`rabbit_channel.erl`, the same from 3.8 to 4.x); other products are not
//! asked. Each refusal is a line in the broker's log.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, ExchangeKind};
use throughline_core::{Error, ErrorKind, Result};

use super::reply::Inequivalent;
use crate::config::Route;
use crate::connect::{Link, answer, close_channel};
use crate::error;

/// A queue has some twenty arguments; more questions than that lead nowhere.
const MOST_QUESTIONS: usize = 32;
/// How long a publish that must be refused may take. A broker that is short of memory or disk reads it only later.
const REFUSAL: Duration = Duration::from_secs(5);

/// Whether something is there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum There<T> {
    Yes(T),
    No,
    /// It is another connection's own.
    Locked,
}

/// How much a queue holds, and who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ready: u32,
    pub(crate) consumers: u32,
}

/// How something was declared.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Declared {
    /// `durable`, `auto_delete`; of an exchange `internal` and `type` too; and the arguments, by their names.
    properties: BTreeMap<String, AMQPValue>,
}

impl Declared {
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.properties.get(name), Some(AMQPValue::Boolean(true)))
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.properties.get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            _ => None,
        }
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        match self.properties.get(name)? {
            AMQPValue::LongLongInt(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The arguments that are set.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = (&str, String)> {
        self.properties.iter().filter(|(name, _)| name.contains('-')).map(|(name, value)| {
            let text = match value {
                AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
                AMQPValue::LongLongInt(number) => number.to_string(),
                AMQPValue::Boolean(flag) => flag.to_string(),
                other => format!("{other:?}"),
            };
            (name.as_str(), text)
        })
    }

    #[cfg(test)]
    pub(crate) fn of(properties: &[(&str, AMQPValue)]) -> Self {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Self { properties }
    }

    /// Takes an answer in; `None` when it has been given before, and so was not understood.
    fn learn(&mut self, answer: Inequivalent) -> Option<()> {
        let value = answer.current?;
        match self.properties.insert(answer.name, value.clone()) {
            Some(before) if before == value => None,
            _ => Some(()),
        }
    }

    fn table(&self) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in self.properties.iter().filter(|(name, _)| name.contains('-')) {
            if let Ok(name) = ShortString::try_new(name.as_str()) {
                table.insert(name, value.clone());
            }
        }
        table
    }
}

/// Whether the user may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    Denied,
    /// The broker takes messages later: it is short of memory or disk.
    Blocked,
    /// Not known, and why.
    Unknown(String),
}

/// Asks over one connection.
pub(crate) struct Probe<'a>(pub(crate) &'a Link);

impl Probe<'_> {
    /// Whether a queue is there, and its counts.
    pub(crate) async fn queue(&self, queue: &ShortString) -> Result<There<Counts>> {
        let channel = self.0.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = answer(channel.queue_declare(queue.clone(), passive, FieldTable::default())).await;
        close_channel(&channel).await;
        there(
            declared.map(|queue| Counts { ready: queue.message_count(), consumers: queue.consumer_count() }),
        )
    }

    /// Whether an exchange is there.
    pub(crate) async fn exchange(&self, exchange: &ShortString) -> Result<There<()>> {
        let channel = self.0.channel().await?;
        let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default();
        let declared =
            answer(channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, passive, none)).await;
        close_channel(&channel).await;
        there(declared)
    }

    /// How a queue that is there was declared; an error says why that cannot be known.
    pub(crate) async fn queue_declaration(&self, queue: &ShortString) -> Result<Declared, String> {
        let mut declared = Declared::default();
        declared.properties.insert("durable".into(), AMQPValue::Boolean(true));
        for _ in 0..MOST_QUESTIONS {
            let channel = self.0.channel().await.map_err(|error| error.to_string())?;
            let options = QueueDeclareOptions {
                durable: declared.flag("durable"),
                auto_delete: declared.flag("auto_delete"),
                ..QueueDeclareOptions::default()
            };
            let mut arguments = declared.table();
            arguments.insert("x-max-age".into(), AMQPValue::LongString("never".into()));
            let answered = answer(channel.queue_declare(queue.clone(), options, arguments)).await;
            close_channel(&channel).await;
            match answered {
                // All is as declared.
                Ok(_) => return Ok(declared),
                Err(error) => learn(&mut declared, &error)?,
            }
            // A stream does look at that argument, and there is nothing more to know of it here.
            if declared.text("x-queue-type") == Some("stream") {
                return Ok(declared);
            }
        }
        Err("the broker's answers have no end".into())
    }

    /// How an exchange that is there was declared; an error says why that cannot be known.
    pub(crate) async fn exchange_declaration(&self, exchange: &ShortString) -> Result<Declared, String> {
        const ALTERNATE: &str = "alternate-exchange";
        let mut declared = Declared::default();
        declared.properties.insert("durable".into(), AMQPValue::Boolean(true));
        for _ in 0..MOST_QUESTIONS {
            let channel = self.0.channel().await.map_err(|error| error.to_string())?;
            let options = ExchangeDeclareOptions {
                durable: declared.flag("durable"),
                auto_delete: declared.flag("auto_delete"),
                internal: declared.flag("internal"),
                ..ExchangeDeclareOptions::default()
            };
            let kind = ExchangeKind::Custom(declared.text("type").unwrap_or("topic").to_owned());
            let mut arguments = FieldTable::default();
            arguments.insert(ALTERNATE.into(), AMQPValue::LongInt(1));
            let answered = answer(channel.exchange_declare(exchange.clone(), kind, options, arguments)).await;
            close_channel(&channel).await;
            let Err(error) = answered else { return Err("the broker took what it must refuse".into()) };
            // It is compared last, so that all else is known by now.
            match inequivalent(&error) {
                Some(Inequivalent { name, current }) if name == ALTERNATE => {
                    declared.properties.extend(current.map(|current| (name, current)));
                    return Ok(declared);
                }
                _ => learn(&mut declared, &error)?,
            }
        }
        Err("the broker's answers have no end".into())
    }

    /// Whether we may consume from a queue.
    pub(crate) async fn may_consume(&self, queue: &ShortString) -> Result<Access> {
        let channel = self.0.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-priority".into(), AMQPValue::LongString("none".into()));
        let asked = async {
            // Were it to succeed after all, it would take no more than one message, for the moment until the channel closes.
            answer(channel.basic_qos(1, BasicQosOptions::default())).await?;
            let (tag, options) = (ShortString::default(), BasicConsumeOptions::default());
            answer(channel.basic_consume(queue.clone(), tag, options, arguments)).await.map(drop)
        };
        let answered = asked.await;
        close_channel(&channel).await;
        access(answered, "x-priority")
    }

    /// Whether we may make delay queues.
    pub(crate) async fn may_make(&self, queue: &ShortString) -> Result<Access> {
        let channel = self.0.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongString("never".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let answered = answer(channel.queue_declare(queue.clone(), options, arguments)).await.map(drop);
        close_channel(&channel).await;
        access(answered, "x-expires")
    }

    /// Whether we may publish to a route. To be asked last: where the broker is short of memory or disk, it reads nothing
    /// more from this connection after a publish.
    pub(crate) async fn may_publish(&self, route: &Route) -> Result<Access> {
        let asking = async {
            let channel = self.0.channel().await?;
            let answered = publish(&channel, route).await;
            close_channel(&channel).await;
            let access = access(answered, "expiration")?;
            // The refusal can come before the broker says that it reads no more; an answer to this says that it does.
            close_channel(&self.0.channel().await?).await;
            Ok(access)
        };
        let asked = tokio::time::timeout(REFUSAL, asking).await;
        match asked {
            _ if self.0.is_blocked() => Ok(Access::Blocked),
            Ok(access) => access,
            Err(_) => Ok(Access::Unknown("the broker does not answer".into())),
        }
    }
}

async fn publish(channel: &Channel, route: &Route) -> Result<()> {
    answer(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let properties = BasicProperties::default().with_expiration("never".into());
    let (exchange, key, options) =
        (route.exchange.clone(), route.key.clone(), BasicPublishOptions::default());
    let confirm = answer(channel.basic_publish(exchange, key, options, b"", properties)).await?;
    answer(confirm).await.map(drop)
}

fn there<T>(answered: Result<T>) -> Result<There<T>> {
    match answered {
        Ok(there) => Ok(There::Yes(there)),
        Err(error) if error::is_missing(&error) => Ok(There::No),
        Err(error) if error::is_locked(&error) => Ok(There::Locked),
        Err(error) => Err(error),
    }
}

fn inequivalent(error: &Error) -> Option<Inequivalent> {
    let (_, text) = error::reply(error.native()?)?;
    Inequivalent::read(&text)
}

fn learn(declared: &mut Declared, error: &Error) -> Result<(), String> {
    match inequivalent(error) {
        Some(answer) => declared.learn(answer).ok_or_else(|| "the broker's answer is not understood".into()),
        None if error.kind() == ErrorKind::PermissionDenied => {
            Err("only a user with the permission to configure it can ask".into())
        }
        None => Err(error.message().to_owned()),
    }
}

/// What a refusal means: of the part that is never valid, that permission had been given.
fn access(answered: Result<()>, invalid: &str) -> Result<Access> {
    match answered {
        Ok(()) => Ok(Access::Unknown("the broker took what it must refuse".into())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Access::Denied),
        Err(error) if error.message().contains(invalid) => Ok(Access::Granted),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(Access::Unknown(error.message().to_owned())),
        // Told as missing elsewhere.
        Err(error) if error::is_missing(&error) => Ok(Access::Unknown("it does not exist".into())),
        Err(error) => Err(error),
    }
}
