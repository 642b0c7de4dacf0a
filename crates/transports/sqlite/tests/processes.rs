//! Several processes on one file: killed in the middle of their work, and ten at once. A ledger has what each side knows:
//! what was accepted comes, and what was acked comes no more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use throughline::{Bus, ConsumeOptions, Envelope, ErrorKind};

const KILLS: u32 = 100;

/// The parent's end of a child process; ends with it.
struct Running(Child);

impl Running {
    /// Starts this program again, in a role.
    fn start(folder: &Path, role: &str, count: usize) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("SQLITE_TEST_FOLDER", folder)
            .env("SQLITE_TEST_ROLE", role)
            .env("SQLITE_TEST_COUNT", count.to_string())
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// As `kill -9`.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What all processes have seen, in its order: one line an event.
struct Ledger(File);

impl Ledger {
    fn open(folder: &Path) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(folder.join("ledger")).unwrap())
    }

    /// One write, so that the lines of several processes do not mix, and none is lost with its process.
    fn note(&mut self, event: char, count: u32, ids: &[String]) {
        let lines: String = ids.iter().map(|id| format!("{event} {count} {id}\n")).collect();
        self.0.write_all(lines.as_bytes()).unwrap();
    }
}

#[derive(Default)]
struct Account {
    accepted: HashSet<String>,
    seen: HashMap<String, u32>,
    /// By the number of the delivery that was acked.
    acked: HashMap<String, u32>,
    /// Delivered once more after it was acked. A delivery from before it, whose lease was lost, may be seen later.
    risen: Vec<String>,
}

impl Account {
    fn read(folder: &Path) -> Self {
        let mut account = Self::default();
        for line in std::fs::read_to_string(folder.join("ledger")).unwrap().lines() {
            let mut words = line.splitn(3, ' ');
            let (event, count) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
            let id = words.next().unwrap().to_owned();
            match event {
                "a" => drop(account.accepted.insert(id)),
                "s" => {
                    if account.acked.get(&id).is_some_and(|acked| *acked < count) {
                        account.risen.push(id.clone());
                    }
                    *account.seen.entry(id).or_default() += 1;
                }
                _ => drop(account.acked.insert(id, count)),
            }
        }
        account
    }

    fn lost(&self) -> Vec<&String> {
        self.accepted.iter().filter(|id| !self.seen.contains_key(*id)).collect()
    }

    fn duplicates(&self) -> u32 {
        self.seen.values().map(|times| times - 1).sum()
    }
}

fn address(folder: &Path) -> String {
    format!("sqlite:{}?queue=q", folder.join("bus.db").display())
}

fn integrity(folder: &Path) -> (String, i64) {
    let sql = rusqlite::Connection::open(folder.join("bus.db")).unwrap();
    let check = sql.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    let held = "SELECT held - (SELECT count(*) FROM throughline_messages) + (SELECT count(*) FROM throughline_ranges) \
                FROM throughline_queues";
    (check, sql.query_row(held, [], |row| row.get(0)).unwrap())
}

/// Not a test of its own: started by the tests of this file.
#[tokio::test]
async fn child() {
    let Some(folder) = std::env::var_os("SQLITE_TEST_FOLDER").map(PathBuf::from) else { return };
    let count: usize = std::env::var("SQLITE_TEST_COUNT").unwrap().parse().unwrap();
    match std::env::var("SQLITE_TEST_ROLE").unwrap().as_str() {
        "publish" => publish(&folder, count).await,
        _ => consume(&folder, count).await,
    }
}

/// Publishes so many messages, in batches of various sizes, some with a key.
async fn publish(folder: &Path, count: usize) {
    let mut ledger = Ledger::open(folder);
    let bus = Bus::connect(address(folder)).await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    let mut done = 0;
    while done < count {
        let batch: Vec<_> =
            (done..count.min(done + 1 + done % 20)).map(|n| format!("{}-{n}", std::process::id())).collect();
        let envelopes = batch.iter().enumerate().map(|(n, id)| {
            let envelope = Envelope::builder("t").id(id.clone()).payload(vec![b'x'; 300]);
            if n % 3 == 0 { envelope.key(format!("k{}", n % 9)).build() } else { envelope.build() }
        });
        for answer in publisher.publish_batch(envelopes).await {
            answer.unwrap();
        }
        ledger.note('a', 0, &batch);
        done += batch.len();
    }
    bus.close().await.unwrap();
}

