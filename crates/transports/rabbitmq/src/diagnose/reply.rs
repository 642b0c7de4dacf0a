//! Reads from a refusal what the broker has in place of what was asked for.
//!
//! AMQP has no method to read how a queue or exchange was declared. A declaration that differs from what exists is
//! refused, and the refusal names one argument that differs, and its present value:
//!
//! ```text
//! PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received none but current is
//! the value '10' of type 'signedint'
//! ```
//!
//! The text is at most 255 bytes long, and cut there: then it says nothing.

use lapin::types::AMQPValue;

/// An argument that differs, and what it is at present; `None`: it is not set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Inequivalent {
    pub(crate) name: String,
    pub(crate) current: Option<AMQPValue>,
}

impl Inequivalent {
    /// Reads a refusal's text. `None` where it is another, or was cut.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("inequivalent arg '")?;
        let (name, _) = rest.split_once("' for ")?;
        let (_, current) = text.rsplit_once(" but current is ")?;
        let current = match current {
            "none" => None,
            other => Some(value(other)?),
        };
        Some(Self { name: name.to_owned(), current })
    }
}

/// `the value '10' of type 'signedint'`, or `'10'` where both values are of one type.
fn value(text: &str) -> Option<AMQPValue> {
    let Some(rest) = text.strip_prefix("the value '") else {
        let plain = text.strip_prefix('\'')?.strip_suffix('\'')?;
        return Some(match plain {
            "true" => AMQPValue::Boolean(true),
            "false" => AMQPValue::Boolean(false),
            text => match text.parse() {
                Ok(number) => AMQPValue::LongLongInt(number),
                Err(_) => AMQPValue::LongString(text.into()),
            },
        });
    };
    let (value, kind) = rest.strip_suffix('\'')?.rsplit_once("' of type '")?;
    Some(match kind {
        "longstr" => AMQPValue::LongString(value.into()),
        "bool" => AMQPValue::Boolean(value.parse().ok()?),
        // Of whatever width: the broker compares numbers as such.
        _ => AMQPValue::LongLongInt(value.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of RabbitMQ 3.10.
    #[test]
    fn reads_what_the_broker_has() {
        for (text, name, current) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'p1' in vhost '/': received none but \
                 current is the value '10' of type 'signedint'",
                "x-max-length",
                Some(AMQPValue::LongLongInt(10)),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'p2' in vhost '/': received 'true' but \
                 current is 'false'",
                "durable",
                Some(AMQPValue::Boolean(false)),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'p4' in vhost '/': received none but \
                 current is the value 'stream' of type 'longstr'",
                "x-queue-type",
                Some(AMQPValue::LongString("stream".into())),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'e2' in vhost '/': received \
                 the value '1' of type 'signedint' but current is none",
                "alternate-exchange",
                None,
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'e1' in vhost '/': received \
                 '1' but current is 'amq.direct'",
                "alternate-exchange",
                Some(AMQPValue::LongString("amq.direct".into())),
            ),
        ] {
            let expected = Inequivalent { name: name.to_owned(), current };
            assert_eq!(Inequivalent::read(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_cut_or_of_another_kind_says_nothing() {
        for text in [
            "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received none but \
             current is the value 'a long na",
            "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'tr",
            "PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'nope-q' in vhost '/'",
            "",
        ] {
            assert_eq!(Inequivalent::read(text), None, "{text}");
        }
    }
}
