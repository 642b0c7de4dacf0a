//! The transport: two connections, and what its publishers and consumers share.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use throughline_core::driver::{self, Connecting, Depth, Pieces};
use throughline_core::{
    Address, Capabilities, ConsumeOptions, DiagnoseOptions, Diagnosis, Result, capabilities,
};

use crate::config::{Destination, OPTIONS, Settings, bad, same_vhost};
use crate::connect::{Keeper, Reached, tls_connector};
use crate::consumer::Consumer;
use crate::delay::Tiers;
use crate::publisher::Publisher;
use crate::{admin, diagnose};

/// What publishers and consumers share.
pub(crate) struct Shared {
    /// For publishing and administration. The broker stops reading from it when it is short of memory or disk, which must
    /// not stop acks.
    pub(crate) publishing: Arc<Keeper>,
    /// For consuming. Made with the first consumer.
    pub(crate) consuming: Arc<Keeper>,
    pub(crate) tiers: Tiers,
    host: String,
    port: u16,
}

impl Shared {
    /// The `server.address` and `server.port` of spans.
    pub(crate) fn server(&self) -> Option<(String, Option<u16>)> {
        Some((self.host.clone(), Some(self.port)))
    }
}

struct Transport {
    shared: Arc<Shared>,
    address: Address,
}

/// Opens the transport; [`driver::Registration::connect`].
pub(crate) fn connect(address: Address) -> Connecting {
    Box::pin(async move {
        address.check_options(OPTIONS)?;
        let settings = Settings::of(&address)?;
        // What it says of a destination is checked at once, too.
        Destination::of(&address)?;
        let tls = tls_connector(&settings).await?;
        let (host, port) = (settings.host.clone(), settings.port);
        let reached = Reached::new();
        let publishing = Keeper::new(settings.clone(), "publishing", tls.clone(), reached.clone());
        let consuming = Keeper::new(settings, "consuming", tls, reached);
        let (publishing, consuming) = (Arc::new(publishing), Arc::new(consuming));
        publishing.link().await?;
        let tiers = Tiers::new(publishing.clone());
        let shared = Arc::new(Shared { publishing, consuming, tiers, host, port });
        Ok(Arc::new(Transport { shared, address }) as Arc<dyn driver::Transport>)
    })
}

impl Transport {
    fn destination(&self, address: &Address) -> Result<Destination> {
        if !same_vhost(&self.address, address)? {
            return Err(bad(address, "is of another virtual host; connect another bus to it"));
        }
        Destination::of(address)
    }
}

#[async_trait]
impl driver::Transport for Transport {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::RABBITMQ
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        let destination = self.destination(to)?;
        Ok(Arc::new(Publisher::open(self.shared.clone(), &destination).await?))
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        let destination = self.destination(from)?;
        Ok(Arc::new(Consumer::open(self.shared.clone(), destination, options).await?))
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        admin::create(&self.shared, &self.destination(address)?).await
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        admin::delete(&self.shared, &self.destination(address)?).await
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        admin::purge(&self.shared, &self.destination(address)?).await
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        admin::depth(&self.shared, &self.destination(address)?).await
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, pieces: Pieces) -> Result<()> {
        admin::browse(&self.shared, &self.destination(address)?, max, pieces).await
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        diagnose::diagnose(&self.shared, &self.destination(address)?, options).await
    }

    async fn close(&self) -> Result<()> {
        futures_util::future::join(self.shared.publishing.close(), self.shared.consuming.close()).await;
        Ok(())
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("address", &self.address).finish_non_exhaustive()
    }
}
