//! How far the bridge is, and what it has done, for people.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant};

use throughline_bridge::{DryRun, End, Rejected, Report, Snapshot, Verification};

use crate::message::visible_line;
use crate::output::{BOLD, DIM, GREEN, Paint, RED, YELLOW};

/// The rate is that of so long a time.
const WINDOW: Duration = Duration::from_secs(5);

/// So many ids are shown.
const EXAMPLES: usize = 3;

/// How fast it goes at present.
pub(super) struct Meter(VecDeque<(Instant, u64)>);

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self(VecDeque::from([(now, 0)]))
    }

    /// Messages a second, with this many at this time.
    fn rate(&mut self, now: Instant, count: u64) -> f64 {
        self.0.push_back((now, count));
        while self.0.len() > 2 && self.0.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.0.pop_front();
        }
        let Some((began, before)) = self.0.front() else { return 0.0 };
        let seconds = (now - *began).as_secs_f64();
        if seconds > 0.0 { count.saturating_sub(*before) as f64 / seconds } else { 0.0 }
    }
}

/// One line of progress.
pub(super) fn line(snapshot: &Snapshot, meter: &mut Meter, now: Instant) -> String {
    let totals = &snapshot.totals;
    let rate = meter.rate(now, totals.moved + totals.rejected);
    let mut text = format!(
        "moved {}  {}/s  in flight {}",
        grouped(totals.moved),
        grouped(rate.round() as u64),
        grouped(snapshot.in_flight)
    );
    for (count, what) in
        [(totals.rejected, "rejected"), (totals.already_moved, "moved before"), (snapshot.left, "held")]
    {
        if count > 0 {
            let _ = write!(text, "  {what} {}", grouped(count));
        }
    }
    if let Some(depth) = snapshot.depth {
        let _ = write!(text, "  to go {}", grouped(depth));
        if rate >= 1.0 && depth > 0 {
            let eta = Duration::from_secs((depth as f64 / rate).round() as u64);
            let _ = write!(text, "  ETA {}", humantime::format_duration(eta));
        }
    }
    if let Some(trouble) = &snapshot.trouble {
        let _ = write!(text, "  waiting: {}", visible_line(trouble));
    }
    text
}

/// The report, a line a fact; what is zero and worries nobody is left out.
pub(crate) fn report(report: &Report, paint: Paint) -> String {
    let mut text = format!("{} → {}\n", report.from, report.to);
    let mut row = |label: &str, value: String| {
        let label = if label.is_empty() { String::new() } else { format!("{label}:") };
        let _ = writeln!(text, "  {label:<15} {value}");
    };
    let totals = &report.totals;
    let rate = report.rate().round() as u64;
    let took = humantime::format_duration(Duration::from_millis(report.took.as_millis() as u64));
    row(
        "moved",
        format!(
            "{}  {}",
            paint.apply(BOLD, grouped(totals.moved)),
            paint.apply(DIM, format!("{} bytes in {took}, {}/s", grouped(totals.bytes), grouped(rate)))
        ),
    );
    let rejected = grouped(totals.rejected);
    let to = report.reject.as_ref().filter(|_| totals.rejected > 0);
    row("rejected", to.map_or(rejected.clone(), |to| paint.apply(YELLOW, format!("{rejected}, to {to}"))));
    for ((class, reason), (count, example)) in reasons(&report.rejected) {
        row("", visible_line(&format!("{} × {class}: {reason} (such as {example})", grouped(count))));
    }
    for (label, count, what) in [
        ("moved before", totals.already_moved, "came again; acked and not sent again"),
        (
            "sent again",
            totals.sent_again,
            "after sends of unknown outcome: the sink may have duplicates of these",
        ),
        (
            "copies",
            totals.copies,
            "like another in id and content; the source held them twice, or gave them again",
        ),
        ("deduplicated", totals.deduplicated, "recognised by the sink as sent before"),
        ("skipped", totals.skipped, "not taken by the filter, and acked"),
        ("left", report.left, "not taken by the filter, and given back"),
        ("expired", report.expired, "expired before they could be moved"),
        (
            "not acked",
            report.unacked,
            "moved, but the source did not take the ack; they come again, and are then known",
        ),
        (
            "killed before",
            report.killed_in_flight,
            "at most may be in the sink twice: earlier runs were killed with so many in flight",
        ),
    ] {
        if count > 0 {
            row(label, format!("{}  {}", grouped(count), paint.apply(DIM, what)));
        }
    }
    if report.earlier_runs > 0 {
        let earlier = &report.earlier;
        let runs = grouped(report.earlier_runs);
        row(
            "earlier runs",
            format!(
                "{runs}  {}",
                paint.apply(
                    DIM,
                    format!("{} moved, {} rejected", grouped(earlier.moved), grouped(earlier.rejected))
                )
            ),
        );
    }
    if let Some(depth) = report.depth {
        row(
            "still there",
            format!("{}  {}", grouped(depth), paint.apply(DIM, "when the source was last asked")),
        );
    }
    if let Some(verification) = &report.verification {
        verified(&mut row, verification, paint);
    }
    let style = if report.end.is_success() { GREEN } else { RED };
    row("end", paint.apply(style, ending(report)));
    for warning in &report.warnings {
        row("warning", paint.apply(YELLOW, visible_line(warning)));
    }
    text
}

