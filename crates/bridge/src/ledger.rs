//! What was moved, on disk: so that a bridge that was killed knows what it need not send again.
//!
//! One thread writes, and shares a transaction among all that waits. A commit is not synced: it outlives the process, and
//! a power failure may undo the last of it, which makes duplicates and loses nothing, since the source has the messages
//! still or the sink has them already.

mod file;
mod sent;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use throughline::{Error, ErrorKind, Result, Timestamp};
use tokio::sync::{mpsc, oneshot};

use crate::filter::Copied;
use crate::identity::Identity;
use crate::report::{Rejected, Totals};
use crate::verify::Sent;
use file::{File, RunId};
pub(crate) use sent::Page;

/// So many commands may wait; more than there are tasks to give any.
const QUEUE: usize = 1024;

/// What is noted of one message.
pub(crate) struct Entry {
    pub(crate) identity: Option<Identity>,
    /// Why, if it went to the reject address.
    pub(crate) rejected: Option<Rejected>,
    /// What it is like, if that is to be compared.
    pub(crate) sent: Option<Sent>,
}

/// What the ledger knew when it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// All earlier runs together.
    pub(crate) totals: Totals,
    /// How many there were.
    pub(crate) runs: u64,
    /// How many of them were killed, and how many messages those may have had in flight at most.
    pub(crate) killed: u64,
    pub(crate) killed_in_flight: u64,
}

/// What a shared ledger knows at present. `is_running` says that its latest run is under way, and was not killed.
pub(crate) fn peek(path: &Path, is_running: bool) -> Result<Before> {
    File::peek(path, is_running)
}

/// What a shared ledger remembers of what was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Remembered {
    /// How many were moved, in all.
    pub(crate) moved: u64,
    /// How many of them are remembered.
    pub(crate) count: u64,
    /// The number of the latest.
    pub(crate) last: i64,
}

/// What a shared ledger remembers at present.
pub(crate) fn remembered(path: &Path) -> Result<Remembered> {
    File::remembered(path)
}

/// Some of what a shared ledger remembers, after this number.
pub(crate) fn page(path: &Path, after: i64) -> Result<Page> {
    File::page(path, after)
}

/// What a shared ledger remembers as sent; `None` where it no longer remembers all.
pub(crate) fn all_sent(path: &Path) -> Result<Option<HashSet<Copied>>> {
    File::all_sent(path)
}

enum Command {
    /// Notes messages, and adds to the run's totals; answers how many were noted already.
    Note(Vec<Entry>, Totals, oneshot::Sender<Result<u64>>),
    /// Which of these were moved before.
    Known(Vec<Identity>, oneshot::Sender<Result<Vec<bool>>>),
    /// How many were sent that are to be compared.
    Expected(oneshot::Sender<Result<u64>>),
    /// What became of messages after this number, some at a time.
    Sent(i64, oneshot::Sender<Result<Page>>),
    /// The run is over; with `true` nothing that was moved can come again.
    End(bool, oneshot::Sender<Result<Vec<Rejected>>>),
}

/// An open ledger, and its run.
pub(crate) struct Ledger {
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<()>,
    path: Option<PathBuf>,
    before: Before,
}

/// Gives commands to a ledger.
#[derive(Clone)]
pub(crate) struct Writer(mpsc::Sender<Command>);

impl Ledger {
    /// Opens the ledger of a source and a sink, and begins a run. Without a path it is a temporary file that nobody finds
    /// again.
    pub(crate) async fn open(
        path: Option<&Path>,
        source: String,
        sink: String,
        in_flight: usize,
    ) -> Result<Self> {
        Self::open_as(path, source, sink, in_flight, false).await
    }

    /// The same for a ledger that keeps what was sent when a run ends, the latest million, and that others may read while it
    /// is open. That one bridge has it at a time, the caller sees to.
    pub(crate) async fn open_shared(
        path: Option<&Path>,
        source: String,
        sink: String,
        in_flight: usize,
    ) -> Result<Self> {
        Self::open_as(path, source, sink, in_flight, true).await
    }

    async fn open_as(
        path: Option<&Path>,
        source: String,
        sink: String,
        in_flight: usize,
        shared: bool,
    ) -> Result<Self> {
        let path = path.map(Path::to_owned);
        let (commands, queue) = mpsc::channel(QUEUE);
        let opening = tokio::task::spawn_blocking(move || {
            let (file, run, before) = File::open(path.as_deref(), &source, &sink, in_flight, shared)?;
            let thread = std::thread::Builder::new()
                .name("throughline-ledger".into())
                .spawn(move || work(file, run, queue))
                .map_err(|error| {
                    Error::new(ErrorKind::Internal, "cannot start the ledger's thread").with_source(error)
                })?;
            Ok((thread, path, before))
        });
        let (thread, path, before) = opening.await.map_err(gone)??;
        Ok(Self { commands, thread, path, before })
    }

