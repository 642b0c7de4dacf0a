//! `bridge`, between SQLite files: no broker needed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Run, run, run_with_stdin, throughline};

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn address(&self, name: &str) -> String {
        format!("sqlite:{}?queue=q", self.path(name))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Publishes a line a message.
    fn fill(&self, name: &str, lines: &str, more: &[&str]) {
        let address = self.address(name);
        let args = [&["publish", &address, "--lines", "--quiet"], more].concat();
        let run = run_with_stdin(&args, lines.as_bytes());
        assert_eq!(run.code, 0, "{run:?}");
    }

    fn bridge(&self, from: &str, to: &str, more: &[&str]) -> Run {
        let (from, to, ledger) = (self.address(from), self.address(to), self.path("ledger"));
        run(&[&["bridge", &from, &to, "--ledger", &ledger], more].concat())
    }

    fn bodies(&self, name: &str) -> Vec<String> {
        let run = run(&["consume", &self.address(name), "--peek", "--json", "--wait", "300ms"]);
        assert_eq!(run.code, 0, "{run:?}");
        let bodies = run.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        bodies.map(|message| message["payload"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn moves_all_and_reports() {
    let files = Files::new();
    files.fill("a.db", "1\n2\n3\n", &["--key", "k"]);
    let moved = files.bridge("a.db", "b.db", &["--until-empty"]);
    assert_eq!(moved.code, 0, "{moved:?}");
    assert!(moved.stdout.contains("moved:") && moved.stdout.contains("the source is empty"), "{moved:?}");
    assert_eq!(moved.stderr, "");
    assert_eq!(files.bodies("b.db"), ["1", "2", "3"]);
    let again = files.bridge("a.db", "b.db", &["--until-empty", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&report["totals"]["moved"], &report["earlier"]["moved"]), (&0.into(), &3.into()));
    assert_eq!(report["end"]["reason"], "empty");
}

#[test]
fn what_cannot_work_is_told() {
    let files = Files::new();
    let address = files.address("a.db");
    files.fill("a.db", "1\n", &[]);
    let wrong = files.bridge("a.db", "b.db", &["--map", "header:traceparent=x"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("keep their names"), "{wrong:?}");
    let wrong = files.bridge("a.db", "b.db", &["--filter", "x"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("type=NAME"), "{wrong:?}");
    let same = files.bridge("a.db", "a.db", &[]);
    assert!(same.code == 2 && same.stderr.contains("round for ever"), "{same:?}");
    let memory = run(&["bridge", "memory:x?queue=q", &address]);
    assert!(memory.code == 2 && memory.stderr.contains("within one process"), "{memory:?}");
    let missing = run(&["bridge", &address, &format!("{}&create=never", files.address("none.db"))]);
    assert_eq!(missing.code, 3, "{missing:?}");
    assert_eq!(files.bodies("a.db"), ["1"]);
}

#[test]
fn only_what_is_meant_is_moved() {
    let files = Files::new();
    files.fill("a.db", "1\n2\n", &["--type", "a"]);
    files.fill("a.db", "3\n", &["--type", "b"]);
    let moved =
        files.bridge("a.db", "b.db", &["--until-empty", "--filter", "type=a", "--max", "1", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&moved.stdout).unwrap();
    assert_eq!((moved.code, &report["end"]["reason"]), (0, &"max".into()), "{moved:?}");
    let moved = files.bridge("a.db", "b.db", &["--until-empty", "--filter", "type=a"]);
    assert!(moved.stdout.contains("left:"), "{moved:?}");
    assert_eq!(
        (files.bodies("b.db"), files.bodies("a.db")),
        (vec!["1".into(), "2".into()], vec!["3".into()])
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_in_order() {
    let files = Files::new();
    files.fill("a.db", "1\n", &[]);
    let (from, to, ledger) = (files.address("a.db"), files.address("b.db"), files.path("ledger"));
    let child = throughline(&["bridge", &from, &to, "--ledger", &ledger, "--json"]).spawn().unwrap();
    wait_for(Path::new(&ledger));
    while files.bodies("b.db").is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ended: Run = child.wait_with_output().unwrap().into();
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &report["end"]["reason"]), (0, &"stopped".into()), "{ended:?}");
    assert_eq!(report["totals"]["moved"], 1);
}

#[cfg(unix)]
fn wait_for(file: &Path) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !file.exists() {
        assert!(std::time::Instant::now() < deadline, "no {}", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_would_become_of_messages_is_told_and_nothing_is_moved() {
    let files = Files::new();
    files.fill("a.db", "1\n2\n", &["--type", "a"]);
    let dry = files.bridge("a.db", "b.db", &["--dry-run", "--filter", "type=b"]);
    assert!(dry.code == 0 && dry.stdout.contains("would leave     2"), "{dry:?}");
    let (a, b) = (files.address("a.db"), files.address("b.db"));
    let explained = run(&["explain", &a, &b, "--probe"]);
    assert!(explained.code == 0 && explained.stdout.contains("ordering key"), "{explained:?}");
    assert!(explained.stdout.contains("every field                       same"), "{explained:?}");
    let json = run(&["explain", &a, &b, "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(plan["parts"][0]["fate"], "kept", "{json:?}");
    assert_eq!(files.bodies("a.db"), ["1", "2"]);
}

#[test]
fn what_was_moved_is_verified_and_the_report_written_as_a_page() {
    let files = Files::new();
    files.fill("a.db", "1\n2\n", &["--key", "k"]);
    let page = files.path("report.html");
    let moved = files.bridge("a.db", "b.db", &["--until-empty", "--verify", "--html", &page]);
    assert!(moved.code == 0 && moved.stdout.contains("2 of 2 there as sent"), "{moved:?}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("all as sent"), "{page}");
}
