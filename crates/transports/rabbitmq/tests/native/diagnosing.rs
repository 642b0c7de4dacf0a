//! A diagnosis against the real broker: each misconfiguration is made, found, and mended by its own remedy.

use std::collections::BTreeSet;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use throughline_core::diagnosis::{Diagnosis, Finding, Severity};
use throughline_core::{Address, DiagnoseOptions};
use throughline_rabbitmq::lapin;

use crate::rig::{Rig, message, next, unique};

async fn diagnose(rig: &Rig, address: &Address) -> Diagnosis {
    rig.transport.diagnose(address, &DiagnoseOptions::default()).await.unwrap()
}

fn finding<'a>(diagnosis: &'a Diagnosis, code: &str) -> &'a Finding {
    let found = diagnosis.findings.iter().find(|finding| finding.code == code);
    found.unwrap_or_else(|| panic!("{code} is not found: {:#?}", diagnosis.findings))
}

fn codes(diagnosis: &Diagnosis) -> BTreeSet<&'static str> {
    diagnosis.findings.iter().map(|finding| finding.code).collect()
}

/// Runs the `throughline create` and `delete` commands of a remedy, as the command would.
async fn apply(rig: &Rig, finding: &Finding) {
    assert!(!finding.remedy.commands.is_empty(), "{finding:?}");
    for command in &finding.remedy.commands {
        let (verb, address) = command.strip_prefix("throughline ").unwrap().split_once(' ').unwrap();
        let address: Address = address.trim_matches('\'').replace("***", "guest:guest").parse().unwrap();
        let done = match verb {
            "create" => rig.transport.create(&address).await,
            "delete" => rig.transport.delete(&address).await,
            other => panic!("{other}"),
        };
        done.unwrap();
    }
}

