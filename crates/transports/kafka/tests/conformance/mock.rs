//! The suite on librdkafka's own stand-in for a cluster, where there is no broker. It has no requests of administration: here
//! its topics are made by its own means, and one that is deleted is only unknown from then on.

use std::num::NonZeroUsize;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaRespErr;
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis};
use throughline_core::driver::{self, Depth, Pieces, Transport};
use throughline_core::{Address, Capabilities, ConsumeOptions, Error, ErrorKind, Result};
use throughline_kafka::rdkafka;

/// As a broker by its defaults.
const PARTITIONS: i32 = 1;
/// The options of addresses. Whoever joins a group whose last member has left waits, on a mock, until a second before the
/// session's end: 44 s by default.
pub(crate) const OPTIONS: &str =
    "kafka.session.timeout.ms=6000&kafka.heartbeat.interval.ms=1000&connect_timeout=3s";

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Order = Box<dyn FnOnce(&Cluster) + Send>;

/// The cluster, and the thread that it stays on: it may not go to another.
pub(crate) struct Mock {
    pub(crate) servers: String,
    orders: Mutex<Option<Sender<Order>>>,
    thread: Option<JoinHandle<()>>,
}

fn failed(error: KafkaError) -> Error {
    Error::new(ErrorKind::Internal, "the mock cluster failed").with_source(error)
}

fn ended() -> Error {
    Error::new(ErrorKind::Internal, "the mock cluster's thread has ended")
}

impl Mock {
    pub(crate) fn start() -> Result<Self> {
        let (orders, ordered) = channel::<Order>();
        let (told, started) = channel();
        let thread = std::thread::spawn(move || {
            let cluster = match MockCluster::new(1) {
                Ok(cluster) => cluster,
                Err(error) => return drop(told.send(Err(failed(error)))),
            };
            drop(told.send(Ok(cluster.bootstrap_servers())));
            for order in ordered {
                order(&cluster);
            }
        });
        let servers = started.recv().map_err(|_| ended())??;
        Ok(Self { servers, orders: Mutex::new(Some(orders)), thread: Some(thread) })
    }

    fn order<T: Send + 'static>(&self, work: impl FnOnce(&Cluster) -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = channel();
        let order: Order = Box::new(move |cluster| drop(answer.send(work(cluster))));
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.as_ref().and_then(|orders| orders.send(order).ok()).ok_or_else(ended)?;
        answered.recv().map_err(|_| ended())
    }

    fn create(&self, topic: String) -> Result<()> {
        self.order(move |cluster| {
            match cluster.create_topic(&topic, PARTITIONS, 1) {
                // It may be one that was deleted.
                Ok(()) | Err(KafkaError::MockCluster(Code::TopicAlreadyExists)) => {}
                Err(error) => return Err(failed(error)),
            }
            cluster.topic_error(&topic, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).map_err(failed)
        })?
    }

    fn delete(&self, topic: String) -> Result<()> {
        let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        self.order(move |cluster| cluster.topic_error(&topic, unknown).map_err(failed))?
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        drop(self.orders.lock().unwrap_or_else(PoisonError::into_inner).take());
        // It ends with the orders; a panic of its own has been told.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The transport, but for making and deleting topics.
pub(crate) struct Mocked {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) mock: Arc<Mock>,
}

fn topic(address: &Address) -> String {
    address.path().trim_start_matches('/').to_owned()
}

#[async_trait]
impl Transport for Mocked {
    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        let topics = [Some(topic(address)), address.option("dead_letter").map(str::to_owned)];
        for topic in topics.iter().flatten() {
            self.mock.create(topic.clone())?;
        }
        Ok(topics.into_iter().flatten().collect())
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        self.mock.delete(topic(address))?;
        Ok(vec![topic(address)])
    }

    fn capabilities(&self) -> &Capabilities {
        self.transport.capabilities()
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        self.transport.publisher(to).await
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        self.transport.consumer(from, options).await
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        self.transport.purge(address).await
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        self.transport.depth(address).await
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, pieces: Pieces) -> Result<()> {
        self.transport.browse_into(address, max, pieces).await
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        self.transport.diagnose(address, options).await
    }

    async fn close(&self) -> Result<()> {
        self.transport.close().await
    }
}
