//! The transport: the cluster, and what its addresses name.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use throughline_core::driver::{self, Connecting, Depth, LogEnd, Pieces};
use throughline_core::{
    Address, Capabilities, ConsumeOptions, DiagnoseOptions, Diagnosis, Result, capabilities,
};

use crate::admin;
use crate::cluster::Cluster;
use crate::config::{Destination, OPTIONS};
use crate::connect::{Reader, blocking};
use crate::consumer::Consumer;
use crate::diagnose;
use crate::publisher::Publisher;

/// Every publisher and consumer has clients of its own: librdkafka shares no connections between them.
struct Transport {
    address: Address,
}

/// Opens the transport; [`driver::Registration::connect`].
pub(crate) fn connect(address: Address) -> Connecting {
    Box::pin(async move {
        address.check_options(OPTIONS)?;
        let cluster = Cluster::of(&address)?;
        // What it says of a destination is checked at once, too.
        Destination::of(&address)?;
        let reader = Reader::new(&cluster, None)?;
        blocking(move || reader.reach()).await?;
        Ok(Arc::new(Transport { address }) as Arc<dyn driver::Transport>)
    })
}

impl Transport {
    /// The cluster, and what the address names on it. An address that gives only options keeps the transport's own
    /// properties of librdkafka, where it does not set them: they are how the cluster is reached.
    fn resolve(&self, address: &Address) -> Result<(Cluster, Destination)> {
        let inherited = self.address.options().filter(|(name, _)| {
            (name.starts_with("kafka.") || *name == "connect_timeout") && address.option(name).is_none()
        });
        let whole = inherited.fold(address.clone(), |whole, (name, value)| whole.with_option(name, value));
        Ok((Cluster::of(&whole)?, Destination::of(address)?))
    }
}

#[async_trait]
impl driver::Transport for Transport {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::KAFKA
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        let (cluster, destination) = self.resolve(to)?;
        Ok(Arc::new(Publisher::open(&cluster, &destination).await?))
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        let (cluster, destination) = self.resolve(from)?;
        Ok(Arc::new(Consumer::open(cluster, destination, options).await?))
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        let (cluster, destination) = self.resolve(address)?;
        admin::create(&cluster, &destination).await
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        let (cluster, destination) = self.resolve(address)?;
        admin::delete(&cluster, &destination).await
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        let (cluster, destination) = self.resolve(address)?;
        admin::purge(&cluster, &destination).await
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        let (cluster, destination) = self.resolve(address)?;
        admin::depth(cluster, destination).await
    }

    async fn log_end(&self, address: &Address) -> Result<Option<LogEnd>> {
        let (cluster, destination) = self.resolve(address)?;
        admin::log_end(cluster, destination).await.map(Some)
    }

    async fn depth_before(&self, address: &Address, end: &LogEnd) -> Result<u64> {
        let (cluster, destination) = self.resolve(address)?;
        admin::depth_before(cluster, destination, end.clone()).await
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, pieces: Pieces) -> Result<()> {
        let (cluster, destination) = self.resolve(address)?;
        admin::browse(cluster, destination, max, pieces).await
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        let (cluster, destination) = self.resolve(address)?;
        diagnose::diagnose(cluster, destination, address, options).await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("address", &self.address).finish_non_exhaustive()
    }
}
