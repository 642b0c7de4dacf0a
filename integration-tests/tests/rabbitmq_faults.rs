//! A real RabbitMQ that is killed, frozen and cut off under a steady flow: nothing that was accepted is lost, the order of
//! each key is kept, duplicates are counted, and both sides go on by themselves.
//!
//! `THROUGHLINE_SOAK=30m cargo test -p throughline-integration-tests --test rabbitmq_faults -- --nocapture` repeats each
//! fault for so long.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and tells what it measured"
)]

use std::time::{Duration, Instant};

use throughline::{Bus, Depth};
use throughline_brokers::{RabbitMq, StartOptions};
use throughline_integration_tests::flow::Flow;
use throughline_integration_tests::{log, soak, unique};
use throughline_testkit::endpoint;
use throughline_testkit::proxy::CuttingProxy;

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
        let bus = Bus::connect(format!("{}?queue={}", self.broker.url(), unique(what))).await.unwrap();
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

/// Ends a flow and checks what must hold after any fault.
async fn check(flow: Flow, bus: Bus, test: &str) {
    let summary = flow.finish().await;
    eprint!("{test}: {summary}");
    assert!(summary.lost.is_empty(), "lost {:?}", summary.lost);
    assert!(summary.out_of_order.is_empty(), "out of order {:?}", summary.out_of_order);
    assert!(summary.accepted > 500, "only {} were accepted: did it go on?", summary.accepted);
    // What was settled stays settled: nothing is left to be delivered again.
    assert_eq!(bus.depth("").await.unwrap(), Depth { ready: 0, ..Depth::default() });
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
            eprintln!(
                "{TEST}: {how} and started: publishing after {publishing:.1?}, consuming after {consuming:.1?}"
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
        eprintln!("{TEST}: publishing after {publishing:.1?}, consuming after {consuming:.1?}");
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
    let bus = format!("{scheme_and_user}@{}/{vhost}?queue={}", proxy.address(), unique(test));
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
    let mut longest = Duration::ZERO;
    for round in 0.. {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let cut = Instant::now();
        proxy.cut_after_replies(bytes);
        let (publishing, consuming) = flow.recovered(cut + Duration::from_millis(20)).await;
        longest = longest.max(publishing).max(consuming);
        bytes = (bytes + 13) % 2_000;
        if round >= 15 && Instant::now() >= end {
            eprintln!("{TEST}: {} cuts, the longest pause after one was {longest:.1?}", round + 1);
            break;
        }
    }
    check(flow, bus, TEST).await;
}
