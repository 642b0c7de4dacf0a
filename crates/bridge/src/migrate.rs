//! A live migration: a workload moves from one broker to another without a stop, in phases that can be seen, resumed and
//! undone. [`Migration`] is the way in; `throughline migrate` is the same as a command.
//!
//! # The phases
//!
//! | Phase | Where producers are | What it does |
//! |---|---|---|
//! | *start* | old | checks both addresses and the plan, writes the state |
//! | [*mirror*](Migration::mirror) | old | copies or forwards, until it is stopped |
//! | [*compare*](Migration::compare) | either | reads both places, and compares; at any time |
//! | [*cut-over*](Migration::cut_over) | they change now | ends the mirror; the new place becomes the workload's home |
//! | [*drain*](Migration::drain) | new | moves what is left at the old place, until it is empty and quiet |
//! | [*roll-back*](Migration::roll_back) | they change back | moves what is at the new place back; from any phase |
//!
//! Each is resumable: run again after Ctrl-C or a kill, it goes on; run again when it is done, it says so. A phase whose turn
//! it is not is refused.
//!
//! # Two kinds of mirror
//!
//! *Forward* is for consumers that move first: they listen at the new place, and the bridge empties the old one into it as
//! messages come. Nothing is there twice. Producers follow later, one by one; the cut-over waits until the old place is empty
//! and quiet.
//!
//! *Tap* is for consumers that stay until all is proved: the bridge takes from an address of its own that gets a copy of
//! everything (another Kafka group, another queue bound to the same exchange or topic), and the old consumers notice nothing. The
//! new place fills with copies of what they handle. At the cut-over it has to be said what becomes of these:
//!
//! - [`Copies::Purge`]: they were a rehearsal. They are deleted *before* producers change, and never if the new place
//!   holds anything else; not on SQS, which goes on deleting for a minute. Then consumers stop at the old place and start at
//!   the new one, producers change, and the drain moves what the old consumers have left.
//! - [`Copies::Keep`]: they are the history of a log. Producers change, and the cut-over waits until the tap is empty and
//!   quiet. What the old consumers have left is among the copies, as far as it came after the tap was made, and is not moved
//!   again: the drain empties the tap.
//!
//! # What is not promised
//!
//! A producer that changes while messages of its key are still at the old place makes the new ones come first. Where the
//! order of a key matters, its producer pauses until the drain is done, or until the cut-over of a forwarding mirror is.
//! Producers that cannot change at once publish to both with [`DualPublisher`](crate::DualPublisher): consumers at the new
//! place then get what is forwarded or drained as well, with the same id.
//!
//! # The way back
//!
//! A bridge from the new place to the old one, with a ledger of its own and the inverse renames; renames that cannot be
//! undone need rules of their own ([`RollBack::map`]). It moves all that is there, also what others have put there. Copies that
//! a tap has made are not moved back: before the cut-over nothing is, and after one that kept them the ledger tells them,
//! by id and content, from what producers have put there; from a queue they are then gone. An old place that is a
//! topic publishes what comes back to all its subscribers; [`RollBack::to`] names the queue alone, where one can be published to.
//! What a killed phase had in flight may be at both places, and then comes back to where it is: the ledger's `killed_in_flight` says
//! how many at most.
//!
//! # The state file
//!
//! One JSON file says where the migration stands, for people and programs: addresses, rules, phases with their times and
//! totals, the last comparison. It is replaced in one step and synced, so that it is whole after a kill or a power failure, and
//! only its owner may read it: addresses may hold credentials. Beside it a folder of the same name with `.d` has the ledgers
//! and two locks: one phase runs at a time, while `compare` and `status` may look on.
//!
//! The bridges' ledgers keep ids and digests of the latest million messages that were moved, some 200 bytes each.
//! So a comparison can tell what is missing from what was not mirrored yet, and a copy from a stranger.

mod back;
mod compare;
mod copies;
mod file;
mod moving;
mod place;
mod start;
mod state;
mod status;

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use throughline::{Bus, Error, ErrorKind, Result};

pub use back::RollBack;
pub use compare::{Agreement, Compared};
pub use state::{Back, Copies, Kind, LedgerState, MigrationOptions, MigrationState, Phase, PhaseState};
pub use status::{MigrationStatus, PlaceStatus};

use crate::bridge::Bridge;
use crate::progress::Progress;
use crate::report::{End, Report, Totals};
use compare::{Comparing, blocking};
use file::{Lock, StateFile};
use moving::Leg;

type Adjust = Arc<dyn Fn(Bridge) -> Bridge + Send + Sync>;

