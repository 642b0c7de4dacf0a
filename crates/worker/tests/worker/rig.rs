//! A worker on a queue of the memory transport.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use throughline::driver::Delivery;
use throughline::{Bus, ConsumeOptions, Envelope, Publisher, Result};
use throughline_worker::{Report, Worker};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Longer than anything here takes; with the clock paused it costs nothing.
pub(crate) const LONG: Duration = Duration::from_secs(600);

pub(crate) struct Rig {
    pub(crate) bus: Bus,
    pub(crate) publisher: Publisher,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let name = Uuid::now_v7();
        let bus = Bus::connect(format!("memory:{name}?queue=jobs&dead_letter=dead")).await.unwrap();
        Self { publisher: bus.publisher().await.unwrap(), bus }
    }

    pub(crate) async fn consumer(&self) -> throughline::Consumer {
        self.consumer_with(ConsumeOptions::default()).await
    }

    pub(crate) async fn consumer_with(&self, options: ConsumeOptions) -> throughline::Consumer {
        self.bus.consumer_of("", options).await.unwrap()
    }

    pub(crate) async fn publish(&self, envelope: impl Into<Arc<Envelope>>) {
        self.publisher.publish(envelope).await.unwrap();
    }

    pub(crate) async fn dead(&self) -> Vec<Delivery> {
        self.bus.browse("?queue=dead", NonZeroUsize::MAX).await.unwrap_or_default()
    }

    /// How many messages are in the queue, in whatever state.
    pub(crate) async fn left(&self) -> u64 {
        let depth = self.bus.depth("").await.unwrap();
        depth.ready + depth.unsettled.unwrap_or(0) + depth.delayed.unwrap_or(0)
    }

    /// Waits until the queue is empty.
    pub(crate) async fn until_empty(&self) {
        until("the queue is empty", async || self.left().await == 0).await;
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "{what}");
}

/// A worker that runs until it is stopped.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Report>>,
}

pub(crate) fn start<S: Send + Sync + 'static>(worker: Worker<S>) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(worker.run(async move {
        let _ = stopped.await;
    }));
    Running { stop, task }
}

impl Running {
    pub(crate) async fn stop(self) -> Report {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap()
    }
}

/// What handlers saw, in order.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn push(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

pub(crate) fn message(message_type: &str, body: &str) -> Envelope {
    Envelope::builder(message_type).json(body).unwrap().build()
}

pub(crate) fn keyed(message_type: &str, key: &str, body: &str) -> Envelope {
    Envelope::builder(message_type).key(key.to_owned()).json(body).unwrap().build()
}

/// Runs a test's future with a limit.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("in time")
}
