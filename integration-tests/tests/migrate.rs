//! A workload moves from a real RabbitMQ to a real Kafka while it works, by both kinds of mirror, and back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::HashMap;
use std::future::pending;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use throughline::{Bus, Envelope, ErrorKind};
use throughline_bridge::Reading;
use throughline_bridge::migrate::{Agreement, Copies, Migration, MigrationOptions, RollBack};
use throughline_integration_tests::faults::until;
use throughline_integration_tests::{log, unique};
use throughline_testkit::endpoint;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const QUIET: Duration = Duration::from_millis(300);
const MOST: NonZeroUsize = NonZeroUsize::new(100_000).unwrap();

/// Both brokers' addresses, or a counted skip.
fn brokers(test: &str) -> Option<(String, String)> {
    log();
    Some((endpoint::broker("rabbitmq", test)?, endpoint::broker("kafka", test)?))
}

async fn made(address: &str) -> Bus {
    let bus = Bus::connect(address).await.unwrap();
    bus.create("").await.unwrap();
    bus
}

async fn ready(bus: &Bus) -> u64 {
    bus.depth("").await.unwrap().ready
}

fn message(id: u64) -> Envelope {
    Envelope::builder("job")
        .id(id.to_string())
        .key((id % 5).to_string())
        .payload(format!("body {id}"))
        .build()
}

/// Publishes numbered messages to whichever bus it is told, until it is stopped.
struct Producer {
    to: watch::Sender<Option<Bus>>,
    sent: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Producer {
    fn start(to: &Bus) -> Self {
        let (to, mut told) = watch::channel(Some(to.clone()));
        let (count, sent) = watch::channel(0);
        let task = tokio::spawn(async move {
            while let Some(bus) = { told.borrow_and_update().clone() } {
                let publisher = bus.publisher().await.unwrap();
                while !told.has_changed().unwrap() {
                    let next = *count.borrow();
                    publisher.publish(message(next)).await.unwrap();
                    count.send_replace(next + 1);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                publisher.close().await.unwrap();
            }
        });
        Self { to, sent, task }
    }

    async fn has_sent(&mut self, more: u64) {
        let wanted = *self.sent.borrow() + more;
        self.sent.wait_for(|sent| *sent >= wanted).await.unwrap();
    }

    async fn switch(&mut self, to: &Bus) {
        self.to.send(Some(to.clone())).unwrap();
        self.has_sent(10).await;
    }

    async fn stop(self) -> u64 {
        self.to.send(None).unwrap();
        self.task.await.unwrap();
        *self.sent.borrow()
    }
}

/// How often each id was handled, by all workers that share it.
type Handled = Arc<Mutex<HashMap<u64, u64>>>;

/// Handles what comes until it is stopped.
struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Worker {
    async fn start(at: &Bus, handled: &Handled) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (mut consumer, handled) = (at.consumer().await.unwrap(), handled.clone());
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = stopped.changed() => break,
                    delivery = consumer.next() => {
                        let delivery = delivery.unwrap().unwrap();
                        let id = delivery.envelope().id.parse().unwrap();
                        delivery.ack().await.unwrap();
                        *handled.lock().unwrap().entry(id).or_default() += 1;
                    }
                }
            }
            consumer.close().await.unwrap();
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
    }
}

/// Waits until each of so many was handled, and says how many were twice.
async fn all_handled(handled: &Handled, sent: u64, test: &str) {
    until("all is handled", async || handled.lock().unwrap().len() as u64 >= sent).await;
    let handled = handled.lock().unwrap();
    let missing: Vec<_> = (0..sent).filter(|id| !handled.contains_key(id)).collect();
    let twice = handled.values().sum::<u64>() - handled.len() as u64;
    endpoint::measured(test, &format!("{sent} sent while it moved, lost {}, twice {twice}", missing.len()));
    assert!(missing.is_empty() && handled.len() as u64 == sent, "lost {missing:?}");
    assert_eq!(twice, 0, "nothing was killed");
}

