//! What it comes to.

use std::fmt;

use serde::Serialize;

use crate::Span;
use crate::flat::Sample;

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) moves: Vec<Move>,
    pub(crate) memory: Vec<Sample>,
}

/// One move, done both ways; a span a round.
#[derive(Serialize)]
pub(crate) struct Move {
    pub(crate) name: &'static str,
    pub(crate) by_hand: Vec<Span>,
    pub(crate) bridge: Vec<Span>,
}

impl Move {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, by_hand: Vec::new(), bridge: Vec::new() }
    }
}

/// The median, the lowest and the highest.
fn middle(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

fn ratio(values: impl Iterator<Item = f64>) -> String {
    let (median, lowest, highest) = middle(values.collect());
    format!("{median:.2} ({lowest:.2}–{highest:.2})")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} messages of {} bytes a round; medians (lowest–highest)\n",
            self.messages, self.bytes
        )?;
        writeln!(f, "| | msg/s | ÷ by hand | CPU µs a message | CPU ÷ by hand |\n|---|---|---|---|---|")?;
        let count = self.messages as f64;
        for Move { name, by_hand, bridge } in &self.moves {
            for (who, spans) in [("by hand", by_hand), ("bridge", bridge)] {
                let rate = middle(spans.iter().map(|span| count / span.wall.as_secs_f64()).collect()).0;
                let cpu = middle(spans.iter().map(|span| span.cpu.as_secs_f64() * 1e6 / count).collect()).0;
                // Of one round each.
                let pairs = || by_hand.iter().zip(spans);
                let faster =
                    ratio(pairs().map(|(hand, span)| hand.wall.as_secs_f64() / span.wall.as_secs_f64()));
                let dearer =
                    ratio(pairs().map(|(hand, span)| span.cpu.as_secs_f64() / hand.cpu.as_secs_f64()));
                writeln!(f, "| {name}, {who} | {rate:.0} | {faster} | {cpu:.1} | {dearer} |")?;
            }
        }
        if !self.memory.is_empty() {
            writeln!(f, "\n| moved | resident, MiB |\n|---|---|")?;
            for Sample { moved, mib } in &self.memory {
                writeln!(f, "| {moved} | {mib} |")?;
            }
        }
        Ok(())
    }
}
