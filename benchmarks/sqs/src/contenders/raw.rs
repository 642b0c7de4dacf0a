//! The SDK used well: batches of ten, eight requests at once, each from a task of its own; the next request for messages is
//! made while the last ones are deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use throughline_sqs::aws_sdk_sqs::Client;
use throughline_sqs::aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, Message, MessageAttributeValue, MessageSystemAttributeName,
    SendMessageBatchRequestEntry,
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Contender;
use crate::load::{BATCH, CALLS, Load, POLL, Span, Stopwatch};

pub(crate) struct Raw;

/// What an application would set: an id and a type.
pub(super) fn attributes() -> Result<[(&'static str, MessageAttributeValue); 2]> {
    let text = |text: String| MessageAttributeValue::builder().data_type("String").string_value(text).build();
    Ok([("id", text(Uuid::now_v7().to_string())?), ("type", text("bench".to_owned())?)])
}

fn entry(place: usize, body: &str) -> Result<SendMessageBatchRequestEntry> {
    let entry = SendMessageBatchRequestEntry::builder().id(place.to_string()).message_body(body);
    let entry =
        attributes()?.into_iter().fold(entry, |entry, (name, value)| entry.message_attributes(name, value));
    Ok(entry.build()?)
}

/// Takes up to so many of what is left to do.
pub(super) fn take(left: &AtomicUsize, most: usize) -> usize {
    let before =
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(most)));
    before.map_or(0, |before| before.min(most))
}

pub(super) async fn finish(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// Asks for messages with all that they carry, as whoever wants trace context must.
pub(super) async fn receive(client: &Client, url: &str, most: usize) -> Result<Vec<Message>> {
    let request = client
        .receive_message()
        .queue_url(url)
        .max_number_of_messages(i32::try_from(most)?)
        .wait_time_seconds(i32::try_from(POLL.as_secs())?)
        .message_attribute_names("All")
        .message_system_attribute_names(MessageSystemAttributeName::All);
    Ok(request.send().await?.messages.unwrap_or_default())
}

async fn delete(client: &Client, url: &str, messages: &[Message]) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let entry = |(place, message): (usize, &Message)| {
        DeleteMessageBatchRequestEntry::builder()
            .id(place.to_string())
            .set_receipt_handle(message.receipt_handle.clone())
            .build()
    };
    let entries = messages.iter().enumerate().map(entry).collect::<Result<_, _>>()?;
    let answer = client.delete_message_batch().queue_url(url).set_entries(Some(entries)).send().await?;
    ensure!(answer.failed.is_empty(), "a delete was refused");
    Ok(())
}

#[async_trait]
impl Contender for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    async fn publish(&self, load: &Load) -> Result<Span> {
        let (client, url) = (load.client().await?, load.url().await?);
        let body = String::from_utf8(load.body.to_vec())?;
        let left = Arc::new(AtomicUsize::new(load.messages));
        let watch = Stopwatch::start();
        let mut tasks = JoinSet::new();
        for _ in 0..CALLS {
            let (client, url, body, left) = (client.clone(), url.clone(), body.clone(), left.clone());
            tasks.spawn(async move {
                loop {
                    let count = take(&left, BATCH);
                    if count == 0 {
                        return Ok(());
                    }
                    let entries = (0..count).map(|place| entry(place, &body)).collect::<Result<_>>()?;
                    let request = client.send_message_batch().queue_url(&url).set_entries(Some(entries));
                    let answer = request.send().await?;
                    ensure!(answer.successful.len() == count, "a message was refused");
                }
            });
        }
        finish(tasks).await?;
        Ok(watch.stop())
    }

    async fn consume(&self, load: &Load) -> Result<Span> {
        let (client, url) = (load.client().await?, load.url().await?);
        let left = Arc::new(AtomicUsize::new(load.messages));
        let bytes = load.body.len();
        let watch = Stopwatch::start();
        let mut tasks = JoinSet::new();
        for _ in 0..CALLS {
            let (client, url, left) = (client.clone(), url.clone(), left.clone());
            tasks.spawn(async move {
                let mut messages = Vec::new();
                loop {
                    let count = take(&left, BATCH);
                    if count == 0 {
                        return delete(&client, &url, &messages).await;
                    }
                    let (received, deleted) =
                        tokio::join!(receive(&client, &url, count), delete(&client, &url, &messages));
                    deleted?;
                    messages = received?;
                    // What another request was faster with is still to be received.
                    left.fetch_add(count - messages.len(), Ordering::Relaxed);
                    let is_whole = |m: &Message| m.body.as_ref().is_some_and(|body| body.len() == bytes);
                    ensure!(messages.iter().all(is_whole), "a message is not as it was sent");
                }
            });
        }
        finish(tasks).await?;
        Ok(watch.stop())
    }
}
