//! What only the memory transport has to show: it is the reference, and its rules are exact.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::num::NonZeroUsize;
use std::time::Duration;

use throughline::{
    Bus, ConsumeOptions, Consumer, Delivery, Envelope, ErrorKind, Failure, Order, PublishOptions, Publisher,
    SendOptions,
};

async fn bus(options: &str) -> (Bus, Publisher) {
    // A bus of its own for each test: buses live as long as the process.
    let id = Envelope::new("").id;
    let bus = Bus::connect(format!("memory:{id}?{options}")).await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    (bus, publisher)
}

async fn next(consumer: &mut Consumer) -> Delivery {
    tokio::time::timeout(Duration::from_secs(5), consumer.next()).await.unwrap().unwrap().unwrap()
}

async fn is_silent(consumer: &mut Consumer) -> bool {
    tokio::time::timeout(Duration::from_millis(100), consumer.next()).await.is_err()
}

fn keyed(key: &str, text: &str) -> Envelope {
    Envelope::builder("t").key(key.to_owned()).payload(text.to_owned()).build()
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}

#[tokio::test]
async fn the_envelope_is_shared_not_copied() {
    let (bus, publisher) = bus("queue=q").await;
    let envelope = std::sync::Arc::new(keyed("k", "x"));
    publisher.publish(envelope.clone()).await.unwrap();
    let delivery = next(&mut bus.consumer().await.unwrap()).await;
    assert!(std::sync::Arc::ptr_eq(delivery.envelope(), &envelope));
    assert_eq!((delivery.attempt(), delivery.receive_count()), (1, Some(1)));
}

#[tokio::test]
async fn subscriptions_each_get_everything_and_their_consumers_compete() {
    let (bus, publisher) = bus("topic=t").await;
    let error = publisher.publish(Envelope::new("lost?")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unroutable);
    let dropping = bus.publisher_to("?topic=t&unroutable=drop", PublishOptions::default()).await.unwrap();
    dropping.publish(Envelope::new("dropped")).await.unwrap();

    let options = || ConsumeOptions::default();
    let mut a1 = bus.consumer_of("?topic=t&queue=a", options()).await.unwrap();
    let mut a2 = bus.consumer_of("?topic=t&queue=a", options()).await.unwrap();
    let mut b = bus.consumer_of("?topic=t&queue=b", options()).await.unwrap();
    let mut own = bus.consumer().await.unwrap();
    publisher.publish(Envelope::new("1")).await.unwrap();
    next(&mut b).await.ack().await.unwrap();
    next(&mut own).await.ack().await.unwrap();
    tokio::select! {
        one = a1.next() => { let _held = one; assert!(is_silent(&mut a2).await); }
        one = a2.next() => { let _held = one; assert!(is_silent(&mut a1).await); }
    }
    // A consumer's own subscription ends with it.
    own.close().await.unwrap();
    let depth = bus.depth("?topic=t&queue=b").await.unwrap();
    assert_eq!((depth.ready, depth.unsettled, depth.delayed), (0, Some(0), Some(0)));
}

#[tokio::test]
async fn a_key_is_delivered_one_by_one_and_other_keys_go_on() {
    let (bus, publisher) = bus("queue=q").await;
    for envelope in [keyed("a", "a1"), keyed("a", "a2"), keyed("b", "b1"), keyed("a", "a3")] {
        publisher.publish(envelope).await.unwrap();
    }
    let mut consumer = bus.consumer().await.unwrap();
    let (a1, b1) = (next(&mut consumer).await, next(&mut consumer).await);
    assert_eq!((text(&a1), text(&b1)), ("a1".into(), "b1".into()));
    assert!(is_silent(&mut consumer).await);
    // A retry keeps its place, its delay included.
    a1.retry(Duration::from_millis(600), "busy").await.unwrap();
    assert!(is_silent(&mut consumer).await);
    let a1 = next(&mut consumer).await;
    assert_eq!((text(&a1), a1.attempt()), ("a1".into(), 2));
    a1.ack().await.unwrap();
    for expected in ["a2", "a3"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), expected);
        delivery.ack().await.unwrap();
    }
    let any = ConsumeOptions { order: Order::Any, ..ConsumeOptions::default() };
    consumer.close().await.unwrap();
    publisher.publish_batch([keyed("a", "1"), keyed("a", "2")]).await;
    let mut consumer = bus.consumer_of("", any).await.unwrap();
    let (one, two) = (next(&mut consumer).await, next(&mut consumer).await);
    assert_eq!((text(&one), text(&two)), ("1".into(), "2".into()));
}

