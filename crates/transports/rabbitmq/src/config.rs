//! What an address says: the connection, and the destination.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lapin::types::ShortString;
use throughline_core::address::AddressOption;
use throughline_core::capabilities::{self, Capabilities, Lease, Level};
use throughline_core::driver::{Place, Sibling};
use throughline_core::{Address, Error, ErrorKind, Result};

use crate::codec::SHORT;

/// RabbitMQ's registered ports.
const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;

const fn option(name: &'static str, value: &'static str, help: &'static str) -> AddressOption {
    AddressOption { name, value, help }
}

/// The options of all roles.
pub(crate) const OPTIONS: &[AddressOption] = &[
    option("queue", "NAME", "The queue to publish to (through the default exchange) and to consume from."),
    option(
        "exchange",
        "NAME",
        "The exchange to publish to; with 'queue', the queue is bound to it by create.",
    ),
    option(
        "key",
        "KEY",
        "The routing key, or the binding pattern where it has * or #. Published without one, the message type is it.",
    ),
    option("unroutable", "error|drop", "What becomes of a message that no queue takes; error by default."),
    option(
        "dead_letter",
        "QUEUE",
        "The queue for rejected messages; create makes it, and dead-letters to it.",
    ),
    option("dead_letter_exchange", "NAME", "The exchange for rejected messages, in place of 'dead_letter'."),
    option("dead_letter_key", "KEY", "Their routing key; the name of the queue by default."),
    option("queue_type", "quorum|classic", "create: the queue's type; quorum by default."),
    option("exchange_type", "topic|fanout|direct|headers", "create: the exchange's type; topic by default."),
    option(
        "single_active",
        "true|false",
        "create: one consumer at a time, so that several keep the order; false by default.",
    ),
    option("max_priority", "1..255", "create: priorities, on a classic queue."),
    option(
        "max_length",
        "N",
        "create: at most so many ready messages; further ones are refused, not dropped.",
    ),
    option(
        "delivery_limit",
        "N",
        "create: how often the broker delivers a message of a quorum queue again before it dead-letters or drops it.",
    ),
    option("message_ttl", "DURATION", "create: how long a message may wait before the broker expires it."),
    option("payload_limit", "BYTES", "The broker's max_message_size; 16777216 by default, as RabbitMQ 4's."),
    option(
        "consumer_timeout",
        "DURATION",
        "How long the broker waits for an ack: its consumer_timeout, where it is not 30m.",
    ),
    option("heartbeat", "DURATION", "The interval of heartbeats, in whole seconds; 20s by default."),
    option("connect_timeout", "DURATION", "How long connecting and logging in may take; 10s by default."),
    option("connection_name", "NAME", "What the connections are called in the broker's management."),
    option("ca", "PATH", "amqps: PEM file of the authorities to trust, in place of the system's."),
    option("client_cert", "PATH", "amqps: PEM file of the client's certificate chain."),
    option("client_key", "PATH", "amqps: PEM file of the client certificate's private key."),
    option("server_name", "NAME", "amqps: the name in the broker's certificate, where it is not the host."),
    option("auth", "plain|external", "How to log in; external is by the client's certificate."),
];

/// The connection that an address names. `Debug` shows no credentials.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) external: bool,
    pub(crate) tls: Option<Tls>,
    pub(crate) heartbeat: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) name: String,
}

/// The TLS side of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("vhost", &self.vhost)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl Settings {
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let secure = address.scheme() == "amqps";
        let (host, port) = host_and_port(address, if secure { TLS_PORT } else { PORT })?;
        let vhost = vhost(address)?;
        // A user without a password has an empty one; without a user it is the broker's default one.
        let (user, password) = match address.user() {
            Some(user) => (user.to_owned(), address.password().unwrap_or_default().to_owned()),
            None => ("guest".to_owned(), "guest".to_owned()),
        };
        let path = |name| address.option(name).map(PathBuf::from);
        let identity = match (path("client_cert"), path("client_key")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(bad(address, "'client_cert' and 'client_key' go together")),
        };
        if !secure
            && let Some(name) =
                ["ca", "client_cert", "server_name"].into_iter().find(|name| address.option(name).is_some())
        {
            return Err(bad(
                address,
                format!("option '{name}' is for TLS: write amqps:// instead of amqp://"),
            ));
        }
        let server_name = address.option("server_name").unwrap_or(&host).to_owned();
        let tls = secure.then(|| Tls { ca: path("ca"), identity, server_name });
        let heartbeat = address.duration("heartbeat")?.unwrap_or(Duration::from_secs(20));
        if heartbeat.as_secs() == 0 || heartbeat.as_secs() > u64::from(u16::MAX) {
            return Err(address.bad_option("heartbeat", "between 1s and 65535s"));
        }
        let external = address.one_of("auth", &["plain", "external"])? == Some("external");
        let connect_timeout = address.duration("connect_timeout")?.unwrap_or(Duration::from_secs(10));
        let name = address.option("connection_name").unwrap_or("throughline").to_owned();
        Ok(Self { host, port, vhost, user, password, external, tls, heartbeat, connect_timeout, name })
    }
}

