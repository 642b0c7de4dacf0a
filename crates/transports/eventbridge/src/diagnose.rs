//! What is there, and what is wrong with it: the bus, the rule and its target, then the queue.

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
    let server =
        Server { product: "Amazon EventBridge, or what answers in its place".to_owned(), version: None };
    let mut diagnosis = Diagnosis::new(&destination.address, server);
    let create = || Remedy::text("create it").command(destination.hint());
    let bus = format!("event bus '{}'", destination.bus);
    let is_there = admin::exists(shared, destination).await?;
    if is_there {
        diagnosis.publisher = Some(capabilities::EVENTBRIDGE);
    } else {
        let what = format!("there is no such bus in {}", shared.connection.region);
        find(&mut diagnosis, "bus-missing", &bus, &what, "publishing fails with NotFound", create());
    }
    if let (Some(name), Some(_)) = (destination.rule(), destination.queue()) {
        let queue = &destination.address;
        shared.queues.diagnose(queue, options, capabilities::EVENTBRIDGE, &mut diagnosis).await?;
        let rule = if is_there { admin::rule(shared, destination, name).await? } else { None };
        let subject = format!("rule '{name}'");
        let lost = "events never come to the queue, and nobody is told";
        if let Some((arn, pattern)) = rule {
            diagnosis.fact(&subject, "pattern", pattern.to_string());
            if let Some(target) = shared.queues.arn(queue).await? {
                let targets = admin::targets(shared, destination, name).await?;
                if !targets.iter().any(|(_, arn)| *arn == target) {
                    let what = "the queue is none of its targets";
                    find(&mut diagnosis, "not-a-target", &subject, what, lost, create());
                }
                let sender = Sender { service: "events.amazonaws.com", arn: &arn };
                match shared.queues.lets_in(queue, &sender).await {
                    Ok(Some(false)) => {
                        let what = "the queue's policy does not let it send there";
                        find(&mut diagnosis, "rule-not-let-in", &subject, what, lost, create());
                    }
                    Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
                    _ => {}
                }
            }
        } else if is_there {
            find(
                &mut diagnosis,
                "rule-missing",
                &subject,
                "there is no such rule on the bus",
                lost,
                create(),
            );
        }
    }
    diagnosis.sort();
    Ok(diagnosis)
}

fn find(diagnosis: &mut Diagnosis, code: &'static str, subject: &str, what: &str, why: &str, remedy: Remedy) {
    let (subject, what, why) = (subject.to_owned(), what.to_owned(), why.to_owned());
    diagnosis.findings.push(Finding { severity: Severity::Error, code, subject, what, why, remedy });
}