/// Consumes until so many are in the ledger as acked.
async fn consume(folder: &Path, count: usize) {
    let mut ledger = Ledger::open(folder);
    let bus = Bus::connect(address(folder)).await.unwrap();
    // Long enough for a busy machine, short enough to see what a dead process held.
    let options =
        ConsumeOptions { lease: Duration::from_secs(3), max_unsettled: 30, ..ConsumeOptions::default() };
    let mut consumer = bus.consumer_of("", options).await.unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    let mut looked = Instant::now();
    while Instant::now() < until {
        match tokio::time::timeout(Duration::from_millis(100), consumer.next()).await {
            Ok(delivery) => {
                let delivery = delivery.unwrap().unwrap();
                let (id, count) = ([delivery.id().to_owned()], delivery.receive_count().unwrap());
                ledger.note('s', count, &id);
                match delivery.ack().await {
                    Ok(()) => ledger.note('d', count, &id),
                    // On a machine so busy that the lease was lost, another has it.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Stale, "{error}"),
                }
            }
            Err(_) if looked.elapsed() > Duration::from_millis(300) => {
                looked = Instant::now();
                if Account::read(folder).acked.len() >= count {
                    break;
                }
            }
            Err(_) => {}
        }
    }
    consumer.close().await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test]
async fn a_hundred_kills_lose_nothing_and_raise_nothing_from_the_dead() {
    const MANY: usize = usize::MAX;
    let folder = tempfile::tempdir().unwrap();
    let start = |role| Running::start(folder.path(), role, MANY);
    let (mut publisher, mut consumer) = (start("publish"), start("consume"));
    // What a dead consumer held comes when its lease is over; meanwhile another works on.
    let steady = start("consume");
    for kill in 0..KILLS {
        // Anywhere in their work: opening, migrating, committing, acking.
        std::thread::sleep(Duration::from_millis(10 + u64::from(kill * 37 % 110)));
        let victim = if kill % 2 == 0 { &mut publisher } else { &mut consumer };
        std::mem::replace(victim, start(if kill % 2 == 0 { "publish" } else { "consume" })).kill();
    }
    publisher.kill();
    consumer.kill();
    let bus = Bus::connect(address(folder.path())).await.unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let depth = bus.depth("").await.unwrap();
        if depth.ready + depth.unsettled.unwrap() == 0 {
            break;
        }
        assert!(Instant::now() < until, "{depth:?} are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It writes down what it acked last.
    std::thread::sleep(Duration::from_millis(500));
    steady.kill();
    bus.close().await.unwrap();
    let account = Account::read(folder.path());
    throughline_testkit::endpoint::measured(
        "sqlite, kills",
        &format!(
            "{KILLS} processes killed; {} messages accepted, {} delivered, {} of them twice, lost {}, acked and again {}",
            account.accepted.len(),
            account.seen.len(),
            account.duplicates(),
            account.lost().len(),
            account.risen.len()
        ),
    );
    assert!(account.accepted.len() > 100, "too little was published to show anything");
    assert_eq!(account.lost(), Vec::<&String>::new());
    assert_eq!(account.risen, Vec::<String>::new());
    assert_eq!(integrity(folder.path()), ("ok".to_owned(), 0));
}

#[tokio::test]
async fn ten_processes_at_once_get_on() {
    const EACH: usize = 400;
    let folder: TempDir = tempfile::tempdir().unwrap();
    // All of them find no file, and make it.
    let mut running: Vec<_> = (0..5).map(|_| Running::start(folder.path(), "publish", EACH)).collect();
    running.extend((0..5).map(|_| Running::start(folder.path(), "consume", 5 * EACH)));
    for mut child in running {
        // No error came to any of them.
        assert!(child.0.wait().unwrap().success());
    }
    let account = Account::read(folder.path());
    assert_eq!(
        (account.accepted.len(), account.seen.len(), account.acked.len()),
        (5 * EACH, 5 * EACH, 5 * EACH)
    );
    assert!(account.duplicates() <= 20, "{} came twice, without a fault", account.duplicates());
    assert_eq!(integrity(folder.path()), ("ok".to_owned(), 0));
}
