//! Where a migration stands: what its state file says.

use std::fmt;

use serde::{Deserialize, Serialize};
use throughline::{Address, Error, ErrorKind, Result, Timestamp};

use super::compare::Compared;
use super::moving::Leg;
use crate::filter::Filter;
use crate::ledger::Before;
use crate::map::Map;
use crate::report::Totals;

/// The version of the state file that this program writes and reads.
pub(super) const VERSION: u32 = 1;

/// What is to be migrated, as the user writes it: the rules and addresses are texts, because the state file holds them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MigrationOptions {
    /// Where the workload is: what its consumers consume from.
    pub old: String,
    /// Where it moves to.
    pub new: String,
    /// An address of the old broker that gets a copy of everything, for itself alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Where messages go that the sink does not take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject: Option<String>,
    /// Renames, as [`Map`] reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
    /// Conditions, as [`Filter`] reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<String>,
}

impl MigrationOptions {
    /// From one address to another.
    pub fn new(old: impl Into<String>, new: impl Into<String>) -> Self {
        let (old, new) = (old.into(), new.into());
        Self { old, new, tap: None, reject: None, map: Vec::new(), filter: Vec::new() }
    }

    /// Copies from this address, beside the old consumers: a queue, group or subscription of its own that gets all that the
    /// old one gets. Without one, the mirror forwards what is in the old place itself.
    pub fn tap(mut self, address: impl Into<String>) -> Self {
        self.tap = Some(address.into());
        self
    }

    /// Where messages go that the sink does not take, with the reason.
    pub fn reject(mut self, address: impl Into<String>) -> Self {
        self.reject = Some(address.into());
        self
    }

    /// A rename, such as `type:old=new`; see [`Map`]. Several add up.
    pub fn map(mut self, rule: impl Into<String>) -> Self {
        self.map.push(rule.into());
        self
    }

    /// A condition, such as `type=campaign.sync_report`; see [`Filter`]. Several add up.
    pub fn filter(mut self, condition: impl Into<String>) -> Self {
        self.filter.push(condition.into());
        self
    }

    /// Whether it copies or forwards.
    pub fn kind(&self) -> Kind {
        if self.tap.is_some() { Kind::Tap } else { Kind::Forward }
    }

    pub(super) fn rules(&self) -> Result<(Map, Filter)> {
        Ok((map_of(&self.map)?, filter_of(&self.filter)?))
    }
}

pub(super) fn map_of(rules: &[String]) -> Result<Map> {
    rules.iter().try_fold(Map::default(), |all, rule| Ok(all.and(rule.parse()?)))
}

fn filter_of(conditions: &[String]) -> Result<Filter> {
    conditions.iter().try_fold(Filter::default(), |all, condition| Ok(all.and(condition.parse()?)))
}

/// An address without its secrets.
pub(super) fn redacted(address: &str) -> String {
    address.parse::<Address>().map_or_else(|_| "an address that cannot be read".into(), |it| it.to_string())
}

/// Without secrets: addresses are redacted, conditions counted.
impl fmt::Debug for MigrationOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigrationOptions")
            .field("old", &redacted(&self.old))
            .field("new", &redacted(&self.new))
            .field("tap", &self.tap.as_deref().map(redacted))
            .field("reject", &self.reject.as_deref().map(redacted))
            .field("map", &self.map)
            .field("filter", &self.filter.len())
            .finish()
    }
}

/// How the mirror gets the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A copy beside the old consumers, which notice nothing.
    Tap,
    /// The old place itself is emptied into the new one as messages come: its consumers are at the new one already.
    Forward,
}

/// The phases, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The plan was made and the state written.
    Start,
    /// Messages are copied or forwarded while producers are still at the old place.
    Mirror,
    /// The workload's home changes.
    CutOver,
    /// What is left at the old place is moved.
    Drain,
    /// What is at the new place is moved back.
    RollBack,
}

