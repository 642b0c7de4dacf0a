//! Requests to an AWS emulator as no client of ours makes them: plain JSON over HTTP, unsigned.
#![allow(clippy::indexing_slicing, reason = "JSON's own indexing: what is missing is null")]

use serde_json::{Value, json};
use throughline_core::{Address, Error, ErrorKind};

/// One call, such as `AmazonSQS.SendMessage`.
///
/// # Errors
/// What the emulator answered, or that it did not.
pub async fn call(endpoint: &str, target: &str, body: &Value) -> Result<Value, String> {
    let request = reqwest::Client::new()
        .post(endpoint)
        .header("x-amz-target", target)
        .header("content-type", "application/x-amz-json-1.0")
        .body(body.to_string());
    let answer = request.send().await.map_err(|error| error.to_string())?;
    let (status, text) = (answer.status(), answer.text().await.map_err(|error| error.to_string())?);
    if !status.is_success() {
        return Err(format!("{target}: {status}: {text}"));
    }
    serde_json::from_str(&text).map_err(|error| format!("{target}: {error}"))
}

/// Puts a message into a queue, by its name; `attributes` as SQS's JSON has them.
///
/// # Errors
/// As [`call`].
pub async fn send(endpoint: &str, queue: &str, body: &str, attributes: Value) -> Result<(), String> {
    let url = call(endpoint, "AmazonSQS.GetQueueUrl", &json!({ "QueueName": queue })).await?;
    let mut message =
        json!({ "QueueUrl": url["QueueUrl"], "MessageBody": body, "MessageAttributes": attributes });
    if queue.ends_with(".fifo") {
        message["MessageGroupId"] = "foreign".into();
        message["MessageDeduplicationId"] = uuid::Uuid::now_v7().to_string().into();
    }
    call(endpoint, "AmazonSQS.SendMessage", &message).await.map(drop)
}

/// Puts a message that nobody can decode into the queue of an address (`queue=`, `fifo=`): our own attributes, with other
/// types and in broken forms.
///
/// # Errors
/// As [`call`].
pub async fn put_undecodable(endpoint: String, to: Address) -> throughline_core::Result<()> {
    let queue = to.option("queue").unwrap_or_default();
    let ending = if to.option("fifo") == Some("true") { ".fifo" } else { "" };
    let text = |text: &str| json!({ "DataType": "String", "StringValue": text });
    let attributes = json!({
        "tl-headers": text("{\"h\":[["),
        "tl-body": text("rot13"),
        "tl-id": { "DataType": "Number", "StringValue": "7" },
        "tl-type": { "DataType": "Binary", "BinaryValue": "/wA=" },
        "content-type": { "DataType": "Binary", "BinaryValue": "/wA=" },
        "traceparent": { "DataType": "Number", "StringValue": "7" },
        "tracestate": { "DataType": "Binary", "BinaryValue": "/wA=" },
    });
    let sent = send(&endpoint, &format!("{queue}{ending}"), "foreign", attributes).await;
    sent.map_err(|error| Error::new(ErrorKind::Internal, error))
}
