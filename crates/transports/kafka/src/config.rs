//! What an address says: the topic and the group, and how they are used. The brokers are in `cluster`.

use std::borrow::Cow;
use std::time::Duration;

use throughline_core::address::AddressOption;
use throughline_core::driver::{Place, Sibling};
use throughline_core::{Address, Error, ErrorKind, Result};

/// The longest name of a topic, in bytes: <https://kafka.apache.org/documentation/#multitenancy-topic-naming>.
const LONGEST_NAME: usize = 249;
/// The prefix of an option that is a configuration of the topic.
const TOPIC_CONFIG: &str = "config.";

const fn option(name: &'static str, value: &'static str, help: &'static str) -> AddressOption {
    AddressOption { name, value, help }
}

/// The options of all roles.
pub(crate) const OPTIONS: &[AddressOption] = &[
    option("group", "NAME", "The consumer group; consumers of one group share the partitions."),
    option(
        "from",
        "earliest|latest|none",
        "Where a group without a committed position begins; earliest by default, none is an error.",
    ),
    option(
        "dead_letter",
        "TOPIC",
        "The topic for rejected messages; without a value, the topic's name with '.dlq'.",
    ),
    option(
        "dead_letter_headers",
        "spring|connect",
        "Dead letters carry the headers of Spring Kafka or Kafka Connect, too.",
    ),
    option(
        "retry",
        "in_place|topic",
        "How a message is retried; 'topic': by the topic TOPIC.GROUP.retry, unless it is keyed. In place by default.",
    ),
    option(
        "window",
        "N",
        "How many messages of a partition may be taken beyond the oldest unsettled one; 10000 by default.",
    ),
    option(
        "drain",
        "DURATION",
        "How long a partition that is taken away waits for its deliveries to be settled; 5s by default.",
    ),
    option("commit_interval", "DURATION", "How often a busy consumer commits its position; 1s by default."),
    option(
        "connect_timeout",
        "DURATION",
        "How long connecting, and a request of administration, may take; 10s by default.",
    ),
    option("partitions", "N", "create: how many partitions; the broker's num.partitions by default."),
    option(
        "replication",
        "N",
        "create: how many replicas; the broker's default.replication.factor by default.",
    ),
    option(
        "config.*",
        "VALUE",
        "create: a configuration of the topic, such as config.retention.ms=86400000.",
    ),
    option("kafka.*", "VALUE", "A property of librdkafka, such as kafka.security.protocol=ssl."),
];

/// Where a group begins that has no committed position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Earliest,
    Latest,
    Error,
}

impl From {
    /// librdkafka's `auto.offset.reset`.
    pub(crate) fn property(self) -> &'static str {
        match self {
            Self::Earliest => "earliest",
            Self::Latest => "latest",
            Self::Error => "error",
        }
    }
}

/// Whose headers dead letters carry beside our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Spring,
    Connect,
}

/// What an address names on the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) address: Address,
    topic: Option<String>,
    group: Option<String>,
    pub(crate) from: From,
    pub(crate) dead_letter: Option<String>,
    pub(crate) dead_letter_style: Option<Style>,
    /// Whether unkeyed messages are retried by a topic.
    pub(crate) retry_by_topic: bool,
    pub(crate) window: usize,
    pub(crate) drain: Duration,
    pub(crate) commit_interval: Duration,
}

