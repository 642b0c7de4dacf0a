//! `demo`: one request, followed through HTTP, a queue, a failed attempt and a retry, as one trace.

mod http;
mod planner;
mod scenario;
mod services;
mod span;
mod story;
mod tree;
mod waterfall;
mod worker;

use std::time::Duration;

use console::Term;
use tokio::runtime::Runtime;

use crate::args::DemoArgs;
use crate::failure::{Exit, Failure};
use crate::message::json_line;
use crate::output::{self, Console, Paint};
use crate::signals::Stop;
use crate::telemetry::{Recorder, Telemetry};
use scenario::{Scenario, Stage};
use span::Span;

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
    let recorded: Vec<Span> = recorder.take().iter().map(Span::from).collect();
    let (spans, others) = span::of_trace(recorded, &trace);
    let rows = tree::rows(&spans);
    if args.json {
        let lines: Result<String, Failure> = rows.iter().map(|row| json_line(row.span)).collect();
        output::print(&lines?)?;
    } else {
        let jobs: throughline::Address = args.via.parse()?;
        let events = args.events.as_ref().map(|events| events.parse()).transpose()?;
        let mut text = story::before(&jobs, events.as_ref(), &trace, width(), paint);
        text.push_str(&waterfall::render(&rows, width(), paint));
        text.push_str(&story::after(&rows, others, &jobs, width(), paint));
        output::print(&text)?;
    }
    Ok(Exit::Ok)
}

/// Plays the scenario; gives the trace's id, or none where the user interrupted it. What it created is gone after it,
/// however it ended.
async fn play(args: &DemoArgs, console: &Console) -> Result<Option<String>, Failure> {
    let mut stop = Stop::listen()?;
    let stage = Stage::default();
    let scenario = tokio::select! {
        scenario = tokio::time::timeout(TIMEOUT, Scenario::prepare(&args.via, args.events.as_deref())) => {
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
