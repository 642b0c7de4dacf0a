//! Fifty thousand messages on their way from RabbitMQ to Kafka, while the bridge, the source or the sink is killed: nothing
//! is missing, the order of each key is kept, duplicates are counted, and the report is right about it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::future::pending;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use throughline::{Bus, ConsumeOptions};
use throughline_bridge::Bridge;
use throughline_brokers::{Kafka, RabbitMq};
use throughline_integration_tests::faults::{Victim, until};
use throughline_integration_tests::flow;
use throughline_integration_tests::ledger::{Id, UNKEYED};
use throughline_integration_tests::{cli, unique};
use throughline_testkit::endpoint;

const MESSAGES: u64 = 50_000;
/// A fifth of the messages has no key.
const KEYS: u32 = 4;

/// A destination, and its address as a user writes it.
struct Place {
    bus: Bus,
    address: String,
}

/// A queue full of messages.
async fn source(url: &str, test: &str) -> Place {
    // With one consumer at a time, what a lost connection held is not overtaken.
    let address = format!("{url}?queue={}&single_active=true", unique(test));
    let bus = Bus::connect(&address).await.unwrap();
    bus.create("").await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    for thousand in 0..MESSAGES / 1000 {
        let places = thousand * 1000..(thousand + 1) * 1000;
        let ids = places.map(|at| ((at % u64::from(KEYS + 1)) as u32, at / u64::from(KEYS + 1)));
        for result in publisher.publish_batch(ids.map(flow::message)).await {
            result.unwrap();
        }
    }
    publisher.close().await.unwrap();
    Place { bus, address }
}

async fn sink(url: &str, test: &str) -> Place {
    let topic = unique(test);
    let address = format!("{url}/{topic}?group={topic}&partitions=3");
    let bus = Bus::connect(&address).await.unwrap();
    bus.create("").await.unwrap();
    Place { bus, address }
}

async fn depth(of: &Bus) -> u64 {
    of.depth("").await.map_or(0, |depth| depth.ready)
}

/// What a report says, of whichever form.
struct Told {
    moved: u64,
    /// Of the messages in the sink, so many at most are there twice.
    twice_at_most: u64,
}

impl Told {
    fn of(report: &Value) -> Self {
        let count =
            |place: &str, name: &str| report.pointer(&format!("{place}/{name}")).unwrap().as_u64().unwrap();
        let sum = |name: &str| count("/totals", name) + count("/earlier", name);
        Self {
            moved: sum("moved"),
            twice_at_most: sum("copies") + sum("sent_again") + count("", "killed_in_flight"),
        }
    }
}

