//! What is wrong with what was seen: no I/O here.

use std::fmt::Display;
use std::time::Duration;

use throughline_core::Address;
use throughline_core::diagnosis::{Diagnosis, Finding, Remedy, Severity};

use super::probe::{Counts, Declared, There};
use crate::admin::NO_DELIVERY_LIMIT;
use crate::config::{Destination, Route};

/// RabbitMQ's own delivery limit for quorum queues, since 4.0.
/// <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>
const DEFAULT_DELIVERY_LIMIT: u64 = 20;

/// Policies are not seen by AMQP, and may set what the queue's own arguments do not.
const UNLESS: &str = " (unless a policy sets one)";

/// A queue, as far as it could be seen.
#[derive(Clone, Debug, Default)]
pub(super) struct QueueSeen {
    pub(super) counts: Option<Counts>,
    pub(super) declared: Option<Declared>,
}

impl QueueSeen {
    fn text(&self, argument: &str) -> Option<&str> {
        self.declared.as_ref()?.text(argument)
    }

    fn number(&self, argument: &str) -> Option<u64> {
        self.declared.as_ref()?.number(argument)
    }

    fn is_quorum(&self) -> bool {
        self.text("x-queue-type") == Some("quorum")
    }

    /// Where the broker dead-letters to.
    pub(super) fn dead_letter(&self) -> Option<(&str, Option<&str>)> {
        self.text("x-dead-letter-exchange").map(|exchange| (exchange, self.text("x-dead-letter-routing-key")))
    }

    /// The time after which RabbitMQ takes an unsettled delivery away, where it is the queue's own.
    pub(super) fn consumer_timeout(&self) -> Option<Duration> {
        self.number("x-consumer-timeout").map(Duration::from_millis)
    }
}

/// What findings are told about.
pub(super) struct Rules<'a> {
    pub(super) diagnosis: &'a mut Diagnosis,
    pub(super) destination: &'a Destination,
    /// The broker's major version, where it says.
    pub(super) major: Option<u64>,
}

