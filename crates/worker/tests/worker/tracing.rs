//! The spans of an attempt, a retry, a duplicate, a batch and a dead letter, as they were recorded.

use std::time::Duration;

use opentelemetry::trace::{SpanId, SpanKind, Status, TraceContextExt, TraceId, Tracer};
use opentelemetry::{Context, KeyValue, Value, global};
use opentelemetry_sdk::trace::SpanData;
use throughline::{Bus, Envelope};
use throughline_testkit::spans::{Recorder, attribute, links, named};
use throughline_worker::{
    Batch, BatchOptions, HandlerError, Idempotency, Job, Json, MemoryStore, ResultExt, RetryPolicy, Route,
    Router, Worker,
};
use uuid::Uuid;

use crate::rig::{Rig, start};

/// A message with the context of a trace that only this test has.
fn traced(message_type: &str) -> (Envelope, TraceId, SpanId) {
    let (trace, span) = (TraceId::from(Uuid::now_v7().as_u128()), SpanId::from(0x00f0_67aa_0ba9_02b7_u64));
    let envelope = Envelope::builder(message_type)
        .header("traceparent", format!("00-{trace}-{span}-01"))
        .json("x")
        .unwrap()
        .build();
    (envelope, trace, span)
}

fn text(span: &SpanData, name: &str) -> Option<String> {
    attribute(span, name).map(ToString::to_string)
}

fn all<'a>(spans: &'a [SpanData], name: &str) -> Vec<&'a SpanData> {
    spans.iter().filter(|span| span.name == name).collect()
}

async fn sync_report(_: Json<String>, job: Job) -> Result<(), HandlerError> {
    job.set_attribute(KeyValue::new("tenant.company_id", 5000));
    // What any instrumented client does: a child of the current context.
    let tracer = global::tracer("client");
    drop(tracer.start_with_context("GET ads-api", &Context::current()));
    Err(std::io::Error::other("503")).dependency("ads-api").class("http_503")
}

#[tokio::test]
async fn one_trace_tells_each_attempt_why_it_was_retried_and_what_failed_in_the_end() {
    let recorder = Recorder::install();
    let rig = Rig::new().await;
    let policy = RetryPolicy::fixed(Duration::from_millis(20)).max_attempts(2);
    let router = Router::new().on("campaign.sync_report", sync_report);
    let worker = Worker::new(rig.consumer().await, router).retry(policy);
    let running = start(worker.idempotency(Idempotency::new(MemoryStore::new())));
    let (envelope, trace, creation) = traced("campaign.sync_report");
    let id = envelope.id.clone();
    rig.publish(envelope).await;
    rig.until_empty().await;
    running.stop().await;

    let spans = recorder.trace(trace);
    let attempts = all(&spans, "campaign.sync_report");
    assert_eq!(attempts.len(), 2);
    for (span, attempt) in attempts.iter().zip(1_i64..) {
        assert_eq!((span.span_kind.clone(), span.parent_span_id), (SpanKind::Consumer, creation));
        assert_eq!(links(span), [creation]);
        assert_eq!(attribute(span, "throughline.attempt"), Some(&Value::I64(attempt)));
        assert_eq!(attribute(span, "throughline.receive_count"), Some(&Value::I64(attempt)));
        assert_eq!(text(span, "throughline.idempotency_key").as_ref(), Some(&id));
        assert_eq!(attribute(span, "tenant.company_id"), Some(&Value::I64(5000)));
        assert_eq!(text(span, "error.type").as_deref(), Some("http_503"));
        assert_eq!(span.status, Status::error("503"));
        let calls = all(&spans, "GET ads-api");
        assert!(calls.iter().any(|call| call.parent_span_id == span.span_context.span_id()));
    }
    assert_eq!(text(attempts[0], "throughline.retry.reason"), None);
    assert_eq!(text(attempts[1], "throughline.retry.reason").as_deref(), Some("http_503"));
    assert_eq!(text(attempts[1], "throughline.retry.dependency").as_deref(), Some("ads-api"));

    let retry = named(&spans, "retry campaign.sync_report");
    assert_eq!(retry.parent_span_id, attempts[0].span_context.span_id());
    assert_eq!(attribute(retry, "throughline.retry.delay"), Some(&Value::F64(0.02)));
    let reject = named(&spans, "reject campaign.sync_report");
    assert_eq!(reject.parent_span_id, attempts[1].span_context.span_id());
    assert_eq!(attribute(reject, "throughline.dead_letter.attempts"), Some(&Value::I64(2)));
    assert_eq!(text(reject, "throughline.dead_letter.dependency").as_deref(), Some("ads-api"));
    assert_eq!(text(reject, "throughline.dead_letter.reason").as_deref(), Some("http_503"));
    assert_eq!(all(&spans, "queued campaign.sync_report").len(), 2);
}

