//! The portable publisher, against a scripted driver.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use throughline_core::capabilities::{Capabilities, KeyPipeline, Level, MEMORY};
use throughline_core::{
    Address, Envelope, ErrorKind, KeyOrder, PublishOptions, Publisher, Retry, SendOptions,
};
use throughline_testkit::scripted::{self, Reply, ScriptedPublisher, text};

fn open(driver: &Arc<ScriptedPublisher>, options: PublishOptions) -> Publisher {
    let address: Address = "memory:scripted?queue=q".parse().unwrap();
    Publisher::new(driver.clone(), &address, options)
}

fn keyed(key: &str, text: impl Into<String>) -> Envelope {
    Envelope::builder("t").key(key.to_owned()).payload(text.into()).build()
}

/// Fails the first send of each message with this text, as the script says.
fn failing_once(which: &'static str, error: throughline_core::Error) -> Arc<ScriptedPublisher> {
    failing_once_with(MEMORY, which, error)
}

fn failing_once_with(
    capabilities: Capabilities,
    which: &'static str,
    error: throughline_core::Error,
) -> Arc<ScriptedPublisher> {
    let mut failed = false;
    ScriptedPublisher::with(capabilities, move |message| {
        if text(&message.envelope) == which && !failed {
            failed = true;
            return Reply::Fail(error.clone());
        }
        Reply::Accept
    })
}

