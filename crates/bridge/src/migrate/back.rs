//! The way back.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use throughline::{Error, ErrorKind, Result};

use super::compare::blocking;
use super::moving::Leg;
use super::state::{Back, Kind, Phase, map_of};
use super::{Migration, PhaseReport};
use crate::filter::Copied;
use crate::ledger;
use crate::report::End;

/// How a migration is taken back.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RollBack {
    from: Option<String>,
    to: Option<String>,
    map: Option<Vec<String>>,
    purge_copies: bool,
}

impl RollBack {
    /// Takes messages from this address in place of the new one: where that names nothing to consume from, as a topic
    /// without a group.
    pub fn from(mut self, address: impl Into<String>) -> Self {
        self.from = Some(address.into());
        self
    }

    /// Puts messages there in place of the old address: the queue behind a topic.
    pub fn to(mut self, address: impl Into<String>) -> Self {
        self.to = Some(address.into());
        self
    }

    /// A rename of the way back; with any, these take the place of the inverse ones.
    pub fn map(mut self, rule: impl Into<String>) -> Self {
        self.map.get_or_insert_default().push(rule.into());
        self
    }

    /// Deletes the copies that a tap has made, before its cut-over; else they stay.
    pub fn purge_copies(mut self) -> Self {
        self.purge_copies = true;
        self
    }
}

impl Migration {
    /// Takes it back, from any phase: what is at the new place goes to the old one, until that is empty and quiet, or until
    /// `shutdown`: then it is not done, and the same again goes on. The [module's page](super) says what becomes of copies.
    ///
    /// Errors: `Unsupported` where renames cannot be undone, or there are no copies to purge; `Conflict` where copies cannot
    /// be told from other messages, where it was begun between other addresses, or where another process runs a phase;
    /// those of [`Bridge::run`](crate::Bridge::run).
    pub async fn roll_back(
        &mut self,
        how: RollBack,
        quiet: Duration,
        shutdown: impl Future<Output = ()>,
    ) -> Result<PhaseReport> {
        let Some(_lock) = self.turn(Phase::RollBack).await? else { return self.was_done(Phase::RollBack) };
        let state = &self.state;
        let has_copies = state.kind == Kind::Tap && !state.is_purged();
        // Nobody was told to change: the old place has everything.
        if has_copies && !state.has_begun_to_keep() {
            let purged = if how.purge_copies {
                Some(self.purge_copies(Phase::RollBack).await?)
            } else {
                self.begin(Phase::RollBack, |_| ()).await?;
                None
            };
            return self.end(Phase::RollBack, None, purged, true).await;
        }
        if how.purge_copies {
            let text = "roll-back: there are no copies, or producers may be at the new place, so that nothing is purged there";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let back = match &state.back {
            Some(begun) if how == RollBack::default() => begun.clone(),
            _ => Back {
                from: how.from.unwrap_or_else(|| state.options.new.clone()),
                to: how.to.unwrap_or_else(|| state.options.old.clone()),
                map: how.map.unwrap_or_default(),
            },
        };
        if state.back.as_ref().is_some_and(|begun| *begun != back) {
            let text = "roll-back: it was begun with other addresses or rules; go on with those";
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        let map =
            if back.map.is_empty() { map_of(&state.options.map)?.inverse()? } else { map_of(&back.map)? };
        let copies = if has_copies { Some(self.copies_made().await?) } else { None };
        let begun = back.clone();
        self.begin(Phase::RollBack, move |state| state.back = Some(begun)).await?;
        let report = self.flow_back(back, map, copies, quiet, shutdown).await?;
        let is_done = matches!(report.end, End::Empty { .. });
        self.end(Phase::RollBack, Some(report), None, is_done).await
    }

    /// The copies that are at the new place.
    async fn copies_made(&self) -> Result<HashSet<Copied>> {
        let (path, _) = self.file.ledger(Leg::TapToNew.file());
        let copies = move || if path.exists() { ledger::all_sent(&path) } else { Ok(Some(HashSet::new())) };
        blocking(copies).await?.ok_or_else(|| {
            let text = "roll-back: more copies were made than the ledger remembers, so that they cannot be told from what \
                        producers have put at the new place; move that by `throughline bridge`, from a group that begins after the copies";
            Error::new(ErrorKind::Conflict, text)
        })
    }
}