impl Rules<'_> {
    pub(super) fn find(
        &mut self,
        severity: Severity,
        code: &'static str,
        subject: &str,
        what: impl Into<String>,
        why: &str,
        remedy: Remedy,
    ) {
        self.diagnosis.findings.push(Finding {
            severity,
            code,
            subject: subject.to_owned(),
            what: what.into(),
            why: why.to_owned(),
            remedy,
        });
    }

    /// Something that must be there and is not.
    pub(super) fn missing(&mut self, code: &'static str, subject: &str, why: &str, made_by: &Address) {
        let remedy = Remedy::text("create it").command(create(made_by));
        self.find(Severity::Error, code, subject, "it does not exist", why, remedy);
    }

    /// Another connection's own queue.
    pub(super) fn locked(&mut self, subject: &str) {
        let remedy = Remedy::text(
            "let its owner declare it without `exclusive`, or use another queue; once it is gone, create it",
        )
        .command(create(&self.destination.address));
        self.find(
            Severity::Error,
            "queue-exclusive",
            subject,
            "it is exclusive to another connection",
            "nobody else can consume from it, and it is deleted with that connection",
            remedy,
        );
    }

    /// All that a queue's declaration and counts tell.
    pub(super) fn queue(&mut self, subject: &str, seen: &QueueSeen) {
        if let Some(counts) = seen.counts {
            self.counts(subject, counts, seen);
        }
        if seen.declared.is_none() {
            return;
        }
        self.kind(subject, seen);
        if seen.text("x-queue-type") != Some("stream") {
            self.delivery_limit(subject, seen);
            self.overflow(subject, seen);
            self.expiry(subject, seen);
            self.dead_letter(subject, seen);
        }
    }

    fn counts(&mut self, subject: &str, counts: Counts, seen: &QueueSeen) {
        if counts.ready > 0 && counts.consumers == 0 {
            self.find(
                Severity::Note,
                "no-consumer",
                subject,
                format!("{} messages are ready, and nobody consumes", counts.ready),
                "they wait until somebody does",
                Remedy::text("start a consumer")
                    .command(format!("throughline consume {}", quoted(&self.destination.address))),
            );
        }
        let single = seen.declared.as_ref().is_some_and(|declared| declared.flag("x-single-active-consumer"));
        if counts.consumers > 1 && seen.declared.is_some() && !single {
            let remedy = self.anew(&[("single_active", "true")]);
            self.find(
                Severity::Note,
                "consumers-compete",
                subject,
                format!("{} consumers compete", counts.consumers),
                "messages of one ordering key can be processed by several at once, and so out of order",
                remedy,
            );
        }
    }

    fn kind(&mut self, subject: &str, seen: &QueueSeen) {
        let flag = |name| seen.declared.as_ref().is_some_and(|declared| declared.flag(name));
        let anew = self.anew(&[]);
        if !flag("durable") {
            let (what, why) = ("it is not durable", "a restart of the broker deletes it with its messages");
            self.find(Severity::Error, "queue-not-durable", subject, what, why, anew.clone());
        }
        if flag("auto_delete") {
            let why = "it is deleted with its messages when its last consumer leaves";
            self.find(Severity::Error, "queue-auto-delete", subject, "it deletes itself", why, anew.clone());
        }
        match seen.text("x-queue-type") {
            Some("quorum") => {}
            Some("stream") => self.find(
                Severity::Error,
                "queue-is-a-stream",
                subject,
                "it is a stream",
                "an ack removes nothing from a stream, and every consumer gets everything",
                anew,
            ),
            _ => {
                let meant = self.destination.address.option("queue_type") == Some("classic");
                self.find(
                    if meant { Severity::Note } else { Severity::Warning },
                    "queue-classic",
                    subject,
                    "it is a classic queue",
                    "it lives on one node, and is unavailable or lost with that; deliveries are not counted, and what the \
                     broker dead-letters can be lost on the way",
                    anew,
                );
            }
        }
    }

    fn delivery_limit(&mut self, subject: &str, seen: &QueueSeen) {
        let set = seen.number("x-delivery-limit");
        let limit = match set {
            Some(limit) => limit,
            None if seen.is_quorum() && self.major.is_some_and(|major| major >= 4) => DEFAULT_DELIVERY_LIMIT,
            None => return,
        };
        let none = u64::try_from(NO_DELIVERY_LIMIT).unwrap_or(u64::MAX);
        if limit >= none || seen.dead_letter().is_some() {
            return;
        }
        let by = if set.is_none() { "by RabbitMQ's default " } else { "" };
        let what =
            format!("{by}a message is dropped after {limit} returns, and there is no dead letter{UNLESS}");
        let remedy = self.with_dead_letter();
        self.find(
            Severity::Error,
            "delivery-limit-without-dead-letter",
            subject,
            what,
            "a message that fails, or is held by consumers that crash or stop, too often is lost without a trace",
            remedy,
        );
    }

    fn overflow(&mut self, subject: &str, seen: &QueueSeen) {
        let refuses = seen.text("x-overflow").is_some_and(|overflow| overflow.starts_with("reject-publish"));
        if refuses {
            return;
        }
        let limits: Vec<_> = [("x-max-length", "messages"), ("x-max-length-bytes", "bytes")]
            .into_iter()
            .filter_map(|(name, unit)| seen.number(name).map(|most| format!("{most} {unit}")))
            .collect();
        if limits.is_empty() {
            return;
        }
        let kept = seen.dead_letter().is_some();
        let what = format!(
            "above {} the oldest messages are {}",
            limits.join(" or "),
            if kept { "dead-lettered" } else { "dropped" }
        );
        let length = seen.number("x-max-length").map(|most| most.to_string());
        let remedy = match &length {
            Some(most) => self.anew(&[("max_length", most)]),
            None => self.anew(&[]),
        };
        self.find(
            if kept { Severity::Warning } else { Severity::Error },
            "drops-oldest",
            subject,
            what,
            "accepted messages disappear from the queue while it is full; one made by `create` refuses new ones instead",
            remedy,
        );
    }

    fn expiry(&mut self, subject: &str, seen: &QueueSeen) {
        if let Some(ttl) = seen.number("x-message-ttl") {
            let kept = seen.dead_letter().is_some();
            let meant = self.destination.address.option("message_ttl").is_some();
            let what = format!(
                "a message that waits for {} is {}",
                time(ttl),
                if kept { "dead-lettered" } else { "dropped" }
            );
            let remedy = if kept { self.anew(&[]) } else { self.with_dead_letter() };
            self.find(
                if kept || meant { Severity::Note } else { Severity::Warning },
                "message-ttl",
                subject,
                what,
                "while nobody consumes, or not fast enough, messages leave the queue unprocessed",
                remedy,
            );
        }
        if let Some(expires) = seen.number("x-expires") {
            let remedy = self.anew(&[]);
            self.find(
                Severity::Warning,
                "queue-expires",
                subject,
                format!("it is deleted after {} without a consumer", time(expires)),
                "its messages are lost with it",
                remedy,
            );
        }
    }

    fn dead_letter(&mut self, subject: &str, seen: &QueueSeen) {
        let wanted = self.destination.dead_letter.clone();
        let Some((exchange, key)) = seen.dead_letter() else {
            let (severity, what) = match &wanted {
                Some(_) => {
                    (Severity::Warning, "the broker knows no dead letter for it, only this address does")
                }
                None => (Severity::Note, "it has no dead letter"),
            };
            let why = match &wanted {
                Some(_) => "rejected messages get there; what the broker itself takes out is dropped",
                None => "a rejected message has nowhere to go: it stays, and is delivered again",
            };
            let remedy = self.with_dead_letter();
            self.find(severity, "no-dead-letter", subject, format!("{what}{UNLESS}"), why, remedy);
            return;
        };
        if let Some(Route { exchange: wanted, key: to }) = wanted
            && (wanted.as_str(), Some(to.as_str())) != (exchange, key)
        {
            let there = match (exchange, key) {
                ("", Some(queue)) => format!("queue '{queue}'"),
                (exchange, Some(key)) => format!("exchange '{exchange}' with key '{key}'"),
                (exchange, None) => format!("exchange '{exchange}' with each message's own key"),
            };
            let remedy = self.anew(&[]);
            self.find(
                Severity::Warning,
                "dead-letter-differs",
                subject,
                format!("the broker's dead letters of it go to {there}, and not where this address says"),
                "what consumers reject and what the broker takes out end up in different places",
                remedy,
            );
        }
        let strategy = seen.text("x-dead-letter-strategy");
        let refuses = seen.text("x-overflow") == Some("reject-publish");
        if seen.is_quorum() && (strategy != Some("at-least-once") || !refuses) {
            let what = match strategy {
                Some("at-least-once") => {
                    "its dead-letter strategy at-least-once has no effect without overflow=reject-publish"
                }
                _ => "its dead-letter strategy is at-most-once",
            };
            let to = match (exchange, key) {
                ("", Some(queue)) => self.anew(&[("dead_letter", queue)]),
                _ => self.with_dead_letter(),
            };
            self.find(
                Severity::Warning,
                "dead-letter-at-most-once",
                subject,
                what,
                "a message that the broker dead-letters is lost where the dead-letter queue is not available",
                to,
            );
        }
    }

    /// Whether the place for dead letters is there.
    pub(super) fn dead_letter_place(&mut self, subject: &str, route: &Route, found: &There<()>) {
        if *found != There::No {
            return;
        }
        let (option, name) = match route.exchange.as_str() {
            "" => ("queue", route.key.as_str()),
            exchange => ("exchange", exchange),
        };
        let why = "rejecting a message fails, and what the broker itself dead-letters is lost";
        let place = only(&self.destination.address, option, name);
        self.missing("dead-letter-missing", subject, why, &place);
    }

    /// All that an exchange's declaration tells.
    pub(super) fn exchange(&mut self, subject: &str, declared: &Declared) {
        let anew = self.anew(&[]);
        if !declared.flag("durable") {
            let (what, why) = ("it is not durable", "a restart of the broker deletes it with its bindings");
            self.find(Severity::Error, "exchange-not-durable", subject, what, why, anew.clone());
        }
        if declared.flag("auto_delete") {
            let why = "it is deleted when its last queue is unbound; publishing then fails";
            self.find(
                Severity::Warning,
                "exchange-auto-delete",
                subject,
                "it deletes itself",
                why,
                anew.clone(),
            );
        }
        if declared.flag("internal") {
            let why = "clients may not publish to it";
            self.find(Severity::Error, "exchange-internal", subject, "it is internal", why, anew);
        }
        if let Some(alternate) = declared.text("alternate-exchange") {
            self.find(
                Severity::Note,
                "alternate-exchange",
                subject,
                format!("what none of its queues takes goes to exchange '{alternate}'"),
                "such a message is accepted, and no publisher is told that it is unroutable",
                Remedy::text(format!("see that somebody consumes what is bound to exchange '{alternate}'")),
            );
        }
    }

    /// Deleting and creating, with these options too.
    fn anew(&self, options: &[(&str, &str)]) -> Remedy {
        let old = &self.destination.address;
        let new = options.iter().fold(old.clone(), |address, (name, value)| address.with_option(name, value));
        Remedy::text("once it is empty and not in use, make it anew")
            .command(format!("throughline delete {}", quoted(old)))
            .command(create(&new))
    }

    fn with_dead_letter(&self) -> Remedy {
        if self.destination.dead_letter.is_some() {
            return self.anew(&[]);
        }
        let name = self.destination.queue.as_ref().map(|queue| format!("{queue}.dead")).unwrap_or_default();
        let mut remedy = self.anew(&[("dead_letter", &name)]);
        remedy.text.push_str(", or set dead-letter-exchange and dead-letter-routing-key by a policy");
        remedy
    }
}

/// The command that makes what an address names.
pub(super) fn create(address: &Address) -> String {
    format!("throughline create {}", quoted(address))
}

/// The same connection, with only this destination.
pub(super) fn only(address: &Address, option: &str, name: &str) -> Address {
    let none: Result<Address, _> = format!("{}:", address.scheme()).parse();
    none.map_or_else(|_| address.clone(), |none| address.with_options_of(&none)).with_option(option, name)
}

/// For a shell.
pub(super) fn quoted(text: impl Display) -> String {
    format!("'{}'", text.to_string().replace('\'', r"'\''"))
}

pub(super) fn time(millis: u64) -> String {
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
