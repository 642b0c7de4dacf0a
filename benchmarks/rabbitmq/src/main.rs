//! RabbitMQ: ours, the client library used well, and the peers, on one broker in one run.
//!
//! Every round runs every contender once, and who goes first changes with the round; what is printed is the median of
//! the ratios to the raw client in the same round, so that a machine that slows down for a while slows all.
#![allow(clippy::print_stdout, reason = "a terminal program: text is what it makes")]

mod contenders;
mod latency;
mod load;
mod report;
mod rounds;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::load::{Broker, QueueType};
use crate::report::Report;

/// Compare Throughline, raw lapin and the peers on one RabbitMQ
#[derive(Parser)]
struct Cli {
    /// The broker; `eval "$(cargo xtask brokers up rabbitmq)"` sets it
    #[arg(long, env = "THROUGHLINE_RABBITMQ_URL", hide_env_values = true)]
    url: String,
    /// Measured rounds; one more comes first, to warm up
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Messages of each contender in each round; rounded up to whole thousands
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    messages: u32,
    /// Single messages of each side in each round of the latency figures; 0 leaves them out
    #[arg(long, default_value_t = 500)]
    singles: u32,
    /// Bytes of payload
    #[arg(long, default_value_t = 1_024)]
    bytes: u32,
    /// The kind of queue; both if none is named. Not every contender can use both
    #[arg(long, value_enum)]
    queue: Vec<QueueType>,
    /// Only these contenders; `raw` is always among them
    #[arg(long, value_name = "NAME", value_parser = contenders::NAMES)]
    only: Vec<String>,
    /// One JSON object on stdout, in place of tables
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> Result<()> {
    let broker = Broker::connect(&cli.url).await?;
    let messages = (cli.messages as usize).next_multiple_of(load::IN_FLIGHT);
    let queues = if cli.queue.is_empty() { QueueType::ALL.to_vec() } else { cli.queue };
    let mut report = Report::new(messages, cli.bytes as usize);
    for queue_type in queues {
        let mut all = contenders::all(queue_type);
        all.retain(|c| {
            c.name() == "raw" || cli.only.is_empty() || cli.only.iter().any(|name| name == c.name())
        });
        ensure!(!all.is_empty(), "nobody to compare");
        let throughput =
            rounds::run(&broker, &all, queue_type, cli.rounds as usize, messages, cli.bytes as usize).await?;
        report.throughput.push(throughput);
    }
    if cli.singles > 0 {
        report.latency =
            latency::run(&broker, cli.rounds as usize, cli.singles as usize, cli.bytes as usize).await?;
    }
    broker.close().await?;
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
