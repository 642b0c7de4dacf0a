//! What an address says: the queue, and how it is made and consumed.

use std::time::Duration;

use throughline_aws::settings::{self, bad};
use throughline_core::address::AddressOption;
use throughline_core::driver::{Place, Sibling};
use throughline_core::{Address, Result};

const fn option(name: &'static str, value: &'static str, help: &'static str) -> AddressOption {
    AddressOption { name, value, help }
}

/// What says how a queue is made and consumed.
pub const QUEUE_OPTIONS: [AddressOption; 8] = [
    option("queue", "NAME", "The queue, in place of what stands before the options."),
    option("dead_letter", "QUEUE", "The queue for rejected messages; else that of the redrive policy."),
    option("fifo", "true|false", "FIFO: names get the ending .fifo where they have none."),
    option("receivers", "1..32", "At most so many requests for messages at once; 8 by default."),
    option("visibility", "DURATION", "create: the queue's own visibility timeout; 30s by default."),
    option(
        "max_receives",
        "1..1000",
        "create: after so many receipts SQS moves a message to the dead-letter queue; 100 by default.",
    ),
    option("retention", "DURATION", "create: how long SQS keeps a message; 14days by default."),
    option("queue_delay", "DURATION", "create: how long every message waits at first; 0s by default."),
];

/// The options of all roles.
pub(crate) const OPTIONS: [AddressOption; 13] = {
    let [queue, dead_letter, fifo, receivers, visibility, max_receives, retention, queue_delay] =
        QUEUE_OPTIONS;
    let [region, profile, endpoint, timeout, connect_timeout] = settings::OPTIONS;
    [
        queue,
        dead_letter,
        fifo,
        receivers,
        visibility,
        max_receives,
        retention,
        queue_delay,
        region,
        profile,
        endpoint,
        timeout,
        connect_timeout,
    ]
};

/// The longest name of a queue. <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const MAX_NAME: usize = 80;
/// The ending of every FIFO queue's name.
pub(crate) const FIFO: &str = ".fifo";

/// How an address names its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueueName {
    /// In the account of the credentials.
    Name(String),
    /// `arn:aws:sqs:REGION:ACCOUNT:NAME`.
    Arn { region: String, account: String, name: String },
    /// As `GetQueueUrl` gives it.
    Url(String),
}

impl QueueName {
    /// The queue's own name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Name(name) | Self::Arn { name, .. } => name,
            Self::Url(url) => url.trim_end_matches('/').rsplit('/').next().unwrap_or_default(),
        }
    }

    pub(crate) fn is_fifo(&self) -> bool {
        self.name().ends_with(FIFO)
    }
}

/// What an address names.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) address: Address,
    pub(crate) queue: QueueName,
    pub(crate) dead_letter: Option<QueueName>,
    pub(crate) receivers: usize,
}

impl Destination {
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let fifo = is_fifo(address)?;
        let written = match address.option("queue").filter(|queue| !queue.is_empty()) {
            Some(queue) => queue.to_owned(),
            None => written(address)?,
        };
        if written.is_empty() {
            return Err(bad(
                address,
                "names no queue; an address looks like sqs://NAME, sqs:ARN or sqs:https://queue-url",
            ));
        }
        let queue = queue_name(address, &written, fifo)?;
        let dead_letter = address.option("dead_letter").filter(|name| !name.is_empty());
        let dead_letter = dead_letter.map(|name| queue_name(address, name, queue.is_fifo())).transpose()?;
        if dead_letter.as_ref().is_some_and(|dead_letter| dead_letter.is_fifo() != queue.is_fifo()) {
            return Err(bad(
                address,
                "a FIFO queue's dead-letter queue is a FIFO queue, and a standard one's a standard one",
            ));
        }
        let receivers = address.parsed("receivers", "a number from 1 to 32")?.unwrap_or(8);
        if !(1..=32).contains(&receivers) {
            return Err(address.bad_option("receivers", "a number from 1 to 32"));
        }
        Ok(Self { address: address.clone(), queue, dead_letter, receivers })
    }

    /// How the address is created, for errors.
    pub(crate) fn hint(&self) -> String {
        format!("throughline create '{}'", self.address)
    }
}

/// Another queue of the same connection; a queue has no subscriptions.
pub(crate) fn sibling(of: &Address, sibling: &Sibling<'_>) -> Option<Address> {
    let Place::Queue(name) = sibling.place else { return None };
    let address = of.clone().without_options(&["queue", "dead_letter"]).with_option("queue", name);
    Some(
        sibling
            .dead_letter
            .into_iter()
            .fold(address, |address, name| address.with_option("dead_letter", name)),
    )
}