/// Reads the whole sink and checks it against what was sent, and against the report.
async fn check(sink: Place, report: &Value, test: &str) {
    let Place { bus: sink, .. } = sink;
    let told = Told::of(report);
    let total = depth(&sink).await;
    let options = ConsumeOptions { max_unsettled: 5000, ..ConsumeOptions::default() };
    let mut consumer = sink.consumer_of("", options).await.unwrap();
    let mut came: HashMap<Id, u64> = HashMap::new();
    let mut furthest: HashMap<u32, u64> = HashMap::new();
    let mut out_of_order = 0;
    for _ in 0..total {
        let delivery = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await.unwrap();
        let delivery = delivery.unwrap().unwrap();
        let id @ (key, place) = flow::id(delivery.payload());
        let times = came.entry(id).or_default();
        *times += 1;
        if *times == 1 && key != UNKEYED {
            let next = furthest.get(&key).map_or(0, |last| last + 1);
            out_of_order += u64::from(place != next);
            furthest.insert(key, place);
        }
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    let missing = MESSAGES - came.len() as u64;
    let extra = total - came.len() as u64;
    let text = format!(
        "{total} in the sink, missing {missing}, twice {extra}, out of order {out_of_order}; the report: moved {}, twice at most {}",
        told.moved, told.twice_at_most
    );
    endpoint::measured(test, &text);
    assert_eq!((missing, out_of_order), (0, 0), "{text}: {report}");
    assert!(extra <= told.twice_at_most, "{text}: {report}");
    // What a kill kept from being noted was not counted as moved, and is in the sink.
    assert!(told.moved >= MESSAGES && told.moved <= total, "{text}: {report}");
    sink.delete("").await.unwrap();
    sink.close().await.unwrap();
}

/// The bridge as a user runs it, killed three times in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_is_killed() {
    const TEST: &str = "bridge_killed";
    let (Some(rabbitmq), Some(kafka)) = (endpoint::broker("rabbitmq", TEST), endpoint::broker("kafka", TEST))
    else {
        return;
    };
    let (source, sink) = (source(&rabbitmq, TEST).await, sink(&kafka, TEST).await);
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    for part in [MESSAGES / 10, MESSAGES / 3, MESSAGES / 2] {
        let mut bridge = command(&source, &sink, &ledger).spawn().unwrap();
        until("a part is moved", async || {
            depth(&sink.bus).await >= part || bridge.try_wait().unwrap().is_some()
        })
        .await;
        assert!(bridge.try_wait().unwrap().is_none(), "it ended before it was killed");
        bridge.kill().await.unwrap();
    }
    let output = command(&source, &sink, &ledger).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(output.status.success(), "{report}");
    assert_eq!(report["killed_runs"], 3, "{report}");
    assert_eq!(depth(&source.bus).await, 0);
    source.bus.delete("").await.unwrap();
    source.bus.close().await.unwrap();
    check(sink, &report, TEST).await;
}

fn command(source: &Place, sink: &Place, ledger: &Path) -> tokio::process::Command {
    let mut command = cli();
    command
        .args(["bridge", &source.address, &sink.address, "--until-empty", "--json", "--ledger"])
        .arg(ledger)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a bridge in this process, and does something once a part is moved.
async fn move_all<F: Future>(source: &Place, sink: &Place, fault: impl FnOnce() -> F) -> (Value, F::Output) {
    let bridge = Bridge::new(&source.bus, &sink.bus).until_empty();
    let progress = bridge.progress();
    let began = Instant::now();
    let run = tokio::spawn(bridge.run(pending()));
    until("a part is moved", async || progress.now().totals.moved >= MESSAGES / 5).await;
    let hurt = fault().await;
    let report = run.await.unwrap().unwrap();
    assert!(report.is_success(), "{report:?}");
    assert!(
        report.totals.moved - MESSAGES / 5 > 0,
        "all was moved before the fault, in {:?}",
        began.elapsed()
    );
    (serde_json::to_value(&report).unwrap(), hurt)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_is_killed() {
    const TEST: &str = "bridge_source_killed";
    let Some(kafka) = endpoint::broker("kafka", TEST) else { return };
    let Some(victim) = Victim::<RabbitMq>::start(TEST).await else { return };
    let (source, sink) = (source(&victim.broker.url(), TEST).await, sink(&kafka, TEST).await);
    victim.broker.sync_metadata().unwrap();
    let (report, victim) = move_all(&source, &sink, || {
        victim.hurt(|broker| {
            broker.kill();
            broker.restart().unwrap();
        })
    })
    .await;
    source.bus.close().await.unwrap();
    drop(victim);
    check(sink, &report, TEST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_is_killed() {
    const TEST: &str = "bridge_sink_killed";
    let Some(rabbitmq) = endpoint::broker("rabbitmq", TEST) else { return };
    let Some(victim) = Victim::<Kafka>::start(TEST).await else { return };
    let (source, sink) = (source(&rabbitmq, TEST).await, sink(&victim.broker.url(), TEST).await);
    let (report, victim) = move_all(&source, &sink, || {
        victim.hurt(|broker| {
            broker.kill();
            broker.restart().unwrap();
        })
    })
    .await;
    source.bus.delete("").await.unwrap();
    source.bus.close().await.unwrap();
    check(sink, &report, TEST).await;
    drop(victim);
}
