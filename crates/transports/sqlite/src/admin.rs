//! The transport: opening, creating, deleting, looking.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rusqlite::Connection;
use throughline_core::capabilities::{self, Capabilities};
use throughline_core::driver::{self, Depth, Pieces, Transport};
use throughline_core::{
    Address, ConsumeOptions, DiagnoseOptions, Diagnosis, Error, ErrorKind, Result, Timestamp,
};

use crate::config::{self, Config, Durability, Place};
use crate::consumer::SqliteConsumer;
use crate::diagnose;
use crate::error;
use crate::file::{self, File};
use crate::publisher::SqlitePublisher;
use crate::store::{self, Queue, Store};
use crate::{claim, connect};

/// The SQLite transport: the files that it was asked for.
pub struct Sqlite {
    files: Mutex<HashMap<PathBuf, Arc<File>>>,
}

impl Sqlite {
    /// Looks at the file that an address names, if it is there; one that is not is made on its first use.
    ///
    /// Errors: `InvalidAddress`; `NotFound` where its folder is not there; `PermissionDenied`, `Conflict` (not a database, damaged, another application's, made by a newer version),
    /// `Unsupported` (on a network's file system).
    pub async fn open(address: &Address) -> Result<Arc<dyn Transport>> {
        let path = config::file(address)?;
        if path.exists() {
            // Only a look: whoever only looks changes nothing.
            let looking = tokio::task::spawn_blocking(move || connect::look(&path).map(drop));
            looking.await.map_err(|_| error::unanswered())??;
        }
        Ok(Arc::new(Self { files: Mutex::default() }))
    }

    fn files(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<File>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of an address, open for writing.
    async fn file(&self, address: &Address, create: bool) -> Result<Arc<File>> {
        let (path, durability) = (config::file(address)?, Durability::of(address)?);
        if let Some(file) = self.files().get(&path) {
            return Ok(file.clone());
        }
        let opening = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || File::open(&path, durability, create))
        };
        let opened = opening.await.map_err(|_| error::unanswered())??;
        let mut files = self.files();
        if let Some(file) = files.get(&path) {
            // Somebody was quicker; one use is enough.
            opened.abandon();
            return Ok(file.clone());
        }
        files.insert(path, opened.clone());
        Ok(opened)
    }

    /// Looks at the queue that an address consumes from, without creating anything.
    async fn look<T: Send + 'static>(
        &self,
        address: &Address,
        look: impl FnOnce(&Connection, Queue) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (path, config) = (config::file(address)?, Config::new(address)?);
        file::read(path.clone(), move |connection| look(connection, existing(connection, &config, &path)?))
            .await
    }
}

/// The queue that an address consumes from.
pub(crate) fn existing(connection: &Connection, config: &Config, path: &std::path::Path) -> Result<Queue> {
    let (topic, name, what) = match &config.place {
        Place::Queue(name) => ("", name, "queue"),
        Place::Topic { topic, subscription: Some(name) } => (topic.as_str(), name, "subscription"),
        Place::Topic { subscription: None, .. } => return Err(no_subscription()),
    };
    let found = store::find(connection, topic, name).map_err(error::sqlite)?;
    found.ok_or_else(|| error::missing(what, name, path))
}

pub(crate) fn no_subscription() -> Error {
    Error::new(ErrorKind::InvalidAddress, "names no subscription; add &queue=NAME")
}

/// How many messages a queue holds, by what they wait for.
pub(crate) fn depth(connection: &Connection, queue: i64) -> rusqlite::Result<Depth> {
    let count = |sql: &str, parameters: &[i64]| {
        let parameters = rusqlite::params_from_iter(parameters.iter().copied());
        let count: i64 = connection.prepare_cached(sql)?.query_row(parameters, |row| row.get(0))?;
        Ok::<_, rusqlite::Error>(u64::try_from(count).unwrap_or(0))
    };
    let now = Timestamp::now().as_millis();
    const READY: &str = "SELECT count(*) FROM throughline_line WHERE queue = ?1 AND state = 0";
    const BEHIND: &str = "SELECT count(*) FROM throughline_line WHERE queue = ?1 AND state = 1";
    const DUE: &str = "SELECT count(*) FROM throughline_line WHERE queue = ?1 AND state >= 2 AND due <= ?2";
    const LEASED: &str =
        "SELECT count(*) FROM throughline_line WHERE queue = ?1 AND state >= 2 AND due > ?2 AND state = 2";
    const LATER: &str =
        "SELECT count(*) FROM throughline_line WHERE queue = ?1 AND state >= 2 AND due > ?2 AND state > 2";
    Ok(Depth {
        // What is due is ready to whoever asks next.
        ready: count(READY, &[queue])? + count(BEHIND, &[queue])? + count(DUE, &[queue, now])?,
        unsettled: Some(count(LEASED, &[queue, now])?),
        delayed: Some(count(LATER, &[queue, now])?),
    })
}

