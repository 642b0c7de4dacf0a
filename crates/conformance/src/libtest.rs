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

/// Names the folder that a run's report is written to, as `{transport}.json`.
pub const REPORTS_VAR: &str = "THROUGHLINE_CONFORMANCE_REPORTS";

/// The `main` of an adapter's `tests/conformance.rs` (with `harness = false` in its manifest). It understands the
/// arguments of a test program: names to select, `--skip`, `--list`, `--test-threads`.
pub fn main(harness: Result<impl Harness>) -> ExitCode {
    run(vec![(String::new(), harness)], std::env::var_os(REPORTS_VAR).map(PathBuf::from))
}

/// [`main`], for several variants of one transport, each with a name that its tests begin with (`like=sqs::`). Their reports
/// are not written: tables show transports.
pub fn main_of_variants<H: Harness>(variants: Vec<(String, Result<H>)>) -> ExitCode {
    run(variants, None)
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program: text is what it makes")]
fn run<H: Harness>(harnesses: Vec<(String, Result<H>)>, reports_folder: Option<PathBuf>) -> ExitCode {
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
    let mut suites = Vec::with_capacity(harnesses.len());
    for (name, harness) in harnesses {
        match harness.and_then(|harness| runtime.block_on(Suite::open(harness, settings.clone()))) {
            Ok(suite) => suites.push((name, Arc::new(suite), Arc::new(Mutex::new(Vec::new())))),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let (_never, stop) = watch::channel(false);
    let mut trials = Vec::new();
    for (name, suite, reports) in &suites {
        for case in suite::cases() {
            let title = if name.is_empty() { case.name.to_owned() } else { format!("{name}::{}", case.name) };
            trials.push(trial(title, case, runtime.clone(), suite.clone(), reports.clone(), stop.clone()));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    for (_, suite, reports) in suites {
        let mut ran = std::mem::take(&mut *reports.lock().unwrap_or_else(PoisonError::into_inner));
        if ran.is_empty() {
            continue;
        }
        ran.sort_by_key(|report| suite::cases().position(|case| case.name == report.case));
        let report = suite.report(ran);
        println!("{report}");
        if let Some(folder) = &reports_folder
            && let Err(error) = report.write_to(folder)
        {
            eprintln!("error: cannot write the report to {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

fn trial(
    title: String,
    case: &'static Case,
    runtime: Arc<Runtime>,
    suite: Arc<Suite>,
    reports: Arc<Mutex<Vec<CaseReport>>>,
    stop: watch::Receiver<bool>,
) -> Trial {
    Trial::test(title, move || {
        let Some(report) = runtime.block_on(suite.run_case(case, stop)) else { return Ok(()) };
        let failed = match &report.outcome {
            Outcome::Failed(why) => Err(Failed::from(format!("{}\nIt is to prove: {}", why, case.proves))),
            _ => Ok(()),
        };
        reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        failed
    })
}
