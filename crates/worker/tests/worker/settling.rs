//! What becomes of messages, by what their handlers return.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::rig::{LONG, Rig, Seen, keyed, message, start, until, within};
use throughline::{Bus, ConsumeOptions, Envelope, ErrorKind};
use throughline_worker::{
    Batch, BatchOptions, HandlerError, Job, Json, LeaseLost, ResultExt, RetryPolicy, Route, Router, Worker,
};
use tokio::time::Instant;

fn quick() -> RetryPolicy {
    RetryPolicy::fixed(Duration::from_secs(1)).max_attempts(3)
}

#[tokio::test(start_paused = true)]
async fn messages_go_to_their_handlers_with_the_state_and_are_acked() {
    async fn on_a(Json(text): Json<String>, job: Job<Seen>) {
        job.state().push(format!("a {text} {}", job.attempt()));
    }
    async fn on_other(job: Job<Seen>) -> Result<(), HandlerError> {
        job.state().push(format!("other {:?}", job.envelope().message_type));
        Ok(())
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let router = Router::with_state(seen.clone()).on("a", on_a).fallback(on_other);
    let running = start(Worker::new(rig.consumer().await, router));
    rig.publish(message("a", "1")).await;
    rig.publish(message("b", "2")).await;
    rig.publish(Envelope::new("untyped")).await;
    rig.until_empty().await;
    let report = running.stop().await;
    let mut all = seen.all();
    all.sort();
    assert_eq!(all, ["a 1 1", "other None", "other Some(\"b\")"]);
    assert_eq!((report.acked, report.retried, report.dead_lettered), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_retried_after_its_delay_with_its_history_and_given_up_in_the_end() {
    async fn fails(job: Job<Seen>) -> Result<(), HandlerError> {
        job.state().push(format!("{}", job.attempt()));
        Err(std::io::Error::other("503")).dependency("ads-api").class("http_503")
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let router = Router::with_state(seen.clone()).on("a", fails);
    let started = Instant::now();
    let running = start(Worker::new(rig.consumer().await, router).retry(quick()).name("host-1"));
    let sent =
        Envelope::builder("a").header("traceparent", TRACEPARENT).header("x", "1").payload("body").build();
    rig.publish(sent.clone()).await;
    rig.until_empty().await;
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    let report = running.stop().await;
    assert_eq!(seen.all(), ["1", "2", "3"]);
    assert_eq!((report.retried, report.dead_lettered, report.acked), (2, 1, 0));
    let dead = rig.dead().await;
    assert_eq!(dead.len(), 1);
    // Body, headers and creation context as they were.
    assert_eq!(*dead[0].envelope, sent);
    let history = dead[0].history.as_deref().unwrap();
    let failures: Vec<_> =
        history.failures().iter().map(|failure| (failure.attempt, failure.to_string())).collect();
    let text = "http_503 (ads-api): 503".to_owned();
    assert_eq!(failures, [(1, text.clone()), (2, text.clone()), (3, text)]);
    assert!(!history.is_partial());
    assert!(history.failures().iter().all(|failure| failure.worker.as_deref() == Some("host-1")));
}

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test(start_paused = true)]
async fn what_would_fail_again_goes_to_the_dead_letters_at_once() {
    async fn decodes(_: Json<u32>) {}
    async fn refuses() -> Result<(), HandlerError> {
        Err(HandlerError::permanent("no such company").with_class("unknown_company"))
    }
    let rig = Rig::new().await;
    let router = Router::new().on("number", decodes).on("refused", refuses);
    let running = start(Worker::new(rig.consumer().await, router));
    for message_type in ["number", "refused", "nobody"] {
        rig.publish(message(message_type, "hunter2")).await;
    }
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!((report.dead_lettered, report.retried), (3, 0));
    let dead = rig.dead().await;
    let mut classes: Vec<_> =
        dead.iter().map(|dead| dead.history.as_deref().unwrap().last().unwrap().clone()).collect();
    classes.sort_by(|a, b| a.error.cmp(&b.error));
    let names: Vec<_> = classes.iter().map(|failure| failure.error.as_str()).collect();
    assert_eq!(names, ["no_handler", "undecodable", "unknown_company"]);
    // The payload is told nowhere.
    assert!(classes.iter().all(|failure| !failure.to_string().contains("hunter2")), "{classes:?}");
    assert!(classes[0].message.contains("'nobody'"), "{classes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_and_a_timeout_are_failures_and_the_worker_goes_on() {
    async fn panics(Json(text): Json<String>) {
        assert_ne!(text, "bad", "as it must");
    }
    let rig = Rig::new().await;
    let slow = || tokio::time::sleep(LONG);
    let router = Router::new()
        .on("panics", panics)
        .route("slow", Route::new(slow).timeout(Duration::from_secs(5)).retry(RetryPolicy::never()));
    let running = start(Worker::new(rig.consumer().await, router).retry(RetryPolicy::never()));
    rig.publish(message("panics", "bad")).await;
    rig.publish(message("slow", "")).await;
    rig.publish(message("panics", "good")).await;
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!((report.acked, report.dead_lettered), (1, 2));
    let mut reasons: Vec<_> = rig.dead().await.iter().map(reason).collect();
    reasons.sort();
    assert_eq!(reasons[1], "timeout: no outcome within 5s");
    assert!(
        reasons[0].starts_with("panic: the handler panicked: ") && reasons[0].contains("as it must"),
        "{reasons:?}"
    );
}

fn reason(dead: &throughline::driver::Delivery) -> String {
    dead.history.as_deref().and_then(|history| history.last()).unwrap().to_string()
}

#[tokio::test(start_paused = true)]
async fn a_routes_policy_and_a_failures_own_wait_are_honoured() {
    async fn throttled(job: Job<Seen>) -> Result<(), HandlerError> {
        job.state().push(format!("{:?}", Instant::now()));
        match job.attempt() {
            1 => Err(HandlerError::retryable("429").with_retry_after(Duration::from_secs(60))),
            _ => Ok(()),
        }
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let router = Router::with_state(seen.clone())
        .route("a", Route::new(throttled).retry(RetryPolicy::fixed(Duration::from_millis(10))));
    let running = start(Worker::new(rig.consumer().await, router).retry(RetryPolicy::never()));
    let started = Instant::now();
    rig.publish(message("a", "")).await;
    rig.until_empty().await;
    assert!(started.elapsed() >= Duration::from_secs(60), "{:?}", started.elapsed());
    assert_eq!(running.stop().await.acked, 1);
    assert_eq!(seen.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_grew_too_old_is_given_up() {
    async fn fails() -> Result<(), HandlerError> {
        Err(HandlerError::retryable("no"))
    }
    let rig = Rig::new().await;
    let policy = RetryPolicy::fixed(Duration::from_secs(1)).max_age(Duration::from_secs(3600));
    let running = start(Worker::new(rig.consumer().await, Router::new().on("a", fails)).retry(policy));
    let two_hours_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    rig.publish(Envelope::builder("a").time(two_hours_ago).build()).await;
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!((report.retried, report.dead_lettered), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_attempts_all_ended_their_worker_is_given_up_without_its_handler() {
    let rig = Rig::new().await;
    let lease = ConsumeOptions {
        lease: Duration::from_secs(1),
        max_lease: Duration::from_secs(1),
        ..Default::default()
    };
    rig.publish(message("a", "")).await;
    // Each takes it, and ends without a word.
    for _ in 0..3 {
        let mut consumer = rig.consumer_with(lease.clone()).await;
        let delivery = within(consumer.next()).await.unwrap().unwrap();
        std::mem::forget(delivery);
        drop(consumer);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let seen = Seen::default();
    async fn handler(job: Job<Seen>) {
        job.state().push("begun");
    }
    let router = Router::with_state(seen.clone()).on("a", handler);
    let running = start(Worker::new(rig.consumer().await, router).retry(quick()));
    rig.until_empty().await;
    running.stop().await;
    assert_eq!(seen.len(), 0);
    assert!(reason(&rig.dead().await[0]).starts_with("attempts_exhausted: 3 attempts have begun"));
}

#[tokio::test(start_paused = true)]
async fn dead_letters_go_to_any_address_durably_before_the_ack() {
    async fn fails() -> Result<(), HandlerError> {
        Err(HandlerError::dependency("ads-api", "no").into_permanent())
    }
    let rig = Rig::new().await;
    let other = Bus::connect(format!("memory:{}?queue=graveyard", uuid::Uuid::now_v7())).await.unwrap();
    let graveyard = other.publisher().await.unwrap();
    let worker = Worker::new(rig.consumer().await, Router::new().on("a", fails)).dead_letter(graveyard);
    let running = start(worker);
    let sent =
        Envelope::builder("a").header("traceparent", TRACEPARENT).expires_in(LONG).payload("body").build();
    rig.publish(sent.clone()).await;
    rig.until_empty().await;
    let dead = other.browse("", std::num::NonZeroUsize::MAX).await.unwrap();
    // What was rejected is kept, however late somebody looks at it; all else is as it was.
    let mut kept = sent;
    kept.expires_at = None;
    assert_eq!(*dead[0].envelope, kept);
    assert_eq!((dead[0].failed_attempts, reason(&dead[0])), (1, "error (ads-api): no".to_owned()));
    assert_eq!(running.stop().await.dead_lettered, 1);
}

#[tokio::test]
async fn a_worker_without_a_place_for_dead_letters_or_with_two_handlers_does_not_begin() {
    async fn handler() {}
    let bus = Bus::connect(format!("memory:{}?queue=jobs", uuid::Uuid::now_v7())).await.unwrap();
    let worker = Worker::new(bus.consumer().await.unwrap(), Router::new().on("a", handler));
    let error = worker.run(std::future::pending()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoDeadLetter);
    assert!(error.to_string().contains("dead_letter="), "{error}");
    let rig = Rig::new().await;
    let worker = Worker::new(rig.consumer().await, Router::new().on("a", handler).on("a", handler));
    let error = worker.run(std::future::pending()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("type 'a'"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_drops_the_handler_or_only_tells_it() {
    async fn slow(job: Job<Seen>) {
        let state = job.state().clone();
        state.push("begun");
        tokio::select! {
            () = job.lease_lost() => state.push("told"),
            () = tokio::time::sleep(LONG) => state.push("slept"),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        state.push("ended");
    }
    for (then, expected) in
        [(LeaseLost::Cancel, &["begun"][..]), (LeaseLost::Tell, &["begun", "told", "ended"])]
    {
        let rig = Rig::new().await;
        let second = Duration::from_secs(1);
        let options = ConsumeOptions { lease: second, max_lease: second * 3, ..Default::default() };
        let seen = Seen::default();
        let router = Router::with_state(seen.clone()).on("a", slow);
        let worker = Worker::new(rig.consumer_with(options).await, router).on_lease_lost(then);
        // It gets the message once; then another takes it.
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(worker.concurrency(1).drain(second * 20).run(async { _ = stopped.await }));
        rig.publish(message("a", "")).await;
        until("it has begun", async || seen.len() == 1).await;
        let mut other = rig.consumer().await;
        stop.send(()).unwrap();
        let again = within(other.next()).await.unwrap().unwrap();
        assert_eq!(again.attempt(), 2);
        again.ack().await.unwrap();
        let report = running.await.unwrap().unwrap();
        assert_eq!(seen.all(), expected);
        assert_eq!((report.acked, report.unsettled), (0, 1), "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_keys_messages_keep_their_order_through_retries_and_other_keys_go_on() {
    async fn flaky(Json(text): Json<String>, job: Job<(Seen, AtomicU32)>) -> Result<(), HandlerError> {
        let (seen, most) = &**job.state();
        most.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        if text.ends_with('0') && job.attempt() < 3 {
            return Err(HandlerError::retryable("not yet"));
        }
        seen.push(text);
        Ok(())
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let state = (seen.clone(), AtomicU32::new(0));
    let router = Router::with_state(state).on("a", flaky);
    // Whatever the transport does, the worker keeps the order: it is given all of a key at once.
    let running = start(Worker::new(rig.consumer().await, router).retry(quick().max_attempts(9)));
    for n in 0..20 {
        for key in ["k", "l"] {
            rig.publish(keyed("a", key, &format!("{key}{n}"))).await;
        }
    }
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!(report.acked, 40);
    // 0 and 10 of each key fail twice.
    assert_eq!(report.retried, 8);
    for key in ["k", "l"] {
        let order: Vec<_> = seen.all().into_iter().filter(|text| text.starts_with(key)).collect();
        let expected: Vec<_> = (0..20).map(|n| format!("{key}{n}")).collect();
        assert_eq!(order, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_allowed_overall_and_of_one_key() {
    #[derive(Default)]
    struct Gauge {
        now: AtomicU32,
        most: AtomicU32,
    }
    async fn counts(job: Job<Arc<Gauge>>) {
        let gauge = job.state();
        let now = gauge.now.fetch_add(1, Ordering::SeqCst) + 1;
        gauge.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        gauge.now.fetch_sub(1, Ordering::SeqCst);
    }
    for (is_keyed, expected) in [(false, 8), (true, 3)] {
        let rig = Rig::new().await;
        let gauge = Arc::new(Gauge::default());
        let router = Router::with_state(gauge.clone()).on("a", counts);
        // The memory transport would keep a key's messages back itself.
        let options = ConsumeOptions { order: throughline::Order::Any, ..Default::default() };
        let worker = Worker::new(rig.consumer_with(options).await, router).concurrency(8).per_key(3);
        let running = start(worker);
        for n in 0..40 {
            rig.publish(if is_keyed { keyed("a", "k", "") } else { message("a", &n.to_string()) }).await;
        }
        rig.until_empty().await;
        assert_eq!(running.stop().await.acked, 40);
        assert_eq!(gauge.most.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_opens_its_consumer_holds_no_more_than_it_can_soon_work_on() {
    async fn blocks() {
        tokio::time::sleep(LONG).await;
    }
    let rig = Rig::new().await;
    for n in 0..20 {
        rig.publish(message("a", &n.to_string())).await;
    }
    let running = start(rig.bus.worker(Router::new().on("a", blocks)).concurrency(3));
    until("it has taken some", async || rig.bus.depth("").await.unwrap().unsettled == Some(6)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.bus.depth("").await.unwrap().unsettled, Some(6));
    // A batch must be able to fill.
    running.stop().await;
    async fn gathers(batch: Batch<Json<String>, Seen>) {
        batch.jobs()[0].state().push(batch.len().to_string());
    }
    let seen = Seen::default();
    let options = BatchOptions { max: 20, linger: Duration::from_secs(1) };
    let router = Router::with_state(seen.clone()).route("a", Route::batch(gathers, options));
    let running = start(rig.bus.worker(router).concurrency(1));
    rig.until_empty().await;
    running.stop().await;
    assert_eq!(seen.all(), ["20"]);
}
