//! What an address means here.

use throughline_core::address::AddressOption;
use throughline_core::capabilities::Level;
use throughline_core::driver::{self, Sibling};
use throughline_core::{Address, Error, ErrorKind, Result};

use crate::like;

/// How many messages a queue holds where the address does not say.
const MAX_LENGTH: usize = 1_000_000;

pub(crate) const OPTIONS: &[AddressOption] = &[
    AddressOption { name: "queue", value: "NAME", help: "the queue, or the subscription of a topic" },
    AddressOption {
        name: "topic",
        value: "NAME",
        help: "the topic: each of its subscriptions gets every message",
    },
    AddressOption {
        name: "create",
        value: "auto|never",
        help: "whether what is missing is created on first use",
    },
    AddressOption {
        name: "unroutable",
        value: "error|drop",
        help: "what becomes of a message to a topic without subscriptions",
    },
    AddressOption { name: "dead_letter", value: "QUEUE", help: "the queue for what is rejected" },
    AddressOption { name: "max_length", value: "N", help: "how many messages a new queue holds" },
    AddressOption {
        name: "like",
        value: "sqs|sns|eventbridge|rabbitmq|kafka|…",
        help: "another transport's limits and levels, for tests without its broker",
    },
];

/// A destination or source.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) place: Place,
    pub(crate) create: bool,
    pub(crate) drop_unroutable: bool,
    pub(crate) dead_letter: Option<String>,
    pub(crate) max_length: usize,
    /// The subscription is a consumer's own, and is made with it whatever `create` says.
    pub(crate) own: bool,
}

/// Where messages go to or come from.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Queue(String),
    Topic { topic: String, subscription: Option<String> },
}

impl Place {
    /// The `messaging.destination.name` of it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Topic { topic: name, .. } => name,
        }
    }
}

/// The address of another place on the same bus.
pub(crate) fn sibling(of: &Address, sibling: &Sibling<'_>) -> Option<Address> {
    let has_topics = like::of(of).ok()?.is_none_or(|capabilities| capabilities.fan_out != Level::No);
    let mut address = of.clone().without_options(&["queue", "topic", "create", "unroutable", "dead_letter"]);
    address = match sibling.place {
        driver::Place::Queue(name) => address.with_option("queue", name),
        driver::Place::Topic { .. } if !has_topics => return None,
        driver::Place::Topic { topic, subscription } => {
            let address = address.with_option("topic", topic);
            subscription.into_iter().fold(address, |address, name| address.with_option("queue", name))
        }
    };
    if let Some(name) = sibling.dead_letter {
        address = address.with_option("dead_letter", name);
    }
    Some(if sibling.must_exist { address.with_option("create", "never") } else { address })
}

/// The bus's name in the address.
pub(crate) fn bus_name(address: &Address) -> Result<String> {
    let name = match address.authority() {
        None => address.decoded_path()?,
        Some(_) => String::new(),
    };
    if name.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidAddress,
            "names no bus; an address looks like memory:demo?queue=jobs",
        ));
    }
    Ok(name)
}

impl Config {
    pub(crate) fn new(address: &Address) -> Result<Self> {
        let option = |name| address.option(name).filter(|value: &&str| !value.is_empty()).map(str::to_owned);
        let place = match (option("topic"), option("queue")) {
            (Some(topic), subscription) => Place::Topic { topic, subscription },
            (None, Some(queue)) => Place::Queue(queue),
            (None, None) => {
                return Err(Error::new(
                    ErrorKind::InvalidAddress,
                    "names no destination; add ?queue=NAME or ?topic=NAME",
                ));
            }
        };
        Ok(Self {
            place,
            create: address.one_of("create", &["auto", "never"])? != Some("never"),
            drop_unroutable: address.one_of("unroutable", &["error", "drop"])? == Some("drop"),
            dead_letter: option("dead_letter"),
            max_length: address.parsed("max_length", "a number of messages")?.unwrap_or(MAX_LENGTH),
            own: false,
        })
    }
}
