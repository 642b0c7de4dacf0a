//! The way in: an address becomes a transport, publishers and consumers.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use throughline_core::driver::{self, Browsing, LogEnd, Transport};
use throughline_core::{
    Address, Capabilities, ConsumeOptions, Consumer, Depth, DiagnoseOptions, Diagnosis, Error, ErrorKind,
    PublishOptions, Publisher, Result,
};

use crate::registry::registered;

/// One transport with its shared connections, and the destination that its address names, if it names one.
///
/// Where a method takes an address, `""` is the bus's own, `"?queue=other"` another destination of the same connection,
/// (its options are those given, not the bus's own), and a full address must be of the same connection. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    address: Address,
    transport: Arc<dyn Transport>,
    publishers: Arc<Mutex<Vec<throughline_core::WeakPublisher>>>,
}

impl Bus {
    /// Opens the transport that the address names. Network brokers are connected to now, so that a wrong host or
    /// password is told at once.
    ///
    /// Errors: `InvalidAddress`, `Disconnected`, `Unauthenticated`, `PermissionDenied`, `NotFound` (no such virtual host).
    pub async fn connect(address: impl AsRef<str>) -> Result<Self> {
        Self::connect_to(address.as_ref().parse()?).await
    }

    /// [`connect`](Self::connect), with a parsed address.
    pub async fn connect_to(address: Address) -> Result<Self> {
        let registration = registered(&address)?;
        address.check_options(registration.options)?;
        #[cfg(feature = "memory")]
        let like = crate::like::open(&address).map_err(|error| error.at("connect", &address))?;
        #[cfg(not(feature = "memory"))]
        let like = None;
        let transport = match like {
            Some(transport) => transport,
            None => (registration.connect)(address.clone())
                .await
                .map_err(|error| error.at("connect", &address))?,
        };
        Ok(Self { address, transport, publishers: Arc::default() })
    }

    /// Its address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the transport can do at its best; a publisher or consumer knows what its destination can.
    pub fn capabilities(&self) -> &Capabilities {
        self.transport.capabilities()
    }

    /// The driver, for the adapter's own extensions.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// A publisher to the bus's own destination.
    pub async fn publisher(&self) -> Result<Publisher> {
        self.publisher_to("", PublishOptions::default()).await
    }

    /// A publisher to a destination of this bus.
    pub async fn publisher_to(&self, to: &str, options: PublishOptions) -> Result<Publisher> {
        let address = self.resolve(to)?;
        let driver =
            self.transport.publisher(&address).await.map_err(|error| error.at("publish", &address))?;
        let publisher = Publisher::new(driver, &address, options);
        let mut publishers = self.publishers.lock().unwrap_or_else(PoisonError::into_inner);
        publishers.retain(|publisher| !publisher.is_closed());
        publishers.push(publisher.downgrade());
        Ok(publisher)
    }

    /// A consumer of the bus's own destination.
    pub async fn consumer(&self) -> Result<Consumer> {
        self.consumer_of("", ConsumeOptions::default()).await
    }

    /// A consumer of a source of this bus.
    pub async fn consumer_of(&self, from: &str, options: ConsumeOptions) -> Result<Consumer> {
        let address = self.resolve(from)?;
        let driver = self
            .transport
            .consumer(&address, &options)
            .await
            .map_err(|error| error.at("consume", &address))?;
        Ok(Consumer::new(driver, &address, options))
    }

