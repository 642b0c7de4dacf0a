//! Queues of a test's own on the real broker.

use std::num::NonZeroUsize;
use std::time::Duration;

use throughline::driver::Delivery;
use throughline::{Bus, ConsumeOptions, Consumer, Envelope, Publisher};
use throughline_testkit::endpoint;
use throughline_worker::{Report, Worker};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Longer than a busy machine needs.
const LONG: Duration = Duration::from_secs(90);

pub(crate) struct Rig {
    pub(crate) url: String,
    pub(crate) bus: Bus,
    pub(crate) publisher: Publisher,
    jobs: String,
    dead: String,
}

impl Rig {
    /// `None`, loudly, without a broker.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let url = endpoint::broker("rabbitmq", test)?;
        let name = Uuid::now_v7();
        let (jobs, dead) = (format!("queue=worker-{name}"), format!("worker-{name}-dead"));
        let bus = Bus::connect(format!("{url}?{jobs}&dead_letter={dead}")).await.unwrap();
        bus.create("").await.unwrap();
        let rig = Self { url, publisher: bus.publisher().await.unwrap(), bus, jobs, dead };
        rig.create_graveyard().await;
        Some(rig)
    }

    pub(crate) async fn create_graveyard(&self) {
        self.bus.create(&format!("?queue={}", self.dead)).await.unwrap();
    }

    pub(crate) async fn delete_graveyard(&self) {
        self.bus.delete(&format!("?queue={}", self.dead)).await.unwrap();
    }

    /// The address of the jobs, at this broker or a proxy before it.
    pub(crate) fn address(&self, url: &str) -> String {
        format!("{url}?{}&dead_letter={}", self.jobs, self.dead)
    }

    pub(crate) async fn consumer(&self, max_unsettled: usize) -> Consumer {
        let options = ConsumeOptions { max_unsettled, ..ConsumeOptions::default() };
        self.bus.consumer_of("", options).await.unwrap()
    }

    pub(crate) async fn publish(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        for result in self.publisher.publish_batch(envelopes).await {
            result.unwrap();
        }
    }

    pub(crate) async fn ready(&self) -> u64 {
        self.bus.depth("").await.unwrap().ready
    }

    pub(crate) async fn dead(&self) -> Vec<Delivery> {
        let most = NonZeroUsize::new(100).unwrap();
        self.bus.browse(&format!("?queue={}", self.dead), most).await.unwrap()
    }

    /// Deletes what was made, and closes.
    pub(crate) async fn finish(self) {
        self.publisher.close().await.unwrap();
        self.bus.delete("").await.unwrap();
        self.delete_graveyard().await;
        self.bus.close().await.unwrap();
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "{what}");
}

pub(crate) struct Running(oneshot::Sender<()>, JoinHandle<throughline::Result<Report>>);

pub(crate) fn start<S: Send + Sync + 'static>(worker: Worker<S>) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(worker.run(async {
        let _ = stopped.await;
    }));
    Running(stop, task)
}

impl Running {
    pub(crate) async fn stop(self) -> Report {
        self.0.send(()).unwrap();
        tokio::time::timeout(LONG, self.1).await.expect("it ends in time").unwrap().unwrap()
    }
}
