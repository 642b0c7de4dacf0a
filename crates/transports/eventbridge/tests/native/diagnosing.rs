//! Each finding of a diagnosis is provoked, seen, and gone once its remedy is done.

use throughline_core::diagnosis::Finding;
use throughline_core::{Address, DiagnoseOptions};
use throughline_eventbridge::aws_sdk_eventbridge;
use throughline_sqs::aws_sdk_sqs::Client;
use throughline_sqs::aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use throughline_sqs::aws_sdk_sqs::types::QueueAttributeName;

use super::Rig;

async fn findings(rig: &Rig, of: &Address) -> Vec<Finding> {
    rig.transport.diagnose(of, &DiagnoseOptions::default()).await.unwrap().findings
}

/// The finding, whose remedy is the command that makes what the address names.
async fn found(rig: &Rig, of: &Address, code: &str) {
    let findings = findings(rig, of).await;
    let finding = findings.iter().find(|finding| finding.code == code);
    let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
    let finding = finding.unwrap_or_else(|| panic!("{code} is not among {codes:?}"));
    assert_eq!(finding.remedy.commands, [format!("throughline create '{of}'")]);
}

async fn is_gone(rig: &Rig, of: &Address, code: &str) {
    let findings = findings(rig, of).await;
    assert!(findings.iter().all(|finding| finding.code != code), "{code} is still there");
}

/// The client library, for what others do.
fn sqs(endpoint: &str) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(endpoint)
        .http_client(throughline_aws::settings::http_client());
    Client::from_conf(config.build())
}

/// Takes every permission to send to the address's queue away.
async fn shut(endpoint: &str, address: &Address) {
    let client = sqs(endpoint);
    let url = client.get_queue_url().queue_name(address.option("queue").unwrap()).send().await.unwrap();
    let nobody = r#"{"Version":"2012-10-17","Statement":[]}"#;
    let request = client.set_queue_attributes().set_queue_url(url.queue_url);
    request.attributes(QueueAttributeName::Policy, nobody).send().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_finding_goes_with_its_remedy() {
    let Some(rig) = Rig::new("eventbridge::each_finding_goes_with_its_remedy").await else { return };
    let rule = format!("{}-q", rig.bus);
    let address = rig.address(&format!("&queue={rule}&dead_letter={}-dead", rig.bus));
    for code in ["bus-missing", "queue-missing"] {
        found(&rig, &address, code).await;
    }
    rig.transport.create(&address).await.unwrap();
    for code in ["bus-missing", "queue-missing"] {
        is_gone(&rig, &address, code).await;
    }

    shut(&rig.proxy.endpoint(), &address).await;
    found(&rig, &address, "rule-not-let-in").await;
    rig.transport.create(&address).await.unwrap();
    is_gone(&rig, &address, "rule-not-let-in").await;

    let client = events(&rig);
    let of_rule = || client.list_targets_by_rule().rule(&rule).event_bus_name(&rig.bus);
    let targets = of_rule().send().await.unwrap().targets.unwrap_or_default();
    let ids = targets.into_iter().map(|target| target.id).collect();
    let removing = client.remove_targets().rule(&rule).event_bus_name(&rig.bus).set_ids(Some(ids));
    removing.send().await.unwrap();
    found(&rig, &address, "not-a-target").await;
    // Without targets a rule can be deleted.
    client.delete_rule().name(&rule).event_bus_name(&rig.bus).send().await.unwrap();
    found(&rig, &address, "rule-missing").await;
    rig.transport.create(&address).await.unwrap();
    for code in ["rule-missing", "not-a-target"] {
        is_gone(&rig, &address, code).await;
    }
    rig.finish(&[&address]).await;
}

fn events(rig: &Rig) -> aws_sdk_eventbridge::Client {
    let config = aws_sdk_eventbridge::config::Config::builder()
        .behavior_version(aws_sdk_eventbridge::config::BehaviorVersion::latest())
        .region(aws_sdk_eventbridge::config::Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(rig.proxy.endpoint())
        .http_client(throughline_aws::settings::http_client());
    aws_sdk_eventbridge::Client::from_conf(config.build())
}