/// What was found in the sink.
fn verified(row: &mut impl FnMut(&str, String), verification: &Verification, paint: Paint) {
    let style = match (verification.is_clean(), verification.is_complete()) {
        (true, true) => GREEN,
        (true, false) => YELLOW,
        (false, _) => RED,
    };
    row("verification", paint.apply(style, visible_line(&verification.summary())));
    let source = &verification.source;
    if let Some(unaccounted) = source.unaccounted.filter(|count| *count > 0) {
        row(
            "",
            format!("{} of {} not accounted for", grouped(unaccounted), grouped(source.held.unwrap_or(0))),
        );
        let some: Vec<_> = source.unaccounted_ids.iter().take(EXAMPLES).map(String::as_str).collect();
        row("", visible_line(&format!("not accounted for: such as {}", some.join(", "))));
    }
    let Some(found) = &verification.found else { return };
    let expected = grouped(verification.expected);
    row("", format!("{} of {expected} there as sent", grouped(found.same)));
    for (count, what) in [
        (found.missing.unwrap_or(0), "missing"),
        (found.duplicates, "duplicates"),
        (found.reordered.unwrap_or(0), "out of order in their key"),
        (found.changed.count, "changed"),
        (found.others, "of somebody else"),
    ] {
        if count > 0 {
            row("", format!("{} {what}", grouped(count)));
        }
    }
    for (part, count) in found.changed.parts.iter().take(EXAMPLES) {
        row("", visible_line(&format!("{} × {part}", grouped(*count))));
    }
    let changed: Vec<_> = found.changed.examples.iter().map(|message| message.id.clone()).collect();
    for (ids, what) in [
        (&found.missing_ids, "missing"),
        (&changed, "changed"),
        (&found.reordered_ids, "out of order"),
        (&found.duplicate_ids, "twice"),
    ] {
        if !ids.is_empty() {
            let some: Vec<_> = ids.iter().take(EXAMPLES).map(String::as_str).collect();
            row("", visible_line(&format!("{what}: such as {}", some.join(", "))));
        }
    }
}

/// What a bridge would do with what is there.
pub(super) fn dry_run(found: &DryRun, paint: Paint) -> String {
    let more = if found.may_be_more { "; there may be more (--look-at)" } else { "" };
    let mut text = format!("looked at {} messages{more}\n", grouped(found.looked_at));
    let rejected = found.would_reject.len() as u64;
    for (label, count) in [
        ("would move", found.would_move),
        ("would reject", rejected),
        ("would leave", found.would_leave),
        ("would skip", found.would_skip),
    ] {
        let shown = if label == "would reject" && count > 0 {
            paint.apply(RED, grouped(count))
        } else {
            grouped(count)
        };
        let _ = writeln!(text, "  {label:<15} {shown}");
    }
    for ((class, reason), (count, example)) in reasons(&found.would_reject) {
        let why = format!("{} × {class}: {reason} (such as {example})", grouped(count));
        let _ = writeln!(text, "  {:<15} {}", "", visible_line(&why));
    }
    if found.disturbed {
        text.push_str(
            "  delivery counts have risen by the look: the broker shows messages only by giving them out\n",
        );
    }
    text
}

/// By class and reason, how many, and one of them.
fn reasons(rejected: &[Rejected]) -> BTreeMap<(&str, &str), (u64, &str)> {
    let mut reasons = BTreeMap::new();
    for rejected in rejected {
        let key = (rejected.class.as_str(), rejected.reason.as_str());
        reasons.entry(key).or_insert((0, rejected.id.as_str())).0 += 1;
    }
    reasons
}

fn ending(report: &Report) -> &'static str {
    match &report.end {
        End::Empty { approximate: false } if report.depth.unwrap_or(0) > report.left => {
            "all is moved that was there at the start; more has come since"
        }
        End::Empty { approximate: false } => "the source is empty",
        End::Empty { approximate: true } => "the source is empty, as far as its broker can tell",
        End::Max => "as many as --max allows",
        End::Stopped => "stopped; what was on its way is done",
        End::Refused { .. } => "the sink does not take a message",
        End::Full => "too many held that the filter does not take",
        End::Starved { .. } => "the source gives no more",
        End::Failed { .. } => "failed",
        _ => "ended",
    }
}

/// With a separator every three digits.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_rate_and_time_left() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        let mut snapshot = Snapshot::default();
        snapshot.totals.moved = 12_000;
        snapshot.depth = Some(60_000);
        let text = line(&snapshot, &mut meter, start + Duration::from_secs(2));
        assert_eq!(text, "moved 12,000  6,000/s  in flight 0  to go 60,000  ETA 10s");
        snapshot.totals.moved = 12_001;
        snapshot.trouble = Some("no route\u{1b}[2J".into());
        let text = line(&snapshot, &mut meter, start + Duration::from_secs(20));
        assert!(text.contains(" 0/s") && text.ends_with("waiting: no route\\u{1b}[2J"), "{text}");
    }

    #[test]
    fn digits_are_grouped() {
        let grouped: Vec<_> = [0, 999, 1000, 1_234_567].map(grouped).into();
        assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
    }
}
