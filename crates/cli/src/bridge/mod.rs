//! `bridge`: the library's bridge, with its options, progress and report.

pub(crate) mod show;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use throughline::Bus;
use throughline_bridge::{Bridge, End, Filter, Map, Progress, Report, Rest};

use crate::args::{BridgeArgs, RestArg};
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::message::json_line;
use crate::output::{self, Console, Paint};
use crate::signals::Stop;
use show::{Meter, line};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);

/// So long each end may take to close.
const CLOSING: Duration = Duration::from_secs(10);

pub(crate) async fn run(args: &BridgeArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    let stop = Stop::listen()?;
    let from = connect(&args.from, "bridge").await?;
    let to = connect(&args.to, "bridge").await?;
    let reject = match &args.reject {
        Some(url) => Some(connect(url, "bridge").await?),
        None => None,
    };
    let mut bridge = Bridge::new(&from, &to);
    if let Some(reject) = &reject {
        bridge = bridge.reject(reject);
    }
    if args.dry_run {
        let found = options(bridge, args).dry_run(args.look_at).await;
        close([Some(&from), Some(&to), reject.as_ref()], console).await;
        let found = found?;
        output::print(&if args.json { json_line(&found)? } else { show::dry_run(&found, paint) })?;
        return Ok(if found.would_reject.is_empty() { Exit::Ok } else { Exit::Rejected });
    }
    let report = match with_ledger(options(bridge, args), args, console) {
        Ok(bridge) => {
            let (progress, asked) = (bridge.progress(), stop.clone());
            let mut stop = stop;
            watch(progress, bridge.run(async move { stop.wait().await }), asked, console).await
        }
        Err(failure) => Err(failure),
    };
    close([Some(&from), Some(&to), reject.as_ref()], console).await;
    let report = report?;
    // First, whatever comes of the page.
    output::print(&if args.json { json_line(&report)? } else { show::report(&report, paint) })?;
    if let Some(file) = &args.html {
        let written = std::fs::write(file, report.html());
        written.map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot write {}", file.display())).caused_by(&error)
        })?;
    }
    end(
        &report,
        "it is still in the source, with all that comes after it in its key; --reject URL puts such messages aside, with \
         the reason",
    )
}

/// A broker that blocks its publishers (RabbitMQ, short of memory or disk) answers a close neither: it is not waited for.
async fn close(buses: [Option<&Bus>; 3], console: &Console) {
    for bus in buses.into_iter().flatten() {
        match tokio::time::timeout(CLOSING, bus.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => console.warn(&error.to_string()),
            Err(_) => console.warn(&format!("{} did not close within {CLOSING:?}", bus.address())),
        }
    }
}

fn options(mut bridge: Bridge, args: &BridgeArgs) -> Bridge {
    let filter = args.filter.iter().cloned().fold(Filter::default(), Filter::and);
    let map = args.map.iter().cloned().fold(Map::default(), Map::and);
    let rest = match args.rest {
        RestArg::Leave => Rest::Leave,
        RestArg::Skip => Rest::Skip,
    };
    bridge = bridge.filter(filter).rest(rest).hold(args.hold.get()).map(map).in_flight(args.in_flight.get());
    if args.until_empty {
        bridge = bridge.until_empty();
    }
    if let Some(max) = args.max {
        bridge = bridge.max(max.get());
    }
    if let Some(rate) = args.rate {
        bridge = bridge.rate(rate);
    }
    if args.pipelined {
        bridge = bridge.pipelined();
    }
    if args.verify {
        bridge = bridge.verify(args.verify_max);
    }
    if let Some(patience) = args.patience {
        bridge = bridge.patience(patience);
    }
    bridge
}

fn with_ledger(bridge: Bridge, args: &BridgeArgs, console: &Console) -> Result<Bridge, Failure> {
    if let Some(path) = &args.ledger {
        return Ok(bridge.ledger(path));
    }
    let Some(folder) = state_folder() else {
        console.warn(
            "no home directory for a ledger: a bridge that is killed may send twice what it had in flight",
        );
        return Ok(bridge);
    };
    std::fs::create_dir_all(&folder).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot make {}", folder.display()))
            .caused_by(&error)
            .hint("name another place with --ledger FILE")
    })?;
    Ok(bridge.ledger_in(folder))
}

/// Where what outlives a program, but is no document, belongs.
fn state_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .or_else(|| folder("LOCALAPPDATA"))?;
    Some(state.join("throughline"))
}

/// Runs it, with progress where stderr is a terminal.
pub(crate) async fn watch<T>(
    progress: Progress,
    running: impl Future<Output = throughline::Result<T>>,
    mut asked: Stop,
    console: &Console,
) -> Result<T, Failure> {
    let bar = output::progress(true, "{spinner} {msg}");
    let mut meter = Meter::new(Instant::now());
    let mut ticks = tokio::time::interval(TICK);
    let mut is_told = false;
    let mut running = std::pin::pin!(running);
    let report = loop {
        tokio::select! {
            report = &mut running => break report,
            _ = ticks.tick() => {
                bar.set_message(line(&progress.now(), &mut meter, Instant::now()));
                bar.tick();
            }
            () = asked.wait(), if !is_told => {
                is_told = true;
                bar.suspend(|| console.note("finishing what is on its way; Ctrl-C again ends at once"));
            }
        }
    };
    bar.finish_and_clear();
    Ok(report?)
}

/// How the command ends, as the bridge did; `refused` is what to do about a message that the sink refuses.
pub(crate) fn end(report: &Report, refused: &str) -> Result<Exit, Failure> {
    let left = "the messages are still in the source; the same command goes on from here";
    match &report.end {
        End::Refused { id, message_type, error } => {
            let of_type = message_type.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            Err(Failure::new(
                Exit::Failed,
                format!("the sink does not take message '{id}'{of_type}: {error}"),
            )
            .hint(refused))
        }
        End::Failed { error } => Err(Failure::from(error.clone()).hint(left)),
        End::Full => Err(Failure::new(
            Exit::Failed,
            format!("{} messages that the filter does not take are held, and no more may be", report.left),
        )
        .hint("they are given back; --hold takes more (`bridge --rest skip` acknowledges them)")),
        End::Starved { ready } => Err(Failure::new(
            Exit::Failed,
            format!("the source says that it holds {ready} messages, and gives none"),
        )
        .hint("another consumer may have it to itself; `throughline doctor` looks at it")),
        _ if !report.is_success() => Err(Failure::new(
            Exit::Failed,
            "not all is in the sink as it was sent; see the verification in the report",
        )),
        _ if report.totals.rejected > 0 => Ok(Exit::Rejected),
        _ => Ok(Exit::Ok),
    }
}