impl Phase {
    /// Its name, as in the state file: `cut-over`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Mirror => "mirror",
            Self::CutOver => "cut-over",
            Self::Drain => "drain",
            Self::RollBack => "roll-back",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What becomes of the copies that a tap has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Copies {
    /// They were a rehearsal: they are deleted before consumers start at the new place, and what the old consumers have
    /// left is moved there.
    Purge,
    /// They stay, as the history of a log; what the old consumers have left is among them, and not moved again.
    Keep,
}

fn is_nothing(totals: &Totals) -> bool {
    *totals == Totals::default()
}

/// One phase that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PhaseState {
    /// Which.
    pub phase: Phase,
    /// When it began for the first time, in RFC 3339.
    pub began: String,
    /// When it last ended in order. None while it runs, and after a kill.
    pub ended: Option<String>,
    /// How often it was run, kills included.
    pub runs: u64,
    /// What the runs that ended in order have done. What killed ones did is in the ledger's totals.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub totals: Totals,
    /// How many copies it has deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purged: Option<u64>,
}

/// A bridge of the migration, and what its ledger says of all runs together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LedgerState {
    /// Its file, relative to the state file.
    pub file: String,
    /// How many runs there were.
    pub runs: u64,
    /// How many of them were killed.
    pub killed_runs: u64,
    /// How many messages those had in flight at most: so many may be at the sink twice.
    pub killed_in_flight: u64,
    /// What all of them have done.
    pub totals: Totals,
}

impl LedgerState {
    pub(super) fn new(file: String, known: &Before) -> Self {
        Self {
            file,
            runs: known.runs,
            killed_runs: known.killed,
            killed_in_flight: known.killed_in_flight,
            totals: known.totals,
        }
    }
}

/// The way back.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Back {
    /// Where messages are taken from.
    pub from: String,
    /// Where they go.
    pub to: String,
    /// The renames of the way back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
}

impl fmt::Debug for Back {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (redacted(&self.from), redacted(&self.to));
        f.debug_struct("Back").field("from", &from).field("to", &to).field("map", &self.map).finish()
    }
}

/// Where a migration stands: the contents of the state file. It holds the addresses as they were given, with their
/// secrets; `Debug` redacts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MigrationState {
    /// Of the file's form.
    pub version: u32,
    /// The phase that was begun last.
    pub phase: Phase,
    /// Whether that phase is done. A mirror never is: the cut-over ends it.
    pub done: bool,
    /// How the mirror gets the messages.
    pub kind: Kind,
    /// What is migrated.
    pub options: MigrationOptions,
    /// What becomes of the copies, once that was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<Copies>,
    /// The way back, once it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Back>,
    /// The phases, in the order in which they were begun.
    pub steps: Vec<PhaseState>,
    /// The bridges that have run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ledgers: Vec<LedgerState>,
    /// What the last comparison has found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
}

impl MigrationState {
    pub(super) fn new(options: MigrationOptions) -> Self {
        let now = Timestamp::now().to_string();
        let start = PhaseState {
            phase: Phase::Start,
            began: now.clone(),
            ended: Some(now),
            runs: 1,
            totals: Totals::default(),
            purged: None,
        };
        Self {
            version: VERSION,
            phase: Phase::Start,
            done: true,
            kind: options.kind(),
            options,
            copies: None,
            back: None,
            steps: vec![start],
            ledgers: Vec::new(),
            compared: None,
        }
    }

    /// A phase that was begun.
    pub fn step(&self, phase: Phase) -> Option<&PhaseState> {
        self.steps.iter().find(|step| step.phase == phase)
    }

    /// Whether the migration was taken back, all of it.
    pub fn is_rolled_back(&self) -> bool {
        self.phase == Phase::RollBack && self.done
    }

