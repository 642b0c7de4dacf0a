//! The end of a worker: what was done is settled, what was not begun is given back, and nothing hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use throughline::capabilities::{Capabilities, Lease, MEMORY, SettleMeaning};
use throughline::{ConsumeOptions, Consumer, ErrorKind, Order};
use throughline_testkit::scripted::{self, ScriptedConsumer};
use throughline_worker::{Job, Router, Worker};
use tokio::time::Instant;

use crate::rig::{LONG, Rig, Seen, keyed, message, start, until, within};

#[tokio::test(start_paused = true)]
async fn what_was_done_does_not_come_again_and_the_rest_is_given_back() {
    async fn handler(job: Job<Seen>) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        job.state().push(job.id());
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer().await, Router::with_state(seen.clone()).on("a", handler));
    let running = start(worker.concurrency(8));
    for _ in 0..100 {
        rig.publish(message("a", "")).await;
    }
    // One batch is through, the next is under way, the others are buffered.
    until("some are done", async || seen.len() >= 8).await;
    let report = running.stop().await;
    assert_eq!(report.acked, seen.len() as u64);
    assert!((8..50).contains(&report.acked), "{report:?}");
    let left = 100 - report.acked;
    let depth = rig.bus.depth("").await.unwrap();
    assert_eq!((depth.ready, depth.unsettled), (left, Some(0)));
    let mut next = rig.consumer().await;
    let mut done = seen.all();
    for _ in 0..left {
        let delivery = within(next.next()).await.unwrap().unwrap();
        assert!(!done.iter().any(|id| id == delivery.id()), "was done, and came again");
        done.push(delivery.id().to_owned());
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_told_and_then_dropped_when_the_time_to_drain_is_over() {
    async fn handler(job: Job<Seen>) {
        job.state().push("begun");
        job.draining().await;
        assert!(job.is_draining());
        job.state().push("told");
        tokio::time::sleep(LONG).await;
        job.state().push("ended");
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    let worker = Worker::new(rig.consumer().await, Router::with_state(seen.clone()).on("a", handler));
    let running = start(worker.drain(Duration::from_secs(3)));
    rig.publish(message("a", "")).await;
    until("it has begun", async || seen.len() == 1).await;
    let began = Instant::now();
    let report = running.stop().await;
    assert_eq!(began.elapsed().as_secs(), 3);
    assert_eq!(seen.all(), ["begun", "told"]);
    assert_eq!((report.acked, report.released, report.unfinished), (0, 1, 0));
    assert_eq!(rig.bus.depth("").await.unwrap().ready, 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_key_is_given_back_in_order() {
    async fn handler(job: Job<Seen>) {
        job.state().push(job.id());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let rig = Rig::new().await;
    let seen = Seen::default();
    // The memory transport would keep a key's messages back itself.
    let options = ConsumeOptions { order: Order::Any, ..ConsumeOptions::default() };
    let worker = Worker::new(
        rig.consumer_with(options.clone()).await,
        Router::with_state(seen.clone()).on("a", handler),
    );
    let health = worker.health();
    let running = start(worker);
    let mut sent = Vec::new();
    for _ in 0..10 {
        let envelope = keyed("a", "k", "");
        sent.push(envelope.id.clone());
        rig.publish(envelope).await;
    }
    until("it holds the others", async || health.held() >= 5 && health.is_ready()).await;
    let report = running.stop().await;
    assert!(!health.is_ready() && health.is_live());
    let mut next = rig.consumer_with(options).await;
    let mut all = seen.all();
    assert_eq!(report.acked, all.len() as u64);
    while all.len() < 10 {
        let delivery = within(next.next()).await.unwrap().unwrap();
        all.push(delivery.id().to_owned());
        delivery.ack().await.unwrap();
    }
    assert_eq!(all, sent);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_source_is_the_workers_and_is_told() {
    async fn handler() {}
    let rig = Rig::new().await;
    let worker = Worker::new(rig.consumer().await, Router::new().on("a", handler));
    let running = tokio::spawn(worker.run(std::future::pending()));
    rig.publish(message("a", "")).await;
    rig.until_empty().await;
    rig.bus.delete("").await.unwrap();
    let error = within(running).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_run_on_all_threads_and_nothing_is_lost_or_done_twice() {
    async fn handler(job: Job<Arc<AtomicU64>>) {
        tokio::task::yield_now().await;
        job.state().fetch_add(1, Ordering::Relaxed);
    }
    let rig = Rig::new().await;
    let done = Arc::new(AtomicU64::new(0));
    let worker = Worker::new(rig.consumer().await, Router::with_state(done.clone()).on("a", handler));
    let health = worker.health();
    let running = start(worker);
    for chunk in 0..20 {
        let batch = (0..100).map(|n| keyed("a", &format!("{}", n % 16), &format!("{chunk}")));
        for result in rig.publisher.publish_batch(batch).await {
            result.unwrap();
        }
    }
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!((report.acked, done.load(Ordering::Relaxed)), (2000, 2000));
    assert_eq!((report.unsettled, report.unfinished), (0, 0));
    assert!(health.lag().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_ack_that_fails_after_it_was_answered_is_in_the_report() {
    async fn handler() {}
    let deferred = Capabilities { settle: SettleMeaning::Deferred, lease: Lease::None, ..MEMORY };
    let driver = ScriptedConsumer::with(deferred);
    driver.set_has_dead_letter(true);
    for n in 0..3 {
        driver.feed(message("a", &n.to_string()));
    }
    driver.fail(2, scripted::never());
    let address = "memory:scripted?queue=q".parse().unwrap();
    let consumer = Consumer::new(driver.clone(), &address, ConsumeOptions::default());
    let worker = Worker::new(consumer, Router::new().on("a", handler));
    let health = worker.health();
    let running = start(worker);
    until("all are done", async || health.report().acked == 3).await;
    let report = running.stop().await;
    assert_eq!((report.acked, report.unsettled), (3, 1));
}
