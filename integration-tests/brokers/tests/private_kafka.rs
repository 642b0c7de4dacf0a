//! A private Kafka, started, killed, restarted, paused and stopped for real.

use std::time::{Duration, Instant};

use anyhow::Result;
use throughline_brokers::{Kafka, kafka::StartOptions, kind, skip};

fn answers(broker: &Kafka) -> bool {
    kind("kafka").is_some_and(|kind| kind.probe(&broker.url(), Duration::from_millis(500)).is_ok())
}

/// The same, for one that has just been woken on a busy machine.
fn answers_soon(broker: &Kafka) -> bool {
    (0..40).any(|_| answers(broker))
}

#[test]
fn a_broker_lives_through_everything_that_tests_do_to_it() -> Result<()> {
    const NAME: &str = "private_kafka::a_broker_lives_through_everything_that_tests_do_to_it";
    if !Kafka::installed() {
        skip(NAME, "Apache Kafka is not installed");
        return Ok(());
    }
    let took = |what: &str, started: Instant| println!("{what}: {:.1} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let mut broker = Kafka::start(&StartOptions::default())?;
    took("start", started);
    assert!(answers(&broker));
    let (url, folder) = (broker.url(), broker.folder().to_path_buf());

    broker.pause();
    assert!(broker.is_running() && !answers(&broker));
    broker.resume();
    assert!(answers_soon(&broker));

    broker.kill();
    assert!(!broker.is_running() && !answers(&broker));
    let started = Instant::now();
    broker.restart()?;
    took("restart after a kill", started);
    assert_eq!(broker.url(), url, "same port");
    assert!(answers(&broker));

    broker.pause();
    let started = Instant::now();
    broker.restart()?;
    took("restart in good order, from a pause", started);
    assert!(answers(&broker));

    drop(broker);
    assert!(!folder.exists());
    Ok(())
}