    /// Which phase is due: the one that is under way, or the next. `None` once there is nothing left to do.
    pub fn next(&self) -> Option<Phase> {
        match (self.phase, self.done) {
            (Phase::Start, _) => Some(Phase::Mirror),
            (Phase::Mirror, _) | (Phase::CutOver, false) => Some(Phase::CutOver),
            (Phase::CutOver, true) | (Phase::Drain, false) => Some(Phase::Drain),
            (Phase::RollBack, false) => Some(Phase::RollBack),
            (Phase::Drain | Phase::RollBack, true) => None,
        }
    }

    /// Whether the copies are gone.
    pub(super) fn is_purged(&self) -> bool {
        self.copies == Some(Copies::Purge)
            && self.step(Phase::CutOver).is_some_and(|step| step.ended.is_some())
    }

    /// Whether a cut-over that keeps the copies was begun, so that producers may be at the new place.
    pub(super) fn has_begun_to_keep(&self) -> bool {
        self.copies == Some(Copies::Keep)
    }

    /// The bridge of the phase: messages come from the tap until the copies are purged, and for good where they are kept.
    pub(super) fn leg(&self) -> Leg {
        match (self.phase, self.kind) {
            (Phase::RollBack, _) => Leg::NewToOld,
            (_, Kind::Tap) if !self.is_purged() => Leg::TapToNew,
            _ => Leg::OldToNew,
        }
    }

    /// Refuses a phase whose turn it is not. `true`: it is done, and there is nothing left to do.
    pub(super) fn is_done(&self, phase: Phase) -> Result<bool> {
        let refuse = |text: String| Err(Error::new(ErrorKind::Conflict, text));
        if self.phase == Phase::RollBack && phase != Phase::RollBack {
            return if self.done {
                refuse(format!("{phase}: the migration was rolled back; start it anew"))
            } else {
                refuse(format!("{phase}: the migration is being rolled back; finish that with roll-back"))
            };
        }
        match (phase, self.phase) {
            (Phase::RollBack, _) => Ok(self.is_rolled_back()),
            (Phase::Mirror, Phase::Start | Phase::Mirror) => Ok(false),
            (Phase::Mirror, begun) => {
                refuse(format!("mirror: {begun} was begun already, which ends the mirror; go on from there"))
            }
            (Phase::CutOver, Phase::Start) => refuse("cut-over: mirror comes first".into()),
            (Phase::CutOver, begun) => Ok(begun > Phase::CutOver || (begun == Phase::CutOver && self.done)),
            (Phase::Drain, Phase::Drain) => Ok(false),
            (Phase::Drain, Phase::CutOver) if self.done => Ok(false),
            (Phase::Drain, Phase::CutOver) => refuse("drain: cut-over comes first, and is not done".into()),
            (Phase::Drain, _) => refuse("drain: cut-over comes first".into()),
            (Phase::Start, _) => refuse("start: this migration was started already".into()),
        }
    }

    /// Notes that a phase begins, for the first time or again.
    pub(super) fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.done = false;
        match self.steps.iter_mut().find(|step| step.phase == phase) {
            Some(step) => {
                step.runs += 1;
                step.ended = None;
            }
            None => self.steps.push(PhaseState {
                phase,
                began: Timestamp::now().to_string(),
                ended: None,
                runs: 1,
                totals: Totals::default(),
                purged: None,
            }),
        }
    }

    /// Notes that a run of the phase has ended in order.
    pub(super) fn end(&mut self, phase: Phase, totals: Totals, purged: Option<u64>, done: bool) {
        self.done = done;
        if let Some(step) = self.steps.iter_mut().find(|step| step.phase == phase) {
            step.ended = Some(Timestamp::now().to_string());
            step.totals += totals;
            step.purged = purged.or(step.purged);
        }
    }

    pub(super) fn note_ledger(&mut self, ledger: LedgerState) {
        match self.ledgers.iter_mut().find(|known| known.file == ledger.file) {
            Some(known) => *known = ledger,
            None => self.ledgers.push(ledger),
        }
    }
}