/// A migration, by its state file. The [module's page](self) tells its phases.
///
/// ```
/// use std::time::Duration;
/// use throughline::{Bus, Envelope};
/// use throughline_bridge::{Migration, MigrationOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> throughline::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let state = folder.path().join("orders.json");
/// # let old = Bus::connect("memory:old?queue=orders").await?;
/// # let new = Bus::connect("memory:new?queue=orders").await?;
/// # let publisher = old.publisher().await?;
/// # publisher.publish(Envelope::json("order.placed", &7)?).await?;
/// let options = MigrationOptions::new("memory:old?queue=orders", "memory:new?queue=orders");
/// let mut migration = Migration::create(&state, options).await?;
///
/// // Consumers listen at the new place; what comes is forwarded until somebody stops it.
/// migration.mirror(tokio::time::sleep(Duration::from_secs(1))).await?;
///
/// // Producers have changed: until the old place is empty and nothing comes for a second.
/// let done = migration.cut_over(None, Duration::from_secs(1), std::future::pending()).await?;
/// assert!(done.is_done);
/// let done = migration.drain(Duration::from_secs(1), std::future::pending()).await?;
/// assert!(done.is_done);
/// assert_eq!(new.depth("").await?.ready, 1);
/// # Ok(())
/// # }
/// ```
pub struct Migration {
    file: StateFile,
    state: MigrationState,
    progress: Progress,
    adjust: Option<Adjust>,
}

/// What a run of a phase has come to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PhaseReport {
    /// Which.
    pub phase: Phase,
    /// Whether the phase is done. A mirror never is.
    pub is_done: bool,
    /// It was done before, and nothing was left to do.
    pub was_done: bool,
    /// How many copies were deleted.
    pub purged: Option<u64>,
    /// What was moved; `None` where nothing had to be. Of several passes over a source that was empty for a while, one.
    pub report: Option<Report>,
}

impl Migration {
    /// Starts one: checks the addresses and the plan, and writes the state file. Where a place is of an embedded transport, it
    /// is made, so that a tap misses nothing.
    ///
    /// Errors: `InvalidAddress` and `InvalidMessage` for what cannot be read, and for a tap that would take the old consumers' messages;
    /// `NotFound` for what does not exist; `Unsupported` where the new place refuses something that the old one can hold
    /// and there is no reject address; `Conflict` where the file is of a migration that was not rolled back.
    pub async fn create(path: impl AsRef<Path>, options: MigrationOptions) -> Result<Self> {
        let file = StateFile::new(path.as_ref());
        let is_free = |file: &StateFile| {
            if file.exists() && !file.read()?.is_rolled_back() {
                let text = format!(
                    "{} is of a migration that is under way; name another file, or roll that one back",
                    file.path().display()
                );
                return Err(Error::new(ErrorKind::Conflict, text));
            }
            Ok(())
        };
        is_free(&file)?;
        start::check(&options).await?;
        let state = MigrationState::new(options);
        let (to_write, written) = (file.clone(), state.clone());
        blocking(move || {
            let _lock = to_write.lock_run()?;
            is_free(&to_write)?;
            to_write.forget_ledgers(&Leg::ALL.map(Leg::file))?;
            to_write.write(&written)
        })
        .await?;
        Ok(Self::of(file, state))
    }

