//! `migrate`, between SQLite files: no broker needed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]
#![cfg(unix)]

mod common;

use std::process::{Child, Output};
use std::time::Duration;

use common::{Run, run, run_with_stdin, throughline};
use serde_json::Value;

/// A command that runs; ends with the test, whatever becomes of that.
struct Running(Option<Child>);

impl Running {
    fn start(args: &[&str]) -> Self {
        Self(Some(throughline(args).spawn().unwrap()))
    }

    /// Sends it a signal, and waits for its end.
    fn end(mut self, signal: &str) -> Output {
        let pid = self.0.as_ref().unwrap().id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn address(&self, file: &str, options: &str) -> String {
        format!("sqlite:{}?{options}", self.0.path().join(file).display())
    }

    fn old(&self) -> String {
        self.address("old.db", "topic=t&queue=workers")
    }

    fn new_place(&self) -> String {
        self.address("new.db", "queue=q")
    }

    fn state(&self) -> String {
        self.0.path().join("m.json").display().to_string()
    }

    fn publish(&self, address: &str, lines: &str) {
        let run = run_with_stdin(&["publish", address, "--lines", "--quiet"], lines.as_bytes());
        assert_eq!(run.code, 0, "{run:?}");
    }

    fn migrate(&self, args: &[&str]) -> Run {
        run(&[&["migrate"], args, &["--state", &self.state()]].concat())
    }

    /// Its report, of a phase that is to succeed.
    fn json(&self, args: &[&str]) -> Value {
        let run = self.migrate(&[args, &["--json"]].concat());
        assert_eq!(run.code, 0, "{run:?}");
        serde_json::from_str(&run.stdout).unwrap()
    }

    fn ready(&self, place: &str) -> u64 {
        self.json(&["status"])[place]["ready"].as_u64().unwrap()
    }

    /// Mirrors until the ledger has so many, and then sends it a signal.
    fn mirror_until(&self, count: u64, signal: &str) -> Run {
        let child = Running::start(&["migrate", "mirror", "--state", &self.state()]);
        until(|| self.json(&["status"])["ledgers"][0]["totals"]["moved"].as_u64().unwrap_or(0) >= count);
        let output = child.end(signal);
        let killed = Run { code: -1, stdout: String::new(), stderr: String::new() };
        if output.status.code().is_some() { output.into() } else { killed }
    }
}

fn until(is_so: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(std::time::Instant::now() < end, "it does not come to it");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_workload_moves_from_a_tap_and_back() {
    let files = Files::new();
    let (old, new, tap) = (files.old(), files.new_place(), files.address("old.db", "topic=t&queue=tap"));
    let started = files.migrate(&["start", &old, &new, "--tap", &tap]);
    assert!(started.code == 0 && started.stdout.contains("migrate mirror --state"), "{started:?}");
    files.publish(&old, "1\n2\n3\n");
    let early = files.migrate(&["drain"]);
    assert!(early.code == 1 && early.stderr.contains("cut-over comes first"), "{early:?}");
    // Killed, and gone on with.
    files.mirror_until(3, "-KILL");
    files.publish(&old, "4\n");
    let mirrored = files.mirror_until(4, "-INT");
    assert!(mirrored.code == 0 && mirrored.stdout.contains("stopped, and can go on"), "{mirrored:?}");
    let compared = files.migrate(&["compare"]);
    assert!(compared.code == 0 && compared.stdout.contains("all is there as it was sent"), "{compared:?}");

    let unsaid = files.migrate(&["cut-over"]);
    assert!(unsaid.code == 2 && unsaid.stderr.contains("what becomes of the copies"), "{unsaid:?}");
    let cut = files.migrate(&["cut-over", "--purge-copies"]);
    assert!(cut.code == 0 && cut.stdout.contains("copies deleted"), "{cut:?}");
    files.publish(&new, "5\n");
    let drained = files.json(&["drain", "--quiet", "100ms"]);
    assert_eq!((&drained["is_done"], &drained["report"]["totals"]["moved"]), (&true.into(), &4.into()));
    assert_eq!((files.ready("old"), files.ready("new")), (0, 5));
    let status = files.migrate(&["status"]);
    assert!(status.stdout.contains("drain  done") && status.stdout.contains("roll-back"), "{status:?}");

    let back = files.json(&["roll-back", "--quiet", "100ms"]);
    assert_eq!(back["report"]["totals"]["moved"], 5, "{back}");
    let again = files.migrate(&["roll-back"]);
    assert!(again.code == 0 && again.stdout.contains("was done before"), "{again:?}");
    assert_eq!((files.ready("old"), files.ready("new")), (5, 0));
    assert_eq!(files.migrate(&["start", &old, &new]).code, 0, "anew");
}

#[test]
fn what_differs_has_an_exit_code() {
    let files = Files::new();
    let (old, new, tap) = (files.old(), files.new_place(), files.address("old.db", "topic=t&queue=tap"));
    assert_eq!(files.migrate(&["start", &old, &new, "--tap", &tap]).code, 0);
    files.publish(&old, "1\n2\n");
    files.mirror_until(2, "-INT");
    assert_eq!(run(&["consume", &new, "--max", "1", "--wait", "10s"]).code, 0);
    let compared = files.migrate(&["compare"]);
    assert!(compared.code == 6 && compared.stdout.contains("missing:        1"), "{compared:?}");
    let json = files.migrate(&["compare", "--json"]);
    let compared: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, &compared["missing"]["count"], &compared["same"]), (6, &1.into(), &1.into()));
}

