//! What an address means here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use throughline_core::address::AddressOption;
use throughline_core::driver::{self, Sibling};
use throughline_core::{Address, Error, ErrorKind, Result};

/// How long an operation is remembered, to tell a second send: as long as SQS FIFO queues do.
const DEDUPE: Duration = Duration::from_secs(5 * 60);

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
        help: "whether what is missing is created on first use, the file included",
    },
    AddressOption {
        name: "unroutable",
        value: "error|drop",
        help: "what becomes of a message to a topic without subscriptions",
    },
    AddressOption { name: "dead_letter", value: "QUEUE", help: "the queue for what is rejected" },
    AddressOption { name: "max_length", value: "N", help: "how many messages a new queue holds" },
    AddressOption {
        name: "dedupe",
        value: "DURATION",
        help: "how long a send is remembered, so that a second one is not delivered; 0s: not at all",
    },
    AddressOption {
        name: "synchronous",
        value: "normal|full|extra",
        help: "what `Ok` survives in a power failure: of a publish (full), of a settlement, too (extra), of neither (normal)",
    },
];

/// A destination or source.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) place: Place,
    pub(crate) create: bool,
    pub(crate) drop_unroutable: bool,
    pub(crate) dead_letter: Option<String>,
    pub(crate) max_length: Option<u32>,
    pub(crate) dedupe: Duration,
}

/// Where messages go to or come from.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What is on the disk before it is answered. What is not survives the death of the process, and in a power failure the
/// latest of it may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Nothing.
    Normal,
    /// What is published. A settlement that is lost is a message that comes again, which can happen anyway.
    Full,
    /// All but leases.
    Extra,
}

impl Durability {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Full => "full",
            Self::Extra => "extra",
        }
    }

    pub(crate) fn of(address: &Address) -> Result<Self> {
        Ok(match address.one_of("synchronous", &["normal", "full", "extra"])? {
            Some("normal") => Self::Normal,
            Some("extra") => Self::Extra,
            _ => Self::Full,
        })
    }
}

/// The address of another place in the same file.
pub(crate) fn sibling(of: &Address, sibling: &Sibling<'_>) -> Option<Address> {
    let mut address = of.clone().without_options(&["queue", "topic", "create", "unroutable", "dead_letter"]);
    address = match sibling.place {
        driver::Place::Queue(name) => address.with_option("queue", name),
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

/// The file that an address names, as one absolute path whatever the spelling. Looks at the file system.
pub(crate) fn file(address: &Address) -> Result<PathBuf> {
    let written = written_file(address)?;
    let at = |what: String| Error::new(ErrorKind::NotFound, what);
    if let Ok(path) = written.canonicalize() {
        if path.is_dir() {
            let what = format!("{} is a folder; name a file in it", path.display());
            return Err(Error::new(ErrorKind::InvalidAddress, what));
        }
        return Ok(path);
    }
    let (Some(name), parent) = (written.file_name(), written.parent().unwrap_or(Path::new(""))) else {
        return Err(unnamed());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let folder = parent.canonicalize().map_err(|error| {
        at(format!("the folder {} cannot be had ({error}); create it first", parent.display()))
    })?;
    Ok(folder.join(name))
}

/// The path as the address has it.
pub(crate) fn written_file(address: &Address) -> Result<PathBuf> {
    if let Some(host) = address.authority().filter(|host| !host.is_empty()) {
        let text = format!(
            "names a host, '{host}'; a file is sqlite:relative.db?queue=NAME or sqlite:///absolute/path.db?queue=NAME"
        );
        return Err(Error::new(ErrorKind::InvalidAddress, text));
    }
    let path = address.decoded_path()?;
    match path.as_str() {
        "" | "/" => Err(unnamed()),
        ":memory:" => Err(Error::new(
            ErrorKind::InvalidAddress,
            "a database in memory is nobody else's; memory:NAME is the transport for that",
        )),
        path if path.contains('\0') => {
            Err(Error::new(ErrorKind::InvalidAddress, "the path has a zero byte in it"))
        }
        path => Ok(path.into()),
    }
}

fn unnamed() -> Error {
    Error::new(ErrorKind::InvalidAddress, "names no file; an address looks like sqlite:bus.db?queue=jobs")
}

impl Config {
    /// What dead letters say that they come from: the queue or subscription.
    pub(crate) fn source_name(&self) -> &str {
        match &self.place {
            Place::Queue(name) | Place::Topic { subscription: Some(name), .. } => name,
            Place::Topic { topic, subscription: None } => topic,
        }
    }

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
            max_length: address.parsed("max_length", "a number of messages")?,
            dedupe: address.duration("dedupe")?.unwrap_or(DEDUPE),
        })
    }
}
