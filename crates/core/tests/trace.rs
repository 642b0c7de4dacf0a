//! The spans of the portable layer, recorded, and checked against the messaging conventions.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanKind, Status, TraceContextExt, TraceId, Tracer};
use opentelemetry::{Context, KeyValue, Value, global};
use throughline_core::capabilities::{Capabilities, MEMORY, SettleMeaning};
use throughline_core::driver::Clock;
use throughline_core::trace::{SpanNames, TracePolicy, creation_context};
use throughline_core::{
    Address, ConsumeOptions, Consumer, Delivery, Envelope, Failure, PublishOptions, Publisher, Timestamp,
};
use throughline_testkit::scripted::{Reply, ScriptedConsumer, ScriptedPublisher};
use throughline_testkit::spans::{Recorder, attribute, links, named};

fn address() -> Address {
    "memory:scripted?queue=q".parse().unwrap()
}

/// The context of a request that is being served.
fn request() -> (Context, TraceId) {
    Recorder::install();
    let span = global::tracer("test").start("request");
    let context = Context::new().with_span(span);
    let trace = context.span().span_context().trace_id();
    (context, trace)
}

fn publisher(options: PublishOptions) -> (Arc<ScriptedPublisher>, Publisher) {
    let driver = ScriptedPublisher::new(|message| match message.envelope.message_type.as_deref() {
        Some("fails") => Reply::Fail(throughline_testkit::scripted::never()),
        _ => Reply::Accept,
    });
    let publisher = Publisher::new(driver.clone(), &address(), options);
    (driver, publisher)
}

async fn within<T>(context: &Context, work: impl Future<Output = T>) -> T {
    use opentelemetry::context::FutureExt;
    work.with_context(context.clone()).await
}

/// A delivery of a message that was published in this context.
async fn delivered(
    context: &Context,
    options: ConsumeOptions,
    message_type: &str,
    change: impl FnOnce(&mut throughline_core::driver::Delivery),
) -> (Arc<ScriptedConsumer>, Consumer, Delivery) {
    let (driver, publisher) = publisher(PublishOptions::default());
    within(context, publisher.publish(Envelope::builder(message_type).id("m1"))).await.unwrap();
    let envelope = driver.batches()[0][0].envelope.as_ref().clone();
    let source = ScriptedConsumer::new();
    source.feed_with(envelope, change);
    let mut consumer = Consumer::new(source.clone(), &address(), options);
    let delivery = consumer.next().await.unwrap().unwrap();
    (source, consumer, delivery)
}

fn text(value: &str) -> Option<Value> {
    Some(Value::from(value.to_owned()))
}

#[tokio::test]
async fn a_single_publish_is_a_producer_span_and_its_context_is_injected() {
    let (context, trace) = request();
    let (driver, publisher) = publisher(PublishOptions::default());
    within(&context, publisher.publish(Envelope::builder("campaign.sync_report").id("m1"))).await.unwrap();
    let spans = Recorder::install().trace(trace);
    let send = named(&spans, "publish campaign.sync_report");
    assert_eq!(send.span_kind, SpanKind::Producer);
    assert_eq!(send.parent_span_id, context.span().span_context().span_id());
    for (name, value) in [
        ("messaging.system", "memory"),
        ("messaging.operation.type", "send"),
        ("messaging.operation.name", "publish"),
        ("messaging.destination.name", "scripted"),
        ("messaging.message.id", "m1"),
    ] {
        assert_eq!(attribute(send, name).cloned(), text(value), "{name}");
    }
    let sent = &driver.batches()[0][0].envelope;
    let carried = creation_context(&sent.headers).unwrap();
    assert_eq!(carried.span_id(), send.span_context.span_id());
    // `TraceContextPropagator` sets an empty tracestate; an empty attribute is illegal on SQS.
    assert!(sent.headers.trace("tracestate").is_none());
}

