//! The waterfall: a row a span, with its place in the tree, its times and its bar, and its attributes below.

use std::fmt;
use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use serde_json::Value as Json;

use crate::span::{Kind, Span, millis, one_line, since};
use crate::tree::Row;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default().bold();

/// The attributes that are shown, in this order. What a span above shows with the same value is not repeated.
const SHOWN: [&str; 17] = [
    "http.response.status_code",
    "peer.service",
    "tenant.company_id",
    "ads.profile_id",
    "job.type",
    "messaging.system",
    "messaging.destination.name",
    "throughline.attempt",
    "throughline.receive_count",
    "throughline.retry.delay",
    "throughline.retry.reason",
    "throughline.dead_letter.dependency",
    "throughline.queue.delay",
    "throughline.queue.clock",
    "throughline.idempotency_key",
    "db.system.name",
    "db.query.text",
];
/// Two columns of times, each with its unit, and the kind.
const TIMES: usize = 10;
const KIND: usize = 10;
const NARROWEST_BAR: usize = 12;
const NARROWEST_NAME: usize = 24;

/// Whether styles are written.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn apply(self, style: Style, text: impl fmt::Display) -> String {
        let text = text.to_string();
        if self.0 && !text.is_empty() { format!("{style}{text}{style:#}") } else { text }
    }
}

/// Draws the rows of one trace, `width` columns wide (80 at least), in ANSI colours or without.
pub fn render(rows: &[Row<'_>], width: usize, color: bool) -> String {
    let paint = Paint(color);
    let Some(begin) = rows.iter().map(|row| row.span.start).min() else { return String::new() };
    let end = rows.iter().map(|row| row.span.end).max().unwrap_or(begin);
    let longest =
        rows.iter().map(|row| length(&row.branch) + length(&row.span.label())).max().unwrap_or_default();
    // Where there is little room, names are worth more than kinds.
    let kind = if longest + KIND + 2 * TIMES + 2 + NARROWEST_BAR <= width { KIND } else { 0 };
    let rest = width.saturating_sub(kind + 2 * TIMES + 2);
    let name = longest.clamp(NARROWEST_NAME, rest.saturating_sub(NARROWEST_BAR).max(NARROWEST_NAME));
    let scale =
        Scale { begin, total: since(end, begin), columns: rest.saturating_sub(name).max(NARROWEST_BAR) };
    let mut text = head(name, kind, &scale, paint);
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&line(row, name, kind, &scale, paint));
        for detail in details(rows, index, width) {
            let (trunk, style) = (paint.apply(DIM, &row.trunk), detail.style);
            text.push_str(&format!("{trunk}{}\n", paint.apply(style, detail.text)));
        }
    }
    let legend = "█ working   ░ in the queue   · put off until the retry   ✗ failed";
    text.push_str(&format!("\n{}\n", paint.apply(DIM, legend)));
    text
}

fn head(name: usize, kind: usize, scale: &Scale, paint: Paint) -> String {
    let total = millis(scale.total);
    let columns = scale.columns.saturating_sub(1);
    let text = format!(
        "{:<name$}{:<kind$}{:>TIMES$}{:>TIMES$}  0{total:>columns$}",
        "span",
        if kind > 0 { "  kind" } else { "" },
        "start",
        "took"
    );
    format!("{}\n", paint.apply(BOLD, text.trim_end()))
}

fn line(row: &Row<'_>, name: usize, kind: usize, scale: &Scale, paint: Paint) -> String {
    let span = row.span;
    let style = style(span);
    let branch = paint.apply(DIM, &row.branch);
    let label = cut(&span.label(), name.saturating_sub(length(&row.branch)));
    let pad = " ".repeat(name.saturating_sub(length(&row.branch) + length(&label)));
    let kind = if kind > 0 { format!("  {:<8}", span.kind.name()) } else { String::new() };
    let start = format!("{:>TIMES$}", millis(since(span.start, scale.begin)));
    let took = format!("{:>TIMES$}", millis(span.duration()));
    let bar = bar(span, scale);
    format!(
        "{branch}{}{pad}{}{start}{took}  {}\n",
        paint.apply(style.bold(), label),
        paint.apply(DIM, kind),
        paint.apply(style, bar.trim_end())
    )
}

/// How time becomes columns.
struct Scale {
    begin: SystemTime,
    total: Duration,
    columns: usize,
}

