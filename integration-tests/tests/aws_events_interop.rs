//! EventBridge between Throughline and a foreign client (boto3), both ways. Against an emulator:
//! `THROUGHLINE_AWS_ENDPOINT`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use throughline::{Bus, Envelope, IdOrigin};
use throughline_integration_tests::aws::{
    Aws, TRACEPARENT, awkward, expect, finish, next, publish, text, unique,
};

const XRAY: &str = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";

/// A bus with a rule for everything, and the rule's queue.
async fn rule(aws: &Aws, what: &str) -> (Bus, String, String) {
    let name = unique(what);
    let queue = format!("{name}-q");
    (aws.bus(&format!("eventbridge://{name}?source=shop&queue={queue}")).await, name, queue)
}

fn put(bus: &str, source: &Value, detail_type: &Value, detail: &Value) -> Value {
    json!(["events", "put_events", { "Entries": [{
        "EventBusName": bus, "Source": source, "DetailType": detail_type, "Detail": detail.to_string(),
        "Resources": ["arn:aws:s3:::reports"],
    }] }])
}

fn event(message: &Value) -> Value {
    serde_json::from_str(message["Body"].as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_consumer_sees_data_beside_metadata() {
    let Some(aws) = Aws::new("aws_events_a_foreign_consumer_sees_data_beside_metadata") else { return };
    let (bus, _, queue) = rule(&aws, "seen").await;
    let sent = Envelope::builder("campaign.sync_report").source("shop").header("traceparent", TRACEPARENT);
    publish(&bus, vec![sent.header("tenant", "5000").payload(r#"{"report":7}"#).build()]).await;
    let event = event(&aws.look(&queue).await[0]);
    assert_eq!((&event["detail-type"], &event["source"]), (&json!("campaign.sync_report"), &json!("shop")));
    assert_eq!(event["detail"]["data"], json!({ "report": 7 }));
    let headers = &event["detail"]["metadata"]["headers"];
    assert_eq!((&headers["traceparent"], &headers["tenant"]), (&json!(TRACEPARENT), &json!("5000")));
    finish(bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_event_and_one_of_aws_itself_are_messages() {
    let Some(aws) = Aws::new("aws_events_a_foreign_event_and_one_of_aws_itself_are_messages") else { return };
    let (bus, name, queue) = rule(&aws, "foreign").await;
    let mut consumer = bus.consumer().await.unwrap();
    let detail = json!({ "order": 1, "metadata": { "version": "1" } });
    aws.boto3(&[put(&name, &json!("shop"), &json!("order.placed"), &detail)]).await;
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope();
    let (kind, source) = (envelope.message_type.as_deref(), envelope.source.as_deref());
    assert_eq!((kind, source, envelope.id_origin), (Some("order.placed"), Some("shop"), IdOrigin::Broker));
    assert_eq!(delivery.json::<Value>().unwrap(), detail);
    assert_eq!(envelope.headers.get_str("resources"), Some(r#"["arn:aws:s3:::reports"]"#));
    delivery.ack().await.unwrap();

    // Only AWS itself may put this: so it goes where EventBridge would deliver it, as its documentation has it.
    let body = json!({
        "version": "0", "id": "17793124-05d4-b198-2fde-7ededc63b103", "detail-type": "Object Created",
        "source": "aws.s3", "account": "111122223333", "time": "2021-11-12T00:00:00Z", "region": "ca-central-1",
        "resources": ["arn:aws:s3:::amzn-s3-demo-bucket1"],
        "detail": {
            "version": "0", "bucket": { "name": "amzn-s3-demo-bucket1" },
            "object": { "key": "example-key", "size": 5, "etag": "b1946ac92492d2347c6235b4d2611184" },
            "request-id": "N4N7GDK58NMKJ12R", "requester": "123456789012", "reason": "PutObject",
        },
    });
    let mut send = aws.send(&queue, &body.to_string(), json!({}));
    send[2]["MessageSystemAttributes"] = json!({ "AWSTraceHeader": text(XRAY) });
    aws.boto3(&[send]).await;
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope();
    assert_eq!(envelope.id, "17793124-05d4-b198-2fde-7ededc63b103");
    let (kind, source) = (envelope.message_type.as_deref(), envelope.source.as_deref());
    assert_eq!((kind, source), (Some("Object Created"), Some("aws.s3")));
    assert_eq!(envelope.time.map(|time| time.to_string()).as_deref(), Some("2021-11-12T00:00:00.000Z"));
    assert_eq!(delivery.json::<Value>().unwrap(), body["detail"]);
    assert_eq!(envelope.headers.get_str("account"), Some("111122223333"));
    assert_eq!(envelope.headers.trace("traceparent"), Some(TRACEPARENT));
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    finish(bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transformer_makes_of_an_event_is_a_message_too() {
    let Some(aws) = Aws::new("aws_events_what_a_transformer_makes_of_an_event_is_a_message_too") else {
        return;
    };
    let (bus, name, queue) = rule(&aws, "transformed").await;
    let target = |more: Value| {
        let mut target =
            json!({ "Id": "throughline", "Arn": format!("arn:aws:sqs:us-east-1:000000000000:{queue}") });
        target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!(["events", "put_targets", { "Rule": queue, "EventBusName": name, "Targets": [target] }])
    };
    let mut consumer = bus.consumer().await.unwrap();
    let template = json!({ "InputTransformer": {
        "InputPathsMap": { "report": "$.detail.data.report" }, "InputTemplate": "\"report <report> is due\"",
    } });
    let part = json!({ "InputPath": "$.detail" });
    for (change, expected) in [(template, None), (part, Some(json!({ "report": 7 })))] {
        aws.boto3(&[target(change)]).await;
        publish(&bus, vec![Envelope::builder("t").source("shop").payload(r#"{"report":7}"#).build()]).await;
        let delivery = next(&mut consumer).await;
        // It is SQS's message: nothing is left of ours that could be believed.
        assert_eq!(delivery.envelope().id_origin, IdOrigin::Broker);
        match expected {
            None => assert_eq!(delivery.payload(), br#""report 7 is due""#),
            Some(data) => assert_eq!(delivery.json::<Value>().unwrap()["data"], data),
        }
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    finish(bus).await;
}

/// A foreign program that reads events and puts them on another bus, source, type and detail.
#[tokio::test(flavor = "multi_thread")]
async fn everything_awkward_survives_a_foreign_forwarder() {
    let Some(aws) = Aws::new("aws_events_everything_awkward_survives_a_foreign_forwarder") else { return };
    let (from, _, here) = rule(&aws, "from").await;
    let (to, there, _) = rule(&aws, "to").await;
    let mut sent = awkward();
    sent.iter_mut().for_each(|envelope| envelope.source = Some("shop".to_owned()));
    publish(&from, sent.clone()).await;
    let mut forwarded = 0;
    while forwarded < sent.len() {
        let messages = aws.look(&here).await;
        assert!(!messages.is_empty(), "{forwarded} of {} have come", sent.len());
        forwarded += messages.len();
        let again = |event: Value| put(&there, &event["source"], &event["detail-type"], &event["detail"]);
        aws.boto3(&messages.iter().map(event).map(again).collect::<Vec<_>>()).await;
    }
    expect(&to, sent).await;
    finish(from).await;
    finish(to).await;
}

/// EventBridge puts what it could not deliver to a target into the target's dead-letter queue, and says why in attributes.
#[tokio::test(flavor = "multi_thread")]
async fn a_targets_dead_letter_says_why() {
    let Some(aws) = Aws::new("aws_events_a_targets_dead_letter_says_why") else { return };
    let (bus, _, here) = rule(&aws, "undelivered").await;
    let letters = unique("letters");
    let dead = aws.bus(&format!("sqs://{letters}")).await;
    let sent = Envelope::builder("t").source("shop").header("traceparent", TRACEPARENT).payload("{}").build();
    publish(&bus, vec![sent.clone()]).await;
    let body = aws.look(&here).await.remove(0);
    let why = [
        ("RULE_ARN", "arn:aws:events:us-east-1:000000000000:rule/shop/reports"),
        ("TARGET_ARN", "arn:aws:sqs:us-east-1:000000000000:gone"),
        ("ERROR_CODE", "NO_PERMISSIONS"),
        ("ERROR_MESSAGE", "User is not authorized to perform: sqs:SendMessage"),
        ("EXHAUSTED_RETRY_CONDITION", "MaximumRetryAttempts"),
    ];
    let mut attributes: Value = why.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect();
    attributes["RETRY_ATTEMPTS"] = json!({ "DataType": "Number", "StringValue": "185" });
    aws.boto3(&[aws.send(&letters, body["Body"].as_str().unwrap(), attributes)]).await;
    let mut consumer = dead.consumer().await.unwrap();
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope();
    assert_eq!((&envelope.id, &envelope.payload), (&sent.id, &sent.payload));
    assert_eq!(envelope.headers.trace("traceparent"), Some(TRACEPARENT));
    for (name, value) in why {
        assert_eq!(envelope.headers.get_str(name), Some(value), "{name}");
    }
    assert!(envelope.headers.get("RETRY_ATTEMPTS").is_some());
    delivery.ack().await.unwrap();
    consumer.close().await.unwrap();
    finish(bus).await;
    finish(dead).await;
}
