//! The transport: opening, creating, deleting, looking.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use throughline_core::capabilities::{self, Capabilities};
use throughline_core::driver::{self, Delivery, Depth, Transport};
use throughline_core::{Address, ConsumeOptions, DiagnoseOptions, Diagnosis, Result};

use crate::broker::Broker;
use crate::config::{self, Config};
use crate::consumer::MemoryConsumer;
use crate::diagnose;
use crate::publisher::MemoryPublisher;

/// The memory transport: a handle to the buses of this process.
#[derive(Debug)]
pub struct Memory(());

impl Memory {
    /// Opens the bus that an address names. Never waits.
    pub fn open(address: &Address) -> Result<Arc<dyn Transport>> {
        config::bus_name(address)?;
        Ok(Arc::new(Self(())))
    }
}

fn broker(address: &Address) -> Result<Arc<Broker>> {
    Ok(Broker::named(&config::bus_name(address)?))
}

/// The queue that an address consumes from, without creating it.
fn existing(address: &Address) -> Result<Arc<crate::queue::Queue>> {
    broker(address)?.source(&Config { create: false, ..Config::new(address)? })
}

#[async_trait]
impl Transport for Memory {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::MEMORY
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        MemoryPublisher::open(broker(to)?, to)
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        MemoryConsumer::open(broker(from)?, from, options)
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        broker(address)?.create(&Config::new(address)?)
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        Ok(broker(address)?.delete(&Config::new(address)?))
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        Ok(existing(address)?.purge())
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        Ok(existing(address)?.depth())
    }

    async fn browse(&self, address: &Address, max: NonZeroUsize) -> Result<Vec<Delivery>> {
        Ok(existing(address)?.browse(max.get()))
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        Ok(diagnose::diagnose(&*broker(address)?, address, &Config::new(address)?, options))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
