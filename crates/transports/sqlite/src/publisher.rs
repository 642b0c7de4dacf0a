//! Publishing: into a queue, or into every subscription of a topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use throughline_core::capabilities::{self, Capabilities};
use throughline_core::driver::{self, Completions, Endpoint, Outgoing};
use throughline_core::{Envelope, Error, ErrorKind, Result};

use crate::config::Config;
use crate::file::File;

/// The longest row, in bytes: half of SQLite's own limit (`SQLITE_MAX_LENGTH`), as its parts are estimated.
const ROW: usize = 500_000_000;

pub(crate) struct SqlitePublisher {
    file: Arc<File>,
    config: Config,
    endpoint: Endpoint,
    closed: AtomicBool,
}

impl SqlitePublisher {
    pub(crate) async fn open(file: Arc<File>, config: Config) -> Result<Arc<dyn driver::Publisher>> {
        let asked = config.clone();
        file.write(move |store| store.destination(&asked)).await?;
        let endpoint = Endpoint { destination: config.place.name().to_owned(), ..Endpoint::default() };
        Ok(Arc::new(Self { file, config, endpoint, closed: AtomicBool::new(false) }))
    }
}

#[async_trait]
impl driver::Publisher for SqlitePublisher {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::SQLITE
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        let size = size(&message.envelope);
        if size > ROW {
            return Err(Error::limit("the message", format!("{size} bytes"), format!("{ROW} bytes")));
        }
        Ok(size)
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        if self.closed.load(Ordering::Acquire) {
            return done.fail_rest(&Error::new(ErrorKind::Closed, "the publisher is closed"));
        }
        let bytes = batch.iter().map(|message| size(&message.envelope)).sum();
        let config = self.config.clone();
        let published = self.file.write_bytes(bytes, move |store| store.publish(&config, &batch)).await;
        match published {
            Ok(results) => done.complete_many(results.into_iter().enumerate()),
            Err(error) => done.fail_rest(&error),
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}

/// What a message takes in the file, about.
fn size(envelope: &Envelope) -> usize {
    // Its other columns, and its places in the indices.
    const REST: usize = 200;
    // A byte is two as base64 or `\u` escapes, at most six.
    let headers: usize = envelope.headers.iter().map(|(name, value)| name.len() + value.size() + 8).sum();
    let key = envelope.ordering_key.as_ref().map_or(0, |key| 2 * key.len());
    envelope.payload_len() + 6 * headers + key + REST
}
