//! Addresses: the parser, and what each transport reads from one.

use throughline::{Address, Error, registered, registrations};

use crate::texts;

const SECRET: &str = "hunter2";

/// An address that parses is shown in a form that parses to the same rendering, and every transport reads it or says why
/// not.
pub(crate) fn parsed(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(address) = text.parse::<Address>() else { return };
    let shown = address.to_string();
    let again = shown.parse::<Address>().map(|again| again.to_string()).map_err(|error| error.to_string());
    assert_eq!(again.as_ref(), Ok(&shown), "from {text:?}");
    let _ = (format!("{address:?}"), address.decoded_path());
    let _ = configured(&address);
}

/// What every transport makes of an address: its errors.
fn configured(address: &Address) -> Vec<Error> {
    let mut errors: Vec<_> =
        registrations().filter_map(|it| address.check_options(it.options).err()).collect();
    errors.extend(registered(address).err());
    errors.extend(throughline_kafka::fuzzing::configure(address));
    errors.extend(throughline_memory::fuzzing::configure(address));
    errors.extend(throughline_rabbitmq::fuzzing::configure(address));
    errors.extend(throughline_sqs::fuzzing::configure(address));
    errors.extend(throughline_sns::fuzzing::configure(address));
    errors.extend(throughline_eventbridge::fuzzing::configure(address));
    errors.extend(throughline_sqlite::fuzzing::configure(address));
    let names: Vec<_> = address.options().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        errors.extend(address.duration(&name).err());
        errors.extend(address.parsed::<u32>(&name, "a number").err());
        errors.extend(address.one_of(&name, &["a", "b"]).err());
    }
    errors
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    texts(&[
        "memory:demo?queue=jobs&create=never&dead_letter=dead&max_length=10",
        "memory:demo?topic=t&queue=q&unroutable=drop",
        "amqp://guest:guest@localhost:5672/%2f?queue=jobs&dead_letter=dead&consumer_timeout=1h",
        "amqps://us%40er:p%3Aw@[::1]:5671/a%2fb?exchange=e&key=a.%23&ca=/x&client_cert=c&client_key=k&server_name=n",
        "amqp://h/?queue_type=classic&max_priority=5&max_length=7&message_ttl=5m&delivery_limit=3&heartbeat=20s",
        "kafka://b1:9092,b2:9092/topic?group=g",
        "kafka://app:secret@b/t?group=g&dead_letter&retry=topic&window=9&drain=1s&kafka.linger.ms=1&config.retention.ms=5",
        "sns://orders?queue=q&raw=false&filter={}&message_limit=1024&fifo=true",
        "eventbridge://shop?source=orders&queue=q&pattern={\"source\":[\"a\"]}&rule=r&raw=true",
        "memory:x?queue=q&like=sqs-fifo",
        "sqs:arn:aws:sqs:eu-west-1:1:q",
        "sqs:https://user:secret@host/1/q?region=x",
        "sqs://q?endpoint=http://user:secret@host/x&session_token=t",
        "sqlite:/var/x.db?queue=q",
        // Only a value can be a URL, which keeps its '@'.
        "amqp://h/v?a://b%40c=d",
        "memory:p?a//b%40c=x",
        "sqlite:///var/x.db?topic=t&queue=q&dead_letter=d&max_length=9&dedupe=1m&synchronous=normal",
    ])
}

/// A password in whatever place, as it is written or encoded, in whatever address: nothing that is shown repeats it.
///
/// The input's lines are the scheme, the user, what stands before and after the secret in the password, the host, and what
/// follows.
pub(crate) fn secret(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let (scheme, user, before, after, host, rest) = (next(), next(), next(), next(), next(), next());
    let address = format!("{scheme}://{user}:{before}{SECRET}{after}@{host}{rest}");
    // A scheme with a colon, or a user with a raw `/` or `?`, is no user: what follows is a path and options as written.
    let is_user = |text: &str| !text.contains([':', '/', '?', '@']);
    // A scheme is shown in lower case.
    if address.to_lowercase().matches(SECRET).count() != 1
        || !is_user(user)
        || scheme.contains([':', '/', '?'])
    {
        return;
    }
    let mut shown = Vec::new();
    match address.parse::<Address>() {
        Ok(parsed) => {
            shown.push(format!("{parsed} {parsed:?}"));
            shown.extend(configured(&parsed).iter().map(|error| format!("{error} {error:?}")));
        }
        Err(error) => shown.push(format!("{error} {error:?}")),
    }
    for shown in shown {
        assert!(!shown.contains(SECRET), "{address:?} is shown as {shown:?}");
    }
}

pub(crate) fn secret_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "amqp\nuser\n\n\nhost\n/%2f?queue=q",
        "amqp\nuser\na/\nb\nhost\n/%2f?queue=q",
        "amqp\nuser\na?\nb\nhost\n/%2f?queue=q",
        "amqps\nuser\na@\n:b\nhost:5671\n/v?exchange=e&qeue=q",
        "sqs:https\nuser\n\n/x\nhost\n/1/q?region=x",
        "memory:x?endpoint=http\nuser\n\n\nhost\n/x",
        "amqp\nuser\n%zz\n\nhost\n:99999/?heartbeat=x",
        "nosuch\nuser\na&b=\n&c=\nhost\n/v",
    ])
}
