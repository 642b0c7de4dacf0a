//! A real RabbitMQ between Throughline and a foreign client (Python pika), both ways: one trace.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use opentelemetry::trace::{SpanKind, TraceId};
use serde_json::{Value, json};
use throughline::trace::parse_traceparent;
use throughline::{Bus, Envelope};
use throughline_integration_tests::{Collector, cli, foreign, json_lines, run, unique};
use throughline_testkit::endpoint;
use throughline_testkit::spans::{Recorder, links, named};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const SPAN: &str = "b7ad6b7169203331";

/// The broker's URL and a new queue's address; the queue is made by the CLI, as a user would.
async fn queue(test: &str) -> Option<(String, String, String)> {
    let url = endpoint::broker("rabbitmq", test)?;
    let queue = unique(test);
    let address = format!("{url}?queue={queue}");
    let mut create = cli();
    create.args(["create", &address]);
    assert!(run(create, "").await.contains(&queue));
    Some((url, queue, address))
}

async fn delete(address: &str) {
    let mut delete = cli();
    delete.args(["delete", address]);
    run(delete, "").await;
}

#[tokio::test]
async fn a_foreign_client_sees_the_payload_and_plain_trace_headers() {
    const TEST: &str = "a_foreign_client_sees_the_payload_and_plain_trace_headers";
    let Some((url, queue, address)) = queue(TEST).await else { return };
    let Some(mut get) = foreign("pika_client.py", TEST) else { return };
    let mut publish = cli();
    publish
        .args([
            "publish",
            &address,
            "--type",
            "campaign.sync_report",
            "--key",
            "p-1",
            "--header",
            "tenant=5000",
        ])
        .args(["--content-type", "application/json", "--data", r#"{"report":7}"#])
        .env("TRACEPARENT", TRACEPARENT)
        .env("TRACESTATE", "vendor=x")
        .env("BAGGAGE", "user=1");
    run(publish, "").await;
    get.args(["get", &url, &queue]);
    let message: Value = serde_json::from_str(&run(get, "").await).unwrap();
    assert_eq!(message["body"], r#"{"report":7}"#);
    let header = |name: &str| &message["headers"][name];
    assert_eq!(header("traceparent"), &json!({ "type": "str", "value": TRACEPARENT }));
    assert_eq!(header("tracestate"), &json!({ "type": "str", "value": "vendor=x" }));
    assert_eq!(header("baggage"), &json!({ "type": "str", "value": "user=1" }));
    assert_eq!(header("tenant"), &json!({ "type": "str", "value": "5000" }));
    let property = |name: &str| &message["properties"][name];
    assert_eq!(property("type"), "campaign.sync_report");
    assert_eq!(property("content_type"), "application/json");
    assert_eq!(property("delivery_mode"), 2);
    assert_eq!(property("message_id").as_str().unwrap().len(), 36);
    delete(&address).await;
}

#[tokio::test]
async fn a_foreign_message_comes_out_of_consume_with_its_trace_and_its_types() {
    const TEST: &str = "a_foreign_message_comes_out_of_consume_with_its_trace_and_its_types";
    let Some((url, queue, address)) = queue(TEST).await else { return };
    let Some(mut put) = foreign("pika_client.py", TEST) else { return };
    put.args(["put", &url, &queue]);
    let message = json!({
        "body": "hello",
        "headers": {
            "traceparent": TRACEPARENT, "number": 42, "large": 1_099_511_627_776_i64, "flag": true,
            "nothing": null, "list": [1, "two"], "table": { "a": { "b": 1 } }, "ünïcode": "wörld",
        },
        "properties": { "message_id": "foreign-1", "type": "foreign.thing", "content_type": "text/plain" },
    });
    run(put, &message.to_string()).await;
    let mut consume = cli();
    consume.args(["consume", &address, "--json", "--max", "1", "--wait", "20s"]);
    let consumed = json_lines(&run(consume, "").await);
    assert_eq!(consumed.len(), 1);
    let consumed = &consumed[0];
    assert_eq!((&consumed["id"], &consumed["type"]), (&json!("foreign-1"), &json!("foreign.thing")));
    assert_eq!((&consumed["payload"], &consumed["attempt"]), (&json!("hello"), &json!(1)));
    let headers = &consumed["headers"];
    assert_eq!(headers["traceparent"], TRACEPARENT);
    assert_eq!(headers["ünïcode"], "wörld");
    assert_eq!(headers["nothing"], Value::Null);
    for (name, value) in [("number", "42"), ("large", "1099511627776"), ("flag", "true")] {
        assert_eq!(headers[name]["value"], value, "{name}: {}", headers[name]);
    }
    for name in ["list", "table"] {
        assert!(headers[name]["type"].as_str().unwrap().starts_with("amqp:"), "{}", headers[name]);
    }
    assert_eq!(consumed["native"]["routing_key"], queue);
    delete(&address).await;
}

#[tokio::test]
async fn a_foreign_producers_span_is_the_parent_of_the_process_span() {
    const TEST: &str = "a_foreign_producers_span_is_the_parent_of_the_process_span";
    let Some((url, queue, address)) = queue(TEST).await else { return };
    let Some(mut put) = foreign("pika_client.py", TEST) else { return };
    put.args(["put", &url, &queue]);
    // A trace of this test's own, since the recorder is the whole process's.
    let trace = TraceId::from_bytes(*uuid::Uuid::now_v7().as_bytes());
    let message = json!({
        "body": "{}", "properties": { "type": "campaign.sync_report" },
        "headers": { "traceparent": format!("00-{trace}-{SPAN}-01") },
    });
    run(put, &message.to_string()).await;

    let recorder = Recorder::install();
    let bus = Bus::connect(&address).await.unwrap();
    let mut consumer = bus.consumer().await.unwrap();
    let delivery = consumer.next().await.unwrap().unwrap();
    // What is published meanwhile belongs to the trace too, and comes back the same.
    let publisher = bus.publisher().await.unwrap();
    let published = async { publisher.publish(Envelope::builder("ads.updated")).await };
    delivery.process(published).await.unwrap();
    delivery.ack().await.unwrap();
    let next = consumer.next().await.unwrap().unwrap();
    next.process(async { Ok::<_, String>(()) }).await.unwrap();
    next.ack().await.unwrap();
    consumer.close().await.unwrap();
    bus.close().await.unwrap();

    let spans = recorder.trace(trace);
    let process = named(&spans, "campaign.sync_report");
    assert_eq!(
        (process.span_kind.clone(), process.parent_span_id.to_string()),
        (SpanKind::Consumer, SPAN.into())
    );
    assert_eq!(links(process)[0].to_string(), SPAN);
    let publish = named(&spans, "publish ads.updated");
    assert_eq!(publish.parent_span_id, process.span_context.span_id());
    let next = named(&spans, "ads.updated");
    assert_eq!(next.parent_span_id, publish.span_context.span_id());
    // Ours carries when it was sent, so its queue delay is a span; the foreign one does not say.
    named(&spans, "queued ads.updated");
    delete(&address).await;
}

#[tokio::test]
async fn with_a_collector_publish_and_consume_are_spans_of_the_callers_trace() {
    const TEST: &str = "with_a_collector_publish_and_consume_are_spans_of_the_callers_trace";
    let Some((_, _, address)) = queue(TEST).await else { return };
    let collector = Collector::start().await;
    let mut publish = cli();
    publish
        .args(["publish", &address, "--type", "campaign.sync_report", "--data", "{}"])
        .env("TRACEPARENT", TRACEPARENT)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    run(publish, "").await;
    let exported = collector.exported();
    let mut consume = cli();
    consume
        .args(["consume", &address, "--json", "--max", "1", "--wait", "20s"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    let consumed = json_lines(&run(consume, "").await);
    let carried = consumed[0]["headers"]["traceparent"].as_str().unwrap();
    let (caller, sent) = (parse_traceparent(TRACEPARENT).unwrap(), parse_traceparent(carried).unwrap());
    // A child of the caller's span, and exported as such.
    assert_eq!(sent.trace_id(), caller.trace_id());
    assert_ne!(sent.span_id(), caller.span_id());
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    for part in [&caller.trace_id().to_bytes()[..], &caller.span_id().to_bytes(), &sent.span_id().to_bytes()]
    {
        assert!(holds(&exported, part));
    }
    // The consumer's process span names the publisher's as its parent, in the same trace.
    let exported = &collector.exported()[exported.len()..];
    for part in [&caller.trace_id().to_bytes()[..], &sent.span_id().to_bytes(), b"process"] {
        assert!(holds(exported, part));
    }
    delete(&address).await;
}