#[tokio::test]
async fn a_lease_is_extended_while_it_is_held_and_lost_at_its_maximum() {
    let (bus, publisher) = bus("queue=q").await;
    publisher.publish(Envelope::new("x")).await.unwrap();
    let options = ConsumeOptions {
        lease: Duration::from_secs(1),
        max_lease: Duration::from_secs(3),
        ..ConsumeOptions::default()
    };
    let mut first = bus.consumer_of("", options).await.unwrap();
    let mut second = bus.consumer().await.unwrap();
    let held = next(&mut first).await;
    // It would compete for the message that it lost.
    first.stop().await;
    assert!(first.next().await.is_none());
    // Well over one lease: extended meanwhile.
    tokio::time::sleep(Duration::from_millis(1800)).await;
    assert!(!held.is_lease_lost());
    assert!(is_silent(&mut second).await);
    tokio::time::timeout(Duration::from_secs(5), held.lease_lost()).await.unwrap();
    let again = next(&mut second).await;
    assert_eq!((again.receive_count(), again.attempt()), (Some(2), 2));
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::Stale);
    again.ack().await.unwrap();
    assert_eq!(bus.depth("").await.unwrap().unsettled, Some(0));
}

#[tokio::test]
async fn what_is_released_comes_back_in_its_order() {
    let (bus, publisher) = bus("queue=q").await;
    publisher.publish_batch((0..20).map(|n| Envelope::new(n.to_string()))).await;
    for _ in 0..3 {
        let mut consumer = bus.consumer().await.unwrap();
        let mut held = Vec::new();
        for n in 0..10 {
            let delivery = next(&mut consumer).await;
            assert_eq!(text(&delivery), n.to_string());
            held.push(delivery);
        }
        // Those held, in any order, and those unread.
        held.swap(2, 7);
        drop(held);
        consumer.close().await.unwrap();
    }
}

#[tokio::test]
async fn rejected_messages_keep_everything_and_gain_the_reason() {
    let (bus, publisher) = bus("queue=q&dead_letter=dead").await;
    let envelope = Envelope::builder("t").header("h", "v").payload("x").build();
    publisher.publish(envelope.clone()).await.unwrap();
    let mut consumer = bus.consumer().await.unwrap();
    next(&mut consumer).await.retry(Duration::ZERO, "http_503").await.unwrap();
    let failure = Failure::new("http_500").dependency("ads-api").message("no luck");
    next(&mut consumer).await.reject(failure).await.unwrap();
    let dead = bus.consumer_of("?queue=dead", ConsumeOptions::default()).await;
    let dead = next(&mut dead.unwrap()).await;
    assert_eq!(**dead.envelope(), envelope);
    let details = dead.native_details();
    let detail = |wanted| details.iter().find(|(name, _)| name == wanted).unwrap().1.as_str().unwrap();
    assert_eq!(detail("tl-dead-letter-source"), "q");
    assert_eq!(detail("tl-dead-letter-reason"), "http_500 (ads-api): no luck");
    let history: Vec<_> =
        dead.history().unwrap().failures().iter().map(|f| (f.attempt, f.error.as_str())).collect();
    assert_eq!(history, [(1, "http_503"), (2, "http_500")]);

    let mut nowhere = bus.consumer_of("?queue=q", ConsumeOptions::default()).await.unwrap();
    publisher.publish(Envelope::new("stays")).await.unwrap();
    drop(consumer);
    let error = next(&mut nowhere).await.reject("bad").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoDeadLetter);
    assert!(error.to_string().contains("dead_letter=QUEUE"), "{error}");
    assert_eq!(bus.depth("?queue=q").await.unwrap().unsettled, Some(1));
}

