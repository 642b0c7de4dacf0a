//! The thread that writes: takes what waits, does it in one transaction, commits, and tells.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use throughline_core::{Error, Result, Retry};
use tokio::sync::oneshot;

use crate::config::Durability;
use crate::connect::{self, LOG_LIMIT};
use crate::error;
use crate::file::Hub;
use crate::store::Store;

/// So much goes into one transaction at most.
const JOBS: usize = 256;
const BYTES: usize = 8 * 1024 * 1024;

/// How often other processes' commits are looked for while somebody waits: the first wait after something happened, and
/// the longest, which each wait without news doubles up to.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How often a consumer's own subscription gets a sign of life from its process, and how soon one that failed is repeated.
const RENEW: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(1));

/// After so many commits the size of the log is looked at.
const LOOK_AT_LOG: u32 = 64;

/// What the thread is told.
pub(crate) enum Message {
    Job(Box<dyn Job>),
    Stop,
}

/// Something to be done in a transaction. The channel of these is bounded by who sends: a publisher has one under way, a
/// consumer one of each kind.
pub(crate) trait Job: Send {
    /// Whether a look alone may answer it.
    fn can_peek(&self) -> bool;
    /// Looks; says whether that was the answer.
    fn peek(&mut self, connection: &Connection) -> Result<bool>;
    /// Does it, and keeps the answer. Run again after a rollback.
    fn run(&mut self, store: &mut Store<'_>) -> Result<()>;
    /// Whether it must be on the disk before it is answered.
    fn is_durable(&self) -> bool;
    /// How many bytes it writes, about.
    fn weight(&self) -> usize;
    /// Tells its answer, or what has failed.
    fn answer(self: Box<Self>, outcome: Result<()>);
}

type Peek<T> = Box<dyn FnMut(&Connection) -> rusqlite::Result<Option<T>> + Send>;

/// A [`Job`] made of closures.
pub(crate) struct Work<T, F> {
    run: F,
    peek: Option<Peek<T>>,
    result: Option<T>,
    durable: bool,
    weight: usize,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, F> Work<T, F> {
    pub(crate) fn new(run: F, answer: oneshot::Sender<Result<T>>) -> Self {
        Self { run, peek: None, result: None, durable: true, weight: 0, answer }
    }

    pub(crate) fn light(self) -> Self {
        Self { durable: false, ..self }
    }

    pub(crate) fn weighing(self, weight: usize) -> Self {
        Self { weight, ..self }
    }

    pub(crate) fn peeking(
        self,
        peek: impl FnMut(&Connection) -> rusqlite::Result<Option<T>> + Send + 'static,
    ) -> Self {
        Self { peek: Some(Box::new(peek)), ..self }
    }
}

impl<T: Send, F: FnMut(&mut Store<'_>) -> Result<T> + Send> Job for Work<T, F> {
    fn can_peek(&self) -> bool {
        self.peek.is_some()
    }

    fn peek(&mut self, connection: &Connection) -> Result<bool> {
        if let Some(peek) = &mut self.peek {
            self.result = peek(connection).map_err(error::sqlite)?;
        }
        Ok(self.result.is_some())
    }

    fn run(&mut self, store: &mut Store<'_>) -> Result<()> {
        self.result = Some((self.run)(store)?);
        Ok(())
    }

    fn is_durable(&self) -> bool {
        self.durable
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn answer(self: Box<Self>, outcome: Result<()>) {
        let Self { result, answer, .. } = *self;
        // Who asked may be gone.
        let _ = answer.send(outcome.and_then(|()| result.ok_or_else(error::unanswered)));
    }
}

/// What became of an attempt at a transaction.
enum Attempt {
    Committed,
    /// Nothing was done, and others kept the lock all the time.
    Busy,
    Failed(Error),
}

pub(crate) struct Writer {
    connection: Connection,
    path: PathBuf,
    durability: Durability,
    /// What the connection is set to at present.
    synced: bool,
    messages: Receiver<Message>,
    hub: Arc<Hub>,
    stopped: bool,
    /// Deleted queues may have left something.
    sweeping: bool,
    /// Changes with each commit of others.
    data_version: i64,
    poll: Duration,
    polled: Instant,
    renew_at: Instant,
    commits: u32,
}

impl Writer {
    pub(crate) fn new(
        connection: Connection,
        path: PathBuf,
        durability: Durability,
        messages: Receiver<Message>,
        hub: Arc<Hub>,
    ) -> Self {
        let now = Instant::now();
        Self {
            connection,
            path,
            durability,
            synced: true,
            messages,
            hub,
            stopped: false,
            sweeping: true,
            data_version: 0,
            poll: POLL.0,
            polled: now,
            renew_at: now + RENEW.0,
            commits: 0,
        }
    }

    pub(crate) fn run(mut self) {
        while !self.stopped {
            let jobs = self.next();
            if !jobs.is_empty() {
                self.poll = POLL.0;
                self.execute(jobs);
            }
            self.look_after_own();
            self.look_for_others();
            if self.sweeping && !self.stopped {
                self.sweep();
            }
        }
    }

    /// What waits, or nothing once it is time for something else.
    fn next(&mut self) -> Vec<Box<dyn Job>> {
        let own = !self.hub.own().is_empty();
        let timeouts = [
            self.sweeping.then_some(Duration::ZERO),
            self.hub.somebody_waits().then_some(self.poll),
            own.then(|| self.renew_at.saturating_duration_since(Instant::now())),
        ];
        let first = match timeouts.into_iter().flatten().min() {
            Some(timeout) => self.messages.recv_timeout(timeout),
            None => self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let mut jobs = Vec::new();
        let mut weight = 0;
        let mut message = match first {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
        };
        while let Some(next) = message {
            match next {
                Message::Job(job) => {
                    weight += job.weight();
                    jobs.push(job);
                }
                Message::Stop => {
                    self.stopped = true;
                    break;
                }
            }
            message = if jobs.len() < JOBS && weight < BYTES { self.messages.try_recv().ok() } else { None };
        }
        jobs
    }

    fn execute(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        // A consumer that finds nothing takes no lock.
        if jobs.iter().all(|job| job.can_peek()) {
            let mut left = Vec::new();
            for mut job in jobs {
                match job.peek(&self.connection) {
                    Ok(true) => job.answer(Ok(())),
                    Ok(false) => left.push(job),
                    Err(error) => job.answer(Err(error)),
                }
            }
            jobs = left;
        }
        if jobs.is_empty() {
            return;
        }
        match self.transact(&mut jobs) {
            Ok(()) => answer(jobs, &Ok(())),
            Err(error) if jobs.len() == 1 || error.retry() == Retry::Uncertain => answer(jobs, &Err(error)),
            // One of them failed all: each for itself.
            Err(_) => {
                for job in jobs {
                    let mut alone = vec![job];
                    let outcome = self.transact(&mut alone);
                    answer(alone, &outcome);
                }
            }
        }
    }

    /// Does jobs in one transaction; when others are in the way, again and again.
    fn transact(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<()> {
        self.set_durable(jobs.iter().any(|job| job.is_durable()))?;
        loop {
            match self.attempt(|store| jobs.iter_mut().try_for_each(|job| job.run(store))) {
                Attempt::Committed => return Ok(()),
                Attempt::Failed(error) => return Err(error),
                Attempt::Busy if self.hub.is_closing() => return Err(error::still_busy()),
                Attempt::Busy => {
                    tracing::warn!(file = %self.path.display(), "another process keeps the database locked; waiting");
                }
            }
        }
    }

    fn attempt(&mut self, work: impl FnOnce(&mut Store<'_>) -> Result<()>) -> Attempt {
        // Prepared once, as all others: for a message alone, parsing these would be a good part of its cost.
        let run = |sql: &str| self.connection.prepare_cached(sql)?.execute([]).map(drop);
        if let Err(error) = run("BEGIN IMMEDIATE") {
            return if error::is_busy(&error) {
                Attempt::Busy
            } else {
                Attempt::Failed(error::sqlite(error))
            };
        }
        let mut store = Store::new(&self.connection, &self.path);
        let done = work(&mut store).and_then(|()| store.flush());
        let (woken, deleted) = (std::mem::take(&mut store.woken), std::mem::take(&mut store.deleted));
        let committed = done.and_then(|()| run("COMMIT").map_err(error::commit));
        if let Err(error) = committed {
            // Where SQLite has rolled back by itself there is nothing left to do.
            if !self.connection.is_autocommit() {
                let _ = run("ROLLBACK");
            }
            return Attempt::Failed(error);
        }
        self.sweeping |= !deleted.is_empty();
        for queue in deleted {
            self.hub.wake_all(queue);
        }
        for queue in woken {
            self.hub.wake(queue);
        }
        self.commits += 1;
        if self.commits >= LOOK_AT_LOG {
            self.commits = 0;
            self.bound_log();
        }
        Attempt::Committed
    }

    /// Leases may be lost in a power failure, and are not waited for.
    fn set_durable(&mut self, durable: bool) -> Result<()> {
        if self.durability == Durability::Normal || self.synced == durable {
            return Ok(());
        }
        let level = if durable { self.durability } else { Durability::Normal };
        self.connection.pragma_update(None, "synchronous", level.as_str()).map_err(error::sqlite)?;
        self.synced = durable;
        Ok(())
    }

    /// Cuts a log that a reader has kept from being copied, once that reader is gone.
    fn bound_log(&mut self) {
        if log_size(&self.path) > LOG_LIMIT {
            // Without waiting: it would wait for that reader, and keep all others from writing meanwhile.
            let cut = self.connection.busy_timeout(Duration::ZERO).and_then(|()| {
                self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
            });
            tracing::debug!(file = %self.path.display(), ?cut, "cut the write-ahead log");
            if let Err(error) = connect::patient(&mut self.connection) {
                tracing::warn!(%error, "what is locked is no longer waited for");
            }
        }
    }

    /// Tells waiting consumers when another process has committed something.
    fn look_for_others(&mut self) {
        if !self.hub.somebody_waits() || self.polled.elapsed() < self.poll {
            return;
        }
        self.polled = Instant::now();
        let version = self.connection.prepare_cached("PRAGMA data_version");
        match version.and_then(|mut statement| statement.query_row([], |row| row.get(0))) {
            Ok(version) if version != self.data_version => {
                self.data_version = version;
                self.poll = POLL.0;
                self.hub.wake_each();
            }
            // What fails here fails, and is told, where it is asked for.
            Ok(_) | Err(_) => self.poll = (self.poll * 2).min(POLL.1),
        }
    }

    /// Keeps the subscriptions of our own consumers alive.
    fn look_after_own(&mut self) {
        if self.renew_at > Instant::now() {
            return;
        }
        let own = self.hub.own();
        let renewed = if own.is_empty() {
            Attempt::Committed
        } else {
            self.attempt(|store| own.iter().try_for_each(|id| store.keep_alive(*id)))
        };
        if let Attempt::Failed(error) = &renewed {
            tracing::warn!(%error, "a consumer's own subscription could not be kept alive; trying again");
        }
        let is_done = matches!(renewed, Attempt::Committed);
        self.renew_at = Instant::now() + if is_done { RENEW.0 } else { RENEW.1 };
    }

    /// Deletes a piece of what deleted queues have left.
    fn sweep(&mut self) {
        let mut more = false;
        let attempt = self.attempt(|store| {
            more = store.sweep()?;
            Ok(())
        });
        match attempt {
            Attempt::Committed => self.sweeping = more,
            Attempt::Busy => {}
            Attempt::Failed(error) => {
                self.sweeping = false;
                tracing::warn!(%error, "messages of a deleted queue are left; they go when the file is opened again");
            }
        }
    }
}

fn answer(jobs: Vec<Box<dyn Job>>, outcome: &Result<()>) {
    for job in jobs {
        job.answer(outcome.clone());
    }
}

/// The size of a database's write-ahead log, in bytes.
pub(crate) fn log_size(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0, |log| log.len())
}
