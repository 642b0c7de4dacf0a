//! A real Kafka between Throughline and foreign clients (confluent-kafka, kcat), both ways: headers, key, one trace.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use opentelemetry::trace::{SpanKind, TraceId};
use serde_json::{Value, json};
use throughline::Bus;
use throughline_integration_tests::{cli, foreign, json_lines, run, unique};
use throughline_testkit::endpoint;
use throughline_testkit::spans::{Recorder, links, named};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const SPAN: &str = "b7ad6b7169203331";

/// The brokers, and a new topic with its address; the topic is made by the CLI, as a user would.
async fn topic(test: &str) -> Option<(String, String, String)> {
    let url = endpoint::broker("kafka", test)?;
    let topic = unique(test);
    let address = format!("{url}/{topic}?group={topic}&partitions=1");
    let mut create = cli();
    create.args(["create", &address]);
    assert!(run(create, "").await.contains(&topic));
    Some((url.trim_start_matches("kafka://").to_owned(), topic, address))
}

async fn delete(address: &str) {
    let mut delete = cli();
    delete.args(["delete", address]);
    run(delete, "").await;
}

#[tokio::test]
async fn a_foreign_client_sees_key_payload_and_plain_trace_headers() {
    const TEST: &str = "a_foreign_client_sees_key_payload_and_plain_trace_headers";
    let Some((servers, topic, address)) = topic(TEST).await else { return };
    let Some(mut get) = foreign("confluent_client.py", TEST) else { return };
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
    get.args(["get", &servers, &topic]);
    let message: Value = serde_json::from_str(&run(get, "").await).unwrap();
    assert_eq!((&message["body"], &message["key"]), (&json!(r#"{"report":7}"#), &json!("p-1")));
    let headers = message["headers"].as_array().unwrap();
    for (name, value) in [
        ("traceparent", TRACEPARENT),
        ("tracestate", "vendor=x"),
        ("baggage", "user=1"),
        ("tenant", "5000"),
        ("tl-type", "campaign.sync_report"),
        ("content-type", "application/json"),
    ] {
        let expected = json!([name, { "type": "str", "value": value }]);
        assert_eq!(headers.iter().filter(|header| **header == expected).count(), 1, "{name}: {headers:?}");
    }
    delete(&address).await;
}

#[tokio::test]
async fn a_foreign_record_comes_out_of_consume_with_its_key_and_headers() {
    const TEST: &str = "a_foreign_record_comes_out_of_consume_with_its_key_and_headers";
    let Some((servers, topic, address)) = topic(TEST).await else { return };
    let Some(mut put) = foreign("confluent_client.py", TEST) else { return };
    put.args(["put", &servers, &topic]);
    let message = json!({
        "body": "hello", "key": "k-1",
        "headers": [["traceparent", TRACEPARENT], ["nothing", null], ["ünïcode", "wörld"], ["content-type", "text/plain"]],
    });
    run(put, &message.to_string()).await;
    let mut consume = cli();
    consume.args(["consume", &address, "--json", "--max", "1", "--wait", "20s"]);
    let consumed = json_lines(&run(consume, "").await);
    assert_eq!(consumed.len(), 1);
    let consumed = &consumed[0];
    assert_eq!(consumed["id"], format!("{topic}-0-0"));
    assert_eq!((&consumed["payload"], &consumed["attempt"]), (&json!("hello"), &json!(1)));
    let headers = &consumed["headers"];
    assert_eq!(headers["traceparent"], TRACEPARENT);
    assert_eq!(headers["ünïcode"], "wörld");
    assert_eq!(headers["nothing"], Value::Null);
    assert_eq!(consumed["native"]["topic"], topic);
    delete(&address).await;
}

#[tokio::test]
async fn a_foreign_producers_span_is_the_parent_of_the_process_span() {
    const TEST: &str = "a_foreign_kafka_producers_span_is_the_parent_of_the_process_span";
    let Some((servers, topic, address)) = topic(TEST).await else { return };
    let Some(mut put) = foreign("confluent_client.py", TEST) else { return };
    put.args(["put", &servers, &topic]);
    // A trace of this test's own, since the recorder is the whole process's.
    let trace = TraceId::from_bytes(*uuid::Uuid::now_v7().as_bytes());
    let headers =
        json!([["traceparent", format!("00-{trace}-{SPAN}-01")], ["tl-type", "campaign.sync_report"]]);
    run(put, &json!({ "body": "{}", "key": null, "headers": headers }).to_string()).await;

    let recorder = Recorder::install();
    let bus = Bus::connect(&address).await.unwrap();
    let mut consumer = bus.consumer().await.unwrap();
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.process(async { Ok::<_, String>(()) }).await.unwrap();
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    bus.close().await.unwrap();
    let spans = recorder.trace(trace);
    let process = named(&spans, "campaign.sync_report");
    assert_eq!(process.span_kind, SpanKind::Consumer);
    assert_eq!(process.parent_span_id.to_string(), SPAN);
    assert_eq!(links(process)[0].to_string(), SPAN);
    delete(&address).await;
}

/// kcat on these brokers; skipped, loudly, where it is not.
fn kcat(servers: &str, topic: &str, test: &str) -> Option<tokio::process::Command> {
    let has =
        std::process::Command::new("kcat").arg("-V").output().is_ok_and(|output| output.status.success());
    if !has {
        throughline_brokers::skip(test, "kcat is not installed (apt-get install kcat)");
        return None;
    }
    let mut kcat = tokio::process::Command::new("kcat");
    kcat.args(["-q", "-b", servers, "-t", topic]);
    Some(kcat)
}

#[tokio::test]
async fn kcat_sees_what_we_publish_and_we_what_it_sends() {
    const TEST: &str = "kcat_sees_what_we_publish_and_we_what_it_sends";
    let Some((servers, topic, address)) = topic(TEST).await else { return };
    let Some(mut put) = kcat(&servers, &topic, TEST) else { return };
    let mut publish = cli();
    publish
        .args(["publish", &address, "--type", "campaign.sync_report", "--key", "p-1", "--data", "ours"])
        .env("TRACEPARENT", TRACEPARENT);
    run(publish, "").await;
    put.args(["-P", "-k", "k-1", "-H", &format!("traceparent={TRACEPARENT}"), "-H", "empty=", "-H", "null"]);
    run(put, "theirs").await;

    let Some(mut get) = kcat(&servers, &topic, TEST) else { return };
    get.args(["-C", "-J", "-e", "-o", "beginning"]);
    let seen = json_lines(&run(get, "").await);
    assert_eq!((&seen[0]["payload"], &seen[0]["key"]), (&json!("ours"), &json!("p-1")));
    // Names and values, one after the other.
    let headers = seen[0]["headers"].as_array().unwrap();
    for expected in [["traceparent", TRACEPARENT], ["tl-type", "campaign.sync_report"]] {
        assert!(headers.chunks(2).any(|pair| pair == expected), "{headers:?}");
    }

    let mut consume = cli();
    consume.args(["consume", &address, "--json", "--max", "2", "--wait", "20s"]);
    let consumed = json_lines(&run(consume, "").await);
    let theirs = &consumed[1];
    assert_eq!((&theirs["payload"], &theirs["key"]), (&json!("theirs"), &json!("k-1")));
    assert_eq!(theirs["headers"], json!({ "traceparent": TRACEPARENT, "empty": "", "null": null }));
    delete(&address).await;
}
