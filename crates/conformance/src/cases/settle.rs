//! Settling: acked is gone, retried comes back with its failure, rejected goes to the dead letters with the reason.

use std::collections::HashSet;
use std::time::Duration;

use throughline_core::capabilities::{Level, RetryMeans};
use throughline_core::driver::{Settlement, Token, wire};
use throughline_core::{ConsumeOptions, Consumer, Delivery, Envelope, ErrorKind, Failure, HeaderValue};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::cases;
use crate::cx::Cx;
use crate::messages::{Seen, message, numbers, text};
use crate::suite::Case;
use crate::verdict::{Checked, Fail, Verdict, ensure, not_applicable, refused};

pub(crate) const CASES: &[Case] = cases!["settle";
    acked_is_gone: "What was acked, one by one or many at once, is not delivered again to anyone.",
    retry_comes_back_with_its_failure: "A retried message comes back as the next attempt, with the failure and its dependency.",
    retry_waits_for_its_delay: "A retried message does not come back before its delay is over.",
    attempts_are_counted: "Each retry is one attempt more, and the history holds every failure.",
    redeliveries_are_counted: "Where the broker counts deliveries, a message that comes again has a higher count.",
    release_comes_back: "A released message is available again at once.",
    release_records_no_attempt: "A release is not a failed attempt.",
    dead_letter_keeps_the_message: "A rejected message leaves its queue, and the dead letter keeps body, headers and every field.",
    dead_letter_says_why: "A dead letter says where it was rejected, why, and which dependency failed.",
    dead_letter_does_not_expire: "A dead letter is kept however late somebody looks at it, also where its message expires.",
    reject_without_dead_letter_keeps_the_message: "A reject with no dead-letter destination is `NoDeadLetter`, and the message stays held.",
    settling_twice_is_stale: "A delivery can be settled once; again is `Stale`.",
    late_settlement_is_stale: "A delivery that went to another consumer meanwhile can no longer be settled, and harms nothing.",
    settlements_are_answered_one_by_one: "In a batch of settlements, one that is not ours fails alone.",
    parallel_with_retries_loses_nothing: "With one in ten retried, in parallel, every message is acked in the end and none is lost.",
    restart_resumes_where_it_was: "After acks out of order and a restart, exactly what was not acked comes again.",
];

async fn publish_all(cx: &Cx, queue: &throughline_core::Address, count: usize) -> Result<(), Fail> {
    let publisher = cx.publisher(queue).await?;
    for answer in publisher.publish_batch(numbers(count).map(message)).await {
        answer?;
    }
    Ok(())
}

async fn acked_is_gone(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    publish_all(&cx, &queue, 60).await?;
    let mut consumer = cx.short_lease_consumer(&queue).await?;
    cx.take(&mut consumer, 10).await?;
    let mut rest = Vec::new();
    while rest.len() < 50 {
        rest.push(cx.next(&mut consumer).await?);
    }
    for answer in cx.within("acking many at once", Delivery::ack_all(rest)).await? {
        answer?;
    }
    cx.within("closing", consumer.close()).await??;
    let mut next = cx.consumer(&queue).await?;
    // Past the leases of the first consumer.
    cx.nothing_for(&mut next, cx.settings().lease + cx.settings().silence).await?;
    Ok(Verdict::Passed)
}

