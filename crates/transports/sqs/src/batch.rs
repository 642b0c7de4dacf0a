//! Batches of ten, with an answer for each entry.

use std::future::Future;
use std::sync::Arc;

use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
    MessageAttributeValue, SendMessageBatchRequestEntry,
};
use futures_util::StreamExt;
use throughline_aws::error;
use throughline_core::driver::Receipt;
use throughline_core::{Error, ErrorKind, Result, Retry};

use crate::transport::Shared;

/// How many entries a request may have.
pub(crate) const MAX_ENTRIES: usize = 10;
/// A batch of so many bytes every endpoint takes.
const ALWAYS_TAKEN: usize = 128 * 1024;
/// How many requests of one call are under way at once: a hundred settlements, as many as the portable layer collects.
const CALLS: usize = 10;

/// Deletes messages by their receipts, with an answer for each, in order.
pub(crate) async fn delete(shared: &Arc<Shared>, url: &str, handles: Vec<String>) -> Vec<Result<()>> {
    in_chunks(shared, url, handles, |shared, url, handles| async move {
        let len = handles.len();
        let entries = handles.into_iter().enumerate().filter_map(|(index, handle)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(handle)
                .build()
                .ok()
        });
        let entries = entries.collect();
        let request = shared.client.delete_message_batch().queue_url(url).set_entries(Some(entries));
        match request.send().await {
            Ok(answer) => {
                let done = answer.successful.into_iter().map(|entry| (entry.id, ()));
                answers(len, done, answer.failed)
            }
            Err(error) => all_failed(len, &settling(error::of_request(error))),
        }
    })
    .await
}

/// Sets how many seconds from now messages become visible again, with an answer for each, in order.
pub(crate) async fn set_visibility(
    shared: &Arc<Shared>,
    url: &str,
    handles: Vec<(String, i32)>,
) -> Vec<Result<()>> {
    in_chunks(shared, url, handles, |shared, url, handles| async move {
        let len = handles.len();
        let entries = handles.into_iter().enumerate().filter_map(|(index, (handle, seconds))| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(handle)
                .visibility_timeout(seconds)
                .build()
                .ok()
        });
        let entries = entries.collect();
        let request =
            shared.client.change_message_visibility_batch().queue_url(url).set_entries(Some(entries));
        match request.send().await {
            Ok(answer) => {
                let done = answer.successful.into_iter().map(|entry| (entry.id, ()));
                answers(len, done, answer.failed)
            }
            Err(error) => all_failed(len, &settling(error::of_request(error))),
        }
    })
    .await
}

/// Sends at most [`MAX_ENTRIES`] messages, whose ids are their places, with an answer for each, in order.
pub(crate) async fn send(
    shared: &Shared,
    url: &str,
    mut entries: Vec<SendMessageBatchRequestEntry>,
) -> Vec<Result<Receipt>> {
    let len = entries.len();
    for (index, entry) in entries.iter_mut().enumerate() {
        entry.id = index.to_string();
    }
    // Where the total is more than this endpoint takes (it was 256 KiB for years), the halves go one after the other.
    let halves = (len > 1 && entries.iter().map(size).sum::<usize>() > ALWAYS_TAKEN).then(|| entries.clone());
    let request = shared.client.send_message_batch().queue_url(url).set_entries(Some(entries));
    match request.send().await.map_err(error::of_request) {
        Ok(answer) => {
            let done = answer
                .successful
                .into_iter()
                .map(|entry| (entry.id, Receipt::with_native_id(entry.message_id)));
            answers(len, done, answer.failed)
        }
        Err(error) if error.kind() == ErrorKind::LimitExceeded => match halves {
            Some(mut first) => {
                let second = first.split_off(len / 2);
                let mut results = Box::pin(send(shared, url, first)).await;
                results.extend(Box::pin(send(shared, url, second)).await);
                results
            }
            None => all_failed(len, &error),
        },
        Err(error) => all_failed(len, &error),
    }
}

/// What counts for the limit of a batch, in bytes; names and types of attributes, which are little, left out.
fn size(entry: &SendMessageBatchRequestEntry) -> usize {
    let of = |value: &MessageAttributeValue| {
        value.string_value().map_or(0, str::len) + value.binary_value().map_or(0, |blob| blob.as_ref().len())
    };
    entry.message_body.len()
        + entry.message_attributes().into_iter().flat_map(|all| all.values()).map(of).sum::<usize>()
}

/// Settling the same message twice does no harm.
fn settling(error: Error) -> Error {
    if error.retry() == Retry::Uncertain { error.with_retry(Retry::Safe) } else { error }
}

/// Ten at a time, some requests at once, each in a task of its own: a request is work for a processor, too.
async fn in_chunks<T, F>(
    shared: &Arc<Shared>,
    url: &str,
    items: Vec<T>,
    call: impl Fn(Arc<Shared>, String, Vec<T>) -> F,
) -> Vec<Result<()>>
where
    F: Future<Output = Vec<Result<()>>> + Send + 'static,
{
    let mut chunks = Vec::with_capacity(items.len() / MAX_ENTRIES + 1);
    let mut items = items.into_iter();
    loop {
        let chunk: Vec<T> = items.by_ref().take(MAX_ENTRIES).collect();
        if chunk.is_empty() {
            break;
        }
        let (len, call) = (chunk.len(), call(shared.clone(), url.to_owned(), chunk));
        chunks.push(async move {
            let failed = |error| {
                let error =
                    Error::new(ErrorKind::Internal, "the task of a request failed").with_source(error);
                all_failed(len, &error)
            };
            tokio::spawn(call).await.unwrap_or_else(failed)
        });
    }
    let results: Vec<_> = futures_util::stream::iter(chunks).buffered(CALLS).collect().await;
    results.into_iter().flatten().collect()
}

/// The answers by place: each entry is named either among the successful or among the failed.
fn answers<T>(
    len: usize,
    done: impl Iterator<Item = (String, T)>,
    failed: Vec<BatchResultErrorEntry>,
) -> Vec<Result<T>> {
    let mut answers: Vec<Option<Result<T>>> = (0..len).map(|_| None).collect();
    let failed = failed.into_iter().map(|entry| {
        let message = entry.message.unwrap_or_default();
        (entry.id, Err(error::of_entry(&entry.code, &message, entry.sender_fault)))
    });
    for (id, answer) in done.map(|(id, done)| (id, Ok(done))).chain(failed) {
        if let Some(place) = id.parse().ok().and_then(|index: usize| answers.get_mut(index)) {
            *place = Some(answer);
        }
    }
    answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(unanswered()))).collect()
}

fn unanswered() -> Error {
    Error::new(ErrorKind::Internal, "AWS answered the request, but not for this message")
        .with_retry(Retry::Uncertain)
}

fn all_failed<T>(len: usize, error: &Error) -> Vec<Result<T>> {
    (0..len).map(|_| Err(error.clone())).collect()
}