    /// A worker of the bus's own destination with these handlers, which holds no more messages than it can soon work on. It
    /// opens its consumer as it begins to run.
    #[cfg(feature = "worker")]
    pub fn worker<S: Send + Sync + 'static>(
        &self,
        router: throughline_worker::Router<S>,
    ) -> throughline_worker::Worker<S> {
        let bus = self.clone();
        let open = async move |options| bus.consumer_of("", options).await;
        throughline_worker::Worker::opening(open, router)
    }

    /// Creates what the address names, and says what it made. What exists already, the same, is left as it is.
    pub async fn create(&self, address: &str) -> Result<Vec<String>> {
        let address = self.resolve(address)?;
        self.transport.create(&address).await.map_err(|error| error.at("create", &address))
    }

    /// Deletes what the address names, and says what. What does not exist is no error.
    pub async fn delete(&self, address: &str) -> Result<Vec<String>> {
        let address = self.resolve(address)?;
        self.transport.delete(&address).await.map_err(|error| error.at("delete", &address))
    }

    /// Deletes the messages that are ready, and returns how many there were.
    pub async fn purge(&self, address: &str) -> Result<u64> {
        let address = self.resolve(address)?;
        self.transport.purge(&address).await.map_err(|error| error.at("purge", &address))
    }

    /// How many messages there are.
    pub async fn depth(&self, address: &str) -> Result<Depth> {
        let address = self.resolve(address)?;
        self.transport.depth(&address).await.map_err(|error| error.at("depth", &address))
    }

    /// Where a source ends now, if it is a log (Kafka); `None` for a queue, which is empty at its end.
    pub async fn log_end(&self, address: &str) -> Result<Option<LogEnd>> {
        let address = self.resolve(address)?;
        self.transport.log_end(&address).await.map_err(|error| error.at("depth", &address))
    }

    /// How many messages of those before this end, which [`log_end`](Self::log_end) gave, are not settled yet.
    pub async fn depth_before(&self, address: &str, end: &LogEnd) -> Result<u64> {
        let address = self.resolve(address)?;
        self.transport.depth_before(&address, end).await.map_err(|error| error.at("depth", &address))
    }

    /// Reads at most `max` ready messages without consuming them; the capabilities say whether that disturbs.
    pub async fn browse(&self, address: &str, max: NonZeroUsize) -> Result<Vec<driver::Delivery>> {
        let address = self.resolve(address)?;
        self.transport.browse(&address, max).await.map_err(|error| error.at("browse", &address))
    }

    /// The same, a piece at a time: for more messages than memory should hold. What a broker shows by holding it (RabbitMQ,
    /// SQS) is given back at the end, or when this is dropped and the broker's own time for it has passed.
    ///
    /// Errors: `InvalidAddress`; all others come with the pieces.
    pub fn browse_pieces(&self, address: &str, max: NonZeroUsize) -> Result<Browsing<'static>> {
        let (address, transport) = (self.resolve(address)?, self.transport.clone());
        Ok(Browsing::new(move |pieces| {
            Box::pin(async move {
                let read = transport.browse_into(&address, max, pieces).await;
                read.map_err(|error| error.at("browse", &address))
            })
        }))
    }

    /// Looks at the broker and at what the address names, and says what is there and what is wrong with it, worst first,
    /// each with its remedy. It disturbs nothing. What is missing is a finding, not an error.
    pub async fn diagnose(&self, address: &str, options: &DiagnoseOptions) -> Result<Diagnosis> {
        let address = self.resolve(address)?;
        let diagnosed = self.transport.diagnose(&address, options).await;
        let mut diagnosis = diagnosed.map_err(|error| error.at("diagnose", &address))?;
        diagnosis.sort();
        Ok(diagnosis)
    }

    /// Closes the publishers, sending what they hold, and then the connections. Close consumers before: what they hold
    /// unsettled goes back.
    pub async fn close(&self) -> Result<()> {
        let publishers = std::mem::take(&mut *self.publishers.lock().unwrap_or_else(PoisonError::into_inner));
        let mut result = Ok(());
        for publisher in publishers {
            result = result.and(publisher.close().await);
        }
        result.and(self.transport.close().await).map_err(|error| error.at("close", &self.address))
    }

    fn resolve(&self, address: &str) -> Result<Address> {
        if address.is_empty() {
            return Ok(self.address.clone());
        }
        let resolved = match address.strip_prefix('?') {
            Some(_) => self.address.with_options_of(&format!("{}:{address}", self.address.scheme()).parse()?),
            None => address.parse()?,
        };
        if !resolved.same_connection(&self.address) {
            let error = Error::new(
                ErrorKind::InvalidAddress,
                "is not of this bus's connection; connect another bus to it, or give only the options (?queue=…)",
            );
            return Err(error.at("resolve", &resolved));
        }
        resolved.check_options(registered(&resolved)?.options)?;
        Ok(resolved)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("address", &self.address).finish_non_exhaustive()
    }
}
