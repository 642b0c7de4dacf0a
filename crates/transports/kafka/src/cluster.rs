//! The brokers that an address names, and librdkafka's properties.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use throughline_core::{Address, Result};

use crate::config::bad;

/// Kafka's registered port.
const PORT: u16 = 9092;
/// The prefix of an option that is librdkafka's property.
const PROPERTY: &str = "kafka.";

/// Properties that are ours: what they say is said otherwise, or what this transport promises depends on them.
const OWN: &[(&str, &str)] = &[
    ("bootstrap.servers", "write the brokers after kafka://"),
    ("metadata.broker.list", "write the brokers after kafka://"),
    ("group.id", "use the option 'group'"),
    ("auto.offset.reset", "use the option 'from'"),
    ("enable.auto.commit", "positions are committed as messages are settled"),
    ("enable.auto.offset.store", "positions are committed as messages are settled"),
    ("auto.commit.interval.ms", "use the option 'commit_interval'"),
    ("enable.idempotence", "the producer is idempotent"),
    ("acks", "every replica in sync acknowledges"),
    ("request.required.acks", "every replica in sync acknowledges"),
    ("transactional.id", "messages are published without transactions"),
    ("enable.partition.eof", "nothing is told at the end of a partition"),
    ("allow.auto.create.topics", "topics are made by create"),
    ("log.queue", "the log goes to the application's subscriber"),
];

/// The cluster that an address names, and the properties of all its clients. No `Debug`: it holds credentials.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// As librdkafka takes them.
    brokers: String,
    /// The `server.address` and `server.port` of spans: the first broker's.
    pub(crate) server: (String, Option<u16>),
    pub(crate) timeout: Duration,
    /// Name and value, in order; the address's own last.
    properties: Vec<(String, String)>,
}

impl Cluster {
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let authority = address.authority().ok_or_else(|| {
            bad(address, "no '//'; an address looks like kafka://broker1:9092,broker2:9092/topic?group=g")
        })?;
        let brokers = if authority.is_empty() { "localhost".to_owned() } else { authority.to_owned() };
        if brokers.split(',').any(str::is_empty) {
            return Err(bad(address, "an empty name in the list of brokers"));
        }
        let server = server(brokers.split(',').next().unwrap_or_default());
        let timeout = address.duration("connect_timeout")?.unwrap_or(Duration::from_secs(10));
        let mut properties = Vec::new();
        let mut set = |name: &str, value: &str| properties.push((name.to_owned(), value.to_owned()));
        if let Some(user) = address.user() {
            // Never in the clear unless that is asked for.
            if address.option("kafka.security.protocol").is_none() {
                check_property(address, "kafka.security.protocol", "security.protocol", "sasl_ssl")?;
                set("security.protocol", "sasl_ssl");
            }
            set("sasl.mechanism", "PLAIN");
            set("sasl.username", user);
            set("sasl.password", address.password().unwrap_or_default());
        }
        for (option, value) in address.options() {
            let Some(name) = option.strip_prefix(PROPERTY) else { continue };
            if let Some((_, instead)) = OWN.iter().find(|(own, _)| *own == name) {
                return Err(bad(address, format!("option '{option}' cannot be set: {instead}")));
            }
            check_property(address, option, name, value)?;
            set(name, value);
        }
        Ok(Self { brokers, server, timeout, properties })
    }

    /// A property of the address, where it has it.
    pub(crate) fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The properties of one client: `defaults`, what the address says, and `fixed`.
    pub(crate) fn client(&self, defaults: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config.set("client.id", "throughline");
        // A broker that restarts is found again soon: librdkafka's default waits up to 10 s.
        config.set("reconnect.backoff.max.ms", "2000");
        config.set("socket.keepalive.enable", "true");
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        for (name, value) in fixed {
            config.set(*name, *value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config.set("allow.auto.create.topics", "false");
        config
    }
}

/// Asks librdkafka itself whether it has the property and takes the value.
fn check_property(address: &Address, option: &str, name: &str, value: &str) -> Result<()> {
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(_, reason, ..)) if !reason.contains("No such") => {
            // The reason repeats the value, which may be a secret.
            let reason = if reason.contains(value) { "" } else { reason.as_str() };
            let hint = match (name, value) {
                ("security.protocol", "ssl" | "sasl_ssl" | "SSL" | "SASL_SSL") => {
                    "; TLS needs the feature 'ssl'"
                }
                _ => "",
            };
            let expected =
                format!("what librdkafka takes{}{reason}{hint}", if reason.is_empty() { "" } else { ": " });
            Err(address.bad_option(option, &expected))
        }
        Err(_) => {
            Err(bad(address, format!("option '{option}': this build of librdkafka has no property '{name}'")))
        }
    }
}

fn server(broker: &str) -> (String, Option<u16>) {
    let broker = broker.rsplit_once("//").map_or(broker, |(_, host)| host);
    match broker.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => (host.to_owned(), port.parse().ok()),
        _ => (broker.to_owned(), Some(PORT)),
    }
}
