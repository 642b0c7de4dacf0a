//! What was measured, round by round.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How long something took, and the processor time of this process meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    wall: Duration,
    cpu: Duration,
}

/// A span that has begun.
pub(crate) struct Started(Instant, Duration);

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

impl Started {
    pub(crate) fn now() -> Self {
        Self(Instant::now(), processor_time())
    }

    pub(crate) fn end(self) -> Span {
        Span { wall: self.0.elapsed(), cpu: processor_time() - self.1 }
    }
}

/// The spans of contenders; the first is what the others are compared with.
pub(crate) struct Table {
    title: &'static str,
    rows: Vec<(&'static str, Vec<Span>)>,
}

impl Table {
    pub(crate) fn new(title: &'static str, names: impl Iterator<Item = &'static str>) -> Self {
        Self { title, rows: names.map(|name| (name, Vec::new())).collect() }
    }

    /// The first round, 0, warms up.
    pub(crate) fn put(&mut self, row: usize, round: usize, span: Span) {
        if round > 0 {
            self.rows[row].1.push(span);
        }
    }

    /// With the ratios to the first row, and to another one.
    pub(crate) fn print(&self, messages: usize, other: Option<&str>) {
        let Some((first, raw)) = self.rows.first() else { return };
        let mut bases = vec![(*first, raw)];
        bases.extend(self.rows.iter().skip(1).filter(|row| other == Some(row.0)).map(|row| (row.0, &row.1)));
        print!("\n| {} | msg/s | CPU µs a message |", self.title);
        for (base, _) in &bases {
            print!(" ÷ {base} | CPU ÷ {base} |");
        }
        println!("\n|---|---|---|{}", "---|---|".repeat(bases.len()));
        let micros = |time: Duration| time.as_secs_f64() * 1e6 / messages as f64;
        for (name, spans) in &self.rows {
            let rate = Spread::of(spans.iter().map(|span| 1e6 / micros(span.wall)));
            let cpu = Spread::of(spans.iter().map(|span| micros(span.cpu)));
            print!("| {name} | {:.0} | {:.2} |", rate.median, cpu.median);
            for (_, base) in &bases {
                let pairs = || spans.iter().zip(*base);
                let ratio = |of: fn(&Span) -> Duration, (above, below)| {
                    of(above).as_secs_f64() / of(below).as_secs_f64()
                };
                let faster = Spread::of(pairs().map(|(ours, base)| ratio(|span| span.wall, (base, ours))));
                let dearer = Spread::of(pairs().map(|pair| ratio(|span| span.cpu, pair)));
                print!(" {faster} | {dearer} |");
            }
            println!();
        }
    }
}

/// The median, with the lowest and the highest.
struct Spread {
    median: f64,
    range: (f64, f64),
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        Self { median: values[values.len() / 2], range: (values[0], values[values.len() - 1]) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.range.0, self.range.1)
    }
}
