//! Each finding of a diagnosis is provoked, seen, and gone once its remedy is done.

use throughline_core::diagnosis::Finding;
use throughline_core::{Address, DiagnoseOptions};
use throughline_sns::aws_sdk_sns;
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
    let Some(rig) = Rig::new("sns::each_finding_goes_with_its_remedy").await else { return };
    let address = rig.address(&format!("&queue={0}-q&dead_letter={0}-dead", rig.topic));
    found(&rig, &address, "topic-missing").await;
    found(&rig, &address, "queue-missing").await;
    rig.transport.create(&address).await.unwrap();
    is_gone(&rig, &address, "topic-missing").await;
    is_gone(&rig, &address, "queue-missing").await;

    shut(&rig.endpoint, &address).await;
    found(&rig, &address, "topic-not-let-in").await;
    rig.transport.create(&address).await.unwrap();
    is_gone(&rig, &address, "topic-not-let-in").await;

    unsubscribe(&rig).await;
    found(&rig, &address, "not-subscribed").await;
    rig.transport.create(&address).await.unwrap();
    is_gone(&rig, &address, "not-subscribed").await;

    // Raw delivery is told where it is, and its remedy is another subscription.
    let findings = findings(&rig, &address).await;
    let finding = findings.iter().find(|finding| finding.code == "raw-drops-many-attributes").unwrap();
    let wrapped = address.clone().with_option("raw", "false");
    assert_eq!(finding.remedy.commands, [format!("throughline create '{wrapped}'")]);
    unsubscribe(&rig).await;
    rig.transport.create(&wrapped).await.unwrap();
    is_gone(&rig, &wrapped, "raw-drops-many-attributes").await;
    is_gone(&rig, &wrapped, "not-subscribed").await;
    rig.finish(&[&wrapped]).await;
}

/// Ends every subscription of the topic.
async fn unsubscribe(rig: &Rig) {
    let config = aws_sdk_sns::config::Config::builder()
        .behavior_version(aws_sdk_sns::config::BehaviorVersion::latest())
        .region(aws_sdk_sns::config::Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(&rig.endpoint)
        .http_client(throughline_aws::settings::http_client());
    let client = aws_sdk_sns::Client::from_conf(config.build());
    let all = client.list_subscriptions().send().await.unwrap().subscriptions.unwrap_or_default();
    let ours = |arn: &Option<String>| arn.as_deref().is_some_and(|arn| arn.ends_with(&rig.topic));
    for subscription in all.into_iter().filter(|subscription| ours(&subscription.topic_arn)) {
        client.unsubscribe().set_subscription_arn(subscription.subscription_arn).send().await.unwrap();
    }
}
