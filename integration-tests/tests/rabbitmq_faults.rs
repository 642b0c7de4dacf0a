//! A real RabbitMQ that is killed, frozen and cut off under a steady flow: nothing that was accepted is lost, the order of
//! each key is kept, duplicates are counted, and both sides go on by themselves.
//!
//! `THROUGHLINE_SOAK=30m cargo test -p throughline-integration-tests --test rabbitmq_faults -- --nocapture` repeats each
//! fault for so long.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it measured"
)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use throughline::{Bus, ConsumeOptions, ErrorKind, PublishOptions, Retry, SendOptions};
use throughline_brokers::{RabbitMq, StartOptions};
use throughline_integration_tests::flow::{self, Flow};
use throughline_integration_tests::{log, soak, unique};
use throughline_testkit::endpoint;
use throughline_testkit::proxy::CuttingProxy;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// A consumer that is cut off and comes back is another one to the broker, which may not have noticed the loss: only this
/// keeps newer messages from overtaking those that the lost connection held.
const ORDERED: &str = "single_active=true";

/// How long a flow runs between two faults.
const CALM: Duration = Duration::from_secs(2);

/// A broker of a test's own, because it is hurt; one at a time, because each wants the whole machine.
struct Victim {
    broker: RabbitMq,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Victim {
    async fn start(test: &str) -> Option<Self> {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        if !RabbitMq::installed() {
            endpoint::skip(test, "needs a RabbitMQ of its own to hurt, and none is installed");
            return None;
        }
        log();
        let alone = ALONE.lock().await;
        let started = tokio::task::spawn_blocking(|| RabbitMq::start(&StartOptions::default()));
        Some(Self { broker: started.await.unwrap().unwrap(), _alone: alone })
    }

    /// A bus with a queue of its own.
    async fn bus(&self, what: &str) -> Bus {
        let bus =
            Bus::connect(format!("{}?queue={}&{ORDERED}", self.broker.url(), unique(what))).await.unwrap();
        bus.create("").await.unwrap();
        // A broker that is killed right after a quorum queue was declared forgets the queue.
        self.broker.sync_metadata().unwrap();
        bus
    }

    /// Does something to the broker that blocks.
    async fn hurt(self, what: impl FnOnce(&mut RabbitMq) + Send + 'static) -> Self {
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
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends a flow and checks what must hold after any fault.
async fn check(flow: Flow, bus: Bus, test: &str) {
    flow.goes_on().await;
    let summary = flow.finish().await;
    endpoint::measured(test, &summary.to_string());
    assert!(summary.lost.is_empty(), "lost {:?}", summary.lost);
    assert!(summary.out_of_order.is_empty(), "out of order {:?}", summary.out_of_order);
    // What was settled stays settled: nothing is left to be delivered again.
    until("the queue is empty", async || bus.depth("").await.unwrap().ready == 0).await;
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted() {
    const TEST: &str = "killed_and_restarted";
    let Some(mut victim) = Victim::start(TEST).await else { return };
    let bus = victim.bus(TEST).await;
    let flow = Flow::start(&bus).await;
    let end = soak();
    loop {
        for (how, stop) in [("killed", RabbitMq::kill as fn(&mut RabbitMq)), ("stopped", RabbitMq::stop)] {
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
    const TEST: &str = "frozen_for_ten_seconds";
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

/// A bus through a proxy that can be cut, with a queue of its own.
async fn behind_a_proxy(test: &str) -> Option<(CuttingProxy, Bus)> {
    let url = endpoint::broker("rabbitmq", test)?;
    log();
    let (scheme_and_user, host) = url.split_once('@').unwrap();
    let (host, vhost) = host.split_once('/').unwrap_or((host, ""));
    let proxy = CuttingProxy::start(host).await;
    let bus = format!("{scheme_and_user}@{}/{vhost}?queue={}&{ORDERED}", proxy.address(), unique(test));
    let bus = Bus::connect(bus).await.unwrap();
    bus.create("").await.unwrap();
    Some((proxy, bus))
}

/// Cuts at every place of a stream of replies: within a confirm, between two, behind several.
#[tokio::test(flavor = "multi_thread")]
async fn cut_after_any_byte() {
    const TEST: &str = "cut_after_any_byte";
    let Some((proxy, bus)) = behind_a_proxy(TEST).await else { return };
    let flow = Flow::start(&bus).await;
    let end = soak();
    // A confirm's frame is 21 bytes, a delivery's three some hundreds: odd steps, so that rounds do not repeat.
    let mut bytes = 0;
    for round in 1.. {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = proxy.connections();
        proxy.cut_after_replies(bytes);
        until("both connections are made again", async || proxy.connections() >= before + 2).await;
        bytes = (bytes + 13) % 2_000;
        if round >= 16 && Instant::now() >= end {
            endpoint::measured(TEST, &format!("{round} cuts"));
            break;
        }
    }
    check(flow, bus, TEST).await;
}

/// The broker has the message and nobody was told: that is uncertain, and whoever allows duplicates gets one.
#[tokio::test(flavor = "multi_thread")]
async fn cut_around_a_confirm() {
    const TEST: &str = "cut_around_a_confirm";
    let Some((proxy, bus)) = behind_a_proxy(TEST).await else { return };
    // Not behind the proxy.
    let direct = endpoint::broker("rabbitmq", TEST).unwrap();
    let queue = bus.address().to_string();
    let direct = Bus::connect(format!("{direct}?{}", queue.split_once('?').unwrap().1)).await.unwrap();
    let arrived = async |count| direct.depth("").await.unwrap().ready == count;

    let publisher = bus.publisher().await.unwrap();
    publisher.publish(flow::message((1, 0))).await.unwrap();
    proxy.hold_replies();
    let pending = publisher.enqueue(flow::message((1, 1)), SendOptions::default()).await.unwrap();
    until("the message is in the queue", async || arrived(2).await).await;
    proxy.cut();
    let error = pending.receipt().await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Disconnected, Retry::Uncertain), "{error}");
    // Its key is fenced until somebody has decided.
    let error = publisher.publish(flow::message((1, 2))).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::HeldBack, Retry::Safe), "{error}");
    assert!(publisher.resume(b"1"));
    publisher.publish(flow::message((1, 2))).await.unwrap();

    let options = PublishOptions { allow_duplicates: true, ..PublishOptions::default() };
    let again = bus.publisher_to("", options).await.unwrap();
    again.publish(flow::message((2, 0))).await.unwrap();
    proxy.hold_replies();
    let pending = again.enqueue(flow::message((2, 1)), SendOptions::default()).await.unwrap();
    until("the message is in the queue", async || arrived(5).await).await;
    proxy.cut();
    pending.receipt().await.unwrap();

    // Right after a confirm: what was said is true, and the next message goes over a new connection.
    again.publish(flow::message((3, 0))).await.unwrap();
    proxy.cut();
    again.publish(flow::message((3, 1))).await.unwrap();

    let mut consumer = direct.consumer().await.unwrap();
    let mut came = Vec::new();
    for _ in 0..8 {
        let delivery = tokio::time::timeout(Duration::from_secs(10), consumer.next()).await.unwrap();
        let delivery = delivery.unwrap().unwrap();
        came.push(flow::id(delivery.payload()));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    assert_eq!(came, [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 1), (3, 0), (3, 1)]);
    endpoint::measured(TEST, "7 messages, 1 delivered twice, as was allowed");
    for publisher in [publisher, again] {
        publisher.close().await.unwrap();
    }
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
    direct.close().await.unwrap();
}

/// Names the queue of a [`consumer_process`].
const CONSUME: &str = "THROUGHLINE_TEST_CONSUME";

/// Not a test of its own: what [`consumer_killed_in_its_handler`] starts as a process and kills. For each message it
/// prints `begin` and, when it is settled for certain, `end`.
#[tokio::test]
async fn consumer_process() {
    let Ok(address) = std::env::var(CONSUME) else { return };
    let bus = Bus::connect(&address).await.unwrap();
    // Each ack is written before the next message.
    let options =
        ConsumeOptions { max_unsettled: 10, settle_linger: Duration::ZERO, ..ConsumeOptions::default() };
    let mut consumer = bus.consumer_of("", options).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.unwrap();
        let (key, place) = flow::id(delivery.payload());
        println!("begin {key} {place} {}", delivery.receive_count().unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(20)).await;
        delivery.ack().await.unwrap();
        println!("end {key} {place}");
    }
}

/// A consumer process that is killed in the middle of its work: the message at hand and those it had in advance go to the
/// next one, in order.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_killed_in_its_handler() {
    const TEST: &str = "consumer_killed_in_its_handler";
    const MESSAGES: u64 = 60;
    let Some(url) = endpoint::broker("rabbitmq", TEST) else { return };
    log();
    let address = format!("{url}?queue={}", unique(TEST));
    let bus = Bus::connect(&address).await.unwrap();
    bus.create("").await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    let end = soak();
    let (mut kills, mut duplicates) = (0, 0);
    loop {
        for result in publisher.publish_batch((0..MESSAGES).map(|place| flow::message((1, place)))).await {
            result.unwrap();
        }
        // How often each was begun, and how often ended, over all processes.
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
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
                let Some(at) = words.iter().position(|word| *word == "begin" || *word == "end") else {
                    continue;
                };
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
                if handled == 17 {
                    // In its handler, its ack not written.
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
        assert!(first.iter().all(|place| ended.contains(place)), "begun {begun:?}, ended {ended:?}");
        duplicates += begun.len() - first.len();
        let unsettled = async || bus.depth("").await.unwrap().ready == 0;
        until("nothing is left", unsettled).await;
        if Instant::now() >= end {
            break;
        }
    }
    endpoint::measured(TEST, &format!("{kills} kills, lost 0, delivered again {duplicates}"));
    assert!(kills >= 3 && duplicates >= kills, "{kills} kills, {duplicates} delivered again");
    publisher.close().await.unwrap();
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}
