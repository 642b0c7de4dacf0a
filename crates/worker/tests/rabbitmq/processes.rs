//! A worker's process that is killed, told to end, or killed by a message.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use throughline::{Bus, ConsumeOptions, Envelope};
use throughline_testkit::endpoint;
use throughline_worker::{Job, Json, RetryPolicy, Router, Worker, shutdown_signal};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::rig::{Rig, until};

/// Names the queue of a [`worker_process`].
const WORK: &str = "THROUGHLINE_TEST_WORK";
/// How many messages it takes at once.
const AT_ONCE: &str = "THROUGHLINE_TEST_AT_ONCE";

/// Not a test of its own: what the others start as a process. For each message it prints `begin`, and `end` at the end of
/// its handler. `poison` ends the process.
#[tokio::test(flavor = "multi_thread")]
async fn worker_process() {
    let Ok(address) = std::env::var(WORK) else { return };
    async fn handler(Json(text): Json<String>, job: Job) {
        println!("\nbegin {text} {}", job.attempt());
        if text == "poison" {
            std::process::abort();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        println!("\nend {text}");
    }
    let bus = Bus::connect(&address).await.unwrap();
    let at_once = std::env::var(AT_ONCE).unwrap().parse().unwrap();
    let options = ConsumeOptions { max_unsettled: at_once, ..ConsumeOptions::default() };
    let consumer = bus.consumer_of("", options).await.unwrap();
    let policy = RetryPolicy::default().max_attempts(5);
    let worker = Worker::new(consumer, Router::new().on("job", handler));
    let report = worker.concurrency(at_once).retry(policy).run(shutdown_signal()).await.unwrap();
    println!("\nreport {} {}", report.acked, report.unsettled);
    bus.close().await.unwrap();
}

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(rig: &Rig, at_once: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::worker_process", "--nocapture"])
            .env(WORK, rig.address(&rig.url))
            .env(AT_ONCE, at_once.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing it says of a message: `begin` or `end`, and of which; `None` when it has ended.
    async fn next(&mut self) -> Option<(String, String)> {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            let mut words = line.split_whitespace();
            if let Some(what @ ("begin" | "end" | "report")) = words.next() {
                return Some((what.to_owned(), words.collect::<Vec<_>>().join(" ")));
            }
        }
        None
    }
}

fn job(text: &str) -> Envelope {
    Envelope::json("job", text).unwrap()
}

fn text_of(said: &str) -> String {
    said.split(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_was_at_is_done_by_the_next() {
    const TEST: &str = "what_a_killed_worker_was_at_is_done_by_the_next";
    const MESSAGES: usize = 40;
    let Some(rig) = Rig::new(TEST).await else { return };
    rig.publish((0..MESSAGES).map(|n| job(&n.to_string()))).await;
    let (mut begun, mut ended, mut kills) = (0, BTreeSet::new(), 0);
    while ended.len() < MESSAGES {
        let mut process = Process::start(&rig, 2);
        let mut handled = 0;
        while let Some((what, said)) = process.next().await {
            match what.as_str() {
                "begin" => {
                    begun += 1;
                    handled += 1;
                    if handled == 12 {
                        // In its handler.
                        process.child.kill().await.unwrap();
                        kills += 1;
                    }
                }
                "end" => _ = ended.insert(text_of(&said)),
                _ => {}
            }
            if ended.len() == MESSAGES {
                break;
            }
        }
        process.child.kill().await.unwrap();
    }
    assert!(kills >= 3, "{kills} kills");
    // The last acks of a killed process may be missing: then they come again, and a healthy worker ends them.
    let mut process = Process::start(&rig, 2);
    until("the queue is empty", async || rig.ready().await == 0).await;
    terminate(&process.child);
    while process.next().await.is_some() {}
    assert!(rig.dead().await.is_empty(), "killed workers are no failures of their messages");
    endpoint::measured(TEST, &format!("{kills} kills, lost 0, begun again {}", begun - MESSAGES));
    rig.finish().await;
}

fn terminate(child: &Child) {
    let pid = child.id().unwrap();
    let status = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_finishes_and_nothing_it_finished_comes_again() {
    const TEST: &str = "a_worker_that_is_told_to_end_finishes";
    const MESSAGES: usize = 30;
    let Some(rig) = Rig::new(TEST).await else { return };
    rig.publish((0..MESSAGES).map(|n| job(&n.to_string()))).await;
    let (mut begun, mut ended, mut processes) = (Vec::new(), Vec::new(), 0);
    while ended.len() < MESSAGES {
        let mut process = Process::start(&rig, 2);
        processes += 1;
        let before = ended.len();
        let mut told = false;
        let mut report = None;
        while let Some((what, said)) = process.next().await {
            match what.as_str() {
                "begin" => begun.push(text_of(&said)),
                "end" => ended.push(text_of(&said)),
                _ => report = Some(said),
            }
            if !told && (ended.len() >= before + 7 || ended.len() == MESSAGES) {
                terminate(&process.child);
                told = true;
            }
        }
        assert!(process.child.wait().await.unwrap().success());
        assert_eq!(report, Some(format!("{} 0", ended.len() - before)), "each that ended was acked");
    }
    assert!(processes >= 3, "{processes} processes");
    begun.sort();
    ended.sort();
    let distinct: BTreeSet<_> = begun.iter().collect();
    assert_eq!((begun.len(), distinct.len()), (MESSAGES, MESSAGES), "begun again: {begun:?}");
    assert_eq!(begun, ended);
    assert_eq!(rig.ready().await, 0);
    rig.finish().await;
}

/// One at a time: what a killed process had in advance counts as delivered, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_its_workers_is_a_dead_letter_in_the_end() {
    const TEST: &str = "a_message_that_kills_its_workers_is_a_dead_letter_in_the_end";
    let Some(rig) = Rig::new(TEST).await else { return };
    rig.publish([job("poison"), job("a"), job("b"), job("c")]).await;
    let (mut ended, mut deaths) = (BTreeSet::new(), 0);
    loop {
        let mut process = Process::start(&rig, 1);
        let mut told = false;
        let died = loop {
            // It says nothing of what becomes a dead letter without its handler.
            match tokio::time::timeout(Duration::from_millis(200), process.next()).await {
                Ok(Some((what, said))) if what == "end" => _ = ended.insert(text_of(&said)),
                Ok(Some((what, _))) if what == "report" => break false,
                Ok(None) => break true,
                Ok(Some(_)) | Err(_) => {}
            }
            if !told && ended.len() == 3 && rig.dead().await.len() == 1 {
                terminate(&process.child);
                told = true;
            }
        };
        deaths += usize::from(died);
        if told {
            break;
        }
        assert!(deaths < 20, "it is poison for ever");
    }
    let dead = rig.dead().await;
    assert_eq!(dead[0].envelope.decode_json::<String>().unwrap(), "poison");
    let last = dead[0].history.as_deref().unwrap().last().unwrap();
    assert_eq!(last.error, "attempts_exhausted");
    assert_eq!(ended.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    endpoint::measured(TEST, &format!("a dead letter after {deaths} deaths"));
    rig.finish().await;
}
