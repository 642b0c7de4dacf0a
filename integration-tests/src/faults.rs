//! What is done to a broker under a steady flow, and what must hold after it, the same for every broker that can be
//! killed and frozen.

use std::process::Stdio;
use std::time::{Duration, Instant};

use throughline::{Bus, ConsumeOptions};
use throughline_brokers::{Kafka, RabbitMq, StartOptions, kafka};
use throughline_testkit::endpoint;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::flow::{self, Flow};
use crate::{log, soak};

/// How long a flow runs between two faults.
const CALM: Duration = Duration::from_secs(2);

/// A broker that a test can start for itself, and hurt. Starting and stopping block.
pub trait Broker: Sized + Send + 'static {
    /// What it is called.
    const NAME: &str;
    /// Whether it is on this machine.
    fn installed() -> bool;
    /// Starts one, with data of its own.
    fn start() -> Self;
    /// SIGKILL.
    fn kill(&mut self);
    /// SIGTERM, waited for.
    fn stop(&mut self);
    /// Starts it again on the same port with the same data.
    fn restart(&mut self);
    /// SIGSTOP.
    fn pause(&self);
    /// SIGCONT.
    fn resume(&self);
}

macro_rules! broker {
    ($broker:ty, $name:literal, $options:expr) => {
        impl Broker for $broker {
            const NAME: &str = $name;

            fn installed() -> bool {
                <$broker>::installed()
            }

            fn start() -> Self {
                <$broker>::start(&$options).unwrap()
            }

            fn kill(&mut self) {
                <$broker>::kill(self);
            }

            fn stop(&mut self) {
                <$broker>::stop(self);
            }

            fn restart(&mut self) {
                <$broker>::restart(self).unwrap();
            }

            fn pause(&self) {
                <$broker>::pause(self);
            }

            fn resume(&self) {
                <$broker>::resume(self);
            }
        }
    };
}

broker!(RabbitMq, "RabbitMQ", StartOptions::default());
broker!(Kafka, "Kafka", kafka::StartOptions::default());

