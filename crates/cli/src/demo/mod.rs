//! `demo`: one request, followed through HTTP, a queue, a failed attempt and a retry, as one trace.

mod http;
mod scenario;
mod services;
mod story;
mod worker;

use std::path::Path;
use std::time::Duration;

use console::Term;
use throughline::Address;
use throughline_waterfall::{Recorder, Row, html, of_trace, rows, terminal};
use tokio::runtime::Runtime;

use crate::args::DemoArgs;
use crate::failure::{Exit, Failure};
use crate::message::json_line;
use crate::output::{self, Console, Paint};
use crate::signals::Stop;
use crate::telemetry::Telemetry;
use scenario::{Scenario, Stage};

/// Where the demo goes without `--via`.
pub(crate) const DEFAULT_ADDRESS: &str = "memory:throughline-demo?queue=report-sync";
/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How wide the waterfall is where stdout is no terminal, and how narrow or wide it gets on one.
const WIDTH: usize = 100;
const NARROWEST: usize = 80;
const WIDEST: usize = 200;

pub(crate) fn run(
    runtime: &Runtime,
    args: &DemoArgs,
    console: &Console,
    paint: Paint,
) -> Result<Exit, Failure> {
    let recorder = Recorder::default();
    let telemetry = Telemetry::install("throughline-demo", Some(recorder.clone()))?;
    let result = runtime.block_on(play(args, console));
    telemetry.finish(console);
    let Some(trace) = result? else { return Ok(Exit::Interrupted) };
    let (spans, others) = of_trace(recorder.take(), &trace);
    let rows = rows(&spans);
    let address: Address = args.via.parse()?;
    if let Some(file) = &args.html {
        write_page(file, &address, &rows)?;
    }
    if args.json {
        let lines: Result<String, Failure> = rows.iter().map(|row| json_line(row.span)).collect();
        output::print(&lines?)?;
    } else {
        let mut text = story::before(&address, &trace, width(), paint);
        text.push_str(&terminal::render(&rows, width(), paint.is_on()));
        text.push_str(&story::after(&rows, others, &address, width(), paint));
        output::print(&text)?;
    }
    Ok(Exit::Ok)
}

/// Writes the waterfall as a page.
fn write_page(file: &Path, address: &Address, rows: &[Row<'_>]) -> Result<(), Failure> {
    let title = "Throughline: one request, one trace, through a queue";
    let page = html::page(title, &[("Via", address.to_string())], rows);
    std::fs::write(file, page).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot write the page to {}", file.display())).caused_by(&error)
    })
}

/// Plays the scenario; gives the trace's id, or none where the user interrupted it. What it created is gone after it,
/// however it ended.
async fn play(args: &DemoArgs, console: &Console) -> Result<Option<String>, Failure> {
    let mut stop = Stop::listen()?;
    let stage = Stage::default();
    let scenario = tokio::select! {
        scenario = tokio::time::timeout(TIMEOUT, Scenario::prepare(&args.via)) => {
            scenario.map_err(|_| late("connecting"))??
        }
        () = stop.wait() => return Ok(None),
    };
    let result = tokio::select! {
        result = tokio::time::timeout(TIMEOUT, scenario.play(&stage)) => {
            result.unwrap_or_else(|_| Err(late(stage.get()))).map(Some)
        }
        () = stop.wait() => Ok(None),
    };
    if let Err(failure) = scenario.clean_up().await {
        console.warn(&format!("cleaning up failed: {failure}"));
    }
    result
}

fn late(stage: &str) -> Failure {
    Failure::new(Exit::Failed, format!("the demo did not end within {} s; it was {stage}", TIMEOUT.as_secs()))
}

fn width() -> usize {
    let terminal = Term::stdout();
    match terminal.size_checked() {
        Some((_, columns)) if terminal.is_term() => usize::from(columns).clamp(NARROWEST, WIDEST),
        _ => WIDTH,
    }
}
