//! `doctor` where the broker itself is misconfigured, and where its user may not do things: a RabbitMQ of its own. Each
//! remedy is carried out as it stands.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use throughline::diagnosis::{Diagnosis, Finding};
use throughline::{Bus, DiagnoseOptions};
use throughline_brokers::{RabbitMq, StartOptions};
use throughline_integration_tests::{cli, unique};
use throughline_testkit::endpoint;

async fn diagnose(url: &str, handler: Option<Duration>) -> Diagnosis {
    let bus = Bus::connect(url).await.unwrap();
    let diagnosis = bus.diagnose("", &DiagnoseOptions { handler }).await.unwrap();
    bus.close().await.unwrap();
    diagnosis
}

fn codes(diagnosis: &Diagnosis) -> Vec<&'static str> {
    diagnosis.findings.iter().map(|finding| finding.code).collect()
}

fn finding<'a>(diagnosis: &'a Diagnosis, code: &str) -> &'a Finding {
    let found = diagnosis.findings.iter().find(|finding| finding.code == code);
    found.unwrap_or_else(|| panic!("{code} is not found: {:#?}", diagnosis.findings))
}

/// The words of a command; those in single quotes may hold spaces.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in command.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

/// Runs a `rabbitmqctl` command as it was told.
fn ctl(broker: &RabbitMq, command: &str) -> String {
    let words = words(command.strip_prefix("rabbitmqctl ").unwrap());
    broker.ctl(&words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_own_faults_are_found_and_mended() {
    const TEST: &str = "the_brokers_own_faults_are_found_and_mended";
    if !RabbitMq::installed() {
        endpoint::skip(TEST, "needs a RabbitMQ of its own to misconfigure, and none is installed");
        return;
    }
    let options = StartOptions { config: "frame_max = 8192\n".into(), ..StartOptions::default() };
    let started = tokio::task::spawn_blocking(move || RabbitMq::start(&options));
    let mut broker = started.await.unwrap().unwrap();
    let queue = unique("doctor");
    let destination = format!("queue={queue}&dead_letter={queue}.dead&exchange={queue}.x");
    let url = format!("{}?{destination}", broker.url());
    let bus = Bus::connect(&url).await.unwrap();
    bus.create("").await.unwrap();
    bus.close().await.unwrap();

    permissions(&broker, &destination).await;
    lease(&broker, &url).await;
    command(&url).await;
    alarm(&broker, &url).await;

    let small = diagnose(&url, None).await;
    assert_eq!(codes(&small), ["frame-max-small"], "{small:#?}");
    assert_eq!(small.publisher.as_ref().unwrap().limits.header_bytes, Some(8184));
    let conf = broker.folder().join("rabbitmq.conf");
    let config = std::fs::read_to_string(&conf).unwrap();
    let remedy = &finding(&small, "frame-max-small").remedy.commands[0];
    std::fs::write(&conf, config.replace("frame_max = 8192", remedy)).unwrap();
    broker.sync_metadata().unwrap();
    broker.restart().unwrap();
    assert_eq!(codes(&diagnose(&url, None).await), [""; 0]);
}

/// A user that may do nothing, and then what the remedy grants.
async fn permissions(broker: &RabbitMq, destination: &str) {
    for command in ["add_user doctor hunter2", "set_permissions -p / doctor ^$ ^$ ^$"] {
        ctl(broker, &format!("rabbitmqctl {command}"));
    }
    let url = format!("{}?{destination}", broker.url().replace("guest:guest", "doctor:hunter2"));
    let denied = diagnose(&url, None).await;
    let expected =
        ["consume-denied", "delay-denied", "publish-denied", "dead-letter-denied", "frame-max-small"];
    assert_eq!(codes(&denied), expected, "{denied:#?}");
    // What only a user with more rights can ask is told as such.
    let hidden: Vec<_> = denied.unchecked.iter().filter(|it| it.why.contains("permission")).collect();
    assert_eq!(hidden.len(), 2, "{denied:#?}");
    assert!(!serde_json::to_string(&denied).unwrap().contains("hunter2"));
    let command = finding(&denied, "consume-denied").remedy.commands[0].replace("USER", "doctor");
    ctl(broker, &command);
    // The broker keeps what it has decided of a channel for a while; a new connection asks anew.
    let granted = diagnose(&url, None).await;
    assert_eq!(codes(&granted), ["frame-max-small"], "{granted:#?}");
    // And it is enough for the work itself.
    let bus = Bus::connect(&url).await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    publisher.publish(throughline::Envelope::builder("doctor").payload("x").build()).await.unwrap();
    let mut consumer = bus.consumer().await.unwrap();
    let delivery = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await.unwrap();
    let failure = throughline::Failure::new("undecodable");
    delivery.unwrap().unwrap().reject(failure).await.unwrap();
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    bus.close().await.unwrap();
}

async fn lease(broker: &RabbitMq, url: &str) {
    let handler = Some(Duration::from_secs(40 * 60));
    let short = diagnose(url, handler).await;
    let found = finding(&short, "lease-too-short");
    ctl(broker, &found.remedy.commands[0]);
    let said = found.remedy.commands[2].replace("***", "guest:guest");
    assert!(!codes(&diagnose(&said, handler).await).contains(&"lease-too-short"));
    let set = ctl(broker, "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'");
    assert!(set.contains("4800000"), "{set}");
}

/// The exit codes and the one JSON object of the command.
async fn command(url: &str) {
    let missing = url.replace("dead_letter=", "dead_letter=nowhere.");
    for (url, handler, code) in [(url, "10m", 0), (&missing, "10m", 1), (url, "2h", 1)] {
        let output = cli().args(["doctor", url, "--handler", handler, "--json"]).output().await.unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(stdout.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(json["server"]["product"], "RabbitMQ");
        assert_eq!(
            json["findings"].as_array().unwrap().iter().any(|it| it["severity"] == "error"),
            code == 1
        );
    }
    let output = cli().args(["doctor", &missing]).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("error: dead-letter queue") && text.contains("throughline create 'amqp://***@"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "no colour where there is no terminal");
}

async fn alarm(broker: &RabbitMq, url: &str) {
    ctl(broker, "rabbitmqctl set_vm_memory_high_watermark 0.00001");
    let short = diagnose(url, None).await;
    assert_eq!(codes(&short), ["broker-blocked", "frame-max-small"], "{short:#?}");
    ctl(broker, "rabbitmqctl set_vm_memory_high_watermark 0.9");
    assert_eq!(codes(&diagnose(url, None).await), ["frame-max-small"]);
}
