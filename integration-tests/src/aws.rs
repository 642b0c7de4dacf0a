//! The AWS emulator of a test, with a foreign client for it (boto3).

use serde_json::{Value, json};
use throughline::{Bus, Consumer, Delivery, Envelope, HeaderValue};
use throughline_testkit::endpoint;

use crate::{foreign, json_lines, run};

/// The account of the emulators.
pub const ACCOUNT: &str = "000000000000";
/// A trace that a message carries.
pub const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The emulator, for one test.
pub struct Aws {
    /// `http://host:port`.
    pub endpoint: String,
    test: &'static str,
}

impl Aws {
    /// `None`, loudly, without an emulator or a Python with boto3.
    pub fn new(test: &'static str) -> Option<Self> {
        let endpoint = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", test)?;
        foreign("boto3_client.py", test)?;
        Some(Self { endpoint, test })
    }

    /// A bus, whose destination is made.
    pub async fn bus(&self, address: &str) -> Bus {
        let separator = if address.contains('?') { '&' } else { '?' };
        let bus = Bus::connect(format!("{address}{separator}endpoint={}", self.endpoint)).await.unwrap();
        bus.create("").await.unwrap();
        bus
    }

    /// Calls of boto3, one after the other, and their answers.
    pub async fn boto3(&self, calls: &[Value]) -> Vec<Value> {
        let mut client = foreign("boto3_client.py", self.test).unwrap();
        client.arg(&self.endpoint);
        let lines: String = calls.iter().map(|call| format!("{call}\n")).collect();
        json_lines(&run(client, &lines).await)
    }

    /// The URL of a queue of this name.
    pub fn queue_url(&self, queue: &str) -> String {
        format!("{}/{ACCOUNT}/{queue}", self.endpoint)
    }

    /// The call that sends a message.
    pub fn send(&self, queue: &str, body: &str, attributes: Value) -> Value {
        let url = self.queue_url(queue);
        json!(["sqs", "send_message", { "QueueUrl": url, "MessageBody": body, "MessageAttributes": attributes }])
    }

    /// What is in a queue, at most ten messages; they are hidden then, for the time of the queue.
    pub async fn look(&self, queue: &str) -> Vec<Value> {
        let call = json!(["sqs", "receive_message", {
            "QueueUrl": self.queue_url(queue), "MaxNumberOfMessages": 10, "WaitTimeSeconds": 10,
            "MessageAttributeNames": ["All"], "MessageSystemAttributeNames": ["All"],
        }]);
        let mut answer = self.boto3(&[call]).await.remove(0);
        match answer.get_mut("Messages").map(Value::take) {
            Some(Value::Array(messages)) => messages,
            _ => Vec::new(),
        }
    }
}

/// A name that AWS takes, and no other test has.
pub fn unique(what: &str) -> String {
    format!("it-{what}-{}", uuid::Uuid::now_v7().simple())
}

/// An attribute of a message.
pub fn text(value: &str) -> Value {
    json!({ "DataType": "String", "StringValue": value })
}

/// The next message, within a time that no healthy broker needs.
pub async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(std::time::Duration::from_secs(30), consumer.next()).await;
    next.expect("a message in time").unwrap().unwrap()
}

/// All that is awkward about an envelope, and too much of it for ten attributes.
pub fn awkward() -> Vec<Envelope> {
    let mut all = vec![
        Envelope::builder("empty").build(),
        Envelope::builder("empty body").payload("").build(),
        Envelope::builder("tombstone").tombstone().build(),
        Envelope::builder("binary").payload(vec![0, 0xff, 0xfe]).header("bytes", vec![0xff, 0]).build(),
        Envelope::builder("control").payload("a\u{1}b\u{fffe}").header("control", "\u{1}").build(),
        Envelope::builder("odd names")
            .header("AWS.x", "reserved")
            .header("ünïcode", "wörld")
            .header("a..b", "two points")
            .header("x".repeat(300), "long")
            .header("twice", "1")
            .header("twice", vec![0xfe])
            .header("null", HeaderValue::Null)
            .header("empty", "")
            .header("tl-id", "mine")
            .key(vec![0xff, 0])
            .correlation_id("c-1")
            .payload("{\"a\":\"ä\"}")
            .build(),
    ];
    all.extend((11..=60).step_by(7).map(|count| {
        Envelope::builder("many")
            .headers((0..count).map(|n| (format!("h{n}"), "v".repeat(n))))
            .header("tracestate", "vendor=x")
            .payload("x")
            .build()
    }));
    // A creation context is never rewritten: so they stay as they are, whatever provider the process has.
    all.iter_mut().for_each(|envelope| envelope.headers.append("traceparent", TRACEPARENT));
    all
}

/// Publishes these, all accepted.
pub async fn publish(bus: &Bus, messages: Vec<Envelope>) {
    let publisher = bus.publisher().await.unwrap();
    for result in publisher.publish_batch(messages).await {
        result.unwrap();
    }
    publisher.close().await.unwrap();
}

/// Consumes until each of these has come, equal.
pub async fn expect(bus: &Bus, mut expected: Vec<Envelope>) {
    let mut consumer = bus.consumer().await.unwrap();
    while !expected.is_empty() {
        let delivery = next(&mut consumer).await;
        let at = expected.iter().position(|sent| sent.id == delivery.id()).unwrap();
        assert_eq!(**delivery.envelope(), expected.remove(at));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
}

/// Deletes what a bus's address names, and closes it.
pub async fn finish(bus: Bus) {
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}