/// Runs the mirror while something else is done.
async fn mirror_while(mut migration: Migration, work: impl Future<Output = ()>) -> Migration {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        migration.mirror(async { drop(stopped.await) }).await.unwrap();
        migration
    });
    work.await;
    stop.send(()).unwrap();
    running.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_move_first_and_the_rest_is_forwarded() {
    const TEST: &str = "migrate_forward";
    let Some((rabbitmq, kafka)) = brokers(TEST) else { return };
    let (name, folder) = (unique(TEST), tempfile::tempdir().unwrap());
    let addresses = [
        format!("{rabbitmq}?queue={name}"),
        format!("{kafka}/{name}?group={name}&partitions=3"),
        format!("{rabbitmq}?queue={name}.refused"),
    ];
    let [old, new, refused] =
        [made(&addresses[0]).await, made(&addresses[1]).await, made(&addresses[2]).await];
    let state = folder.path().join("m.json");
    let options = MigrationOptions::new(&addresses[0], &addresses[1]);
    // Kafka takes less than RabbitMQ holds.
    let error = Migration::create(&state, options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let migration =
        Migration::create(&state, options.reject(&addresses[2]).map("type:job=task")).await.unwrap();

    let handled = Handled::default();
    let worker = Worker::start(&new, &handled).await;
    let mut producer = Producer::start(&old);
    let mut migration = mirror_while(migration, producer.has_sent(200)).await;
    producer.switch(&new).await;
    assert!(migration.cut_over(None, QUIET, pending()).await.unwrap().is_done);
    let sent = producer.stop().await;
    // A late one.
    old.publisher().await.unwrap().publish(message(sent)).await.unwrap();
    let drained = migration.drain(QUIET, pending()).await.unwrap();
    assert!(drained.is_done && drained.report.as_ref().unwrap().totals.moved == 1, "{drained:?}");
    all_handled(&handled, sent + 1, TEST).await;
    worker.stop().await;
    until("nothing is left", async || ready(&old).await == 0 && ready(&new).await == 0).await;

    // Back, with what nobody has handled at the new place.
    let publisher = new.publisher().await.unwrap();
    for result in publisher.publish_batch((0..20).map(message)).await {
        result.unwrap();
    }
    let back = migration.roll_back(RollBack::default(), QUIET, pending()).await.unwrap();
    assert!(back.is_done && back.report.as_ref().unwrap().totals.moved == 20, "{back:?}");
    until("all is back", async || ready(&old).await == 20).await;
    for bus in [old, new, refused] {
        bus.delete("").await.unwrap();
        bus.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_proves_it_beside_the_old_consumers() {
    const TEST: &str = "migrate_tap";
    let Some((rabbitmq, kafka)) = brokers(TEST) else { return };
    let (name, folder) = (unique(TEST), tempfile::tempdir().unwrap());
    let bound = |queue: &str| format!("{rabbitmq}?exchange={name}&queue={name}.{queue}&key=%23");
    let (from, to, tap) = (bound("jobs"), format!("{kafka}/{name}?group={name}&partitions=3"), bound("tap"));
    let (old, new, tapped) = (made(&from).await, made(&to).await, made(&tap).await);
    let refused = made(&format!("{rabbitmq}?queue={name}.refused")).await;
    let state = folder.path().join("m.json");
    let options = MigrationOptions::new(&from, &to).reject(format!("{rabbitmq}?queue={name}.refused"));
    // The consumers' own queue, by another name.
    let stolen = options.clone().tap(format!("{rabbitmq}?queue={name}.jobs"));
    let error = Migration::create(&state, stolen).await.unwrap_err();
    assert!(error.to_string().contains("would take their messages"), "{error}");
    let migration = Migration::create(&state, options.tap(&tap)).await.unwrap();

    let handled = Handled::default();
    let old_worker = Worker::start(&old, &handled).await;
    let mut producer = Producer::start(&old);
    let mut migration = mirror_while(migration, async {
        producer.has_sent(100).await;
        until("it is mirrored", async || ready(&new).await >= 100).await;
    })
    .await;
    let compared = migration.compare(MOST, true).await.unwrap();
    assert_eq!(compared.agreement(), Agreement::Equal, "{compared:?}");
    assert!(compared.same >= 100 && compared.others.as_ref().unwrap().count == 0, "{compared:?}");
    assert!(matches!(compared.old.evidence, Reading::Nothing { .. }), "not to be disturbed: {compared:?}");
    assert_eq!(compared.new.evidence, Reading::ReadBack { disturbed: false, cut: false });

    let cut = migration.cut_over(Some(Copies::Purge), QUIET, pending()).await.unwrap();
    assert_eq!((cut.is_done, cut.purged), (true, Some(compared.same)));
    assert_eq!(ready(&new).await, 0);
    old_worker.stop().await;
    producer.has_sent(20).await;
    producer.switch(&new).await;
    let worker = Worker::start(&new, &handled).await;
    let drained = migration.drain(QUIET, pending()).await.unwrap();
    assert!(drained.is_done && drained.report.as_ref().unwrap().totals.moved >= 20, "{drained:?}");
    let sent = producer.stop().await;
    all_handled(&handled, sent, TEST).await;
    worker.stop().await;
    assert_eq!(ready(&old).await, 0);
    for bus in [tapped, old, new, refused] {
        bus.delete("").await.unwrap();
        bus.close().await.unwrap();
    }
}
