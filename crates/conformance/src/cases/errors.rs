//! Errors: what is missing is told as missing, with what to do, and without secrets.

use throughline_core::capabilities::{Lease, Level, Reach};
use throughline_core::driver::Place;
use throughline_core::{Address, Capabilities, ConsumeOptions, Error, ErrorKind, PublishOptions, Result};

use super::cases;
use crate::cx::Cx;
use crate::messages::message;
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable};

pub(crate) const CASES: &[Case] = cases!["errors";
    missing_queue_is_not_found: "Publishing to or consuming from a queue that is not there is `NotFound`, and says how to make it.",
    missing_topic_is_not_found: "Publishing to a topic that is not there is `NotFound`.",
    deleted_queue_ends_the_stream: "A consumer whose queue is deleted is told `NotFound`; it does not wait for ever.",
    errors_show_no_password: "No error shows the password of the address.",
    declared_abilities_agree: "What transport, publisher and consumer declare does not contradict each other.",
];

/// Publishing somewhere: whether opening or the first message fails.
async fn try_publish(cx: &Cx, to: &Address) -> Result<(), Error> {
    let publisher = cx.publisher_on(cx.transport(), to, PublishOptions::default()).await?;
    let published = publisher.publish(message("to nowhere")).await.map(drop);
    publisher.close().await?;
    published
}

async fn try_consume(cx: &Cx, from: &Address) -> Result<(), Error> {
    let mut consumer = cx.consumer_with(from, ConsumeOptions::default()).await?;
    let next = tokio::time::timeout(cx.settings().silence, consumer.next()).await;
    consumer.close().await?;
    match next {
        Ok(Some(Err(error))) => Err(error),
        _ => Ok(()),
    }
}

fn not_found(cx: &Cx, what: &str, answer: Result<(), Error>) -> Result<Error, Fail> {
    let error = match answer {
        Err(error) if error.kind() == ErrorKind::NotFound => error,
        answer => return Err(Fail(format!("{what} something missing is answered {answer:?}"))),
    };
    // An embedded one is made by whoever uses it.
    if cx.capabilities().reach == Reach::Network {
        ensure!(
            error.to_string().contains("throughline create"),
            "{what} something missing does not say how to make it: {error}"
        );
    }
    Ok(error)
}

async fn missing_queue_is_not_found(cx: Cx) -> Checked {
    let name = cx.name();
    let Some(missing) = cx.missing(Place::Queue(&name)) else {
        return not_applicable("no address for a queue");
    };
    not_found(&cx, "publishing to", cx.within("publishing", try_publish(&cx, &missing)).await?)?;
    not_found(&cx, "consuming from", cx.within("consuming", try_consume(&cx, &missing)).await?)?;
    // That it was looked for has not made it.
    let depth = cx.within("counting", cx.transport().depth(&missing)).await?;
    ensure!(
        depth.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound),
        "the depth of a missing queue is answered {depth:?}"
    );
    Ok(Verdict::Passed)
}

async fn missing_topic_is_not_found(cx: Cx) -> Checked {
    let name = cx.name();
    let place = Place::Topic { topic: &name, subscription: None };
    let Some(missing) = cx.missing(place) else { return not_applicable("the transport has no topics") };
    not_found(&cx, "publishing to", cx.within("publishing", try_publish(&cx, &missing)).await?)?;
    Ok(Verdict::Passed)
}

async fn deleted_queue_ends_the_stream(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let mut consumer = cx.consumer(&queue).await?;
    cx.within("deleting", cx.transport().delete(&queue)).await??;
    let next = cx.within("waiting to be told of the deletion", consumer.next()).await?;
    match next {
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => {}
        next => ensure!(false, "after the deletion the stream goes on with {next:?}"),
    }
    let end = cx.within("waiting for the end of the stream", consumer.next()).await?;
    ensure!(end.is_none(), "after its last error the stream goes on with {end:?}");
    Ok(Verdict::Passed)
}

async fn errors_show_no_password(cx: Cx) -> Checked {
    let name = cx.name();
    let Some(missing) = cx.missing(Place::Queue(&name)) else {
        return not_applicable("no address for a queue");
    };
    let Some(password) = missing.password().map(str::to_owned) else {
        return not_applicable("the address has no password");
    };
    for answer in [try_publish(&cx, &missing).await, try_consume(&cx, &missing).await] {
        let shown = answer.map_or_else(|error| format!("{error} {error:?}"), |()| String::new());
        // The word alone may well be another's: `guest` is.
        let secret = format!(":{password}@");
        ensure!(!shown.contains(&secret), "an error shows the password");
    }
    Ok(Verdict::Passed)
}

/// What an address can resolve to something weaker; what it may not be is stronger than the transport at its best.
fn within(at_best: &Capabilities, resolved: &Capabilities, what: &str) -> Result<(), Fail> {
    ensure!(
        resolved.transport == at_best.transport && resolved.system == at_best.system,
        "the {what} is of {}/{}, its transport of {}/{}",
        resolved.transport,
        resolved.system,
        at_best.transport,
        at_best.system
    );
    let levels = |capabilities: &Capabilities| {
        [
            ("order", capabilities.order),
            ("delay", capabilities.delay),
            ("deduplication", capabilities.deduplication),
            ("priority", capabilities.priority),
            ("expiry", capabilities.expiry),
            ("delivery count", capabilities.delivery_count),
            ("dead letter", capabilities.dead_letter),
            ("fan-out", capabilities.fan_out),
            ("telling of what is unroutable", capabilities.unroutable),
        ]
    };
    for ((name, best), (_, here)) in levels(at_best).into_iter().zip(levels(resolved)) {
        ensure!(
            best != Level::No || here == Level::No,
            "{name} is `No` for the transport, and {here} for its {what}"
        );
    }
    ensure!(resolved.limits.batch_entries > 0, "the {what} takes no message in a call");
    ensure!(resolved.publish_calls > 0, "the {what} takes no call");
    Ok(())
}

async fn declared_abilities_agree(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.raw_publisher(&queue).await?;
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    within(cx.capabilities(), publisher.capabilities(), "publisher")?;
    within(cx.capabilities(), consumer.capabilities(), "consumer")?;
    ensure!(!publisher.endpoint().destination.is_empty(), "the publisher's destination has no name");
    ensure!(!consumer.endpoint().destination.is_empty(), "the consumer's destination has no name");
    let cases = [(publisher.capabilities(), "publisher"), (consumer.capabilities(), "consumer")];
    for (capabilities, what) in cases {
        if let Lease::Renewable(Some(max)) | Lease::Fixed(max) = capabilities.lease {
            ensure!(!max.is_zero(), "the {what} declares a lease of no time");
        }
    }
    consumer.close().await?;
    publisher.close().await?;
    Ok(Verdict::Passed)
}
