//! The transport: clients, and what its publishers and consumers share.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::{Client, config};
use throughline_aws::settings::{Connection, Service, Settings};
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis};
use throughline_core::driver::{self, Connecting, Depth, Pieces};
use throughline_core::{Address, Capabilities, ConsumeOptions, Result, capabilities};
use tokio::task::JoinHandle;

use crate::admin;
use crate::config::{Destination, OPTIONS, QueueName, is_fifo};
use crate::consumer::Consumer;
use crate::diagnose;
use crate::publisher::Publisher;

/// The longest that SQS lets a request wait for messages.
pub(crate) const LONGEST_POLL: Duration = Duration::from_secs(20);
/// How long closing waits for requests that still wait for messages.
const LAST_POLLS: Duration = Duration::from_secs(2);

/// What publishers and consumers share.
pub(crate) struct Shared {
    /// For sends and settlements: the SDK repeats nothing.
    pub(crate) client: Client,
    /// For requests that can be repeated.
    pub(crate) admin: Client,
    /// For requests that wait for messages.
    pub(crate) receiving: Client,
    pub(crate) connection: Connection,
    /// Requests for messages outlive their consumer: what still comes is given back.
    polls: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    pub(crate) fn new(connection: Connection) -> Self {
        let made = |change: fn(config::Builder, &Connection) -> config::Builder| {
            let config = config::Builder::from(&connection.config);
            Client::from_conf(change(config, &connection).build())
        };
        Self {
            client: made(|config, _| config),
            admin: made(|config, _| config.retry_config(Connection::retries())),
            receiving: made(|config, connection| config.timeout_config(connection.timeouts(LONGEST_POLL))),
            connection,
            polls: Mutex::default(),
        }
    }

    /// Keeps a request until the transport is closed.
    pub(crate) fn keep(&self, poll: JoinHandle<()>) {
        let mut polls = self.polls.lock().unwrap_or_else(PoisonError::into_inner);
        polls.retain(|poll| !poll.is_finished());
        polls.push(poll);
    }

    /// Waits a moment for the requests that are still out, and gives them up.
    pub(crate) async fn close(&self) {
        let polls = std::mem::take(&mut *self.polls.lock().unwrap_or_else(PoisonError::into_inner));
        let until = tokio::time::Instant::now() + LAST_POLLS;
        for mut poll in polls {
            match tokio::time::timeout_at(until, &mut poll).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the task of a long poll failed"),
                Err(_) => {
                    poll.abort();
                    // Cancelled, as was asked.
                    let _ = poll.await;
                }
            }
        }
    }
}

struct Transport {
    shared: Arc<Shared>,
    address: Address,
    capabilities: Capabilities,
}

/// Opens the transport; [`driver::Registration::connect`].
pub(crate) fn connect(address: Address) -> Connecting {
    Box::pin(async move {
        address.check_options(&OPTIONS)?;
        let mut settings = Settings::of(&address)?;
        // A queue's ARN says where it is.
        if let Ok(Destination { queue: QueueName::Arn { region, .. }, .. }) = Destination::of(&address) {
            settings.region.get_or_insert(region);
        }
        let capabilities = if is_fifo(&address)? { capabilities::SQS_FIFO } else { capabilities::SQS };
        let shared = Arc::new(Shared::new(settings.load(Service::Sqs).await?));
        // The cheapest request that tells a wrong endpoint or refused credentials at once.
        admin::reach(&shared).await?;
        Ok(Arc::new(Transport { shared, address, capabilities }) as Arc<dyn driver::Transport>)
    })
}

#[async_trait]
impl driver::Transport for Transport {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        Ok(Arc::new(Publisher::open(self.shared.clone(), &Destination::of(to)?).await?))
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        Ok(Arc::new(Consumer::open(self.shared.clone(), &Destination::of(from)?, options).await?))
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        admin::create(&self.shared, &Destination::of(address)?).await
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        admin::delete(&self.shared, &Destination::of(address)?).await
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        admin::purge(&self.shared, &Destination::of(address)?).await
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        admin::depth(&self.shared, &Destination::of(address)?).await
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, pieces: Pieces) -> Result<()> {
        admin::browse(&self.shared, &Destination::of(address)?, max, pieces).await
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        diagnose::diagnose(&self.shared, &Destination::of(address)?, options).await
    }

    async fn close(&self) -> Result<()> {
        self.shared.close().await;
        Ok(())
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("address", &self.address).finish_non_exhaustive()
    }
}
