//! The transport: a client of SNS, and the queues that its topics fill.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sns::{Client, config};
use throughline_aws::error;
use throughline_aws::settings::{Connection, Service, Settings};
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis};
use throughline_core::driver::{self, Connecting, Depth, Pieces};
use throughline_core::{Address, Capabilities, ConsumeOptions, ErrorKind, Result, capabilities};
use throughline_sqs::source::Queues;

use crate::config::{Destination, OPTIONS};
use crate::publisher::Publisher;
use crate::{admin, consumer, diagnose};

/// What publishers and consumers share.
pub(crate) struct Shared {
    /// For sends: the SDK repeats nothing.
    pub(crate) client: Client,
    /// For requests that can be repeated.
    pub(crate) admin: Client,
    pub(crate) connection: Connection,
    pub(crate) queues: Queues,
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
        // A topic's ARN says where it is.
        let arn = Destination::of(&address).ok().and_then(|destination| destination.arn);
        if let Some(region) = arn.as_deref().and_then(|arn| arn.split(':').nth(3)) {
            settings.region.get_or_insert_with(|| region.to_owned());
        }
        let is_fifo = Queues::is_fifo(&address)?;
        let connection = settings.load(Service::Sns).await?;
        let queues = Queues::new(settings.load(Service::Sqs).await?);
        let config = || config::Builder::from(&connection.config);
        let shared = Arc::new(Shared {
            client: Client::from_conf(config().build()),
            admin: Client::from_conf(config().retry_config(Connection::retries()).build()),
            queues,
            connection,
        });
        // Tells a wrong endpoint or refused credentials at once; who may not list topics may still publish to one.
        match shared.admin.list_topics().send().await.map_err(error::of_request) {
            Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
        let capabilities = if is_fifo { capabilities::SNS_FIFO } else { capabilities::SNS };
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
        consumer::open(&self.shared, &Destination::of(from)?, options).await
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        admin::create(&self.shared, &Destination::of(address)?).await
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        admin::delete(&self.shared, &Destination::of(address)?).await
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        self.shared.queues.purge(&Destination::of(address)?.queue()).await
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        self.shared.queues.depth(&Destination::of(address)?.queue()).await
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, pieces: Pieces) -> Result<()> {
        self.shared.queues.browse_into(&Destination::of(address)?.queue(), max, pieces).await
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        diagnose::diagnose(&self.shared, &Destination::of(address)?, options).await
    }

    async fn close(&self) -> Result<()> {
        self.shared.queues.close().await;
        Ok(())
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("address", &self.address).finish_non_exhaustive()
    }
}
