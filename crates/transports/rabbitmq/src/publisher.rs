//! The publisher: envelopes onto a confirm channel.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use opentelemetry::KeyValue;
use throughline_core::driver::{self, Completions, Endpoint, Outgoing};
use throughline_core::{Capabilities, Envelope, Error, ErrorKind, Result, Retry, Timestamp};

use crate::codec::{self, Hop, SHORT};
use crate::config::{Destination, Route, bad, is_pattern};
use crate::confirm::{Job, Sender, Unroutable};
use crate::connect::{answer, close_channel};
use crate::delay::Target;
use crate::error;
use crate::transport::Shared;

/// The frame around a content header: type, channel, length, end.
/// <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>, 4.2.3
pub(crate) const FRAME: usize = 8;
/// What a message costs on the wire beside its properties and payload: the publish method's frame and fixed parts, the
/// header's and the body's frames.
const OVERHEAD: usize = 8 + 9 + 8 + 8;

/// An open destination.
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    sender: Sender,
    routing: Routing,
    mandatory: bool,
    unroutable: Unroutable,
    tier_gone: Unroutable,
    capabilities: Capabilities,
    endpoint: Endpoint,
}

/// How a message's route is found.
enum Routing {
    /// The same for all.
    Fixed(Route),
    /// By message type.
    ByType { exchange: ShortString },
}

impl Publisher {
    /// Opens a destination, which must exist.
    pub(crate) async fn open(shared: Arc<Shared>, destination: &Destination) -> Result<Self> {
        let (routing, target) = match (&destination.exchange, &destination.queue) {
            (Some(exchange), _) => {
                let fixed = destination.key.clone().filter(|key| !is_pattern(key.as_str()));
                let routing = match fixed {
                    Some(key) => Routing::Fixed(Route { exchange: exchange.clone(), key }),
                    None => Routing::ByType { exchange: exchange.clone() },
                };
                (routing, Target::Exchange(exchange.clone()))
            }
            (None, Some(queue)) => {
                (Routing::Fixed(Route::to_queue(queue.clone())), Target::Queue(queue.clone()))
            }
            (None, None) => {
                return Err(bad(
                    &destination.address,
                    "names no destination; add ?queue=NAME or ?exchange=NAME",
                ));
            }
        };
        let link = shared.publishing.link().await?;
        check(&link.channel().await?, &target).await.map_err(|error| missing(error, destination))?;
        let mut capabilities = destination.capabilities();
        capabilities.limits.header_bytes = Some(link.frame_max().saturating_sub(FRAME));
        let hint = destination.hint();
        let unroutable = move |reply: &str| {
            let text = match &target {
                Target::Queue(queue) => {
                    format!("there is no queue '{queue}' ({reply}); make it with: {hint}")
                }
                Target::Exchange(exchange) => {
                    format!("no queue is bound to exchange '{exchange}' that takes the message ({reply})")
                }
            };
            Error::new(ErrorKind::Unroutable, text)
        };
        let tiers = shared.clone();
        let tier_gone = move |_: &str| {
            tiers.tiers.forget_all();
            Error::new(
                ErrorKind::Unroutable,
                "the delay queue has been deleted; it is made again at the next try",
            )
            .with_retry(Retry::Safe)
        };
        Ok(Self {
            sender: Sender::new(shared.publishing.clone()),
            endpoint: endpoint(&shared, &routing),
            routing,
            mandatory: destination.mandatory,
            unroutable: Arc::new(unroutable),
            tier_gone: Arc::new(tier_gone),
            capabilities,
            shared,
        })
    }

    fn route(&self, envelope: &Envelope) -> Result<Route> {
        match &self.routing {
            Routing::Fixed(route) => Ok(route.clone()),
            Routing::ByType { exchange } => {
                let key = envelope.message_type.as_deref().unwrap_or_default();
                let key = ShortString::try_new(key).map_err(|_| key_too_long(key.len()))?;
                Ok(Route { exchange: exchange.clone(), key })
            }
        }
    }

    fn target(&self) -> Target {
        match &self.routing {
            Routing::ByType { exchange } => Target::Exchange(exchange.clone()),
            Routing::Fixed(Route { exchange, key }) if exchange.as_str().is_empty() => {
                Target::Queue(key.clone())
            }
            Routing::Fixed(Route { exchange, .. }) => Target::Exchange(exchange.clone()),
        }
    }

