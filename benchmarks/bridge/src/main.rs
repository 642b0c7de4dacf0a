//! The bridge beside the raw clients doing the same move by hand, in interleaved rounds; and its memory while a great many
//! messages pass.
#![allow(clippy::print_stdout, reason = "a terminal program: text is what it makes")]

mod flat;
mod memory_to_sqlite;
mod rabbitmq_to_kafka;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use cpu_time::ProcessTime;
use serde::Serialize;
use throughline::{Bus, Envelope};
use throughline_bridge::Bridge;

use crate::report::{Move, Report};

/// So many messages are put in at once before the move.
const FILLED_TOGETHER: usize = 1_000;
/// So many are acked together by hand, as many as the bridge does.
pub(crate) const ACKED_TOGETHER: usize = 100;

/// Compare the bridge with the raw clients doing the same move by hand
#[derive(Parser)]
struct Cli {
    /// The source of one of the moves; `eval "$(cargo xtask brokers up rabbitmq kafka)"` sets it. Without it, that move
    /// is left out
    #[arg(long, env = "THROUGHLINE_RABBITMQ_URL", hide_env_values = true)]
    rabbitmq: Option<String>,
    /// Its sink
    #[arg(long, env = "THROUGHLINE_KAFKA_URL", hide_env_values = true)]
    kafka: Option<String>,
    /// Measured rounds; one more comes first, to warm up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Messages of each side in each round; rounded up to whole thousands
    #[arg(long, default_value_t = 100_000)]
    messages: usize,
    /// Messages that are on their way at once, on both sides of the comparison; the bridge's own default
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(2..))]
    in_flight: u16,
    /// Bytes of payload
    #[arg(long, default_value_t = 1_024)]
    bytes: usize,
    /// Messages that pass while the memory is watched; 0 leaves that out
    #[arg(long, default_value_t = 1_000_000)]
    flat: usize,
    /// Where files are made: the disk that is measured
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// One JSON object on stdout, in place of tables
    #[arg(long)]
    json: bool,
}

/// What is moved.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// On their way at once.
    pub(crate) in_flight: u16,
}

impl Load {
    /// A message as an application would send it.
    pub(crate) fn message(self) -> Envelope {
        const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let message = Envelope::builder("bench").header("traceparent", TRACEPARENT);
        message.payload(vec![b'x'; self.bytes]).build()
    }

    /// Puts the messages into the bus's own destination.
    pub(crate) async fn fill(self, bus: &Bus) -> Result<()> {
        let publisher = bus.publisher().await?;
        for _ in 0..self.messages / FILLED_TOGETHER {
            for answer in publisher.publish_batch((0..FILLED_TOGETHER).map(|_| self.message())).await {
                answer?;
            }
        }
        publisher.close().await?;
        Ok(())
    }
}

/// The time that something took, on the wall and on this process's processors.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Span {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

pub(crate) struct Stopwatch(Instant, ProcessTime);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), ProcessTime::now())
    }

    pub(crate) fn stop(&self) -> Span {
        Span { wall: self.0.elapsed(), cpu: self.1.elapsed() }
    }
}

/// The bridge, with a ledger on the disk, as `throughline bridge` has one: from before either end is opened until both are
/// closed.
pub(crate) async fn bridge(from: &str, to: &str, folder: &std::path::Path, load: Load) -> Result<Span> {
    let watch = Stopwatch::start();
    let (from, to) = (Bus::connect(from).await?, Bus::connect(to).await?);
    let bridge = Bridge::new(&from, &to).max(load.messages as u64).in_flight(load.in_flight.into());
    let report = bridge.ledger(folder.join("ledger")).run(std::future::pending()).await?;
    from.close().await?;
    to.close().await?;
    let span = watch.stop();
    ensure!(report.is_success() && report.totals.moved == load.messages as u64, "{report:?}");
    Ok(span)
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { tokio::spawn(run(cli)).await })?
}

async fn run(cli: Cli) -> Result<()> {
    let Cli { bytes, in_flight, .. } = cli;
    let load = Load { messages: cli.messages.next_multiple_of(FILLED_TOGETHER), bytes, in_flight };
    let mut moves = vec![Move::new("memory to SQLite")];
    let given = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
    let brokers = given(&cli.rabbitmq).zip(given(&cli.kafka));
    moves.extend(brokers.as_ref().map(|_| Move::new("RabbitMQ to Kafka")));
    for round in 0..=cli.rounds {
        for at in 0..moves.len() * 2 {
            // Another goes first in each round.
            let by_hand = (at + round as usize).is_multiple_of(2);
            let Some(of) = moves.get_mut(at / 2) else { continue };
            eprintln!(
                "round {round} of {}: {}, {}",
                cli.rounds,
                of.name,
                if by_hand { "by hand" } else { "bridge" }
            );
            let folder = tempfile::tempdir_in(&cli.folder)?;
            let span = match (at / 2, &brokers) {
                (1, Some((rabbitmq, kafka))) => {
                    rabbitmq_to_kafka::run(rabbitmq, kafka, folder.path(), load, by_hand).await?
                }
                _ => memory_to_sqlite::run(folder.path(), load, by_hand).await?,
            };
            if round > 0 {
                if by_hand { of.by_hand.push(span) } else { of.bridge.push(span) }
            }
        }
    }
    let memory = if cli.flat > 0 {
        let load = Load { messages: cli.flat.next_multiple_of(FILLED_TOGETHER), bytes: 256, ..load };
        let folder = tempfile::tempdir_in(&cli.folder)?;
        flat::run(folder.path(), load).await?
    } else {
        Vec::new()
    };
    let report = Report { messages: load.messages, bytes: load.bytes, moves, memory };
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
