//! What is there, and what is wrong with it.

use std::path::Path;

use rusqlite::{Connection, params};
use throughline_core::capabilities::SQLITE;
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis, Finding, Remedy, Server, Severity};
use throughline_core::{Address, ErrorKind, Result, Timestamp};

use crate::admin;
use crate::config::{Config, Durability, Place};
use crate::connect::{self, LOG_LIMIT};
use crate::error;
use crate::lease;
use crate::network::{self, Kind};
use crate::schema::{self, Found};
use crate::store;
use crate::writer::log_size;

/// Looks, on a connection that only reads. That something is missing is no finding where its first use creates it.
pub(crate) fn diagnose(
    address: &Address,
    path: &Path,
    config: &Config,
    durability: Durability,
    options: &DiagnoseOptions,
) -> Result<Diagnosis> {
    let server = Server { product: "sqlite".into(), version: Some(rusqlite::version().to_owned()) };
    let mut look = Look { diagnosis: Diagnosis::new(address, server), created_on_use: config.create };
    look.diagnosis.publisher = Some(SQLITE);
    look.diagnosis.consumer = Some(SQLITE);
    look.file(path, durability);
    let subject = match connect::look(path) {
        Ok((connection, found)) => {
            look.schema(&connection, path, found)?;
            look.places(&connection, config, found)?
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            look.missing("file-missing", &format!("file '{}'", path.display()));
            config.place.name().to_owned()
        }
        Err(error) => return Err(error),
    };
    if config.dead_letter.is_none() {
        look.find(
            Severity::Note,
            "no-dead-letter",
            &subject,
            "the address names no dead letter",
            "a rejected message has nowhere to go: it stays, and is delivered again",
            Remedy::text("name a queue for them in the address").command("dead_letter=QUEUE"),
        );
    }
    look.diagnosis.check_lease(&subject, options, |_| Remedy::default());
    Ok(look.diagnosis)
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

    fn missing(&mut self, code: &'static str, subject: &str) {
        self.diagnosis.fact(subject, "exists", false);
        if !self.created_on_use {
            self.find(
                Severity::Error,
                code,
                subject,
                "it does not exist, and create=never",
                "publishing and consuming fail with NotFound",
                Remedy::text("create it, or leave out create=never").command("throughline create ADDRESS"),
            );
        }
    }

    /// What the file system tells.
    fn file(&mut self, path: &Path, durability: Durability) {
        let subject = format!("file '{}'", path.display());
        let log = log_size(path);
        if let Ok(file) = path.metadata() {
            self.diagnosis.fact(&subject, "bytes", file.len());
            self.diagnosis.fact(&subject, "write-ahead log bytes", log);
        }
        self.diagnosis.fact(&subject, "synchronous", durability.as_str());
        if log > LOG_LIMIT {
            self.find(
                Severity::Warning,
                "log-large",
                &subject,
                format!("its write-ahead log has {log} bytes"),
                "a reader of the file keeps it from being copied into the database, and it grows with each commit",
                Remedy::text("end the program that reads the file for so long (a shell with an open transaction, a backup)"),
            );
        }
        let (name, severity, why) = match network::of(path) {
            Kind::Local => return self.diagnosis.fact(&subject, "network file system", false),
            Kind::Network(name) => {
                (name, Severity::Error, "opening it is refused: the log cannot be shared there")
            }
            Kind::Unknown(name) => (
                name,
                Severity::Warning,
                "if it is another machine's, messages can be lost: the log cannot be shared",
            ),
        };
        self.find(
            severity,
            "network-file-system",
            &subject,
            format!("it is on {name}"),
            why,
            Remedy::text("put the file on a local disk"),
        );
    }

    fn schema(&mut self, connection: &Connection, path: &Path, found: Found) -> Result<()> {
        let subject = format!("file '{}'", path.display());
        let pragma = |name| schema::pragma::<i64>(connection, name).map_err(error::sqlite);
        let (pages, free) = (pragma("page_count")?, pragma("freelist_count")?);
        self.diagnosis.fact(&subject, "pages", u64::try_from(pages).unwrap_or(0));
        self.diagnosis.fact(&subject, "free pages", u64::try_from(free).unwrap_or(0));
        let version = if let Found::Version(version) = found { version } else { 0 };
        self.diagnosis.fact(&subject, "schema version", u64::from(version));
        Ok(())
    }

    /// The queue or topic, and the dead letters. Gives the subject of what is consumed from.
    fn places(&mut self, connection: &Connection, config: &Config, found: Found) -> Result<String> {
        let there = matches!(found, Found::Version(_));
        let find = |topic: &str, name: &str| {
            if there { store::find(connection, topic, name).map_err(error::sqlite) } else { Ok(None) }
        };
        let subject = match &config.place {
            Place::Queue(name) => {
                let subject = format!("queue '{name}'");
                self.queue(connection, &subject, find("", name)?)?;
                subject
            }
            Place::Topic { topic, subscription } => {
                let subject = format!("topic '{topic}'");
                self.topic(connection, topic, &subject, find(topic, "")?.is_some(), config)?;
                match subscription {
                    None => subject,
                    Some(name) => {
                        let subject = format!("subscription '{name}'");
                        self.queue(connection, &subject, find(topic, name)?)?;
                        subject
                    }
                }
            }
        };
        if let Some(name) = &config.dead_letter {
            self.queue(connection, &format!("dead-letter queue '{name}'"), find("", name)?)?;
        }
        Ok(subject)
    }

    fn queue(&mut self, connection: &Connection, subject: &str, found: Option<store::Queue>) -> Result<()> {
        let Some(queue) = found else {
            self.missing("queue-missing", subject);
            return Ok(());
        };
        let depth = admin::depth(connection, queue.id).map_err(error::sqlite)?;
        let (unsettled, delayed) = (depth.unsettled.unwrap_or(0), depth.delayed.unwrap_or(0));
        self.diagnosis.fact(subject, "exists", true);
        self.diagnosis.fact(subject, "ready", depth.ready);
        self.diagnosis.fact(subject, "unsettled", unsettled);
        self.diagnosis.fact(subject, "delayed", delayed);
        let sql = "SELECT count(*) FROM throughline_line WHERE queue = ?1 AND state >= 2 AND due <= ?2 AND state = 2";
        let now = Timestamp::now();
        let alone: i64 = connection
            .query_row(sql, params![queue.id, now.as_millis()], |row| row.get(0))
            .map_err(error::sqlite)?;
        let (_, in_ranges) = lease::in_ranges(connection, queue.id, now).map_err(error::sqlite)?;
        let expired = in_ranges + u64::try_from(alone).unwrap_or(0);
        self.diagnosis.fact(subject, "leases expired", expired);
        if expired > 0 {
            self.find(
                Severity::Warning,
                "leases-expired",
                subject,
                format!("{expired} messages were delivered, not settled in time, and taken by nobody since"),
                "their consumer has died or is stuck, and there is no other",
                Remedy::text("start a consumer: they are delivered again"),
            );
        }
        let Some(most) = queue.max_length.map(u64::from) else { return Ok(()) };
        self.diagnosis.fact(subject, "max_length", most);
        let held = depth.ready + unsettled + delayed;
        if held >= most {
            self.find(
                Severity::Error,
                "queue-full",
                subject,
                format!("it is full: {held} messages"),
                "publishing to it is refused until some are settled",
                Remedy::text("consume from it, or give it a higher max_length when it is created"),
            );
        }
        Ok(())
    }

    fn topic(
        &mut self,
        connection: &Connection,
        topic: &str,
        subject: &str,
        there: bool,
        config: &Config,
    ) -> Result<()> {
        if !there {
            self.missing("topic-missing", subject);
            return Ok(());
        }
        let sql = "SELECT count(*) FROM throughline_queues WHERE topic = ?1 AND name <> '' AND deleted = 0";
        let count: i64 = connection.query_row(sql, [topic], |row| row.get(0)).map_err(error::sqlite)?;
        self.diagnosis.fact(subject, "exists", true);
        self.diagnosis.fact(subject, "subscriptions", u64::try_from(count).unwrap_or(0));
        if count == 0 {
            let (severity, why) = if config.drop_unroutable {
                (Severity::Note, "what is published is dropped, as the address asks")
            } else {
                (Severity::Warning, "publishing fails with Unroutable")
            };
            let remedy =
                Remedy::text("open a consumer, or create a subscription: add &queue=NAME to the address");
            self.find(severity, "no-subscription", subject, "nobody subscribes to it", why, remedy);
        }
        Ok(())
    }
}