/// A broker of a test's own, because it is hurt; one at a time, because each wants the whole machine.
pub struct Victim<B> {
    /// The broker.
    pub broker: B,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl<B: Broker> Victim<B> {
    /// Starts one; skips loudly where it is not installed.
    pub async fn start(test: &str) -> Option<Self> {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        if !B::installed() {
            let name = B::NAME;
            endpoint::skip(test, &format!("needs a {name} of its own to hurt, and none is installed"));
            return None;
        }
        log();
        let alone = ALONE.lock().await;
        let broker = tokio::task::spawn_blocking(B::start).await.unwrap();
        Some(Self { broker, _alone: alone })
    }

    /// Does something to the broker that blocks.
    pub async fn hurt(self, what: impl FnOnce(&mut B) + Send + 'static) -> Self {
        let Self { mut broker, _alone } = self;
        let hurt = tokio::task::spawn_blocking(move || {
            what(&mut broker);
            broker
        });
        Self { broker: hurt.await.unwrap(), _alone }
    }

    /// Kills it, and stops it, and starts it again each time, while messages flow through the bus's own destination.
    pub async fn killed_and_restarted(mut self, bus: Bus, test: &str) {
        let flow = Flow::start(&bus).await;
        let end = soak();
        loop {
            for (how, stop) in [("killed", B::kill as fn(&mut B)), ("stopped", B::stop)] {
                tokio::time::sleep(CALM).await;
                self = self
                    .hurt(move |broker| {
                        stop(broker);
                        broker.restart();
                    })
                    .await;
                recovered(&flow, test, &format!("{how} and started: ")).await;
            }
            if Instant::now() >= end {
                break;
            }
        }
        check(flow, bus, test).await;
    }

    /// Freezes it for ten seconds, while messages flow through the bus's own destination.
    pub async fn frozen_for_ten_seconds(self, bus: Bus, test: &str) {
        let flow = Flow::start(&bus).await;
        let end = soak();
        loop {
            tokio::time::sleep(CALM).await;
            self.broker.pause();
            tokio::time::sleep(Duration::from_secs(10)).await;
            self.broker.resume();
            recovered(&flow, test, "").await;
            if Instant::now() >= end {
                break;
            }
        }
        check(flow, bus, test).await;
    }
}

async fn recovered(flow: &Flow, test: &str, after: &str) {
    let (publishing, consuming) = flow.recovered(Instant::now()).await;
    let text = format!("{after}publishing after {publishing:.1?}, consuming after {consuming:.1?}");
    endpoint::measured(test, &text);
}

/// Waits until this holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends a flow and checks what must hold after any fault.
pub async fn check(flow: Flow, bus: Bus, test: &str) {
    flow.goes_on().await;
    let summary = flow.finish().await;
    endpoint::measured(test, &summary.to_string());
    assert!(summary.lost.is_empty(), "lost {:?}", summary.lost);
    assert!(summary.out_of_order.is_empty(), "out of order {:?}", summary.out_of_order);
    // What was settled stays settled: nothing is left to be delivered again.
    until("nothing is left", async || bus.depth("").await.is_ok_and(|depth| depth.ready == 0)).await;
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}

/// Names the address of a [`consumer_process`].
const CONSUME: &str = "THROUGHLINE_TEST_CONSUME";

/// The body of a test named `consumer_process`, which [`killed_in_its_handler`] starts as a process and kills. For each
/// message it prints `begin`, and `end` when it is acked. Does nothing where it was not asked to.
#[allow(clippy::print_stdout, reason = "it is read by the process that started it")]
pub async fn consumer_process() {
    let Ok(address) = std::env::var(CONSUME) else { return };
    let bus = Bus::connect(&address).await.unwrap();
    // Each ack is written before the next message.
    let options =
        ConsumeOptions { max_unsettled: 10, settle_linger: Duration::ZERO, ..ConsumeOptions::default() };
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

/// Publishes messages of one key to the address, and has them consumed by processes that are killed in their handlers:
/// the message at hand and those that were had in advance go to the next one, in order.
pub async fn killed_in_its_handler(address: &str, test: &str) {
    const MESSAGES: u64 = 60;
    /// The message of a process in whose handler it is killed.
    const LAST: u64 = 17;
    log();
    let bus = Bus::connect(address).await.unwrap();
    bus.create("").await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    let end = soak();
    let settled = async || bus.depth("").await.is_ok_and(|depth| depth.ready == 0);
    let (mut kills, mut duplicates) = (0, 0);
    loop {
        for result in publisher.publish_batch((0..MESSAGES).map(|place| flow::message((1, place)))).await {
            result.unwrap();
        }
        // Over all processes.
        let (mut begun, mut ended): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        while ended.last() != Some(&(MESSAGES - 1)) {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "consumer_process", "--nocapture"])
                .env(CONSUME, address)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut handled = 0;
            while let Some(line) = lines.next_line().await.unwrap() {
                // libtest's own first line has no newline.
                let mut words = line.split_whitespace().skip_while(|word| !["begin", "end"].contains(word));
                let (Some(what), Some(_key), Some(place)) = (words.next(), words.next(), words.next()) else {
                    continue;
                };
                let place = place.parse().unwrap();
                if what == "end" {
                    ended.push(place);
                    if place == MESSAGES - 1 {
                        break;
                    }
                    continue;
                }
                begun.push(place);
                handled += 1;
                if handled == LAST {
                    child.kill().await.unwrap();
                    kills += 1;
                }
            }
            if ended.last() == Some(&(MESSAGES - 1)) {
                until("all is settled", settled).await;
            }
            child.kill().await.unwrap();
        }
        until("nothing comes back", settled).await;
        let mut first: Vec<u64> = Vec::new();
        for place in &begun {
            if !first.contains(place) {
                first.push(*place);
            }
        }
        assert_eq!(first, (0..MESSAGES).collect::<Vec<_>>(), "lost, or out of order: {begun:?}");
        assert!(first.iter().all(|place| ended.contains(place)), "begun {begun:?}, ended {ended:?}");
        duplicates += begun.len() - first.len();
        if Instant::now() >= end {
            break;
        }
    }
    endpoint::measured(test, &format!("{kills} kills, lost 0, delivered again {duplicates}"));
    assert!(kills >= 3 && duplicates >= kills, "{kills} kills, {duplicates} delivered again");
    publisher.close().await.unwrap();
    bus.delete("").await.unwrap();
    bus.close().await.unwrap();
}
