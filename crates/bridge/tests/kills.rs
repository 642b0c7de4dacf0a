//! The bridge is killed again and again in the middle of its work. Nothing is lost, order per key is kept, and there are no
//! more duplicates than were in flight.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::future::pending;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use throughline::{Bus, Envelope};
use throughline_bridge::{Bridge, Report};

const MESSAGES: u32 = 6000;
const KEYS: u32 = 40;
const KILLS: u64 = 6;
const IN_FLIGHT: usize = 200;

async fn bus(folder: &Path, name: &str) -> Bus {
    Bus::connect(format!("sqlite:{}?queue=q", folder.join(name).display())).await.unwrap()
}

async fn run(folder: &Path) -> Report {
    let (from, to) = (bus(folder, "from.db").await, bus(folder, "to.db").await);
    let bridge = Bridge::new(&from, &to)
        .ledger(folder.join("ledger"))
        .in_flight(IN_FLIGHT)
        // Long for a busy machine, short for a test that waits for it after each kill.
        .lease(Duration::from_secs(3))
        .until_empty();
    let report = bridge.run(pending()).await.unwrap();
    from.close().await.unwrap();
    to.close().await.unwrap();
    report
}

/// The killed process; ends with the test.
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
    let Some(folder) = std::env::var_os("BRIDGE_TEST_FOLDER") else { return };
    run(Path::new(&folder)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_killed_loses_nothing_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let from = bus(folder.path(), "from.db").await;
    let publisher = from.publisher().await.unwrap();
    let messages = (0..MESSAGES).map(|n| {
        let message = Envelope::builder("t").id(n.to_string());
        // Every other one without a key.
        if n % 2 == 0 { message.key((n % KEYS).to_string()).build() } else { message.build() }
    });
    for result in publisher.publish_batch(messages).await {
        result.unwrap();
    }
    from.close().await.unwrap();

    for kill in 0..KILLS {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("BRIDGE_TEST_FOLDER", folder.path())
            .stdout(Stdio::null())
            .spawn();
        let _running = Running(child.unwrap());
        // It starts in some 50 ms; then at another moment each time.
        tokio::time::sleep(Duration::from_millis(120 + 37 * kill)).await;
    }
    let report = run(folder.path()).await;
    assert!(report.is_success(), "{report:?}");

    let to = bus(folder.path(), "to.db").await;
    let most = NonZeroUsize::new(1_000_000).unwrap();
    let came: Vec<_> = to.browse("", most).await.unwrap().into_iter().map(|d| d.envelope).collect();
    let from = bus(folder.path(), "from.db").await;
    assert_eq!(from.depth("").await.unwrap().ready, 0);
    let mut counts: HashMap<u32, u64> = HashMap::new();
    let mut latest: HashMap<Vec<u8>, u32> = HashMap::new();
    for envelope in &came {
        let number: u32 = envelope.id.parse().unwrap();
        let count = counts.entry(number).or_default();
        *count += 1;
        if let (Some(key), 1) = (&envelope.ordering_key, *count) {
            let before = latest.insert(key.to_vec(), number);
            assert!(before.is_none_or(|before| before < number), "{number} came after {before:?}");
        }
    }
    assert_eq!(counts.len(), MESSAGES as usize, "nothing is lost");
    let duplicates = came.len() as u64 - u64::from(MESSAGES);
    let killed = report.killed_in_flight + IN_FLIGHT as u64 * (KILLS - report.killed_runs);
    assert!(duplicates <= killed, "{duplicates} duplicates, {report:?}");
    let moved = report.totals.moved + report.earlier.moved;
    assert!(
        moved <= came.len() as u64 && moved + killed >= u64::from(MESSAGES),
        "{moved} of {}, {report:?}",
        came.len()
    );
    println!(
        "{duplicates} duplicates, {} known, {report:?}",
        report.totals.already_moved + report.earlier.already_moved
    );
    to.close().await.unwrap();
    from.close().await.unwrap();
}
