//! The portable consumer, against a scripted driver.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use throughline_core::capabilities::{Capabilities, Lease, Level, MEMORY, SettleMeaning};
use throughline_core::driver::{Clock, Settlement};
use throughline_core::{
    Address, ConsumeOptions, Consumer, Delivery, Envelope, ErrorKind, Failure, History, Timestamp,
};
use throughline_testkit::scripted::{self, ScriptedConsumer};
use tokio::time::Instant;

const DEFERRED: Capabilities = Capabilities { settle: SettleMeaning::Deferred, lease: Lease::None, ..MEMORY };

fn open(driver: &Arc<ScriptedConsumer>, options: ConsumeOptions) -> Consumer {
    let address: Address = "memory:scripted?queue=q".parse().unwrap();
    Consumer::new(driver.clone(), &address, options)
}

async fn next(consumer: &mut Consumer) -> Delivery {
    consumer.next().await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn deferred_acks_are_written_together_or_after_the_linger() {
    let driver = ScriptedConsumer::with(DEFERRED);
    let options = ConsumeOptions { settle_linger: Duration::from_millis(200), ..ConsumeOptions::default() };
    let mut consumer = open(&driver, options);
    for n in 0..250 {
        driver.feed(Envelope::new(n.to_string()));
    }
    for _ in 0..250 {
        next(&mut consumer).await.ack().await.unwrap();
        tokio::task::yield_now().await;
    }
    // The rest after the linger: an application that waits for messages gains nothing by acks in small change, and the
    // broker pays for each.
    let idle = tokio::time::timeout(Duration::from_millis(1000), consumer.next()).await;
    assert!(idle.is_err());
    let calls = driver.settled();
    assert!((2..=6).contains(&calls.len()), "{} calls", calls.len());
    assert_eq!(calls.concat().len(), 250);
}

#[tokio::test(start_paused = true)]
async fn a_deferred_ack_after_the_close_is_no_ack() {
    let driver = ScriptedConsumer::with(DEFERRED);
    let mut consumer = open(&driver, ConsumeOptions::default());
    driver.feed(Envelope::new("x"));
    let held = next(&mut consumer).await;
    consumer.close().await.unwrap();
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::Stale);
    assert!(driver.settled().concat().iter().all(|(_, name)| *name != "ack"));
}

#[tokio::test(start_paused = true)]
async fn a_deferred_ack_that_fails_is_counted_and_a_stale_one_is_told_at_once() {
    let driver = ScriptedConsumer::with(DEFERRED);
    let mut consumer = open(&driver, ConsumeOptions::default());
    let tag = driver.feed(Envelope::new("x"));
    driver.fail(tag, scripted::never());
    next(&mut consumer).await.ack().await.unwrap();
    driver.feed(Envelope::new("y"));
    let held = next(&mut consumer).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(consumer.settle_errors(), 1);
    driver.lose_connection();
    assert!(held.is_lease_lost());
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::Stale);
    let errors = consumer.close().await.unwrap();
    assert_eq!((errors.count, errors.first.unwrap().kind()), (1, scripted::never().kind()));
}

