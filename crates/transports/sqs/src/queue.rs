//! A queue that has been looked up.

use std::collections::HashMap;
use std::str::FromStr;

use aws_sdk_sqs::types::QueueAttributeName;
use opentelemetry::KeyValue;
use throughline_aws::codec::payload_limit;
use throughline_aws::error;
use throughline_core::driver::Endpoint;
use throughline_core::{Capabilities, Error, ErrorKind, Result, capabilities};

use crate::config::{Destination, QueueName};
use crate::transport::Shared;

/// How large a message may be where the queue does not say, in bytes.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
const MAX_MESSAGE: usize = 1_048_576;

/// A queue that exists.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) is_fifo: bool,
    /// What SQS says of it; empty where that is forbidden.
    attributes: HashMap<QueueAttributeName, String>,
}

impl Queue {
    /// Looks a destination's queue up; a missing one is `NotFound`, with the command that makes it.
    pub(crate) async fn find(shared: &Shared, destination: &Destination) -> Result<Self> {
        Self::open(shared, &destination.queue).await.map_err(|error| {
            if error.kind() != ErrorKind::NotFound {
                return error;
            }
            let (name, region) = (destination.queue.name(), &shared.connection.region);
            let hint = destination.hint();
            let text =
                format!("there is no queue '{name}' in {region}; is that the region? Make it with: {hint}");
            Error::new(ErrorKind::NotFound, text)
        })
    }

    /// Looks a queue up by its name.
    pub(crate) async fn open(shared: &Shared, queue: &QueueName) -> Result<Self> {
        let url = url(shared, queue).await?;
        let asked =
            shared.admin.get_queue_attributes().queue_url(&url).attribute_names(QueueAttributeName::All);
        let attributes = match asked.send().await.map_err(error::of_request) {
            Ok(answer) => answer.attributes.unwrap_or_default(),
            // Who may only send or only receive may still do that.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => HashMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { url, name: queue.name().to_owned(), is_fifo: queue.is_fifo(), attributes })
    }

    /// One of its attributes, where SQS says it in this form.
    pub(crate) fn attribute<T: FromStr>(&self, name: &QueueAttributeName) -> Option<T> {
        self.attributes.get(name)?.parse().ok()
    }

    /// The queue that its redrive policy names.
    pub(crate) fn redrive(&self) -> Option<Redrive> {
        let policy: String = self.attribute(&QueueAttributeName::RedrivePolicy)?;
        let policy: serde_json::Value = serde_json::from_str(&policy).ok()?;
        let arn = policy.get("deadLetterTargetArn")?.as_str()?.to_owned();
        // A number, and with some tools a text.
        let max = policy.get("maxReceiveCount")?;
        let max = max.as_u64().or_else(|| max.as_str()?.parse().ok())?;
        Some(Redrive { arn, max })
    }

    /// What it can do.
    pub(crate) fn capabilities(&self) -> Capabilities {
        let mut capabilities = if self.is_fifo { capabilities::SQS_FIFO } else { capabilities::SQS };
        capabilities.limits.payload_bytes = Some(payload_limit(self.limit()));
        capabilities
    }

    /// How large a message may be, attributes included, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.attribute(&QueueAttributeName::MaximumMessageSize).unwrap_or(MAX_MESSAGE)
    }

    /// What it is called in spans.
    pub(crate) fn endpoint(&self, shared: &Shared) -> Endpoint {
        Endpoint {
            destination: self.name.clone(),
            server: Some(shared.connection.server.clone()),
            attributes: vec![KeyValue::new("aws.sqs.queue.url", self.url.clone())],
        }
    }
}

/// A redrive policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redrive {
    /// The dead-letter queue.
    pub(crate) arn: String,
    /// After so many receipts a message is moved there.
    pub(crate) max: u64,
}

impl Redrive {
    /// The dead-letter queue, by its ARN.
    pub(crate) fn queue(&self) -> Option<QueueName> {
        match self.arn.split(':').collect::<Vec<_>>()[..] {
            [_, _, _, region, account, name] => Some(QueueName::Arn {
                region: region.to_owned(),
                account: account.to_owned(),
                name: name.to_owned(),
            }),
            _ => None,
        }
    }
}

/// The queue's URL.
pub(crate) async fn url(shared: &Shared, queue: &QueueName) -> Result<String> {
    let (name, account) = match queue {
        QueueName::Url(url) => return Ok(url.clone()),
        QueueName::Name(name) => (name, None),
        QueueName::Arn { region, account, name } => {
            if *region != shared.connection.region {
                return Err(Error::new(
                    ErrorKind::InvalidAddress,
                    format!(
                        "the queue is in {region}, and this connection is for {}; connect another to it, with ?region={region}",
                        shared.connection.region
                    ),
                ));
            }
            (name, Some(account.clone()))
        }
    };
    let asked = shared.admin.get_queue_url().queue_name(name).set_queue_owner_aws_account_id(account);
    let answer = asked.send().await.map_err(error::of_request)?;
    answer.queue_url.ok_or_else(|| Error::new(ErrorKind::Internal, "AWS gave no URL of the queue"))
}
