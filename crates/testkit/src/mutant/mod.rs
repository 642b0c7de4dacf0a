//! A transport that is broken in exactly one way, to show that the conformance suite sees it.
//!
//! It wraps the memory transport, or any other that is as able, and adds what that lacks: an address with a password, a
//! connection that can be cut, and foreign messages. Unbroken ([`Mutation::None`]) it passes every case.

mod consumer;
mod publisher;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::capabilities::{Capabilities, Lease, Level};
use throughline_core::diagnosis::{DiagnoseOptions, Diagnosis};
use throughline_core::driver::{self, Depth, Pieces, Transport};
use throughline_core::{Address, ConsumeOptions, Envelope, Error, ErrorKind, Result};
use tokio::sync::watch;

use consumer::MutantConsumer;
use publisher::MutantPublisher;

/// A header that makes a message foreign: see [`Mutation::WedgesOnForeign`].
pub const FOREIGN: &str = "mutant-foreign";
/// The password in the addresses of a mutant.
pub const PASSWORD: &str = "hunter2";
/// What a mutant with limits declares.
pub const LIMIT: usize = 1000;

/// The one thing that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says what is broken")]
pub enum Mutation {
    None,
    // Publishing.
    DeliversTwice,
    FailsBatches,
    LosesSome,
    MixesDestinations,
    ForgetsAnAnswer,
    AnswersBeforeStoring,
    WedgesAfterAnError,
    PublishesAfterClose,
    DropsUnroutable,
    DeniesThatItTells,
    Reorders,
    RefusesLongCalls,
    RefusesHalfTheLimit,
    IgnoresHeaderLimit,
    RefusesLongDelays,
    IgnoresDelay,
    IgnoresExpiry,
    IgnoresPriority,
    NeverDeduplicates,
    // Receiving.
    SubscriptionsCompete,
    GivesMoreThanAsked,
    WaitsTooLong,
    SleepsThrough,
    IgnoresStop,
    WedgesOnForeign,
    AcksOnReceipt,
    HandsOutOneAtATime,
    HidesErrors,
    ReceivesAfterClose,
    // Settling.
    IgnoresRelease,
    IgnoresAck,
    RetriesAtOnce,
    RetriesAtTheBack,
    RetryDrops,
    ReleaseCountsAsFailure,
    RejectsIntoNothing,
    StaleIsOk,
    OneErrorFailsAll,
    AcksCumulatively,
    LosesLastAcks,
    // Leases.
    IgnoresExtensions,
    LeaseNeverEnds,
    ExtendsWhatIsFixed,
    // What a delivery tells.
    ForgetsHistory,
    ForgetsAttempts,
    CountsEveryDeliveryAsFirst,
    DeadLetterLosesHeaders,
    DeadLetterExpires,
    DeadLetterForgetsWhy,
    ForgetsWhenEnqueued,
    RetryStartsANewTrace,
    // The envelope on the wire.
    LosesReplyTo,
    LossyHeaders,
    LossyBody,
    KeepsTenHeaders,
    LowercasesNames,
    LastValueWins,
    TombstoneBecomesEmpty,
    EmptyKeyBecomesAbsent,
    TrimsTracestate,
    // The rest.
    CreatesWhatIsMissing,
    ShowsThePassword,
    DeclaresMoreThanTheTransport,
    LosesWhatIsInFlight,
    NeverReconnects,
    KeepsLostDeliveries,
    SecondCloseFails,
    ForgetsOnClose,
    SecondCreateConflicts,
    SecondDeleteFails,
    CountsNothing,
    PurgesNothing,
    DiagnosisTakes,
    BrowsingTakes,
}

/// A mutant transport; see the [module](self).
pub struct Mutant {
    inner: Arc<dyn Transport>,
    /// An address of the inner transport, whose options are exchanged.
    base: Address,
    mutation: Mutation,
    capabilities: Capabilities,
    /// How often the connection was cut; `None` for one that cannot be.
    cuts: Option<Arc<watch::Sender<u64>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where messages went.
    published: Vec<Address>,
    closed: bool,
}

impl Mutant {
    /// Breaks `inner`, which answers to addresses like `base`, in one way.
    pub fn wrap(inner: Arc<dyn Transport>, base: Address, mutation: Mutation) -> Arc<dyn Transport> {
        Arc::new(Self::new(inner, base, mutation, None))
    }

    /// The same, with a connection that is cut each time when the number changes. A connection has no lease.
    pub fn fragile(
        inner: Arc<dyn Transport>,
        base: Address,
        mutation: Mutation,
        cuts: Arc<watch::Sender<u64>>,
    ) -> Arc<dyn Transport> {
        Arc::new(Self::new(inner, base, mutation, Some(cuts)))
    }

    fn new(
        inner: Arc<dyn Transport>,
        base: Address,
        mutation: Mutation,
        cuts: Option<Arc<watch::Sender<u64>>>,
    ) -> Self {
        let mut capabilities = inner.capabilities().clone();
        match mutation {
            Mutation::RefusesHalfTheLimit => capabilities.limits.payload_bytes = Some(LIMIT),
            Mutation::IgnoresHeaderLimit => capabilities.limits.header_bytes = Some(LIMIT),
            Mutation::RefusesLongDelays => capabilities.limits.delay = Some(Duration::from_secs(3600)),
            Mutation::ExtendsWhatIsFixed => capabilities.lease = Lease::Fixed(Duration::from_secs(3600)),
            Mutation::DeadLetterExpires => capabilities.expiry = Level::Emulated,
            Mutation::DeniesThatItTells => capabilities.unroutable = Level::No,
            Mutation::DeclaresMoreThanTheTransport => capabilities.deduplication = Level::No,
            _ => {}
        }
        if cuts.is_some() {
            capabilities.lease = Lease::None;
        }
        Self { inner, base, mutation, capabilities, cuts, state: Mutex::default() }
    }

