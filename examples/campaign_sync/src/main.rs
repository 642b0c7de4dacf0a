//! One request, followed through an HTTP service, an event, jobs on a queue, a worker, its database and a downstream API
//! that fails at times: one trace, with a retry and a dead letter in it.
//!
//! ```text
//! cargo run -p campaign_sync
//! cargo run -p campaign_sync -- --events eventbridge://campaigns --jobs sqs://campaign-reports
//! cargo run -p campaign_sync -- --jobs 'amqp://guest:guest@localhost/%2f' --html trace.html
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod ads;
mod api;
mod database;
mod http;
mod place;
mod planner;
mod reports;
mod scene;
mod story;
mod telemetry;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use throughline_waterfall::{html, of_trace, rows, terminal};

use scene::Scene;
use telemetry::Telemetry;

/// How long it may take in all: a broker's first connection, a group's first rebalance, two retries.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How wide the waterfall is, in columns.
const WIDTH: usize = 120;

/// An HTTP request becomes an event, the event jobs, a job a call: one trace over all of it
#[derive(Debug, Parser)]
struct Args {
    /// Where the API publishes its events; without a destination in the address, one is made for this run
    #[arg(long, value_name = "URL", default_value = "memory:campaign-sync")]
    events: String,
    /// Where the jobs are queued; without a destination in the address, one is made for this run. An address that names one
    /// needs a dead_letter=
    #[arg(long, value_name = "URL", default_value = "memory:campaign-sync")]
    jobs: String,
    /// The worker's database: a path (SQLite), or postgres://user:password@host/database; by default a file of this run's own
    #[arg(long, value_name = "PATH|URL")]
    database: Option<String>,
    /// Also write the trace as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// One JSON object a span, instead of the waterfall
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let telemetry = Telemetry::install()?;
    let played = play(&args).await;
    // Also after a failure: what was recorded until then may say why.
    let recorded = telemetry.finish().await;
    let played = played?;
    let (spans, _) = of_trace(recorded, &played.trace);
    let rows = rows(&spans);
    if let Some(file) = &args.html {
        let facts = [("Events", played.events.clone()), ("Jobs", played.jobs.clone())];
        let page = html::page("campaign_sync: one request, one trace", &facts, &rows);
        std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if args.json {
        for row in &rows {
            println!("{}", serde_json::to_string(row.span)?);
        }
        return Ok(());
    }
    print!("{}", story::before(&played));
    print!("{}", terminal::render(&rows, WIDTH, false));
    print!("{}", story::after(&played, rows.len()));
    Ok(())
}

async fn play(args: &Args) -> Result<scene::Played> {
    let scene = tokio::time::timeout(TIMEOUT, Scene::set(&args.events, &args.jobs, args.database.as_deref()));
    let scene = scene.await.context("connecting took too long")??;
    let played = tokio::select! {
        played = tokio::time::timeout(TIMEOUT, scene.play()) => {
            played.unwrap_or_else(|_| bail!("it did not end within {TIMEOUT:?}"))
        }
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    let struck = tokio::time::timeout(TIMEOUT, scene.strike()).await;
    let played = played?;
    struck.context("cleaning up took too long")??;
    Ok(played)
}
