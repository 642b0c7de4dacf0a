//! What a migration has done, where it stands and what comes next, for people.

use std::fmt::Write;
use std::path::Path;

use throughline_bridge::migrate::{
    Agreement, Compared, Copies, Kind, MigrationState, MigrationStatus, Phase, PhaseReport, PlaceStatus,
};
use throughline_bridge::{Messages, Reading, Side};

use crate::bridge::show::{self as bridge, grouped};
use crate::message::visible_line;
use crate::output::{BOLD, DIM, GREEN, Paint, RED, YELLOW};

/// So many ids are shown.
const EXAMPLES: usize = 3;

pub(super) fn started(state: &MigrationState, file: &Path) -> String {
    format!("{} written\n{}", file.display(), next(state.phase, state.done, state.kind, state.copies, file))
}

/// What to do next, in one or two lines.
fn next(phase: Phase, is_done: bool, kind: Kind, copies: Option<Copies>, file: &Path) -> String {
    let command = |phase: &str| format!("throughline migrate {phase} --state {}", file.display());
    let mirror = command("mirror");
    let text = match (phase, is_done, kind, copies) {
        (Phase::Start, _, Kind::Tap, _) => {
            format!("`{mirror}` copies what comes, until Ctrl-C; the old consumers notice nothing")
        }
        (Phase::Start, _, Kind::Forward, _) => format!(
            "let consumers listen at the new place, and stop them at the old one; `{mirror}` forwards what comes, until Ctrl-C"
        ),
        (Phase::Mirror, _, Kind::Tap, _) => format!(
            "`{}` shows whether all is there; `{mirror}` goes on;\n      `{}` with --purge-copies or --keep-copies ends it",
            command("compare"),
            command("cut-over")
        ),
        (Phase::Mirror, _, Kind::Forward, _) => format!(
            "let producers publish to the new place (DualPublisher: to both), then `{}`;\n      `{mirror}` goes on until then",
            command("cut-over")
        ),
        (Phase::CutOver, false, ..) => format!("it is not done: `{}` goes on", command("cut-over")),
        (Phase::CutOver, true, Kind::Tap, Some(Copies::Purge)) => format!(
            "move consumers, then producers, to the new place; then `{}` moves what is left.\n      The tap is no longer needed \
             (`throughline delete`)",
            command("drain")
        ),
        (Phase::CutOver, true, Kind::Tap, _) => format!(
            "`{}` empties the tap of what came since; consumers move when the old place is empty: its messages are at the \
             new one, too",
            command("drain")
        ),
        (Phase::CutOver, true, Kind::Forward, _) => format!("`{}` moves what came since", command("drain")),
        (Phase::Drain, false, ..) => format!("it is not done: `{}` goes on", command("drain")),
        (Phase::Drain, true, ..) => format!(
            "nothing, unless a producer is still at the old place (`{}` again); `{}` takes it back",
            command("drain"),
            command("roll-back")
        ),
        (Phase::RollBack, false, ..) => format!("it is not done: `{}` goes on", command("roll-back")),
        (Phase::RollBack, true, ..) => "nothing; `throughline migrate start` begins anew".to_owned(),
    };
    format!("next: {text}\n")
}

/// What a run of a phase has come to.
pub(super) fn phase(report: &PhaseReport, state: &MigrationState, file: &Path, paint: Paint) -> String {
    let mut text = String::new();
    if let Some(moved) = &report.report {
        text.push_str(&bridge::report(moved, paint));
    }
    if let Some(purged) = report.purged {
        let _ = writeln!(text, "{} copies deleted", grouped(purged));
    }
    let done = match (report.was_done, report.is_done) {
        (true, _) => paint.apply(GREEN, "was done before; nothing to do"),
        (_, true) => paint.apply(GREEN, "done"),
        _ if report.phase == Phase::Mirror => "stopped, and can go on".to_owned(),
        _ => paint.apply(YELLOW, "not done"),
    };
    let _ = writeln!(text, "{}: {done}", report.phase);
    text + &next(state.phase, state.done, state.kind, state.copies, file)
}

pub(super) fn status(status: &MigrationStatus, file: &Path, paint: Paint) -> String {
    let mut text = String::new();
    let mut row = |label: &str, value: String| {
        let label = if label.is_empty() { String::new() } else { format!("{label}:") };
        let _ = writeln!(text, "  {label:<10} {value}");
    };
    let how = match (status.is_running, status.is_done) {
        (true, _) => paint.apply(GREEN, "a process is at work"),
        (_, true) => paint.apply(GREEN, "done"),
        _ => paint.apply(YELLOW, "not done, and no process is at work"),
    };
    let kind = match status.kind {
        Kind::Tap => "copies from a tap",
        Kind::Forward => "forwards",
    };
    row("phase", format!("{}  {how}  {}", paint.apply(BOLD, status.phase), paint.apply(DIM, kind)));
    row("old", place(&status.old, paint));
    if let Some(tap) = &status.tap {
        row("tap", place(tap, paint));
    }
    row("new", place(&status.new, paint));
    for step in &status.steps {
        let ended = step.ended.as_ref().map_or_else(|| "…".to_owned(), |at| visible_line(at));
        let runs = if step.runs > 1 { format!("  {} runs", grouped(step.runs)) } else { String::new() };
        let purged =
            step.purged.map_or_else(String::new, |count| format!("  {} copies deleted", grouped(count)));
        row(step.phase.name(), format!("{} – {ended}{runs}{purged}", visible_line(&step.began)));
    }
    for ledger in &status.ledgers {
        let totals = &ledger.totals;
        let mut value = format!("{} moved", grouped(totals.moved));
        for (count, what) in [
            (totals.rejected, "rejected"),
            (totals.already_moved, "moved before"),
            (totals.skipped, "skipped"),
            (ledger.killed_in_flight, "at most twice, after kills"),
        ] {
            if count > 0 {
                let _ = write!(value, ", {} {what}", grouped(count));
            }
        }
        row("", format!("{value}  {}", paint.apply(DIM, visible_line(&ledger.file))));
    }
    if let Some(compared) = &status.compared {
        row("compared", format!("{}: {}", visible_line(&compared.at), verdict(compared, paint)));
    }
    text + &next(status.phase, status.is_done, status.kind, status.copies, file)
}