#[test]
fn what_cannot_work_is_told() {
    let files = Files::new();
    let (old, new) = (files.old(), files.new_place());
    let missing = files.migrate(&["mirror"]);
    assert!(missing.code == 3 && missing.stderr.contains("start the migration first"), "{missing:?}");
    let memory = files.migrate(&["start", "memory:x?queue=q", &new]);
    assert!(memory.code == 2 && memory.stderr.contains("within one process"), "{memory:?}");
    let stolen = files.migrate(&["start", &old, &new, "--tap", &old]);
    assert!(stolen.code == 2 && stolen.stderr.contains("would take their messages"), "{stolen:?}");
    assert_eq!(files.migrate(&["start", &old, &new, "--map", "key=id"]).code, 0);
    files.publish(&old, "1\n");
    files.mirror_until(1, "-INT");
    let copies = files.migrate(&["cut-over", "--keep-copies"]);
    assert!(copies.code == 2 && copies.stderr.contains("makes no copies"), "{copies:?}");
    let back = files.migrate(&["roll-back"]);
    assert!(back.code == 2 && back.stderr.contains("cannot be undone"), "{back:?}");
    let back = files.migrate(&["roll-back", "--map", "key=none", "--quiet", "100ms"]);
    assert_eq!((back.code, files.ready("old")), (0, 1), "{back:?}");
}

#[test]
fn an_interrupted_phase_is_not_done() {
    let files = Files::new();
    assert_eq!(files.migrate(&["start", &files.old(), &files.new_place()]).code, 0);
    files.publish(&files.old(), "1\n");
    files.mirror_until(1, "-INT");
    let state = files.state();
    let child = Running::start(&["migrate", "cut-over", "--state", &state, "--quiet", "1h"]);
    until(|| files.json(&["status"])["is_running"].as_bool().unwrap());
    let other = files.migrate(&["cut-over"]);
    assert!(other.code == 1 && other.stderr.contains("another process"), "{other:?}");
    let ended: Run = child.end("-INT").into();
    assert!(ended.code == 130 && ended.stdout.contains("not done"), "{ended:?}");
    assert_eq!(files.json(&["cut-over", "--quiet", "100ms"])["is_done"], true);
}
