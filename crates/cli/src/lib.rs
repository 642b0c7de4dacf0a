//! The `throughline` command: `publish`, `consume`, `create`, `delete`, `doctor`, `dlq`, `bridge`, `explain`, `migrate` and `conform` on
//! any transport, and a `demo` that needs no broker. `throughline --help` documents the exit codes. A library only so that its
//! parsers can be fuzzed: the command is [`main`].

mod admin;
mod args;
mod bridge;
mod bus;
mod conform;
mod consume;
mod demo;
mod dlq;
mod doctor;
mod explain;
mod failure;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod lines;
mod message;
mod migrate;
mod output;
mod publish;
mod receipt;
mod signals;
mod telemetry;
mod trace_env;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::failure::{Exit, Failure};
use crate::output::{Console, Paint};
use crate::telemetry::Telemetry;

/// Runs the command with the arguments of this process.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are "errors" of clap's that succeed. A closed pipe is no reason to fail.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let console = Console::new(args.color.into());
    telemetry::log_to_stderr(args.verbose);
    let outcome = run(args, &console);
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.tell(&console);
            failure.exit().into()
        }
    }
}

fn run(args: Args, console: &Console) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, "cannot start the runtime").caused_by(&error))?;
    let stdout = Paint::for_stdout(args.color.into());
    match args.command {
        Command::Demo(options) => demo::run(&runtime, &options, console, stdout),
        command => {
            let telemetry = Telemetry::install("throughline", None)?;
            let result = runtime.block_on(async {
                match command {
                    Command::Publish(options) => publish::run(&options, &telemetry, console).await,
                    Command::Consume(options) => consume::run(&options, console, stdout).await,
                    Command::Create(options) => admin::create(&options).await,
                    Command::Delete(options) => admin::delete(&options).await,
                    Command::Doctor(options) => doctor::run(&options, stdout).await,
                    Command::Dlq(options) => dlq::run(&options, console, stdout).await,
                    Command::Bridge(options) => bridge::run(&options, console, stdout).await,
                    Command::Explain(options) => explain::run(&options, stdout).await,
                    Command::Migrate(options) => migrate::run(&options, console, stdout).await,
                    Command::Conform(options) => conform::run(&options, console, stdout).await,
                    Command::Demo(_) => Ok(Exit::Ok),
                }
            });
            telemetry.finish(console);
            // A read of stdin cannot be cancelled; it must not keep the process.
            runtime.shutdown_background();
            result
        }
    }
}
