//! A diagnosis against the real broker: what is missing is found and mended by its own remedy.

use throughline_core::diagnosis::{Diagnosis, Severity};
use throughline_core::{Address, DiagnoseOptions};

use crate::rig::{Rig, message, name, unique};

async fn diagnose(rig: &Rig, address: &Address) -> Diagnosis {
    rig.transport.diagnose(address, &DiagnoseOptions::default()).await.unwrap()
}

/// Code, severity and subject of each finding.
fn found(diagnosis: &Diagnosis) -> Vec<(&'static str, Severity, &str)> {
    diagnosis.findings.iter().map(|f| (f.code, f.severity, f.subject.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_found_and_its_remedy_makes_it() {
    let Some(rig) = Rig::new("a_missing_topic_is_found_and_its_remedy_makes_it").await else { return };
    let topic = unique("diagnosed");
    let address = rig.address(&topic, "group=g&retry=topic&dead_letter");
    let names = [
        format!("topic '{topic}'"),
        format!("retry topic '{topic}.g.retry'"),
        format!("dead-letter topic '{topic}.dlq'"),
    ];
    let diagnosis = diagnose(&rig, &address).await;
    let mut missing = found(&diagnosis);
    missing.sort_by_key(|(.., subject)| names.iter().position(|name| name == subject));
    let expected: Vec<_> =
        names.iter().map(|name| ("topic-missing", Severity::Error, name.as_str())).collect();
    assert_eq!(missing, expected);
    let command = &diagnosis.findings[0].remedy.commands[0];
    let made = command.strip_prefix("throughline create ").unwrap().trim_matches('\'');
    rig.transport.create(&made.parse().unwrap()).await.unwrap();
    let diagnosis = diagnose(&rig, &address).await;
    // The broker under test is alone.
    for (code, severity, subject) in found(&diagnosis) {
        assert_eq!((code, severity), ("topic-not-replicated", Severity::Warning));
        assert!(names.iter().any(|name| name == subject), "{subject}");
    }
    assert_eq!(diagnosis.findings.len(), 3);
    rig.transport.delete(&rig.address(&format!("{topic}.dlq"), "")).await.unwrap();
    rig.transport.delete(&address).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_facts_are_those_of_the_topic_and_the_group() {
    let Some(rig) = Rig::new("the_facts_are_those_of_the_topic_and_the_group").await else { return };
    let topic = rig.topic("partitions=3&config.retention.ms=86400000").await;
    let publisher = rig.publisher(&topic).await;
    for n in 0..4 {
        publisher.publish(message(n.to_string())).await.unwrap();
    }
    publisher.close().await.unwrap();
    let diagnosis = diagnose(&rig, &topic).await;
    let subject = format!("topic '{}'", name(&topic));
    let group = format!("group '{}'", topic.option("group").unwrap());
    for (subject, fact, expected) in [
        (&subject, "partitions", "3"),
        (&subject, "retention.ms", "86400000"),
        (&subject, "message.timestamp.type", "CreateTime"),
        (&group, "lag", "4"),
    ] {
        let fact = diagnosis.facts.iter().find(|f| f.subject == *subject && f.name == fact);
        assert_eq!(
            fact.map(|fact| fact.value.to_string()).as_deref(),
            Some(expected),
            "{:#?}",
            diagnosis.facts
        );
    }
    assert!(diagnosis.publisher.is_some() && diagnosis.consumer.is_some());
    rig.finish().await;
}
