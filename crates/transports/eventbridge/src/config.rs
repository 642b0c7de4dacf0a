//! What an address says: the bus, the source, and the rule's target queue.

use serde_json::{Value, json};
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
    let [_, dead_letter, _, receivers, visibility, max_receives, retention, queue_delay] = QUEUE_OPTIONS;
    let [region, profile, endpoint, timeout, connect_timeout] = settings::OPTIONS;
    [
        option(
            "unroutable",
            "error|drop",
            "What becomes of messages while nobody listens; error by default.",
        ),
        option("queue", "NAME", "The rule's target queue, to consume from; create makes both."),
        option("bus", "NAME", "The event bus, in place of what stands before the options."),
        option("source", "NAME", "The source of messages that name none; create: what the rule takes."),
        option("pattern", "JSON", "create: the rule's event pattern, in place of one on the source."),
        option(
            "raw",
            "true|false",
            "The payload, a JSON object, is the event's detail itself; false by default.",
        ),
        dead_letter,
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
        option("rule", "NAME", "create: the rule's name; that of the queue by default."),
    ]
};

/// The source of messages that name none, where the address names none either.
pub(crate) const SOURCE: &str = "throughline";

/// The longest name of a bus, and the longest source, in bytes.
/// <https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEventsRequestEntry.html>
const MAX_NAME: usize = 256;

/// What an address names.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) address: Address,
    /// The bus's name or ARN.
    pub(crate) bus: String,
    pub(crate) source: String,
    pub(crate) is_raw: bool,
    /// Whether publishing where nobody listens is an error.
    pub(crate) must_route: bool,
}

impl Destination {
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let path = address.decoded_path()?;
        let before = address.authority().map_or(path.clone(), |authority| format!("{authority}{path}"));
        let bus = address.option("bus").filter(|bus| !bus.is_empty()).unwrap_or(&before).to_owned();
        let is_legal = |b: u8| b.is_ascii_alphanumeric() || b"/.-_:".contains(&b);
        if bus.is_empty() {
            return Err(bad(
                address,
                "names no event bus; an address looks like eventbridge://default?source=shop",
            ));
        }
        if !bus.bytes().all(is_legal) {
            return Err(bad(address, format!("'{bus}' cannot be the name of an event bus")));
        }
        check_name(address, "the event bus's name", &bus, MAX_NAME)?;
        let source = address.option("source").filter(|source| !source.is_empty()).unwrap_or(SOURCE);
        check_name(address, "the source", source, MAX_NAME)?;
        if source.starts_with("aws.") {
            return Err(
                address.bad_option("source", "a source that does not begin with 'aws.', which is AWS's own")
            );
        }
        let is_raw = address.one_of("raw", &["true", "false"])? == Some("true");
        let must_route = address.one_of("unroutable", &["error", "drop"])? != Some("drop");
        Ok(Self { address: address.clone(), bus, source: source.to_owned(), is_raw, must_route })
    }

    pub(crate) fn queue(&self) -> Option<&str> {
        self.address.option("queue").filter(|queue| !queue.is_empty())
    }

    /// The rule's name.
    pub(crate) fn rule(&self) -> Option<&str> {
        // An ARN's last part is the queue's name.
        let queue = self.queue().and_then(|queue| queue.rsplit(':').next());
        self.address.option("rule").filter(|rule| !rule.is_empty()).or(queue)
    }

    /// The rule's event pattern: as given, or on the source, or everything.
    pub(crate) fn pattern(&self) -> Result<Value> {
        match (self.address.option("pattern"), self.address.option("source")) {
            (Some(pattern), _) => match serde_json::from_str(pattern) {
                Ok(Value::Object(pattern)) if !pattern.is_empty() => Ok(Value::Object(pattern)),
                _ => Err(self.address.bad_option("pattern", "a JSON object such as {\"source\":[\"shop\"]}")),
            },
            (None, Some(source)) => Ok(json!({ "source": [source] })),
            (None, None) => Ok(json!({ "source": [{ "prefix": "" }] })),
        }
    }

    /// How the address is created, for errors.
    pub(crate) fn hint(&self) -> String {
        format!("throughline create '{}'", self.address)
    }
}

/// Another bus of the same connection; a work queue is one with one rule.
pub(crate) fn sibling(of: &Address, sibling: &Sibling<'_>) -> Option<Address> {
    Some(source::sibling(of, sibling, "bus"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Destination> {
        Destination::of(&text.parse().unwrap())
    }

    #[test]
    fn reads_every_form_and_says_what_is_wrong() {
        let read = of("eventbridge://shop?source=orders&queue=q").unwrap();
        assert_eq!((read.bus.as_str(), read.source.as_str(), read.rule()), ("shop", "orders", Some("q")));
        assert_eq!(read.pattern().unwrap(), json!({ "source": ["orders"] }));
        let read =
            of("eventbridge://arn:aws:events:eu-west-1:1:event-bus/shop?queue=arn:aws:sqs:r:1:q").unwrap();
        assert_eq!(
            (read.bus.as_str(), read.rule()),
            ("arn:aws:events:eu-west-1:1:event-bus/shop", Some("q"))
        );
        assert_eq!(of("eventbridge:?bus=shop").unwrap().bus, "shop");
        for (text, expected) in [
            ("eventbridge:", "names no event bus"),
            ("eventbridge://a?source=aws.ec2", "aws."),
            ("eventbridge://ä", "cannot be"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        assert!(of("eventbridge://a?pattern=[]").unwrap().pattern().is_err());
        let long = "n".repeat(257);
        for (text, what) in [
            (format!("eventbridge://{long}"), "the event bus's name"),
            (format!("eventbridge://a?source={long}"), "the source"),
        ] {
            let error = of(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("{what} is 257 characters, the limit is 256")), "{error}");
        }
    }
}
