//! What a run came to: the steps, the tests, and loudly what was skipped.

use std::fmt::Write;
use std::time::Duration;

/// Sums of cargo test's `test result:` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    /// Adds a line of cargo test's output, if it is such a line.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some(counts) = line.trim().strip_prefix("test result: ") else { return };
        // `ok. 3 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s`
        let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Reads cargo test's output as it goes, for what failed and how: at the end of a long run nobody is to look for it.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// Of each failed test its name, and what it said.
    pub(crate) found: Vec<(String, Vec<String>)>,
    /// In a failed test's own output, where its message may still come.
    open: bool,
}

impl Failures {
    /// Of one message. A difference between two long values is in the log.
    const LINES: usize = 8;

    pub(crate) fn add_line(&mut self, line: &str) {
        let header = line.strip_prefix("---- ").and_then(|line| line.strip_suffix("----"));
        if let Some(header) = header {
            // libtest and libtest-mimic.
            let name = header.trim_end().trim_end_matches(" stdout");
            self.found.push((name.to_owned(), Vec::new()));
            self.open = true;
            return;
        }
        let Some((_, message)) = self.found.last_mut().filter(|_| self.open) else { return };
        if line.trim_start().starts_with("thread '") && line.contains(" panicked at ") {
            // What a test printed before it panicked says less than the panic does.
            message.clear();
        } else if line.starts_with("note: run with `RUST_BACKTRACE") || line.trim() == "failures:" {
            self.open = false;
            return;
        } else if line.trim().is_empty() || message.len() >= Self::LINES {
            return;
        }
        message.push(line.to_owned());
    }
}

/// A test that found it could not run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) test: String,
    pub(crate) reason: String,
}

/// Reads what tests have appended to the skip log: `test-name<TAB>reason`, a line each.
pub(crate) fn skips(log: &str) -> Vec<Skip> {
    let mut skips: Vec<Skip> = Vec::new();
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        let (test, reason) = line.split_once('\t').unwrap_or((line, "no reason given"));
        // One test may notice more than once.
        if !skips.iter().any(|skip| skip.test == test) {
            skips.push(Skip { test: test.to_owned(), reason: reason.to_owned() });
        }
    }
    skips
}

/// A step of the run.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) took: Duration,
    pub(crate) passed: bool,
    pub(crate) note: String,
}

/// All that a run came to.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) steps: Vec<Step>,
    /// Of `cargo test`, the examples and the demo.
    pub(crate) tally: Tally,
    /// Of `cargo test`.
    pub(crate) failures: Failures,
    /// Tests that returned early. The test harness has counted these as passed.
    pub(crate) skipped_tests: Vec<Skip>,
    /// What tests have measured: `test-name<TAB>text`, a line each.
    pub(crate) measured: String,
    /// What was not even started.
    pub(crate) skipped_steps: Vec<Skip>,
    /// The conformance table.
    pub(crate) conformance: String,
    /// Whether a skip is a failure.
    pub(crate) ci: bool,
}

impl Summary {
    /// Whether all went well.
    pub(crate) fn success(&self) -> bool {
        let complete = self.skipped_tests.is_empty() && self.skipped_steps.is_empty();
        self.steps.iter().all(|step| step.passed) && self.tally.failed == 0 && (complete || !self.ci)
    }

