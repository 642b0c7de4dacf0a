//! Work is done once, and attempts are remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::rig::{Rig, Seen, keyed, message, start, until};
use async_trait::async_trait;
use throughline::capabilities::{Capabilities, MEMORY, RetryMeans};
use throughline::{Address, ConsumeOptions, Consumer, Envelope, Error, ErrorKind, Result};
use throughline_testkit::scripted::ScriptedConsumer;
use throughline_worker::{
    Attempts, Batch, BatchOptions, Begun, Claim, HandlerError, Idempotency, IdempotencyStore, Job, Json,
    MemoryStore, RetryPolicy, Route, Router, Worker,
};

async fn handler(Json(text): Json<String>, job: Job<Seen>) -> Result<(), HandlerError> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    job.state().push(text.clone());
    match (text.as_str(), job.attempt()) {
        ("fails once", 1) => Err(HandlerError::retryable("no")),
        _ => Ok(()),
    }
}

fn with_key(key: &str, text: &str) -> Envelope {
    let mut envelope = message("a", text);
    envelope.idempotency_key = Some(key.to_owned());
    envelope
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_acked_without_its_handler_and_a_failure_leaves_the_key_new() {
    let rig = Rig::new().await;
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer().await, Router::with_state(seen.clone()).on("a", handler));
    let running = start(worker.idempotency(Idempotency::new(MemoryStore::new())));
    rig.publish(with_key("k", "fails once")).await;
    rig.until_empty().await;
    for _ in 0..3 {
        rig.publish(with_key("k", "again")).await;
    }
    // Its id stands for the key.
    let same = message("a", "by id");
    rig.publish(same.clone()).await;
    rig.until_empty().await;
    rig.publish(same).await;
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!(seen.all(), ["fails once", "fails once", "by id"]);
    assert_eq!((report.acked, report.retried, report.duplicates), (2, 1, 4));
}