async fn retry_comes_back_with_its_failure(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    let sent = message("again");
    cx.publisher(&queue).await?.publish(sent.clone()).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let failure = Failure::new("http_503").dependency("ads-api").message("not now");
    cx.next(&mut consumer).await?.retry(Duration::ZERO, failure).await?;
    let again = cx.next(&mut consumer).await?;
    ensure!(again.attempt() == 2, "after one failure it is attempt {}", again.attempt());
    ensure!(**again.envelope() == sent, "sent {sent:?}, after the retry {:?}", again.envelope());
    let last = again.history().and_then(|history| history.last()).cloned();
    match (last, consumer.capabilities().retry) {
        (Some(last), _) => {
            ensure!(
                last.error == "http_503"
                    && last.dependency.as_deref() == Some("ads-api")
                    && last.message == "not now"
                    && last.attempt == 1,
                "the failure came back as attempt {}: {last}",
                last.attempt
            );
        }
        (None, RetryMeans::InPlace) => {
            cx.note("retried in place: the broker cannot carry the history".to_owned());
        }
        (None, RetryMeans::Republish) => ensure!(false, "the failure is lost: there is no history"),
    }
    again.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn retry_waits_for_its_delay(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("later")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let delay = Duration::from_secs(1);
    let first = cx.next(&mut consumer).await?;
    let started = Instant::now();
    first.retry(delay, "busy").await?;
    let again = cx.next(&mut consumer).await?;
    let after = started.elapsed();
    // A broker's clock, and the time it took to ask.
    ensure!(after >= delay.mul_f32(0.9), "it came back after {after:?}, the delay is {delay:?}");
    again.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn attempts_are_counted(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("again and again")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    for attempt in 1..=4 {
        let delivery = cx.next(&mut consumer).await?;
        ensure!(delivery.attempt() == attempt, "attempt {attempt} is told as {}", delivery.attempt());
        if consumer.capabilities().retry == RetryMeans::Republish {
            let failures = delivery.history().map_or(0, |history| history.failures().len());
            ensure!(failures + 1 == attempt as usize, "attempt {attempt} has a history of {failures}");
        }
        if attempt < 4 {
            delivery.retry(Duration::ZERO, format!("failure_{attempt}").as_str()).await?;
        } else {
            delivery.ack().await?;
        }
    }
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn redeliveries_are_counted(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("counted")).await?;
    let mut counts = Vec::new();
    for _ in 0..3 {
        let mut consumer = cx.short_lease_consumer(&queue).await?;
        if consumer.capabilities().delivery_count == Level::No {
            return not_applicable("the broker does not count deliveries");
        }
        let held = cx.next(&mut consumer).await?;
        counts.push(held.receive_count());
        // Not released: as if the process had died with it.
        consumer.close().await?;
        drop(held);
    }
    let told: Vec<u32> = counts.iter().flatten().copied().collect();
    let rising = told.windows(2).all(|pair| matches!(pair, [before, after] if before < after));
    ensure!(told.len() == counts.len() && rising, "receive counts of three deliveries: {counts:?}");
    ensure!(told.first() == Some(&1), "the first delivery is counted as {:?}", told.first());
    Ok(Verdict::Passed)
}

async fn released(cx: &Cx) -> Result<(Consumer, Delivery), Fail> {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("released")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let first = cx.next(&mut consumer).await?;
    cx.within("releasing", first.release()).await??;
    let again = cx.next(&mut consumer).await?;
    Ok((consumer, again))
}

async fn release_comes_back(cx: Cx) -> Checked {
    let (mut consumer, again) = released(&cx).await?;
    ensure!(text(again.envelope()) == "released", "received '{}'", text(again.envelope()));
    again.ack().await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn release_records_no_attempt(cx: Cx) -> Checked {
    let (_consumer, again) = released(&cx).await?;
    ensure!(again.attempt() == 1, "after a release, without a failure, it is attempt {}", again.attempt());
    again.ack().await?;
    Ok(Verdict::Passed)
}

/// Where the transport declares no dead letters, a reject must be refused.
async fn refuses_to_reject(cx: &Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("rejected")).await?;
    let delivery = cx.next(&mut cx.consumer(&queue).await?).await?;
    match delivery.reject("bad").await {
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::NoDeadLetter) => {
            refused(&error)
        }
        answer => {
            Err(Fail(format!("dead letters are declared as `No`, and a reject is answered {answer:?}")))
        }
    }
}

async fn dead_letter_keeps_the_message(cx: Cx) -> Checked {
    if cx.capabilities().dead_letter == Level::No {
        return refuses_to_reject(&cx).await;
    }
    let (queue, dead) = cx.queue_with_dead_letters().await?;
    let sent = super::headers::full("rejected");
    cx.publisher(&queue).await?.publish(sent.clone()).await?;
    let mut consumer = cx.consumer(&queue).await?;
    cx.next(&mut consumer).await?.reject("bad").await?;
    let mut graveyard = cx.consumer(&dead).await?;
    let buried = cx.next(&mut graveyard).await?;
    super::headers::same(&sent, buried.envelope())?;
    buried.ack().await?;
    cx.nothing(&mut graveyard).await?;
    cx.nothing(&mut consumer).await?;
    Ok(Verdict::Passed)
}

async fn dead_letter_says_why(cx: Cx) -> Checked {
    if cx.capabilities().dead_letter == Level::No {
        return refuses_to_reject(&cx).await;
    }
    let (queue, dead) = cx.queue_with_dead_letters().await?;
    cx.publisher(&queue).await?.publish(message("rejected")).await?;
    let mut consumer = cx.consumer(&queue).await?;
    ensure!(consumer.has_dead_letter(), "the consumer says that it has no dead-letter destination");
    cx.next(&mut consumer).await?.retry(Duration::ZERO, "first").await?;
    let failure = Failure::new("http_500").dependency("ads-api").message("no luck");
    cx.next(&mut consumer).await?.reject(failure).await?;
    let buried = cx.next(&mut cx.consumer(&dead).await?).await?;
    let details = buried.native_details();
    let detail = |wanted: &str| {
        let found = details.iter().find(|(name, _)| name == wanted);
        found.and_then(|(_, value)| HeaderValue::as_str(value)).unwrap_or_default().to_owned()
    };
    let (source, reason) = (detail(wire::DEAD_LETTER_SOURCE), detail(wire::DEAD_LETTER_REASON));
    ensure!(!source.is_empty(), "the dead letter does not say where it was rejected");
    ensure!(
        ["http_500", "ads-api", "no luck"].iter().all(|part| reason.contains(part)),
        "the dead letter's reason is '{reason}'"
    );
    let last = buried.history().and_then(|history| history.last());
    ensure!(
        last.is_some_and(|last| last.error == "http_500" && last.dependency.as_deref() == Some("ads-api")),
        "the dead letter's history ends with {last:?}"
    );
    buried.ack().await?;
    Ok(Verdict::Passed)
}

async fn dead_letter_does_not_expire(cx: Cx) -> Checked {
    if cx.capabilities().dead_letter == Level::No {
        return refuses_to_reject(&cx).await;
    }
    let (queue, dead) = cx.queue_with_dead_letters().await?;
    let publisher = cx.publisher(&queue).await?;
    let mut consumer = cx.consumer(&queue).await?;
    // Joining a queue may take longer than the message lasts.
    publisher.publish(message("first")).await?;
    cx.next(&mut consumer).await?.ack().await?;
    let time = Duration::from_secs(2);
    let expires = Envelope::builder("conformance.case").payload("expires").expires_in(time).build();
    publisher.publish(expires).await?;
    cx.next(&mut consumer).await?.reject("bad").await?;
    sleep(time + Duration::from_millis(200)).await;
    let buried = cx.next(&mut cx.consumer(&dead).await?).await?;
    ensure!(text(buried.envelope()) == "expires", "'{}' came", text(buried.envelope()));
    buried.ack().await?;
    Ok(Verdict::Passed)
}

async fn reject_without_dead_letter_keeps_the_message(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("stays")).await?;
    let mut consumer = cx.short_lease_consumer(&queue).await?;
    ensure!(!consumer.has_dead_letter(), "the consumer says that it has a dead-letter destination");
    let mut held = cx.next(&mut consumer).await?;
    for _ in 0..2 {
        let answer = held.try_reject("bad").await;
        ensure!(
            answer.as_ref().is_err_and(|error| {
                matches!(error.kind(), ErrorKind::NoDeadLetter | ErrorKind::Unsupported)
            }),
            "a reject with nowhere to go: {answer:?}"
        );
    }
    drop(held);
    consumer.close().await?;
    let again = cx.next(&mut cx.consumer(&queue).await?).await?;
    ensure!(text(again.envelope()) == "stays", "received '{}'", text(again.envelope()));
    again.ack().await?;
    Ok(Verdict::Passed)
}