    async fn job(&self, message: Outgoing, index: usize) -> Result<Job> {
        let direct = self.route(&message.envelope)?;
        let delayed = !message.delay.is_zero();
        let route = if delayed {
            self.shared.tiers.route(&self.target(), &direct.key, message.delay).await?
        } else {
            direct
        };
        let properties = codec::encode(&message.envelope, &hop(&message));
        Ok(Job {
            envelope: message.envelope,
            properties,
            route,
            // A tier that has vanished must not swallow messages, whatever becomes of unroutable ones.
            mandatory: self.mandatory || delayed,
            unroutable: if delayed { self.tier_gone.clone() } else { self.unroutable.clone() },
            index,
        })
    }
}

fn hop(message: &Outgoing) -> Hop<'_> {
    Hop {
        sent: Timestamp::now(),
        delay: message.delay,
        failed_attempts: message.failed_attempts,
        history: message.history.as_deref(),
        expires: message.delay.is_zero(),
        dead_letter: None,
    }
}

/// How large a message is for RabbitMQ, in bytes, where a queue can do this. It needs no connection.
///
/// # Errors
/// `LimitExceeded` for properties and headers that the broker would not take, as publishing to it.
pub fn measure(message: &Outgoing, capabilities: &Capabilities) -> Result<usize> {
    let headers = codec::size(&message.envelope, &hop(message));
    match capabilities.limits.header_bytes {
        Some(limit) if headers > limit => Err(Error::limit(
            "the size of all properties and headers",
            format!("{headers} bytes"),
            format!("{limit} bytes"),
        )),
        _ => Ok(OVERHEAD + headers + message.envelope.payload_len()),
    }
}

fn key_too_long(bytes: usize) -> Error {
    Error::limit(
        "the routing key (the message type; another can be set with the address option 'key')",
        format!("{bytes} bytes"),
        format!("{SHORT} bytes"),
    )
}

/// `{exchange}:{routing_key}`, or the one that there is: the semantic conventions' name for it.
fn endpoint(shared: &Shared, routing: &Routing) -> Endpoint {
    let mut attributes = Vec::new();
    let destination = match routing {
        Routing::Fixed(Route { exchange, key }) => {
            attributes.push(KeyValue::new("messaging.rabbitmq.destination.routing_key", key.to_string()));
            match (exchange.as_str(), key.as_str()) {
                ("", "") => "amq.default".to_owned(),
                ("", key) => key.to_owned(),
                (exchange, "") => exchange.to_owned(),
                (exchange, key) => format!("{exchange}:{key}"),
            }
        }
        Routing::ByType { exchange } => exchange.to_string(),
    };
    Endpoint { destination, server: shared.server(), attributes }
}

/// Checks that a target exists, on a channel of its own: a missing one closes it.
pub(crate) async fn check(channel: &Channel, target: &Target) -> Result<()> {
    let none = FieldTable::default();
    let checked = match target {
        Target::Queue(queue) => {
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            answer(channel.queue_declare(queue.clone(), passive, none)).await.map(drop)
        }
        Target::Exchange(exchange) => {
            let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            answer(channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, passive, none)).await
        }
    };
    close_channel(channel).await;
    checked
}

/// The same error; a missing destination names the command that makes it.
pub(crate) fn missing(error: Error, destination: &Destination) -> Error {
    if !error::is_missing(&error) {
        return error;
    }
    let native = error.native::<lapin::Error>().cloned();
    let text = format!("{}; make it with: {}", error.message(), destination.hint());
    let named = Error::new(ErrorKind::NotFound, text);
    match native {
        Some(native) => named.with_source(native),
        None => named,
    }
}

#[async_trait]
impl driver::Publisher for Publisher {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        let envelope = &message.envelope;
        if let Routing::ByType { .. } = self.routing {
            let key = envelope.message_type.as_ref().map_or(0, String::len);
            if key > SHORT {
                return Err(key_too_long(key));
            }
        }
        measure(message, &self.capabilities)
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        let done = Arc::new(done);
        let mut jobs = Vec::with_capacity(batch.len());
        for (index, message) in batch.into_iter().enumerate() {
            match self.job(message, index).await {
                Ok(job) => jobs.push(job),
                Err(error) => done.complete(index, Err(error)),
            }
        }
        self.sender.send(jobs, &done).await;
    }

    async fn close(&self) -> Result<()> {
        self.sender.close().await;
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("destination", &self.endpoint.destination).finish_non_exhaustive()
    }
}
