//! The memory that the process has while a great many messages pass.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use throughline::Bus;
use throughline_bridge::Bridge;

use crate::Load;

/// At one moment.
#[derive(Serialize)]
pub(crate) struct Sample {
    /// Moved so far.
    pub(crate) moved: u64,
    /// Resident, in MiB.
    pub(crate) mib: u64,
}

/// Moves messages between two files, and looks at the process after each tenth.
pub(crate) async fn run(folder: &Path, load: Load) -> Result<Vec<Sample>> {
    eprintln!("memory: {} messages", load.messages);
    let from = Bus::connect(format!("sqlite:{}?queue=q", folder.join("from.db").display())).await?;
    let to = Bus::connect(format!("sqlite:{}?queue=q", folder.join("to.db").display())).await?;
    load.fill(&from).await?;
    let messages = load.messages as u64;
    let bridge = Bridge::new(&from, &to).max(messages).ledger(folder.join("ledger"));
    let progress = bridge.progress();
    let mut running = tokio::spawn(bridge.run(std::future::pending()));
    let mut samples = Vec::new();
    let report = loop {
        tokio::select! {
            report = &mut running => break report??,
            () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {
                let moved = progress.now().totals.moved;
                if moved >= messages / 10 * (samples.len() as u64 + 1) {
                    samples.push(Sample { moved, mib: resident()? });
                }
            }
        }
    };
    ensure!(report.totals.moved == messages, "{report:?}");
    from.close().await?;
    to.close().await?;
    Ok(samples)
}

/// From `/proc/self/status`.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("no /proc: this needs Linux")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}