impl Destination {
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let path = address.decoded_path()?;
        let topic = path.strip_prefix('/').unwrap_or(&path);
        let topic = (!topic.is_empty()).then(|| topic_name(address, "the topic", topic)).transpose()?;
        let group = match address.option("group") {
            Some("") => return Err(address.bad_option("group", "a name")),
            group => group.map(str::to_owned),
        };
        let dead_letter = match (address.option("dead_letter"), &topic) {
            (Some(""), Some(topic)) => {
                Some(topic_name(address, "the dead-letter topic", &format!("{topic}.dlq"))?)
            }
            (Some(name), _) => Some(topic_name(address, "option 'dead_letter'", name)?),
            (None, _) => None,
        };
        let from = match address.one_of("from", &["earliest", "latest", "none"])? {
            Some("latest") => From::Latest,
            Some("none") => From::Error,
            _ => From::Earliest,
        };
        let dead_letter_style = match address.one_of("dead_letter_headers", &["spring", "connect"])? {
            Some("spring") => Some(Style::Spring),
            Some(_) => Some(Style::Connect),
            None => None,
        };
        let window = address.parsed("window", "a number of messages")?.unwrap_or(10_000);
        if window == 0 {
            return Err(address.bad_option("window", "a number of messages from 1 on"));
        }
        let this = Self {
            retry_by_topic: address.one_of("retry", &["in_place", "topic"])? == Some("topic"),
            drain: address.duration("drain")?.unwrap_or(Duration::from_secs(5)),
            commit_interval: address.duration("commit_interval")?.unwrap_or(Duration::from_secs(1)),
            address: address.clone(),
            topic,
            group,
            from,
            dead_letter,
            dead_letter_style,
            window,
        };
        if this.retry_by_topic
            && let Ok(name) = this.retry_topic()
        {
            topic_name(address, "the retry topic", &name)?;
        }
        Ok(this)
    }

    pub(crate) fn topic(&self) -> Result<&str> {
        let missing =
            || bad(&self.address, "names no topic; an address looks like kafka://broker:9092/topic");
        self.topic.as_deref().ok_or_else(missing)
    }

    pub(crate) fn maybe_group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// The group, which consuming needs.
    pub(crate) fn group(&self) -> Result<&str> {
        self.maybe_group().ok_or_else(|| bad(&self.address, "names no consumer group; add ?group=NAME"))
    }

    /// The topic for retries: the group's own, so that no other group sees them.
    pub(crate) fn retry_topic(&self) -> Result<String> {
        Ok(format!("{}.{}.retry", self.topic()?, self.group()?))
    }

    /// How the address is created, for errors.
    pub(crate) fn hint(&self) -> String {
        format!("throughline create '{}'", self.address)
    }

    /// What `create` is asked for.
    pub(crate) fn wanted(&self) -> Result<Wanted> {
        let number = |name| {
            let number = self.address.parsed::<i32>(name, "a number from 1 on")?;
            if number.is_some_and(|number| number < 1) {
                return Err(self.address.bad_option(name, "a number from 1 on"));
            }
            Ok(number.unwrap_or(-1))
        };
        let configs = self.address.options().filter_map(|(name, value)| {
            name.strip_prefix(TOPIC_CONFIG).map(|name| (name.to_owned(), value.to_owned()))
        });
        Ok(Wanted {
            partitions: number("partitions")?,
            replicas: number("replication")?,
            configs: configs.collect(),
        })
    }
}

/// What a new topic is to be like.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// -1 for the broker's default.
    pub(crate) partitions: i32,
    /// -1 for the broker's default.
    pub(crate) replicas: i32,
    /// Name and value.
    pub(crate) configs: Vec<(String, String)>,
}

/// The address of another topic on the same cluster; a queue is a topic with one group.
pub(crate) fn sibling(of: &Address, sibling: &Sibling<'_>) -> Option<Address> {
    let (topic, group) = match sibling.place {
        Place::Queue(name) => (name, Some(name)),
        Place::Topic { topic, subscription } => (topic, subscription),
    };
    let mut address =
        of.clone().without_options(&["group", "dead_letter", "retry"]).with_path(format!("/{topic}"));
    if let Some(group) = group {
        address = address.with_option("group", group);
    }
    if let Some(name) = sibling.dead_letter {
        address = address.with_option("dead_letter", name);
    }
    Some(address)
}

fn topic_name(address: &Address, what: &str, name: &str) -> Result<String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(legal) || name == "." || name == ".."
    {
        return Err(bad(
            address,
            format!(
                "{what} is not a topic's name: 1 to {LONGEST_NAME} ASCII letters, digits, '.', '_' and '-'"
            ),
        ));
    }
    Ok(name.to_owned())
}

