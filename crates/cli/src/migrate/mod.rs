//! `migrate`: the library's migration, a phase a command.

pub(crate) mod args;
mod show;

use std::path::Path;

use throughline_bridge::migrate::{
    Agreement, Copies, Migration, MigrationOptions, Phase, PhaseReport, RollBack,
};

use crate::bridge;
use crate::bus::outside_this_process;
use crate::failure::{Exit, Failure};
use crate::message::json_line;
use crate::output::{self, Console, Paint};
use crate::signals::Stop;
use args::{CompareArgs, MigrateArgs, MigrateCommand, PaceArgs, RollBackArgs, StartArgs, StateArgs};

pub(crate) async fn run(args: &MigrateArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    match &args.command {
        MigrateCommand::Start(args) => start(args).await,
        MigrateCommand::Status(args) => status(args, paint).await,
        MigrateCommand::Compare(args) => compare(args, console, paint).await,
        MigrateCommand::Mirror(args) => {
            let (mut migration, stop) = open(&args.state, &args.pace)?;
            let progress = migration.progress();
            let asked = stop.clone();
            let running = migration.mirror(wait(stop));
            let report = bridge::watch(progress, running, asked, console).await?;
            told(&report, &args.state, paint)
        }
        MigrateCommand::CutOver(args) => {
            let copies = match (args.purge_copies, args.keep_copies) {
                (true, _) => Some(Copies::Purge),
                (_, true) => Some(Copies::Keep),
                _ => None,
            };
            let run = &args.run;
            let (mut migration, stop) = open(&run.state, &run.pace)?;
            let progress = migration.progress();
            let asked = stop.clone();
            let running = migration.cut_over(copies, run.quiet, wait(stop));
            let report = bridge::watch(progress, running, asked, console).await?;
            told(&report, &run.state, paint)
        }
        MigrateCommand::Drain(run) => {
            let (mut migration, stop) = open(&run.state, &run.pace)?;
            let progress = migration.progress();
            let asked = stop.clone();
            let running = migration.drain(run.quiet, wait(stop));
            let report = bridge::watch(progress, running, asked, console).await?;
            told(&report, &run.state, paint)
        }
        MigrateCommand::RollBack(args) => roll_back(args, console, paint).await,
    }
}

async fn wait(mut stop: Stop) {
    stop.wait().await;
}

async fn start(args: &StartArgs) -> Result<Exit, Failure> {
    let given = [Some(&args.old), Some(&args.new), args.tap.as_ref(), args.reject.as_ref()];
    for address in given.into_iter().flatten() {
        outside_this_process(address, "migrate")?;
    }
    let mut options = MigrationOptions::new(&args.old, &args.new);
    if let Some(tap) = &args.tap {
        options = options.tap(tap);
    }
    if let Some(reject) = &args.reject {
        options = options.reject(reject);
    }
    options = args.map.iter().fold(options, MigrationOptions::map);
    options = args.filter.iter().fold(options, MigrationOptions::filter);
    Migration::create(&args.state.state, options).await?;
    #[derive(serde::Serialize)]
    struct Started<'a> {
        state: &'a Path,
        next: Phase,
    }
    let text = if args.state.json {
        json_line(&Started { state: &args.state.state, next: Phase::Mirror })?
    } else {
        let migration = Migration::open(&args.state.state)?;
        show::started(migration.state(), &args.state.state)
    };
    output::print(&text)?;
    Ok(Exit::Ok)
}

fn open(args: &StateArgs, pace: &PaceArgs) -> Result<(Migration, Stop), Failure> {
    let &PaceArgs { rate, in_flight, hold, pipelined, patience } = pace;
    let migration = Migration::open(&args.state)?.bridge(move |mut bridge| {
        bridge = bridge.in_flight(in_flight.get()).hold(hold.get());
        if let Some(rate) = rate {
            bridge = bridge.rate(rate);
        }
        if pipelined {
            bridge = bridge.pipelined();
        }
        if let Some(patience) = patience {
            bridge = bridge.patience(patience);
        }
        bridge
    });
    Ok((migration, Stop::listen()?))
}

async fn status(args: &StateArgs, paint: Paint) -> Result<Exit, Failure> {
    let status = Migration::status(&args.state).await?;
    output::print(&if args.json { json_line(&status)? } else { show::status(&status, &args.state, paint) })?;
    Ok(Exit::Ok)
}

async fn compare(args: &CompareArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    let mut migration = Migration::open(&args.state.state)?;
    let compared = migration.compare(args.max, args.undisturbed).await?;
    output::print(&if args.state.json { json_line(&compared)? } else { show::compared(&compared, paint) })?;
    match compared.agreement() {
        Agreement::Equal => Ok(Exit::Ok),
        Agreement::Different => {
            console.error("not all is at the new place as it was sent");
            Ok(Exit::Different)
        }
        Agreement::Unknown => Err(Failure::new(
            Exit::Failed,
            "the new place could not be read: nothing is known of it but its receipts",
        )),
    }
}

async fn roll_back(args: &RollBackArgs, console: &Console, paint: Paint) -> Result<Exit, Failure> {
    let run = &args.run;
    for address in [&args.from, &args.to].into_iter().flatten() {
        outside_this_process(address, "migrate")?;
    }
    let mut how = RollBack::default();
    if let Some(from) = &args.from {
        how = how.from(from);
    }
    if let Some(to) = &args.to {
        how = how.to(to);
    }
    if args.purge_copies {
        how = how.purge_copies();
    }
    how = args.map.iter().fold(how, RollBack::map);
    let (mut migration, stop) = open(&run.state, &run.pace)?;
    let progress = migration.progress();
    let asked = stop.clone();
    let running = migration.roll_back(how, run.quiet, wait(stop));
    let report = bridge::watch(progress, running, asked, console).await?;
    told(&report, &run.state, paint)
}

/// Prints what a phase has come to, and what to do next.
fn told(report: &PhaseReport, args: &StateArgs, paint: Paint) -> Result<Exit, Failure> {
    let migration = Migration::open(&args.state)?;
    let text = if args.json {
        json_line(report)?
    } else {
        show::phase(report, migration.state(), &args.state, paint)
    };
    output::print(&text)?;
    let exit = match &report.report {
        Some(moved) => bridge::end(
            moved,
            "it is where it was, with all that comes after it in its key; a reject address, as \"reject\" among the options in the \
             state file, lets such messages be put aside",
        )?,
        None => Exit::Ok,
    };
    // What was asked for is not done.
    let is_interrupted = !report.is_done && report.phase != Phase::Mirror;
    Ok(if is_interrupted { Exit::Interrupted } else { exit })
}