/// The address of another place on the same virtual host. A topic is an exchange; what `create` is asked for stays.
pub(crate) fn sibling(of: &Address, sibling: &Sibling<'_>) -> Option<Address> {
    let mut address = of.clone().without_options(&[
        "queue",
        "exchange",
        "key",
        "unroutable",
        "dead_letter",
        "dead_letter_exchange",
        "dead_letter_key",
    ]);
    address = match sibling.place {
        Place::Queue(name) => address.with_option("queue", name),
        Place::Topic { topic, subscription } => {
            let address = address.with_option("exchange", topic);
            subscription.into_iter().fold(address, |address, name| address.with_option("queue", name))
        }
    };
    if let Some(name) = sibling.dead_letter {
        address = address.with_option("dead_letter", name);
    }
    if sibling.priorities {
        address = address.with_option("queue_type", "classic").with_option("max_priority", "10");
    }
    Some(address)
}

/// Where connections go. A certificate is for a name: no proxy can stand for that.
pub(crate) fn endpoint(address: &Address) -> Option<String> {
    let settings = Settings::of(address).ok().filter(|settings| settings.tls.is_none())?;
    let host = if settings.host.contains(':') { format!("[{}]", settings.host) } else { settings.host };
    Some(format!("{host}:{}", settings.port))
}

fn host_and_port(address: &Address, default: u16) -> Result<(String, u16)> {
    let authority = address.authority().ok_or_else(|| {
        bad(address, "no '//'; an address looks like amqp://user:password@host:5672/vhost?queue=jobs")
    })?;
    if authority.contains(',') {
        return Err(bad(
            address,
            "one broker only; for several, use a name or load balancer in front of them",
        ));
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) =
            rest.split_once(']').ok_or_else(|| bad(address, "an IPv6 host looks like [::1]"))?;
        (host, after.strip_prefix(':'))
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = match port {
        None | Some("") => default,
        Some(port) => port.parse().map_err(|_| bad(address, "the port is not a number below 65536"))?,
    };
    Ok((if host.is_empty() { "localhost".to_owned() } else { host.to_owned() }, port))
}

fn vhost(address: &Address) -> Result<String> {
    let raw = address.path().strip_prefix('/').unwrap_or_default();
    if raw.contains('/') {
        return Err(bad(address, "a '/' in the virtual host must be written as %2f"));
    }
    let decoded = address.decoded_path()?;
    let vhost = decoded.strip_prefix('/').unwrap_or_default();
    let vhost = if vhost.is_empty() { "/" } else { vhost };
    if vhost.len() > SHORT {
        return Err(bad(address, "the virtual host is longer than AMQP's 255 bytes"));
    }
    Ok(vhost.to_owned())
}

/// The virtual host of an address, for comparing connections.
pub(crate) fn same_vhost(a: &Address, b: &Address) -> Result<bool> {
    Ok(vhost(a)? == vhost(b)?)
}

/// What an address names on the broker. Names are valid short strings.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) address: Address,
    pub(crate) queue: Option<ShortString>,
    pub(crate) exchange: Option<ShortString>,
    pub(crate) key: Option<ShortString>,
    pub(crate) dead_letter: Option<Route>,
    /// Whether unroutable messages are an error.
    pub(crate) mandatory: bool,
    pub(crate) payload_limit: Option<usize>,
    /// The broker's, where the address says it.
    pub(crate) consumer_timeout: Option<Duration>,
}

/// Where a message is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) exchange: ShortString,
    pub(crate) key: ShortString,
}

impl Route {
    /// Through the default exchange.
    pub(crate) fn to_queue(queue: ShortString) -> Self {
        Self { exchange: ShortString::default(), key: queue }
    }
}

