//! The figures: medians, and ratios to plain rusqlite within each round.

use std::fmt;

use serde::Serialize;

use crate::Span;
use crate::backlog::Backlog;

/// What was measured of one contender, round by round; the first two are what the others are compared with.
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
    /// Over that of rusqlite with leases.
    leased_ratio: Spread,
    /// Processor time a message, in µs.
    cpu_micros: f64,
    cpu_ratio: Spread,
    leased_cpu_ratio: Spread,
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
            let raw = |at: usize| rows.get(at).map(of).unwrap_or_default();
            rows.iter().map(|row| Figures::of(row.name, of(row), [raw(0), raw(1)], messages)).collect()
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
    fn of(name: &'static str, own: &[Span], raw: [&[Span]; 2], messages: usize) -> Self {
        let over = |raw: &[Span], of: fn(&Span) -> f64| {
            Spread::of(own.iter().zip(raw).map(|(own, raw)| of(own) / of(raw)))
        };
        let all = |of: fn(&Span) -> f64| Spread::of(own.iter().map(of)).median;
        let wall = |span: &Span| span.wall.as_secs_f64();
        let cpu = |span: &Span| span.cpu.as_secs_f64();
        let [ratio, leased_ratio] = raw.map(|raw| over(raw, wall).inverse());
        let [cpu_ratio, leased_cpu_ratio] = raw.map(|raw| over(raw, cpu));
        Self {
            name,
            rate: messages as f64 / all(wall),
            ratio,
            leased_ratio,
            cpu_micros: all(cpu) * 1e6 / messages as f64,
            cpu_ratio,
            leased_cpu_ratio,
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

    /// Of how often the one goes into the other, the other way round.
    fn inverse(self) -> Self {
        Self { median: 1.0 / self.median, low: 1.0 / self.high, high: 1.0 / self.low }
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
                "\n{title:<26} {:>9}  {:<18}  {:<18} {:>10}  {:<18}  {:<18}",
                "msg/s", "÷ rusqlite", "÷ with leases", "CPU µs/msg", "÷ rusqlite", "÷ with leases"
            )?;
            for row in figures {
                let Figures { name, rate, cpu_micros, .. } = row;
                let [ratio, leased, cpu, leased_cpu] =
                    [row.ratio, row.leased_ratio, row.cpu_ratio, row.leased_cpu_ratio]
                        .map(|spread| spread.to_string());
                writeln!(
                    f,
                    "  {name:<24} {rate:>9.0}  {ratio:<18}  {leased:<18} {cpu_micros:>10.2}  {cpu:<18}  {leased_cpu:<18}"
                )?;
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
