//! A database as this process has it open: one connection that writes, on a thread of its own, whoever uses the file; and
//! who is to be told of what was written.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use rusqlite::Connection;
use throughline_core::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use crate::config::Durability;
use crate::connect;
use crate::error;
use crate::store::Store;
use crate::writer::{Job, Message, Work, Writer};

/// The files that are open in this process. SQLite's locks are the process's, and its group commit is this thread's: all
/// transports of one file share it.
static FILES: Mutex<Option<HashMap<PathBuf, Entry>>> = Mutex::new(None);

struct Entry {
    file: Weak<File>,
    /// How many transports have it open.
    users: usize,
}

/// An open database.
pub(crate) struct File {
    path: PathBuf,
    durability: Durability,
    writer: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    hub: Arc<Hub>,
}

/// Tells consumers of what they may be waiting for.
#[derive(Default)]
pub(crate) struct Hub {
    queues: Mutex<HashMap<i64, Weak<Notify>>>,
    /// Subscriptions of consumers of this process, that end with them.
    own: Mutex<Vec<i64>>,
    waiting: AtomicUsize,
    /// The last user leaves: what cannot be written at once is given up.
    closing: AtomicBool,
}

/// Somebody waits for messages: what other processes write is looked for.
pub(crate) struct Waiting<'a>(&'a Hub);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl File {
    /// Opens a file for one more user, as [`close`](Self::close) is for one. Waits for the disk.
    pub(crate) fn open(path: &Path, durability: Durability, create: bool) -> Result<Arc<Self>> {
        // Held while it opens: whoever wants the same file waits for the same.
        let mut files = lock(&FILES);
        let files = files.get_or_insert_default();
        if let Some(entry) = files.get_mut(path)
            && let Some(file) = entry.file.upgrade()
        {
            if file.durability != durability {
                let text = format!(
                    "the file is open in this process with synchronous={}; one process can have it in one way only",
                    file.durability.as_str()
                );
                return Err(Error::new(ErrorKind::Conflict, text));
            }
            entry.users += 1;
            return Ok(file);
        }
        let connection = connect::writer(path, durability, create)?;
        let hub = Arc::<Hub>::default();
        let (writer, messages) = mpsc::channel();
        let thread = Writer::new(connection, path.to_owned(), durability, messages, hub.clone());
        let thread = std::thread::Builder::new().name("throughline-sqlite".into()).spawn(|| thread.run());
        let thread = thread.map_err(|error| {
            Error::new(ErrorKind::Internal, "cannot start the thread that writes").with_source(error)
        })?;
        let thread = Mutex::new(Some(thread));
        let file = Arc::new(Self { path: path.to_owned(), durability, writer, thread, hub });
        files.insert(path.to_owned(), Entry { file: Arc::downgrade(&file), users: 1 });
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Whether this was the last user; then the next one opens it anew.
    fn leave(&self) -> bool {
        let mut files = lock(&FILES);
        let files = files.get_or_insert_default();
        let Some(entry) = files.get_mut(&self.path) else { return false };
        if !std::ptr::eq(entry.file.as_ptr(), self) {
            return false;
        }
        entry.users = entry.users.saturating_sub(1);
        let last = entry.users == 0;
        if last {
            files.remove(&self.path);
        }
        last
    }

    /// Ends one use of it; with the last, what was asked for is written, and the thread ends.
    pub(crate) async fn close(self: Arc<Self>) -> Result<()> {
        let closing = tokio::task::spawn_blocking(move || {
            if !self.leave() {
                return true;
            }
            self.hub.closing.store(true, Ordering::Release);
            let _ = self.writer.send(Message::Stop);
            let thread = lock(&self.thread).take();
            thread.is_none_or(|thread| thread.join().is_ok())
        });
        if matches!(closing.await, Ok(true)) { Ok(()) } else { Err(error::unanswered()) }
    }

    /// Ends one use of it without waiting: the thread ends when nobody has the file any more.
    pub(crate) fn abandon(&self) {
        self.leave();
    }

    /// Does something in a transaction, together with whatever else waits, and answers once it is committed. It may be run
    /// more than once: what the first run did is rolled back before.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Store<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(|answer| Work::new(work, answer)).await
    }

