//! What is there, and what is wrong with it.

use std::sync::Arc;

use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis, Finding, Remedy, Server, Severity};
use throughline_core::{Address, Result};

use crate::broker::Broker;
use crate::config::{Config, Place};
use crate::queue::Queue;

/// Looks without creating anything. That something is missing is no finding where its first use creates it.
pub(crate) fn diagnose(
    broker: &Broker,
    address: &Address,
    config: &Config,
    options: &DiagnoseOptions,
) -> Diagnosis {
    let version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut look = Look {
        diagnosis: Diagnosis::new(address, Server { product: "memory".into(), version }),
        created_on_use: config.create,
    };
    look.diagnosis.publisher = Some(broker.capabilities().clone());
    look.diagnosis.consumer = Some(broker.capabilities().clone());
    let there = Config { create: false, ..config.clone() };
    let subject = match &config.place {
        Place::Queue(name) => look.queue(format!("queue '{name}'"), broker.source(&there)),
        Place::Topic { topic, subscription } => {
            let subject = look.topic(format!("topic '{topic}'"), broker.subscriptions(topic), config);
            match subscription {
                Some(name) => look.queue(format!("subscription '{name}'"), broker.source(&there)),
                None => subject,
            }
        }
    };
    match &config.dead_letter {
        Some(name) => {
            look.queue(format!("dead-letter queue '{name}'"), broker.dead_letters(name, &there));
        }
        None => look.find(
            Severity::Note,
            "no-dead-letter",
            &subject,
            "the address names no dead letter",
            "a rejected message has nowhere to go: it stays, and is delivered again",
            Remedy::text("name a queue for them in the address").command("dead_letter=QUEUE"),
        ),
    }
    look.diagnosis.check_lease(&subject, options, |_| Remedy::default());
    look.diagnosis
}

struct Look {
    diagnosis: Diagnosis,
    created_on_use: bool,
}

impl Look {
    fn find(
        &mut self,
        severity: Severity,
        code: &'static str,
        subject: &str,
        what: &str,
        why: &str,
        remedy: Remedy,
    ) {
        self.diagnosis.findings.push(Finding {
            severity,
            code,
            subject: subject.to_owned(),
            what: what.to_owned(),
            why: why.to_owned(),
            remedy,
        });
    }

    fn missing(&mut self, code: &'static str, subject: &str) {
        self.diagnosis.fact(subject, "exists", false);
        if !self.created_on_use {
            self.find(
                Severity::Error,
                code,
                subject,
                "it does not exist, and create=never",
                "publishing and consuming fail with NotFound",
                Remedy::text("create it by Bus::create, or leave out create=never"),
            );
        }
    }

    fn queue(&mut self, subject: String, found: Result<Arc<Queue>>) -> String {
        let Ok(queue) = found else {
            self.missing("queue-missing", &subject);
            return subject;
        };
        let depth = queue.depth();
        let most = queue.max_length() as u64;
        self.diagnosis.fact(&subject, "exists", true);
        self.diagnosis.fact(&subject, "ready", depth.ready);
        self.diagnosis.fact(&subject, "unsettled", depth.unsettled.unwrap_or_default());
        self.diagnosis.fact(&subject, "delayed", depth.delayed.unwrap_or_default());
        self.diagnosis.fact(&subject, "max_length", most);
        let held = [Some(depth.ready), depth.unsettled, depth.delayed].into_iter().flatten().sum::<u64>();
        if held >= most {
            self.find(
                Severity::Error,
                "queue-full",
                &subject,
                &format!("it is full: {held} messages"),
                "publishing to it is refused until some are settled",
                Remedy::text("consume from it, or give it a higher max_length when it is created"),
            );
        }
        subject
    }

    fn topic(&mut self, subject: String, found: Result<Vec<Arc<Queue>>>, config: &Config) -> String {
        let Ok(subscriptions) = found else {
            self.missing("topic-missing", &subject);
            return subject;
        };
        self.diagnosis.fact(&subject, "exists", true);
        self.diagnosis.fact(&subject, "subscriptions", subscriptions.len() as u64);
        if subscriptions.is_empty() {
            let (severity, why) = if config.drop_unroutable {
                (Severity::Note, "what is published is dropped, as the address asks")
            } else {
                (Severity::Warning, "publishing fails with Unroutable")
            };
            let remedy =
                Remedy::text("open a consumer, or create a subscription: add &queue=NAME to the address");
            self.find(severity, "no-subscription", &subject, "nobody subscribes to it", why, remedy);
        }
        subject
    }
}
