//! What the suite needs of a transport: connections, addresses of its own, and where there is a way, faults.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use throughline_core::driver::{Registration, Sibling, Transport};
use throughline_core::{Address, Error, ErrorKind, Result, Retry};

use crate::cutter::Cutter;

/// A transport under test. [`Registered`] is one for everything that has a
/// [`Registration`](throughline_core::driver::Registration) and an address.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// A new transport, independent of those before: connections of its own, where there are any.
    ///
    /// Errors: whatever keeps the broker from being reached; the suite does not begin then.
    async fn connect(&self) -> Result<Arc<dyn Transport>>;

    /// The address of a place on the broker under test, whether it exists or not; `None` where the transport has no such
    /// thing (a topic, say). Names are unique to a case.
    fn address(&self, sibling: &Sibling<'_>) -> Option<Address>;

    /// What sets these addresses apart from the transport's usual ones, for reports (`fifo`); `None` for the usual ones.
    fn variant(&self) -> Option<&str> {
        None
    }

    /// A transport whose connection can be cut; `None` where there is none to cut, or no way to.
    async fn fragile(&self) -> Result<Option<Fragile>> {
        Ok(None)
    }

    /// Puts a message into a queue as no adapter of ours writes it: foreign, with our own headers broken. Says whether it
    /// could.
    async fn put_foreign(&self, to: &Address) -> Result<bool> {
        let _ = to;
        Ok(false)
    }
}

/// A transport whose connections can be cut.
pub struct Fragile {
    /// The transport.
    pub transport: Arc<dyn Transport>,
    cut: Box<dyn Fn() + Send + Sync>,
}

impl Fragile {
    /// A transport, and how its connections are cut; new ones are to be possible at once.
    pub fn new(transport: Arc<dyn Transport>, cut: impl Fn() + Send + Sync + 'static) -> Self {
        Self { transport, cut: Box::new(cut) }
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        (self.cut)();
    }
}

impl fmt::Debug for Fragile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fragile")
    }
}

/// The harness of a registered transport at an address.
pub struct Registered {
    registration: &'static Registration,
    base: Address,
    variant: Option<&'static str>,
    put_foreign: Option<PutForeign>,
}

type PutForeign = Box<dyn Fn(Address) -> BoxFuture<'static, Result<()>> + Send + Sync>;

impl Registered {
    /// Holds the transport of `registration` at `base` to the suite. Of the address, connection and options of creation
    /// count; what it names is left alone.
    ///
    /// Errors: an option of the address that the transport does not know.
    pub fn new(registration: &'static Registration, base: Address) -> Result<Self> {
        base.check_options(registration.options)?;
        Ok(Self { registration, base, variant: None, put_foreign: None })
    }

    /// The same, reported apart from the transport's usual addresses; see [`Harness::variant`].
    pub fn variant(mut self, name: &'static str) -> Self {
        self.variant = Some(name);
        self
    }

    /// The same, with a way to put a foreign message into a queue; see [`Harness::put_foreign`].
    pub fn with_foreign(
        mut self,
        put: impl Fn(Address) -> BoxFuture<'static, Result<()>> + Send + Sync + 'static,
    ) -> Self {
        self.put_foreign = Some(Box::new(put));
        self
    }

    async fn open(&self, address: Address) -> Result<Arc<dyn Transport>> {
        (self.registration.connect)(address.clone()).await.map_err(|error| error.at("connect", &address))
    }

    /// The connection, without a place.
    fn connection(&self) -> Address {
        // What it names may not exist, and is not ours.
        self.address(&Sibling::queue("conformance")).unwrap_or_else(|| self.base.clone())
    }
}

#[async_trait]
impl Harness for Registered {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        self.open(self.connection()).await
    }

    fn address(&self, sibling: &Sibling<'_>) -> Option<Address> {
        (self.registration.sibling)(&self.base, sibling)
    }

    fn variant(&self) -> Option<&str> {
        self.variant
    }

    async fn fragile(&self) -> Result<Option<Fragile>> {
        let Some(target) = (self.registration.endpoint)(&self.base) else { return Ok(None) };
        let cutter = Cutter::start(target).await.map_err(|error| no_proxy(&error))?;
        let transport = self.open(self.connection().with_authority(&cutter.address().to_string())).await?;
        Ok(Some(Fragile::new(transport, move || cutter.cut())))
    }

    async fn put_foreign(&self, to: &Address) -> Result<bool> {
        match &self.put_foreign {
            Some(put) => put(to.clone()).await.map(|()| true),
            None => Ok(false),
        }
    }
}

fn no_proxy(error: &io::Error) -> Error {
    let text = format!("cannot listen on loopback for a proxy that can be cut: {error}");
    Error::new(ErrorKind::Internal, text).with_retry(Retry::Safe)
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("base", &self.base).finish_non_exhaustive()
    }
}
