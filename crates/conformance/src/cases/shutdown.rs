//! Ending: orderly, with nothing settled delivered again, and as often as one likes.

use std::num::NonZeroUsize;
use std::time::Duration;

use throughline_core::ConsumeOptions;

use super::cases;
use crate::cx::Cx;
use crate::messages::{Seen, message, numbers, outgoing, text};
use crate::suite::Case;
use crate::verdict::{Checked, Verdict, ensure};

pub(crate) const CASES: &[Case] = cases!["shutdown";
    drain_redelivers_nothing: "A consumer that drains (stops, finishes, settles, closes) leaves exactly what it did not settle: nothing settled comes again.",
    stopped_stream_ends: "After a stop the stream ends, and what is held can still be settled.",
    closed_consumer_takes_nothing: "The driver's consumer gives no message once it is closed, and keeps none from others.",
    closing_twice_is_no_error: "Publisher, consumer and transport can be closed twice, and end in time.",
    reopened_goes_on: "After everything was closed, a new connection finds the messages that were left.",
];

async fn drain_redelivers_nothing(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    let count = 500.min(cx.settings().many);
    for answer in publisher.publish_batch(numbers(count).map(message)).await {
        answer?;
    }
    let mut first = cx.short_lease_consumer(&queue).await?;
    let mut settled = Seen::default();
    let mut working = Vec::new();
    while settled.distinct() + working.len() < count * 2 / 5 {
        let delivery = cx.next(&mut first).await?;
        // Some are still being worked on as it stops.
        if working.len() < 20 {
            working.push(delivery);
        } else {
            settled.add(text(delivery.envelope()));
            delivery.ack().await?;
        }
    }
    cx.within("stopping", first.stop()).await?;
    for delivery in working {
        settled.add(text(delivery.envelope()));
        delivery.ack().await?;
    }
    cx.within("closing", first.close()).await??;
    let mut second = cx.consumer(&queue).await?;
    let mut rest = Seen::default();
    while settled.distinct() + rest.distinct() < count {
        let delivery = cx.next(&mut second).await?;
        let text = text(delivery.envelope());
        ensure!(!settled.has(&text), "message {text} was settled before the drain, and came again");
        rest.add(text);
        delivery.ack().await?;
    }
    cx.judge(&rest)?;
    // Past the leases of the first consumer.
    cx.nothing_for(&mut second, cx.settings().lease + cx.settings().silence).await?;
    Ok(Verdict::Passed)
}

async fn stopped_stream_ends(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    publisher.publish(message("held")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let held = cx.next(&mut consumer).await?;
    cx.within("stopping", consumer.stop()).await?;
    publisher.publish(message("later")).await?;
    let end = cx.within("waiting for the end of the stream", consumer.next()).await?;
    ensure!(end.is_none(), "after the stop the stream goes on with {end:?}");
    held.ack().await?;
    cx.within("closing", consumer.close()).await??;
    let mut next = cx.consumer(&queue).await?;
    let later = cx.next(&mut next).await?;
    ensure!(text(later.envelope()) == "later", "'{}' came again", text(later.envelope()));
    later.ack().await?;
    cx.nothing(&mut next).await?;
    Ok(Verdict::Passed)
}

async fn closed_consumer_takes_nothing(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    cx.within("closing", consumer.close()).await??;
    let publisher = cx.raw_publisher(&queue).await?;
    for answer in cx.raw_publish(&*publisher, vec![outgoing(message("not for it"))]).await? {
        answer?;
    }
    publisher.close().await?;
    let wait = Duration::from_millis(100);
    // An error says the same.
    let received = cx.within("receiving after the close", consumer.receive(NonZeroUsize::MIN, wait)).await?;
    let got = received.map_or(0, |received| received.len());
    ensure!(got == 0, "a closed consumer received {got} messages");
    let mut other = cx.consumer(&queue).await?;
    cx.next(&mut other).await?.ack().await?;
    Ok(Verdict::Passed)
}

async fn closing_twice_is_no_error(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let transport = cx.connect().await?;
    let publisher = transport.publisher(&queue).await?;
    let consumer = transport.consumer(&queue, &ConsumeOptions::default()).await?;
    for time in ["first", "second"] {
        let closed = cx.within("closing the publisher", publisher.close()).await?;
        ensure!(closed.is_ok(), "the publisher's {time} close: {closed:?}");
        let closed = cx.within("closing the consumer", consumer.close()).await?;
        ensure!(closed.is_ok(), "the consumer's {time} close: {closed:?}");
    }
    for time in ["first", "second"] {
        let closed = cx.within("closing the transport", transport.close()).await?;
        ensure!(closed.is_ok(), "the transport's {time} close: {closed:?}");
    }
    Ok(Verdict::Passed)
}

async fn reopened_goes_on(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let transport = cx.connect().await?;
    let publisher = cx.publisher_on(&transport, &queue, Default::default()).await?;
    for answer in publisher.publish_batch(numbers(10).map(message)).await {
        answer?;
    }
    publisher.close().await?;
    cx.within("closing the transport", transport.close()).await??;
    let transport = cx.connect().await?;
    let mut consumer = cx.consumer_on(&transport, &queue, ConsumeOptions::default()).await?;
    cx.take(&mut consumer, 10).await?.is_exactly(numbers(10))?;
    consumer.close().await?;
    Ok(Verdict::Passed)
}