#[tokio::test(start_paused = true)]
async fn what_another_is_at_is_put_off_and_no_attempt_is_counted() {
    let rig = Rig::new().await;
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer().await, Router::with_state(seen.clone()).on("a", handler));
    let running =
        start(worker.idempotency(Idempotency::new(MemoryStore::new()).claim(Duration::from_secs(1))));
    // At the same time: one has the claim, the others wait until it is over, and find it done.
    for _ in 0..4 {
        rig.publish(with_key("k", "once")).await;
    }
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!(seen.all(), ["once"]);
    assert_eq!((report.acked, report.duplicates, report.retried), (1, 3, 0));
    assert!(report.postponed >= 3, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_kept_up_as_long_as_the_handler_runs() {
    async fn slow(job: Job<Seen>) {
        job.state().push("begun");
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer().await, Router::with_state(seen.clone()).on("a", slow));
    let running =
        start(worker.idempotency(Idempotency::new(MemoryStore::new()).claim(Duration::from_secs(1))));
    rig.publish(with_key("k", "")).await;
    rig.publish(with_key("k", "")).await;
    rig.until_empty().await;
    assert_eq!(running.stop().await.duplicates, 1);
    assert_eq!(seen.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_at_the_shutdown_is_new_to_the_next_worker() {
    async fn slow(job: Job<Seen>) {
        job.state().push("begun");
        tokio::time::sleep(Duration::from_secs(30)).await;
        job.state().push("ended");
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let store: Arc<dyn IdempotencyStore> = Arc::new(MemoryStore::new());
    let worker = |consumer| {
        let worker = Worker::new(consumer, Router::with_state(seen.clone()).on("a", slow));
        // A claim that nobody gave back would hold the next worker up for an hour.
        worker.idempotency(Idempotency::shared(store.clone()).claim(Duration::from_secs(3600)))
    };
    let running = start(worker(rig.consumer().await).drain(Duration::from_secs(1)));
    rig.publish(with_key("k", "")).await;
    until("it has begun", async || seen.len() == 1).await;
    assert_eq!(running.stop().await.released, 1);
    let running = start(worker(rig.consumer().await));
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!((report.acked, report.postponed), (1, 0));
    assert_eq!(seen.all(), ["begun", "begun", "ended"]);
}

/// Two subscriptions of a topic each do their own work with the same message.
#[tokio::test(start_paused = true)]
async fn keys_are_those_of_one_source() {
    let rig = Rig::new().await;
    let seen = Seen::default();
    let store: Arc<dyn IdempotencyStore> = Arc::new(MemoryStore::new());
    let mut running = Vec::new();
    for subscription in ["one", "two"] {
        let address = format!("?topic=events&queue={subscription}&dead_letter=dead");
        let consumer = rig.bus.consumer_of(&address, ConsumeOptions::default()).await.unwrap();
        let worker = Worker::new(consumer, Router::with_state(seen.clone()).on("a", handler));
        running.push(start(worker.idempotency(Idempotency::shared(store.clone()))));
    }
    let events = rig.bus.publisher_to("?topic=events", Default::default()).await.unwrap();
    events.publish(with_key("k", "event")).await.unwrap();
    until("both have it", async || seen.len() == 2).await;
    for running in running {
        assert_eq!(running.stop().await.duplicates, 0);
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_store_on_disk_does_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = throughline_worker::SqliteStore::open(folder.path().join("store")).await.unwrap();
    let rig = Rig::new().await;
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer().await, Router::with_state(seen.clone()).on("a", handler));
    let policy = RetryPolicy::fixed(Duration::from_millis(10));
    let running = start(worker.idempotency(Idempotency::new(store)).retry(policy));
    for _ in 0..3 {
        rig.publish(with_key("k", "fails once")).await;
        rig.until_empty().await;
    }
    let report = running.stop().await;
    assert_eq!(seen.all(), ["fails once", "fails once"]);
    assert_eq!((report.acked, report.duplicates), (1, 2));
}

struct Broken;

#[async_trait]
impl IdempotencyStore for Broken {
    async fn begin(&self, _: &str, _: Duration) -> Result<Begun> {
        Err(Error::new(ErrorKind::Disconnected, "gone"))
    }
    async fn extend(&self, _: &str, _: Claim, _: Duration) -> Result<bool> {
        Ok(true)
    }
    async fn done(&self, _: &str, _: Claim, _: Duration) -> Result<bool> {
        Ok(true)
    }
    async fn abandon(&self, _: &str, _: Claim) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_out_of_reach_is_a_failure_of_its_own_name_and_the_handler_does_not_run() {
    let rig = Rig::new().await;
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer().await, Router::with_state(seen.clone()).on("a", handler));
    let running = start(worker.idempotency(Idempotency::new(Broken)).retry(RetryPolicy::never()));
    rig.publish(with_key("k", "")).await;
    rig.until_empty().await;
    running.stop().await;
    assert_eq!(seen.len(), 0);
    let dead = rig.dead().await;
    let last = dead[0].history.as_deref().unwrap().last().unwrap();
    assert_eq!(last.to_string(), "Disconnected (idempotency-store): gone");
}

/// Where the broker retries in place, it says how often it delivered a message and no more.
#[tokio::test(start_paused = true)]
async fn the_history_of_retries_in_place_is_kept_by_the_store_or_is_partial() {
    async fn fails() -> std::result::Result<(), HandlerError> {
        Err(HandlerError::dependency("ads-api", "503"))
    }
    for store in [Some(Arc::new(MemoryStore::new())), None] {
        let driver = ScriptedConsumer::with(Capabilities { retry: RetryMeans::InPlace, ..MEMORY });
        driver.set_has_dead_letter(true);
        let address: Address = "memory:scripted?queue=jobs".parse().unwrap();
        let consumer = Consumer::new(driver.clone(), &address, ConsumeOptions::default());
        let mut worker =
            Worker::new(consumer, Router::new().on("a", fails)).retry(RetryPolicy::default().max_attempts(3));
        if let Some(store) = &store {
            worker = worker.attempts(store.clone());
        }
        let running = start(worker);
        let envelope = message("a", "");
        for count in 1..=3 {
            driver.feed_with(envelope.clone(), |delivery| {
                delivery.receive_count = Some(count);
                delivery.failed_attempts = count - 1;
            });
            until("it is settled", async || driver.settlements().len() == count as usize).await;
        }
        running.stop().await;
        let settled = driver.settlements();
        let throughline::driver::Settlement::Reject { history } = &settled[2] else { panic!("{settled:?}") };
        let attempts: Vec<_> = history.failures().iter().map(|failure| failure.attempt).collect();
        match store {
            Some(store) => {
                assert_eq!((attempts, history.is_partial()), (vec![1, 2, 3], false));
                let key = format!("{address} {}", envelope.id);
                let left: Option<Attempts> =
                    throughline_worker::AttemptStore::load(&*store, &key).await.unwrap();
                assert_eq!(left, None, "forgotten with the message");
            }
            None => assert_eq!((attempts, history.is_partial()), (vec![3], true)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_gathered_and_each_of_its_messages_has_its_own_end() {
    async fn store(batch: Batch<Json<String>, Seen>) -> Vec<Result<(), HandlerError>> {
        let texts: Vec<_> = batch.items().iter().map(|Json(text)| text.as_str()).collect();
        batch.jobs()[0].state().push(texts.join(","));
        let outcome = |(Json(text), job): (&Json<String>, &Job<Seen>)| match (text.as_str(), job.attempt()) {
            ("flaky", 1) => Err(HandlerError::retryable("no")),
            ("hopeless", _) => Err(HandlerError::permanent("never")),
            _ => Ok(()),
        };
        batch.iter().map(outcome).collect()
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let options = BatchOptions { max: 10, linger: Duration::from_millis(500) };
    let router = Router::with_state(seen.clone()).route("p", Route::batch(store, options));
    let worker = Worker::new(rig.consumer().await, router).idempotency(Idempotency::new(MemoryStore::new()));
    for text in ["a", "flaky", "hopeless", "b"] {
        rig.publish(message("p", text)).await;
    }
    rig.publish(Envelope::builder("p").payload("no JSON").build()).await;
    // One of a key at a time.
    rig.publish(keyed("p", "k", "k1")).await;
    rig.publish(keyed("p", "k", "k2")).await;
    let mut duplicate = message("p", "dup");
    duplicate.idempotency_key = Some("d".into());
    rig.publish(duplicate.clone()).await;
    let running = start(worker.retry(RetryPolicy::fixed(Duration::from_secs(60))));
    rig.until_empty().await;
    rig.publish(duplicate).await;
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!(seen.all(), ["a,flaky,hopeless,b,k1,dup", "k2", "flaky"]);
    assert_eq!((report.acked, report.retried, report.dead_lettered, report.duplicates), (6, 1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_when_it_is_full_and_fails_as_a_whole_where_its_handler_does() {
    async fn panics(batch: Batch<Json<String>, AtomicU32>) {
        let calls = batch.jobs()[0].state().fetch_add(1, Ordering::SeqCst);
        assert_eq!(batch.len(), 3);
        assert!(calls > 0, "the first time");
    }
    let rig = Rig::new().await;
    let options = BatchOptions { max: 3, linger: Duration::from_secs(3600) };
    let router = Router::with_state(AtomicU32::new(0)).route("p", Route::batch(panics, options));
    let policy = RetryPolicy::fixed(Duration::from_secs(1));
    let running = start(Worker::new(rig.consumer().await, router).retry(policy));
    for _ in 0..6 {
        rig.publish(message("p", "")).await;
    }
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!((report.acked, report.retried), (6, 3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_nothing_that_was_lost_while_it_was_gathered() {
    async fn store(batch: Batch<Json<String>, Seen>) {
        let texts: Vec<_> = batch.items().iter().map(|Json(text)| text.as_str()).collect();
        batch.jobs()[0].state().push(texts.join(","));
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let options = BatchOptions { max: 10, linger: Duration::from_secs(5) };
    let router = Router::with_state(seen.clone()).route("p", Route::batch(store, options));
    let lease = ConsumeOptions { max_lease: Duration::from_secs(3), ..ConsumeOptions::default() };
    let running = start(Worker::new(rig.consumer_with(lease).await, router));
    rig.publish(message("p", "1")).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    // 1 was lost, and is here a second time.
    rig.publish(message("p", "2")).await;
    rig.until_empty().await;
    assert_eq!((seen.all(), running.stop().await.acked), (vec!["1,2".to_owned()], 2));
}