    /// For a person; its last line is the plain `N passed, N failed, N skipped`.
    pub(crate) fn render(&self) -> String {
        let mut text = format!("{}\n== summary\n", self.conformance);
        let width = self.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or_default();
        for Step { name, took, passed, note } in &self.steps {
            let outcome = if *passed { "ok" } else { "FAILED" };
            let line = format!("  {name:<width$}  {outcome:<6} {:>7.1} s  {note}", took.as_secs_f64());
            let _ = writeln!(text, "{}", line.trim_end());
        }
        if !self.measured.is_empty() {
            text.push_str("\n== measured\n");
            let mut lines: Vec<_> = self.measured.lines().collect();
            // Of one test in its order; tests run side by side.
            lines.sort_by_key(|line| line.split('\t').next());
            for line in lines {
                let _ = writeln!(text, "  {}", line.replacen('\t', ": ", 1));
            }
        }
        let returned_early = self.skipped_tests.len() as u64;
        let skipped = self.tally.ignored + returned_early + self.skipped_steps.len() as u64;
        let skips = || self.skipped_tests.iter().chain(&self.skipped_steps);
        let count = skips().count();
        if count > 0 {
            let consequence = if self.ci { ": a failure, since CI=true" } else { "" };
            let _ = writeln!(text, "\n!! SKIPPED: {count} {} did not run{consequence}", tests(count));
            for Skip { test, reason } in skips() {
                let _ = writeln!(text, "!!   {test}: {reason}");
            }
        }
        for (test, message) in &self.failures.found {
            let _ = writeln!(text, "\n!! FAILED: {test}");
            for line in message {
                let _ = writeln!(text, "!!   {line}");
            }
        }
        if !self.success() {
            let _ = writeln!(text, "\nFAILED");
        }
        let passed = self.tally.passed.saturating_sub(returned_early);
        let _ = write!(text, "\n{passed} passed, {} failed, {skipped} skipped", self.tally.failed);
        text
    }
}

fn tests(count: usize) -> &'static str {
    if count == 1 { "test" } else { "tests" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_and_nothing_else() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test a::b ... ok",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s",
            "my test result: ok. 9 passed; 9 failed; 9 ignored",
            "test result: nonsense",
            "",
        ] {
            tally.add_line(line);
        }
        assert_eq!(tally, Tally { passed: 4, failed: 2, ignored: 1 });
    }

    #[test]
    fn what_failed_is_told_again_at_the_end() {
        let mut failures = Failures::default();
        let output = "\
running 2 tests
test cut ... FAILED

failures:

---- cut stdout ----
2026-01-01T00:00:00Z  WARN a log line
thread 'cut' (77) panicked at tests/faults.rs:87:5:
only 499 were accepted
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
2026-01-01T00:00:01Z  WARN a log line of another thread

failures:
    cut

---- publish::empty ----
refused: why

failures:
    publish::empty
";
        output.lines().for_each(|line| failures.add_line(line));
        let text = Summary { failures, ..Summary::default() }.render();
        let expected = "\
!! FAILED: cut
!!   thread 'cut' (77) panicked at tests/faults.rs:87:5:
!!   only 499 were accepted

!! FAILED: publish::empty
!!   refused: why
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn the_skip_log_is_read_leniently() {
        let skips = skips("a::b\tno broker\n\na::b\tno broker\nc\n");
        let read: Vec<_> = skips.iter().map(|skip| (skip.test.as_str(), skip.reason.as_str())).collect();
        assert_eq!(read, [("a::b", "no broker"), ("c", "no reason given")]);
    }

    #[test]
    fn skipped_tests_do_not_count_as_passed() {
        let mut summary = Summary {
            steps: vec![Step {
                name: "cargo test".to_owned(),
                took: Duration::from_millis(1250),
                passed: true,
                note: String::new(),
            }],
            tally: Tally { passed: 10, failed: 0, ignored: 2 },
            skipped_tests: skips("t\tno broker"),
            ..Summary::default()
        };
        let text = summary.render();
        assert_eq!(text.lines().last(), Some("9 passed, 0 failed, 3 skipped"));
        assert!(text.contains("SKIPPED: 1 test did not run\n!!   t: no broker"), "{text}");
        assert!(text.contains("  cargo test  ok         1.2 s\n"), "{text}");
        assert!(summary.success());
        summary.ci = true;
        assert!(!summary.success());
        assert!(summary.render().contains("\nFAILED\n"));
    }

    #[test]
    fn a_failed_step_fails_the_run() {
        let step = Step { name: "demo".to_owned(), took: Duration::ZERO, passed: false, note: String::new() };
        let summary = Summary { steps: vec![step], ..Summary::default() };
        assert!(!summary.success());
        assert!(summary.render().contains("demo  FAILED"));
    }
}