#[tokio::test]
async fn delay_priority_expiry_and_a_full_queue() {
    let (bus, publisher) = bus("queue=q&max_length=3").await;
    let delayed = SendOptions::delayed(Duration::from_secs(1));
    publisher.publish_with(Envelope::new("late"), delayed).await.unwrap();
    let low = Envelope::builder("t").payload("low").expires_in(Duration::from_secs(9)).build();
    publisher.publish(low).await.unwrap();
    publisher.publish(Envelope::builder("t").payload("high").priority(9).build()).await.unwrap();
    let impatient = PublishOptions { timeout: Duration::from_millis(100), ..PublishOptions::default() };
    let error = bus.publisher_to("", impatient).await.unwrap().publish(Envelope::new("4")).await;
    let error = error.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Timeout), "{error}");
    let depth = bus.depth("").await.unwrap();
    assert_eq!((depth.ready, depth.delayed), (2, Some(1)));
    let browsed = bus.browse("", NonZeroUsize::MAX).await.unwrap();
    assert_eq!(browsed.len(), 2);

    let mut consumer = bus.consumer().await.unwrap();
    for expected in ["high", "low"] {
        let delivery = next(&mut consumer).await;
        assert_eq!((text(&delivery), delivery.receive_count()), (expected.into(), Some(1)));
        delivery.ack().await.unwrap();
    }
    assert!(is_silent(&mut consumer).await);
    let late = next(&mut consumer).await;
    assert_eq!(text(&late), "late");
    // A requested delay is not queue delay.
    assert!(late.queue_delay().unwrap().delay < Duration::from_millis(900), "{:?}", late.queue_delay());
    late.ack().await.unwrap();
    let expired = Envelope::builder("t").expires_in(Duration::ZERO).build();
    publisher.publish(expired).await.unwrap();
    assert!(is_silent(&mut consumer).await);
    assert_eq!(bus.purge("").await.unwrap(), 0);
}