#[tokio::test]
async fn a_creation_context_is_never_rewritten() {
    let (context, trace) = request();
    let (driver, publisher) = publisher(PublishOptions::default());
    let carried = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";
    let envelope =
        || Envelope::builder("hop").header("Traceparent", carried).header("tracestate", "a=1,b=2").build();
    within(&context, publisher.publish(envelope())).await.unwrap();
    within(&context, publisher.publish_batch([envelope()])).await;
    for batch in driver.batches() {
        assert_eq!(batch[0].envelope.headers, envelope().headers);
    }
    let spans = Recorder::install().trace(trace);
    let send = named(&spans, "publish hop");
    assert_eq!(send.span_kind, SpanKind::Client);
    assert_eq!(send.links[0].span_context.span_id().to_string(), "b7ad6b7169203331");
    assert_eq!(links(named(&spans, "publish scripted")).len(), 1);
}

#[tokio::test]
async fn a_batch_has_a_create_span_a_message_and_one_send_span_that_links_them() {
    let (context, trace) = request();
    let (driver, publisher) = publisher(PublishOptions::default());
    let results = within(&context, publisher.publish_batch(["a", "b", "fails"].map(Envelope::builder))).await;
    assert!(results[2].is_err());
    let spans = Recorder::install().trace(trace);
    let send = named(&spans, "publish scripted");
    assert_eq!(
        (send.span_kind.clone(), attribute(send, "messaging.batch.message_count")),
        (SpanKind::Client, Some(&Value::I64(3)))
    );
    assert!(matches!(send.status, Status::Error { .. }));
    let created: Vec<_> = ["create a", "create b", "create fails"]
        .iter()
        .map(|name| named(&spans, name).span_context.span_id())
        .collect();
    assert_eq!(links(send), created);
    for (message, created) in driver.batches().concat().iter().zip(created) {
        assert_eq!(creation_context(&message.envelope.headers).unwrap().span_id(), created);
    }
}

#[tokio::test]
async fn a_failed_publish_ends_its_span_with_the_error() {
    let (context, trace) = request();
    let (_, publisher) = publisher(PublishOptions::default());
    assert!(within(&context, publisher.publish(Envelope::builder("fails"))).await.is_err());
    let spans = Recorder::install().trace(trace);
    let send = named(&spans, "publish fails");
    assert!(matches!(send.status, Status::Error { .. }));
    assert_eq!(attribute(send, "error.type").cloned(), text("Refused"));
}

#[tokio::test]
async fn work_runs_below_the_creation_context_after_a_queue_delay_span() {
    let (context, trace) = request();
    let enqueued = Timestamp::from(SystemTime::now() - Duration::from_millis(700));
    let (_, _consumer, delivery) =
        delivered(&context, ConsumeOptions::default(), "campaign.sync_report", |delivery| {
            delivery.enqueued = Some((enqueued, Clock::Broker));
            delivery.receive_count = Some(4);
            delivery.failed_attempts = 1;
        })
        .await;
    delivery
        .process(async {
            Context::current().span().set_attribute(KeyValue::new("tenant.company_id", 5000));
            global::tracer("test").start("SELECT report");
            Ok::<_, String>(())
        })
        .await
        .unwrap();
    delivery.ack().await.unwrap();
    let spans = Recorder::install().trace(trace);
    let send = named(&spans, "publish campaign.sync_report").span_context.span_id();
    let process = named(&spans, "campaign.sync_report");
    assert_eq!((process.span_kind.clone(), process.parent_span_id), (SpanKind::Consumer, send));
    assert_eq!(links(process), [send]);
    assert_eq!(attribute(process, "throughline.attempt"), Some(&Value::I64(2)));
    assert_eq!(attribute(process, "throughline.receive_count"), Some(&Value::I64(4)));
    assert_eq!(attribute(process, "tenant.company_id"), Some(&Value::I64(5000)));
    assert_eq!(attribute(process, "messaging.operation.type").cloned(), text("process"));
    assert_eq!(named(&spans, "SELECT report").parent_span_id, process.span_context.span_id());

    let queued = named(&spans, "queued campaign.sync_report");
    assert_eq!(queued.parent_span_id, send);
    assert_eq!(attribute(queued, "throughline.queue.clock").cloned(), text("broker"));
    let Some(Value::F64(seconds)) = attribute(queued, "throughline.queue.delay") else { unreachable!() };
    assert!((0.7..5.0).contains(seconds), "{seconds}");
    let lasted = queued.end_time.duration_since(queued.start_time).unwrap().as_secs_f64();
    assert!((lasted - seconds).abs() < 0.01);
    assert!(queued.start_time >= enqueued.to_system_time().unwrap());
    assert!(queued.end_time <= process.start_time);

    let ack = named(&spans, "ack campaign.sync_report");
    assert_eq!(ack.parent_span_id, process.span_context.span_id());
    assert_eq!((ack.span_kind.clone(), links(ack)), (SpanKind::Client, vec![send]));

    // The receipt is a root of its own, linked to the message.
    let receive = Recorder::install().linked_to(trace);
    assert_eq!(named(&receive, "receive scripted").span_kind, SpanKind::Client);
}