    /// [`write`](Self::write), of so many bytes.
    pub(crate) async fn write_bytes<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnMut(&mut Store<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(|answer| Work::new(work, answer).weighing(bytes)).await
    }

    /// [`write`](Self::write), for settlements: a lost one is a message that comes again.
    pub(crate) async fn settle<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Store<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match self.durability {
            Durability::Extra => self.write(work).await,
            Durability::Full | Durability::Normal => self.write_lightly(work).await,
        }
    }

    /// [`write`](Self::write), for what may be lost in a power failure: leases.
    pub(crate) async fn write_lightly<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Store<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(|answer| Work::new(work, answer).light()).await
    }

    /// [`write_lightly`](Self::write_lightly), unless a look tells that there is nothing to write.
    pub(crate) async fn write_unless<T: Send + 'static>(
        &self,
        peek: impl FnMut(&Connection) -> rusqlite::Result<Option<T>> + Send + 'static,
        work: impl FnMut(&mut Store<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(|answer| Work::new(work, answer).light().peeking(peek)).await
    }

    async fn submit<T, J: Job + 'static>(
        &self,
        job: impl FnOnce(tokio::sync::oneshot::Sender<Result<T>>) -> J,
    ) -> Result<T> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.writer.send(Message::Job(Box::new(job(answer)))).map_err(|_| error::closed())?;
        answered.await.unwrap_or_else(|_| Err(error::unanswered()))
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Looks into a database, on a connection of its own: readers and the writer do not wait for each other.
pub(crate) async fn read<T: Send + 'static>(
    path: PathBuf,
    look: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
) -> Result<T> {
    let looking = tokio::task::spawn_blocking(move || look(&connect::reader(&path)?));
    looking.await.unwrap_or_else(|error| {
        Err(Error::new(ErrorKind::Internal, "a look into the database has failed").with_source(error))
    })
}

impl Hub {
    /// What tells of a queue.
    pub(crate) fn of(&self, queue: i64) -> Arc<Notify> {
        let mut queues = lock(&self.queues);
        if let Some(notify) = queues.get(&queue).and_then(Weak::upgrade) {
            return notify;
        }
        queues.retain(|_, notify| notify.strong_count() > 0);
        let notify = Arc::new(Notify::new());
        queues.insert(queue, Arc::downgrade(&notify));
        notify
    }

    /// Something in a queue may be ready: one consumer looks, and passes on what it leaves.
    pub(crate) fn wake(&self, queue: i64) {
        if let Some(notify) = lock(&self.queues).get(&queue).and_then(Weak::upgrade) {
            notify.notify_one();
        }
    }

    /// A queue is gone: all its consumers look.
    pub(crate) fn wake_all(&self, queue: i64) {
        if let Some(notify) = lock(&self.queues).get(&queue).and_then(Weak::upgrade) {
            notify.notify_waiters();
            notify.notify_one();
        }
    }

    /// Another process has written something: somebody of every queue looks.
    pub(crate) fn wake_each(&self) {
        for notify in lock(&self.queues).values().filter_map(Weak::upgrade) {
            notify.notify_one();
        }
    }

    /// Says that somebody waits, until the answer is dropped.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(self)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(crate) fn somebody_waits(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Keeps a consumer's own subscription alive.
    pub(crate) fn keep_alive(&self, queue: i64) {
        lock(&self.own).push(queue);
    }

    pub(crate) fn let_go(&self, queue: i64) {
        lock(&self.own).retain(|own| *own != queue);
    }

    pub(crate) fn own(&self) -> Vec<i64> {
        lock(&self.own).clone()
    }
}
