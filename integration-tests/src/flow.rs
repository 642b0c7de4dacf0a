//! A steady flow of messages through one queue, both sides written into a [`Ledger`], while something happens to the
//! broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use throughline::{Bus, Consumer, Envelope, KeyOrder, PublishOptions, Publisher};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ledger::{Id, Ledger, Summary, UNKEYED};

/// Ordering keys, each with a publisher task of its own.
const KEYS: u32 = 8;
/// Messages without a key are published in batches of so many.
const BATCH: u64 = 20;
/// The pause of each publishing task between two messages, or batches.
const PACE: Duration = Duration::from_millis(10);
/// So many messages through both sides are a flow.
const ENOUGH: usize = 200;
/// How long a broker that is back may take to have everything flow again, and the consumer to catch up.
const PATIENCE: Duration = Duration::from_secs(90);

/// A flow that runs. [`finish`](Self::finish) ends it.
pub struct Flow {
    ledger: Arc<Ledger>,
    stop: watch::Sender<bool>,
    publishing: JoinSet<()>,
    consuming: JoinSet<()>,
    publishers: [Publisher; 2],
}

impl Flow {
    /// Publishes to the bus's own destination, and consumes from it.
    ///
    /// Messages with a key are sent one at a time a key, and again where the outcome is uncertain: nothing is missing and
    /// the order is kept, at the price of duplicates. Those without are sent in batches and once: what is accepted
    /// arrives.
    pub async fn start(bus: &Bus) -> Self {
        let options = PublishOptions { timeout: Duration::from_secs(120), ..PublishOptions::default() };
        let once = bus.publisher_to("", options.clone()).await.unwrap();
        let options = PublishOptions { key_order: KeyOrder::Strict, allow_duplicates: true, ..options };
        let again = bus.publisher_to("", options).await.unwrap();
        let consumer = bus.consumer().await.unwrap();

        let (ledger, stop) = (Arc::new(Ledger::default()), watch::channel(false).0);
        let (mut publishing, mut consuming) = (JoinSet::new(), JoinSet::new());
        for key in 1..=KEYS {
            publishing.spawn(publish_key(again.clone(), key, ledger.clone(), stop.subscribe()));
        }
        publishing.spawn(publish_batches(once.clone(), ledger.clone(), stop.subscribe()));
        let enough = watch::Sender::subscribe(&stop);
        consuming.spawn(consume(consumer, ledger.clone(), enough));
        Self { ledger, stop, publishing, consuming, publishers: [once, again] }
    }

    /// What happened so far.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Waits until messages are accepted and received again, and gives how long after `since` that was, each.
    pub async fn recovered(&self, since: Instant) -> (Duration, Duration) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let (Some(published), Some(consumed)) = self.ledger.recovery(since) {
                return (published, consumed);
            }
            assert!(Instant::now() < deadline, "nothing flows after {PATIENCE:?}: {}", self.ledger.summary());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until some hundred messages more are accepted and received: the flow goes on, however slow the machine is.
    pub async fn goes_on(&self) {
        let (since, deadline) = (Instant::now(), Instant::now() + PATIENCE);
        loop {
            let (accepted, received) = self.ledger.passed_since(since);
            if accepted.min(received) >= ENOUGH {
                break;
            }
            assert!(Instant::now() < deadline, "no flow within {PATIENCE:?}: {}", self.ledger.summary());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops publishing, waits until all that was accepted has come, and gives the sum.
    pub async fn finish(mut self) -> Summary {
        self.stop.send_replace(true);
        while let Some(ended) = self.publishing.join_next().await {
            ended.unwrap();
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.ledger.is_complete() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The consumer's task watches this: it ends when nobody can say anything any more.
        drop(self.stop);
        while let Some(ended) = self.consuming.join_next().await {
            ended.unwrap();
        }
        for publisher in self.publishers {
            publisher.close().await.unwrap();
        }
        self.ledger.summary()
    }
}

/// A message of the flow.
pub fn message((key, place): Id) -> Envelope {
    let message = Envelope::builder("flow").payload(format!("{key} {place}"));
    if key == UNKEYED { message.build() } else { message.key(key.to_string()).build() }
}

/// Which message of the flow it is.
pub fn id(payload: &[u8]) -> Id {
    let (key, place) = std::str::from_utf8(payload).unwrap().split_once(' ').unwrap();
    (key.parse().unwrap(), place.parse().unwrap())
}

async fn publish_key(publisher: Publisher, key: u32, ledger: Arc<Ledger>, stop: watch::Receiver<bool>) {
    for place in 0.. {
        while let Err(error) = publisher.publish(message((key, place))).await {
            ledger.failed("publish", &error);
            publisher.resume(key.to_string().as_bytes());
        }
        ledger.accepted((key, place));
        if *stop.borrow() {
            break;
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn publish_batches(publisher: Publisher, ledger: Arc<Ledger>, stop: watch::Receiver<bool>) {
    for first in (0..).step_by(BATCH as usize) {
        let ids = (first..first + BATCH).map(|place| (UNKEYED, place));
        let results = publisher.publish_batch(ids.clone().map(message)).await;
        for (id, result) in ids.zip(results) {
            match result {
                Ok(_) => ledger.accepted(id),
                Err(error) => ledger.failed("publish", &error),
            }
        }
        if *stop.borrow() {
            break;
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Consumes until the flow is finished.
async fn consume(mut consumer: Consumer, ledger: Arc<Ledger>, mut flow: watch::Receiver<bool>) {
    loop {
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery.expect("the stream goes on").unwrap(),
            () = async { while flow.changed().await.is_ok() {} } => break,
        };
        ledger.received(id(delivery.payload()));
        if let Err(error) = delivery.ack().await {
            ledger.failed("ack", &error);
        }
    }
    consumer.close().await.unwrap();
}
