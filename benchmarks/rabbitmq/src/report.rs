//! The figures: medians, and ratios to the raw client within each round.

use std::fmt;

use serde::Serialize;

use crate::load::{QueueType, Span};

#[derive(Serialize)]
pub(crate) struct Report {
    messages_a_round: usize,
    payload_bytes: usize,
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) latency: Vec<Latency>,
}

/// What was measured of one contender, round by round.
#[derive(Default)]
pub(crate) struct Spans {
    pub(crate) name: &'static str,
    pub(crate) publish: Vec<Span>,
    pub(crate) consume: Vec<Span>,
    /// Messages that were acked and came back, in all rounds.
    pub(crate) came_back: u32,
}

#[derive(Serialize)]
pub(crate) struct Throughput {
    queue: QueueType,
    publish: Vec<Figures>,
    consume: Vec<Figures>,
    /// Contenders of which acked messages came back when they closed, and how many in all rounds.
    came_back: Vec<(&'static str, u32)>,
}

/// One contender's figures.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    /// Messages a second, the median of the rounds.
    rate: f64,
    /// Its rate over raw's, in the same round.
    ratio: Spread,
    /// Processor time of this process a message, in µs; the broker's is not in it.
    cpu_micros: f64,
    /// The same over raw's.
    cpu_ratio: Spread,
}

/// The median, the lowest and the highest.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

/// Times of single messages, in µs.
#[derive(Serialize)]
pub(crate) struct Latency {
    pub(crate) name: &'static str,
    pub(crate) publish_p50: u64,
    pub(crate) publish_p99: u64,
    pub(crate) to_handler_p50: u64,
    pub(crate) to_handler_p99: u64,
}

impl Report {
    pub(crate) fn new(messages_a_round: usize, payload_bytes: usize) -> Self {
        Self { messages_a_round, payload_bytes, throughput: Vec::new(), latency: Vec::new() }
    }
}

impl Throughput {
    /// Of all contenders, of which the first is raw.
    pub(crate) fn of(queue: QueueType, all: &[Spans], messages: usize) -> Self {
        let figures = |of: fn(&Spans) -> &[Span]| {
            let spans: Vec<_> = all.iter().map(|spans| (spans.name, of(spans))).collect();
            Figures::of(&spans, messages)
        };
        let came_back = all.iter().filter(|spans| spans.came_back > 0);
        Self {
            queue,
            publish: figures(|spans| &spans.publish),
            consume: figures(|spans| &spans.consume),
            came_back: came_back.map(|spans| (spans.name, spans.came_back)).collect(),
        }
    }
}

impl Figures {
    fn of(all: &[(&'static str, &[Span])], messages: usize) -> Vec<Self> {
        let rates = |spans: &[Span]| -> Vec<f64> {
            spans.iter().map(|span| messages as f64 / span.wall.as_secs_f64()).collect()
        };
        let cpus = |spans: &[Span]| -> Vec<f64> {
            spans.iter().map(|span| span.cpu.as_secs_f64() * 1e6 / messages as f64).collect()
        };
        let raw = all.first().map(|(_, spans)| *spans).unwrap_or_default();
        let (raw_rates, raw_cpus) = (rates(raw), cpus(raw));
        let over = |own: &[f64], raw: &[f64]| own.iter().zip(raw).map(|(own, raw)| own / raw).collect();
        let figures = all.iter().map(|(name, spans)| {
            let (rate, cpu) = (rates(spans), cpus(spans));
            Self {
                name,
                ratio: Spread::of(over(&rate, &raw_rates)),
                cpu_ratio: Spread::of(over(&cpu, &raw_cpus)),
                rate: Spread::of(rate).median,
                cpu_micros: Spread::of(cpu).median,
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
        for Throughput { queue, publish, consume, .. } in &self.throughput {
            for (title, figures) in [("publish", publish), ("consume + ack", consume)] {
                let title = format!("{title}, {} queue", queue.name());
                writeln!(
                    f,
                    "\n{title:<30} {:>10}  {:<20} {:>10}  {:<20}",
                    "msg/s", "÷ raw", "CPU µs/msg", "÷ raw"
                )?;
                for Figures { name, rate, ratio, cpu_micros, cpu_ratio } in figures {
                    let (ratio, cpu_ratio) = (ratio.to_string(), cpu_ratio.to_string());
                    writeln!(
                        f,
                        "  {name:<28} {rate:>10.0}  {ratio:<20} {cpu_micros:>10.2}  {cpu_ratio:<20}"
                    )?;
                }
            }
        }
        for Throughput { queue, came_back, .. } in &self.throughput {
            for (name, count) in came_back {
                writeln!(
                    f,
                    "\n{name}, {} queue: {count} acked messages came back when it closed",
                    queue.name()
                )?;
            }
        }
        if !self.latency.is_empty() {
            writeln!(
                f,
                "\n{:<30} {:>10} {:>10} {:>12} {:>12}",
                "single messages, µs", "p50", "p99", "handler p50", "handler p99"
            )?;
        }
        for Latency { name, publish_p50, publish_p99, to_handler_p50, to_handler_p99 } in &self.latency {
            writeln!(
                f,
                "  {name:<28} {publish_p50:>10} {publish_p99:>10} {to_handler_p50:>12} {to_handler_p99:>12}"
            )?;
        }
        Ok(())
    }
}
