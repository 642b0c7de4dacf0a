//! What a send can ask for: delay, expiry, priority, deduplication. Declared means done; `No` means refused.

use std::time::Duration;

use throughline_core::capabilities::Level;
use throughline_core::driver::Sibling;
use throughline_core::{ConsumeOptions, Envelope, ErrorKind, Order, SendOptions};
use tokio::time::{Instant, sleep};

use super::cases;
use crate::cx::Cx;
use crate::messages::{message, numbers, outgoing, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable, refused};

pub(crate) const CASES: &[Case] = cases!["options";
    delayed_message_waits: "A delayed message does not come before its time, then comes; its delay is not queue delay.",
    expired_message_is_not_delivered: "A message that has expired is not delivered.",
    higher_priority_comes_first: "Of the messages that wait, one of higher priority comes first.",
    second_send_is_deduplicated: "The same operation sent twice is delivered once, and the second receipt says so.",
];

async fn delayed_message_waits(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let delay = Duration::from_secs(1);
    let started = Instant::now();
    let published = publisher.publish_with(message("delayed"), SendOptions::delayed(delay)).await;
    if publisher.capabilities().delay == Level::No {
        return match published {
            Err(error) if error.kind() == ErrorKind::Unsupported => refused(&error),
            answer => Err(Fail(format!("a delay is declared as `No`, and is answered {answer:?}"))),
        };
    }
    published?;
    let mut consumer = cx.consumer(&queue).await?;
    let delivery = cx.next(&mut consumer).await?;
    let after = started.elapsed();
    ensure!(after >= delay.mul_f32(0.9), "it came after {after:?}, the delay is {delay:?}");
    if let Some(told) = delivery.queue_delay() {
        ensure!(
            told.delay + delay.mul_f32(0.9) <= after + Duration::from_millis(100),
            "it came after {after:?}, of which {delay:?} were asked for, and its queue delay is {:?}",
            told.delay
        );
    }
    delivery.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn expired_message_is_not_delivered(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    if publisher.capabilities().expiry == Level::No {
        return not_applicable(
            "expiry is declared as `No`: it only advises, and is carried (every_field_survives)",
        );
    }
    let time = Duration::from_secs(1);
    let expires = Envelope::builder("conformance.case").payload("expires").expires_in(time).build();
    publisher.publish(expires).await?;
    publisher.publish(message("stays")).await?;
    sleep(time + Duration::from_millis(200)).await;
    let mut consumer = cx.consumer(&queue).await?;
    let delivery = cx.next(&mut consumer).await?;
    ensure!(text(delivery.envelope()) == "stays", "'{}' came after its time", text(delivery.envelope()));
    delivery.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn higher_priority_comes_first(cx: Cx) -> Checked {
    if cx.capabilities().priority == Level::No {
        return not_applicable(
            "priorities are declared as `No`: they only advise, and are carried (every_field_survives)",
        );
    }
    let name = cx.name();
    let queue = cx.must_address(&Sibling { priorities: true, ..Sibling::queue(&name) })?;
    cx.create(&queue).await?;
    let publisher = cx.publisher(&queue).await?;
    for priority in [1, 1, 5, 9] {
        let envelope = Envelope::builder("conformance.case").priority(priority).payload(priority.to_string());
        publisher.publish(envelope).await?;
    }
    let options = ConsumeOptions { order: Order::Any, ..ConsumeOptions::default() };
    let mut consumer = cx.consumer_with(&queue, options).await?;
    for expected in ["9", "5", "1", "1"] {
        let delivery = cx.next(&mut consumer).await?;
        let came = text(delivery.envelope());
        ensure!(came == expected, "priority {came} came where {expected} was due");
        delivery.ack().await?;
    }
    Ok(Verdict::Passed)
}

async fn second_send_is_deduplicated(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.raw_publisher(&queue).await?;
    if publisher.capabilities().deduplication == Level::No {
        return not_applicable("deduplication is declared as `No`; nothing asks for it");
    }
    let batch: Vec<_> = numbers(3).map(|number| outgoing(message(number))).collect();
    let mut told = Vec::new();
    for (time, deduplicated) in [("first", false), ("second", true)] {
        for answer in cx.raw_publish(&*publisher, batch.clone()).await? {
            told.push((time, deduplicated, answer?.deduplicated));
        }
    }
    publisher.close().await?;
    let mut consumer = cx.consumer(&queue).await?;
    let seen = cx.take(&mut consumer, 3).await?;
    ensure!(seen.duplicates() == 0, "an operation that was sent twice was delivered twice");
    cx.nothing(&mut consumer).await?;
    for (time, expected, told) in told {
        ensure!(told == expected, "the {time} send of an operation is told as deduplicated: {told}");
    }
    Ok(Verdict::Passed)
}
