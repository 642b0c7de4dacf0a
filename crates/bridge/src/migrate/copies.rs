//! The copies that a tap has made, which are deleted only where nothing else is.

use std::num::NonZeroUsize;
use std::time::Duration;

use throughline::{Bus, Error, ErrorKind, Result};
use tokio::time::Instant;

use super::Migration;
use super::compare::only_copies;
use super::moving::{Leg, closed};
use super::state::{Copies, Phase};

/// Where a purge is not over when it says so.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_PurgeQueue.html>
const NOT_AT_ONCE: [&str; 3] = ["sqs", "sns", "eventbridge"];
/// How long what was read may take to be ready again, where it was taken for it.
const GIVEN_BACK: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

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
            let copies = self.only_copies_at(&new).await?;
            self.begin(phase, move |state| {
                if phase == Phase::CutOver {
                    state.copies = Some(Copies::Purge);
                }
            })
            .await?;
            if copies == 0 {
                return Ok(0);
            }
            let purged = new.purge("").await?;
            if purged != copies {
                let text = format!(
                    "{copies} copies were there, and {purged} messages were deleted; look what is there, and try again"
                );
                return Err(Error::new(ErrorKind::Conflict, text).at("purge", new.address()));
            }
            Ok(purged)
        };
        let purged = purged.await;
        let closed = closed(&new).await;
        let purged = purged?;
        closed.map(|()| purged)
    }

    /// How many there are. Refuses unless all that the new place holds are copies of the tap's.
    async fn only_copies_at(&self, new: &Bus) -> Result<u64> {
        let refuse = |why: String| {
            let text = format!("the copies are not purged: {why}");
            Err(Error::new(ErrorKind::Conflict, text).at("purge", new.address()))
        };
        if NOT_AT_ONCE.contains(&new.address().scheme()) {
            return refuse(
                "SQS goes on deleting for up to 60 s after it was asked, also what comes meanwhile; let a consumer take the \
                 copies, or keep them"
                    .into(),
            );
        }
        let depth = new.depth("").await?;
        if let Some(held) = depth.unsettled.filter(|held| *held > 0) {
            return refuse(format!("consumers hold {held} messages there; stop them first"));
        }
        if let Some(delayed) = depth.delayed.filter(|delayed| *delayed > 0) {
            return refuse(format!("{delayed} messages wait there for a delay to pass"));
        }
        match only_copies(new, &self.file.ledger(Leg::TapToNew.file()).0, LOOKED_AT).await? {
            Ok(read) => match settled_at(new, read).await? {
                ready if ready == read => Ok(read),
                ready if ready > read => {
                    refuse("messages arrive there; producers change after the cut-over".into())
                }
                ready => refuse(format!(
                    "{read} were read, and {ready} are ready: somebody consumes there; stop that first"
                )),
            },
            Err(why) => refuse(format!(
                "{why}; after a kill, mirror once more. What is no copy has to be moved away first"
            )),
        }
    }
}

/// How many messages are ready: as soon as there are so many, or when the time to give them back is over.
async fn settled_at(bus: &Bus, wanted: u64) -> Result<u64> {
    let end = Instant::now() + GIVEN_BACK;
    loop {
        let ready = bus.depth("").await?.ready;
        if ready >= wanted || Instant::now() >= end {
            return Ok(ready);
        }
        tokio::time::sleep(LOOK).await;
    }
}
