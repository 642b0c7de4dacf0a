//! `cargo xtask test`: build, brokers, `cargo test`, conformance, the examples, the demo; then a summary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::Result;
use throughline_brokers as tb;
use throughline_brokers::Export;
use throughline_brokers::folder::{Folder, Origin};

use crate::artifacts::{self, Artifacts};
use crate::brokers::{self, Provided};
use crate::summary::{Failures, Skip, Step, Summary, Tally, skips};
use crate::{Outcome, TestArgs, child, conformance, in_ci, layout, permission};

/// An example, or the demo, takes seconds. One that hangs is to fail, not to hang us.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) fn run(args: &TestArgs, base: &Path, checkout: &Path) -> Result<Outcome> {
    for kind in tb::reap(base) {
        eprintln!("stopped what a killed run had left behind: {kind}");
    }
    let scratch = Scratch::new(base)?;
    let mut run = Run {
        args,
        base,
        checkout,
        folder: &scratch.0,
        ci: in_ci(),
        exports: Vec::new(),
        summary: Summary { ci: in_ci(), ..Summary::default() },
    };
    let outcome = run.steps();
    if let Err(error) = outcome {
        // A broker that is missing, say. What was learned before is still worth telling.
        if run.summary.steps.is_empty() {
            return Err(error);
        }
        run.summary.tally.failed += 1;
        println!("{}", run.summary.render());
        return Err(error);
    }
    println!("{}", run.summary.render());
    Ok(if run.summary.success() { Outcome::Success } else { Outcome::Failure })
}

struct Run<'a> {
    args: &'a TestArgs,
    base: &'a Path,
    checkout: &'a Path,
    /// For what nobody needs once the run is over, and for the next run, should this one be killed.
    folder: &'a Folder,
    ci: bool,
    /// What every test gets.
    exports: Vec<Export>,
    summary: Summary,
}

