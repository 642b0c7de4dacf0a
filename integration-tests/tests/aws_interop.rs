//! SQS and SNS between Throughline and a foreign client (boto3), both ways: one trace, nothing lost. Against an emulator:
//! `THROUGHLINE_AWS_ENDPOINT`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use opentelemetry::trace::{SpanKind, TraceId};
use serde_json::{Value, json};
use throughline::{Envelope, ErrorKind, HeaderValue, IdOrigin};
use throughline_integration_tests::aws::{
    ACCOUNT, Aws, TRACEPARENT, awkward, expect, finish, next, publish, text, unique,
};
use throughline_integration_tests::{cli, run};
use throughline_testkit::spans::{Recorder, links, named};

const SPAN: &str = "b7ad6b7169203331";
const XRAY: &str = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";
/// The largest message of SQS, in bytes.
const LARGEST: usize = 1_048_576;

fn base64(bytes: &[u8]) -> Value {
    json!({ "base64": BASE64.encode(bytes) })
}

fn typed(kind: &'static str, text: &str) -> HeaderValue {
    HeaderValue::Typed { kind: kind.into(), text: text.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_client_sees_the_payload_and_plain_trace_attributes() {
    let Some(aws) = Aws::new("aws_a_foreign_client_sees_the_payload_and_plain_trace_attributes") else {
        return;
    };
    let queue = unique("plain");
    let bus = aws.bus(&format!("sqs://{queue}")).await;
    let mut publish = cli();
    publish
        .args(["publish", &bus.address().to_string(), "--type", "campaign.sync_report"])
        .args(["--header", "tenant=5000", "--content-type", "application/json", "--data", r#"{"report":7}"#])
        .env("TRACEPARENT", TRACEPARENT)
        .env("TRACESTATE", "vendor=x")
        .env("BAGGAGE", "user=1");
    run(publish, "").await;
    let messages = aws.look(&queue).await;
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0]["Body"], r#"{"report":7}"#);
    for (name, value) in [
        ("traceparent", TRACEPARENT),
        ("tracestate", "vendor=x"),
        ("baggage", "user=1"),
        ("tenant", "5000"),
        ("content-type", "application/json"),
        ("tl-type", "campaign.sync_report"),
    ] {
        assert_eq!(messages[0]["MessageAttributes"][name], text(value), "{name}: {messages:?}");
    }
    finish(bus).await;
}

/// As the Go code of an ordinary service sends it: the propagator's fields as plain String attributes.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_producers_span_is_the_parent_whichever_way_its_context_comes() {
    let Some(aws) = Aws::new("aws_a_foreign_producers_span_is_the_parent") else { return };
    let queue = unique("parent");
    let bus = aws.bus(&format!("sqs://{queue}")).await;
    let recorder = Recorder::install();
    let mut consumer = bus.consumer().await.unwrap();
    for by_xray in [false, true] {
        // A trace of its own, since the recorder is the whole process's.
        let trace = TraceId::from_bytes(*uuid::Uuid::now_v7().as_bytes());
        let mut send = aws.send(&queue, "{}", json!({ "tl-type": text("campaign.sync_report") }));
        if by_xray {
            let (start, rest) = (&trace.to_string()[..8], &trace.to_string()[8..]);
            let xray = format!("Self=1-67-0;Parent={SPAN};Sampled=1;Root=1-{start}-{rest}");
            send[2]["MessageSystemAttributes"] = json!({ "AWSTraceHeader": text(&xray) });
        } else {
            send[2]["MessageAttributes"]["traceparent"] = text(&format!("00-{trace}-{SPAN}-01"));
            // Where both are there, W3C's counts.
            send[2]["MessageSystemAttributes"] = json!({ "AWSTraceHeader": text(XRAY) });
        }
        aws.boto3(&[send]).await;
        let delivery = next(&mut consumer).await;
        delivery.process(async { Ok::<_, String>(()) }).await.unwrap();
        delivery.ack().await.unwrap();
        let spans = recorder.trace(trace);
        let process = named(&spans, "campaign.sync_report");
        assert_eq!(process.span_kind, SpanKind::Consumer);
        assert_eq!(process.parent_span_id.to_string(), SPAN, "by X-Ray: {by_xray}");
        assert_eq!(links(process)[0].to_string(), SPAN);
        // From SQS's own stamp, though the producer knows nothing of us.
        named(&spans, "queued campaign.sync_report");
    }
    consumer.close().await.unwrap();
    finish(bus).await;
}

/// What boto3 sends with every kind of attribute comes out with its types, and goes on as it was.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_attributes_keep_their_types_there_and_back() {
    let Some(aws) = Aws::new("aws_foreign_attributes_keep_their_types_there_and_back") else { return };
    let (here, there) = (unique("here"), unique("there"));
    let (from, to) = (aws.bus(&format!("sqs://{here}")).await, aws.bus(&format!("sqs://{there}")).await);
    // With the id that ours adds, as many as a message may have beside the packed one.
    let attributes = json!({
        "traceparent": text(TRACEPARENT),
        "plain": text("wörld"),
        "labelled": { "DataType": "String.uuid", "StringValue": "u-1" },
        "number": { "DataType": "Number", "StringValue": "42" },
        "exact": { "DataType": "Number.decimal", "StringValue": "1.50" },
        "bytes": { "DataType": "Binary", "BinaryValue": base64(&[0, 0xff]) },
        "gif": { "DataType": "Binary.gif", "BinaryValue": base64(b"GIF89a") },
    });
    aws.boto3(&[aws.send(&here, "hello", attributes.clone())]).await;
    let mut consumer = from.consumer().await.unwrap();
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope();
    assert_eq!((delivery.payload(), envelope.id_origin), (&b"hello"[..], IdOrigin::Broker));
    for (name, value) in [
        ("plain", HeaderValue::from("wörld")),
        ("labelled", typed("sqs:String.uuid", "u-1")),
        ("number", typed("sqs:Number", "42")),
        ("exact", typed("sqs:Number.decimal", "1.50")),
        ("bytes", HeaderValue::from(vec![0, 0xff])),
        ("gif", typed("sqs:Binary.gif", &BASE64.encode(b"GIF89a"))),
    ] {
        assert_eq!(envelope.headers.get(name), Some(&value), "{name}");
    }
    publish(&to, vec![(**envelope).clone()]).await;
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    let messages = aws.look(&there).await;
    assert_eq!(messages[0]["Body"], "hello");
    for (name, attribute) in attributes.as_object().unwrap() {
        assert_eq!(&messages[0]["MessageAttributes"][name], attribute, "{name}");
    }
    finish(from).await;
    finish(to).await;
}

/// A foreign program that only gives messages on, body and attributes, loses nothing of ours: up to 60 headers, bytes, names
/// and bodies that AWS does not take.
#[tokio::test(flavor = "multi_thread")]
async fn everything_awkward_survives_a_foreign_forwarder() {
    let Some(aws) = Aws::new("aws_everything_awkward_survives_a_foreign_forwarder") else { return };
    let (here, there) = (unique("here"), unique("there"));
    let (from, to) = (aws.bus(&format!("sqs://{here}")).await, aws.bus(&format!("sqs://{there}")).await);
    let sent = awkward();
    publish(&from, sent.clone()).await;
    let mut forwarded = 0;
    while forwarded < sent.len() {
        let messages = aws.look(&here).await;
        assert!(!messages.is_empty(), "{forwarded} of {} have come", sent.len());
        let again = |message: &Value| {
            let attributes = message["MessageAttributes"].clone();
            assert!(attributes.as_object().unwrap().len() <= 10, "{attributes}");
            aws.send(&there, message["Body"].as_str().unwrap(), attributes)
        };
        forwarded += messages.len();
        aws.boto3(&messages.iter().map(again).collect::<Vec<_>>()).await;
    }
    expect(&to, sent).await;
    finish(from).await;
    finish(to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_exactly_the_largest_size_go_both_ways() {
    let Some(aws) = Aws::new("aws_messages_of_exactly_the_largest_size_go_both_ways") else { return };
    let (queue, dead) = (unique("large"), unique("dead"));
    let bus = aws.bus(&format!("sqs://{queue}?dead_letter={dead}")).await;
    let letters = aws.bus(&format!("sqs://{dead}")).await;
    // Ours: the payload, and headers up to the last byte (names, types and values of tl-id, tl-type, h and traceparent).
    let payload = bus.capabilities().limits.payload_bytes.unwrap();
    let of_size = |size: usize| {
        let header = size - payload - (5 + 6 + 1) - (7 + 6 + 1) - (1 + 6) - (11 + 6 + TRACEPARENT.len());
        let envelope = Envelope::builder("t").id("i").header("traceparent", TRACEPARENT);
        let mut envelope = envelope.header("h", "x".repeat(header)).payload("x".repeat(payload)).build();
        envelope.time = None;
        envelope
    };
    let publisher = bus.publisher().await.unwrap();
    let error = publisher.publish(of_size(LARGEST + 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    publisher.publish(of_size(LARGEST)).await.unwrap();
    publisher.close().await.unwrap();
    let seen = aws.look(&queue).await.remove(0);
    assert_eq!(seen["Body"].as_str().unwrap().len(), payload);
    let receipt = &seen["ReceiptHandle"];
    let delete =
        json!(["sqs", "delete_message", { "QueueUrl": aws.queue_url(&queue), "ReceiptHandle": receipt }]);
    // Theirs: nothing but a body. There is no room in it for anything of ours, and it can be dead-lettered all the same.
    let body = "y".repeat(LARGEST);
    aws.boto3(&[delete, aws.send(&queue, &body, json!({}))]).await;
    let mut consumer = bus.consumer().await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.payload(), body.as_bytes());
    delivery.reject("too much").await.unwrap();
    consumer.close().await.unwrap();
    let letter = aws.look(&dead).await.remove(0);
    assert!(letter["Body"] == body.as_str() && letter["MessageAttributes"].is_null());
    finish(bus).await;
    finish(letters).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_topic_raw_and_wrapped_both_ways() {
    let Some(aws) = Aws::new("aws_through_a_topic_raw_and_wrapped_both_ways") else { return };
    let topic = unique("topic");
    let subscription = async |name: &str, options: &str| {
        let queue = format!("{topic}-{name}");
        (aws.bus(&format!("sns://{topic}?queue={queue}{options}")).await, queue)
    };
    let ((raw, raw_queue), (wrapped, wrapped_queue)) =
        (subscription("raw", "").await, subscription("wrapped", "&raw=false").await);
    // Ours, as a foreign consumer sees it.
    let sent =
        Envelope::builder("campaign.sync_report").header("traceparent", TRACEPARENT).header("tenant", "5000");
    let sent = sent.payload(r#"{"report":7}"#).build();
    publish(&raw, vec![sent.clone()]).await;
    let message = aws.look(&raw_queue).await.remove(0);
    assert_eq!(message["Body"], r#"{"report":7}"#);
    for (name, value) in
        [("traceparent", TRACEPARENT), ("tenant", "5000"), ("tl-type", "campaign.sync_report")]
    {
        assert_eq!(message["MessageAttributes"][name], text(value), "{name}");
    }
    let message = aws.look(&wrapped_queue).await.remove(0);
    let body: Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
    assert_eq!((&body["Message"], &body["Type"]), (&json!(r#"{"report":7}"#), &json!("Notification")));
    assert_eq!(body["MessageAttributes"]["traceparent"], json!({ "Type": "String", "Value": TRACEPARENT }));

    // Theirs, as ours sees it. The messages above are hidden for the queues' 30 s, and gone with them.
    let publish = json!(["sns", "publish", {
        "TopicArn": format!("arn:aws:sns:us-east-1:{ACCOUNT}:{topic}"), "Subject": "s", "Message": "hello",
        "MessageAttributes": {
            "traceparent": text(TRACEPARENT),
            "number": { "DataType": "Number", "StringValue": "42" },
        },
    }]);
    aws.boto3(&[publish]).await;
    for bus in [&raw, &wrapped] {
        let mut consumer = bus.consumer().await.unwrap();
        let delivery = next(&mut consumer).await;
        let envelope = delivery.envelope();
        assert_eq!((delivery.payload(), envelope.id_origin), (&b"hello"[..], IdOrigin::Broker));
        assert_eq!(envelope.headers.trace("traceparent"), Some(TRACEPARENT));
        assert_eq!(envelope.headers.get("number"), Some(&typed("sqs:Number", "42")));
        delivery.ack().await.unwrap();
        consumer.close().await.unwrap();
    }
    finish(raw).await;
    finish(wrapped).await;
}
