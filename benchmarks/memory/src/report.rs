//! The figures.

use std::env;
use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::instructions;
use crate::pace::Pace;
use crate::work::{Shape, Tracing};

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) counts: Vec<Counts>,
    pub(crate) latency: Latency,
    pub(crate) pace: Pace,
}

/// What one message costs.
#[derive(Serialize)]
pub(crate) struct Counts {
    shape: &'static str,
    tracing: &'static str,
    instructions: Option<f64>,
    allocations: f64,
}

/// Times of single messages, in µs.
#[derive(Serialize)]
pub(crate) struct Latency {
    pub(crate) publish_p50: f64,
    pub(crate) publish_p99: f64,
    pub(crate) to_handler_p50: f64,
    pub(crate) to_handler_p99: f64,
}

impl Counts {
    pub(crate) fn of(shape: Shape, tracing: Tracing) -> Result<Self> {
        let output = Command::new(env::current_exe()?)
            .args(["allocations", shape.name(), tracing.name()])
            .output()
            .context("this program cannot be run again")?;
        ensure!(
            output.status.success(),
            "counting allocations failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let allocations = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        let instructions = instructions::count(shape, tracing)?;
        Ok(Self { shape: shape.name(), tracing: tracing.name(), instructions, allocations })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory transport, 256 bytes: publish, receive, ack; a message each")?;
        writeln!(f, "{:<10} {:<8} {:>13} {:>12}", "", "tracing", "instructions", "allocations")?;
        for Counts { shape, tracing, instructions, allocations } in &self.counts {
            let instructions = instructions.map_or_else(|| "–".to_owned(), |count| format!("{count:.0}"));
            writeln!(f, "{shape:<10} {tracing:<8} {instructions:>13} {allocations:>12.2}")?;
        }
        let Latency { publish_p50, publish_p99, to_handler_p50, to_handler_p99 } = &self.latency;
        writeln!(
            f,
            "\nsingle messages, µs: publish p50 {publish_p50:.1}, p99 {publish_p99:.1}; publish to handler p50 {to_handler_p50:.1}, p99 {to_handler_p99:.1}"
        )?;
        writeln!(f, "{}", self.pace)
    }
}
