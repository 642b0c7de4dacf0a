//! SIGKILL of a migration in the middle of its mirror and of its drain: the same again goes on, nothing is lost, and what may
//! be there twice is counted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]

use std::collections::HashMap;
use std::future::pending;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use throughline::{Bus, Envelope};
use throughline_bridge::Bridge;
use throughline_bridge::migrate::{Agreement, Migration, MigrationOptions, Phase};

const MESSAGES: u32 = 3_000;
const IN_FLIGHT: usize = 100;
const RATE: NonZeroU32 = NonZeroU32::new(400).unwrap();
const QUIET: Duration = Duration::from_millis(100);

fn address(folder: &Path, name: &str) -> String {
    format!("sqlite:{}?queue=q", folder.join(name).display())
}

fn open(folder: &Path) -> Migration {
    // A lease that is long for a busy machine, and short for a test that waits for it after each kill.
    let adjust = |bridge: Bridge| bridge.in_flight(IN_FLIGHT).lease(Duration::from_secs(3));
    let adjust = move |bridge: Bridge| match std::env::var_os("MIGRATE_TEST_FOLDER") {
        // Slow enough to be killed in the middle.
        Some(_) => adjust(bridge).rate(RATE),
        None => adjust(bridge),
    };
    Migration::open(folder.join("m.json")).unwrap().bridge(adjust)
}

async fn publish(folder: &Path, ids: std::ops::Range<u32>) {
    let old = Bus::connect(address(folder, "old.db")).await.unwrap();
    let publisher = old.publisher().await.unwrap();
    let message = |n: u32| Envelope::builder("t").id(n.to_string()).key((n % 20).to_string()).build();
    for result in publisher.publish_batch(ids.map(message)).await {
        result.unwrap();
    }
    old.close().await.unwrap();
}

/// The process that is killed; ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: a process of the test below.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Some(folder) = std::env::var_os("MIGRATE_TEST_FOLDER") else { return };
    let mut migration = open(Path::new(&folder));
    if std::env::var("MIGRATE_TEST_PHASE").unwrap() == "mirror" {
        migration.mirror(pending()).await.unwrap();
    } else {
        migration.drain(QUIET, pending()).await.unwrap();
    }
}

/// Runs a phase in a process of its own, and kills it once a part is moved.
async fn killed(folder: &Path, phase: &str, new: &Bus) {
    let part = new.depth("").await.unwrap().ready + u64::from(MESSAGES) / 8;
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("MIGRATE_TEST_FOLDER", folder)
        .env("MIGRATE_TEST_PHASE", phase)
        .stdout(Stdio::null())
        .spawn();
    let mut running = Running(child.unwrap());
    while new.depth("").await.unwrap().ready < part {
        assert!(running.0.try_wait().unwrap().is_none(), "it ended before it was killed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phase_that_is_killed_goes_on_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let options = MigrationOptions::new(address(folder, "old.db"), address(folder, "new.db"));
    Migration::create(folder.join("m.json"), options).await.unwrap();
    let new = Bus::connect(address(folder, "new.db")).await.unwrap();

    publish(folder, 0..MESSAGES / 2).await;
    for _ in 0..2 {
        killed(folder, "mirror", &new).await;
    }
    let status = Migration::status(folder.join("m.json")).await.unwrap();
    assert!((status.phase, status.is_running) == (Phase::Mirror, false), "{status:?}");
    assert_eq!(status.ledgers[0].killed_runs, 2, "{status:?}");
    assert!(open(folder).cut_over(None, QUIET, pending()).await.unwrap().is_done);

    publish(folder, MESSAGES / 2..MESSAGES).await;
    killed(folder, "drain", &new).await;
    let mut migration = open(folder);
    let drained = migration.drain(QUIET, pending()).await.unwrap();
    assert!(drained.is_done, "{drained:?}");

    let most = NonZeroUsize::new(100_000).unwrap();
    let mut counts: HashMap<String, u64> = HashMap::new();
    for message in new.browse("", most).await.unwrap() {
        *counts.entry(message.envelope.id.clone()).or_default() += 1;
    }
    assert_eq!(counts.len(), MESSAGES as usize, "nothing is lost");
    let twice = counts.values().sum::<u64>() - u64::from(MESSAGES);
    let ledger = migration.state().ledgers[0].clone();
    assert_eq!((ledger.killed_runs, ledger.killed_in_flight), (3, 3 * IN_FLIGHT as u64), "{ledger:?}");
    assert!(twice <= ledger.killed_in_flight + ledger.totals.copies, "{twice} twice: {ledger:?}");
    let compared = migration.compare(most, false).await.unwrap();
    assert_eq!(compared.agreement(), Agreement::Equal, "{compared:?}");
    // Once more than the ledger says that they were sent.
    assert_eq!(compared.twice.count, twice - ledger.totals.copies, "{compared:?}");
    println!("{twice} twice: {ledger:?}");
    new.close().await.unwrap();
}