impl Run<'_> {
    fn steps(&mut self) -> Result<()> {
        // First, so that a mistake in the code shows before anything is installed or started.
        if !self.step("build", Run::build)? {
            return Ok(());
        }
        let mut artifacts = Artifacts::default();
        if self.args.cargo.is_empty()
            && !self.step("build examples", |run| run.build_examples(&mut artifacts))?
        {
            return Ok(());
        }
        // Stopped when this function is left, whichever way.
        let mut provided = Vec::new();
        self.step("brokers", |run| run.start_brokers(&mut provided))?;
        self.step("cargo test", Run::cargo_test)?;
        self.step("conformance", Run::conformance)?;
        for kind in tb::reap(self.base) {
            eprintln!("stopped what a test had left behind: {kind}");
        }
        for (transport, program) in artifacts.quickstarts {
            let name = format!("quickstart of {transport}");
            if let Some(reason) = missing_broker(&transport, &provided) {
                self.summary.skipped_steps.push(Skip { test: name, reason });
                continue;
            }
            self.step(&name, |run| run.program(Command::new(&program)))?;
        }
        if self.args.cargo.is_empty() {
            self.step("demo", |run| match &artifacts.cli {
                Some(cli) => {
                    let mut demo = Command::new(cli);
                    demo.arg("demo");
                    run.program(demo)
                }
                None => {
                    run.summary.tally.failed += 1;
                    Ok((false, "no binary `throughline` in the workspace".to_owned()))
                }
            })?;
        }
        Ok(())
    }

    /// Runs one step, times it, and notes whether it passed.
    fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<(bool, String)>) -> Result<bool> {
        eprintln!("\n== {name}");
        let started = Instant::now();
        let result = work(self);
        let took = started.elapsed();
        let (passed, note) = result.as_ref().map_or((false, String::new()), Clone::clone);
        self.summary.steps.push(Step { name: name.to_owned(), took, passed, note });
        result.map(|(passed, _)| passed)
    }

    fn build(&mut self) -> Result<(bool, String)> {
        let mut command = self.cargo_test_command();
        command.arg("--no-run");
        // Up to `--`: what follows is for the test programs, which are not run yet.
        command.args(self.args.cargo.iter().take_while(|argument| *argument != "--"));
        let status = child::lines(&mut command, self.folder, |line| println!("{line}"))?;
        if !status.success() {
            self.summary.tally.failed += 1;
        }
        Ok((status.success(), String::new()))
    }

    fn build_examples(&mut self, artifacts: &mut Artifacts) -> Result<(bool, String)> {
        match artifacts::build(self.checkout, self.folder, self.ci) {
            Ok(built) => {
                *artifacts = built;
                Ok((true, String::new()))
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                self.summary.tally.failed += 1;
                Ok((false, String::new()))
            }
        }
    }

    fn start_brokers(&mut self, provided: &mut Vec<Provided>) -> Result<(bool, String)> {
        let permission = permission(self.args.install);
        if self.args.no_brokers {
            return Ok((true, "none, as asked".to_owned()));
        }
        for kind in tb::kinds() {
            match brokers::provide(*kind, permission, self.base, self.checkout) {
                Ok(broker) => {
                    eprintln!("{broker} is up");
                    self.exports.extend(broker.exports.iter().cloned());
                    provided.push(broker);
                }
                Err(error) => self.do_without(error)?,
            }
            // Tests that kill and restart a broker start one of their own, whoever provides the shared one.
            if self.ci && !kind.installed() {
                kind.install(permission)?;
            }
        }
        for helper in [brokers::python, brokers::browser] {
            match helper(permission) {
                Ok(export) => self.exports.push(export),
                Err(error) => self.do_without(error)?,
            }
        }
        let names: Vec<String> = provided.iter().map(ToString::to_string).collect();
        Ok((true, names.join(", ")))
    }

    /// Goes on without something that may not be installed here, unless nobody would notice.
    fn do_without(&self, error: anyhow::Error) -> Result<()> {
        if self.ci || !error.is::<tb::NotInstalled>() {
            return Err(error);
        }
        eprintln!("\n!! {error:#}\n!! Tests that need it will be SKIPPED.");
        Ok(())
    }

    fn cargo_test(&mut self) -> Result<(bool, String)> {
        let skip_log = self.folder.path().join("skipped");
        let measured_log = self.folder.path().join("measured");
        fs::write(&skip_log, "")?;
        fs::write(&measured_log, "")?;
        let mut command = self.cargo_test_command();
        command
            .env(tb::SKIP_LOG_VAR, &skip_log)
            .env(tb::MEASURED_LOG_VAR, &measured_log)
            .env(conformance::REPORTS_VAR, self.reports())
            .envs(self.exports.iter().cloned());
        if self.args.cargo.is_empty() {
            // All that is wrong, not only the first.
            command.arg("--no-fail-fast");
        }
        command.args(&self.args.cargo);
        let (mut tally, mut failures) = (Tally::default(), Failures::default());
        let status = child::lines(&mut command, self.folder, |line| {
            println!("{line}");
            tally.add_line(line);
            failures.add_line(line);
        })?;
        self.summary.failures = failures;
        if !status.success() && tally.failed == 0 {
            // A test program that crashed has counted nothing.
            tally.failed = 1;
        }
        self.summary.skipped_tests = skips(&fs::read_to_string(&skip_log)?);
        self.summary.measured = fs::read_to_string(&measured_log)?;
        let Tally { passed, failed, ignored } = tally;
        self.summary.tally.passed += passed;
        self.summary.tally.failed += failed;
        self.summary.tally.ignored += ignored;
        let note = format!("{} test results", passed + failed + ignored);
        Ok((status.success(), note))
    }

    fn reports(&self) -> PathBuf {
        self.folder.path().join("conformance")
    }

    /// Shows what the suite came to on each adapter, and compares the READMEs with it.
    fn conformance(&mut self) -> Result<(bool, String)> {
        let reports = conformance::read(&self.reports())?;
        self.summary.conformance = conformance::render(&reports);
        let all = self.args.cargo.is_empty();
        for transport in layout::transports(self.checkout)? {
            if reports.iter().any(|report| report.is_of(&transport)) {
                continue;
            }
            let test = format!("conformance of {transport}");
            // The test program that said so has counted no test as passed.
            let told = self.summary.skipped_tests.iter().position(|skip| skip.test == test);
            let told = told.map(|at| self.summary.skipped_tests.remove(at).reason);
            let silent = all.then(|| "there is no report of it: it did not run to its end".to_owned());
            self.summary.skipped_steps.extend(told.or(silent).map(|reason| Skip { test, reason }));
        }
        if !all && env::var_os("UPDATE_README").is_none() {
            // A part of the tests is a part of the table.
            return Ok((true, format!("{} adapters", reports.len())));
        }
        let update = env::var_os("UPDATE_README").is_some();
        let stale = conformance::stale(self.checkout, &reports, update)?;
        match (stale.is_empty(), update) {
            (true, _) => Ok((true, format!("{} adapters", reports.len()))),
            (false, true) => Ok((true, format!("rewrote {}", stale.join(", ")))),
            (false, false) => {
                self.summary.tally.failed += 1;
                let files = stale.join(", ");
                Ok((false, format!("not up to date: {files}; UPDATE_README=1 cargo xtask test rewrites")))
            }
        }
    }

    /// The same for building and running, so that the second finds everything built.
    fn cargo_test_command(&self) -> Command {
        let mut command = child::cargo(self.checkout);
        command.arg("test");
        let names_packages = |argument: &String| {
            argument.starts_with("-p") || argument.starts_with("--package") || argument == "--workspace"
        };
        if !self.args.cargo.iter().take_while(|argument| *argument != "--").any(names_packages) {
            command.arg("--workspace");
        }
        if self.ci {
            // CI tests what was committed.
            command.arg("--locked");
        }
        command
    }

    /// Runs an example or the demo; what it writes is shown only if it fails.
    fn program(&mut self, mut command: Command) -> Result<(bool, String)> {
        command.current_dir(self.checkout).envs(self.exports.iter().cloned());
        let quiet = child::quietly(&mut command, self.folder, PROGRAM_TIMEOUT)?;
        let note = match quiet.status {
            Some(status) if status.success() => {
                self.summary.tally.passed += 1;
                return Ok((true, String::new()));
            }
            Some(status) => status.to_string(),
            None => format!("killed after {PROGRAM_TIMEOUT:?}"),
        };
        self.summary.tally.failed += 1;
        eprintln!("{}\n{note}", quiet.output.trim_end());
        Ok((false, note))
    }
}

/// Why the quickstart of this transport cannot run, if it cannot. A transport without a kind of broker needs none.
fn missing_broker(transport: &str, provided: &[Provided]) -> Option<String> {
    let kind = tb::kinds().iter().find(|kind| kind.serves(transport))?;
    let there = provided.iter().any(|broker| broker.kind.name() == kind.name());
    let named = brokers::given(kind.endpoint_var()).is_some();
    (!there && !named).then(|| format!("no broker; {} is not set", kind.endpoint_var()))
}

/// A folder for the run's own files. Removed at the end; by the next run, if this one is killed.
struct Scratch(Folder);

impl Scratch {
    fn new(base: &Path) -> Result<Scratch> {
        Ok(Scratch(Folder::create(base, "test-run", Origin::Native)?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            eprintln!("warning: {error:#}");
        }
    }
}
