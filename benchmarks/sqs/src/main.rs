//! SQS: ours, the AWS SDK used well, and the SDK with one message a request, on one stub in one run.
//!
//! Every round runs every contender once, and who goes first changes with the round; what is printed is the median of
//! the ratios to the raw client in the same round, so that a machine that slows down for a while slows all. API calls are
//! counted by the stub.
#![allow(clippy::print_stdout, reason = "a terminal program: text is what it makes")]

mod contenders;
mod load;
mod report;
mod rounds;
mod stub;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use crate::load::Broker;
use crate::report::Report;

/// Compare Throughline and the raw AWS SDK on a stub of SQS
#[derive(Parser)]
struct Cli {
    /// Measured rounds; one more comes first, to warm up
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Messages of each contender in each round; rounded up to whole thousands
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Bytes of payload
    #[arg(long, default_value_t = 256)]
    bytes: u32,
    /// How long each answer of the stub takes, in ms: none, and about what a region's own clients see
    #[arg(long, default_values_t = [0, 5])]
    latency: Vec<u64>,
    /// An emulator's endpoint, in place of the stub; its requests are not counted
    #[arg(long, conflicts_with = "latency")]
    endpoint: Option<String>,
    /// Only these contenders; `raw` is always among them
    #[arg(long, value_name = "NAME", value_parser = contenders::NAMES)]
    only: Vec<String>,
    /// One JSON object on stdout, in place of tables
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Only answer: what the measurement starts
    #[command(hide = true)]
    Stub { latency: u64 },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Stub { latency }) = cli.command {
        return stub::serve(Duration::from_millis(latency));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> Result<()> {
    let messages = (cli.messages as usize).next_multiple_of(load::IN_FLIGHT);
    let mut all = contenders::all();
    all.retain(|c| c.name() == "raw" || cli.only.is_empty() || cli.only.iter().any(|name| name == c.name()));
    ensure!(!all.is_empty(), "nobody to compare");
    let mut report = Report::new(messages, cli.bytes as usize);
    let services = match cli.endpoint {
        Some(endpoint) => vec![(endpoint.clone(), Broker::at(&endpoint).await?)],
        None => {
            let mut stubs = Vec::new();
            for ms in cli.latency {
                let name = format!("answers after {ms} ms");
                stubs.push((name, Broker::stub(Duration::from_millis(ms)).await?));
            }
            stubs
        }
    };
    for (name, mut broker) in services {
        let rounds =
            rounds::run(&mut broker, &all, &name, cli.rounds as usize, messages, cli.bytes as usize).await?;
        report.services.push(rounds);
    }
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