impl Scale {
    /// The column of a point in time, from 0 to `columns`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a column, from 0 to a few hundred"
    )]
    #[expect(clippy::cast_precision_loss, reason = "a number of columns")]
    fn column(&self, after: Duration) -> usize {
        let share = after.as_secs_f64() / self.total.as_secs_f64().max(f64::MIN_POSITIVE);
        (share.clamp(0.0, 1.0) * self.columns as f64).round() as usize
    }
}

fn bar(span: &Span, scale: &Scale) -> String {
    let (start, end) = (since(span.start, scale.begin), since(span.end, scale.begin));
    let last = scale.columns.saturating_sub(1);
    let from = scale.column(start).min(last);
    let to = scale.column(end).max(from);
    let body = match (to - from, span.is_queue_delay()) {
        (0, _) => "▏".to_owned(),
        (length, true) => "░".repeat(length),
        (length, false) => "█".repeat(length),
    };
    let mut bar = " ".repeat(from) + &body;
    // Asked for, and so not the queue's: the wait before the next attempt.
    if let Some(delay) = span.put_off() {
        let until = scale.column(end + delay);
        bar.push_str(&"·".repeat(until.saturating_sub(length(&bar))));
    }
    bar
}

fn style(span: &Span) -> Style {
    match span.kind {
        _ if span.failed().is_some() => RED,
        _ if span.is_queue_delay() => AnsiColor::Yellow.on_default(),
        Kind::Client => AnsiColor::Cyan.on_default(),
        Kind::Server => AnsiColor::Green.on_default(),
        Kind::Producer => AnsiColor::Magenta.on_default(),
        Kind::Consumer => AnsiColor::Blue.on_default(),
        Kind::Internal => Style::new(),
    }
}

/// A line below a span.
struct Detail {
    text: String,
    style: Style,
}

