//! The copies that a tap has made, which are deleted only where nothing else is.

use std::num::NonZeroUsize;

use throughline::{Bus, Error, ErrorKind, Result};

use super::Migration;
use super::compare::only_copies;
use super::moving::Leg;
use super::state::{Copies, Phase};

/// So many messages are looked at before copies are purged: as many as the ledger remembers.
const LOOKED_AT: NonZeroUsize = match NonZeroUsize::new(1_000_000) {
    Some(count) => count,
    None => NonZeroUsize::MIN,
};

impl Migration {
    /// Begins this phase, and deletes the copies. What is not to be deleted is found before anything is begun.
    pub(super) async fn purge_copies(&mut self, phase: Phase) -> Result<u64> {
        let new = Bus::connect(&self.state.options.new).await?;
        let purged = async {
            let has_any = self.has_copies_only(&new).await?;
            self.begin(phase, move |state| {
                if phase == Phase::CutOver {
                    state.copies = Some(Copies::Purge);
                }
            })
            .await?;
            if has_any { new.purge("").await } else { Ok(0) }
        };
        let purged = purged.await;
        let closed = new.close().await;
        let purged = purged?;
        closed.map(|()| purged)
    }

    /// Whether there are any. Refuses unless all that the new place holds are copies of the tap's.
    async fn has_copies_only(&self, new: &Bus) -> Result<bool> {
        let refuse = |why: String| {
            let text = format!("the copies are not purged: {why}");
            Err(Error::new(ErrorKind::Conflict, text).at("purge", new.address()))
        };
        let depth = new.depth("").await?;
        if let Some(held) = depth.unsettled.filter(|held| *held > 0) {
            return refuse(format!("consumers hold {held} messages there; stop them first"));
        }
        if let Some(delayed) = depth.delayed.filter(|delayed| *delayed > 0) {
            return refuse(format!("{delayed} messages wait there for a delay to pass"));
        }
        match only_copies(new, &self.file.ledger(Leg::TapToNew.file()).0, LOOKED_AT).await? {
            Ok(read) if new.depth("").await?.ready <= read => Ok(read > 0),
            Ok(_) => refuse("messages arrive there; producers change after the cut-over".into()),
            Err(why) => refuse(format!(
                "{why}; after a kill, mirror once more. What is no copy has to be moved away first"
            )),
        }
    }
}
