//! Each finding of a diagnosis is provoked, seen, and gone once its remedy is done.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use throughline_core::diagnosis::Finding;
use throughline_core::{Address, DiagnoseOptions};
use throughline_sqs::aws_sdk_sqs;

use crate::rig::{Rig, unique};

async fn findings(rig: &Rig, of: &Address, handler: u64) -> Vec<Finding> {
    let handler = (handler > 0).then(|| Duration::from_secs(handler));
    rig.transport.diagnose(of, &DiagnoseOptions { handler }).await.unwrap().findings
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code).collect()
}

/// The finding, with its remedy said.
async fn found(rig: &Rig, of: &Address, handler: u64, code: &str) -> Finding {
    let findings = findings(rig, of, handler).await;
    let finding = findings.iter().find(|finding| finding.code == code);
    let finding = finding.unwrap_or_else(|| panic!("{code} is not among {:?}", codes(&findings)));
    assert!(!finding.remedy.text.is_empty() && !finding.why.is_empty(), "{finding:?}");
    finding.clone()
}

async fn is_gone(rig: &Rig, of: &Address, handler: u64, code: &str) {
    let findings = findings(rig, of, handler).await;
    assert!(!codes(&findings).contains(&code), "{code} is still among {:?}", codes(&findings));
}

/// Does what a remedy's `aws sqs set-queue-attributes` would, by the client library.
async fn set(client: &Client, finding: &Finding) {
    let command = finding.remedy.commands.first().expect("a command");
    let words: Vec<_> = command.split(' ').collect();
    let [_, _, "set-queue-attributes", "--queue-url", url, "--attributes", setting] = words[..] else {
        panic!("not such a command: {command}");
    };
    let (name, value) = setting.split_once('=').unwrap();
    set_attribute(client, url, name.into(), value).await;
}

async fn set_attribute(client: &Client, url: &str, name: QueueAttributeName, value: &str) {
    client.set_queue_attributes().queue_url(url).attributes(name, value).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_create_has_no_findings() {
    let Some(rig) = Rig::new("what_we_create_has_no_findings").await else { return };
    let (queue, _) = rig.queue_with_dead_letters("").await;
    assert_eq!(codes(&findings(&rig, &queue, 20).await), Vec::<&str>::new());
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_found_and_created() {
    let Some(rig) = Rig::new("what_is_missing_is_found_and_created").await else { return };
    let dead = unique("dead");
    let queue = rig.address(&unique("native"), &format!("&dead_letter={dead}"));
    let finding = found(&rig, &queue, 0, "queue-missing").await;
    assert_eq!(finding.remedy.commands, [format!("throughline create '{queue}'")]);
    rig.create(queue.clone()).await;
    is_gone(&rig, &queue, 0, "queue-missing").await;

    let dead = rig.address(&dead, "");
    rig.transport.delete(&dead).await.unwrap();
    let finding = found(&rig, &queue, 0, "dead-letter-missing").await;
    assert_eq!(finding.remedy.commands, [format!("throughline create '{queue}'")]);
    rig.transport.create(&queue).await.unwrap();
    is_gone(&rig, &queue, 0, "dead-letter-missing").await;
    rig.transport.delete(&dead).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_set_badly_is_found_and_set() {
    let Some(rig) = Rig::new("what_others_set_badly_is_found_and_set").await else { return };
    let (queue, dead) = rig.queue_with_dead_letters("").await;
    let (client, url) = rig.raw(&queue).await;

    set_attribute(&client, &url, QueueAttributeName::ReceiveMessageWaitTimeSeconds, "0").await;
    set(&client, &found(&rig, &queue, 0, "long-poll-off").await).await;
    is_gone(&rig, &queue, 0, "long-poll-off").await;

    // As long as the handler is too short, too.
    is_gone(&rig, &queue, 29, "visibility-shorter-than-handler").await;
    set(&client, &found(&rig, &queue, 30, "visibility-shorter-than-handler").await).await;
    is_gone(&rig, &queue, 30, "visibility-shorter-than-handler").await;

    let (_, dead_url) = rig.raw(&dead).await;
    set_attribute(&client, &dead_url, QueueAttributeName::MessageRetentionPeriod, "60").await;
    set(&client, &found(&rig, &queue, 0, "dead-letters-expire-early").await).await;
    is_gone(&rig, &queue, 0, "dead-letters-expire-early").await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_policy_that_is_missing_or_too_eager_is_found() {
    let Some(rig) = Rig::new("a_redrive_policy_that_is_missing_or_too_eager_is_found").await else { return };
    let queue = rig.queue("").await;
    found(&rig, &queue, 0, "no-redrive-policy").await;
    found(&rig, &queue, 0, "no-dead-letter").await;
    // Its remedy is in the address.
    let dead = rig.queue("").await;
    let named = queue.clone().with_option("dead_letter", dead.authority().unwrap());
    is_gone(&rig, &named, 0, "no-dead-letter").await;
    found(&rig, &named, 0, "no-redrive-policy").await;

    let (client, url) = rig.raw(&queue).await;
    let (_, dead_url) = rig.raw(&dead).await;
    let asked =
        client.get_queue_attributes().queue_url(dead_url).attribute_names(QueueAttributeName::QueueArn);
    let arn = asked.send().await.unwrap().attributes.unwrap()[&QueueAttributeName::QueueArn].clone();
    let policy = |max: u32| format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":"{max}"}}"#);
    set_attribute(&client, &url, QueueAttributeName::RedrivePolicy, &policy(3)).await;
    is_gone(&rig, &queue, 0, "no-redrive-policy").await;
    is_gone(&rig, &queue, 0, "no-dead-letter").await;
    let finding = found(&rig, &queue, 0, "few-receives").await;
    assert!(finding.what.contains("3 receipts"), "{}", finding.what);
    set_attribute(&client, &url, QueueAttributeName::RedrivePolicy, &policy(100)).await;
    is_gone(&rig, &queue, 0, "few-receives").await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_no_lease_outlasts_is_found() {
    let Some(rig) = Rig::new("a_handler_that_no_lease_outlasts_is_found").await else { return };
    let (queue, _) = rig.queue_with_dead_letters("").await;
    found(&rig, &queue, 12 * 60 * 60, "lease-too-short").await;
    let hours = found(&rig, &queue, 11 * 60 * 60, "lease-not-renewed-long-enough").await;
    assert!(hours.remedy.commands[0].contains("max_lease"), "{:?}", hours.remedy);
    is_gone(&rig, &queue, 60, "lease-not-renewed-long-enough").await;
    rig.finish().await;
}
