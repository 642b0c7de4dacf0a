//! Limits: told before the network, by name; and what is within them is taken.

use std::time::Duration;

use throughline_core::capabilities::Level;
use throughline_core::{Envelope, Error, ErrorKind, Publisher, Result, SendOptions};

use super::cases;
use crate::cx::Cx;
use crate::messages::{message, numbers, outgoing, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable};

pub(crate) const CASES: &[Case] = cases!["limits";
    oversized_payload_is_refused: "A payload of the declared limit is taken; one byte more is refused before the network, naming the limit.",
    oversized_headers_are_refused: "Headers over the declared limit are refused before the network, naming the limit, and publishing goes on.",
    overlong_delay_is_refused: "The longest declared delay is taken; a longer one is refused before the network, naming the limit.",
    full_call_is_taken: "A call to the driver with as many messages as it declares to take is taken whole.",
];

/// What exceeds a limit says so, names the limit, and is certainly not sent.
fn names_the_limit<T: std::fmt::Debug>(answer: Result<T>, limit: &str) -> Result<Error, Fail> {
    match answer {
        Err(error) if error.kind() == ErrorKind::LimitExceeded && error.to_string().contains(limit) => {
            Ok(error)
        }
        answer => Err(Fail(format!("what exceeds the limit of {limit} is answered {answer:?}"))),
    }
}

/// That the publisher still works, and nothing but `expected` was sent.
async fn only(
    cx: &Cx,
    publisher: &Publisher,
    from: &throughline_core::Address,
    expected: &str,
) -> Result<(), Fail> {
    cx.within("publishing after a refusal", publisher.publish(message(expected))).await??;
    let mut consumer = cx.consumer(from).await?;
    let delivery = cx.next(&mut consumer).await?;
    ensure!(text(delivery.envelope()) == expected, "what exceeds a limit was sent");
    delivery.ack().await?;
    cx.nothing(&mut consumer).await
}

async fn oversized_payload_is_refused(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let Some(limit) = publisher.capabilities().limits.payload_bytes else {
        return not_applicable("there is no limit of the payload");
    };
    let body = |length| Envelope::builder("conformance.case").payload(vec![b'x'; length]).build();
    let answer = cx.within("publishing too large a payload", publisher.publish(body(limit + 1))).await?;
    names_the_limit(answer, &limit.to_string())?;
    only(&cx, &publisher, &queue, "small").await?;
    // Brokers that count headers into their limit have those of a bare message beside it.
    let largest = cx.within("publishing the largest payload", publisher.publish(body(limit))).await?;
    ensure!(largest.is_ok(), "a payload of the declared limit, {limit} bytes: {largest:?}");
    let delivery = cx.next(&mut cx.consumer(&queue).await?).await?;
    ensure!(delivery.payload().len() == limit, "{limit} bytes came as {}", delivery.payload().len());
    delivery.ack().await?;
    Ok(Verdict::Passed)
}

async fn oversized_headers_are_refused(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let Some(limit) = publisher.capabilities().limits.header_bytes else {
        return not_applicable("there is no limit of the headers");
    };
    let mut many = message("many headers");
    for number in 0..64 {
        many.headers.append(format!("h{number}"), "v".repeat(limit / 64 + 1));
    }
    let mut one = message("one header");
    one.headers.append("large", vec![0xff; limit + 1]);
    for envelope in [many, one] {
        let answer = cx.within("publishing too many headers", publisher.publish(envelope)).await?;
        names_the_limit(answer, &limit.to_string())?;
    }
    let mut within = message("within");
    within.headers.append("large", "v".repeat(limit / 2));
    let answer = cx.within("publishing large headers", publisher.publish(within)).await?;
    ensure!(answer.is_ok(), "headers of half the declared limit, {limit} bytes: {answer:?}");
    let delivery = cx.next(&mut cx.consumer(&queue).await?).await?;
    delivery.ack().await?;
    only(&cx, &publisher, &queue, "small").await?;
    Ok(Verdict::Passed)
}

async fn overlong_delay_is_refused(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let capabilities = publisher.capabilities();
    let Some(limit) = capabilities.limits.delay.filter(|_| capabilities.delay != Level::No) else {
        return not_applicable("there is no limit of the delay");
    };
    let too_long = SendOptions::delayed(limit + Duration::from_secs(1));
    let answer =
        cx.within("delaying for too long", publisher.publish_with(message("never"), too_long)).await?;
    let error = answer.err();
    ensure!(
        error.as_ref().is_some_and(|error| error.kind() == ErrorKind::LimitExceeded),
        "a delay of a second more than {limit:?} is answered {error:?}"
    );
    let longest = SendOptions::delayed(limit);
    let answer =
        cx.within("delaying as long as may be", publisher.publish_with(message("late"), longest)).await?;
    ensure!(answer.is_ok(), "the longest declared delay, {limit:?}: {answer:?}");
    only(&cx, &publisher, &queue, "now").await?;
    Ok(Verdict::Passed)
}

async fn full_call_is_taken(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.raw_publisher(&queue).await?;
    let count = publisher.capabilities().limits.batch_entries;
    let batch = numbers(count).map(|number| outgoing(message(number))).collect();
    let answers = cx.raw_publish(&*publisher, batch).await?;
    ensure!(answers.len() == count, "{} answers for {count} messages", answers.len());
    let failed =
        answers.iter().enumerate().find_map(|(at, answer)| answer.as_ref().err().map(|error| (at, error)));
    ensure!(failed.is_none(), "a call of {count} messages is declared to be taken: message {failed:?}");
    publisher.close().await?;
    let mut consumer = cx.consumer(&queue).await?;
    cx.take(&mut consumer, count).await?.is_exactly(numbers(count))?;
    Ok(Verdict::Passed)
}
