//! Instructions a message, by valgrind's callgrind.

use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::work::{Shape, Tracing};
use crate::{COUNTED, FIRST};

/// Instructions a message; none where valgrind is not installed.
pub(crate) fn count(shape: Shape, tracing: Tracing) -> Result<Option<f64>> {
    let there =
        Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_err() {
        eprintln!("valgrind is not installed: no instructions are counted");
        return Ok(None);
    }
    let (fewer, more) = (run(shape, tracing, FIRST)?, run(shape, tracing, FIRST + COUNTED)?);
    Ok(Some((more - fewer) / COUNTED as f64))
}

/// All instructions of one run.
fn run(shape: Shape, tracing: Tracing, messages: usize) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["work", shape.name(), tracing.name(), &messages.to_string()])
        .output()
        .context("valgrind cannot be run")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the run under valgrind failed ({}):\n{text}", output.status);
    }
    let collected =
        text.lines().find_map(|line| line.split_once("Collected :")).map(|(_, count)| count.trim());
    collected.and_then(|count| count.parse().ok()).with_context(|| format!("valgrind said no count:\n{text}"))
}
