//! The transport: opening, creating, deleting, looking.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use throughline_core::capabilities::{Capabilities, Level, MEMORY};
use throughline_core::driver::{self, Depth, Pieces, Transport};
use throughline_core::{Address, ConsumeOptions, DiagnoseOptions, Diagnosis, Error, ErrorKind, Result};

use crate::broker::Broker;
use crate::config::{self, Config, Place};
use crate::consumer::MemoryConsumer;
use crate::diagnose;
use crate::like::{self, Measure};
use crate::publisher::MemoryPublisher;
use crate::queue::Queue;

/// The memory transport: a handle to the buses of this process.
#[derive(Debug)]
pub struct Memory {
    capabilities: &'static Capabilities,
    measure: Option<Measure>,
}

impl Memory {
    /// Opens the bus that an address names. Never waits.
    pub fn open(address: &Address) -> Result<Arc<dyn Transport>> {
        Self::open_with(address, None)
    }

    /// [`open`](Self::open), with the code of the transport that the address asks to be like for what messages are on its
    /// wire; without it their payloads alone are measured.
    pub fn open_with(address: &Address, measure: Option<Measure>) -> Result<Arc<dyn Transport>> {
        config::bus_name(address)?;
        Ok(Arc::new(Self { capabilities: like::of(address)?.unwrap_or(&MEMORY_TABLE), measure }))
    }

    /// The bus of an address, and what it names there. It may leave out `like`, but not be like another transport.
    fn find(&self, address: &Address) -> Result<(Arc<Broker>, Config)> {
        if like::of(address)?.is_some_and(|other| other.transport != self.capabilities.transport) {
            let text = "is like another transport than its bus; connect another bus to it";
            return Err(Error::new(ErrorKind::InvalidAddress, text));
        }
        let config = Config::new(address)?;
        if self.capabilities.fan_out == Level::No && matches!(config.place, Place::Topic { .. }) {
            let text = format!("{} has no topics; address a queue", self.capabilities.transport);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok((Broker::named(&config::bus_name(address)?, self.capabilities), config))
    }

    /// The queue that an address consumes from, without creating it.
    fn existing(&self, address: &Address) -> Result<Arc<Queue>> {
        let (broker, config) = self.find(address)?;
        broker.source(&Config { create: false, ..config })
    }
}

static MEMORY_TABLE: Capabilities = MEMORY;

#[async_trait]
impl Transport for Memory {
    fn capabilities(&self) -> &Capabilities {
        self.capabilities
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        let (broker, config) = self.find(to)?;
        MemoryPublisher::open(broker, config, self.measure)
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        let (broker, config) = self.find(from)?;
        MemoryConsumer::open(broker, config, options)
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        let (broker, config) = self.find(address)?;
        broker.create(&config)
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        let (broker, config) = self.find(address)?;
        Ok(broker.delete(&config))
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        Ok(self.existing(address)?.purge())
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        Ok(self.existing(address)?.depth())
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, mut pieces: Pieces) -> Result<()> {
        for delivery in self.existing(address)?.browse(max.get()) {
            if !pieces.add(delivery).await {
                return Ok(());
            }
        }
        pieces.finish().await;
        Ok(())
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        let (broker, config) = self.find(address)?;
        Ok(diagnose::diagnose(&broker, address, &config, options))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
