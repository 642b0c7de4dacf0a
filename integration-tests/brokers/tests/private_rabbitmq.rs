//! A private RabbitMQ, started, killed, restarted, paused and stopped for real.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use throughline_brokers::process::ProcessId;
use throughline_brokers::{RabbitMq, Record, StartOptions, folder, kind, skip};

/// A durable quorum queue, declared through the management API: no AMQP client is needed for that.
fn declare_quorum_queue(broker: &RabbitMq, name: &str) -> Result<()> {
    let address = broker.management_url().rsplit('@').next().context("no host")?.to_owned();
    let body = r#"{"durable":true,"arguments":{"x-queue-type":"quorum"}}"#;
    let mut stream = TcpStream::connect(&address)?;
    write!(
        stream,
        "PUT /api/queues/%2f/{name} HTTP/1.1\r\nhost: {address}\r\nauthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    Ok(())
}

fn answers(broker: &RabbitMq) -> bool {
    kind("rabbitmq").is_some_and(|kind| kind.probe(&broker.url(), Duration::from_millis(500)).is_ok())
}

/// The record of the broker in this folder.
fn record(broker: &Path) -> Option<Record> {
    folder::list(broker.parent()?).into_iter().find(|(path, _)| path == broker)?.1.ok()
}

fn alive(processes: &[ProcessId]) -> usize {
    processes.iter().filter(|process| process.is_alive()).count()
}

#[test]
fn a_broker_lives_through_everything_that_tests_do_to_it() -> Result<()> {
    const NAME: &str = "private_rabbitmq::a_broker_lives_through_everything_that_tests_do_to_it";
    if !RabbitMq::installed() {
        skip(NAME, "RabbitMQ is not installed");
        return Ok(());
    }
    let took = |what: &str, started: Instant| println!("{what}: {:.1} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut broker = RabbitMq::start(&StartOptions::default())?;
    took("start", started);
    assert!(answers(&broker));
    assert!(broker.version().starts_with(|c: char| c.is_ascii_digit()), "{}", broker.version());
    let url = broker.url();

    // A kill right after a declaration loses the queue, unless the metadata has been written.
    declare_quorum_queue(&broker, "kept")?;
    let started = Instant::now();
    broker.sync_metadata()?;
    took("sync_metadata", started);
    broker.kill();
    assert!(!broker.is_running() && !answers(&broker));
    let started = Instant::now();
    broker.restart()?;
    took("restart after a kill", started);
    assert_eq!(broker.url(), url, "same port");
    assert!(broker.ctl(&["list_queues", "name"])?.lines().any(|line| line == "kept"));

    broker.pause();
    assert!(broker.is_running() && !answers(&broker));
    broker.resume();
    assert!(answers(&broker));

    broker.pause();
    let started = Instant::now();
    broker.restart()?;
    took("restart in good order, from a pause", started);
    assert!(answers(&broker));

    let folder = broker.folder().to_path_buf();
    let processes = record(&folder).context("no record")?.processes;
    assert!(alive(&processes) >= 3, "epmd, the script and the VM: {processes:?}");
    drop(broker);
    assert_eq!(alive(&processes), 0);
    assert!(!folder.exists());
    Ok(())
}

#[test]
fn a_broker_that_cannot_start_says_why_and_leaves_nothing() {
    const NAME: &str = "private_rabbitmq::a_broker_that_cannot_start_says_why_and_leaves_nothing";
    if !RabbitMq::installed() {
        return skip(NAME, "RabbitMQ is not installed");
    }
    // Of its own, to see that it stays empty.
    let base = std::env::temp_dir().join(format!("throughline-bad-rabbitmq-{}", std::process::id()));
    let options = StartOptions {
        base: base.clone(),
        config: "no.such.setting = 1".to_owned(),
        ..StartOptions::default()
    };
    let error = RabbitMq::start(&options).unwrap_err().to_string();
    assert!(error.contains("no.such.setting"), "{error}");
    // Fails if anything was left in it.
    std::fs::remove_dir(&base).unwrap();
}
