//! Buses, rules and their target queues: made, found and deleted.

use serde_json::Value;
use throughline_aws::error;
use throughline_aws::settings::bad;
use throughline_core::{Error, ErrorKind, Result};
use throughline_sqs::source::Sender;

use aws_sdk_eventbridge::types::Target;

use crate::config::Destination;
use crate::transport::Shared;

/// The id of our target within a rule.
const TARGET: &str = "throughline";
/// The bus that every account has; it is neither made nor deleted.
const DEFAULT: &str = "default";

/// Refuses a bus that does not exist, with the command that makes it.
pub(crate) async fn find(shared: &Shared, destination: &Destination) -> Result<()> {
    if exists(shared, destination).await? {
        return Ok(());
    }
    let (bus, region, hint) = (&destination.bus, &shared.connection.region, destination.hint());
    let text = format!("there is no event bus '{bus}' in {region}; is that the region? Make it with: {hint}");
    Err(Error::new(ErrorKind::NotFound, text))
}

pub(crate) async fn exists(shared: &Shared, destination: &Destination) -> Result<bool> {
    let request = shared.admin.describe_event_bus().name(&destination.bus);
    match request.send().await.map_err(error::of_request) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        // Who may only put events may still do that.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(true),
        Err(error) => Err(error),
    }
}

/// A rule that is there: its ARN and pattern.
pub(crate) async fn rule(
    shared: &Shared,
    destination: &Destination,
    name: &str,
) -> Result<Option<(String, Value)>> {
    let request = shared.admin.describe_rule().event_bus_name(&destination.bus).name(name);
    match request.send().await.map_err(error::of_request) {
        Ok(rule) => {
            let pattern = rule.event_pattern.and_then(|pattern| serde_json::from_str(&pattern).ok());
            Ok(rule.arn.map(|arn| (arn, pattern.unwrap_or_default())))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates what the address names: the bus, and where it names a queue, the rule, the queue with permission, and the
/// target.
pub(crate) async fn create(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let pattern = destination.pattern()?;
    let mut made = Vec::new();
    if !exists(shared, destination).await? {
        if destination.bus.starts_with("arn:") {
            return Err(bad(&destination.address, "a bus is created by its name, not by its ARN"));
        }
        shared.admin.create_event_bus().name(&destination.bus).send().await.map_err(error::of_request)?;
        made.push(format!("event bus '{}'", destination.bus));
    }
    let (Some(name), true) = (destination.rule(), destination.queue().is_some()) else {
        return Ok(made);
    };
    let arn = match rule(shared, destination, name).await? {
        Some((_, is)) if is != pattern => {
            let text = format!("rule '{name}' exists with the pattern {is}, not {pattern}");
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        Some((arn, _)) => arn,
        None => {
            let request = shared.admin.put_rule().name(name).event_bus_name(&destination.bus);
            let answer =
                request.event_pattern(pattern.to_string()).send().await.map_err(error::of_request)?;
            made.push(format!("rule '{name}' with the pattern {pattern}"));
            answer.rule_arn.ok_or_else(|| Error::new(ErrorKind::Internal, "AWS gave no ARN of the rule"))?
        }
    };
    let sender = Sender { service: "events.amazonaws.com", arn: &arn };
    let (queue, of_queue) = shared.queues.create(&destination.address, &sender).await?;
    made.extend(of_queue);
    let targets = targets(shared, destination, name).await?;
    if !targets.iter().any(|(_, arn)| *arn == queue) {
        let target = Target::builder().id(TARGET).arn(&queue).build();
        let target = target.map_err(|error| {
            Error::new(ErrorKind::Internal, "the request could not be built").with_source(error)
        })?;
        let request = shared.admin.put_targets().rule(name).event_bus_name(&destination.bus).targets(target);
        let answer = request.send().await.map_err(error::of_request)?;
        if let Some(failed) = answer.failed_entries.unwrap_or_default().pop() {
            let (code, text) =
                (failed.error_code.unwrap_or_default(), failed.error_message.unwrap_or_default());
            return Err(error::of_entry(&code, &text, true));
        }
        made.push(format!("target {queue} of rule '{name}'"));
    }
    Ok(made)
}

/// How many rules a bus has; of many, those of the first answer.
pub(crate) async fn rules(shared: &Shared, destination: &Destination) -> Result<usize> {
    let request = shared.admin.list_rules().event_bus_name(&destination.bus);
    Ok(request.send().await.map_err(error::of_request)?.rules.unwrap_or_default().len())
}

/// The targets of a rule: id and ARN.
pub(crate) async fn targets(
    shared: &Shared,
    destination: &Destination,
    rule: &str,
) -> Result<Vec<(String, String)>> {
    let request = shared.admin.list_targets_by_rule().rule(rule).event_bus_name(&destination.bus);
    match request.send().await.map_err(error::of_request) {
        Ok(answer) => {
            Ok(answer.targets.unwrap_or_default().into_iter().map(|target| (target.id, target.arn)).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Deletes what the address names: the rule with its targets, the queue, and the bus unless it has other rules.
pub(crate) async fn delete(shared: &Shared, destination: &Destination) -> Result<Vec<String>> {
    let mut deleted = Vec::new();
    let is_there = exists(shared, destination).await?;
    if let (Some(name), Some(_)) = (destination.rule(), destination.queue()) {
        if is_there && rule(shared, destination, name).await?.is_some() {
            let ids: Vec<_> =
                targets(shared, destination, name).await?.into_iter().map(|(id, _)| id).collect();
            if !ids.is_empty() {
                let request = shared.admin.remove_targets().rule(name).event_bus_name(&destination.bus);
                request.set_ids(Some(ids)).send().await.map_err(error::of_request)?;
            }
            let request = shared.admin.delete_rule().name(name).event_bus_name(&destination.bus);
            request.send().await.map_err(error::of_request)?;
            deleted.push(format!("rule '{name}'"));
        }
        deleted.extend(shared.queues.delete(&destination.address).await?);
    }
    if is_there && destination.bus != DEFAULT && !destination.bus.starts_with("arn:") {
        let others = rules(shared, destination).await?;
        if others > 0 {
            deleted.push(format!("not event bus '{}': it has {others} other rules", destination.bus));
        } else {
            let request = shared.admin.delete_event_bus().name(&destination.bus);
            request.send().await.map_err(error::of_request)?;
            deleted.push(format!("event bus '{}'", destination.bus));
        }
    }
    Ok(deleted)
}
