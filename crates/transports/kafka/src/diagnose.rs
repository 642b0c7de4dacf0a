//! What is there and what is wrong with it, without disturbing anything.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use throughline_core::capabilities::KAFKA;
use throughline_core::diagnosis::{Finding, Remedy, Server, Severity};

use throughline_core::{Address, DiagnoseOptions, Diagnosis, Result};

use crate::admin::depth;
use crate::cluster::Cluster;
use crate::config::Destination;
use crate::connect::{Admin, Reader, blocking};

/// Configurations that decide what becomes of messages.
const TOLD: [&str; 5] =
    ["cleanup.policy", "retention.ms", "max.message.bytes", "min.insync.replicas", "message.timestamp.type"];

pub(crate) async fn diagnose(
    cluster: Cluster,
    destination: Destination,
    address: &Address,
    options: &DiagnoseOptions,
) -> Result<Diagnosis> {
    // The protocol does not name the broker's version.
    let mut diagnosis = Diagnosis::new(address, Server { product: "Apache Kafka".into(), version: None });
    let mut topics = vec![("topic", destination.topic()?.to_owned())];
    if destination.retry_by_topic {
        topics.push(("retry topic", destination.retry_topic()?));
    }
    topics.extend(destination.dead_letter.clone().map(|name| ("dead-letter topic", name)));
    let admin = Admin::new(&cluster)?;
    for (index, (kind, name)) in topics.into_iter().enumerate() {
        let subject = format!("{kind} '{name}'");
        let Some((partitions, replicas)) = shape(&cluster, &name).await? else {
            diagnosis.findings.push(Finding {
                severity: Severity::Error,
                code: "topic-missing",
                subject,
                what: "it does not exist".into(),
                why: "what is published to it fails, and a rejected message cannot leave its topic".into(),
                remedy: Remedy::text("create it").command(destination.hint()),
            });
            continue;
        };
        diagnosis.fact(subject.clone(), "partitions", partitions);
        diagnosis.fact(subject.clone(), "replicas", replicas);
        if replicas == 1 {
            diagnosis.findings.push(Finding {
                severity: Severity::Warning,
                code: "topic-not-replicated",
                subject: subject.clone(),
                what: "each partition is on one broker only".into(),
                why: "messages are lost with that broker's disk, and cannot be had while it is down".into(),
                remedy: Remedy::text(
                    "create topics with ?replication=3, on a cluster of three brokers or more",
                ),
            });
        }
        match admin.configs(&name).await {
            Ok(configs) => {
                let configs: BTreeMap<_, _> = configs.into_iter().collect();
                for told in TOLD {
                    if let Some(Some(value)) = configs.get(told) {
                        diagnosis.fact(subject.clone(), told, value.clone());
                    }
                }
            }
            Err(error) => diagnosis.unchecked(
                format!("the configuration of {subject}"),
                error.message().to_owned(),
                "allow DescribeConfigs on the topic",
            ),
        }
        if index > 0 {
            continue;
        }
        diagnosis.publisher = Some(KAFKA);
        if let Some(group) = destination.maybe_group() {
            diagnosis.consumer = Some(KAFKA);
            let lag = depth(cluster.clone(), destination.clone()).await?.ready;
            diagnosis.fact(format!("group '{group}'"), "lag", lag);
        }
    }
    admin.close().await;
    diagnosis.check_lease("consumer", options, |_| Remedy::default());
    diagnosis.sort();
    Ok(diagnosis)
}

/// How many partitions a topic has, and how many replicas the first of them; `None` where there is no such topic.
async fn shape(cluster: &Cluster, topic: &str) -> Result<Option<(u64, u64)>> {
    let (reader, topic) = (Reader::new(cluster, None)?, topic.to_owned());
    blocking(move || {
        if reader.partitions(&topic)?.is_none() {
            return Ok(None);
        }
        let metadata = reader.ask(|client| client.fetch_metadata(Some(&topic), Duration::from_secs(1)))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map_or(&[][..], |found| found.partitions());
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let replicas = partitions.first().map_or(0, |partition| partition.replicas().len());
        Ok(Some((count(partitions.len()), count(replicas))))
    })
    .await
}
