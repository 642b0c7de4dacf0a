//! The suite as a test program: `cargo test -p ADAPTER --test conformance [NAME]`, one test a case.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use throughline_core::Result;
use tokio::sync::watch;

use crate::harness::Harness;
use crate::report::{CaseReport, Outcome};
use crate::suite::{self, Settings, Suite};

/// Names the folder that a run's report is written to, as `{transport}.json`.
pub const REPORTS_VAR: &str = "THROUGHLINE_CONFORMANCE_REPORTS";

/// The `main` of an adapter's `tests/conformance.rs` (with `harness = false` in its manifest). It understands the
/// arguments of a test program: names to select, `--skip`, `--list`, `--test-threads`.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program: text is what it makes")]
pub fn main(harness: Result<impl Harness>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let settings = Settings::default();
    // Cases wait more than they work.
    arguments.test_threads.get_or_insert(settings.concurrency);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let opened = harness.and_then(|harness| runtime.block_on(Suite::open(harness, settings)));
    let suite = match opened {
        Ok(suite) => Arc::new(suite),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let reports: Arc<Mutex<Vec<CaseReport>>> = Arc::default();
    let (_never, stop) = watch::channel(false);
    let trials = suite::cases().map(|case| {
        let (runtime, suite, reports, stop) = (runtime.clone(), suite.clone(), reports.clone(), stop.clone());
        Trial::test(case.name, move || {
            let Some(report) = runtime.block_on(suite.run_case(case, stop)) else { return Ok(()) };
            let failed = match &report.outcome {
                Outcome::Failed(why) => {
                    Err(Failed::from(format!("{}\nIt is to prove: {}", why, case.proves)))
                }
                _ => Ok(()),
            };
            reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
            failed
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let mut ran = std::mem::take(&mut *reports.lock().unwrap_or_else(PoisonError::into_inner));
    if !ran.is_empty() {
        ran.sort_by_key(|report| suite::cases().position(|case| case.name == report.case));
        let report = suite.report(ran);
        println!("{report}");
        if let Some(folder) = std::env::var_os(REPORTS_VAR).map(PathBuf::from)
            && let Err(error) = report.write_to(&folder)
        {
            eprintln!("error: cannot write the report to {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}