#[tokio::test]
async fn missing_and_deleted_queues_are_said_to_be_so() {
    let (bus, publisher) = bus("queue=q").await;
    let error = bus.publisher_to("?queue=new&create=never", PublishOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = bus.consumer_of("?topic=new&create=never", ConsumeOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(bus.create("?topic=t&queue=s&dead_letter=d").await.unwrap().len(), 3);
    assert!(bus.create("?topic=t&queue=s&dead_letter=d").await.unwrap().is_empty());
    let error = bus.create("?topic=t&queue=s&max_length=9").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let own = bus.consumer_of("?topic=t&create=never", ConsumeOptions::default()).await.unwrap();
    own.close().await.unwrap();

    let mut consumer = bus.consumer().await.unwrap();
    assert_eq!(bus.delete("").await.unwrap(), ["queue 'q'"]);
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(consumer.next().await.is_none());
    // Made again on the next use, unless the address says otherwise.
    let never = bus.publisher_to("?queue=q&create=never", PublishOptions::default()).await;
    assert_eq!(never.unwrap_err().kind(), ErrorKind::NotFound);
    publisher.publish(Envelope::new("x")).await.unwrap();
    let never = bus.publisher_to("?queue=q&create=never", PublishOptions::default()).await.unwrap();
    bus.delete("").await.unwrap();
    assert_eq!(never.publish(Envelope::new("x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    for (address, expected) in [
        ("memory:", "names no bus"),
        ("memory://host?queue=q", "names no bus"),
        ("memory:b?queue=q&quue=x", "did you mean 'queue'"),
        ("redis:b", "unknown scheme 'redis'; this build has "),
    ] {
        let error = Bus::connect(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let bus = Bus::connect("memory:b").await.unwrap();
    assert!(bus.publisher().await.unwrap_err().to_string().contains("add ?queue=NAME"));
    let error = bus.publisher_to("?queue=q&create=maybe", PublishOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("'create' 'maybe' is not auto or never"), "{error}");
}

#[tokio::test]
async fn a_dead_letter_does_not_expire() {
    let (bus, publisher) = bus("queue=q&dead_letter=dead").await;
    let envelope = Envelope::builder("t").expires_in(Duration::from_secs(1));
    publisher.publish(envelope).await.unwrap();
    next(&mut bus.consumer().await.unwrap()).await.reject("bad").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let dead = bus.consumer_of("?queue=dead", ConsumeOptions::default()).await;
    next(&mut dead.unwrap()).await.ack().await.unwrap();
}

#[tokio::test]
async fn an_expired_lease_wakes_a_consumer_that_was_waiting_before_it_began() {
    let (bus, publisher) = bus("queue=q").await;
    let lease = Duration::from_millis(100);
    let short = ConsumeOptions { lease, max_lease: lease, max_unsettled: 1, ..ConsumeOptions::default() };
    let mut waiting = bus.consumer_of("", short.clone()).await.unwrap();
    let mut other = bus.consumer_of("", short).await.unwrap();
    publisher.publish(Envelope::new("x")).await.unwrap();
    // Whoever gets it does not settle it; the other one does.
    tokio::select! {
        held = waiting.next() => { let _held = held; next(&mut other).await.ack().await.unwrap(); }
        held = other.next() => { let _held = held; next(&mut waiting).await.ack().await.unwrap(); }
    }
}

#[tokio::test]
async fn a_consumer_that_stops_passes_its_wake_up_on() {
    for _ in 0..50 {
        let (bus, publisher) = bus("queue=q").await;
        let mut stops = bus.consumer().await.unwrap();
        let mut stays = bus.consumer().await.unwrap();
        tokio::task::yield_now().await;
        let (_, published) = tokio::join!(stops.stop(), publisher.publish(Envelope::new("x")));
        published.unwrap();
        let delivery = tokio::time::timeout(Duration::from_secs(5), stays.next()).await;
        delivery.unwrap().unwrap().unwrap().ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_diagnosis_creates_nothing_and_names_the_remedy() {
    let codes = |diagnosis: &throughline::Diagnosis| -> Vec<&str> {
        diagnosis.findings.iter().map(|finding| finding.code).collect()
    };
    let bus = Bus::connect("memory:native-diagnosis?queue=q").await.unwrap();
    let options = throughline::DiagnoseOptions { handler: Some(Duration::from_secs(7200)) };
    for _ in 0..2 {
        // Missing both times: the first look made nothing.
        let missing = bus.diagnose("?queue=q&create=never&dead_letter=dead", &options).await.unwrap();
        assert_eq!(codes(&missing), ["queue-missing", "queue-missing", "lease-not-renewed-long-enough"]);
        assert!(missing.findings[2].remedy.commands[0].contains("from_secs(14400)"), "{missing:?}");
        let made_on_use = bus.diagnose("", &throughline::DiagnoseOptions::default()).await.unwrap();
        assert_eq!(codes(&made_on_use), ["no-dead-letter"]);
    }
    bus.create("?queue=q&max_length=1").await.unwrap();
    bus.create("?topic=t").await.unwrap();
    bus.publisher().await.unwrap().publish(Envelope::new("x")).await.unwrap();
    let full = bus.diagnose("?queue=q", &throughline::DiagnoseOptions::default()).await.unwrap();
    assert_eq!(codes(&full), ["queue-full", "no-dead-letter"]);
    assert_eq!(bus.depth("?queue=q").await.unwrap().ready, 1);
    let topic = bus.diagnose("?topic=t", &throughline::DiagnoseOptions::default()).await.unwrap();
    assert_eq!(codes(&topic), ["no-subscription", "no-dead-letter"]);
    bus.close().await.unwrap();
}
