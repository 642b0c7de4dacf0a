//! What is there, and what is wrong with it: the topic, the subscription, then the queue.

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
            let sender = Sender { service: "sns.amazonaws.com", arn: topic };
            let lets_in = match shared.queues.lets_in(&queue, &sender).await {
                Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
                other => other.unwrap_or(None),
            };
            let what = [
                (
                    !all.iter().any(|(endpoint, _)| *endpoint == arn),
                    "not-subscribed",
                    "it is not subscribed to the topic",
                ),
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
