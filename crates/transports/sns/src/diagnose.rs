//! What is there, and what is wrong with it: the topic, the subscription, then the queue.

use throughline_aws::error;
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis, Finding, Remedy, Server, Severity};
use throughline_core::{ErrorKind, Result, capabilities};
use throughline_sqs::source::Sender;

use crate::admin;
use crate::config::Destination;
use crate::transport::Shared;

/// Looks at all that an address names.
pub(crate) async fn diagnose(
    shared: &Shared,
    destination: &Destination,
    options: &DiagnoseOptions,
) -> Result<Diagnosis> {
    let server = Server { product: "Amazon SNS, or what answers in its place".to_owned(), version: None };
    let mut diagnosis = Diagnosis::new(&destination.address, server);
    let capabilities = if destination.is_fifo() { capabilities::SNS_FIFO } else { capabilities::SNS };
    let subject = format!("topic '{}'", destination.topic);
    let topic = admin::look_up(shared, destination).await?;
    match &topic {
        Some(arn) => {
            diagnosis.publisher = Some(capabilities.clone());
            diagnosis.fact(&subject, "ARN", arn.clone());
            diagnosis.fact(&subject, "FIFO", destination.is_fifo());
        }
        None => diagnosis.findings.push(Finding {
            severity: Severity::Error,
            code: "topic-missing",
            subject: subject.clone(),
            what: format!("there is no such topic in {}", shared.connection.region),
            why: "publishing fails with NotFound".to_owned(),
            remedy: Remedy::text("create it, or name its region").command(destination.hint()),
        }),
    }
    if destination.has_queue() {
        let queue = destination.queue();
        shared.queues.diagnose(&queue, options, capabilities, &mut diagnosis).await?;
        if let (Some(topic), Some(arn)) = (&topic, shared.queues.arn(&queue).await?) {
            let all = admin::subscriptions(shared, topic).await?;
            let subscription = all.iter().find(|(endpoint, _)| *endpoint == arn).map(|(_, arn)| arn);
            let sender = Sender { service: "sns.amazonaws.com", arn: topic };
            let lets_in = match shared.queues.lets_in(&queue, &sender).await {
                Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
                other => other.unwrap_or(None),
            };
            if let Some(subscription) = subscription {
                raw(shared, subscription, destination, &mut diagnosis).await?;
            }
            let what = [
                (subscription.is_none(), "not-subscribed", "it is not subscribed to the topic"),
                (lets_in == Some(false), "topic-not-let-in", "its policy does not let the topic send to it"),
            ];
            for (_, code, what) in what.into_iter().filter(|(is_so, ..)| *is_so) {
                diagnosis.findings.push(Finding {
                    severity: Severity::Error,
                    code,
                    subject: format!("queue '{arn}'"),
                    what: what.to_owned(),
                    why: "what is published never comes here, and nobody is told".to_owned(),
                    remedy: Remedy::text("create the subscription").command(destination.hint()),
                });
            }
        }
    }
    diagnosis.sort();
    Ok(diagnosis)
}

/// Says what raw delivery does to messages of others.
async fn raw(
    shared: &Shared,
    subscription: &str,
    destination: &Destination,
    diagnosis: &mut Diagnosis,
) -> Result<()> {
    let subject = format!("subscription '{subscription}'");
    let asked = shared.admin.get_subscription_attributes().subscription_arn(subscription);
    let attributes = match asked.send().await.map_err(error::of_request) {
        Ok(answer) => answer.attributes.unwrap_or_default(),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let why = "SNS does not tell them to these credentials";
            let what = format!("the attributes of {subject}");
            diagnosis.unchecked(what, why, "allow sns:GetSubscriptionAttributes");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let is_raw = attributes.get("RawMessageDelivery").is_some_and(|raw| raw == "true");
    diagnosis.fact(&subject, "raw delivery", is_raw);
    if is_raw {
        let wrapped = destination.address.clone().with_option("raw", "false");
        diagnosis.findings.push(Finding {
            severity: Severity::Note,
            code: "raw-drops-many-attributes",
            subject,
            what: "it delivers raw".to_owned(),
            why:
                "SNS discards a message with more than ten attributes; ours have at most ten, others' may not"
                    .to_owned(),
            remedy: Remedy::text(
                "where others publish with more, delete the subscription, and create it wrapped",
            )
            .command(format!("throughline create '{wrapped}'")),
        });
    }
    Ok(())
}