/// Creates what an address names, and says what was made; what is there already is left as it is, if it is the same.
fn create(store: &mut Store<'_>, config: &Config) -> Result<Vec<String>> {
    let mut wanted = match &config.place {
        Place::Queue(name) => vec![("", name.as_str(), format!("queue '{name}'"))],
        Place::Topic { topic, subscription } => {
            let mut wanted = vec![(topic.as_str(), "", format!("topic '{topic}'"))];
            let of = |name| format!("subscription '{name}' of topic '{topic}'");
            wanted.extend(subscription.iter().map(|name| (topic.as_str(), name.as_str(), of(name))));
            wanted
        }
    };
    let dead_letter = config.dead_letter.iter();
    wanted.extend(dead_letter.map(|name| ("", name.as_str(), format!("dead-letter queue '{name}'"))));
    let mut made = Vec::new();
    for (topic, name, what) in wanted {
        match store.find(topic, name)? {
            None => {
                store.make(topic, name, config.max_length)?;
                made.push(what);
            }
            Some(queue) if queue.max_length == config.max_length || name.is_empty() => {}
            Some(queue) => {
                let shown =
                    |max: Option<u32>| max.map_or("no max_length".to_owned(), |n| format!("max_length={n}"));
                let text = format!(
                    "{what} exists with {}, not {}",
                    shown(queue.max_length),
                    shown(config.max_length)
                );
                return Err(Error::new(ErrorKind::Conflict, text));
            }
        }
    }
    Ok(made)
}

/// Deletes what an address names, with its messages, and says what.
fn delete(store: &mut Store<'_>, config: &Config) -> Result<Vec<String>> {
    let (topic, name) = match &config.place {
        Place::Queue(name) => ("", name.as_str()),
        Place::Topic { topic, subscription } => (topic.as_str(), subscription.as_deref().unwrap_or("")),
    };
    // A topic goes with its subscriptions.
    let all = !topic.is_empty() && name.is_empty();
    let sql = "SELECT id, name FROM throughline_queues WHERE topic = ?1 AND (name = ?2 OR ?3) AND deleted = 0 ORDER BY name";
    let found = {
        let mut statement = store.connection.prepare_cached(sql).map_err(error::sqlite)?;
        let rows = statement.query_map(rusqlite::params![topic, name, all], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        });
        rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(error::sqlite)?
    };
    let mut deleted = Vec::new();
    for (id, name) in found {
        store.mark_deleted(id)?;
        deleted.push(match (topic, name.as_str()) {
            ("", name) => format!("queue '{name}'"),
            (topic, "") => format!("topic '{topic}'"),
            (topic, name) => format!("subscription '{name}' of topic '{topic}'"),
        });
    }
    Ok(deleted)
}

#[async_trait]
impl Transport for Sqlite {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::SQLITE
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        let config = Config::new(to)?;
        SqlitePublisher::open(self.file(to, config.create).await?, config).await
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        let config = Config::new(from)?;
        SqliteConsumer::open(self.file(from, config.create).await?, config, options).await
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        let config = Config::new(address)?;
        let new_file = !config::file(address)?.exists();
        let file = self.file(address, true).await?;
        let mut made = file.write(move |store| create(store, &config)).await?;
        if new_file {
            made.insert(0, format!("file '{}'", file.path().display()));
        }
        Ok(made)
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        let config = Config::new(address)?;
        if !config::file(address)?.exists() {
            return Ok(Vec::new());
        }
        self.file(address, false).await?.write(move |store| delete(store, &config)).await
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        let queue = self.look(address, |_, queue| Ok(queue.id)).await?;
        let file = self.file(address, false).await?;
        // What is due is as good as ready.
        while file.write(move |store| store.wake_due(queue)).await? > 0 {}
        let before = file.write(|store| store.take_next()).await?;
        let mut purged = 0;
        // A piece at a time, so that others get their turn.
        loop {
            let piece = file.write(move |store| store.purge(queue, before)).await?;
            if piece == 0 {
                return Ok(purged);
            }
            purged += piece as u64;
        }
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        self.look(address, |connection, queue| depth(connection, queue.id).map_err(error::sqlite)).await
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, mut pieces: Pieces) -> Result<()> {
        let look = move |connection: &Connection, queue: Queue| {
            let give = |delivery| pieces.blocking_add(delivery);
            claim::browse(connection, queue.id, max.get(), give).map_err(error::sqlite)?;
            Ok(pieces)
        };
        self.look(address, look).await?.finish().await;
        Ok(())
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        let (address, options) = (address.clone(), options.clone());
        let (path, config, durability) =
            (config::file(&address)?, Config::new(&address)?, Durability::of(&address)?);
        let looking = tokio::task::spawn_blocking(move || {
            diagnose::diagnose(&address, &path, &config, durability, &options)
        });
        looking.await.map_err(|_| error::unanswered())?
    }

    async fn close(&self) -> Result<()> {
        let files = std::mem::take(&mut *self.files());
        let mut result = Ok(());
        for file in files.into_values() {
            result = result.and(file.close().await);
        }
        result
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        for file in self.files().values() {
            file.abandon();
        }
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sqlite").field(&self.files()).finish()
    }
}
