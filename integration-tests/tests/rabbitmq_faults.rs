//! A real RabbitMQ that is killed, frozen and cut off under a steady flow: nothing that was accepted is lost, the order of
//! each key is kept, duplicates are counted, and both sides go on by themselves.
//!
//! `THROUGHLINE_SOAK=30m cargo test -p throughline-integration-tests --test rabbitmq_faults -- --nocapture` repeats each
//! fault for so long.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use throughline::{Bus, ErrorKind, PublishOptions, Retry, SendOptions};
use throughline_brokers::RabbitMq;
use throughline_integration_tests::faults::{self, Victim, check, until};
use throughline_integration_tests::flow::{self, Flow};
use throughline_integration_tests::{log, soak, unique};
use throughline_testkit::endpoint;
use throughline_testkit::proxy::CuttingProxy;

/// A consumer that is cut off and comes back is another one to the broker, which may not have noticed the loss: only this
/// keeps newer messages from overtaking those that the lost connection held.
const ORDERED: &str = "single_active=true";

/// A RabbitMQ to hurt, and a bus with a queue of its own.
async fn victim(test: &str) -> Option<(Victim<RabbitMq>, Bus)> {
    let victim = Victim::<RabbitMq>::start(test).await?;
    let bus =
        Bus::connect(format!("{}?queue={}&{ORDERED}", victim.broker.url(), unique(test))).await.unwrap();
    bus.create("").await.unwrap();
    // A broker that is killed right after a quorum queue was declared forgets the queue.
    victim.broker.sync_metadata().unwrap();
    Some((victim, bus))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted() {
    const TEST: &str = "killed_and_restarted";
    let Some((victim, bus)) = victim(TEST).await else { return };
    victim.killed_and_restarted(bus, TEST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_for_ten_seconds() {
    const TEST: &str = "frozen_for_ten_seconds";
    let Some((victim, bus)) = victim(TEST).await else { return };
    victim.frozen_for_ten_seconds(bus, TEST).await;
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

/// Not a test of its own: a process of [`consumer_killed_in_its_handler`].
#[tokio::test]
async fn consumer_process() {
    faults::consumer_process().await;
}

/// The message at hand and those it had in advance go to the next one, in order.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_killed_in_its_handler() {
    const TEST: &str = "consumer_killed_in_its_handler";
    let Some(url) = endpoint::broker("rabbitmq", TEST) else { return };
    let address = format!("{url}?queue={}", unique(TEST));
    faults::killed_in_its_handler(&address, TEST).await;
}
