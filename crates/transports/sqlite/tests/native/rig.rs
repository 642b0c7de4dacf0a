//! A folder and a file for each test.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use throughline::{Bus, Consumer, Delivery, Envelope, Error, Publisher};

pub(crate) struct Rig {
    pub(crate) folder: TempDir,
    pub(crate) bus: Bus,
}

impl Rig {
    /// A bus on a new file, with these options.
    pub(crate) async fn new(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bus = Bus::connect(address(&folder, options)).await.unwrap();
        Self { folder, bus }
    }

    pub(crate) async fn with_publisher(options: &str) -> (Self, Publisher) {
        let rig = Self::new(options).await;
        let publisher = rig.bus.publisher().await.unwrap();
        (rig, publisher)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("bus.db")
    }

    pub(crate) fn address(&self, options: &str) -> String {
        address(&self.folder, options)
    }

    /// A connection as anybody has one.
    pub(crate) fn sql(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }
}

pub(crate) fn address(folder: &TempDir, options: &str) -> String {
    format!("sqlite:{}?{options}", folder.path().join("bus.db").display())
}

pub(crate) async fn next(consumer: &mut Consumer) -> Delivery {
    tokio::time::timeout(Duration::from_secs(20), consumer.next()).await.unwrap().unwrap().unwrap()
}

pub(crate) async fn is_silent(consumer: &mut Consumer) -> bool {
    tokio::time::timeout(Duration::from_millis(200), consumer.next()).await.is_err()
}

pub(crate) fn keyed(key: &str, text: &str) -> Envelope {
    Envelope::builder("t").key(key.to_owned()).payload(text.to_owned()).build()
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}

/// Connecting there, and opening a publisher: the error that one of them gives.
pub(crate) async fn refused(address: impl AsRef<str>) -> Error {
    match Bus::connect(address).await {
        Err(error) => error,
        Ok(bus) => bus.publisher().await.unwrap_err(),
    }
}