pub(crate) fn bad(address: &Address, text: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidAddress, text).at("read address", address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn reads_brokers_topic_and_group() {
        let cluster = Cluster::of(&address("kafka://b1:9192,b2/orders?group=g&kafka.client.id=me")).unwrap();
        assert_eq!(cluster.server, ("b1".to_owned(), Some(9192)));
        let config = cluster.client(&[("client.id", "ours")], &[]);
        assert_eq!(config.get("bootstrap.servers"), Some("b1:9192,b2"));
        assert_eq!(config.get("client.id"), Some("me"));
        assert_eq!(Cluster::of(&address("kafka:///t")).unwrap().server, ("localhost".to_owned(), Some(9092)));
        let destination =
            Destination::of(&address("kafka://b/orders?group=g&dead_letter&from=latest")).unwrap();
        assert_eq!((destination.topic().unwrap(), destination.group().unwrap()), ("orders", "g"));
        assert_eq!(destination.dead_letter.as_deref(), Some("orders.dlq"));
        assert_eq!((destination.from, destination.window), (From::Latest, 10_000));
        assert_eq!(destination.retry_topic().unwrap(), "orders.g.retry");
    }

    #[test]
    fn a_user_logs_in_over_tls_unless_told_otherwise() {
        let cluster = Cluster::of(&address("kafka://me:hunter2@b/t"));
        if cfg!(feature = "ssl") {
            let config = cluster.unwrap_or_else(|error| panic!("{error}")).client(&[], &[]);
            assert_eq!(config.get("security.protocol"), Some("sasl_ssl"));
        } else {
            let error = cluster.err().unwrap().to_string();
            assert!(error.contains("feature 'ssl'") && !error.contains("hunter2"), "{error}");
        }
        let plain = address("kafka://me:hunter2@b/t?kafka.security.protocol=sasl_plaintext");
        let config = Cluster::of(&plain).unwrap_or_else(|error| panic!("{error}")).client(&[], &[]);
        assert_eq!(config.get("security.protocol"), Some("sasl_plaintext"));
        assert_eq!((config.get("sasl.mechanism"), config.get("sasl.username")), (Some("PLAIN"), Some("me")));
        assert_eq!(config.get("sasl.password"), Some("hunter2"));
    }

    #[test]
    fn says_what_is_wrong_with_an_address() {
        for (text, expected) in [
            ("kafka:t", "no '//'"),
            ("kafka://a,,b/t", "an empty name"),
            ("kafka://b/t?kafka.nonsense=1", "no property 'nonsense'"),
            ("kafka://b/t?kafka.linger.ms=soon", "option 'kafka.linger.ms' 'soon' is not"),
            ("kafka://b/t?kafka.acks=1", "'kafka.acks' cannot be set"),
            ("kafka://b/t?kafka.group.id=1", "use the option 'group'"),
            ("kafka://b/t?connect_timeout=x", "duration"),
        ] {
            let error = Cluster::of(&address(text)).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        for (text, expected) in [
            ("kafka://b/a%20b", "not a topic's name"),
            ("kafka://b/a/b", "not a topic's name"),
            ("kafka://b/t?group=", "a name"),
            ("kafka://b/t?from=first", "earliest or latest or none"),
            ("kafka://b/t?retry=later", "in_place or topic"),
            ("kafka://b/t?window=0", "from 1 on"),
            ("kafka://b/t?dead_letter=a b", ""),
        ] {
            let Ok(address) = text.parse() else { continue };
            let error = Destination::of(&address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        assert!(Destination::of(&address("kafka://b/")).unwrap().topic().is_err());
        assert!(Destination::of(&address("kafka://b/t")).unwrap().group().is_err());
        assert!(Destination::of(&address("kafka://b/t?partitions=0")).unwrap().wanted().is_err());
    }

    #[test]
    fn create_reads_partitions_replicas_and_configurations() {
        let destination =
            Destination::of(&address("kafka://b/t?partitions=3&config.retention.ms=1000")).unwrap();
        let wanted = destination.wanted().unwrap();
        assert_eq!((wanted.partitions, wanted.replicas), (3, -1));
        assert_eq!(wanted.configs, [("retention.ms".to_owned(), "1000".to_owned())]);
    }
}