#[tokio::test]
async fn a_dead_letter_at_another_address_keeps_the_creation_context_and_its_span_is_below_the_attempt() {
    let recorder = Recorder::install();
    let rig = Rig::new().await;
    let other = Bus::connect(format!("memory:{}?queue=graveyard", Uuid::now_v7())).await.unwrap();
    let router = Router::new().on("job", sync_report);
    let worker = Worker::new(rig.consumer().await, router).retry(RetryPolicy::never());
    let running = start(worker.dead_letter(other.publisher().await.unwrap()));
    let (envelope, trace, creation) = traced("job");
    let sent = envelope.headers.clone();
    rig.publish(envelope).await;
    rig.until_empty().await;
    running.stop().await;
    let dead = other.browse("", std::num::NonZeroUsize::MIN).await.unwrap();
    assert_eq!(dead[0].envelope.headers, sent);
    let spans = recorder.trace(trace);
    let attempt = named(&spans, "job");
    let reject = named(&spans, "reject job");
    assert_eq!(reject.parent_span_id, attempt.span_context.span_id());
    assert_eq!(text(reject, "throughline.dead_letter.dependency").as_deref(), Some("ads-api"));
    // Once for the test's own publish, which is in a trace of its own; the dead letter's is below the reject span.
    let publish = named(&spans, "publish job");
    assert_eq!(publish.parent_span_id, reject.span_context.span_id());
    assert_eq!(links(publish), [creation]);
    let ack = named(&spans, "ack job");
    assert_eq!(ack.parent_span_id, attempt.span_context.span_id());
    assert!(ack.start_time >= publish.end_time, "acked only after it is durable");
}

#[tokio::test]
async fn a_duplicate_is_visible_as_one_and_is_no_failure() {
    let recorder = Recorder::install();
    let rig = Rig::new().await;
    async fn done() {}
    let worker = Worker::new(rig.consumer().await, Router::new().on("job", done));
    let running = start(worker.idempotency(Idempotency::new(MemoryStore::new())));
    let (envelope, trace, _) = traced("job");
    rig.publish(envelope.clone()).await;
    rig.until_empty().await;
    rig.publish(envelope).await;
    rig.until_empty().await;
    running.stop().await;
    let spans = recorder.trace(trace);
    let attempts = all(&spans, "job");
    let duplicate = |span: &SpanData| attribute(span, "throughline.duplicate").cloned();
    assert_eq!([duplicate(attempts[0]), duplicate(attempts[1])], [None, Some(Value::Bool(true))]);
    assert_eq!(attempts[1].status, Status::Unset);
}

#[tokio::test]
async fn a_batch_is_a_root_of_its_own_that_links_every_message() {
    let recorder = Recorder::install();
    let rig = Rig::new().await;
    async fn store(batch: Batch<Json<String>>) {
        let span = Context::current().span().span_context().span_id();
        assert!(batch.jobs().iter().all(|job| job.context().span().span_context().span_id() == span));
    }
    let options = BatchOptions { max: 2, linger: Duration::from_secs(600) };
    let router = Router::new().route("point", Route::batch(store, options).span_name("store points"));
    let running = start(Worker::new(rig.consumer().await, router));
    let (first, first_trace, first_span) = traced("point");
    let (second, second_trace, _) = traced("point");
    rig.publish(first).await;
    rig.publish(second).await;
    rig.until_empty().await;
    assert_eq!(running.stop().await.acked, 2);
    let linked = recorder.linked_to(first_trace);
    let batch = named(&linked, "store points");
    assert_eq!((batch.parent_span_id, batch.span_kind.clone()), (SpanId::INVALID, SpanKind::Consumer));
    let traces: Vec<_> = batch.links.iter().map(|link| link.span_context.trace_id()).collect();
    assert_eq!((traces, links(batch)[0]), (vec![first_trace, second_trace], first_span));
    assert_eq!(attribute(batch, "messaging.batch.message_count"), Some(&Value::I64(2)));
    let within = recorder.trace(batch.span_context.trace_id());
    assert_eq!((all(&within, "queued point").len(), all(&within, "ack point").len()), (2, 2));
}
