//! Whole migrations between SQLite files, with producers and consumers at work meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]

use std::collections::HashMap;
use std::future::pending;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use throughline::{Bus, Envelope, ErrorKind};
use throughline_bridge::Reading;
use throughline_bridge::migrate::{Agreement, Copies, Migration, MigrationOptions, Phase, RollBack};
use tokio::task::JoinHandle;

const QUIET: Duration = Duration::from_millis(200);
const MOST: NonZeroUsize = NonZeroUsize::new(100_000).unwrap();

struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn address(&self, file: &str, options: &str) -> String {
        format!("sqlite:{}?{options}", self.0.path().join(file).display())
    }

    /// What the old consumers consume from.
    fn old(&self) -> String {
        self.address("old.db", "topic=t&queue=workers")
    }

    fn tap(&self) -> String {
        self.address("old.db", "topic=t&queue=tap")
    }

    fn new_place(&self) -> String {
        self.address("new.db", "queue=jobs")
    }

    fn state(&self) -> std::path::PathBuf {
        self.0.path().join("m.json")
    }

    async fn start(&self, with_tap: bool) -> Migration {
        let mut options = MigrationOptions::new(self.old(), self.new_place());
        if with_tap {
            options = options.tap(self.tap());
        }
        Migration::create(self.state(), options.map("type:job=task")).await.unwrap()
    }

    async fn publish(&self, to: &str, ids: std::ops::Range<u32>) {
        let bus = Bus::connect(to).await.unwrap();
        let publisher = bus.publisher().await.unwrap();
        for result in publisher.publish_batch(ids.map(message)).await {
            result.unwrap();
        }
        bus.close().await.unwrap();
    }

    /// How many messages are there, those that somebody works on as well.
    async fn depth(&self, of: &str) -> u64 {
        let bus = Bus::connect(of).await.unwrap();
        let depth = bus.depth("").await.unwrap();
        bus.close().await.unwrap();
        depth.ready + depth.unsettled.unwrap_or(0)
    }
}

fn message(id: u32) -> Envelope {
    Envelope::builder("job")
        .id(id.to_string())
        .key((id % 5).to_string())
        .payload(format!("body {id}"))
        .build()
}

