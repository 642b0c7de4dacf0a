//! What is there, and what is wrong with it: the questions and their order.

mod access;
mod banner;
mod probe;
mod reply;
mod rules;

use std::time::Duration;

use lapin::types::ShortString;
use throughline_core::Result;
use throughline_core::capabilities::{self, Lease};
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis, Remedy, Server, Severity};

use self::banner::Banner;
use self::probe::{Probe, There};
use self::rules::{QueueSeen, Rules, quoted, time};
use crate::config::{Destination, Route};
use crate::connect::Link;
use crate::publisher::FRAME;
use crate::transport::Shared;

/// Whose refusals the probes understand.
const PRODUCT: &str = "RabbitMQ";
/// The oldest version that this transport is made for: quorum queues with at-least-once dead letters.
const OLDEST: (u64, u64) = (3, 10);

#[cfg(feature = "fuzzing")]
pub(crate) fn read_reply(text: &str) {
    reply::Inequivalent::read(text);
}

#[cfg(feature = "fuzzing")]
pub(crate) fn read_greeting(payload: &[u8]) {
    banner::parse(payload);
}

/// Looks at all that an address names.
pub(crate) async fn diagnose(
    shared: &Shared,
    destination: &Destination,
    options: &DiagnoseOptions,
) -> Result<Diagnosis> {
    let settings = shared.publishing.settings();
    let link = shared.publishing.link().await?;
    let greeting = Banner::read(settings, shared.publishing.tls()).await;
    let (banner, silent) = match greeting {
        Ok(banner) => (banner, None),
        Err(error) => (Banner::default(), Some(error)),
    };
    let server = Server {
        product: banner.text("product").unwrap_or_else(|| "unknown".into()),
        version: banner.text("version"),
    };
    let mut diagnosis = Diagnosis::new(&destination.address, server);
    if let Some(error) = silent {
        let why = format!("the broker's greeting could not be read: {error}");
        diagnosis.unchecked("the broker's product and version", why, "run it again");
    }
    let version = diagnosis.server.version.as_deref().and_then(major_and_minor);
    let mut look = Look {
        probe: Probe(&link),
        vhost: &settings.vhost,
        known: diagnosis.server.product == PRODUCT,
        rules: Rules { diagnosis: &mut diagnosis, destination, major: version.map(|(major, _)| major) },
    };
    look.broker(&banner, &link, version);
    look.capabilities(&link);
    let exchange_there = look.exchange().await?;
    let queue = look.queue().await?;
    look.dead_letters(&queue).await?;
    look.lease(&queue, options);
    look.elsewhere(&queue);
    look.access(exchange_there, queue.counts.is_some()).await?;
    Ok(diagnosis)
}

struct Look<'a> {
    probe: Probe<'a>,
    vhost: &'a str,
    /// The broker is one whose refusals are understood.
    known: bool,
    rules: Rules<'a>,
}

