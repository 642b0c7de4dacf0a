//! What an address says: the topic, and the subscribed queue.

use throughline_aws::settings::{self, bad};
use throughline_core::address::AddressOption;
use throughline_core::driver::Sibling;
use throughline_core::{Address, Result};
use throughline_sqs::source::{self, QUEUE_OPTIONS, check_name};

const fn option(name: &'static str, value: &'static str, help: &'static str) -> AddressOption {
    AddressOption { name, value, help }
}

/// The options of all roles.
pub(crate) const OPTIONS: [AddressOption; 18] = {
    let [_, dead_letter, fifo, receivers, visibility, max_receives, retention, queue_delay] = QUEUE_OPTIONS;
    let [region, profile, endpoint, timeout, connect_timeout] = settings::OPTIONS;
    [
        option(
            "unroutable",
            "error|drop",
            "What becomes of messages while nobody listens; error by default.",
        ),
        option("queue", "NAME", "The subscribed queue, to consume from; create makes and subscribes it."),
        option("topic", "NAME", "The topic, in place of what stands before the options."),
        option("raw", "true|false", "create: messages arrive as they were published; true by default."),
        option("filter", "JSON", "create: the subscription's filter policy, on attributes."),
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
        option("message_limit", "BYTES", "The topic's MaximumMessageSize, where it is not 262144."),
    ]
};

/// The longest name of a topic. <https://docs.aws.amazon.com/sns/latest/api/API_CreateTopic.html>
const MAX_NAME: usize = 256;
/// What a topic's MaximumMessageSize may be, in bytes.
const MESSAGE_LIMITS: std::ops::RangeInclusive<usize> = 1024..=1_048_576;
/// The ending of every FIFO topic's name.
const FIFO: &str = ".fifo";

/// What an address names.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) address: Address,
    /// The topic's name.
    pub(crate) topic: String,
    /// Its ARN, where the address says it.
    pub(crate) arn: Option<String>,
    pub(crate) message_limit: Option<usize>,
    /// Whether publishing where nobody listens is an error.
    pub(crate) must_route: bool,
}

impl Destination {
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let path = address.decoded_path()?;
        let before = address.authority().map_or(path, str::to_owned);
        let topic = address.option("topic").filter(|topic| !topic.is_empty()).unwrap_or(&before);
        let range = "a number of bytes from 1024 to 1048576";
        let message_limit = address.parsed("message_limit", range)?;
        if message_limit.is_some_and(|limit| !MESSAGE_LIMITS.contains(&limit)) {
            return Err(address.bad_option("message_limit", range));
        }
        let must_route = address.one_of("unroutable", &["error", "drop"])? != Some("drop");
        if topic.starts_with("arn:") {
            return match topic.split(':').collect::<Vec<_>>()[..] {
                ["arn", _, "sns", _, _, name] if !name.is_empty() => Ok(Self {
                    address: address.clone(),
                    topic: name.to_owned(),
                    arn: Some(topic.to_owned()),
                    message_limit,
                    must_route,
                }),
                _ => Err(bad(
                    address,
                    "not the ARN of a topic, which looks like arn:aws:sns:REGION:ACCOUNT:NAME",
                )),
            };
        }
        let is_fifo = address.one_of("fifo", &["true", "false"])? == Some("true");
        let name =
            if is_fifo && !topic.ends_with(FIFO) { format!("{topic}{FIFO}") } else { topic.to_owned() };
        let base = name.strip_suffix(FIFO).unwrap_or(&name);
        let is_legal = base.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if base.is_empty() {
            return Err(bad(address, "names no topic; an address looks like sns://NAME or sns://ARN"));
        }
        if !is_legal {
            let text =
                format!("'{name}' cannot be the name of a topic: up to {MAX_NAME} letters, digits, - and _");
            return Err(bad(address, text));
        }
        check_name(address, "the topic's name", &name, MAX_NAME)?;
        Ok(Self { address: address.clone(), topic: name, arn: None, message_limit, must_route })
    }

    pub(crate) fn is_fifo(&self) -> bool {
        self.topic.ends_with(FIFO)
    }

    /// The queue's address. A FIFO topic's queue is one, too.
    pub(crate) fn queue(&self) -> Address {
        match self.is_fifo() {
            true => self.address.clone().with_option("fifo", "true"),
            false => self.address.clone(),
        }
    }

    pub(crate) fn has_queue(&self) -> bool {
        self.address.option("queue").is_some_and(|queue| !queue.is_empty())
    }

    /// How the address is created, for errors.
    pub(crate) fn hint(&self) -> String {
        format!("throughline create '{}'", self.address)
    }
}

/// Another topic of the same connection; a work queue is one with one subscription.
pub(crate) fn sibling(of: &Address, sibling: &Sibling<'_>) -> Option<Address> {
    Some(source::sibling(of, sibling, "topic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Destination> {
        Destination::of(&text.parse().unwrap())
    }

    #[test]
    fn reads_every_form_and_says_what_is_wrong() {
        let read = of("sns://orders?queue=q").unwrap();
        assert_eq!((read.topic.as_str(), &read.arn, read.has_queue()), ("orders", &None, true));
        let read = of("sns://arn:aws:sns:eu-west-1:1:orders.fifo").unwrap();
        assert_eq!((read.topic.as_str(), read.is_fifo(), read.arn.is_some()), ("orders.fifo", true, true));
        assert_eq!(of("sns:?topic=orders&fifo=true").unwrap().topic, "orders.fifo");
        for (text, expected) in [
            ("sns:", "names no topic"),
            ("sns://a.b", "'a.b' cannot be"),
            ("sns://arn:aws:sqs:eu-west-1:1:q", "not the ARN"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        let named = |length| of(&format!("sns://{}", "t".repeat(length)));
        assert!(named(256).is_ok());
        let error = named(257).unwrap_err().to_string();
        assert!(error.contains("the topic's name is 257 characters, the limit is 256"), "{error}");
        assert!(of("sns://a?message_limit=1024").is_ok() && of("sns://a?message_limit=1048576").is_ok());
        for limit in ["1023", "1048577", "many"] {
            let error = of(&format!("sns://a?message_limit={limit}")).unwrap_err().to_string();
            assert!(error.contains("message_limit") && error.contains("from 1024 to 1048576"), "{error}");
        }
    }
}