#[tokio::test(start_paused = true)]
async fn one_message_goes_at_once_and_what_accumulates_meanwhile_goes_together() {
    let driver = ScriptedPublisher::new(|_| Reply::Accept);
    let publisher = open(&driver, PublishOptions::default());
    driver.hold(true);
    let mut pending = Vec::new();
    for n in 0..600 {
        pending.push(publisher.enqueue(Envelope::new(n.to_string()), SendOptions::default()).await.unwrap());
        tokio::task::yield_now().await;
    }
    driver.hold(false);
    for receipt in pending {
        receipt.await.unwrap();
    }
    let sizes: Vec<_> = driver.batches().iter().map(Vec::len).collect();
    // The first alone, without a linger; then full batches of 256, and the rest.
    assert_eq!(sizes, [1, 256, 256, 87]);
    let expected: Vec<_> = (0..600).map(|n| n.to_string()).collect();
    assert_eq!(driver.texts(), expected);
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_per_message_and_only_safe_failures_are_sent_again() {
    let driver = ScriptedPublisher::new(|message| match text(&message.envelope).as_str() {
        "never" => Reply::Fail(scripted::never()),
        "uncertain" => Reply::Fail(scripted::uncertain()),
        "dropped" => Reply::Drop,
        _ => Reply::Accept,
    });
    let publisher = open(&driver, PublishOptions::default());
    let texts = ["a", "never", "uncertain", "dropped", "b"];
    let results = publisher.publish_batch(texts.map(Envelope::new)).await;
    let retries: Vec<_> =
        results.iter().map(|result| result.as_ref().map(drop).map_err(|e| e.retry())).collect();
    let lost = Err(Retry::Uncertain);
    assert_eq!(retries, [Ok(()), Err(Retry::Never), lost, lost, Ok(())]);
    assert_eq!(driver.texts(), texts);

    let driver = failing_once("x", scripted::safe());
    let publisher = open(&driver, PublishOptions::default());
    publisher.publish(Envelope::new("x")).await.unwrap();
    let sent: Vec<_> = driver.batches().concat();
    assert_eq!(sent.len(), 2);
    // The same operation, so that the broker can tell that it has it already.
    assert_eq!(sent[0].operation, sent[1].operation);

    let driver = failing_once("x", scripted::uncertain());
    let options = PublishOptions { allow_duplicates: true, ..PublishOptions::default() };
    open(&driver, options).publish(Envelope::new("x")).await.unwrap();
    assert_eq!(driver.texts(), ["x", "x"]);
}

#[tokio::test(start_paused = true)]
async fn a_safe_failure_is_sent_again_until_the_timeout_and_then_told() {
    let driver = ScriptedPublisher::new(|_| Reply::Fail(scripted::safe()));
    let publisher = open(&driver, PublishOptions::default());
    let started = tokio::time::Instant::now();
    let error = publisher.publish(Envelope::new("x")).await.unwrap_err();
    assert!(started.elapsed() <= Duration::from_secs(31));
    assert!(matches!(error.kind(), ErrorKind::Disconnected | ErrorKind::Timeout), "{error:?}");
    let sent = driver.batches().len();
    // Backoff: neither a storm nor a single try.
    assert!((10..60).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_a_timeout_and_uncertain() {
    let driver = ScriptedPublisher::new(|_| Reply::Silence);
    let options = PublishOptions { timeout: Duration::from_secs(3), ..PublishOptions::default() };
    let publisher = open(&driver, options);
    for error in [
        publisher.publish(Envelope::new("x")).await.unwrap_err(),
        publisher.publish_batch([Envelope::new("y")]).await.remove(0).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Uncertain));
        assert!(error.to_string().contains("within 3s"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_key_is_fenced_until_it_is_resumed_and_others_go_on() {
    let driver = failing_once("a1", scripted::never());
    let publisher = open(&driver, PublishOptions::default());
    assert!(publisher.publish(keyed("a", "a1")).await.is_err());
    let error = publisher.publish(keyed("a", "a2")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::HeldBack, Retry::Safe));
    publisher.publish(keyed("b", "b1")).await.unwrap();
    publisher.publish(Envelope::new("unkeyed")).await.unwrap();
    assert!(publisher.resume(b"a") && !publisher.resume(b"a"));
    publisher.publish(keyed("a", "a3")).await.unwrap();
    assert_eq!(driver.texts(), ["a1", "b1", "unkeyed", "a3"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_yet_sent_does_not_overtake_a_message_that_is_sent_again() {
    let driver = failing_once("1", scripted::safe());
    let publisher = open(&driver, PublishOptions::default());
    driver.hold(true);
    let mut pending = Vec::new();
    for n in 0..300 {
        pending.push(publisher.enqueue(keyed("k", n.to_string()), SendOptions::default()).await.unwrap());
    }
    driver.hold(false);
    for receipt in pending {
        receipt.await.unwrap();
    }
    // 1 failed with the first batch, was sent again, and everything after that batch waited for it.
    let first = driver.batches()[0].len();
    let expected: Vec<_> = (0..first).chain([1]).chain(first..300).map(|n| n.to_string()).collect();
    assert_eq!(driver.texts(), expected);
}

#[tokio::test(start_paused = true)]
async fn calls_that_run_side_by_side_never_hold_the_same_key() {
    let driver = ScriptedPublisher::with(Capabilities { publish_calls: 3, ..MEMORY }, |_| Reply::Accept);
    let publisher = open(&driver, PublishOptions::default());
    driver.hold(true);
    let mut pending = Vec::new();
    for (key, text) in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("c", "c1")] {
        pending.push(publisher.enqueue(keyed(key, text), SendOptions::default()).await.unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!driver.texts().contains(&"a2".to_owned()));
    driver.hold(false);
    for receipt in pending {
        receipt.await.unwrap();
    }
    let texts = driver.texts();
    let position = |text: &str| texts.iter().position(|t| t == text).unwrap();
    assert!(position("a1") < position("a2"));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_keeps_the_outcomes_that_are_known_and_fences_what_is_not() {
    let driver = ScriptedPublisher::new(|message| match text(&message.envelope).as_str() {
        "silent" => Reply::Silence,
        _ => Reply::Accept,
    });
    let publisher = open(&driver, PublishOptions::default());
    let envelopes = [keyed("a", "a1"), keyed("k", "silent"), keyed("b", "b1")];
    let results = publisher.publish_batch(envelopes).await;
    let kinds: Vec<_> = results.iter().map(|r| r.as_ref().err().map(|error| error.kind())).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::Timeout), None]);
    let error = publisher.publish(keyed("k", "k2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HeldBack);
    publisher.publish(keyed("a", "a2")).await.unwrap();
}

#[tokio::test]
async fn within_one_call_nothing_overtakes_a_message_that_was_refused() {
    let mut capabilities = MEMORY;
    capabilities.limits.payload_bytes = Some(3);
    let driver = ScriptedPublisher::with(capabilities, |_| Reply::Accept);
    let publisher = open(&driver, PublishOptions::default());
    let envelopes = [keyed("k", "1234"), keyed("k", "2"), keyed("other", "3")];
    let results = publisher.publish_batch(envelopes).await;
    let kinds: Vec<_> = results.iter().map(|r| r.as_ref().err().map(|error| error.kind())).collect();
    assert_eq!(kinds, [Some(ErrorKind::LimitExceeded), Some(ErrorKind::HeldBack), None]);
    publisher.publish(keyed("k", "4")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_uncertain_outcome_is_not_forgotten_over_a_later_safe_one() {
    let mut times = 0;
    let driver = ScriptedPublisher::new(move |_| {
        times += 1;
        Reply::Fail(if times == 1 { scripted::uncertain() } else { scripted::safe() })
    });
    let options = PublishOptions { allow_duplicates: true, ..PublishOptions::default() };
    let error = open(&driver, options).publish(Envelope::new("x")).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Uncertain);
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_the_end_even_when_asked_twice_and_not_for_those_who_wait_for_room() {
    let driver = ScriptedPublisher::new(|_| Reply::Accept);
    let options = PublishOptions { max_in_flight: 1, ..PublishOptions::default() };
    let publisher = open(&driver, options);
    driver.hold(true);
    let sent = publisher.enqueue(Envelope::new("sent"), SendOptions::default()).await.unwrap();
    let mut waiting = Box::pin(publisher.publish(Envelope::new("waiting")));
    let second = Duration::from_secs(1);
    assert!(tokio::time::timeout(second, &mut waiting).await.is_err());
    assert!(tokio::time::timeout(second, publisher.close()).await.is_err());
    assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::Closed);
    driver.hold(false);
    publisher.close().await.unwrap();
    assert_eq!((driver.texts(), driver.closed()), (vec!["sent".into()], 1));
    sent.await.unwrap();
}

#[tokio::test]
async fn no_option_panics() {
    let driver = ScriptedPublisher::new(|_| Reply::Accept);
    let options =
        PublishOptions { timeout: Duration::MAX, max_in_flight: usize::MAX, ..PublishOptions::default() };
    open(&driver, options).publish(Envelope::new("x")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn strict_order_sends_a_key_one_by_one_where_the_driver_cannot_pipeline() {
    let unsafe_pipeline = Capabilities { key_pipeline: KeyPipeline::Unsafe, ..MEMORY };
    for (capabilities, largest) in [(unsafe_pipeline, 2), (MEMORY, 100)] {
        let driver = failing_once_with(capabilities, "7", scripted::safe());
        let options = PublishOptions { key_order: KeyOrder::Strict, ..PublishOptions::default() };
        let publisher = open(&driver, options);
        // Two keys: at most one message of each in a batch.
        let envelopes = (0..100).map(|n| keyed(if n % 2 == 0 { "even" } else { "odd" }, n.to_string()));
        let results = publisher.publish_batch(envelopes).await;
        assert!(results.iter().all(Result::is_ok));
        assert!(driver.batches().iter().map(Vec::len).max().unwrap() <= largest);
        if largest == 2 {
            let mut odd: Vec<u32> = driver.texts().iter().map(|t| t.parse().unwrap()).collect();
            odd.retain(|n| n % 2 == 1);
            odd.dedup();
            let expected: Vec<_> = (0..100).filter(|n| n % 2 == 1).collect();
            assert_eq!(odd, expected);
        }
        publisher.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn strict_order_holds_back_all_that_waits_behind_a_failure_until_the_key_is_resumed() {
    let capabilities = Capabilities { key_pipeline: KeyPipeline::Unsafe, ..MEMORY };
    let driver = failing_once_with(capabilities, "1", scripted::never());
    let options = PublishOptions { key_order: KeyOrder::Strict, ..PublishOptions::default() };
    let publisher = open(&driver, options);
    let send = || publisher.publish_batch((0..5).map(|n| keyed("k", n.to_string())));
    let kinds: Vec<_> =
        send().await.into_iter().map(|result| result.err().map(|error| error.kind())).collect();
    let held = Some(ErrorKind::HeldBack);
    assert_eq!(kinds, [None, Some(ErrorKind::Refused), held, held, held]);
    assert!(publisher.resume(b"k"));
    assert!(send().await.iter().all(Result::is_ok));
    assert_eq!(driver.texts(), ["0", "1", "0", "1", "2", "3", "4"]);
    publisher.close().await.unwrap();
}

#[tokio::test]
async fn limits_are_checked_before_the_driver_sees_the_message() {
    let mut capabilities = MEMORY;
    capabilities.limits.payload_bytes = Some(3);
    capabilities.delay = Level::No;
    let driver = ScriptedPublisher::with(capabilities, |_| Reply::Accept);
    let publisher = open(&driver, PublishOptions::default());
    let error = publisher.publish(Envelope::new("1234")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().ends_with("the payload is 4 bytes, the limit is 3 bytes"), "{error}");
    let delayed = SendOptions::delayed(Duration::from_secs(1));
    let error = publisher.publish_with(Envelope::new("1"), delayed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let nameless = Envelope::builder("t").id("").build();
    assert_eq!(publisher.publish(nameless).await.unwrap_err().kind(), ErrorKind::InvalidMessage);
    assert!(driver.batches().is_empty());
    // What is refused at once does not fence its key.
    assert!(publisher.publish(keyed("k", "1234")).await.is_err());
    publisher.publish(keyed("k", "1")).await.unwrap();
}

#[tokio::test]
async fn batches_keep_to_the_byte_limit() {
    let mut capabilities = MEMORY;
    capabilities.limits.batch_bytes = Some(10);
    let driver = ScriptedPublisher::with(capabilities, |_| Reply::Accept);
    let publisher = open(&driver, PublishOptions::default());
    let results = publisher.publish_batch((0..9).map(|_| Envelope::new("1234"))).await;
    assert!(results.iter().all(Result::is_ok));
    for batch in driver.batches() {
        assert!(batch.len() <= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_publish_abandons_the_answer_not_the_send_and_close_sends_what_is_queued() {
    let driver = ScriptedPublisher::new(|_| Reply::Accept);
    let publisher = open(&driver, PublishOptions::default());
    driver.hold(true);
    for n in 0..3 {
        drop(publisher.enqueue(Envelope::new(n.to_string()), SendOptions::default()).await.unwrap());
    }
    let closing = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.close().await }
    });
    tokio::task::yield_now().await;
    driver.hold(false);
    closing.await.unwrap().unwrap();
    assert_eq!((driver.texts(), driver.closed()), (vec!["0".into(), "1".into(), "2".into()], 1));
    assert_eq!(publisher.publish(Envelope::new("x")).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(
        publisher.publish_batch([Envelope::new("x")]).await.remove(0).unwrap_err().kind(),
        ErrorKind::Closed
    );
    publisher.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn publishing_waits_for_room() {
    let driver = ScriptedPublisher::new(|_| Reply::Accept);
    let options = PublishOptions { max_in_flight: 2, ..PublishOptions::default() };
    let publisher = open(&driver, options);
    driver.hold(true);
    let enqueue = || publisher.enqueue(Envelope::new("x"), SendOptions::default());
    let (one, two) = (enqueue().await.unwrap(), enqueue().await.unwrap());
    assert!(tokio::time::timeout(Duration::from_secs(1), enqueue()).await.is_err());
    driver.hold(false);
    one.await.unwrap();
    two.await.unwrap();
    enqueue().await.unwrap().await.unwrap();
    // A driver that does not answer is told as such: nothing hangs.
    driver.hold(true);
    let (_one, _two) = (enqueue().await.unwrap(), enqueue().await.unwrap());
    let error = publisher.publish(Envelope::new("3")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Safe));
    let error = publisher.publish_batch([Envelope::new("3")]).await.remove(0).unwrap_err();
    assert!(error.to_string().contains("2 messages are unanswered"), "{error}");
    driver.hold(false);
    // More than fit at once, in one call.
    assert!(publisher.publish_batch((0..9).map(|_| Envelope::new("x"))).await.iter().all(Result::is_ok));
}