/// Whether the address asks for FIFO queues.
pub(crate) fn is_fifo(address: &Address) -> Result<bool> {
    let asked = address.one_of("fifo", &["true", "false"])? == Some("true");
    Ok(asked || written(address)?.ends_with(FIFO))
}

/// What stands before the options.
fn written(address: &Address) -> Result<String> {
    let path = address.decoded_path()?;
    match address.authority() {
        Some(authority) if path.is_empty() || path == "/" => Ok(authority.to_owned()),
        Some(_) => Err(bad(address, "a queue's name has no '/'; a queue URL is written sqs:https://…")),
        None => Ok(path),
    }
}

fn queue_name(address: &Address, text: &str, fifo: bool) -> Result<QueueName> {
    if text.starts_with("https://") || text.starts_with("http://") {
        return Ok(QueueName::Url(text.to_owned()));
    }
    if text.starts_with("arn:") {
        return match text.split(':').collect::<Vec<_>>()[..] {
            ["arn", _, "sqs", region, account, name] if !name.is_empty() => Ok(QueueName::Arn {
                region: region.to_owned(),
                account: account.to_owned(),
                name: name.to_owned(),
            }),
            _ => {
                Err(bad(address, "not the ARN of a queue, which looks like arn:aws:sqs:REGION:ACCOUNT:NAME"))
            }
        };
    }
    let name = if fifo && !text.ends_with(FIFO) { format!("{text}{FIFO}") } else { text.to_owned() };
    let base = name.strip_suffix(FIFO).unwrap_or(&name);
    let is_legal = base.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if base.is_empty() || !is_legal {
        return Err(bad(
            address,
            format!("'{name}' cannot be the name of a queue: up to {MAX_NAME} letters, digits, - and _"),
        ));
    }
    check_name(address, "the queue's name", &name, MAX_NAME)?;
    Ok(QueueName::Name(name))
}

/// Refuses a name that is longer than AWS takes.
pub fn check_name(address: &Address, what: &str, name: &str, most: usize) -> Result<()> {
    if name.len() <= most {
        return Ok(());
    }
    Err(bad(address, format!("{what} is {} characters, the limit is {most}", name.len())))
}

/// A duration in whole seconds, within what SQS takes.
pub(crate) fn seconds(
    address: &Address,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>> {
    let Some(duration) = address.duration(name)? else { return Ok(None) };
    if duration.subsec_nanos() != 0 || !range.contains(&duration.as_secs()) {
        return Err(
            address.bad_option(name, &format!("whole seconds from {}s to {}s", range.start(), range.end()))
        );
    }
    Ok(Some(duration.as_secs()))
}

/// Whole seconds, rounded up.
pub(crate) fn round_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use throughline_core::ErrorKind;

    use super::*;

    fn of(text: &str) -> Result<Destination> {
        Destination::of(&text.parse().unwrap())
    }

    #[test]
    fn reads_every_form() {
        let name = |text: &str| QueueName::Name(text.to_owned());
        assert_eq!(of("sqs://jobs").unwrap().queue, name("jobs"));
        assert_eq!(of("sqs:?queue=jobs").unwrap().queue, name("jobs"));
        assert_eq!(of("sqs://ignored?queue=jobs").unwrap().queue, name("jobs"));
        assert_eq!(of("sqs://jobs?fifo=true&dead_letter=dead").unwrap().dead_letter, Some(name("dead.fifo")));
        let arn = of("sqs:arn:aws:sqs:eu-west-1:123:jobs.fifo").unwrap().queue;
        assert_eq!((arn.name(), arn.is_fifo()), ("jobs.fifo", true));
        let url = of("sqs:https://sqs.eu-west-1.amazonaws.com/123/jobs").unwrap().queue;
        assert_eq!((url.name(), url.is_fifo()), ("jobs", false));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, expected) in [
            ("sqs:", "names no queue"),
            ("sqs://a/b", "sqs:https"),
            ("sqs://a.b", "'a.b' cannot be"),
            ("sqs:arn:aws:sns:eu-west-1:123:t", "not the ARN"),
            ("sqs://a?dead_letter=b.fifo", "FIFO"),
            ("sqs://a?receivers=0", "1 to 32"),
            ("sqs://a?fifo=maybe", "true or false"),
        ] {
            let error = of(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        assert!(of(&format!("sqs://{}", "q".repeat(80))).is_ok());
        let error = of(&format!("sqs://{}", "q".repeat(81))).unwrap_err();
        assert!(error.to_string().contains("the queue's name is 81 characters, the limit is 80"), "{error}");
    }
}
