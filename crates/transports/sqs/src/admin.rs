//! Creating, deleting, purging, counting and browsing.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::{MessageSystemAttributeName, QueueAttributeName};
use throughline_aws::error;
use throughline_core::driver::{Depth, Pieces};
use throughline_core::{Error, ErrorKind, Result};

use crate::batch::{self, MAX_ENTRIES};
use crate::config::{Destination, QueueName, seconds};
use crate::message::deliver;
use crate::queue::{Queue, url};
use crate::transport::Shared;

/// After so many receipts SQS moves a message to the dead-letter queue: far above the attempts of any worker, so that
/// what fails is dead-lettered with its reason, and only what kills its consumers goes this way.
const MAX_RECEIVES: u64 = 100;
/// The longest that SQS keeps a message, in seconds: what it drops by its own rules is little.
const RETENTION: u64 = 14 * 24 * 60 * 60;
/// How long a browsed message is hidden from others, should giving it back fail, in seconds.
const BROWSED: i32 = 10;
/// How long a request for messages to browse waits, in seconds: without any, SQS looks at some of its servers only.
const BROWSE_WAIT: i32 = 1;

/// Makes a request, so that a wrong endpoint and refused credentials are told. What may not be listed is no failure.
pub(crate) async fn reach(shared: &Shared) -> Result<()> {
    match shared.admin.list_queues().max_results(1).send().await.map_err(error::of_request) {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

/// Creates what the address names: the dead-letter queue, then the queue.
pub(crate) async fn create(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let address = &destination.address;
    let visibility = seconds(address, "visibility", 0..=43_200)?;
    let retention = seconds(address, "retention", 60..=RETENTION)?;
    let delay = seconds(address, "queue_delay", 0..=900)?;
    let max_receives = address.parsed::<u64>("max_receives", "a number from 1 to 1000")?;
    if max_receives.is_some_and(|max| !(1..=1000).contains(&max)) {
        return Err(address.bad_option("max_receives", "a number from 1 to 1000"));
    }
    let mut made = Vec::new();
    let mut asked = Vec::new();
    if let Some(name) = &destination.dead_letter {
        let is_new = make(shared, name, HashMap::new(), &[]).await?;
        made.extend(is_new.then(|| format!("{} '{}' for dead letters", kind(name), name.name())));
        let arn: Option<String> = Queue::open(shared, name).await?.attribute(&QueueAttributeName::QueueArn);
        let arn = arn.ok_or_else(|| {
            Error::new(
                ErrorKind::PermissionDenied,
                "AWS does not tell the dead-letter queue's ARN (sqs:GetQueueAttributes)",
            )
        })?;
        let max = max_receives.unwrap_or(MAX_RECEIVES);
        let policy = serde_json::json!({ "deadLetterTargetArn": arn, "maxReceiveCount": max });
        asked.push((QueueAttributeName::RedrivePolicy, policy.to_string(), max_receives.is_some()));
    }
    for (name, value, default) in [
        (QueueAttributeName::VisibilityTimeout, visibility, 30),
        (QueueAttributeName::MessageRetentionPeriod, retention, RETENTION),
        (QueueAttributeName::DelaySeconds, delay, 0),
    ] {
        asked.push((name, value.unwrap_or(default).to_string(), value.is_some()));
    }
    let attributes = asked.iter().map(|(name, value, _)| (name.clone(), value.clone())).collect();
    asked.retain(|(name, _, said)| *said || *name == QueueAttributeName::RedrivePolicy);
    let is_new = make(shared, &destination.queue, attributes, &asked).await?;
    made.extend(is_new.then(|| format!("{} '{}'", kind(&destination.queue), destination.queue.name())));
    Ok(made)
}

fn kind(queue: &QueueName) -> &'static str {
    if queue.is_fifo() { "FIFO queue" } else { "queue" }
}

/// Makes a queue; says whether it is new. One that is there must have what was asked for.
async fn make(
    shared: &Shared,
    name: &QueueName,
    mut attributes: HashMap<QueueAttributeName, String>,
    must_match: &[(QueueAttributeName, String, bool)],
) -> Result<bool> {
    match Queue::open(shared, name).await {
        Ok(queue) => {
            for (attribute, wanted, exactly) in must_match {
                check_same(&queue, attribute, wanted, *exactly)?;
            }
            return Ok(false);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Consumers that do not say how long they wait should not ask in vain, either.
    attributes.insert(QueueAttributeName::ReceiveMessageWaitTimeSeconds, "20".to_owned());
    attributes.entry(QueueAttributeName::MessageRetentionPeriod).or_insert_with(|| RETENTION.to_string());
    if name.is_fifo() {
        attributes.insert(QueueAttributeName::FifoQueue, "true".to_owned());
    }
    let request = shared.admin.create_queue().queue_name(name.name()).set_attributes(Some(attributes));
    request.send().await.map_err(error::of_request)?;
    Ok(true)
}

fn check_same(queue: &Queue, attribute: &QueueAttributeName, wanted: &str, exactly: bool) -> Result<()> {
    let conflict = |is: String| {
        let text = format!("queue '{}' exists with {}={is}, not {wanted}", queue.name, attribute.as_str());
        Err(Error::new(ErrorKind::Conflict, text))
    };
    if *attribute != QueueAttributeName::RedrivePolicy {
        return match queue.attribute::<String>(attribute) {
            Some(is) if is != wanted => conflict(is),
            _ => Ok(()),
        };
    }
    let wanted: serde_json::Value = serde_json::from_str(wanted).unwrap_or_default();
    let is = queue.redrive();
    let (arn, max) = (wanted.get("deadLetterTargetArn"), wanted.get("maxReceiveCount"));
    let same = is.as_ref().is_some_and(|is| {
        arn.and_then(|arn| arn.as_str()) == Some(&is.arn)
            && (!exactly || max.and_then(serde_json::Value::as_u64) == Some(is.max))
    });
    if same {
        return Ok(());
    }
    conflict(is.map_or_else(|| "none".to_owned(), |is| format!("{} after {}", is.arn, is.max)))
}

/// Deletes the queue; its dead-letter queue is left, with what is in it.
pub(crate) async fn delete(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let queue = match url(shared, &destination.queue).await {
        Ok(url) => url,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    match shared.admin.delete_queue().queue_url(queue).send().await.map_err(error::of_request) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut deleted = vec![format!("{} '{}'", kind(&destination.queue), destination.queue.name())];
    if let Some(dead_letter) = &destination.dead_letter {
        deleted.push(format!(
            "not the dead-letter queue '{}': delete it by its own address",
            dead_letter.name()
        ));
    }
    Ok(deleted)
}

/// Deletes the messages, those in flight, too; gives how many were ready, as SQS counts.
pub(crate) async fn purge(shared: &Shared, destination: &Destination) -> Result<u64> {
    let queue = Queue::find(shared, destination).await?;
    shared.admin.purge_queue().queue_url(&queue.url).send().await.map_err(error::of_request)?;
    Ok(ready(&queue))
}

fn ready(queue: &Queue) -> u64 {
    queue.attribute(&QueueAttributeName::ApproximateNumberOfMessages).unwrap_or(0)
}

/// Counts the messages, as SQS does.
pub(crate) async fn depth(shared: &Shared, destination: &Destination) -> Result<Depth> {
    let queue = Queue::find(shared, destination).await?;
    Ok(Depth {
        ready: ready(&queue),
        unsettled: queue.attribute(&QueueAttributeName::ApproximateNumberOfMessagesNotVisible),
        delayed: queue.attribute(&QueueAttributeName::ApproximateNumberOfMessagesDelayed),
    })
}

/// Receives messages, and gives them back.
pub(crate) async fn browse(
    shared: &Arc<Shared>,
    destination: &Destination,
    max: NonZeroUsize,
    mut pieces: Pieces,
) -> Result<()> {
    let queue = Queue::find(shared, destination).await?;
    // By its id: what is hidden for too short a time to read the rest comes again.
    let mut seen = HashSet::new();
    let mut handles = Vec::new();
    let mut failed = None;
    'read: while seen.len() < max.get() {
        let most = (max.get() - seen.len()).min(MAX_ENTRIES);
        let request = shared
            .receiving
            .receive_message()
            .queue_url(&queue.url)
            .max_number_of_messages(i32::try_from(most).unwrap_or(1))
            .visibility_timeout(BROWSED)
            .wait_time_seconds(BROWSE_WAIT)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All);
        let messages = match request.send().await.map_err(error::of_request) {
            Ok(answer) => answer.messages.unwrap_or_default(),
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        let mut is_new = false;
        for message in messages {
            let id = message.message_id.clone().unwrap_or_default();
            let delivered = deliver(message, seen.len() as u64, |_| None);
            handles.push((delivered.native.receipt_handle.clone(), 0));
            if seen.insert(id) {
                is_new = true;
                if !pieces.add(delivered.delivery).await {
                    break 'read;
                }
            }
        }
        if !is_new {
            break;
        }
    }
    for answer in batch::set_visibility(shared, &queue.url, handles).await {
        if let Err(error) = answer {
            let hidden = Duration::from_secs(BROWSED.unsigned_abs().into());
            tracing::warn!(%error, ?hidden, "a browsed message could not be given back");
        }
    }
    pieces.finish().await;
    failed.map_or(Ok(()), Err)
}