impl Destination {
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let queue = name(address, "queue")?;
        let dead_letter = match (name(address, "dead_letter")?, name(address, "dead_letter_exchange")?) {
            (Some(_), Some(_)) => {
                return Err(bad(address, "'dead_letter' and 'dead_letter_exchange' exclude each other"));
            }
            (Some(queue), None) => Some(Route::to_queue(queue)),
            (None, Some(exchange)) => {
                let key = key(address, "dead_letter_key")?.or_else(|| queue.clone()).unwrap_or_default();
                Some(Route { exchange, key })
            }
            (None, None) => None,
        };
        Ok(Self {
            queue,
            exchange: name(address, "exchange")?,
            key: key(address, "key")?,
            dead_letter,
            mandatory: address.one_of("unroutable", &["error", "drop"])? != Some("drop"),
            payload_limit: address.parsed("payload_limit", "a number of bytes")?,
            consumer_timeout: address.duration("consumer_timeout")?,
            address: address.clone(),
        })
    }

    /// The queue, which reading needs.
    pub(crate) fn source(&self) -> Result<ShortString> {
        self.queue.clone().ok_or_else(|| bad(&self.address, "names no queue; add ?queue=NAME"))
    }

    /// What can be done here, by what the address says of the broker.
    pub(crate) fn capabilities(&self) -> Capabilities {
        let mut capabilities = capabilities::RABBITMQ;
        capabilities.limits.payload_bytes = self.payload_limit.or(capabilities.limits.payload_bytes);
        if let Some(time) = self.consumer_timeout {
            capabilities.lease = Lease::Fixed(time);
        }
        if self.address.option("queue_type") == Some("classic") {
            // It only tells the first delivery from later ones.
            capabilities.delivery_count = Level::No;
        }
        capabilities
    }

    /// How the address is created, for errors.
    pub(crate) fn hint(&self) -> String {
        format!("throughline create '{}'", self.address)
    }
}

/// Whether a key is a binding pattern, which nothing can be published with.
pub(crate) fn is_pattern(key: &str) -> bool {
    key.split('.').any(|word| word == "*" || word == "#")
}

fn name(address: &Address, option: &str) -> Result<Option<ShortString>> {
    match key(address, option)? {
        Some(name) if name.as_str().is_empty() => Err(address.bad_option(option, "a name")),
        name => Ok(name),
    }
}

fn key(address: &Address, option: &str) -> Result<Option<ShortString>> {
    address
        .option(option)
        .map(|value| {
            ShortString::try_new(value).map_err(|_| {
                bad(
                    address,
                    format!("option '{option}' is {} bytes long, AMQP's limit is {SHORT} bytes", value.len()),
                )
            })
        })
        .transpose()
}

pub(crate) fn bad(address: &Address, text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidAddress, text).at("read address", address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn reads_connections() {
        let settings = Settings::of(&address("amqp://us%40er:p%3Aw@host:1234/a%2fb")).unwrap();
        assert_eq!((settings.host.as_str(), settings.port, settings.vhost.as_str()), ("host", 1234, "a/b"));
        assert_eq!((settings.user.as_str(), settings.password.as_str()), ("us@er", "p:w"));
        assert!(!format!("{settings:?}").contains("p:w"));
        for (text, host, port, vhost) in [
            ("amqp://", "localhost", 5672, "/"),
            ("amqps://h", "h", 5671, "/"),
            ("amqp://h/", "h", 5672, "/"),
            ("amqp://h/%2f?queue=q", "h", 5672, "/"),
            ("amqp://[::1]:7/v", "::1", 7, "v"),
        ] {
            let settings = Settings::of(&address(text)).unwrap();
            assert_eq!((settings.host.as_str(), settings.port, settings.vhost.as_str()), (host, port, vhost));
            assert_eq!((settings.user.as_str(), settings.password.as_str()), ("guest", "guest"));
        }
    }

    #[test]
    fn says_what_is_wrong_with_an_address() {
        for (text, expected) in [
            ("amqp:q", "no '//'"),
            ("amqp://a,b/", "one broker only"),
            ("amqp://h:99999/", "port"),
            ("amqp://h/a/b", "%2f"),
            ("amqp://h/?ca=x", "amqps://"),
            ("amqps://h/?client_cert=x", "go together"),
            ("amqp://h/?heartbeat=0s", "between 1s"),
            ("amqp://h/?connect_timeout=x", "duration"),
            ("amqp://h/?auth=magic", "plain or external"),
        ] {
            let error = Settings::of(&address(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        let long = format!("amqp://h/?queue={}", "q".repeat(256));
        for (text, expected) in [
            (long.as_str(), "256 bytes long"),
            ("amqp://h/?queue=", "not a name"),
            ("amqp://h/?dead_letter=a&dead_letter_exchange=b", "exclude"),
            ("amqp://h/?unroutable=x", "error or drop"),
            ("amqp://h/?consumer_timeout=x", "a duration"),
        ] {
            let error = Destination::of(&address(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        assert!(Destination::of(&address("amqp://h/")).unwrap().source().is_err());
    }

    #[test]
    fn a_key_with_wildcards_is_a_pattern() {
        assert!(is_pattern("a.#") && is_pattern("*") && is_pattern("#.b"));
        assert!(!is_pattern("a.b") && !is_pattern("a*") && !is_pattern(""));
    }
}
