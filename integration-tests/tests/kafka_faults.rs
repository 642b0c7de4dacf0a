//! A real Kafka that is killed, stopped and frozen under a steady flow: nothing that was accepted is lost, the order of each
//! key is kept, duplicates are counted, and both sides go on by themselves.
//!
//! `THROUGHLINE_SOAK=30m cargo test -p throughline-integration-tests --test kafka_faults -- --nocapture` repeats each fault
//! for so long.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it measured"
)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use throughline::{Bus, ConsumeOptions};
use throughline_brokers::Kafka;
use throughline_brokers::kafka::StartOptions;
use throughline_integration_tests::flow::{self, Flow};
use throughline_integration_tests::{log, soak, unique};
use throughline_testkit::endpoint;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// How long a flow runs between two faults.
const CALM: Duration = Duration::from_secs(2);

/// A broker of a test's own, because it is hurt; one at a time, because each wants the whole machine.
struct Victim {
    broker: Kafka,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Victim {
    async fn start(test: &str) -> Option<Self> {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        if !Kafka::installed() {
            endpoint::skip(test, "needs a Kafka of its own to hurt, and none is installed");
            return None;
        }
        log();
        let alone = ALONE.lock().await;
        let started = tokio::task::spawn_blocking(|| Kafka::start(&StartOptions::default()));
        Some(Self { broker: started.await.unwrap().unwrap(), _alone: alone })
    }

    /// A bus with a topic and a group of its own.
    async fn bus(&self, what: &str) -> Bus {
        let topic = unique(what);
        let bus =
            Bus::connect(format!("{}/{topic}?group={topic}&partitions=3", self.broker.url())).await.unwrap();
        bus.create("").await.unwrap();
        bus
    }

    /// Does something to the broker that blocks.
    async fn hurt(self, what: impl FnOnce(&mut Kafka) + Send + 'static) -> Self {
        let Self { mut broker, _alone } = self;
        let hurt = tokio::task::spawn_blocking(move || {
            what(&mut broker);
            broker
        });
        Self { broker: hurt.await.unwrap(), _alone }
    }
}

/// Waits until this holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ends a flow and checks what must hold after any fault.
async fn check(flow: Flow, bus: Bus, test: &str) {
    flow.goes_on().await;
    let summary = flow.finish().await;
    endpoint::measured(test, &summary.to_string());
    assert!(summary.lost.is_empty(), "lost {:?}", summary.lost);
    assert!(summary.out_of_order.is_empty(), "out of order {:?}", summary.out_of_order);
    // What was settled stays settled.
    until("the group has no lag", async || bus.depth("").await.is_ok_and(|depth| depth.ready == 0)).await;
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted() {
    const TEST: &str = "kafka_killed_and_restarted";
    let Some(mut victim) = Victim::start(TEST).await else { return };
    let bus = victim.bus(TEST).await;
    let flow = Flow::start(&bus).await;
    let end = soak();
    loop {
        for (how, stop) in [("killed", Kafka::kill as fn(&mut Kafka)), ("stopped", Kafka::stop)] {
            tokio::time::sleep(CALM).await;
            victim = victim
                .hurt(move |broker| {
                    stop(broker);
                    broker.restart().unwrap();
                })
                .await;
            let (publishing, consuming) = flow.recovered(Instant::now()).await;
            endpoint::measured(
                TEST,
                &format!(
                    "{how} and started: publishing after {publishing:.1?}, consuming after {consuming:.1?}"
                ),
            );
        }
        tokio::time::sleep(CALM).await;
        if Instant::now() >= end {
            break;
        }
    }
    check(flow, bus, TEST).await;
    drop(victim);
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_for_ten_seconds() {
    const TEST: &str = "kafka_frozen_for_ten_seconds";
    let Some(victim) = Victim::start(TEST).await else { return };
    let bus = victim.bus(TEST).await;
    let flow = Flow::start(&bus).await;
    let end = soak();
    loop {
        tokio::time::sleep(CALM).await;
        victim.broker.pause();
        tokio::time::sleep(Duration::from_secs(10)).await;
        victim.broker.resume();
        let (publishing, consuming) = flow.recovered(Instant::now()).await;
        endpoint::measured(
            TEST,
            &format!("publishing after {publishing:.1?}, consuming after {consuming:.1?}"),
        );
        tokio::time::sleep(CALM).await;
        if Instant::now() >= end {
            break;
        }
    }
    check(flow, bus, TEST).await;
    drop(victim);
}

/// Names the address of a [`consumer_process`].
const CONSUME: &str = "THROUGHLINE_TEST_CONSUME_KAFKA";

/// Not a test of its own: what [`consumer_killed_in_its_handler`] starts as a process and kills. For each message it
/// prints `begin`, and `end` when it is acked.
#[tokio::test]
async fn consumer_process() {
    let Ok(address) = std::env::var(CONSUME) else { return };
    let bus = Bus::connect(&address).await.unwrap();
    let options = ConsumeOptions { max_unsettled: 10, ..ConsumeOptions::default() };
    let mut consumer = bus.consumer_of("", options).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.unwrap();
        let (key, place) = flow::id(delivery.payload());
        println!("begin {key} {place}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        delivery.ack().await.unwrap();
        println!("end {key} {place}");
    }
}

/// A consumer process that is killed in the middle of its work: what it had not settled, and the little that it had not
/// committed, go to the next one, in order.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_killed_in_its_handler() {
    const TEST: &str = "kafka_consumer_killed_in_its_handler";
    const MESSAGES: u64 = 60;
    let Some(url) = endpoint::broker("kafka", TEST) else { return };
    log();
    let topic = unique(TEST);
    // A member that is gone is noticed after the session's time-out.
    let session = "kafka.session.timeout.ms=6000&commit_interval=100ms";
    let address = format!("{url}/{topic}?group={topic}&partitions=1&{session}");
    let bus = Bus::connect(&address).await.unwrap();
    bus.create("").await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    for result in publisher.publish_batch((0..MESSAGES).map(|place| flow::message((1, place)))).await {
        result.unwrap();
    }
    // How often each was begun, and how often ended, over all processes.
    let (mut begun, mut ended, mut kills) = (Vec::new(), Vec::new(), 0);
    while ended.last() != Some(&(MESSAGES - 1)) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "consumer_process", "--nocapture"])
            .env(CONSUME, &address)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut handled = 0;
        while let Some(line) = lines.next_line().await.unwrap() {
            // libtest's own first line has no newline.
            let words: Vec<_> = line.split_whitespace().collect();
            let Some(at) = words.iter().position(|word| *word == "begin" || *word == "end") else { continue };
            let place: u64 = words[at + 2].parse().unwrap();
            if words[at] == "end" {
                ended.push(place);
                if place == MESSAGES - 1 {
                    break;
                }
                continue;
            }
            begun.push(place);
            handled += 1;
            if handled == 25 {
                // In its handler.
                child.kill().await.unwrap();
                kills += 1;
            }
        }
        child.kill().await.unwrap();
    }
    let mut first: Vec<u64> = Vec::new();
    for place in &begun {
        if !first.contains(place) {
            first.push(*place);
        }
    }
    assert_eq!(first, (0..MESSAGES).collect::<Vec<_>>(), "lost, or out of order: {begun:?}");
    let duplicates = begun.len() - first.len();
    endpoint::measured(TEST, &format!("{kills} kills, lost 0, delivered again {duplicates}"));
    assert!(kills >= 2 && duplicates >= kills, "{kills} kills, {duplicates} delivered again");
    publisher.close().await.unwrap();
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}