#[tokio::test]
async fn a_failure_a_retry_and_a_rejection_show_why() {
    let (context, trace) = request();
    let (_, _consumer, delivery) =
        delivered(&context, ConsumeOptions::default(), "job", |delivery| delivery.failed_attempts = 2).await;
    let failed = delivery.process(async { Err::<(), _>("ads-api said 503") }).await;
    assert!(failed.is_err());
    let failure = Failure::new("http_503").dependency("ads-api");
    delivery.reject(failure).await.unwrap();
    let spans = Recorder::install().trace(trace);
    let process = named(&spans, "job");
    assert_eq!(process.status, Status::error("ads-api said 503"));
    let reject = named(&spans, "reject job");
    assert_eq!(attribute(reject, "throughline.dead_letter.dependency").cloned(), text("ads-api"));
    assert_eq!(attribute(reject, "throughline.dead_letter.attempts"), Some(&Value::I64(3)));

    let (context, trace) = request();
    let (_, _consumer, delivery) = delivered(&context, ConsumeOptions::default(), "job", |_| {}).await;
    delivery.retry(Duration::from_secs(2), Failure::new("busy").dependency("db")).await.unwrap();
    let spans = Recorder::install().trace(trace);
    let retry = named(&spans, "retry job");
    assert_eq!(attribute(retry, "throughline.retry.delay"), Some(&Value::F64(2.0)));
    assert_eq!(attribute(retry, "throughline.retry.reason").cloned(), text("busy"));
    assert_eq!(attribute(retry, "throughline.retry.dependency").cloned(), text("db"));
    // Settled without being processed, it still belongs to the trace.
    assert_eq!(retry.parent_span_id, named(&spans, "publish job").span_context.span_id());
}

#[tokio::test]
async fn the_policy_decides_between_parent_link_and_nothing() {
    for (policy, linked) in [(TracePolicy::Link, true), (TracePolicy::Ignore, false)] {
        let (context, trace) = request();
        let options = ConsumeOptions { trace: policy, receive_spans: true, ..ConsumeOptions::default() };
        let (_, _consumer, delivery) = delivered(&context, options, "job", |delivery| {
            delivery.enqueued = Some((Timestamp::now(), Clock::Broker));
        })
        .await;
        let process = delivery
            .process(async { Ok::<_, String>(Context::current().span().span_context().clone()) })
            .await
            .unwrap();
        assert!(process.is_valid() && process.trace_id() != trace);
        drop(delivery);
        let spans = Recorder::install().trace(process.trace_id());
        let span = named(&spans, "job");
        assert_eq!(span.parent_span_id, opentelemetry::trace::SpanId::INVALID);
        assert_eq!(!links(span).is_empty(), linked);
        // In a trace of its own the wait in the queue belongs to the work.
        let queued = named(&spans, "queued job");
        assert_eq!(queued.parent_span_id, span.span_context.span_id());
        // What is ignored is not even linked, by whichever span.
        assert_eq!(!Recorder::install().linked_to(trace).is_empty(), linked);
    }
}

