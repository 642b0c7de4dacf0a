//! The trace headers: byte for byte, on every hop, for want of nothing.

use std::time::Duration;

use throughline_core::capabilities::Level;
use throughline_core::headers::{BAGGAGE, TRACEPARENT, TRACESTATE};
use throughline_core::{Envelope, HeaderValue};
use tokio::time::sleep;

use super::cases;
use super::headers::{round_trip, same};
use crate::cx::Cx;
use crate::messages::message;
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable};

pub(crate) const CASES: &[Case] = cases!["trace";
    trace_headers_are_byte_exact: "`traceparent`, `tracestate` and `baggage` come out byte for byte.",
    odd_trace_headers_are_carried: "Trace headers of odd case, repeated or invalid are carried as they are.",
    trace_headers_are_never_crowded_out: "Trace headers survive beside sixty other headers, even where they were added last.",
    retry_keeps_the_creation_context: "A retry keeps the creation context, byte for byte.",
    dead_letter_keeps_the_creation_context: "A dead letter keeps the creation context, byte for byte.",
    queue_delay_is_known: "How long a message waited in the queue is known, and a requested delay does not count.",
];

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STATE: &str = "vendor=a1B2/c=d~ , rojo=00f067aa0ba902b7,\tcongo=t61rcWkgMzE";
const BAG: &str = "user=%C3%A4;meta=1 , tenant=5000,empty=;p";

fn traced(text: &str) -> Envelope {
    let mut envelope = message(text);
    for (name, value) in [(TRACEPARENT, PARENT), (TRACESTATE, STATE), (BAGGAGE, BAG)] {
        envelope.headers.append(name, value);
    }
    envelope
}

async fn trace_headers_are_byte_exact(cx: Cx) -> Checked {
    let mut unsampled = message("unsampled");
    unsampled.headers.append(TRACEPARENT, PARENT.replace("-01", "-00"));
    round_trip(&cx, vec![traced("traced"), unsampled]).await?;
    Ok(Verdict::Passed)
}

async fn odd_trace_headers_are_carried(cx: Cx) -> Checked {
    let mut cased = message("case");
    for (name, value) in [("TraceParent", PARENT), ("TRACESTATE", STATE), ("Baggage", BAG)] {
        cased.headers.append(name, value);
    }
    let mut repeated = traced("repeated");
    repeated.headers.append(BAGGAGE, "second=1");
    repeated.headers.append("Baggage", "third=1");
    let mut invalid = message("invalid");
    invalid.headers.append(TRACEPARENT, "ff-not-a-context");
    invalid.headers.append(TRACESTATE, HeaderValue::from(vec![0xff]));
    invalid.headers.append(BAGGAGE, "");
    round_trip(&cx, vec![cased, repeated, invalid]).await?;
    Ok(Verdict::Passed)
}

async fn trace_headers_are_never_crowded_out(cx: Cx) -> Checked {
    let mut envelope = message("crowded");
    for number in 0..60 {
        envelope.headers.append(format!("header-{number:02}"), format!("value {number}"));
    }
    envelope.headers.extend(traced("").headers);
    round_trip(&cx, vec![envelope]).await?;
    Ok(Verdict::Passed)
}

async fn retry_keeps_the_creation_context(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let mut keyed = traced("keyed");
    keyed.ordering_key = Some("key".into());
    let publisher = cx.publisher(&queue).await?;
    let mut consumer = cx.consumer(&queue).await?;
    for sent in [traced("unkeyed"), keyed] {
        publisher.publish(sent.clone()).await?;
        for delay in [Duration::ZERO, Duration::from_millis(100)] {
            cx.next(&mut consumer).await?.retry(delay, "busy").await?;
        }
        let again = cx.next(&mut consumer).await?;
        same(&sent, again.envelope())?;
        again.ack().await?;
    }
    Ok(Verdict::Passed)
}

async fn dead_letter_keeps_the_creation_context(cx: Cx) -> Checked {
    if cx.capabilities().dead_letter == Level::No {
        return not_applicable("dead letters are declared as `No`; that a reject is refused is another case");
    }
    let (queue, dead) = cx.queue_with_dead_letters().await?;
    let sent = traced("rejected");
    cx.publisher(&queue).await?.publish(sent.clone()).await?;
    cx.next(&mut cx.consumer(&queue).await?).await?.reject("bad").await?;
    let buried = cx.next(&mut cx.consumer(&dead).await?).await?;
    same(&sent, buried.envelope())?;
    buried.ack().await?;
    Ok(Verdict::Passed)
}

async fn queue_delay_is_known(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let publisher = cx.publisher(&queue).await?;
    publisher.publish(message("waits")).await?;
    let waited = Duration::from_secs(1);
    sleep(waited).await;
    let delivery = cx.next(&mut cx.consumer(&queue).await?).await?;
    let Some(told) = delivery.queue_delay() else {
        return Err(Fail("how long the message waited is not known".into()));
    };
    ensure!(!told.clamped, "the message waited {waited:?}, and its queue delay would be negative");
    // Stamps are whole milliseconds or seconds of another clock.
    ensure!(
        told.delay >= waited / 2 && told.delay < waited + cx.settings().patience,
        "the message waited {waited:?}, and its queue delay is {:?}",
        told.delay
    );
    delivery.ack().await?;
    Ok(Verdict::Passed)
}