/// Publishes numbered messages, a few at a time, to whatever address it is told, until it is stopped.
struct Producer {
    to: tokio::sync::watch::Sender<Option<String>>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Producer {
    fn start(to: String) -> Self {
        let (sender, mut receiver) = tokio::sync::watch::channel(Some(to));
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let task = tokio::spawn(async move {
            loop {
                let Some(address) = receiver.borrow_and_update().clone() else { return };
                let bus = Bus::connect(&address).await.unwrap();
                let publisher = bus.publisher().await.unwrap();
                while !receiver.has_changed().unwrap() {
                    let next = u32::try_from(count.load(Ordering::Relaxed)).unwrap();
                    publisher.publish(message(next)).await.unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                bus.close().await.unwrap();
            }
        });
        Self { to: sender, sent, task }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    async fn has_sent(&self, more: u64) {
        let wanted = self.sent() + more;
        until(async || self.sent() >= wanted).await;
    }

    async fn switch(&self, to: &str) {
        self.to.send(Some(to.to_owned())).unwrap();
        self.has_sent(5).await;
    }

    async fn stop(self) -> u64 {
        self.to.send(None).unwrap();
        self.task.await.unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// Handles what comes, and counts how often it has had each id.
struct Worker {
    stop: Arc<AtomicBool>,
    task: JoinHandle<HashMap<u32, u32>>,
}

impl Worker {
    fn start(at: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let task = tokio::spawn(async move {
            let bus = Bus::connect(&at).await.unwrap();
            let mut consumer = bus.consumer().await.unwrap();
            let mut had: HashMap<u32, u32> = HashMap::new();
            while !asked.load(Ordering::Relaxed) {
                let next = tokio::time::timeout(Duration::from_millis(50), consumer.next()).await;
                let Ok(Some(delivery)) = next else { continue };
                let delivery = delivery.unwrap();
                *had.entry(delivery.envelope().id.parse().unwrap()).or_default() += 1;
                delivery.ack().await.unwrap();
            }
            consumer.close().await.unwrap();
            bus.close().await.unwrap();
            had
        });
        Self { stop, task }
    }

    async fn stop(self) -> HashMap<u32, u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn until(is_so: impl AsyncFn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(std::time::Instant::now() < end, "it does not come to it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs the mirror while something else is done.
async fn mirror_while(mut migration: Migration, work: impl Future<Output = ()>) -> Migration {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        let report = migration.mirror(async { drop(stopped.await) }).await.unwrap();
        assert!(!report.is_done);
        migration
    });
    work.await;
    stop.send(()).unwrap();
    running.await.unwrap()
}

/// Together they have had each of so many messages exactly once.
fn each_once(all: &[HashMap<u32, u32>], sent: u64) {
    let mut counts = vec![0; usize::try_from(sent).unwrap()];
    for had in all {
        for (id, count) in had {
            counts[*id as usize] += count;
        }
    }
    let wrong: Vec<_> = counts.iter().enumerate().filter(|(_, count)| **count != 1).collect();
    assert!(wrong.is_empty(), "lost or twice (id, times): {wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_is_forwarded_cut_over_and_drained_while_it_works() {
    let world = World::new();
    let migration = world.start(false).await;
    let producer = Producer::start(world.old());
    // Consumers move first.
    let worker = Worker::start(world.new_place());
    let mut migration = mirror_while(migration, producer.has_sent(50)).await;
    producer.switch(&world.new_place()).await;
    let done = migration.cut_over(None, QUIET, pending()).await.unwrap();
    assert!(done.is_done && migration.state().done, "{done:?}");
    // A late one.
    let late = u32::try_from(producer.stop().await).unwrap();
    world.publish(&world.old(), late..late + 1).await;
    let drained = migration.drain(QUIET, pending()).await.unwrap();
    assert!(drained.is_done && drained.report.unwrap().totals.moved == 1);
    assert_eq!((world.depth(&world.old()).await, migration.state().next()), (0, None));
    until(async || world.depth(&world.new_place()).await == 0).await;
    each_once(&[worker.stop().await], u64::from(late) + 1);

    // Each again says that it is done, or finds nothing.
    assert!(migration.cut_over(None, QUIET, pending()).await.unwrap().was_done);
    assert_eq!(migration.drain(QUIET, pending()).await.unwrap().report.unwrap().totals.moved, 0);
    let error = migration.mirror(pending()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_rehearses_is_purged_and_the_backlog_is_drained_while_it_works() {
    let world = World::new();
    let migration = world.start(true).await;
    let producer = Producer::start(world.old());
    let old_worker = Worker::start(world.old());
    let new_place = world.new_place();
    let mut migration = mirror_while(migration, async {
        producer.has_sent(50).await;
        until(async || world.depth(&new_place).await >= 40).await;
        // It can be looked at while it runs.
        let compared = Migration::open(world.state()).unwrap().compare(MOST, false).await.unwrap();
        assert_eq!(compared.agreement(), Agreement::Equal, "{compared:?}");
        assert!(compared.same >= 40, "{compared:?}");
        let status = Migration::status(world.state()).await.unwrap();
        assert!(status.is_running && status.ledgers[0].totals.moved >= 40, "{status:?}");
        assert_eq!((status.ledgers[0].killed_runs, status.next), (0, Some(Phase::CutOver)));
        assert!(status.compared.is_some());
    })
    .await;
    let error = migration.cut_over(None, QUIET, pending()).await.unwrap_err();
    assert!(error.to_string().contains("what becomes of the copies"), "{error}");
    let copies = world.depth(&new_place).await;
    let done = migration.cut_over(Some(Copies::Purge), QUIET, pending()).await.unwrap();
    assert_eq!((done.is_done, done.purged), (true, Some(copies)));
    // Consumers move, then producers; what the old ones have left is drained.
    let had_old = old_worker.stop().await;
    producer.has_sent(20).await;
    producer.switch(&new_place).await;
    let worker = Worker::start(new_place.clone());
    let drained = migration.drain(QUIET, pending()).await.unwrap();
    assert!(drained.is_done && drained.report.as_ref().unwrap().totals.moved >= 20, "{drained:?}");
    assert_eq!(world.depth(&world.old()).await, 0);
    let sent = producer.stop().await;
    until(async || world.depth(&new_place).await == 0).await;
    each_once(&[had_old, worker.stop().await], sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_are_kept_are_the_whole_history() {
    let world = World::new();
    let migration = world.start(true).await;
    let producer = Producer::start(world.old());
    let old_worker = Worker::start(world.old());
    let mut migration = mirror_while(migration, producer.has_sent(30)).await;
    producer.switch(&world.new_place()).await;
    assert!(migration.cut_over(Some(Copies::Keep), QUIET, pending()).await.unwrap().is_done);
    assert!(migration.drain(QUIET, pending()).await.unwrap().is_done);
    let sent = producer.stop().await;
    until(async || world.depth(&world.old()).await == 0).await;
    let had = old_worker.stop().await;
    let log = Worker::start(world.new_place());
    until(async || world.depth(&world.new_place()).await == 0).await;
    let log = log.stop().await;
    assert!(had.len() >= 30 && had.keys().all(|id| log[id] == 1), "what the old ones had is there, too");
    each_once(&[log], sent);
}

#[tokio::test]
async fn what_is_no_copy_is_never_purged() {
    let world = World::new();
    let migration = world.start(true).await;
    world.publish(&world.old(), 0..10).await;
    let mut migration = mirror_until(&world, migration, 10).await;
    world.publish(&world.new_place(), 100..103).await;
    let error = migration.cut_over(Some(Copies::Purge), QUIET, pending()).await.unwrap_err();
    assert!(error.to_string().contains("3 of its 13 messages are not among the copies"), "{error}");
    assert_eq!((world.depth(&world.new_place()).await, migration.state().phase), (13, Phase::Mirror));
    let compared = migration.compare(MOST, false).await.unwrap();
    let others = compared.others.unwrap().count;
    assert_eq!((others, compared.same, compared.still_old), (3, 10, Some(10)));
}

/// Runs the mirror until so many are at the new place.
async fn mirror_until(world: &World, migration: Migration, count: u64) -> Migration {
    mirror_while(migration, async {
        until(async || world.depth(&world.new_place()).await >= count).await;
    })
    .await
}

#[tokio::test]
async fn a_comparison_tells_missing_changed_and_not_yet_mirrored_apart() {
    let world = World::new();
    let migration = world.start(true).await;
    world.publish(&world.old(), 0..20).await;
    let mut migration = mirror_until(&world, migration, 20).await;
    // Not mirrored yet.
    world.publish(&world.old(), 20..23).await;
    // Two are lost, and one comes back changed, behind all others of its key.
    let bus = Bus::connect(world.new_place()).await.unwrap();
    let mut consumer = bus.consumer().await.unwrap();
    for _ in 0..3 {
        consumer.next().await.unwrap().unwrap().ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    let mut changed = message(2);
    changed.payload = Some(bytes::Bytes::from_static(b"other"));
    changed.headers.append("x", "1");
    bus.publisher().await.unwrap().publish(changed).await.unwrap();
    bus.close().await.unwrap();
    let compared = migration.compare(MOST, false).await.unwrap();
    assert_eq!(compared.agreement(), Agreement::Different, "{compared:?}");
    assert_eq!((compared.moved, compared.remembered, compared.same), (20, 20, 17), "{compared:?}");
    let missing = compared.missing.unwrap();
    assert_eq!((missing.count, missing.ids), (2, vec!["0".into(), "1".into()]));
    let not_yet = compared.not_yet.unwrap();
    assert_eq!((not_yet.count, not_yet.ids), (3, vec!["20".into(), "21".into(), "22".into()]));
    assert_eq!((compared.still_old, compared.others.unwrap().count), (Some(20), 0));
    // Its type, too: it was published under the old name.
    let parts: Vec<_> = compared.changed.parts.into_keys().collect();
    assert_eq!(
        (compared.changed.count, parts.join(", ")),
        (1, "header 'x' added, message type, payload, time".into())
    );
    assert_eq!(compared.out_of_order.unwrap().ids, ["2"]);
    let cut = migration.compare(NonZeroUsize::new(5).unwrap(), false).await.unwrap();
    assert_eq!((cut.missing, cut.new.read), (None, 5));
    assert_eq!(cut.new.evidence, Reading::ReadBack { disturbed: false, cut: true });
}

#[tokio::test]
async fn it_is_taken_back_from_every_phase() {
    let all = [Phase::Start, Phase::Mirror, Phase::CutOver, Phase::Drain];
    // Each of them waits for quiet, mostly.
    futures_util::future::join_all(all.map(|reached| async move {
        let world = World::new();
        let mut migration = world.start(false).await;
        world.publish(&world.old(), 0..10).await;
        if reached >= Phase::Mirror {
            migration = mirror_until(&world, migration, 10).await;
        }
        if reached >= Phase::CutOver {
            migration.cut_over(None, QUIET, pending()).await.unwrap();
            world.publish(&world.new_place(), 10..15).await;
        }
        if reached >= Phase::Drain {
            migration.drain(QUIET, pending()).await.unwrap();
        }
        let done = migration.roll_back(RollBack::default(), QUIET, pending()).await.unwrap();
        assert!(done.is_done && migration.state().is_rolled_back(), "{done:?}");
        assert!(migration.roll_back(RollBack::default(), QUIET, pending()).await.unwrap().was_done);
        let all = if reached >= Phase::CutOver { 15 } else { 10 };
        assert_eq!((world.depth(&world.old()).await, world.depth(&world.new_place()).await), (all, 0));
        let bus = Bus::connect(world.old()).await.unwrap();
        let back = bus.browse("", MOST).await.unwrap();
        // What producers sent to the new place had the old name there; the others were renamed, and back.
        assert!(back.iter().all(|message| message.envelope.message_type.as_deref() == Some("job")));
        bus.close().await.unwrap();

        // And again, with nothing remembered.
        let migration = world.start(false).await;
        let mut migration = mirror_until(&world, migration, all).await;
        assert!(migration.cut_over(None, QUIET, pending()).await.unwrap().is_done);
    }))
    .await;
}

#[tokio::test]
async fn copies_are_not_moved_back() {
    let all = [
        (Phase::Mirror, None),
        (Phase::CutOver, Some(Copies::Keep)),
        (Phase::CutOver, Some(Copies::Purge)),
        (Phase::Drain, Some(Copies::Purge)),
    ];
    futures_util::future::join_all(all.map(|(reached, copies)| async move {
        let world = World::new();
        let migration = world.start(true).await;
        world.publish(&world.old(), 0..10).await;
        let mut migration = mirror_until(&world, migration, 10).await;
        if let Some(copies) = copies {
            assert!(migration.cut_over(Some(copies), QUIET, pending()).await.unwrap().is_done);
            world.publish(&world.new_place(), 10..13).await;
        }
        if reached == Phase::Drain {
            migration.drain(QUIET, pending()).await.unwrap();
            assert_eq!(world.depth(&world.new_place()).await, 13);
        }
        assert!(migration.roll_back(RollBack::default(), QUIET, pending()).await.unwrap().is_done);
        let new = if copies.is_none() { 10 } else { 0 };
        let old = if copies.is_none() { 10 } else { 13 };
        let depths = (world.depth(&world.old()).await, world.depth(&world.new_place()).await);
        assert_eq!(depths, (old, new), "{reached:?}, {copies:?}");
    }))
    .await;
    let world = World::new();
    let migration = world.start(true).await;
    world.publish(&world.old(), 0..10).await;
    let mut migration = mirror_until(&world, migration, 10).await;
    let done = migration.roll_back(RollBack::default().purge_copies(), QUIET, pending()).await.unwrap();
    assert_eq!((done.purged, world.depth(&world.new_place()).await), (Some(10), 0));
}

#[tokio::test]
async fn what_was_decided_of_the_copies_stays_so() {
    let world = World::new();
    let migration = world.start(true).await;
    world.publish(&world.old(), 0..5).await;
    let mut migration = mirror_until(&world, migration, 5).await;
    let hour = Duration::from_secs(3600);
    let begun = migration.cut_over(Some(Copies::Keep), hour, tokio::time::sleep(QUIET)).await.unwrap();
    assert!(!begun.is_done);
    // Producers may be there by now.
    let error = migration.cut_over(Some(Copies::Purge), QUIET, pending()).await.unwrap_err();
    assert!(error.to_string().contains("with the other choice"), "{error}");
    let how = RollBack::default().purge_copies();
    let error = migration.roll_back(how, QUIET, pending()).await.unwrap_err();
    assert!(error.to_string().contains("nothing is purged there"), "{error}");
    assert_eq!((world.depth(&world.new_place()).await, migration.state().phase), (5, Phase::CutOver));
}

/// As if it were killed between the decision and the deletion: the copies are no messages of producers.
#[tokio::test]
async fn copies_that_were_to_be_purged_are_not_moved_back() {
    let world = World::new();
    let migration = world.start(true).await;
    world.publish(&world.old(), 0..5).await;
    drop(mirror_until(&world, migration, 5).await);
    let text = std::fs::read_to_string(world.state()).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    state["phase"] = "cut-over".into();
    state["copies"] = "purge".into();
    let step =
        serde_json::json!({ "phase": "cut-over", "began": "2026-11-23T00:00:00Z", "ended": null, "runs": 1 });
    state["steps"].as_array_mut().unwrap().push(step);
    std::fs::write(world.state(), state.to_string()).unwrap();

    let mut migration = Migration::open(world.state()).unwrap();
    assert_eq!(migration.compare(MOST, false).await.unwrap().same, 5, "with the ledger of the copies");
    let back = migration.roll_back(RollBack::default(), QUIET, pending()).await.unwrap();
    assert!(back.is_done && back.report.is_none(), "{back:?}");
    assert_eq!((world.depth(&world.old()).await, world.depth(&world.new_place()).await), (5, 5));
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_the_start() {
    let world = World::new();
    let create =
        async |options: MigrationOptions| Migration::create(world.state(), options).await.unwrap_err();
    let same = create(MigrationOptions::new(world.old(), world.old())).await;
    assert_eq!(same.kind(), ErrorKind::InvalidAddress, "{same}");
    let plain = MigrationOptions::new(world.old(), world.new_place());
    let stolen = create(plain.clone().tap(world.address("old.db", "queue=workers&topic=t"))).await;
    assert!(stolen.to_string().contains("would take their messages"), "{stolen}");
    let rule = create(plain.clone().map("header:traceparent=x")).await;
    assert_eq!(rule.kind(), ErrorKind::InvalidMessage, "{rule}");
    // A smaller place.
    let small = MigrationOptions::new(world.old(), "memory:small?queue=q&like=sqs");
    let refused = create(small).await;
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("payload size"), "{refused}");
    let missing =
        create(MigrationOptions::new(world.address("none.db", "queue=q&create=never"), world.old())).await;
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    assert!(!world.state().exists(), "nothing was begun");
    let begun = Migration::create(world.state(), plain.clone()).await.unwrap();
    drop(begun);
    let twice = create(plain).await;
    assert!(twice.kind() == ErrorKind::Conflict && twice.to_string().contains("under way"), "{twice}");
}

#[tokio::test]
async fn one_phase_runs_at_a_time_and_an_interrupted_one_goes_on() {
    let world = World::new();
    let migration = world.start(false).await;
    world.publish(&world.old(), 0..5).await;
    let mut migration = mirror_while(migration, async {
        until(async || world.depth(&world.new_place()).await >= 5).await;
        let mut other = Migration::open(world.state()).unwrap();
        let error = other.cut_over(None, QUIET, pending()).await.unwrap_err();
        assert!(error.to_string().contains("another process runs a phase"), "{error}");
    })
    .await;
    let stopped =
        migration.cut_over(None, Duration::from_secs(3600), tokio::time::sleep(QUIET)).await.unwrap();
    assert!(!stopped.is_done && migration.state().phase == Phase::CutOver);
    assert_eq!(migration.mirror(pending()).await.unwrap_err().kind(), ErrorKind::Conflict);
    let mut again = Migration::open(world.state()).unwrap();
    assert!(again.cut_over(None, QUIET, pending()).await.unwrap().is_done);
    assert_eq!(again.state().step(Phase::CutOver).unwrap().runs, 2);
}