async fn settling_twice_is_stale(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    publish_all(&cx, &queue, 2).await?;
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let received = cx.raw_receive_all(&*consumer, 2).await?;
    let Some(first) = received.first() else { return Err(Fail("nothing was received".into())) };
    let ack = [(first.token, Settlement::Ack)];
    for (times, expected_ok) in [(1, true), (2, false)] {
        let answers = cx.within("acking", consumer.settle(&ack)).await?;
        let [answer] = answers.as_slice() else {
            return Err(Fail(format!("{} answers for one settlement", answers.len())));
        };
        let right = match answer {
            Ok(()) => expected_ok,
            Err(error) => !expected_ok && error.kind() == ErrorKind::Stale,
        };
        ensure!(right, "ack number {times} is answered {answer:?}");
    }
    cx.within("closing", consumer.close()).await??;
    Ok(Verdict::Passed)
}

async fn late_settlement_is_stale(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    cx.publisher(&queue).await?.publish(message("late")).await?;
    let first = cx.raw_consumer(&queue, &cx.short_lease()).await?;
    let received = cx.raw_receive_all(&*first, 1).await?;
    // Without a heartbeat the lease ends; without a lease, the consumer does.
    if received.iter().all(|delivery| delivery.lease_expires.is_none()) {
        cx.within("closing", first.close()).await??;
    } else {
        cx.within("stopping", first.stop()).await?;
    }
    let second = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let again = cx.raw_receive_all(&*second, 1).await?;
    let late: Vec<_> = received.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    for answer in cx.within("acking too late", first.settle(&late)).await? {
        ensure!(
            answer
                .as_ref()
                .is_err_and(|error| { matches!(error.kind(), ErrorKind::Stale | ErrorKind::Closed) }),
            "an ack after the redelivery is answered {answer:?}"
        );
    }
    let acks: Vec<_> = again.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    for answer in cx.within("acking", second.settle(&acks)).await? {
        answer?;
    }
    second.close().await?;
    Ok(Verdict::Passed)
}

