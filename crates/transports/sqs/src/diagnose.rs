//! What is there, and what is wrong with it.

use aws_sdk_sqs::types::QueueAttributeName;
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis, Finding, Remedy, Server, Severity};
use throughline_core::{Capabilities, ErrorKind, Result};

use crate::config::Destination;
use crate::queue::Queue;
use crate::transport::Shared;

/// A redrive policy that moves messages after fewer receipts comes before a usual worker's last attempt.
const FEW_RECEIVES: u64 = 10;

/// Who answers. AWS has no version; an emulator does not say what it is.
pub(crate) fn server() -> Server {
    Server { product: "Amazon SQS, or what answers in its place".to_owned(), version: None }
}

/// Looks at the queue and its dead-letter queue.
pub(crate) async fn diagnose(
    shared: &Shared,
    destination: &Destination,
    options: &DiagnoseOptions,
) -> Result<Diagnosis> {
    let mut diagnosis = Diagnosis::new(&destination.address, server());
    look(shared, destination, options, None, &mut diagnosis).await?;
    if let Some(consumer) = &diagnosis.consumer {
        diagnosis.publisher = Some(consumer.clone());
    }
    diagnosis.sort();
    Ok(diagnosis)
}

/// Adds what is to be said of the queue; with the capabilities of the transport that fills it.
pub(crate) async fn look(
    shared: &Shared,
    destination: &Destination,
    options: &DiagnoseOptions,
    capabilities: Option<Capabilities>,
    diagnosis: &mut Diagnosis,
) -> Result<()> {
    let name = destination.queue.name();
    let subject = format!("queue '{name}'");
    let queue = match Queue::open(shared, &destination.queue).await {
        Ok(queue) => queue,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            find(
                diagnosis,
                Severity::Error,
                "queue-missing",
                &subject,
                format!("there is no such queue in {}", shared.connection.region),
                "publishing and consuming fail with NotFound",
                Remedy::text("create it, or name its region").command(destination.hint()),
            );
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let attribute = |name| queue.attribute::<u64>(&name);
    if attribute(QueueAttributeName::VisibilityTimeout).is_none() {
        diagnosis.unchecked(
            format!("the attributes of {subject}"),
            "SQS does not tell them to these credentials",
            "allow sqs:GetQueueAttributes",
        );
    }
    diagnosis.consumer = Some(capabilities.unwrap_or_else(|| queue.capabilities()));
    for (name, fact) in [
        (QueueAttributeName::ApproximateNumberOfMessages, "ready"),
        (QueueAttributeName::ApproximateNumberOfMessagesNotVisible, "in flight"),
        (QueueAttributeName::ApproximateNumberOfMessagesDelayed, "delayed"),
        (QueueAttributeName::VisibilityTimeout, "visibility timeout (s)"),
        (QueueAttributeName::MessageRetentionPeriod, "retention (s)"),
        (QueueAttributeName::MaximumMessageSize, "largest message (B)"),
    ] {
        if let Some(value) = attribute(name) {
            diagnosis.fact(&subject, fact, value);
        }
    }
    diagnosis.fact(&subject, "FIFO", queue.is_fifo);
    if attribute(QueueAttributeName::ReceiveMessageWaitTimeSeconds) == Some(0) {
        find(
            diagnosis,
            Severity::Note,
            "long-poll-off",
            &subject,
            "ReceiveMessageWaitTimeSeconds is 0".into(),
            "consumers that do not say how long they wait (ours do) ask in vain, and each request costs",
            set(&queue, "ReceiveMessageWaitTimeSeconds=20"),
        );
    }
    if let (Some(handler), Some(visibility)) =
        (options.handler, attribute(QueueAttributeName::VisibilityTimeout))
        && handler.as_secs() >= visibility
    {
        find(
            diagnosis,
            Severity::Note,
            "visibility-shorter-than-handler",
            &subject,
            format!(
                "the queue's own visibility timeout is {visibility} s, a handler may take {} s",
                handler.as_secs()
            ),
            "consumers that do not extend it (ours do) get the message again while it is processed",
            set(&queue, &format!("VisibilityTimeout={}", handler.as_secs().saturating_mul(2).min(43_200))),
        );
    }
    diagnosis.check_lease(&subject, options, |_| {
        Remedy::text("SQS lets a message be held for 12 h in all; split the work")
    });
    redrive(shared, destination, &queue, &subject, diagnosis).await
}

async fn redrive(
    shared: &Shared,
    destination: &Destination,
    queue: &Queue,
    subject: &str,
    diagnosis: &mut Diagnosis,
) -> Result<()> {
    let redrive = queue.redrive();
    match &redrive {
        Some(redrive) => {
            diagnosis.fact(subject, "dead letters go to", redrive.arn.clone());
            diagnosis.fact(subject, "after so many receipts", redrive.max);
            if redrive.max < FEW_RECEIVES {
                find(
                    diagnosis,
                    Severity::Warning,
                    "few-receives",
                    subject,
                    format!("SQS moves a message away after {} receipts", redrive.max),
                    "a worker with as many attempts never comes to its last, and the dead letter says no reason",
                    Remedy::text("raise maxReceiveCount above the worker's attempts, releases included"),
                );
            }
        }
        None => find(
            diagnosis,
            Severity::Warning,
            "no-redrive-policy",
            subject,
            "there is no redrive policy".into(),
            "a message that kills its consumers comes again until its retention is over",
            Remedy::text("create the queue with ?dead_letter=QUEUE, or set a RedrivePolicy"),
        ),
    }
    if destination.dead_letter.is_none() && redrive.is_none() {
        find(
            diagnosis,
            Severity::Warning,
            "no-dead-letter",
            subject,
            "no dead-letter queue is known".into(),
            "a message that is rejected is an error (NoDeadLetter), and comes again",
            Remedy::text("add ?dead_letter=QUEUE to the address"),
        );
    }
    let name =
        destination.dead_letter.clone().or_else(|| redrive.as_ref().and_then(super::queue::Redrive::queue));
    let Some(name) = name else { return Ok(()) };
    let subject = format!("dead-letter queue '{}'", name.name());
    match Queue::open(shared, &name).await {
        Ok(letters) => {
            if let Some(ready) = letters.attribute::<u64>(&QueueAttributeName::ApproximateNumberOfMessages) {
                diagnosis.fact(&subject, "ready", ready);
            }
            let (own, theirs) = (
                queue.attribute::<u64>(&QueueAttributeName::MessageRetentionPeriod),
                letters.attribute::<u64>(&QueueAttributeName::MessageRetentionPeriod),
            );
            if theirs.zip(own).is_some_and(|(theirs, own)| theirs < own) {
                find(
                    diagnosis,
                    Severity::Warning,
                    "dead-letters-expire-early",
                    &subject,
                    "it keeps messages for a shorter time than its source".into(),
                    "SQS counts from the first send: a message that it moves here late is gone at once",
                    set(&letters, "MessageRetentionPeriod=1209600"),
                );
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => find(
            diagnosis,
            Severity::Error,
            "dead-letter-missing",
            &subject,
            "there is no such queue".into(),
            "rejecting a message fails, and it comes again",
            Remedy::text("create it").command(destination.hint()),
        ),
        Err(error) => {
            diagnosis.unchecked(&subject, error.message().to_owned(), "allow sqs:GetQueueAttributes on it");
        }
    }
    Ok(())
}

fn set(queue: &Queue, setting: &str) -> Remedy {
    Remedy::text("set it")
        .command(format!("aws sqs set-queue-attributes --queue-url {} --attributes {setting}", queue.url))
}

fn find(
    diagnosis: &mut Diagnosis,
    severity: Severity,
    code: &'static str,
    subject: &str,
    what: String,
    why: &str,
    remedy: Remedy,
) {
    let (subject, why) = (subject.to_owned(), why.to_owned());
    diagnosis.findings.push(Finding { severity, code, subject, what, why, remedy });
}
