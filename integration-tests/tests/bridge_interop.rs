//! A RabbitMQ queue with the messages of a foreign client (Python pika), moved to Kafka and back with one command each. Foreign
//! clients read what came: payloads and properties are as they were, or differ as `throughline explain` says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use throughline_integration_tests::{Ended, cli, end, foreign, json_lines, run, unique};
use throughline_testkit::endpoint;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn throughline(arguments: &[&str], state: &Path) -> Ended {
    let mut command = cli();
    command.args(arguments).env("XDG_STATE_HOME", state);
    end(command, "").await
}

/// Runs the bridge as a user would; its report.
async fn bridge(from: &str, to: &str, state: &Path) -> Value {
    let ended = throughline(&["bridge", from, to, "--until-empty", "--verify", "--json"], state).await;
    assert!(ended.code == 0, "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// What `explain` says becomes of each part.
async fn explain(from: &str, to: &str, state: &Path) -> BTreeMap<String, String> {
    let ended = throughline(&["explain", from, to, "--json"], state).await;
    let plan: Value = serde_json::from_str(&ended.stdout).unwrap();
    let parts = plan["parts"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    parts.map(|part| (text(&part["what"]), text(&part["fate"]))).collect()
}

fn hex(bytes: &[u8]) -> Value {
    json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() })
}

/// What a foreign producer may publish; each has a body of its own, but for one that is there twice.
fn messages() -> Vec<Value> {
    let large: Vec<u8> = (0..200 * 1024_u32).map(|at| (at % 251) as u8).collect();
    let of = |body: &str, headers: Value, properties: Value| json!({ "body": hex(body.as_bytes()), "headers": headers, "properties": properties });
    let all = json!({
        "message_id": "order-7", "type": "order.made", "app_id": "shop", "content_type": "application/json",
        "content_encoding": "utf-8", "correlation_id": "c-1", "reply_to": "replies", "timestamp": 1_700_000_000,
        "priority": 5, "delivery_mode": 2,
    });
    let typed = json!({
        "number": 42, "large": 1_099_511_627_776_i64, "flag": true, "nothing": null, "empty": "",
        "list": [1, "two", [true, null]], "table": { "a": { "b": 1 }, "t": "x" }, "ünïcode": "wörld",
        "bytes": hex(&[0, 0xff, 0xfe, 0x80]), "at": { "time": 1_700_000_000 },
    });
    let traced = json!({ "traceparent": TRACEPARENT, "tracestate": "vendor=x" });
    let none = || json!({});
    vec![
        of("plain", none(), none()),
        of("{\"a\": 1.50}", none(), all),
        of("typed", typed, none()),
        json!({ "body": hex(&[0xff, 0xfe, 0, 0x80, 0xc3, 0x28]), "headers": {}, "properties": {} }),
        json!({ "body": hex(&large), "headers": {}, "properties": { "delivery_mode": 2 } }),
        of("", none(), none()),
        of("expires", none(), json!({ "expiration": "3600000" })),
        of("transient", none(), json!({ "delivery_mode": 1 })),
        of("traced", traced, none()),
        of("twice", none(), json!({ "message_id": "twice" })),
        of("twice", none(), json!({ "message_id": "twice" })),
    ]
}

/// A message without what a bridge adds or changes, each of which is taken out only where it is as it was told.
fn as_it_was(mut came: Value, sent: &Value) -> Value {
    let headers = came["headers"].as_object_mut().unwrap();
    // Bookkeeping, in headers of our own that no foreign program looks at, and the broker's.
    headers.retain(|name, _| !["tl-sent", "tl-id-origin", "x-delivery-count"].contains(&name.as_str()));
    let expires = headers.remove("tl-expires-at");
    let properties = came["properties"].as_object_mut().unwrap();
    let was = sent["properties"].as_object().unwrap();
    // Whatever is moved is durable.
    assert_eq!(properties.get("delivery_mode"), Some(&json!(2)));
    restore(properties, was, "delivery_mode");
    // A message without an id gets one, so that it can be told from others.
    if !was.contains_key("message_id") {
        assert!(properties.remove("message_id").unwrap().as_str().unwrap().len() == 36);
    }
    // The time that is left.
    if let Some(before) = was.get("expiration") {
        let milliseconds = |value: &Value| value.as_str().unwrap().parse::<i64>().unwrap();
        let left = milliseconds(&properties["expiration"]);
        assert!(left <= milliseconds(before) && left > milliseconds(before) - 600_000, "{left}");
        assert!(expires.is_some());
        restore(properties, was, "expiration");
    }
    came
}

fn restore(properties: &mut Map<String, Value>, was: &Map<String, Value>, name: &str) {
    match was.get(name) {
        Some(value) => drop(properties.insert(name.to_owned(), value.clone())),
        None => drop(properties.remove(name)),
    }
}

fn body(message: &Value) -> String {
    message["body"]["hex"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn foreign_messages_go_to_kafka_and_back() {
    const TEST: &str = "foreign_messages_go_to_kafka_and_back";
    let (Some(rabbitmq), Some(kafka)) = (endpoint::broker("rabbitmq", TEST), endpoint::broker("kafka", TEST))
    else {
        return;
    };
    let (Some(mut put), Some(mut get)) = (foreign("pika_client.py", TEST), foreign("pika_client.py", TEST))
    else {
        return;
    };
    let Some(mut middle) = foreign("confluent_client.py", TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (name, back) = (unique("interop"), unique("interop-back"));
    let from = format!("{rabbitmq}?queue={name}");
    let to = format!("{kafka}/{name}?group={name}&partitions=1");
    let again = format!("{rabbitmq}?queue={back}");
    for address in [&from, &to, &again] {
        assert_eq!(throughline(&["create", address], folder.path()).await.code, 0);
    }
    let sent = messages();
    let lines: Vec<_> = sent.iter().map(Value::to_string).collect();
    put.args(["put-all", &rabbitmq, &name]);
    run(put, &lines.join("\n")).await;

    let there = bridge(&from, &to, folder.path()).await;
    let count = json!(sent.len());
    assert_eq!((&there["totals"]["moved"], &there["totals"]["copies"]), (&count, &json!(1)), "{there}");
    assert_eq!(there["end"]["reason"], "empty");
    let verification = &there["verification"];
    assert_eq!((&verification["level"], &verification["found"]["same"]), (&json!("read_back"), &count));
    assert_eq!(verification["found"]["missing"], 0);
    // Reading a queue raises delivery counts: it is counted.
    let source = &verification["source"];
    assert_eq!((&source["level"], &source["held"]), (&json!("broker_count"), &count), "{verification}");

    // A foreign client reads the middle: values as they were, text headers as plain headers, the rest in one of ours.
    middle.args(["get-all", kafka.trim_start_matches("kafka://"), &name]);
    let records = json_lines(&run(middle, "").await);
    let bodies: Vec<_> = records.iter().map(|record| record["body"].as_str().unwrap().to_owned()).collect();
    assert_eq!(bodies, sent.iter().map(body).collect::<Vec<_>>());
    let header = |record: &Value, name: &str| {
        let headers = record["headers"].as_array().unwrap();
        headers.iter().find(|header| header[0] == name).map(|header| header[1]["value"].clone())
    };
    assert_eq!(header(&records[8], "traceparent"), Some(json!(TRACEPARENT)));
    assert_eq!(header(&records[2], "ünïcode"), Some(json!("wörld")));
    assert_eq!(header(&records[1], "content-type"), Some(json!("application/json")));
    let explained = explain(&from, &to, folder.path()).await;
    assert_eq!(explained["header, another broker's type"], "spilled");
    assert!(header(&records[2], "number").is_none() && header(&records[2], "tl-headers").is_some());
    assert_eq!((explained["id"].as_str(), header(&records[1], "tl-id")), ("renamed", Some(json!("order-7"))));
    assert_eq!(explained["payload, binary"], "kept");

    let returned = bridge(&to, &again, folder.path()).await;
    assert_eq!((&returned["totals"]["moved"], &returned["totals"]["rejected"]), (&count, &json!(0)));
    let verification = &returned["verification"];
    assert_eq!((&verification["found"]["same"], &verification["disturbed"]), (&count, &json!(true)));
    let source = &verification["source"];
    assert_eq!((&source["level"], &source["unaccounted"]), (&json!("read"), &json!(0)), "{verification}");
    let explained = explain(&to, &again, folder.path()).await;
    for part in
        ["id", "message type", "source", "time", "content type", "expiry", "priority", "header, bytes"]
    {
        assert_eq!(explained[part], "kept", "{part}");
    }

    get.args(["get-all", &rabbitmq, &back]);
    let came = json_lines(&run(get, "").await);
    assert_eq!(came.len(), sent.len());
    for (came, sent) in came.into_iter().zip(&sent) {
        assert_eq!(&as_it_was(came, sent), sent);
    }
    for address in [&from, &to, &again] {
        assert_eq!(throughline(&["delete", address], folder.path()).await.code, 0);
    }
}

/// A foreign producer that never stops, and whose transactions leave marks in the log.
#[tokio::test]
async fn a_topic_that_is_written_to_all_the_time_has_an_end() {
    const TEST: &str = "a_topic_that_is_written_to_all_the_time_has_an_end";
    let Some(kafka) = endpoint::broker("kafka", TEST) else { return };
    let Some(mut transactions) = foreign("confluent_client.py", TEST) else { return };
    let folder = tempfile::tempdir().unwrap();
    let name = unique("live");
    let from = format!("{kafka}/{name}?group={name}&partitions=2");
    let to = format!("sqlite:{}?queue=q", folder.path().join("to.db").display());
    assert_eq!(throughline(&["create", &from], folder.path()).await.code, 0);
    let servers = kafka.trim_start_matches("kafka://").to_owned();
    transactions.args(["put-transactions", &servers, &name, "20"]);
    run(transactions, "").await;

    // At rest: what is left are marks, which nobody can read.
    let at_rest = bridge(&from, &to, folder.path()).await;
    assert_eq!(at_rest["totals"]["moved"], 20, "{at_rest}");
    assert_eq!((&at_rest["end"]["reason"], &at_rest["end"]["approximate"]), (&json!("empty"), &json!(false)));

    let live = throughline::Bus::connect(&from).await.unwrap();
    let publisher = live.publisher().await.unwrap();
    let publish =
        |n: u32| publisher.publish(throughline::Envelope::builder("live").payload(n.to_string()).build());
    for n in 0..30 {
        publish(n).await.unwrap();
    }
    let publishing = async {
        for n in 30.. {
            publish(n).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let report = tokio::select! {
        report = bridge(&from, &to, folder.path()) => report,
        () = publishing => unreachable!(),
    };
    assert_eq!(report["end"]["reason"], "empty");
    assert!(report["totals"]["moved"].as_u64().unwrap() >= 30, "{report}");
    assert_eq!(report["verification"]["source"]["unaccounted"], 0, "{report}");
    live.close().await.unwrap();
    assert_eq!(throughline(&["delete", &from], folder.path()).await.code, 0);
}
