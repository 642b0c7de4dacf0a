//! `explain`: what a bridge between two addresses would do.

use std::fmt::Write;

use serde::Serialize;
use throughline_bridge::{Fate, Plan, Probe, ProbeOutcome, Step};

use crate::args::ExplainArgs;
use crate::bus::connect;
use crate::failure::{Exit, Failure};
use crate::message::{json_line, visible_line};
use crate::output::{self, BOLD, CYAN, DIM, GREEN, Paint, RED, YELLOW};

pub(crate) async fn run(args: &ExplainArgs, paint: Paint) -> Result<Exit, Failure> {
    let (from, to) = (connect(&args.from, "explain").await?, connect(&args.to, "explain").await?);
    let plan = Plan::between(&from, &to).await;
    let probe = match (&plan, args.probe) {
        (Ok(_), true) => Some(Probe::run(&from, &to).await),
        _ => None,
    };
    let closed = from.close().await.and(to.close().await);
    let (plan, probe) = (plan?, probe.transpose()?);
    closed?;
    #[derive(Serialize)]
    struct Explained<'a> {
        #[serde(flatten)]
        plan: &'a Plan,
        #[serde(skip_serializing_if = "Option::is_none")]
        probe: &'a Option<Probe>,
    }
    let explained = Explained { plan: &plan, probe: &probe };
    let text = if args.json { json_line(&explained)? } else { render(&plan, probe.as_ref(), paint) };
    output::print(&text)?;
    let is_clean = !plan.may_refuse() && probe.as_ref().is_none_or(Probe::is_clean);
    Ok(if is_clean { Exit::Ok } else { Exit::Rejected })
}

fn render(plan: &Plan, probe: Option<&Probe>, paint: Paint) -> String {
    let mut text = format!("{} → {}\n", plan.from, plan.to);
    for line in &plan.unchecked {
        let _ = writeln!(text, "  {}", paint.apply(YELLOW, visible_line(line)));
    }
    let title = format!("What {} shows of a message from {}", plan.sink, plan.source);
    table(&mut text, &title, &plan.parts, paint);
    table(&mut text, "Limits", &plan.limits, paint);
    table(&mut text, "Behaviour", &plan.behaviour, paint);
    text.push_str(
        "\nWhatever the way, a consumer of Throughline gets each part back as it was. What is refused goes to --reject with the\n\
         reason, or stops the bridge.\n",
    );
    if let Some(probe) = probe {
        probed(&mut text, probe, paint);
    }
    text
}

fn table(text: &mut String, title: &str, steps: &[Step], paint: Paint) {
    let _ = writeln!(text, "\n{}", paint.apply(BOLD, title));
    for step in steps {
        let (label, style) = match step.fate {
            Fate::Kept => ("kept", GREEN),
            Fate::Renamed => ("renamed", CYAN),
            Fate::Encoded => ("encoded", CYAN),
            Fate::Spilled => ("spilled", CYAN),
            Fate::Emulated => ("emulated", CYAN),
            Fate::NoEffect => ("no effect", YELLOW),
            Fate::Refused => ("refused", RED),
        };
        let label = paint.apply(style, format!("{label:<10}"));
        let _ = writeln!(text, "  {:<31} {label} {}", step.what, paint.apply(DIM, &step.detail));
    }
}

fn probed(text: &mut String, probe: &Probe, paint: Paint) {
    let _ = writeln!(text, "\n{}", paint.apply(BOLD, "What came out of a probe"));
    for probed in &probe.messages {
        let (label, style, why) = match &probed.outcome {
            ProbeOutcome::Same => ("same", GREEN, String::new()),
            ProbeOutcome::Changed { parts } => ("changed", YELLOW, parts.join(", ")),
            ProbeOutcome::Refused { reason } => ("refused", RED, reason.clone()),
            ProbeOutcome::NotTried { reason } => ("not tried", YELLOW, reason.clone()),
            ProbeOutcome::Missing => ("missing", RED, "it was accepted, and did not come".to_owned()),
        };
        let label = paint.apply(style, format!("{label:<10}"));
        let _ = writeln!(text, "  {:<33} {label} {}", probed.what, paint.apply(DIM, visible_line(&why)));
    }
    for left in &probe.left_behind {
        let _ = writeln!(text, "  {}", paint.apply(YELLOW, visible_line(left)));
    }
}
