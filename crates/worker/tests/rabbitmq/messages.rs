//! Failures, panics, duplicates, order and dead letters.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::trace::{SpanId, TraceId};
use throughline::{Bus, Envelope};
use throughline_testkit::proxy::CuttingProxy;
use throughline_testkit::spans::{Recorder, attribute, named};
use throughline_worker::{
    HandlerError, Idempotency, Job, Json, MemoryStore, ResultExt, RetryPolicy, Router, Worker,
};
use uuid::Uuid;

use crate::rig::{Rig, start, until};

type Seen = Arc<Mutex<Vec<String>>>;

fn quick() -> RetryPolicy {
    RetryPolicy::fixed(Duration::from_millis(100)).max_attempts(3)
}

fn message(text: &str) -> Envelope {
    Envelope::json("job", text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_retried_what_fails_for_good_is_a_dead_letter_and_the_rest_goes_on() {
    let Some(rig) = Rig::new("a_panic_is_retried_what_fails_for_good_is_a_dead_letter").await else { return };
    async fn handler(Json(text): Json<String>, job: Job) -> Result<(), HandlerError> {
        match (text.as_str(), job.attempt()) {
            ("panics", 1) => panic!("as it must"),
            ("fails", _) => Err(std::io::Error::other("503")).dependency("ads-api").class("http_503"),
            _ => Ok(()),
        }
    }
    let worker = Worker::new(rig.consumer(50).await, Router::new().on("job", handler));
    let health = worker.health();
    let running = start(worker.retry(quick()).name("host-1"));
    rig.publish(["a", "panics", "fails", "b"].map(message)).await;
    rig.publish([Envelope::builder("job").payload("no JSON").build()]).await;
    until("all have ended", async || health.report().acked == 3 && health.report().dead_lettered == 2).await;
    let report = running.stop().await;
    assert_eq!(rig.ready().await, 0);
    assert_eq!((report.acked, report.retried, report.dead_lettered), (3, 3, 2), "{report:?}");
    let mut histories: Vec<_> = rig.dead().await.into_iter().map(|dead| dead.history.unwrap()).collect();
    histories.sort_by_key(|history| history.count());
    assert_eq!(histories[0].last().unwrap().error, "undecodable");
    let told: Vec<_> =
        histories[1].failures().iter().map(|failure| (failure.attempt, failure.to_string())).collect();
    let text = "http_503 (ads-api): 503".to_owned();
    assert_eq!(told, [(1, text.clone()), (2, text.clone()), (3, text)]);
    assert_eq!(histories[1].last().unwrap().worker.as_deref(), Some("host-1"));
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keys_order_outlives_a_retry_although_later_ones_were_fetched_before() {
    let Some(rig) = Rig::new("a_keys_order_outlives_a_retry").await else { return };
    async fn handler(Json(text): Json<String>, job: Job<Seen>) -> Result<(), HandlerError> {
        if text.ends_with('0') && job.attempt() < 3 {
            return Err(HandlerError::retryable("not yet"));
        }
        job.state().lock().unwrap().push(text);
        Ok(())
    }
    let seen = Seen::default();
    let keys = ["k", "l", "m"];
    let all = (0..20).flat_map(|n| {
        keys.map(|key| Envelope::builder("job").key(key).json(&format!("{key}{n}")).unwrap().build())
    });
    rig.publish(all).await;
    let worker = Worker::new(rig.consumer(100).await, Router::with_state(seen.clone()).on("job", handler));
    let running = start(worker.retry(quick()));
    until("all are done", async || seen.lock().unwrap().len() == 60).await;
    let report = running.stop().await;
    // 0 and 10 of each key, twice.
    assert_eq!((report.acked, report.retried), (60, 12), "{report:?}");
    for key in keys {
        let order: Vec<_> =
            seen.lock().unwrap().iter().filter(|text| text.starts_with(key)).cloned().collect();
        assert_eq!(order, (0..20).map(|n| format!("{key}{n}")).collect::<Vec<_>>());
    }
    rig.finish().await;
}

/// The broker has no leases to extend: what ends a delivery is its connection, and the message comes again while its
/// handler still runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_outlives_its_connection_does_its_work_once() {
    let Some(rig) = Rig::new("a_handler_that_outlives_its_connection_does_its_work_once").await else {
        return;
    };
    struct App {
        begun: AtomicU32,
        ended: AtomicU32,
    }
    async fn handler(job: Job<Arc<App>>) {
        job.state().begun.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(3)).await;
        job.state().ended.fetch_add(1, Ordering::SeqCst);
    }
    let (prefix, rest) = rig.url.rsplit_once('@').unwrap();
    let (target, vhost) = rest.split_once('/').unwrap();
    let proxy = CuttingProxy::start(target).await;
    let bus = Bus::connect(rig.address(&format!("{prefix}@{}/{vhost}", proxy.address()))).await.unwrap();
    let app = Arc::new(App { begun: AtomicU32::new(0), ended: AtomicU32::new(0) });
    let router = Router::with_state(app.clone()).on("job", handler);
    let worker = Worker::new(bus.consumer().await.unwrap(), router);
    let idempotency = Idempotency::new(MemoryStore::new()).claim(Duration::from_secs(2));
    let running = start(worker.idempotency(idempotency));
    rig.publish([message("slow")]).await;
    until("it has begun", async || app.begun.load(Ordering::SeqCst) == 1).await;
    proxy.cut();
    proxy.restore();
    until("it is known for a duplicate", async || {
        rig.ready().await == 0 && app.ended.load(Ordering::SeqCst) == 1
    })
    .await;
    // The second delivery waits for the first one's claim; only then is it acked.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let report = running.stop().await;
    assert_eq!((app.begun.load(Ordering::SeqCst), app.ended.load(Ordering::SeqCst)), (1, 1));
    assert_eq!((report.duplicates, report.unsettled), (1, 1), "{report:?}");
    assert_eq!(rig.ready().await, 0);
    bus.close().await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_acked_without_its_handler() {
    let Some(rig) = Rig::new("a_duplicate_is_acked_without_its_handler").await else { return };
    async fn handler(job: Job<Seen>) {
        job.state().lock().unwrap().push(job.id().to_owned());
    }
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer(10).await, Router::with_state(seen.clone()).on("job", handler));
    let health = worker.health();
    let running = start(worker.idempotency(Idempotency::new(MemoryStore::new())));
    let envelope = message("once");
    rig.publish([envelope.clone()]).await;
    until("it is done", async || health.report().acked == 1).await;
    rig.publish([envelope.clone(), envelope]).await;
    until("duplicates are known", async || health.report().duplicates == 2).await;
    running.stop().await;
    assert_eq!(seen.lock().unwrap().len(), 1);
    rig.finish().await;
}

/// Another transport's queue as the dead-letter destination, and the whole story in one trace.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_cross_transports_and_one_trace_tells_it_all() {
    let Some(rig) = Rig::new("dead_letters_cross_transports_and_one_trace_tells_it_all").await else {
        return;
    };
    let recorder = Recorder::install();
    async fn handler() -> Result<(), HandlerError> {
        Err(HandlerError::dependency("ads-api", "503").with_class("http_503"))
    }
    let elsewhere = Bus::connect(format!("memory:{}?queue=graveyard", Uuid::now_v7())).await.unwrap();
    let worker = Worker::new(rig.consumer(10).await, Router::new().on("campaign.sync_report", handler));
    let policy = quick().max_attempts(2);
    let running = start(worker.retry(policy).dead_letter(elsewhere.publisher().await.unwrap()));
    let (trace, creation) = (TraceId::from(Uuid::now_v7().as_u128()), SpanId::from(7));
    let traceparent = format!("00-{trace}-{creation}-01");
    let sent =
        Envelope::builder("campaign.sync_report").header("traceparent", traceparent).payload("x").build();
    rig.publish([sent.clone()]).await;
    let one = std::num::NonZeroUsize::MIN;
    until("it is a dead letter", async || elsewhere.browse("", one).await.is_ok_and(|dead| !dead.is_empty()))
        .await;
    until("the queue is empty", async || rig.ready().await == 0).await;
    running.stop().await;
    let dead = elsewhere.browse("", one).await.unwrap().remove(0);
    assert_eq!((&*dead.envelope, dead.failed_attempts), (&sent, 2));
    let spans = recorder.trace(trace);
    let attempts: Vec<_> = spans.iter().filter(|span| span.name == "campaign.sync_report").collect();
    assert_eq!(attempts.len(), 2);
    for (span, attempt) in attempts.iter().zip(1..) {
        assert_eq!(span.parent_span_id, creation);
        assert_eq!(attribute(span, "throughline.attempt"), Some(&opentelemetry::Value::I64(attempt)));
        assert_eq!(attribute(span, "messaging.system").unwrap().as_str(), "rabbitmq");
    }
    let reject = named(&spans, "reject campaign.sync_report");
    assert_eq!(reject.parent_span_id, attempts[1].span_context.span_id());
    let publish = spans.iter().find(|span| {
        span.name == "publish campaign.sync_report" && span.parent_span_id == reject.span_context.span_id()
    });
    assert_eq!(attribute(publish.unwrap(), "messaging.system").unwrap().as_str(), "memory");
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_queue_that_is_missing_makes_no_loop_and_falsifies_nothing() {
    const TEST: &str = "a_dead_letter_queue_that_is_missing_makes_no_loop_and_falsifies_nothing";
    async fn picky(Json(text): Json<String>, job: Job<Seen>) -> Result<(), HandlerError> {
        job.state().lock().unwrap().push(text.clone());
        match text.as_str() {
            "bad" => Err(HandlerError::dependency("ads-api", "gone").with_class("http_410").into_permanent()),
            _ => Ok(()),
        }
    }
    let Some(rig) = Rig::new(TEST).await else { return };
    rig.delete_graveyard().await;
    let seen = Seen::default();
    let worker = |consumer| Worker::new(consumer, Router::with_state(seen.clone()).on("job", picky));
    let first = worker(rig.consumer(10).await).concurrency(1).drain(Duration::from_secs(1));
    let health = first.health();
    let running = start(first);
    rig.publish(["bad", "good"].map(message)).await;
    until("it is held, and others go on", async || health.held() == 1 && seen.lock().unwrap().len() == 2)
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The next worker is told, too.
    let report = running.stop().await;
    assert_eq!((report.acked, report.retried, report.dead_lettered), (1, 1, 0), "{report:?}");
    rig.create_graveyard().await;
    let running = start(worker(rig.consumer(10).await));
    until("it is a dead letter", async || rig.dead().await.len() == 1).await;
    running.stop().await;
    assert_eq!(*seen.lock().unwrap(), ["bad", "good"], "no handler ran again");
    let dead = rig.dead().await.remove(0);
    let failures = dead.history.as_deref().unwrap().failures();
    let told: Vec<_> = failures.iter().map(|failure| (failure.attempt, failure.to_string())).collect();
    assert_eq!(told, [(1, "http_410 (ads-api): gone".to_owned())]);
    rig.finish().await;
}
