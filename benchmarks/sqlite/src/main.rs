//! Throughline beside plain rusqlite doing the same inserts and deletes in the same batches, in interleaved rounds on one
//! disk; and what a message costs as the backlog grows.
#![allow(clippy::print_stdout, reason = "a terminal program: text is what it makes")]

mod backlog;
mod ours;
mod raw;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use cpu_time::ProcessTime;
use serde::Serialize;

use crate::report::{Report, Row};

/// Messages in one transaction of publishing, and in one of consuming.
pub(crate) const PUBLISHED_TOGETHER: usize = 1000;
pub(crate) const ACKED_TOGETHER: usize = 100;

/// Compare Throughline's SQLite transport with plain rusqlite
#[derive(Parser)]
struct Cli {
    /// Rounds that count; one more comes first, to warm up
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Messages a round, a multiple of 1,000
    #[arg(long, default_value_t = 20_000)]
    messages: usize,
    /// Bytes of a payload
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// The largest backlog, in messages
    #[arg(long, default_value_t = 1_000_000)]
    backlog: usize,
    /// Where the databases are made: the disk that is measured
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// One JSON object on stdout, in place of tables
    #[arg(long)]
    json: bool,
}

/// So many messages, into a database in that folder and out of it.
pub(crate) struct Load {
    pub(crate) folder: PathBuf,
    pub(crate) messages: usize,
    pub(crate) body: Vec<u8>,
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

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let names = ["rusqlite", "rusqlite, with leases", "throughline", "throughline, one by one"];
    let mut rows: Vec<Row> = names.map(Row::new).into();
    for round in 0..=cli.rounds {
        for step in 0..rows.len() {
            // Another goes first in each round.
            let at = (step + round) % rows.len();
            let Some(row) = rows.get_mut(at) else { continue };
            eprintln!("round {round} of {}: {}", cli.rounds, row.name);
            let folder = tempfile::tempdir_in(&cli.folder)?;
            let load = Load {
                folder: folder.path().to_owned(),
                messages: cli.messages,
                body: vec![b'x'; cli.bytes],
            };
            let (published, consumed) = match at {
                0 => raw::run(&load, raw::Take::AtOnce)?,
                1 => raw::run(&load, raw::Take::Leased)?,
                2 => runtime.block_on(async { tokio::spawn(ours::run(load, true)).await })??,
                _ => runtime.block_on(async { tokio::spawn(ours::run(load, false)).await })??,
            };
            if round > 0 {
                row.publish.push(published);
                row.consume.push(consumed);
            }
        }
    }
    let mut backlogs = Vec::new();
    let mut size = 1000;
    while size <= cli.backlog {
        eprintln!("backlog of {size}");
        let folder = tempfile::tempdir_in(&cli.folder)?;
        backlogs.push(runtime.block_on(backlog::run(folder.path(), size))?);
        size *= 10;
    }
    let report = Report::new(cli.messages, cli.bytes, &rows, backlogs);
    if cli.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