#[tokio::test]
async fn work_that_is_dropped_ends_its_span_as_such() {
    let (context, trace) = request();
    let (_, _consumer, delivery) = delivered(&context, ConsumeOptions::default(), "job", |_| {}).await;
    let work = delivery.process(std::future::pending::<Result<(), String>>());
    assert!(tokio::time::timeout(Duration::from_millis(10), work).await.is_err());
    let spans = Recorder::install().trace(trace);
    let process = named(&spans, "job");
    assert_eq!(attribute(process, "error.type").cloned(), text("cancelled"));
    assert!(matches!(process.status, Status::Error { .. }));
    delivery.ack().await.unwrap();
}

#[tokio::test]
async fn a_batch_of_acks_is_one_span_that_links_the_messages() {
    let (context, trace) = request();
    let (_, _consumer, delivery) = delivered(&context, ConsumeOptions::default(), "job", |_| {}).await;
    let results = within(&context, Delivery::ack_all([delivery])).await;
    assert!(results.iter().all(Result::is_ok));
    let spans = Recorder::install().trace(trace);
    let ack = named(&spans, "ack scripted");
    assert_eq!(links(ack), [named(&spans, "publish job").span_context.span_id()]);
}

#[tokio::test]
async fn what_is_left_of_a_broken_context_goes_and_baggage_stays() {
    let (context, _) = request();
    let (driver, publisher) = publisher(PublishOptions::default());
    let envelope = Envelope::builder("job")
        .header("traceparent", "broken")
        .header("tracestate", "vendor=stale")
        .header("baggage", "tenant=5000");
    use opentelemetry::baggage::BaggageExt;
    let context = context.with_baggage([KeyValue::new("user", "u"), KeyValue::new("tenant", "x")]);
    within(&context, publisher.publish(envelope)).await.unwrap();
    let sent = driver.batches()[0][0].envelope.clone();
    assert!(creation_context(&sent.headers).is_some());
    assert!(sent.headers.trace("tracestate").is_none());
    assert_eq!(sent.headers.trace("baggage"), Some("tenant=5000,user=u"));
}

#[tokio::test]
async fn the_conventions_names_are_one_setting_away() {
    let (context, trace) = request();
    let options = PublishOptions { span_names: SpanNames::Convention, ..PublishOptions::default() };
    let (_, publisher) = publisher(options);
    within(&context, publisher.publish(Envelope::builder("job"))).await.unwrap();
    let options = ConsumeOptions { span_names: SpanNames::Convention, ..ConsumeOptions::default() };
    let (_, _consumer, delivery) = delivered(&context, options, "job", |_| {}).await;
    delivery.process_as("by hand", async { Ok::<_, String>(()) }).await.unwrap();
    delivery.process(async { Ok::<_, String>(()) }).await.unwrap();
    delivery.ack().await.unwrap();
    let spans = Recorder::install().trace(trace);
    for name in ["publish scripted", "by hand", "process scripted", "ack scripted"] {
        named(&spans, name);
    }
}

#[tokio::test]
async fn a_deferred_ack_has_its_span_too_and_still_does_not_wait() {
    let (context, trace) = request();
    let capabilities = Capabilities { settle: SettleMeaning::Deferred, ..MEMORY };
    let source = ScriptedConsumer::with(capabilities);
    let (driver, publisher) = publisher(PublishOptions::default());
    within(&context, publisher.publish(Envelope::builder("job"))).await.unwrap();
    source.feed(driver.batches()[0][0].envelope.as_ref().clone());
    let options = ConsumeOptions { settle_linger: Duration::from_secs(3600), ..ConsumeOptions::default() };
    let mut consumer = Consumer::new(source.clone(), &address(), options);
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.ack().await.unwrap();
    named(&Recorder::install().trace(trace), "ack job");
    assert!(source.settled().is_empty());
}