fn arguments(given: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in given {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

const DURABLE: QueueDeclareOptions = QueueDeclareOptions {
    durable: true,
    passive: false,
    exclusive: false,
    auto_delete: false,
    nowait: false,
};

async fn declare(channel: &Channel, queue: &str, options: QueueDeclareOptions, given: &[(&str, AMQPValue)]) {
    channel.queue_declare(queue.into(), options, arguments(given)).await.unwrap();
}

/// Removes what a test and its remedies made.
async fn remove(channel: &Channel, queues: &[&str]) {
    for queue in queues {
        channel.queue_delete((*queue).into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
    }
}

/// What is found, how bad it is, and the declaration that has it.
type Misdeclared = (&'static str, Severity, QueueDeclareOptions, Vec<(&'static str, AMQPValue)>);

#[tokio::test(flavor = "multi_thread")]
async fn each_misdeclared_queue_is_found_and_mended() {
    let Some(rig) = Rig::new("each_misdeclared_queue_is_found_and_mended").await else { return };
    let (_connection, channel) = rig.raw().await;
    let quorum = ("x-queue-type", text("quorum"));
    let number = AMQPValue::LongInt(7);
    let cases: [Misdeclared; 9] = [
        ("queue-not-durable", Severity::Error, QueueDeclareOptions { durable: false, ..DURABLE }, vec![]),
        ("queue-auto-delete", Severity::Error, QueueDeclareOptions { auto_delete: true, ..DURABLE }, vec![]),
        ("queue-classic", Severity::Warning, DURABLE, vec![]),
        ("queue-is-a-stream", Severity::Error, DURABLE, vec![("x-queue-type", text("stream"))]),
        (
            "delivery-limit-without-dead-letter",
            Severity::Error,
            DURABLE,
            vec![quorum.clone(), ("x-delivery-limit", number.clone())],
        ),
        ("drops-oldest", Severity::Error, DURABLE, vec![quorum.clone(), ("x-max-length", number.clone())]),
        (
            "message-ttl",
            Severity::Warning,
            DURABLE,
            vec![("x-message-ttl", AMQPValue::LongLongInt(3_600_000))],
        ),
        (
            "queue-expires",
            Severity::Warning,
            DURABLE,
            vec![quorum.clone(), ("x-expires", AMQPValue::LongInt(3_600_000))],
        ),
        (
            "dead-letter-at-most-once",
            Severity::Warning,
            DURABLE,
            vec![
                quorum,
                ("x-max-length", number),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text("to-be-named")),
            ],
        ),
    ];
    for (code, severity, options, mut given) in cases {
        let queue = unique("doctor");
        let dead = format!("{queue}.dead");
        for (name, value) in &mut given {
            if *name == "x-dead-letter-routing-key" {
                *value = text(&dead);
                declare(
                    &channel,
                    &dead,
                    DURABLE,
                    &[
                        ("x-queue-type", text("quorum")),
                        ("x-delivery-limit", AMQPValue::LongInt(1_000_000_000)),
                    ],
                )
                .await;
            }
        }
        declare(&channel, &queue, options, &given).await;
        let address = rig.address(&format!("queue={queue}"));
        let before = diagnose(&rig, &address).await;
        let found = finding(&before, code);
        assert_eq!(found.severity, severity, "{found:?}");
        assert!(found.subject.contains(&queue) && !found.why.is_empty(), "{found:?}");
        apply(&rig, found).await;
        // With what the remedy's own address says.
        let last = found.remedy.commands.last().unwrap();
        let mended: Address = last.split('\'').nth(1).unwrap().replace("***", "guest:guest").parse().unwrap();
        let after = diagnose(&rig, &mended).await;
        assert!(!codes(&after).contains(code), "{code} is still there: {:#?}", after.findings);
        assert_eq!(
            after.findings.iter().filter(|finding| finding.severity == Severity::Error).count(),
            0,
            "{after:#?}"
        );
        remove(&channel, &[&queue, &dead]).await;
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_found_and_made_and_asking_makes_nothing() {
    let Some(rig) = Rig::new("what_is_missing_is_found_and_made_and_asking_makes_nothing").await else {
        return;
    };
    let name = unique("doctor");
    let address = rig.address(&format!("exchange={name}&queue={name}&dead_letter={name}.dead"));
    for _ in 0..2 {
        let missing = diagnose(&rig, &address).await;
        let expected = BTreeSet::from(["dead-letter-missing", "exchange-missing", "queue-missing"]);
        assert_eq!(codes(&missing), expected, "{missing:#?}");
        assert!(missing.findings.iter().all(|finding| finding.severity == Severity::Error));
    }
    let missing = diagnose(&rig, &address).await;
    apply(&rig, finding(&missing, "queue-missing")).await;
    let there = diagnose(&rig, &address).await;
    assert_eq!(there.findings, []);
    assert_eq!(there.server.product, "RabbitMQ");
    assert!(there.server.version.is_some() && there.publisher.is_some() && there.consumer.is_some());
    rig.transport.delete(&rig.address(&format!("queue={name}.dead"))).await.unwrap();
    let gone = diagnose(&rig, &address).await;
    apply(&rig, finding(&gone, "dead-letter-missing")).await;
    assert_eq!(diagnose(&rig, &address).await.findings, []);
    rig.transport.delete(&address).await.unwrap();
    rig.transport.delete(&rig.address(&format!("queue={name}.dead"))).await.unwrap();
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_misdeclared_exchange_is_found_and_mended() {
    let Some(rig) = Rig::new("each_misdeclared_exchange_is_found_and_mended").await else { return };
    let (_connection, channel) = rig.raw().await;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let cases = [
        ("exchange-not-durable", ExchangeDeclareOptions { durable: false, ..durable }, FieldTable::default()),
        (
            "exchange-auto-delete",
            ExchangeDeclareOptions { auto_delete: true, ..durable },
            FieldTable::default(),
        ),
        ("exchange-internal", ExchangeDeclareOptions { internal: true, ..durable }, FieldTable::default()),
        ("alternate-exchange", durable, arguments(&[("alternate-exchange", text("amq.fanout"))])),
    ];
    for (code, options, given) in cases {
        let exchange = unique("doctor");
        channel
            .exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, options, given)
            .await
            .unwrap();
        let address = rig.address(&format!("exchange={exchange}&exchange_type=fanout"));
        let before = diagnose(&rig, &address).await;
        let found = finding(&before, code);
        assert_eq!(found.subject, format!("exchange '{exchange}'"));
        if code == "alternate-exchange" {
            assert!(found.what.contains("amq.fanout"), "{found:?}");
        } else {
            apply(&rig, found).await;
            assert_eq!(diagnose(&rig, &address).await.findings, []);
        }
        rig.transport.delete(&address).await.unwrap();
    }
    // The broker's own need no declaration of ours.
    let own = diagnose(&rig, &rig.address("exchange=amq.topic")).await;
    assert_eq!(own.findings, []);
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_queue_and_dead_letters_elsewhere_are_found() {
    let Some(rig) = Rig::new("an_exclusive_queue_and_dead_letters_elsewhere_are_found").await else { return };
    let (_connection, channel) = rig.raw().await;
    let queue = unique("doctor");
    declare(&channel, &queue, QueueDeclareOptions { exclusive: true, ..DURABLE }, &[]).await;
    let address = rig.address(&format!("queue={queue}"));
    let locked = diagnose(&rig, &address).await;
    assert_eq!(codes(&locked), BTreeSet::from(["queue-exclusive"]), "{locked:#?}");
    remove(&channel, &[&queue]).await;

    let made = rig.create(&format!("queue={queue}&dead_letter={queue}.one")).await;
    let other = made.clone().with_option("dead_letter", &format!("{queue}.two"));
    let differs = diagnose(&rig, &other).await;
    assert_eq!(
        codes(&differs),
        BTreeSet::from(["dead-letter-differs", "dead-letter-missing"]),
        "{differs:#?}"
    );
    apply(&rig, finding(&differs, "dead-letter-differs")).await;
    assert_eq!(diagnose(&rig, &other).await.findings, []);
    remove(&channel, &[&format!("{queue}.one"), &format!("{queue}.two")]).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diagnosis_disturbs_nothing_and_sees_who_consumes() {
    let Some(rig) = Rig::new("a_diagnosis_disturbs_nothing_and_sees_who_consumes").await else { return };
    let queue = rig.queue("").await;
    let publisher = rig.publisher(&queue).await;
    publisher.publish(message("x")).await.unwrap();
    rig.settles_at(&queue, 1).await;
    for _ in 0..3 {
        let waiting = diagnose(&rig, &queue).await;
        assert!(finding(&waiting, "no-consumer").what.starts_with("1 messages are ready"));
    }
    assert_eq!(rig.depth(&queue).await, 1);
    let mut one = rig.consumer(&queue).await;
    let delivery = next(&mut one).await;
    assert_eq!(delivery.receive_count(), Some(1), "no diagnosis has taken it");
    let two = rig.consumer(&queue).await;
    let compete = diagnose(&rig, &queue).await;
    assert!(codes(&compete).contains("consumers-compete"), "{compete:#?}");
    delivery.ack().await.unwrap();
    one.close().await.unwrap();
    two.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish().await;
}