fn place(place: &PlaceStatus, paint: Paint) -> String {
    let mut text = visible_line(&place.address);
    match (place.ready, &place.error) {
        (Some(ready), _) => {
            let _ = write!(text, "  {} ready", grouped(ready));
            for (count, what) in [(place.unsettled, "held"), (place.delayed, "delayed")] {
                if let Some(count) = count.filter(|count| *count > 0) {
                    let _ = write!(text, ", {} {what}", grouped(count));
                }
            }
        }
        (None, Some(error)) => text = paint.apply(YELLOW, visible_line(error)),
        (None, None) => {}
    }
    text
}

fn verdict(compared: &Compared, paint: Paint) -> String {
    match compared.agreement() {
        Agreement::Equal => paint.apply(GREEN, "all is there as it was sent, as far as could be looked at"),
        Agreement::Different => paint.apply(RED, "not all is there as it was sent"),
        Agreement::Unknown => paint.apply(YELLOW, "not known: the new place could not be read"),
    }
}

pub(super) fn compared(compared: &Compared, paint: Paint) -> String {
    let mut text = format!("{}\n", verdict(compared, paint));
    let mut row = |label: &str, value: String| {
        let label = if label.is_empty() { String::new() } else { format!("{label}:") };
        let _ = writeln!(text, "  {label:<15} {value}");
    };
    row("old", side(&compared.old));
    row("new", side(&compared.new));
    let remembered = if compared.remembered < compared.moved {
        format!(", of which the latest {} are compared", grouped(compared.remembered))
    } else {
        String::new()
    };
    row("moved", format!("{}, as the ledger says{remembered}", grouped(compared.moved)));
    if matches!(compared.new.evidence, Reading::ReadBack { .. }) {
        row("as sent", grouped(compared.same));
    }
    let (gone, why) = match compared.may_be_consumed {
        true => ("gone", "consumed at the new place, or lost"),
        false => ("missing", ""),
    };
    for (label, messages, what) in [
        (gone, compared.missing.as_ref(), why),
        ("twice", Some(&compared.twice), ""),
        ("out of order", compared.out_of_order.as_ref(), "in their key"),
        ("not yet", compared.not_yet.as_ref(), "at the old place, and not moved"),
        ("others", compared.others.as_ref(), "that the ledger does not know"),
    ] {
        if let Some(Messages { count: 1.., .. }) = messages {
            row(label, some(messages, what, paint));
        }
    }
    if let Some(count @ 1..) = compared.still_old {
        row(
            "still at old",
            format!("{}  {}", grouped(count), paint.apply(DIM, "copied, and not consumed there yet")),
        );
    }
    if compared.changed.count > 0 {
        let parts: Vec<_> = compared
            .changed
            .parts
            .iter()
            .take(EXAMPLES)
            .map(|(part, count)| format!("{part} {count}"))
            .collect();
        row(
            "changed",
            format!(
                "{}  {}",
                grouped(compared.changed.count),
                paint.apply(DIM, visible_line(&parts.join(", ")))
            ),
        );
        for changed in compared.changed.examples.iter().take(EXAMPLES) {
            row("", visible_line(&format!("{}: {}", changed.id, changed.parts.join(", "))));
        }
    }
    text
}

fn some(messages: Option<&Messages>, what: &str, paint: Paint) -> String {
    let Some(messages) = messages else { return String::new() };
    let ids: Vec<_> = messages.ids.iter().take(EXAMPLES).map(String::as_str).collect();
    let ids = if ids.is_empty() { String::new() } else { format!(" such as {}", ids.join(", ")) };
    format!("{}  {}", grouped(messages.count), paint.apply(DIM, visible_line(&format!("{what}{ids}")).trim()))
}

fn side(side: &Side) -> String {
    match &side.evidence {
        Reading::ReadBack { disturbed, cut } => {
            let mut text = format!("{} read", grouped(side.read));
            if *cut {
                text.push_str(", and there are more (--max)");
            }
            if *disturbed {
                text.push_str("; delivery counts have risen by it");
            }
            text
        }
        Reading::Nothing { why } => format!("not read: {}", visible_line(why)),
    }
}