impl Look<'_> {
    fn broker(&mut self, banner: &Banner, link: &Link, version: Option<(u64, u64)>) {
        let diagnosis = &mut *self.rules.diagnosis;
        for name in ["cluster_name", "platform"] {
            if let Some(text) = banner.text(name) {
                diagnosis.fact("broker", name, text);
            }
        }
        let (channels, heartbeat) = link.agreed();
        diagnosis.fact("broker", "frame_max", link.frame_max() as u64);
        diagnosis.fact("broker", "channel_max", u64::from(channels));
        diagnosis.fact("broker", "heartbeat", format!("{heartbeat}s"));
        if !self.known {
            let product = &diagnosis.server.product;
            let why =
                format!("this broker is {product}, and only RabbitMQ's way to refuse a question is known");
            diagnosis.unchecked("permissions, and how queues and exchanges were declared", why, "");
        } else if version.is_some_and(|version| version < OLDEST) {
            self.rules.find(
                Severity::Warning,
                "broker-old",
                "broker",
                format!("it is older than {}.{}", OLDEST.0, OLDEST.1),
                "dead letters and delayed messages can be lost on their way: at-least-once dead-lettering came with that \
                 version",
                Remedy::text("upgrade it"),
            );
        }
    }

    fn capabilities(&mut self, link: &Link) {
        let destination = self.rules.destination;
        let base = destination.capabilities();
        let mut publisher = base.clone();
        publisher.limits.header_bytes = Some(link.frame_max().saturating_sub(FRAME));
        if let (Some(here), Some(usual)) =
            (publisher.limits.header_bytes, capabilities::RABBITMQ.limits.header_bytes)
            && here < usual
        {
            self.rules.find(
                Severity::Warning,
                "frame-max-small",
                "broker",
                format!("properties and headers of a message may have {here} bytes, usual are {usual}"),
                "messages that other brokers take are refused by this one",
                Remedy::text("set it in rabbitmq.conf, and restart the broker").command("frame_max = 131072"),
            );
        }
        let named = destination.queue.is_some() || destination.exchange.is_some();
        self.rules.diagnosis.publisher = named.then_some(publisher);
        self.rules.diagnosis.consumer = destination.queue.is_some().then_some(base);
        if !named {
            let add = "add ?queue=NAME or ?exchange=NAME to the address";
            self.rules.diagnosis.unchecked("any queue or exchange", "the address names none", add);
        }
    }

    /// Whether the exchange that is published to is there.
    async fn exchange(&mut self) -> Result<bool> {
        let Some(exchange) = self.rules.destination.exchange.clone() else { return Ok(true) };
        let subject = format!("exchange '{exchange}'");
        let there = self.probe.exchange(&exchange).await? != There::No;
        self.rules.diagnosis.fact(&subject, "exists", there);
        if !there {
            let why = "publishing fails with NotFound";
            self.rules.missing("exchange-missing", &subject, why, &self.rules.destination.address);
            return Ok(false);
        }
        if !self.known {
            return Ok(true);
        }
        match self.probe.exchange_declaration(&exchange).await {
            Ok(declared) => {
                let diagnosis = &mut *self.rules.diagnosis;
                diagnosis.fact(&subject, "type", declared.text("type").unwrap_or("topic"));
                diagnosis.fact(&subject, "durable", declared.flag("durable"));
                if !exchange.as_str().starts_with("amq.") {
                    self.rules.exchange(&subject, &declared);
                }
            }
            Err(why) => {
                let what = format!("how {subject} was declared");
                self.rules.diagnosis.unchecked(
                    what,
                    why,
                    self.list("list_exchanges", "name type durable arguments policy"),
                );
            }
        }
        Ok(true)
    }

    async fn queue(&mut self) -> Result<QueueSeen> {
        let mut seen = QueueSeen::default();
        let Some(queue) = self.rules.destination.queue.clone() else { return Ok(seen) };
        let subject = format!("queue '{queue}'");
        let found = self.probe.queue(&queue).await?;
        self.rules.diagnosis.fact(&subject, "exists", found != There::No);
        match found {
            There::No => {
                let why = "publishing to it and consuming from it fail with NotFound";
                self.rules.missing("queue-missing", &subject, why, &self.rules.destination.address);
            }
            There::Locked => self.rules.locked(&subject),
            There::Yes(counts) => {
                seen.counts = Some(counts);
                self.rules.diagnosis.fact(&subject, "ready", u64::from(counts.ready));
                self.rules.diagnosis.fact(&subject, "consumers", u64::from(counts.consumers));
                if self.known {
                    self.declaration(&queue, &subject, &mut seen).await;
                }
                self.rules.queue(&subject, &seen);
            }
        }
        Ok(seen)
    }

    async fn declaration(&mut self, queue: &ShortString, subject: &str, seen: &mut QueueSeen) {
        match self.probe.queue_declaration(queue).await {
            Ok(declared) => {
                let diagnosis = &mut *self.rules.diagnosis;
                let kind = declared.text("x-queue-type").unwrap_or("classic").to_owned();
                diagnosis.fact(subject, "type", kind);
                diagnosis.fact(subject, "durable", declared.flag("durable"));
                for (name, value) in declared.arguments().filter(|(name, _)| *name != "x-queue-type") {
                    diagnosis.fact(subject, name.to_owned(), value);
                }
                seen.declared = Some(declared);
            }
            Err(why) => {
                let columns = "name type durable auto_delete arguments policy";
                let remedy = self.list("list_queues", columns);
                self.rules.diagnosis.unchecked(format!("how {subject} was declared"), why, remedy);
            }
        }
    }

    /// Whether the dead letters of the address, and the broker's own, have a place to go.
    async fn dead_letters(&mut self, queue: &QueueSeen) -> Result<()> {
        let mut routes: Vec<Route> = self.rules.destination.dead_letter.clone().into_iter().collect();
        if let Some((exchange, key)) = queue.dead_letter() {
            let own = self.rules.destination.queue.clone().unwrap_or_default();
            // Without a key of its own, a message keeps the one it came with; of a work queue that is the queue's name.
            let key = key.and_then(|key| ShortString::try_new(key).ok()).unwrap_or(own);
            let route = ShortString::try_new(exchange).ok().map(|exchange| Route { exchange, key });
            routes.extend(route.filter(|route| !routes.contains(route)));
        }
        for route in routes {
            let (subject, found) = if route.exchange.as_str().is_empty() {
                let found = match self.probe.queue(&route.key).await? {
                    There::No => There::No,
                    There::Yes(_) | There::Locked => There::Yes(()),
                };
                (format!("dead-letter queue '{}'", route.key), found)
            } else {
                let found = self.probe.exchange(&route.exchange).await?;
                (format!("dead-letter exchange '{}'", route.exchange), found)
            };
            self.rules.diagnosis.fact(&subject, "exists", found != There::No);
            self.rules.dead_letter_place(&subject, &route, &found);
        }
        Ok(())
    }

    fn lease(&mut self, queue: &QueueSeen, options: &DiagnoseOptions) {
        let Some(name) = &self.rules.destination.queue else { return };
        let subject = format!("queue '{name}'");
        if let (Some(own), Some(consumer)) = (queue.consumer_timeout(), &mut self.rules.diagnosis.consumer) {
            consumer.lease = Lease::Fixed(own);
        }
        let address = &self.rules.destination.address;
        self.rules.diagnosis.check_lease(&subject, options, |handler| {
            let millis = u64::try_from(handler.as_millis()).unwrap_or(u64::MAX).saturating_mul(2);
            let named = address.clone().with_option("consumer_timeout", &time(millis).replace(' ', ""));
            Remedy::text("let the broker wait longer for acks (also in rabbitmq.conf, for its next start), and say so in the address")
                .command(format!("rabbitmqctl eval 'application:set_env(rabbit, consumer_timeout, {millis}).'"))
                .command(format!("consumer_timeout = {millis}"))
                .command(named.to_string())
        });
    }

    /// What AMQP does not show.
    fn elsewhere(&mut self, queue: &QueueSeen) {
        const HIDDEN: &str = "AMQP does not show it";
        let destination = self.rules.destination;
        let policies = self.list("list_policies", "");
        let diagnosis = &mut *self.rules.diagnosis;
        if destination.queue.is_some() {
            let what = "policies: dead letters, limits and times can come from them, too";
            diagnosis.unchecked(what, HIDDEN, policies);
        }
        if destination.queue.is_some()
            && destination.consumer_timeout.is_none()
            && queue.consumer_timeout().is_none()
        {
            let assumed = humantime::format_duration(CONSUMER_TIMEOUT);
            diagnosis.unchecked(
                format!("consumer_timeout: assumed to be {assumed}, RabbitMQ's default"),
                HIDDEN,
                "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).', and say it in the address: \
                 consumer_timeout=DURATION",
            );
        }
        if let Some(assumed) =
            diagnosis.publisher.as_ref().and_then(|publisher| publisher.limits.payload_bytes)
            && destination.payload_limit.is_none()
        {
            diagnosis.unchecked(
                format!("max_message_size: assumed to be {assumed} bytes, RabbitMQ 4's default"),
                HIDDEN,
                "rabbitmqctl eval 'application:get_env(rabbit, max_message_size).', and say it in the address: \
                 payload_limit=BYTES",
            );
        }
        if let Some(exchange) = &destination.exchange {
            let remedy = self.list("list_bindings", "source_name routing_key destination_name");
            let what = format!("which queues are bound to exchange '{exchange}'");
            self.rules.diagnosis.unchecked(what, HIDDEN, remedy);
        }
    }

    /// The command that lists what cannot be asked here.
    fn list(&self, command: &str, columns: &str) -> String {
        format!("rabbitmqctl {command} -p {} {columns}", quoted(self.vhost)).trim_end().to_owned()
    }
}

/// RabbitMQ's default. <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

fn major_and_minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}
