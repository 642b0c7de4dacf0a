//! Whether two addresses consume from the same place.

use throughline::Address;

/// What an address consumes from, as far as its text tells: the server is left out, because one has many names.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    family: &'static str,
    /// The virtual host, file, bus or topic that the name is of.
    within: String,
    /// The queue, group or subscription.
    name: Option<String>,
}

impl Place {
    fn of(address: &Address) -> Self {
        let path = address.decoded_path().unwrap_or_else(|_| address.path().to_owned());
        let trimmed = path.trim_matches('/').to_owned();
        let option = |name: &str| address.option(name).map(str::to_owned);
        match address.scheme() {
            "amqp" | "amqps" => {
                // A missing virtual host is `/`, which is written %2f.
                Self { family: "amqp", within: trimmed, name: option("queue") }
            }
            "kafka" => Self { family: "kafka", within: trimmed, name: option("group") },
            // A queue is one, whether it is named by itself or by what it is subscribed to.
            "sqs" => {
                let own =
                    option("queue").unwrap_or_else(|| format!("{}{path}", address.authority().unwrap_or("")));
                Self { family: "aws", within: String::new(), name: Some(last(&own)) }
            }
            "sns" | "eventbridge" => {
                Self { family: "aws", within: String::new(), name: option("queue").map(|queue| last(&queue)) }
            }
            // A topic's subscriptions are no queues of the same names.
            "sqlite" => {
                Self { family: "sqlite", within: within(&file(&path), address), name: option("queue") }
            }
            "memory" => Self { family: "memory", within: within(&path, address), name: option("queue") },
            _ => Self { family: "", within: address.to_string(), name: None },
        }
    }
}

fn within(bus: &str, address: &Address) -> String {
    format!("{bus}?{}", address.option("topic").unwrap_or_default())
}

/// A queue's name, of an ARN or a URL, too.
fn last(name: &str) -> String {
    name.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(name).to_owned()
}

/// One file has many names, too.
fn file(path: &str) -> String {
    std::fs::canonicalize(path).map_or_else(|_| path.to_owned(), |path| path.display().to_string())
}

/// Whether consumers of both compete for the same messages, as far as their texts tell. On the safe side: places of the
/// same name on two servers count as one.
pub(super) fn is_same_source(a: &Address, b: &Address) -> bool {
    let (a_place, b_place) = (Place::of(a), Place::of(b));
    // Without a name, a consumer has a subscription of its own, which nobody else takes from.
    a == b || (a_place == b_place && a_place.name.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_queue_is_one_however_it_is_named() {
        let same = |a: &str, b: &str| is_same_source(&a.parse().unwrap(), &b.parse().unwrap());
        for (a, b) in [
            ("amqp://a:b@localhost/%2f?queue=q", "amqp://127.0.0.1:5672?exchange=e&queue=q&key=%23"),
            ("amqp://localhost/v?queue=q", "amqps://localhost/v?queue=q&prefetch=5"),
            ("kafka://a:9092,b:9092/t?group=g", "kafka://b:9092/t?group=g&window=5"),
            ("sqs://jobs", "sqs:arn:aws:sqs:eu-west-1:000000000000:jobs"),
            ("sqs:https://sqs.eu-west-1.amazonaws.com/000000000000/jobs", "sqs:?queue=jobs"),
            ("sqs://jobs?region=eu-west-1", "sns://events?queue=jobs"),
            ("eventbridge://bus?queue=jobs", "sns://events?queue=jobs"),
            ("sqlite:x.db?queue=q&topic=t", "sqlite:x.db?topic=t&queue=q"),
            ("memory:x?queue=q", "memory:x?create=never&queue=q"),
        ] {
            assert!(same(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("amqp://localhost/%2f?queue=q", "amqp://localhost/%2f?queue=tap"),
            ("amqp://localhost/v?queue=q", "amqp://localhost/w?queue=q"),
            ("kafka://a/t?group=g", "kafka://a/t?group=tap"),
            ("kafka://a/t?group=g", "kafka://a/u?group=g"),
            ("sns://events?queue=jobs", "sns://events?queue=tap"),
            ("sqlite:x.db?topic=t&queue=q", "sqlite:x.db?topic=t&queue=tap"),
            ("sqlite:x.db?topic=t&queue=q", "sqlite:y.db?topic=t&queue=q"),
            ("sqlite:x.db?topic=t&queue=q", "sqlite:x.db?queue=q"),
            ("sqlite:x.db?topic=t", "sqlite:x.db?topic=t&create=auto"),
            ("sqlite:x.db?queue=q", "memory:x.db?queue=q"),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }
}
