//! Queues as the place where another transport's messages arrive: what `sns` and `eventbridge` consume from.
//!
//! Addresses are the other transport's own; of them only the options `queue`, `dead_letter`, `fifo`, `receivers` and those of
//! `create` are read here.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};
use throughline_aws::error;
use throughline_aws::settings::{Connection, bad};
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis};
use throughline_core::driver::{self, Depth, Pieces, Place, Sibling};
use throughline_core::{Address, Capabilities, ConsumeOptions, Error, ErrorKind, Result};

use crate::admin;
use crate::config::{self, Destination, QueueName};
use crate::consumer::Consumer;
use crate::diagnose;
use crate::queue::Queue;
use crate::transport::Shared;

pub use crate::config::{QUEUE_OPTIONS, check_name};

/// The queues of one connection.
#[derive(Clone)]
pub struct Queues(Arc<Shared>);

/// Who may send to a queue, for its policy.
#[derive(Clone, Debug)]
pub struct Sender<'a> {
    /// Such as `sns.amazonaws.com`.
    pub service: &'a str,
    /// The topic's or rule's ARN.
    pub arn: &'a str,
}

impl Queues {
    /// The queues that a connection reaches.
    pub fn new(connection: Connection) -> Self {
        Self(Arc::new(Shared::new(connection)))
    }

    /// Whether an address's queue, if it names one, is a FIFO queue.
    ///
    /// # Errors
    /// `InvalidAddress`.
    pub fn is_fifo(address: &Address) -> Result<bool> {
        config::is_fifo(address)
    }

    /// Opens the queue of an address for consuming, with these capabilities but for the queue's own limits.
    ///
    /// # Errors
    /// `InvalidAddress` without a queue, `NotFound` with the command that makes it.
    pub async fn consumer(
        &self,
        from: &Address,
        options: &ConsumeOptions,
        capabilities: Capabilities,
    ) -> Result<Arc<dyn driver::Consumer>> {
        let destination = named(from)?;
        let consumer = Consumer::open_as(self.0.clone(), &destination, options, Some(capabilities)).await?;
        Ok(Arc::new(consumer))
    }

    /// Creates the queue of an address, and lets a sender send to it. Gives its ARN, and what was made, one line each.
    ///
    /// # Errors
    /// As `driver::Transport::create`.
    pub async fn create(&self, address: &Address, sender: &Sender<'_>) -> Result<(String, Vec<String>)> {
        let destination = named(address)?;
        let mut made = admin::create(&self.0, &destination).await?;
        let queue = Queue::find(&self.0, &destination).await?;
        let arn: String = queue.attribute(&QueueAttributeName::QueueArn).ok_or_else(|| {
            Error::new(
                ErrorKind::PermissionDenied,
                "AWS does not tell the queue's ARN (sqs:GetQueueAttributes)",
            )
        })?;
        let policy = queue.attribute::<String>(&QueueAttributeName::Policy);
        if let Some(policy) = with_sender(policy.as_deref(), &arn, sender) {
            let request = self.0.admin.set_queue_attributes().queue_url(&queue.url);
            let request = request.attributes(QueueAttributeName::Policy, policy);
            request.send().await.map_err(error::of_request)?;
            made.push(format!("permission of {} to send to queue '{}'", sender.arn, queue.name));
        }
        Ok((arn, made))
    }

    /// Whether a queue's policy says that a sender may send to it; `None` where that cannot be seen.
    ///
    /// # Errors
    /// What asking fails with.
    pub async fn lets_in(&self, address: &Address, sender: &Sender<'_>) -> Result<Option<bool>> {
        let queue = Queue::open(&self.0, &named(address)?.queue).await?;
        if queue.attribute::<String>(&QueueAttributeName::QueueArn).is_none() {
            return Ok(None);
        }
        let policy = queue.attribute::<String>(&QueueAttributeName::Policy).unwrap_or_default();
        Ok(Some(policy.contains(sender.service) || policy.contains(sender.arn)))
    }