fn details(rows: &[Row<'_>], index: usize, width: usize) -> Vec<Detail> {
    let Some(row) = rows.get(index) else { return Vec::new() };
    let room = width.saturating_sub(length(&row.trunk));
    let mut lines = Vec::new();
    if let Some(message) = row.span.failed().filter(|message| !message.is_empty()) {
        lines.push(Detail {
            text: cut(&one_line(message), room),
            style: RED.effects(anstyle::Effects::new()),
        });
    }
    let mut items: Vec<String> = SHOWN
        .iter()
        .filter_map(|name| {
            let value = row.span.attributes.get(name).filter(|value| !shown_above(rows, row, name, value))?;
            // In seconds, which their names do not say; and to the millisecond.
            let delay = value.as_f64().filter(|_| name.ends_with(".delay"));
            Some(match delay {
                Some(seconds) => format!("{name}={} s", (seconds * 1000.0).round() / 1000.0),
                None => format!("{name}={}", shown(value)),
            })
        })
        .collect();
    for link in &row.span.links {
        let target = rows.iter().find(|row| row.span.span_id == link.span_id);
        items.push(match target {
            Some(target) => format!("link→{}", target.span.label()),
            None => format!("link→{}/{}", link.trace_id, link.span_id),
        });
    }
    let mut text = String::new();
    for item in items {
        if !text.is_empty() && length(&text) + 2 + length(&item) > room {
            lines.push(Detail { text: std::mem::take(&mut text), style: DIM });
        }
        if !text.is_empty() {
            text.push_str("  ");
        }
        text.push_str(&cut(&item, room));
    }
    if !text.is_empty() {
        lines.push(Detail { text, style: DIM });
    }
    lines
}

fn shown_above(rows: &[Row<'_>], row: &Row<'_>, name: &str, value: &Json) -> bool {
    // Another message's attempt above says nothing of this one's.
    if row.span.kind == Kind::Consumer && name == "throughline.attempt" {
        return false;
    }
    let mut above = row.parent.and_then(|parent| rows.get(parent));
    while let Some(ancestor) = above {
        match ancestor.span.attributes.get(name) {
            Some(other) => return other == value,
            None => above = ancestor.parent.and_then(|parent| rows.get(parent)),
        }
    }
    false
}

fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => one_line(text),
        other => other.to_string(),
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// At most so many columns of a text.
fn cut(text: &str, columns: usize) -> String {
    if length(text) <= columns {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(columns.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::{Attributes, Link, Outcome};
    use crate::tree::rows;
    use opentelemetry::KeyValue;
    use std::time::UNIX_EPOCH;

    fn span(id: &str, parent: Option<&str>, name: &str, from: u64, to: u64) -> Span {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(1_000_000 + millis);
        Span {
            trace_id: "t".into(),
            span_id: id.into(),
            parent_span_id: parent.map(Into::into),
            name: name.into(),
            kind: Kind::Client,
            start: at(from),
            end: at(to),
            status: Outcome::Unset,
            attributes: Attributes::default(),
            links: Vec::new(),
        }
    }

    fn attributes(of: &[KeyValue]) -> Attributes {
        of.iter().collect()
    }

    #[test]
    fn draws_what_happened() {
        let mut root = span("1", None, "POST /", 0, 100);
        root.attributes = attributes(&[KeyValue::new("messaging.system", "memory")]);
        let mut queued = span("2", Some("1"), "queued", 0, 50);
        queued.kind = Kind::Internal;
        queued.attributes = attributes(&[KeyValue::new("throughline.queue.delay", 0.05)]);
        let mut failed = span("3", Some("1"), "work", 50, 60);
        failed.status = Outcome::Error { message: "down".into() };
        failed.attributes = attributes(&[
            KeyValue::new("messaging.system", "memory"),
            KeyValue::new("throughline.attempt", 1),
            KeyValue::new("not.shown", 1),
        ]);
        failed.links =
            vec![Link { trace_id: "t".into(), span_id: "1".into(), attributes: Attributes::default() }];
        let mut retry = span("4", Some("3"), "retry", 60, 60);
        retry.attributes = attributes(&[KeyValue::new("throughline.retry.delay", 0.02)]);
        // In no order, as they end.
        let spans = [retry, failed, queued, root];
        let drawn = render(&rows(&spans), 80, false);
        let expected = "\
span                      kind         start      took  0               100.0 ms
POST /                    client      0.0 ms  100.0 ms  ████████████████████████
│  messaging.system=memory
├─ queued                 internal    0.0 ms   50.0 ms  ░░░░░░░░░░░░
│     throughline.queue.delay=0.05 s
└─ ✗ work                 client     50.0 ms   10.0 ms              ██
   │  down
   │  throughline.attempt=1  link→POST /
   └─ retry               client     60.0 ms    0.0 ms                ▏····
         throughline.retry.delay=0.02 s
";
        let (table, _) = drawn.split_once("\n\n").unwrap();
        assert_eq!(format!("{table}\n"), expected, "\n{drawn}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_control_character_is_drawn() {
        let mut deep = vec![span("0", None, "root\u{1b}[2J", 0, 1)];
        for depth in 1..8_u64 {
            let mut below =
                span(&depth.to_string(), Some(&(depth - 1).to_string()), &"long ".repeat(30), 0, 1);
            below.attributes = attributes(&[
                KeyValue::new("db.query.text", "x".repeat(300)),
                KeyValue::new("job.type", "y\nz"),
            ]);
            below.status = Outcome::Error { message: "why ".repeat(60) };
            deep.push(below);
        }
        for width in [80, 100, 200] {
            let drawn = render(&rows(&deep), width, false);
            assert!(drawn.lines().all(|line| length(line) <= width), "{drawn}");
            assert!(drawn.chars().all(|c| c == '\n' || !c.is_control()), "{drawn:?}");
        }
    }

    #[test]
    fn colour_changes_nothing_but_the_colour() {
        let mut failed = span("1", None, "work", 0, 1);
        failed.status = Outcome::Error { message: "down".into() };
        let spans = [failed];
        let painted = render(&rows(&spans), 100, true);
        assert!(painted.contains("\u{1b}[31m"));
        let mut plain = String::new();
        let mut escaped = false;
        for c in painted.chars() {
            match (escaped, c) {
                (false, '\u{1b}') => escaped = true,
                (true, 'm') => escaped = false,
                (true, _) => {}
                (false, c) => plain.push(c),
            }
        }
        assert_eq!(plain, render(&rows(&spans), 100, false));
    }

    #[test]
    fn a_trace_without_spans_or_time_is_drawn_too() {
        assert_eq!(render(&[], 100, false), "");
        let spans = [span("1", None, "at once", 0, 0)];
        assert!(render(&rows(&spans), 100, false).contains("at once"));
    }

    #[test]
    fn an_orphan_is_a_root_and_siblings_come_by_their_start() {
        let spans = [
            span("c", Some("a"), "c", 5, 6),
            span("a", Some("gone"), "a", 0, 9),
            span("b", Some("a"), "b", 1, 2),
        ];
        let rows = rows(&spans);
        let order: Vec<_> = rows.iter().map(|row| (row.span.name.as_str(), row.parent)).collect();
        assert_eq!(order, [("a", None), ("b", Some(0)), ("c", Some(0))]);
    }
}
