//! The thread that a comparison's file belongs to, and reading a side into it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use throughline::capabilities::Browse;
use throughline::{Bus, Envelope, Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::row::{Expiry, Row};
use super::store::{Found, Place, Store};
use super::{Reading, Side};

/// So many pieces wait to be put on disk.
const WAITING: usize = 4;

enum Command {
    Envelopes(Place, Vec<Arc<Envelope>>),
    Rows(Place, Vec<(i64, Row)>),
    Compare(usize, oneshot::Sender<Found>),
}

/// Two sides that are being put beside each other. Dropped, it is given up.
pub(crate) struct Pairing {
    commands: mpsc::Sender<Command>,
    working: JoinHandle<Result<()>>,
}

impl Pairing {
    /// Without a file it is a temporary one.
    pub(crate) fn open(file: Option<PathBuf>, expiry: Expiry) -> Self {
        let (commands, queue) = mpsc::channel(WAITING);
        let working = tokio::task::spawn_blocking(move || work(Store::open(file.as_deref(), expiry)?, queue));
        Self { commands, working }
    }

    /// Reads one side, in order: of each message what this makes of it, if anything. Reads no more than so many.
    pub(crate) async fn read(
        &mut self,
        place: Place,
        bus: &Bus,
        at_most: NonZeroUsize,
        expected: impl Fn(Arc<Envelope>) -> Option<Arc<Envelope>>,
    ) -> Result<Side> {
        let address = bus.address().to_string();
        let disturbed = match bus.capabilities().browse {
            Browse::Native => false,
            Browse::Disturbing => true,
            Browse::No => {
                let transport = bus.capabilities().transport;
                let why = format!("{transport} cannot show messages without consuming them");
                return Ok(Side { address, read: 0, evidence: Reading::Nothing { why } });
            }
        };
        // One more, to know whether there are more.
        let mut browsing = bus.browse_pieces("", at_most.saturating_add(1))?;
        let (mut shown, mut read) = (0, 0);
        while let Some(piece) = browsing.next().await? {
            let room = at_most.get().saturating_sub(shown);
            shown += piece.len();
            let envelopes = piece.into_iter().take(room).map(|delivery| delivery.envelope);
            let envelopes: Vec<_> = envelopes.filter_map(&expected).collect();
            read += envelopes.len() as u64;
            self.send(Command::Envelopes(place, envelopes)).await?;
        }
        let cut = shown > at_most.get();
        Ok(Side { address, read, evidence: Reading::ReadBack { disturbed, cut } })
    }

    /// Adds messages to one side, each at a place of its own there.
    pub(crate) async fn add(&mut self, place: Place, rows: Vec<(i64, Row)>) -> Result<()> {
        self.send(Command::Rows(place, rows)).await
    }

    /// Compares the two, with so many examples of each difference.
    pub(crate) async fn compare(mut self, examples: usize) -> Result<Found> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Compare(examples, answer)).await?;
        let Ok(found) = answered.await else { return Err(self.why().await) };
        let Self { commands, working } = self;
        drop(commands);
        match working.await {
            Ok(worked) => worked.map(|()| found),
            Err(error) => Err(failed().with_source(error)),
        }
    }

    async fn send(&mut self, command: Command) -> Result<()> {
        match self.commands.send(command).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.why().await),
        }
    }

    /// Why it takes no more.
    async fn why(&mut self) -> Error {
        match (&mut self.working).await {
            Ok(worked) => worked.err().unwrap_or_else(failed),
            Err(error) => failed().with_source(error),
        }
    }
}

fn failed() -> Error {
    Error::new(ErrorKind::Internal, "the comparison's thread failed")
}

/// Until nobody asks any more.
fn work(mut store: Store, mut queue: mpsc::Receiver<Command>) -> Result<()> {
    while let Some(command) = queue.blocking_recv() {
        match command {
            Command::Envelopes(place, envelopes) => store.add(place, &envelopes)?,
            Command::Rows(place, rows) => store.add_rows(place, rows)?,
            Command::Compare(examples, answer) => {
                let found = store.compare(examples)?;
                // That nobody waits for it any more is no failure.
                let _ = answer.send(found);
            }
        }
    }
    Ok(())
}
