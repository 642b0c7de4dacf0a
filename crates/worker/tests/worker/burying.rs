//! What was given up while its dead-letter destination was out: decided once, held, and told as it was.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::rig::{Rig, Seen, keyed, message, start, until};
use throughline::driver::Delivery;
use throughline::{Bus, ConsumeOptions, PublishOptions, Publisher};
use throughline_worker::{HandlerError, Health, Job, Json, MemoryStore, Router, Worker};
use uuid::Uuid;

/// Other than "bad" is done.
async fn picky(Json(text): Json<String>, job: Job<Seen>) -> Result<(), HandlerError> {
    job.state().push(text.clone());
    match text.as_str() {
        "bad" => Err(HandlerError::dependency("ads-api", "gone").with_class("http_410").into_permanent()),
        _ => Ok(()),
    }
}

/// A queue whose dead letters have no place until it is made.
async fn without_graveyard() -> Rig {
    let name = Uuid::now_v7();
    let bus = Bus::connect(format!("memory:{name}?queue=jobs&dead_letter=dead&create=never")).await.unwrap();
    bus.create("?queue=jobs").await.unwrap();
    Rig { publisher: bus.publisher().await.unwrap(), bus }
}

fn worker(consumer: throughline::Consumer, seen: &Seen) -> Worker<Seen> {
    Worker::new(consumer, Router::with_state(seen.clone()).on("a", picky)).concurrency(1)
}

async fn until_held(health: &Health) {
    until("it is held", async || health.held() == 1).await;
}

fn assert_told_as_it_was(dead: &[Delivery]) {
    assert_eq!((dead.len(), dead[0].failed_attempts), (1, 1));
    let history = dead[0].history.as_deref().unwrap();
    let told: Vec<_> = history.failures().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["http_410 (ads-api): gone"]);
    // It is dead: put back to work, it begins anew.
    assert!(!history.is_given_up() && !history.is_partial());
}

async fn holds_until_there_is_a_place(rig: &Rig, elsewhere: Option<Publisher>, graveyard: &Bus, place: &str) {
    let seen = Seen::default();
    // Shorter than the outage: it is renewed.
    let lease = ConsumeOptions { lease: Duration::from_secs(20), ..ConsumeOptions::default() };
    let mut worker = worker(rig.consumer_with(lease).await, &seen);
    if let Some(publisher) = elsewhere {
        worker = worker.dead_letter(publisher);
    }
    let health = worker.health();
    let running = start(worker);
    rig.publish(keyed("a", "k", "bad")).await;
    rig.publish(keyed("a", "k", "behind it")).await;
    rig.publish(message("a", "other")).await;
    until("others go on", async || seen.len() == 2).await;
    assert_eq!((seen.all(), health.running()), (vec!["bad".to_owned(), "other".to_owned()], 0));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(seen.len(), 2, "the order of the key is kept, and no handler runs again");
    graveyard.create(place).await.unwrap();
    rig.until_empty().await;
    let report = running.stop().await;
    assert_eq!((report.dead_lettered, report.acked, report.retried, report.unsettled), (1, 2, 0, 0));
    assert_eq!(seen.all(), ["bad", "other", "behind it"]);
    assert_told_as_it_was(&graveyard.browse(place, NonZeroUsize::MAX).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_without_a_place_is_held_and_others_go_on() {
    let rig = without_graveyard().await;
    holds_until_there_is_a_place(&rig, None, &rig.bus, "?queue=dead").await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_for_an_address_that_is_out_is_held_and_others_go_on() {
    let rig = Rig::new().await;
    let other = Bus::connect(format!("memory:{}?topic=dead", Uuid::now_v7())).await.unwrap();
    let publisher = other.publisher().await.unwrap();
    holds_until_there_is_a_place(&rig, Some(publisher), &other, "?topic=dead&queue=dead").await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_for_a_publisher_that_was_closed_makes_no_loop() {
    let rig = Rig::new().await;
    let elsewhere = rig.bus.publisher_to("?queue=elsewhere", PublishOptions::default()).await.unwrap();
    let seen = Seen::default();
    let worker = worker(rig.consumer().await, &seen).dead_letter(elsewhere.clone());
    let health = worker.health();
    let running = start(worker);
    elsewhere.close().await.unwrap();
    rig.publish(message("a", "bad")).await;
    until_held(&health).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((seen.len(), health.report().unsettled), (1, 0));
    running.stop().await;
    assert_eq!(rig.left().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_meanwhile_leaves_the_reason_for_the_next() {
    let rig = without_graveyard().await;
    let seen = Seen::default();
    let first = worker(rig.consumer().await, &seen);
    let health = first.health();
    let running = start(first);
    rig.publish(message("a", "bad")).await;
    until_held(&health).await;
    let report = running.stop().await;
    assert_eq!((report.dead_lettered, report.retried, report.unsettled), (0, 1, 0));
    assert_eq!(rig.bus.depth("").await.unwrap().delayed, Some(1), "it does not come again at once");
    rig.bus.create("?queue=dead").await.unwrap();
    let running = start(worker(rig.consumer().await, &seen));
    rig.until_empty().await;
    assert_eq!(running.stop().await.dead_lettered, 1);
    assert_eq!(seen.all(), ["bad"], "its outcome was decided");
    assert_told_as_it_was(&rig.dead().await);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_meanwhile_leaves_the_reason_in_the_store() {
    let rig = without_graveyard().await;
    let (seen, store) = (Seen::default(), Arc::new(MemoryStore::new()));
    let first = worker(rig.consumer().await, &seen).attempts(store.clone());
    let health = first.health();
    let dies = tokio::spawn(first.run(std::future::pending()));
    rig.publish(message("a", "bad")).await;
    until_held(&health).await;
    dies.abort();
    rig.bus.create("?queue=dead").await.unwrap();
    let running = start(worker(rig.consumer().await, &seen).attempts(store));
    rig.until_empty().await;
    assert_eq!(running.stop().await.dead_lettered, 1);
    assert_eq!(seen.all(), ["bad"], "its outcome was decided");
    assert_told_as_it_was(&rig.dead().await);
}
