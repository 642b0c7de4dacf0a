//! Throughline's build tasks: `cargo xtask test`, `cargo xtask brokers up|down|status`, `cargo xtask layout`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program: text is what it makes")]

mod artifacts;
mod brokers;
mod child;
mod compose_file;
mod conformance;
mod layout;
mod shell;
mod summary;
mod test;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use throughline_brokers as tb;

const EXIT_CODES: &str = "\
Exit codes:
  0    all is well
  1    a step, a test or a check failed
  2    the command line is wrong
  3    a broker is missing, or one that was named does not answer
  130  interrupted; what was started has been stopped";

/// Throughline's build tasks
#[derive(Parser)]
#[command(bin_name = "cargo xtask", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start the brokers, run every test, stop what was started
    ///
    /// Builds everything, brings the brokers up, runs `cargo test --workspace` (unit, property, integration and doc
    /// tests), then each transport's examples/quickstart.rs and the demo. What was started is stopped, also on a
    /// failure and on Ctrl-C. Ends with the conformance table, adapter by case, and compares those in README.md and
    /// crates/conformance/README.md with it; UPDATE_README=1 rewrites them.
    ///
    /// A broker comes from the first of these that there is: its endpoint's environment variable
    /// (THROUGHLINE_RABBITMQ_URL), `cargo xtask brokers up`, Docker Compose where an engine answers, a native one. A
    /// native one that is missing is installed where that may be done (root on a Debian-like machine, or --install);
    /// elsewhere the command to run is printed, and the tests that need it are skipped and counted. With CI=true a
    /// missing broker and a skipped test are failures.
    #[command(after_help = EXIT_CODES)]
    Test(TestArgs),
    /// Bring brokers up for a whole shell session, and down again
    #[command(after_help = EXIT_CODES)]
    Brokers {
        #[command(subcommand)]
        command: Brokers,
    },
    /// Check that every transport has the files that each one has, and that the lists name it
    ///
    /// Also checks docker-compose.yml: that it parses, that every image is pinned by a tag, and that every port is
    /// bound to 127.0.0.1.
    #[command(after_help = EXIT_CODES)]
    Layout,
}

#[derive(Args)]
struct TestArgs {
    /// Install what is missing, by sudo if need be
    #[arg(long)]
    install: bool,
    /// Start no broker: tests that need one which the environment does not name are skipped
    #[arg(long, conflicts_with = "install")]
    no_brokers: bool,
    /// Arguments for `cargo test`; with any, only `cargo test` is run, without the examples and the demo
    #[arg(last = true, value_name = "CARGO TEST ARGUMENTS")]
    cargo: Vec<String>,
}

#[derive(Subcommand)]
enum Brokers {
    /// Start brokers and leave them running
    ///
    /// Prints only `export NAME='value'` lines on stdout: eval "$(cargo xtask brokers up rabbitmq)". Where they are up
    /// already, prints the same again.
    #[command(after_help = EXIT_CODES)]
    Up {
        /// Which ones; all if none is named
        #[arg(value_parser = broker_names())]
        brokers: Vec<String>,
        /// Install what is missing, by sudo if need be
        #[arg(long)]
        install: bool,
    },
    /// Stop what `up` started, and what a killed run left behind
    ///
    /// Prints `unset NAME` lines on stdout for what it stopped: eval "$(cargo xtask brokers down)".
    #[command(after_help = EXIT_CODES)]
    Down,
    /// Show each broker: where it comes from, its address, its version, whether it answers
    ///
    /// Exits with 3 unless all of them answer.
    #[command(after_help = EXIT_CODES)]
    Status {
        /// One JSON array on stdout
        #[arg(long)]
        json: bool,
    },
}

fn broker_names() -> PossibleValuesParser {
    tb::kinds().iter().map(|kind| kind.name()).collect::<Vec<_>>().into()
}

/// What a task ended with, where it is not an error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure,
    BrokerMissing,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let base = tb::base_folder();
    child::stop_everything_on_interrupt(base.clone());
    let outcome = run(cli.command, &base, &checkout());
    // What follows is not for someone who has said stop.
    child::wait_if_interrupted();
    match outcome {
        Ok(Outcome::Success) => ExitCode::SUCCESS,
        Ok(Outcome::Failure) => ExitCode::from(1),
        Ok(Outcome::BrokerMissing) => ExitCode::from(3),
        Err(error) => {
            eprintln!("error: {error:#}");
            let missing = error.is::<tb::NotInstalled>() || error.is::<brokers::NoAnswer>();
            ExitCode::from(if missing { 3 } else { 1 })
        }
    }
}

fn run(task: Task, base: &Path, checkout: &Path) -> Result<Outcome> {
    match task {
        Task::Test(args) => test::run(&args, base, checkout),
        Task::Brokers { command: Brokers::Up { brokers, install } } => {
            brokers::up(&brokers, permission(install), base, checkout)
        }
        Task::Brokers { command: Brokers::Down } => brokers::down(base),
        Task::Brokers { command: Brokers::Status { json } } => brokers::status(json, base),
        Task::Layout => layout::run(checkout),
    }
}

fn permission(install: bool) -> tb::Permission {
    if install { tb::Permission::Always } else { tb::Permission::WhereRoot }
}

/// The folder of the root `Cargo.toml`.
fn checkout() -> PathBuf {
    // As cargo sees it when it runs us, which also holds for a binary that was moved with its checkout.
    let here =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map_or(here.clone(), Path::to_path_buf)
}

/// Whether nobody is there to read a warning: what would be one is a failure.
fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cargo_arguments_come_after_two_dashes() {
        let cli = Cli::parse_from(["xtask", "test", "--install", "--", "-p", "core", "--", "--nocapture"]);
        let Task::Test(args) = cli.command else { panic!("not `test`") };
        assert!(args.install);
        assert_eq!(args.cargo, ["-p", "core", "--", "--nocapture"]);
    }

    #[test]
    fn unknown_brokers_are_usage_errors() {
        let Err(error) = Cli::try_parse_from(["xtask", "brokers", "up", "rabbit"]) else {
            panic!("accepted")
        };
        assert!(error.to_string().contains("rabbitmq"), "{error}");
    }
}