    /// The inner transport's address for one of the mutant's.
    fn translate(&self, address: &Address) -> Address {
        let mut inner = self.base.with_options_of(address);
        if self.mutation == Mutation::CreatesWhatIsMissing {
            inner = inner.without_options(&["create"]);
        }
        if self.mutation == Mutation::SubscriptionsCompete && inner.option("topic").is_some() {
            inner = inner.clone().with_option("queue", "the-only-one");
        }
        inner
    }

    fn first_published(&self, address: Address) -> Address {
        let mut state = self.state.lock().unwrap();
        let first = state.published.first().cloned();
        state.published.push(address.clone());
        first.unwrap_or(address)
    }

    /// What goes wrong while opening something.
    fn opening(&self, error: Error) -> Error {
        if self.mutation == Mutation::ShowsThePassword {
            return Error::new(error.kind(), format!("{} at user:{PASSWORD}@host", error.message()));
        }
        error
    }
}

#[async_trait]
impl Transport for Mutant {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn publisher(&self, to: &Address) -> Result<Arc<dyn driver::Publisher>> {
        let mut address = self.translate(to);
        let first = self.first_published(address.clone());
        if self.mutation == Mutation::MixesDestinations {
            address = first;
        }
        let inner = self.inner.publisher(&address).await.map_err(|error| self.opening(error))?;
        let mut capabilities = self.capabilities.clone();
        if self.mutation == Mutation::DeclaresMoreThanTheTransport {
            capabilities.deduplication = Level::Native;
        }
        Ok(Arc::new(MutantPublisher::new(inner, self.mutation, capabilities, self.cuts.clone())))
    }

    async fn consumer(&self, from: &Address, options: &ConsumeOptions) -> Result<Arc<dyn driver::Consumer>> {
        let address = self.translate(from);
        let mut options = options.clone();
        if self.mutation == Mutation::LeaseNeverEnds || self.capabilities.lease == Lease::None {
            options.lease = Duration::from_secs(3600);
        }
        let inner = self.inner.consumer(&address, &options).await.map_err(|error| self.opening(error))?;
        // For what goes to the back of the queue.
        let back = match self.mutation {
            Mutation::RetriesAtTheBack => Some(self.inner.publisher(&address).await?),
            _ => None,
        };
        let capabilities = self.capabilities.clone();
        Ok(Arc::new(MutantConsumer::new(inner, back, self.mutation, capabilities, self.cuts.clone())))
    }

    async fn create(&self, address: &Address) -> Result<Vec<String>> {
        let made = self.inner.create(&self.translate(address)).await?;
        if made.is_empty() && self.mutation == Mutation::SecondCreateConflicts {
            return Err(Error::new(ErrorKind::Conflict, "it exists"));
        }
        Ok(made)
    }

    async fn delete(&self, address: &Address) -> Result<Vec<String>> {
        let deleted = self.inner.delete(&self.translate(address)).await?;
        if deleted.is_empty() && self.mutation == Mutation::SecondDeleteFails {
            return Err(Error::new(ErrorKind::NotFound, "it does not exist"));
        }
        Ok(deleted)
    }

    async fn purge(&self, address: &Address) -> Result<u64> {
        if self.mutation == Mutation::PurgesNothing {
            return Ok(self.depth(address).await?.ready);
        }
        self.inner.purge(&self.translate(address)).await
    }

    async fn depth(&self, address: &Address) -> Result<Depth> {
        let depth = self.inner.depth(&self.translate(address)).await?;
        Ok(if self.mutation == Mutation::CountsNothing { Depth { ready: 0, ..depth } } else { depth })
    }

    async fn diagnose(&self, address: &Address, options: &DiagnoseOptions) -> Result<Diagnosis> {
        if self.mutation == Mutation::DiagnosisTakes {
            // What is not there has nothing to take.
            let _ = self.purge(address).await;
        }
        self.inner.diagnose(&self.translate(address), options).await
    }

    async fn browse_into(&self, address: &Address, max: NonZeroUsize, mut pieces: Pieces) -> Result<()> {
        let address = self.translate(address);
        if self.mutation != Mutation::BrowsingTakes {
            return self.inner.browse_into(&address, max, pieces).await;
        }
        let consumer = self.inner.consumer(&address, &ConsumeOptions::default()).await?;
        for delivery in consumer.receive(max, Duration::ZERO).await? {
            pieces.add(delivery).await;
        }
        pieces.finish().await;
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        let (again, published) = {
            let mut state = self.state.lock().unwrap();
            let again = std::mem::replace(&mut state.closed, true);
            (again, state.published.clone())
        };
        match self.mutation {
            Mutation::SecondCloseFails if again => {
                return Err(Error::new(ErrorKind::Closed, "closed already"));
            }
            Mutation::ForgetsOnClose => {
                for address in published {
                    self.inner.purge(&address).await?;
                }
            }
            _ => {}
        }
        self.inner.close().await
    }
}

/// A foreign message.
pub fn foreign() -> Envelope {
    Envelope::builder("").header(FOREIGN, "").payload("foreign").build()
}