    /// Opens one by its state file.
    ///
    /// Errors: `NotFound`; `Conflict` where the file can be read by others, is of a newer version, or is no state of a
    /// migration.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = StateFile::new(path.as_ref());
        let state = file.read()?;
        Ok(Self::of(file, state))
    }

    fn of(file: StateFile, state: MigrationState) -> Self {
        Self { file, state, progress: Progress::default(), adjust: None }
    }

    /// What every bridge of it is given besides, such as [`Bridge::in_flight`] or [`Bridge::rate`]. Not in the state file.
    pub fn bridge(mut self, adjust: impl Fn(Bridge) -> Bridge + Send + Sync + 'static) -> Self {
        self.adjust = Some(Arc::new(adjust));
        self
    }

    /// Where it stands, as of the last call.
    pub fn state(&self) -> &MigrationState {
        &self.state
    }

    /// How far the phase is that runs.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Copies or forwards what comes, until `shutdown`.
    ///
    /// Errors: `Conflict` where its turn is over, or another process runs a phase; those of [`Bridge::run`].
    pub async fn mirror(&mut self, shutdown: impl Future<Output = ()>) -> Result<PhaseReport> {
        let Some(_lock) = self.turn(Phase::Mirror).await? else { return self.was_done(Phase::Mirror) };
        self.begin(Phase::Mirror, |_| ()).await?;
        let report = self.flow(self.state.leg(), shutdown).await?;
        self.end(Phase::Mirror, Some(report), None, false).await
    }

    /// Reads both places and compares them with what the ledger says was moved, also while the mirror runs. No more than
    /// `most` messages are read of each; a place that shows messages only by giving them out is left alone if it is to be
    /// `undisturbed`. The result goes into the state file.
    ///
    /// Errors: `Conflict` before the mirror and after the way back; what connecting fails with. A place that could not
    /// be read is no error, but told.
    pub async fn compare(&mut self, most: NonZeroUsize, undisturbed: bool) -> Result<Compared> {
        self.state = self.read().await?;
        if matches!(self.state.phase, Phase::Start | Phase::RollBack) {
            let text = match self.state.phase {
                Phase::Start => "compare: mirror comes first",
                _ => "compare: the migration is rolled back, and there is nothing to compare",
            };
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        let options = &self.state.options;
        let (old, new) = (Bus::connect(&options.old).await?, Bus::connect(&options.new).await?);
        let has_consumers = self.state.kind == Kind::Forward || self.state.phase > Phase::Mirror;
        let (map, filter) = options.rules()?;
        let compared = Comparing {
            old: &old,
            new: &new,
            map,
            filter,
            ledger: self.file.ledger(self.state.leg().file()).0,
            most,
            may_be_consumed: has_consumers,
            undisturbed,
        };
        let compared = compared.run().await;
        let closed = old.close().await.and(new.close().await);
        let compared = compared?;
        closed?;
        let noted = compared.clone();
        self.update(move |state| state.compared = Some(noted)).await?;
        Ok(compared)
    }

    /// Ends the mirror. What becomes of a tap's copies has to be said; a forwarding mirror has none. Until the source is empty
    /// and nothing comes for as long as `quiet`, or until `shutdown`: then it is not done, and can be run again. Where
    /// copies are purged nothing is waited for.
    ///
    /// Errors: `Unsupported` where `copies` is missing or not to be; `Conflict` where the new place holds something that is
    /// no copy, where its turn has not come, or another process runs a phase; those of [`Bridge::run`].
    pub async fn cut_over(
        &mut self,
        copies: Option<Copies>,
        quiet: Duration,
        shutdown: impl Future<Output = ()>,
    ) -> Result<PhaseReport> {
        let Some(_lock) = self.turn(Phase::CutOver).await? else { return self.was_done(Phase::CutOver) };
        let refuse = |text: &'static str| Err(Error::new(ErrorKind::Unsupported, text));
        match (self.state.kind, copies) {
            (Kind::Forward, Some(_)) => return refuse("cut-over: a mirror that forwards makes no copies"),
            (Kind::Tap, None) => {
                return refuse(
                    "cut-over: say what becomes of the copies at the new place: purge them, and what is left at the old one is \
                     moved; or keep them, and it is not",
                );
            }
            _ if self.state.copies.is_some_and(|begun| Some(begun) != copies) => {
                return refuse(
                    "cut-over: it was begun with the other choice for the copies; go on with that",
                );
            }
            _ => {}
        }
        if copies == Some(Copies::Purge) {
            let purged = self.purge_copies(Phase::CutOver).await?;
            return self.end(Phase::CutOver, None, Some(purged), true).await;
        }
        self.begin(Phase::CutOver, move |state| state.copies = copies).await?;
        let report = self.flow_until_quiet(self.state.leg(), quiet, shutdown).await?;
        let is_done = matches!(report.end, End::Empty { .. });
        self.end(Phase::CutOver, Some(report), None, is_done).await
    }

    /// Moves what is left at the old place (with kept copies: at the tap), until that is empty and nothing comes for as long as
    /// `quiet`, or until `shutdown`: then it is not done. It can always be run again, for what came later.
    ///
    /// Errors: `Conflict` where its turn has not come, or another process runs a phase; those of [`Bridge::run`].
    pub async fn drain(
        &mut self,
        quiet: Duration,
        shutdown: impl Future<Output = ()>,
    ) -> Result<PhaseReport> {
        let Some(_lock) = self.turn(Phase::Drain).await? else { return self.was_done(Phase::Drain) };
        self.begin(Phase::Drain, |_| ()).await?;
        let report = self.flow_until_quiet(self.state.leg(), quiet, shutdown).await?;
        let is_done = matches!(report.end, End::Empty { .. });
        self.end(Phase::Drain, Some(report), None, is_done).await
    }

    /// Takes the lock, and looks whether it is the phase's turn. `None`: it is done.
    async fn turn(&mut self, phase: Phase) -> Result<Option<Lock>> {
        let file = self.file.clone();
        let (state, lock) = blocking(move || {
            let lock = file.lock_run()?;
            Ok((file.read()?, lock))
        })
        .await?;
        self.state = state;
        Ok(if self.state.is_done(phase)? { None } else { Some(lock) })
    }

    /// Notes that the phase begins.
    async fn begin(
        &mut self,
        phase: Phase,
        decide: impl FnOnce(&mut MigrationState) + Send + 'static,
    ) -> Result<()> {
        self.update(move |state| {
            state.begin(phase);
            decide(state);
        })
        .await
    }

    async fn end(
        &mut self,
        phase: Phase,
        report: Option<Report>,
        purged: Option<u64>,
        is_done: bool,
    ) -> Result<PhaseReport> {
        let totals = report.as_ref().map_or(Totals::default(), |report| report.totals);
        self.update(move |state| state.end(phase, totals, purged, is_done)).await?;
        Ok(PhaseReport { phase, is_done, was_done: false, purged, report })
    }

    fn was_done(&self, phase: Phase) -> Result<PhaseReport> {
        Ok(PhaseReport { phase, is_done: true, was_done: true, purged: None, report: None })
    }

    async fn read(&self) -> Result<MigrationState> {
        let file = self.file.clone();
        blocking(move || file.read()).await
    }

    async fn update(&mut self, change: impl FnOnce(&mut MigrationState) + Send + 'static) -> Result<()> {
        let file = self.file.clone();
        self.state = blocking(move || file.update(change)).await?;
        Ok(())
    }
}

impl fmt::Debug for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Migration")
            .field("file", &self.file)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
