//! The suite as a test program: `cargo test -p ADAPTER --test conformance [NAME]`, one test a case.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use throughline_core::Result;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::harness::Harness;
use crate::report::{CaseReport, Outcome};
use crate::suite::{self, Case, Settings, Suite};

/// Names the folder that a run's report is written to, as `{name}.json`; see [`Report::name`](crate::report::Report::name).
pub const REPORTS_VAR: &str = "THROUGHLINE_CONFORMANCE_REPORTS";

/// The `main` of an adapter's `tests/conformance.rs` (with `harness = false` in its manifest). It understands the
/// arguments of a test program: names to select, `--skip`, `--list`, `--test-threads`.
pub fn main(harness: Result<impl Harness>) -> ExitCode {
    all([(harness, Settings::default())])
}

/// The same for variants of a transport's addresses, each with settings and a report of its own.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program: text is what it makes")]
pub fn all<H: Harness>(harnesses: impl IntoIterator<Item = (Result<H>, Settings)>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases wait more than they work.
    arguments.test_threads.get_or_insert(Settings::default().concurrency);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let reports_folder = std::env::var_os(REPORTS_VAR).map(PathBuf::from);
    let mut runs = Vec::new();
    for (harness, settings) in harnesses {
        match harness.and_then(|harness| runtime.block_on(Suite::open(harness, settings))) {
            Ok(suite) => runs.push(Run { suite: Arc::new(suite), reports: Arc::default() }),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let trials = runs.iter().flat_map(|run| suite::cases().map(|case| run.trial(case, runtime.clone())));
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    for Run { suite, reports } in runs {
        let mut ran = std::mem::take(&mut *reports.lock().unwrap_or_else(PoisonError::into_inner));
        if ran.is_empty() {
            continue;
        }
        ran.sort_by_key(|report| suite::cases().position(|case| case.name == report.case));
        let report = suite.report(ran);
        println!("{report}");
        if let Some(folder) = reports_folder.as_ref().filter(|_| suite.settings().reported)
            && let Err(error) = report.write_to(folder)
        {
            eprintln!("error: cannot write the report to {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

/// The suite on one harness, and what its cases came to.
struct Run {
    suite: Arc<Suite>,
    reports: Arc<Mutex<Vec<CaseReport>>>,
}

impl Run {
    fn trial(&self, case: &'static Case, runtime: Arc<Runtime>) -> Trial {
        let (suite, reports) = (self.suite.clone(), self.reports.clone());
        let kind = suite.variant().unwrap_or_default().to_owned();
        let trial = Trial::test(case.name, move || {
            let (_never, stop) = watch::channel(false);
            let Some(report) = runtime.block_on(suite.run_case(case, stop)) else { return Ok(()) };
            let failed = match &report.outcome {
                Outcome::Failed(why) => {
                    Err(Failed::from(format!("{}\nIt is to prove: {}", why, case.proves)))
                }
                _ => Ok(()),
            };
            reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
            failed
        });
        trial.with_kind(kind)
    }
}
