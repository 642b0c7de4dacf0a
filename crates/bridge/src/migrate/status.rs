//! Where a migration stands, and how much there is at each place.

use std::path::Path;

use serde::Serialize;
use throughline::{Bus, Result};

use super::Migration;
use super::compare::{Compared, blocking};
use super::file::StateFile;
use super::moving::Leg;
use super::state::{Copies, Kind, LedgerState, MigrationState, Phase, PhaseState, redacted};
use crate::ledger;

/// Where a migration stands. Addresses are without secrets.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MigrationStatus {
    /// The phase that was begun last.
    pub phase: Phase,
    /// Whether it is done.
    pub is_done: bool,
    /// Whether a process runs a phase now.
    pub is_running: bool,
    /// Which phase is due; `None` once there is nothing left to do.
    pub next: Option<Phase>,
    /// How the mirror gets the messages.
    pub kind: Kind,
    /// What becomes of the copies, once that was decided.
    pub copies: Option<Copies>,
    /// The old place.
    pub old: PlaceStatus,
    /// The tap.
    pub tap: Option<PlaceStatus>,
    /// The new place.
    pub new: PlaceStatus,
    /// The phases that were begun.
    pub steps: Vec<PhaseState>,
    /// What the bridges have done so far, that of a run which is under way included.
    pub ledgers: Vec<LedgerState>,
    /// What the last comparison has found.
    pub compared: Option<Compared>,
}

/// How much a place holds, as its broker says.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PlaceStatus {
    /// Its address, without secrets.
    pub address: String,
    /// Ready to be delivered.
    pub ready: Option<u64>,
    /// Delivered and not settled, where the broker says.
    pub unsettled: Option<u64>,
    /// Waiting for a delay, where the broker says.
    pub delayed: Option<u64>,
    /// Why nothing is known.
    pub error: Option<String>,
}

impl PlaceStatus {
    async fn of(address: &str) -> Self {
        let depth = async {
            let bus = Bus::connect(address).await?;
            let depth = bus.depth("").await;
            bus.close().await?;
            depth
        };
        let address = redacted(address);
        match depth.await {
            Ok(depth) => Self {
                address,
                ready: Some(depth.ready),
                unsettled: depth.unsettled,
                delayed: depth.delayed,
                error: None,
            },
            Err(error) => {
                Self { address, ready: None, unsettled: None, delayed: None, error: Some(error.to_string()) }
            }
        }
    }
}

impl Migration {
    /// Where a migration stands. Another process may run a phase meanwhile.
    ///
    /// Errors: those of [`open`](Self::open). A place that cannot be asked is told as such.
    pub async fn status(path: impl AsRef<Path>) -> Result<MigrationStatus> {
        let file = StateFile::new(path.as_ref());
        let (state, is_running, ledgers) = blocking(move || {
            let state = file.read()?;
            let is_running = file.is_running()?;
            let ledgers = ledgers(&file, &state, is_running)?;
            Ok((state, is_running, ledgers))
        })
        .await?;
        let options = &state.options;
        let tap = async {
            match &options.tap {
                Some(tap) => Some(PlaceStatus::of(tap).await),
                None => None,
            }
        };
        let (old, new, tap) = tokio::join!(PlaceStatus::of(&options.old), PlaceStatus::of(&options.new), tap);
        Ok(MigrationStatus {
            phase: state.phase,
            is_done: state.done,
            is_running,
            next: state.next(),
            kind: state.kind,
            copies: state.copies,
            old,
            tap,
            new,
            steps: state.steps,
            ledgers,
            compared: state.compared,
        })
    }
}

/// What the ledgers say now.
fn ledgers(file: &StateFile, state: &MigrationState, is_running: bool) -> Result<Vec<LedgerState>> {
    let mut all = Vec::new();
    for leg in Leg::ALL {
        let (path, name) = file.ledger(leg.file());
        if !path.exists() {
            continue;
        }
        let known = ledger::peek(&path, is_running && state.leg() == leg)?;
        all.push(LedgerState::new(name, &known));
    }
    Ok(all)
}
