//! The figures: medians, and ratios to the raw client within each round.

use std::fmt;

use serde::Serialize;

use crate::load::Span;

#[derive(Serialize)]
pub(crate) struct Report {
    messages_a_round: usize,
    payload_bytes: usize,
    pub(crate) services: Vec<Service>,
}

/// What was measured of one contender, round by round.
#[derive(Default)]
pub(crate) struct Spans {
    pub(crate) name: &'static str,
    pub(crate) publish: Vec<Span>,
    pub(crate) consume: Vec<Span>,
    /// Requests of each round; none where nobody counts them.
    pub(crate) publish_calls: Vec<u64>,
    pub(crate) consume_calls: Vec<u64>,
}

/// The figures on one stub or endpoint.
#[derive(Serialize)]
pub(crate) struct Service {
    name: String,
    publish: Vec<Figures>,
    consume: Vec<Figures>,
}

/// One contender's figures.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    /// Messages a second, the median of the rounds.
    rate: f64,
    /// Its rate over raw's, in the same round.
    ratio: Spread,
    /// Processor time of this process a message, in µs; the service's is not in it.
    cpu_micros: f64,
    /// The same over raw's.
    cpu_ratio: Spread,
    /// Requests for a thousand messages, the most of all rounds.
    calls: Option<f64>,
}

/// The median, the lowest and the highest.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Report {
    pub(crate) fn new(messages_a_round: usize, payload_bytes: usize) -> Self {
        Self { messages_a_round, payload_bytes, services: Vec::new() }
    }
}

impl Service {
    /// Of all contenders, of which the first is raw.
    pub(crate) fn of(name: &str, all: &[Spans], messages: usize) -> Self {
        let publish: Vec<_> = all.iter().map(|s| (s.name, &s.publish[..], &s.publish_calls[..])).collect();
        let consume: Vec<_> = all.iter().map(|s| (s.name, &s.consume[..], &s.consume_calls[..])).collect();
        Self {
            name: name.to_owned(),
            publish: Figures::of(&publish, messages),
            consume: Figures::of(&consume, messages),
        }
    }
}

impl Figures {
    fn of(all: &[(&'static str, &[Span], &[u64])], messages: usize) -> Vec<Self> {
        let rates = |spans: &[Span]| -> Vec<f64> {
            spans.iter().map(|span| messages as f64 / span.wall.as_secs_f64()).collect()
        };
        let cpus = |spans: &[Span]| -> Vec<f64> {
            spans.iter().map(|span| span.cpu.as_secs_f64() * 1e6 / messages as f64).collect()
        };
        let raw = all.first().map(|(_, spans, _)| *spans).unwrap_or_default();
        let (raw_rates, raw_cpus) = (rates(raw), cpus(raw));
        let over = |own: &[f64], raw: &[f64]| own.iter().zip(raw).map(|(own, raw)| own / raw).collect();
        let figures = all.iter().map(|(name, spans, calls)| {
            let (rate, cpu) = (rates(spans), cpus(spans));
            Self {
                name,
                ratio: Spread::of(over(&rate, &raw_rates)),
                cpu_ratio: Spread::of(over(&cpu, &raw_cpus)),
                rate: Spread::of(rate).median,
                cpu_micros: Spread::of(cpu).median,
                calls: calls.iter().max().map(|most| *most as f64 * 1_000.0 / messages as f64),
            }
        });
        figures.collect()
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
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
        for Service { name, publish, consume } in &self.services {
            writeln!(f, "\n{name}")?;
            for (title, figures) in [("publish", publish), ("receive + delete", consume)] {
                writeln!(
                    f,
                    "\n{title:<22} {:>8}  {:<20} {:>10}  {:<20} {:>14}",
                    "msg/s", "÷ raw", "CPU µs/msg", "÷ raw", "calls/1,000"
                )?;
                for Figures { name, rate, ratio, cpu_micros, cpu_ratio, calls } in figures {
                    let (ratio, cpu_ratio) = (ratio.to_string(), cpu_ratio.to_string());
                    let calls = calls.map_or("not counted".to_owned(), |calls| format!("{calls:.1}"));
                    writeln!(
                        f,
                        "  {name:<20} {rate:>8.0}  {ratio:<20} {cpu_micros:>10.2}  {cpu_ratio:<20} {calls:>14}"
                    )?;
                }
            }
        }
        Ok(())
    }
}
