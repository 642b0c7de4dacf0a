//! Work is done once: a message that comes again is acked without it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use throughline_core::{Delivery, Error};

use super::Verdict;
use crate::error::HandlerError;
use crate::store::{Begun, Claim, IdempotencyStore};

/// How duplicates are known.
///
/// By the idempotency key of the message, else by its id; what has neither of its own (a foreign message) is never taken
/// for a duplicate. Keys are those of one source: two subscriptions to a topic each do their own work with the same
/// message, also with a store that both use.
#[derive(Clone)]
pub struct Idempotency {
    pub(crate) store: Arc<dyn IdempotencyStore>,
    claim: Duration,
    keep: Duration,
    scope: Option<String>,
}

impl Idempotency {
    /// Duplicates are known by a store.
    pub fn new(store: impl IdempotencyStore) -> Self {
        Self::shared(Arc::new(store))
    }

    /// [`new`](Self::new), with a store that others use too.
    pub fn shared(store: Arc<dyn IdempotencyStore>) -> Self {
        Self { store, claim: Duration::from_secs(60), keep: Duration::from_secs(24 * 60 * 60), scope: None }
    }

    /// How long work that a crash left behind counts as in progress; 60 s by default, at least 1 s. It is kept up while a
    /// handler runs, however long that takes.
    pub fn claim(mut self, claim: Duration) -> Self {
        self.claim = claim.max(Duration::from_secs(1));
        self
    }

    /// How long what is done is known; a day by default. Longer than a duplicate can be late: a retry of the publisher, a
    /// redelivery, a redrive of dead letters.
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep;
        self
    }

    /// What keys belong to; by default the address that is consumed from. Name it where that may change, or where two
    /// sources bring the same work.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// With the address as its scope, where it has none.
    pub(crate) fn of_source(mut self, source: &str) -> Self {
        self.scope.get_or_insert_with(|| source.to_owned());
        self
    }

    fn key(&self, delivery: &Delivery) -> Option<String> {
        let key = delivery.envelope().dedupe_key()?;
        Some(format!("{} {key}", self.scope.as_deref().unwrap_or_default()))
    }

    /// Claims a message's work.
    pub(crate) async fn begin(&self, delivery: &Delivery) -> Result<Option<Held<'_>>, Verdict> {
        let Some(key) = self.key(delivery) else { return Ok(None) };
        match self.store.begin(&key, self.claim).await {
            Ok(Begun::New(claim)) => Ok(Some(Held { config: self, key, claim })),
            Ok(Begun::InProgress(left)) => Err(Verdict::Postponed(left)),
            Ok(Begun::Done) => Err(Verdict::Duplicate),
            Err(error) => Err(Verdict::Failed(store_failed(error))),
        }
    }
}

impl fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("claim", &self.claim)
            .field("keep", &self.keep)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

fn store_failed(error: Error) -> HandlerError {
    HandlerError::from(error).with_dependency("idempotency-store")
}

/// Work that is ours to do.
pub(crate) struct Held<'a> {
    config: &'a Idempotency,
    key: String,
    claim: Claim,
}

impl Held<'_> {
    /// Keeps the claim, until this is dropped.
    pub(crate) async fn keep_up(&self) -> std::convert::Infallible {
        let Idempotency { store, claim, .. } = self.config;
        loop {
            tokio::time::sleep(*claim / 3).await;
            match store.extend(&self.key, self.claim, *claim).await {
                Ok(true) => {}
                // The store was out of reach for too long, and another has begun: the work is done twice.
                Ok(false) => tracing::warn!("the claim of a message's work was over before its handler was"),
                Err(error) => tracing::warn!(%error, "the claim of a message's work could not be kept"),
            }
        }
    }

    /// The work is done, or is not.
    pub(crate) async fn end(self, verdict: &Verdict) {
        let Idempotency { store, keep, .. } = self.config;
        let result = match verdict {
            Verdict::Done => store.done(&self.key, self.claim, *keep).await.map(drop),
            _ => store.abandon(&self.key, self.claim).await,
        };
        // The work is done all the same; only a duplicate would not be known, or wait until the claim is over.
        if let Err(error) = result {
            tracing::warn!(%error, "the end of a message's work could not be noted");
        }
    }
}