async fn settlements_are_answered_one_by_one(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    publish_all(&cx, &queue, 4).await?;
    let consumer = cx.raw_consumer(&queue, &ConsumeOptions::default()).await?;
    let received = cx.raw_receive_all(&*consumer, 4).await?;
    let mut batch: Vec<_> = received.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    // Nobody was ever given this one.
    let epoch = consumer.epoch();
    batch.insert(2, (Token { epoch, tag: u64::MAX >> 1 }, Settlement::Ack));
    let answers = cx.within("settling a batch", consumer.settle(&batch)).await?;
    ensure!(answers.len() == batch.len(), "{} answers for {} settlements", answers.len(), batch.len());
    for (index, answer) in answers.iter().enumerate() {
        let right = match answer {
            Ok(()) => index != 2,
            Err(error) => index == 2 && error.kind() == ErrorKind::Stale,
        };
        ensure!(right, "settlement {index} of the batch is answered {answer:?}");
    }
    cx.within("closing", consumer.close()).await??;
    let mut next = cx.consumer(&queue).await?;
    cx.nothing(&mut next).await?;
    Ok(Verdict::Passed)
}

async fn parallel_with_retries_loses_nothing(cx: Cx) -> Checked {
    const COUNT: usize = 300;
    let queue = cx.queue().await?;
    publish_all(&cx, &queue, COUNT).await?;
    let mut consumer = cx.consumer(&queue).await?;
    let mut acked = Seen::default();
    let mut retried = HashSet::new();
    let mut working = JoinSet::new();
    while acked.distinct() < COUNT {
        cx.step("working in parallel");
        tokio::select! {
            next = cx.next(&mut consumer) => {
                let delivery = next?;
                let text = text(delivery.envelope());
                let fails = text.ends_with('7') && retried.insert(text.clone());
                working.spawn(async move {
                    // As long as the work of a handler.
                    sleep(Duration::from_millis(2)).await;
                    if fails {
                        delivery.retry(Duration::ZERO, "busy").await.map(|()| None)
                    } else {
                        delivery.ack().await.map(|()| Some(text))
                    }
                });
            }
            Some(done) = working.join_next() => {
                if let Some(text) = done?? {
                    acked.add(text);
                }
            }
        }
    }
    acked.is_exactly(numbers(COUNT))?;
    cx.judge(&acked)?;
    ensure!(retried.len() == COUNT / 10, "{} messages were retried", retried.len());
    consumer.close().await?;
    cx.nothing(&mut cx.consumer(&queue).await?).await?;
    Ok(Verdict::Passed)
}

async fn restart_resumes_where_it_was(cx: Cx) -> Checked {
    let queue = cx.queue().await?;
    publish_all(&cx, &queue, 5).await?;
    let mut consumer = cx.short_lease_consumer(&queue).await?;
    let mut held = Vec::new();
    for _ in 0..5 {
        let delivery = cx.next(&mut consumer).await?;
        match text(delivery.envelope()).as_str() {
            "2" | "4" => held.push(delivery),
            _ => delivery.ack().await?,
        }
    }
    cx.within("closing", consumer.close()).await??;
    drop(held);
    // As another process would.
    let transport = cx.connect().await?;
    let mut next = cx.consumer_on(&transport, &queue, ConsumeOptions::default()).await?;
    let seen = cx.take(&mut next, 2).await?;
    seen.is_exactly(["2".to_owned(), "4".to_owned()])?;
    cx.nothing(&mut next).await?;
    next.close().await?;
    Ok(Verdict::Passed)
}
