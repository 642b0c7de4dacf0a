//! The bridges of a migration.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt;
use throughline::{Bus, Error, ErrorKind, Result};
use tokio::time::Instant;

use super::Migration;
use super::compare::blocking;
use super::state::{Back, LedgerState};
use crate::bridge::Bridge;
use crate::filter::{Copied, Filter, Rest};
use crate::ledger;
use crate::map::Map;
use crate::report::{End, Report};

/// How often the source's depth is asked for while it is quiet.
const LOOK: Duration = Duration::from_millis(500);
/// How long each end may take to close.
const CLOSING: Duration = Duration::from_secs(10);
/// A report names so many rejected messages.
const REPORTED: usize = 1000;

/// A bridge of the migration; each has a ledger of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    OldToNew,
    TapToNew,
    NewToOld,
}

impl Leg {
    pub(super) const ALL: [Self; 3] = [Self::OldToNew, Self::TapToNew, Self::NewToOld];

    pub(super) fn file(self) -> &'static str {
        match self {
            Self::OldToNew => "old-to-new.ledger",
            Self::TapToNew => "tap-to-new.ledger",
            Self::NewToOld => "new-to-old.ledger",
        }
    }
}

/// A leg with both its ends.
struct Course {
    leg: Leg,
    from: Bus,
    to: Bus,
    reject: Option<Bus>,
    map: Map,
    filter: Filter,
    rest: Rest,
}

impl Migration {
    /// Until the end of one kind or another.
    pub(super) async fn flow(&mut self, leg: Leg, shutdown: impl Future<Output = ()>) -> Result<Report> {
        let course = self.course(leg).await?;
        let report = self.bridge_of(&course).run(shutdown).await;
        self.ended(course, report).await
    }

    /// Until the source is empty, and nothing comes for so long.
    pub(super) async fn flow_until_quiet(
        &mut self,
        leg: Leg,
        quiet: Duration,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Report> {
        let course = self.course(leg).await?;
        let report = self.until_quiet(&course, quiet, shutdown).await;
        self.ended(course, report).await
    }

    /// The way back; `copies` are not moved: a log keeps them, from a queue they are taken.
    pub(super) async fn flow_back(
        &mut self,
        back: Back,
        map: Map,
        copies: Option<HashSet<Copied>>,
        quiet: Duration,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Report> {
        let (from, to) = (Bus::connect(&back.from).await?, Bus::connect(&back.to).await?);
        let reject = self.reject().await?;
        let filter = copies.map_or_else(Filter::default, |copies| Filter::default().except(copies));
        let course = Course { leg: Leg::NewToOld, from, to, reject, map, filter, rest: Rest::Skip };
        let report = self.until_quiet(&course, quiet, shutdown).await;
        self.ended(course, report).await
    }

    async fn course(&self, leg: Leg) -> Result<Course> {
        let options = &self.state.options;
        let from = match (leg, &options.tap) {
            (Leg::TapToNew, Some(tap)) => tap,
            _ => &options.old,
        };
        let (from, to) = (Bus::connect(from).await?, Bus::connect(&options.new).await?);
        let reject = self.reject().await?;
        let (map, filter) = options.rules()?;
        // What a tap has is a copy, which nobody else wants.
        let rest = if leg == Leg::TapToNew { Rest::Skip } else { Rest::Leave };
        Ok(Course { leg, from, to, reject, map, filter, rest })
    }

    async fn reject(&self) -> Result<Option<Bus>> {
        match &self.state.options.reject {
            Some(reject) => Bus::connect(reject).await.map(Some),
            None => Ok(None),
        }
    }

    fn bridge_of(&self, course: &Course) -> Bridge {
        let mut bridge = Bridge::new(&course.from, &course.to);
        if let Some(adjust) = &self.adjust {
            bridge = adjust(bridge);
        }
        if let Some(reject) = &course.reject {
            bridge = bridge.reject(reject);
        }
        bridge = bridge.map(course.map.clone()).filter(course.filter.clone()).rest(course.rest);
        bridge = bridge.ledger(self.file.ledger(course.leg.file()).0);
        bridge.progress = self.progress.clone();
        bridge.settings.remember = true;
        bridge
    }

    /// Passes until one, after the source was quiet for long enough, finds nothing.
    async fn until_quiet(
        &self,
        course: &Course,
        quiet: Duration,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Report> {
        let shutdown = shutdown.shared();
        let mut whole: Option<Report> = None;
        let mut was_quiet = false;
        loop {
            let pass = self.bridge_of(course).until_empty().run(shutdown.clone()).await?;
            let found = pass.totals.moved + pass.totals.rejected + pass.totals.already_moved;
            let is_empty = matches!(pass.end, End::Empty { .. });
            let mut report = match whole {
                Some(before) => joined(before, pass),
                None => pass,
            };
            if !is_empty || (was_quiet && found == 0) {
                return Ok(report);
            }
            tokio::select! {
                is_quiet = stays_quiet(course, quiet) => was_quiet = is_quiet,
                () = shutdown.clone() => {
                    report.end = End::Stopped;
                    return Ok(report);
                }
            }
            whole = Some(report);
        }
    }

    /// Closes both ends, and notes what the ledger says.
    async fn ended(&mut self, course: Course, report: Result<Report>) -> Result<Report> {
        let mut warnings = Vec::new();
        for bus in [Some(&course.from), Some(&course.to), course.reject.as_ref()].into_iter().flatten() {
            warnings.extend(closed(bus).await.err().map(|error| error.to_string()));
        }
        let mut report = report?;
        report.warnings.extend(warnings);
        let (path, file) = self.file.ledger(course.leg.file());
        let known = blocking(move || ledger::peek(&path, false)).await?;
        let noted = LedgerState::new(file, &known);
        self.update(move |state| state.note_ledger(noted)).await?;
        Ok(report)
    }
}

/// Closes, in time: a broker that blocks its publishers may not answer.
pub(super) async fn closed(bus: &Bus) -> Result<()> {
    tokio::time::timeout(CLOSING, bus.close()).await.unwrap_or_else(|_| {
        let text = format!("did not close within {CLOSING:?}");
        Err(Error::new(ErrorKind::Timeout, text).at("close", bus.address()))
    })
}

/// Waits for so long; `false` as soon as something has come.
async fn stays_quiet(course: &Course, quiet: Duration) -> bool {
    let end = Instant::now() + quiet;
    let mut sleep = pin!(tokio::time::sleep_until(end));
    // What nobody can read counts at a log: the marks of transactions.
    let before = course.from.depth("").await.map(|depth| depth.ready);
    loop {
        tokio::select! {
            () = &mut sleep => return true,
            () = tokio::time::sleep(LOOK) => {}
        }
        // What the filter does not take stays there, and says nothing.
        if course.filter.is_empty() {
            match (&before, course.from.depth("").await) {
                (Ok(before), Ok(now)) if now.ready <= *before => {}
                _ => return false,
            }
        }
    }
}

/// Two passes as one.
fn joined(before: Report, pass: Report) -> Report {
    let mut rejected = before.rejected;
    rejected.extend(pass.rejected);
    rejected.truncate(REPORTED);
    let mut totals = before.totals;
    totals += pass.totals;
    let mut warnings = before.warnings;
    warnings.extend(pass.warnings);
    Report {
        began: before.began,
        took: before.took + pass.took,
        earlier: before.earlier,
        earlier_runs: before.earlier_runs,
        expired: before.expired + pass.expired,
        totals,
        rejected,
        warnings,
        ..pass
    }
}
