//! Dead letters: what was rejected, as it is sent to the dead-letter queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeName, MessageSystemAttributeNameForSends,
    MessageSystemAttributeValue, SendMessageBatchRequestEntry,
};
use throughline_aws::attribute::MAX_ATTRIBUTES;
use throughline_aws::codec::{self, DeadLetter, Hop};
use throughline_aws::group;
use throughline_aws::text::is_legal;
use throughline_core::driver::{Native, OperationId, wire};
use throughline_core::{Envelope, History, Result, Retry};
use uuid::Uuid;

use crate::batch::{self, MAX_ENTRIES};
use crate::consumer::{Entry, Source};
use crate::message::Message;
use crate::publisher::{self, check_size, unexpected};
use crate::queue::Queue;

/// A dead letter is tried so often where SQS has certainly not taken it, with a wait between, times the tries.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

/// A message that is rejected.
pub(crate) struct Reject {
    /// Its place in the batch of settlements.
    pub(crate) at: usize,
    pub(crate) tag: u64,
    pub(crate) handle: String,
    envelope: Arc<Envelope>,
    failed_attempts: u32,
    history: Arc<History>,
    /// As it came.
    native: Option<Arc<dyn Native>>,
    undecodable: Option<String>,
}

impl Source {
    /// Sends messages to the dead-letter queue, with an answer for each.
    pub(crate) async fn send_on<'a>(&self, rejects: &'a [Reject]) -> Vec<(&'a Reject, Result<()>)> {
        let Some(queue) = &self.dead_letter else { return Vec::new() };
        let mut answered = Vec::with_capacity(rejects.len());
        for chunk in rejects.chunks(MAX_ENTRIES) {
            let mut open: Vec<(&Reject, OperationId)> =
                chunk.iter().map(|reject| (reject, OperationId(Uuid::now_v7().as_u128()))).collect();
            for tries in 1..=TRIES {
                let mut sent = Vec::with_capacity(open.len());
                let mut entries = Vec::with_capacity(open.len());
                for (reject, operation) in open {
                    match reject.entry(queue, &self.queue.name, operation) {
                        Ok(entry) => {
                            entries.push(entry);
                            sent.push((reject, operation));
                        }
                        Err(error) => answered.push((reject, Err(error))),
                    }
                }
                let answers = if entries.is_empty() {
                    Vec::new()
                } else {
                    batch::send(&self.shared, &queue.url, entries).await
                };
                open = Vec::new();
                for ((reject, operation), answer) in sent.into_iter().zip(answers) {
                    match answer {
                        Err(error) if error.retry() == Retry::Safe && tries < TRIES => {
                            open.push((reject, operation));
                        }
                        answer => answered.push((reject, answer.map(drop))),
                    }
                }
                if open.is_empty() {
                    break;
                }
                tokio::time::sleep(PAUSE * tries).await;
            }
        }
        answered
    }
}

impl Reject {
    pub(crate) fn new(at: usize, tag: u64, entry: &Entry, history: Arc<History>) -> Self {
        Self {
            at,
            tag,
            handle: entry.native.receipt_handle.clone(),
            envelope: entry.delivery.envelope.clone(),
            failed_attempts: history.failed_attempts(entry.delivery.failed_attempts),
            history,
            native: entry.delivery.native.clone(),
            undecodable: entry.undecodable.clone(),
        }
    }

    fn reason(&self) -> String {
        self.history.last().map_or_else(|| "rejected".to_owned(), ToString::to_string)
    }

    fn native(&self) -> Option<&Message> {
        self.native.as_ref()?.as_any().downcast_ref()
    }

    fn entry(
        &self,
        queue: &Queue,
        source: &str,
        operation: OperationId,
    ) -> Result<SendMessageBatchRequestEntry> {
        if let (Some(body), Some(native)) = (&self.undecodable, self.native()) {
            return self.as_it_came(queue, source, body, native, operation);
        }
        let mut hop = Hop {
            failed_attempts: self.failed_attempts,
            history: Some(&self.history),
            dead_letter: Some(DeadLetter { source, reason: self.reason() }),
            grouped: queue.is_fifo,
            ..Hop::default()
        };
        let fits =
            |hop: &Hop<'_>| check_size(codec::encode(&self.envelope, hop).size(), queue.limit()).is_ok();
        if !fits(&hop) {
            // A message that was at the limit before has no room for its history.
            tracing::warn!("no room in the message for the history of failures: dead-lettered without it");
            hop.history = None;
        }
        if !fits(&hop) {
            let body = std::str::from_utf8(self.envelope.payload.as_deref().unwrap_or_default()).ok();
            let foreign = self.native().filter(|native| native.is_foreign(&self.envelope));
            if let (Some(body), Some(native)) = (body, foreign) {
                // Nor for what ours have besides.
                return self.as_it_came(queue, source, body, native, operation);
            }
            hop = Hop { grouped: queue.is_fifo, ..Hop::default() };
        }
        publisher::entry(queue, &self.envelope, operation, &hop)
    }

    /// The body and the attributes as they came, and the reason and the source where there is room for them.
    fn as_it_came(
        &self,
        queue: &Queue,
        source: &str,
        body: &str,
        native: &Message,
        operation: OperationId,
    ) -> Result<SendMessageBatchRequestEntry> {
        let mut attributes = native.attributes.clone();
        let size = |attributes: &HashMap<String, MessageAttributeValue>| {
            body.len() + attributes.iter().map(size).sum::<usize>()
        };
        for (name, text) in [(wire::DEAD_LETTER_REASON, &*self.reason()), (wire::DEAD_LETTER_SOURCE, source)]
        {
            let mut more = attributes.clone();
            let value = MessageAttributeValue::builder().data_type("String").string_value(text).build();
            more.insert(name.to_owned(), value.map_err(unexpected)?);
            let fits = more.len() <= MAX_ATTRIBUTES && check_size(size(&more), queue.limit()).is_ok();
            if fits && !text.is_empty() && is_legal(text) {
                attributes = more;
            }
        }
        let mut entry = SendMessageBatchRequestEntry::builder().id("0").message_body(body);
        entry = entry.set_message_attributes(Some(attributes).filter(|attributes| !attributes.is_empty()));
        let system = |name| native.system_attributes.get(&name);
        if let Some(xray) = system(MessageSystemAttributeName::AwsTraceHeader) {
            let value = MessageSystemAttributeValue::builder().data_type("String").string_value(xray);
            let value = value.build().map_err(unexpected)?;
            entry =
                entry.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, value);
        }
        if queue.is_fifo {
            let same = system(MessageSystemAttributeName::MessageGroupId).cloned();
            entry = entry
                .message_group_id(same.unwrap_or_else(|| group::of(None, operation)))
                .message_deduplication_id(operation.to_string());
        }
        entry.build().map_err(unexpected)
    }
}

/// What an attribute counts for in a message's size, in bytes.
fn size((name, value): (&String, &MessageAttributeValue)) -> usize {
    let text = value.string_value().map_or(0, str::len);
    name.len() + value.data_type().len() + text + value.binary_value().map_or(0, |bytes| bytes.as_ref().len())
}
