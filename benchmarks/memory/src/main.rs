//! The portable layer's own cost, on the memory transport: instructions and allocations a message, what tracing adds,
//! how long a single message takes, and what a worker costs beside a loop by hand.
//!
//! Instructions are counted by valgrind's callgrind, which runs this program twice with different numbers of messages;
//! the difference leaves out what a run costs once. They are the same on a busy machine.
#![allow(clippy::print_stdout, reason = "a terminal program: text is what it makes")]

mod instructions;
mod latency;
mod pace;
mod report;
mod work;

use std::alloc::System;

use anyhow::Result;
use clap::{Parser, Subcommand};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::report::{Counts, Report};
use crate::work::{Shape, Tracing};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Messages of a counted run, beyond those that come first.
const COUNTED: usize = 10_000;
/// Messages that come first: queues and tables have their size by then.
const FIRST: usize = 5_000;

/// Count what a message costs in the portable layer
#[derive(Parser)]
struct Cli {
    /// Single messages of which the time is taken
    #[arg(long, default_value_t = 20_000)]
    singles: usize,
    /// One JSON object on stdout, in place of tables
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Only send and receive: what valgrind runs
    #[command(hide = true)]
    Work {
        #[arg(value_enum)]
        shape: Shape,
        #[arg(value_enum)]
        tracing: Tracing,
        messages: usize,
    },
    /// Only the worker beside a loop by hand, by the clock
    Pace,
    /// Allocations of a run, as JSON; a process of its own, because a tracer provider is the whole process's
    #[command(hide = true)]
    Allocations {
        #[arg(value_enum)]
        shape: Shape,
        #[arg(value_enum)]
        tracing: Tracing,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    // One thread: nothing depends on which of two is quicker.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.command {
        Some(Command::Work { shape, tracing, messages }) => {
            tracing.install();
            runtime.block_on(async { work::Bench::open().await?.run(shape, messages).await })
        }
        Some(Command::Allocations { shape, tracing }) => {
            tracing.install();
            let allocations = runtime.block_on(allocations(shape))?;
            println!("{allocations}");
            Ok(())
        }
        Some(Command::Pace) => {
            println!("{}", runtime.block_on(pace::run())?);
            Ok(())
        }
        None => {
            let mut counts = Vec::new();
            for shape in Shape::ALL {
                for tracing in Tracing::ALL {
                    eprintln!("{}, tracing {}", shape.name(), tracing.name());
                    counts.push(Counts::of(shape, tracing)?);
                }
            }
            eprintln!("latency");
            let latency = runtime.block_on(latency::run(cli.singles))?;
            eprintln!("the worker beside a loop by hand");
            let pace = runtime.block_on(pace::run())?;
            let report = Report { counts, latency, pace };
            if cli.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                print!("{report}");
            }
            Ok(())
        }
    }
}

/// Allocations and reallocations a message.
async fn allocations(shape: Shape) -> Result<f64> {
    let mut bench = work::Bench::open().await?;
    bench.go_on(shape, FIRST).await?;
    let region = Region::new(ALLOCATOR);
    bench.go_on(shape, COUNTED).await?;
    let change = region.change();
    bench.close().await?;
    Ok((change.allocations + change.reallocations) as f64 / COUNTED as f64)
}
