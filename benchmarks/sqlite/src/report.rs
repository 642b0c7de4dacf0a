//! The figures: medians, and ratios to plain rusqlite within each round.

use std::fmt;

use serde::Serialize;

use crate::Span;
use crate::backlog::Backlog;

/// What was measured of one contender, round by round; the first one is what the others are compared with.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) publish: Vec<Span>,
    pub(crate) consume: Vec<Span>,
}

impl Row {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, publish: Vec::new(), consume: Vec::new() }
    }
}

#[derive(Serialize)]
pub(crate) struct Report {
    messages_a_round: usize,
    payload_bytes: usize,
    publish: Vec<Figures>,
    consume: Vec<Figures>,
    backlogs: Vec<Backlog>,
}

#[derive(Serialize)]
struct Figures {
    name: &'static str,
    /// Messages a second, the median.
    rate: f64,
    /// Over rusqlite's, in the same round.
    ratio: Spread,
    /// Processor time a message, in µs.
    cpu_micros: f64,
    cpu_ratio: Spread,
}

/// The median, the lowest and the highest.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Report {
    pub(crate) fn new(messages: usize, payload_bytes: usize, rows: &[Row], backlogs: Vec<Backlog>) -> Self {
        let figures = |of: fn(&Row) -> &[Span]| -> Vec<Figures> {
            let raw = rows.first().map(of).unwrap_or_default();
            rows.iter().map(|row| Figures::of(row.name, of(row), raw, messages)).collect()
        };
        Self {
            messages_a_round: messages,
            payload_bytes,
            publish: figures(|row| &row.publish),
            consume: figures(|row| &row.consume),
            backlogs,
        }
    }
}

impl Figures {
    fn of(name: &'static str, own: &[Span], raw: &[Span], messages: usize) -> Self {
        let over = |of: fn(&Span) -> f64| Spread::of(own.iter().zip(raw).map(|(own, raw)| of(own) / of(raw)));
        let all = |of: fn(&Span) -> f64| Spread::of(own.iter().map(of)).median;
        let slowness = over(|span| span.wall.as_secs_f64());
        Self {
            name,
            rate: messages as f64 / all(|span| span.wall.as_secs_f64()),
            ratio: Spread {
                median: 1.0 / slowness.median,
                low: 1.0 / slowness.high,
                high: 1.0 / slowness.low,
            },
            cpu_micros: all(|span| span.cpu.as_secs_f64()) * 1e6 / messages as f64,
            cpu_ratio: over(|span| span.cpu.as_secs_f64()),
        }
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), low: at(0), high: at(values.len().saturating_sub(1)) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.low, self.high)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages_a_round, payload_bytes, .. } = self;
        writeln!(
            f,
            "{messages_a_round} messages of {payload_bytes} bytes a round; medians (lowest–highest)"
        )?;
        for (title, figures) in [("publish", &self.publish), ("consume + ack", &self.consume)] {
            writeln!(
                f,
                "\n{title:<26} {:>9}  {:<18} {:>10}  {:<18}",
                "msg/s", "÷ rusqlite", "CPU µs/msg", "÷ rusqlite"
            )?;
            for Figures { name, rate, ratio, cpu_micros, cpu_ratio } in figures {
                let (ratio, cpu_ratio) = (ratio.to_string(), cpu_ratio.to_string());
                writeln!(f, "  {name:<24} {rate:>9.0}  {ratio:<18} {cpu_micros:>10.2}  {cpu_ratio:<18}")?;
            }
        }
        writeln!(
            f,
            "\n{:<26} {:>14} {:>14} {:>14} {:>14}",
            "backlog, µs a message", "publish", "CPU", "consume", "CPU"
        )?;
        for Backlog { size, publish_wall, publish_cpu, consume_wall, consume_cpu } in &self.backlogs {
            writeln!(
                f,
                "  {size:<24} {publish_wall:>14.2} {publish_cpu:>14.2} {consume_wall:>14.2} {consume_cpu:>14.2}"
            )?;
        }
        Ok(())
    }
}