    pub(crate) fn before(&self) -> Before {
        self.before
    }

    pub(crate) fn writer(&self) -> Writer {
        Writer(self.commands.clone())
    }

    /// Ends the run; gives what was rejected lately. `settled` says that all that was moved has certainly left the source,
    /// so that the ledger need not remember it.
    pub(crate) async fn end(self, settled: bool) -> Result<Vec<Rejected>> {
        let rejected = ask(&self.commands, |answer| Command::End(settled, answer)).await;
        drop(self.commands);
        // It ends with its queue; a writer that is still held keeps it.
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        match joined {
            Ok(Ok(())) => rejected,
            _ => rejected.and(Err(Error::new(ErrorKind::Internal, "the ledger's thread failed"))),
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Writer {
    /// Notes messages and adds to the totals. `Ok` once that is in the file; says how many were noted before.
    pub(crate) async fn note(&self, entries: Vec<Entry>, totals: Totals) -> Result<u64> {
        ask(&self.0, |answer| Command::Note(entries, totals, answer)).await
    }

    /// Which of these were moved before, in their order.
    pub(crate) async fn known(&self, identities: Vec<Identity>) -> Result<Vec<bool>> {
        if identities.is_empty() {
            return Ok(Vec::new());
        }
        ask(&self.0, |answer| Command::Known(identities, answer)).await
    }
}

impl Writer {
    /// How many were sent that are to be compared, by this run and those before it that were killed.
    pub(crate) async fn expected(&self) -> Result<u64> {
        ask(&self.0, Command::Expected).await
    }

    /// What became of messages whose number is above this one, some at a time.
    pub(crate) async fn sent(&self, after: i64) -> Result<Page> {
        ask(&self.0, |answer| Command::Sent(after, answer)).await
    }
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    // That nobody takes it shows as no answer.
    let _ = commands.send(command(answer)).await;
    answered.await.map_err(gone)?
}

fn gone(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "the ledger's thread failed").with_source(error)
}

/// Takes whatever waits into one transaction, until nobody can ask any more.
fn work(mut file: File, run: RunId, mut queue: mpsc::Receiver<Command>) {
    while let Some(first) = queue.blocking_recv() {
        let mut commands = vec![first];
        while commands.len() < QUEUE
            && let Ok(command) = queue.try_recv()
        {
            commands.push(command);
        }
        serve(&mut file, run, commands);
    }
}

/// Tells who asked, once it is known whether the transaction was committed.
type Answer = Box<dyn FnOnce(&Result<()>)>;

/// Answers only once it is committed.
fn serve(file: &mut File, run: RunId, commands: Vec<Command>) {
    let now = Timestamp::now();
    let mut answers: Vec<Answer> = Vec::with_capacity(commands.len());
    let mut begun = file.begin();
    for command in commands {
        match command {
            Command::Note(entries, totals, answer) => {
                let noted = begun.as_mut().map_err(|error| error.clone());
                let noted = noted.and_then(|begun| begun.note(run, &entries, &totals, now));
                answers.push(Box::new(move |committed| {
                    let _ = answer.send(noted.and_then(|count| committed.clone().map(|()| count)));
                }));
            }
            Command::Known(identities, answer) => {
                let known = begun.as_mut().map_err(|error| error.clone());
                let _ = answer.send(known.and_then(|begun| begun.known(&identities)));
            }
            Command::Expected(answer) => {
                let expected = begun.as_mut().map_err(|error| error.clone());
                let _ = answer.send(expected.and_then(|begun| begun.expected()));
            }
            Command::Sent(after, answer) => {
                let sent = begun.as_mut().map_err(|error| error.clone());
                let _ = answer.send(sent.and_then(|begun| begun.sent(after)));
            }
            Command::End(settled, answer) => {
                let ended = begun.as_mut().map_err(|error| error.clone());
                let ended = ended.and_then(|begun| begun.end(run, settled, now));
                answers.push(Box::new(move |committed| {
                    let _ = answer.send(ended.and_then(|rejected| committed.clone().map(|()| rejected)));
                }));
            }
        }
    }
    let committed = begun.and_then(file::Begun::commit);
    for answer in answers {
        answer(&committed);
    }
}

#[cfg(test)]
mod tests;