#[tokio::test(start_paused = true)]
async fn settlement_outcomes_are_per_message_and_what_failed_safely_is_settled_again() {
    let driver = ScriptedConsumer::new();
    let mut consumer = open(&driver, ConsumeOptions::default());
    for n in 0..4 {
        driver.feed(Envelope::new(n.to_string()));
    }
    driver.fail(2, scripted::never());
    driver.fail(3, scripted::safe());
    let batch = consumer.next_batch(NonZeroUsize::new(10).unwrap()).await.unwrap();
    assert_eq!(batch.len(), 4);
    let results = Delivery::ack_all(batch).await;
    let ok: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!(ok, [true, false, true, true]);
    let again = [(3, "ack")].to_vec();
    assert_eq!(driver.settled(), [(1..=4).map(|tag| (tag, "ack")).collect(), again]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_settled_is_kept_by_who_tries_again_and_released_for_others() {
    let driver = ScriptedConsumer::new();
    let options = ConsumeOptions { max_unsettled: 1, ..ConsumeOptions::default() };
    let mut consumer = open(&driver, options);
    for n in 1..=4 {
        driver.feed(Envelope::new(n.to_string()));
    }
    // 1: tried again, as often as one likes; nothing else is taken meanwhile.
    let mut held = next(&mut consumer).await;
    for _ in 0..2 {
        driver.fail(1, scripted::never());
        assert!(held.try_reject("bad").await.is_err());
    }
    driver.fail(1, scripted::never());
    assert!(held.try_retry(Duration::ZERO, "bad").await.is_err());
    assert!(tokio::time::timeout(Duration::from_secs(1), consumer.next()).await.is_err());
    held.try_reject("bad").await.unwrap();
    assert_eq!(held.try_reject("bad").await.unwrap_err().kind(), ErrorKind::Stale, "it is settled");
    drop(held);
    // 2: dropped after all.
    let mut held = next(&mut consumer).await;
    driver.fail(2, scripted::never());
    assert!(held.try_reject("bad").await.is_err());
    drop(held);
    // 3: not kept.
    let held = next(&mut consumer).await;
    driver.fail(3, scripted::never());
    assert!(held.reject("bad").await.is_err());
    // 4: there is room for it.
    next(&mut consumer).await.ack().await.unwrap();
    let settled: Vec<_> = driver.settled().concat();
    let of = |tag| settled.iter().filter(|(of, _)| *of == tag).map(|(_, name)| *name).collect::<Vec<_>>();
    assert_eq!(of(1), ["reject", "reject", "retry", "reject"]);
    assert_eq!((of(2), of(3)), (vec!["reject", "release"], vec!["reject", "release"]));
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_is_a_dead_letter_as_it_was() {
    let driver = ScriptedConsumer::new();
    let mut consumer = open(&driver, ConsumeOptions::default());
    let mut history = History::default();
    let mut failure = Failure::new("http_410").given_up();
    failure.attempt = 3;
    history.push(failure);
    let again = Arc::new(History::from_header(&history.to_header()).unwrap());
    driver.feed_with(Envelope::new("x"), |delivery| {
        delivery.failed_attempts = 5;
        delivery.history = Some(again);
    });
    let mut delivery = next(&mut consumer).await;
    assert!(delivery.history().unwrap().is_given_up());
    driver.fail(1, scripted::never());
    delivery.try_reject("another").await.unwrap_err();
    delivery.try_retry(Duration::ZERO, Failure::new("another").given_up()).await.unwrap();
    let settlements = driver.settlements();
    let [Settlement::Reject { history: dead }, Settlement::Retry { history: later, .. }] = &settlements[..]
    else {
        panic!("{settlements:?}");
    };
    assert_eq!(
        (dead.count(), dead.last().unwrap().error.as_str(), dead.failed_attempts(5)),
        (1, "http_410", 3)
    );
    assert!(!dead.is_given_up() && later.is_given_up());
}

#[tokio::test(start_paused = true)]
async fn each_settlement_is_what_was_asked_for_and_a_drop_is_a_release() {
    let driver = ScriptedConsumer::new();
    let mut consumer = open(&driver, ConsumeOptions::default());
    for n in 0..5 {
        driver.feed(Envelope::new(n.to_string()));
    }
    next(&mut consumer).await.ack().await.unwrap();
    next(&mut consumer).await.retry(Duration::from_secs(1), "busy").await.unwrap();
    next(&mut consumer).await.reject("bad").await.unwrap();
    next(&mut consumer).await.release().await.unwrap();
    drop(next(&mut consumer).await);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let names = ["ack", "retry", "reject", "release", "release"];
    let expected: Vec<_> = (1..).zip(names).map(|settled| vec![settled]).collect();
    assert_eq!(driver.settled(), expected);
}

#[tokio::test(start_paused = true)]
async fn close_releases_the_unread_and_writes_what_was_acked() {
    let driver = ScriptedConsumer::with(DEFERRED);
    let mut consumer = open(&driver, ConsumeOptions::default());
    for n in 0..3 {
        driver.feed(Envelope::new(n.to_string()));
    }
    next(&mut consumer).await.ack().await.unwrap();
    let held = next(&mut consumer).await;
    consumer.stop().await;
    assert!(consumer.next().await.is_none());
    // What is held can be settled after the stop.
    held.ack().await.unwrap();
    driver.feed(Envelope::new("not taken any more"));
    consumer.close().await.unwrap();
    let mut settled = driver.settled().concat();
    settled.sort_unstable();
    assert_eq!(settled, [(1, "ack"), (2, "ack"), (3, "release")]);
    assert_eq!(driver.closed(), 1);
}

/// One that settles by its task, and one that acks in the thread of who asks.
fn both() -> [Arc<ScriptedConsumer>; 2] {
    let at_once = ScriptedConsumer::new();
    at_once.set_acks_now();
    [ScriptedConsumer::new(), at_once]
}

#[tokio::test(start_paused = true)]
async fn a_dropped_consumer_releases_the_unread_and_closes_when_the_rest_is_settled() {
    for driver in both() {
        let mut consumer = open(&driver, ConsumeOptions::default());
        for n in 0..2 {
            driver.feed(Envelope::new(n.to_string()));
        }
        let held = next(&mut consumer).await;
        drop(consumer);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((driver.settled().concat(), driver.closed()), (vec![(2, "release")], 0));
        held.ack().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((driver.settled().concat(), driver.closed()), (vec![(2, "release"), (1, "ack")], 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_held_over_the_close_is_told_so() {
    for driver in both() {
        let mut consumer = open(&driver, ConsumeOptions::default());
        driver.feed(Envelope::new("x"));
        driver.feed(Envelope::new("y"));
        let held = [next(&mut consumer).await, next(&mut consumer).await];
        consumer.close().await.unwrap();
        let [one, other] = held;
        assert_eq!(one.ack().await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(Delivery::ack_all([other]).await[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_taken_than_may_be_unsettled_in_messages_and_in_bytes() {
    let driver = ScriptedConsumer::new();
    let options = ConsumeOptions { max_unsettled: 3, ..ConsumeOptions::default() };
    let mut consumer = open(&driver, options);
    for n in 0..9 {
        driver.feed(Envelope::new(n.to_string()));
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut consumer).await);
    }
    let wait = Duration::from_secs(60);
    assert!(tokio::time::timeout(wait, consumer.next()).await.is_err());
    held.pop().unwrap().ack().await.unwrap();
    held.push(next(&mut consumer).await);
    assert!(tokio::time::timeout(wait, consumer.next()).await.is_err());

    let driver = ScriptedConsumer::new();
    let options = ConsumeOptions { max_bytes: 1000, ..ConsumeOptions::default() };
    let mut consumer = open(&driver, options);
    driver.feed(Envelope::new(vec![0; 2000]));
    let held = next(&mut consumer).await;
    driver.feed(Envelope::new("x"));
    assert!(tokio::time::timeout(wait, consumer.next()).await.is_err());
    held.ack().await.unwrap();
    next(&mut consumer).await.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn passing_errors_are_outlived_and_a_lasting_one_ends_the_stream() {
    let driver = ScriptedConsumer::new();
    let mut consumer = open(&driver, ConsumeOptions::default());
    driver.feed_error(scripted::safe());
    driver.feed(Envelope::new("x"));
    driver.feed_error(scripted::never());
    next(&mut consumer).await.ack().await.unwrap();
    let error = consumer.next().await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("consume memory:scripted?queue=q"), "{error}");
    assert!(consumer.next().await.is_none());
    consumer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leases_are_extended_in_batches_until_settled_stale_or_too_long() {
    let driver = ScriptedConsumer::new();
    let options = ConsumeOptions {
        lease: Duration::from_secs(8),
        max_lease: Duration::from_secs(30),
        ..ConsumeOptions::default()
    };
    let mut consumer = open(&driver, options);
    for n in 0..3 {
        driver.feed_with(Envelope::new(n.to_string()), |delivery| {
            delivery.lease_expires = Some(Instant::now() + Duration::from_secs(8));
        });
    }
    let (first, second) = (next(&mut consumer).await, next(&mut consumer).await);
    tokio::time::sleep(Duration::from_secs(7)).await;
    // The third is only buffered, and kept too.
    assert_eq!(driver.extended(), [[1, 2, 3]]);
    first.ack().await.unwrap();
    driver.fail(2, throughline_core::Error::new(ErrorKind::Stale, "gone"));
    tokio::time::timeout(Duration::from_secs(9), second.lease_lost()).await.unwrap();
    assert!(second.is_lease_lost());
    let extended = driver.extended();
    assert!(extended[1..].concat().iter().all(|tag| *tag != 1), "{extended:?}");
    let third = next(&mut consumer).await;
    tokio::time::timeout(Duration::from_secs(60), third.lease_lost()).await.unwrap();
    // Not renewed for ever: 30 s in all, and never past that, since a broker may refuse it.
    let times = driver.extended().concat().iter().filter(|tag| **tag == 3).count();
    assert!((3..=8).contains(&times), "{times}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_never_extended_past_the_brokers_maximum() {
    const MAX: Duration = Duration::from_secs(30);
    let driver = ScriptedConsumer::with(Capabilities { lease: Lease::Renewable(Some(MAX)), ..MEMORY });
    let options = ConsumeOptions { lease: Duration::from_secs(8), ..ConsumeOptions::default() };
    let mut consumer = open(&driver, options);
    let started = Instant::now();
    driver.feed_with(Envelope::new("x"), |delivery| {
        delivery.lease_expires = Some(Instant::now() + Duration::from_secs(8));
    });
    let delivery = next(&mut consumer).await;
    let mut seen = 0;
    while !delivery.is_lease_lost() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for by in &driver.extended_by()[seen..] {
            assert!(
                started.elapsed() + *by <= MAX + Duration::from_millis(200),
                "{by:?} at {:?}",
                started.elapsed()
            );
        }
        seen = driver.extended().len();
    }
    assert!(started.elapsed() >= MAX - Duration::from_secs(2), "given up after {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_rejected_or_acked_and_counted_where_the_broker_does_not_see_to_it() {
    let expired = || Envelope::builder("t").expires_at(Timestamp::from_millis(1)).payload("late").build();
    for (level, has_dead_letter, settled) in [
        (Level::Emulated, true, Some("reject")),
        (Level::Emulated, false, Some("ack")),
        (Level::Native, true, None),
    ] {
        let driver = ScriptedConsumer::with(Capabilities { expiry: level, ..MEMORY });
        driver.set_has_dead_letter(has_dead_letter);
        let mut consumer = open(&driver, ConsumeOptions::default());
        driver.feed(expired());
        driver.feed(Envelope::new("in time"));
        driver.feed(expired());
        driver.feed_with(expired(), |delivery| delivery.is_dead_letter = true);
        if let Some(settled) = settled {
            let batch = consumer.next_batch(NonZeroUsize::new(9).unwrap()).await.unwrap();
            let bodies: Vec<_> = batch.iter().map(Delivery::payload).collect();
            assert_eq!(bodies, [&b"in time"[..], b"late"], "a dead letter is kept");
            drop(batch);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(tokio::time::timeout(Duration::from_millis(1), consumer.next()).await.is_err());
            tokio::time::sleep(Duration::from_millis(50)).await;
            let names: Vec<_> = driver.settled().concat().into_iter().map(|(_, name)| name).collect();
            assert_eq!(names, [settled, settled, "release", "release"]);
            assert_eq!(consumer.expired(), 2);
        } else {
            assert_eq!(next(&mut consumer).await.payload(), b"late");
            assert_eq!(consumer.expired(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_next_loses_nothing() {
    let driver = ScriptedConsumer::new();
    let mut consumer = open(&driver, ConsumeOptions::default());
    for n in 0..50 {
        let _ = tokio::time::timeout(Duration::from_millis(n % 3), consumer.next()).await.is_err();
        driver.feed(Envelope::new(n.to_string()));
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.payload(), n.to_string().as_bytes());
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn queue_delay_is_never_negative_and_attempts_continue_the_history() {
    let driver = ScriptedConsumer::new();
    let mut consumer = open(&driver, ConsumeOptions::default());
    let mut history = History::default();
    history.push("first".into());
    driver.feed_with(Envelope::new("x"), |delivery| {
        delivery.enqueued = Some((Timestamp::now().after(Duration::from_secs(60)), Clock::Publisher));
        delivery.failed_attempts = 2;
        delivery.history = Some(Arc::new(history));
    });
    let delivery = next(&mut consumer).await;
    let delay = delivery.queue_delay().unwrap();
    assert_eq!((delay.delay, delay.clamped), (Duration::ZERO, true));
    assert_eq!(delivery.attempt(), 3);
    assert_eq!(delivery.history().unwrap().failures().len(), 1);
    driver.feed(Envelope::new("y"));
    assert_eq!(next(&mut consumer).await.queue_delay(), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_while_it_was_buffered_is_not_handed_out() {
    let driver = ScriptedConsumer::with(DEFERRED);
    let mut consumer = open(&driver, ConsumeOptions::default());
    for n in 0..5 {
        driver.feed(Envelope::new(n.to_string()));
    }
    let first = next(&mut consumer).await;
    driver.lose_connection();
    driver.feed(Envelope::new("new"));
    assert_eq!(next(&mut consumer).await.payload(), b"new");
    assert!(first.ack().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_error_that_ends_the_stream_is_told_after_what_came_before() {
    let driver = ScriptedConsumer::new();
    let mut consumer = open(&driver, ConsumeOptions::default());
    driver.feed(Envelope::new("x"));
    driver.feed_error(scripted::never());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ten = NonZeroUsize::new(10).unwrap();
    assert_eq!(consumer.next_batch(ten).await.unwrap().len(), 1);
    assert_eq!(consumer.next_batch(ten).await.unwrap_err().kind(), ErrorKind::Refused);
    assert!(consumer.next_batch(ten).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn close_does_not_wait_for_the_linger() {
    let driver = ScriptedConsumer::with(DEFERRED);
    let options = ConsumeOptions { settle_linger: Duration::from_secs(60), ..ConsumeOptions::default() };
    let mut consumer = open(&driver, options);
    driver.feed(Envelope::new("x"));
    next(&mut consumer).await.ack().await.unwrap();
    let started = Instant::now();
    consumer.close().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(driver.settled().concat(), [(1, "ack")]);
}

#[tokio::test(start_paused = true)]
async fn no_option_panics_or_stops_the_stream() {
    let driver = ScriptedConsumer::new();
    let options = ConsumeOptions {
        max_unsettled: usize::MAX,
        max_bytes: 0,
        lease: Duration::MAX,
        max_lease: Duration::MAX,
        poll: Duration::MAX,
        settle_linger: Duration::MAX,
        ..ConsumeOptions::default()
    };
    let mut consumer = open(&driver, options);
    driver.feed_with(Envelope::new("x"), |delivery| delivery.lease_expires = Some(Instant::now()));
    driver.feed(Envelope::new("y"));
    assert_eq!(next(&mut consumer).await.payload(), b"y");
}