    /// The ARN of an address's queue; `None` where there is no such queue.
    ///
    /// # Errors
    /// What asking fails with.
    pub async fn arn(&self, address: &Address) -> Result<Option<String>> {
        match Queue::open(&self.0, &named(address)?.queue).await {
            Ok(queue) => Ok(queue.attribute(&QueueAttributeName::QueueArn)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes the queue of an address, as the `sqs` transport does.
    ///
    /// # Errors
    /// What asking fails with; a missing queue is none.
    pub async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        admin::delete(&self.0, &named(address)?).await
    }

    /// Deletes the messages of an address's queue.
    ///
    /// # Errors
    /// `NotFound`, and what asking fails with.
    pub async fn purge(&self, address: &Address) -> Result<u64> {
        admin::purge(&self.0, &named(address)?).await
    }

    /// Counts the messages of an address's queue.
    ///
    /// # Errors
    /// `NotFound`, and what asking fails with.
    pub async fn depth(&self, address: &Address) -> Result<Depth> {
        admin::depth(&self.0, &named(address)?).await
    }

    /// Receives messages of an address's queue and gives them back.
    ///
    /// # Errors
    /// `NotFound`, and what asking fails with.
    pub async fn browse_into(&self, address: &Address, max: NonZeroUsize, pieces: Pieces) -> Result<()> {
        admin::browse(&self.0, &named(address)?, max, pieces).await
    }

    /// Adds what is to be said of an address's queue, which messages with these capabilities fill.
    ///
    /// # Errors
    /// What asking fails with; a missing queue is a finding.
    pub async fn diagnose(
        &self,
        address: &Address,
        options: &DiagnoseOptions,
        capabilities: Capabilities,
        diagnosis: &mut Diagnosis,
    ) -> Result<()> {
        diagnose::look(&self.0, &named(address)?, options, Some(capabilities), diagnosis).await
    }

    /// Gives up the requests that still wait for messages, after a moment.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queues").field(&self.0.connection).finish()
    }
}

/// Another place that fills a queue, of the same connection: `place` is the option that names it (`topic`). A work queue is
/// one with one queue of the same name.
pub fn sibling(of: &Address, sibling: &Sibling<'_>, place: &str) -> Address {
    let (name, queue) = match sibling.place {
        Place::Queue(name) => (name, Some(name)),
        Place::Topic { topic, subscription } => (topic, subscription),
    };
    let mut address = of.clone().without_options(&[place, "queue", "dead_letter"]).with_option(place, name);
    for (name, value) in [("queue", queue), ("dead_letter", sibling.dead_letter)] {
        address = value.into_iter().fold(address, |address, value| address.with_option(name, value));
    }
    address
}

fn named(address: &Address) -> Result<Destination> {
    if address.option("queue").is_none_or(str::is_empty) {
        return Err(bad(address, "names no queue to consume from; add ?queue=NAME"));
    }
    let destination = Destination::of(address)?;
    match destination.queue {
        QueueName::Url(_) => Err(bad(address, "name the queue, or give its ARN, in place of its URL")),
        _ => Ok(destination),
    }
}

/// The policy with a statement that lets the sender send, or `None` where there is one.
fn with_sender(policy: Option<&str>, queue: &str, sender: &Sender<'_>) -> Option<String> {
    let empty = || json!({ "Version": "2012-10-17", "Statement": [] });
    let mut policy: Value = policy.and_then(|policy| serde_json::from_str(policy).ok()).unwrap_or_else(empty);
    let statement = json!({
        "Effect": "Allow",
        "Principal": { "Service": sender.service },
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": { "ArnEquals": { "aws:SourceArn": sender.arn } },
    });
    let statements = policy.as_object_mut()?.entry("Statement").or_insert_with(|| json!([]));
    match statements {
        Value::Array(statements) if statements.contains(&statement) => None,
        Value::Array(statements) => {
            statements.push(statement);
            Some(policy.to_string())
        }
        // One statement may stand without a list.
        one => {
            *one = json!([one.take(), statement]);
            Some(policy.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_senders_permission_is_added_once_and_others_stay() {
        let sns = Sender { service: "sns.amazonaws.com", arn: "arn:aws:sns:r:1:t" };
        let once = with_sender(None, "arn:aws:sqs:r:1:q", &sns).unwrap();
        assert_eq!(with_sender(Some(&once), "arn:aws:sqs:r:1:q", &sns), None);
        let other = Sender { arn: "arn:aws:sns:r:1:u", ..sns };
        let twice = with_sender(Some(&once), "arn:aws:sqs:r:1:q", &other).unwrap();
        let policy: Value = serde_json::from_str(&twice).unwrap();
        assert_eq!(policy["Statement"].as_array().unwrap().len(), 2);
        let alone = r#"{"Statement":{"Effect":"Deny"}}"#;
        let policy: Value = serde_json::from_str(&with_sender(Some(alone), "q", &other).unwrap()).unwrap();
        assert_eq!(policy["Statement"][0]["Effect"], "Deny");
    }
}
