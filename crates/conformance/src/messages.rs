//! The messages of cases, and the account of those that have come.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use throughline_core::Envelope;
use throughline_core::driver::{OperationId, Outgoing};
use uuid::Uuid;

use crate::verdict::{Fail, ensure};

/// What has come, by text.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<String, usize>);

impl Seen {
    pub(crate) fn add(&mut self, text: String) {
        *self.0.entry(text).or_default() += 1;
    }

    pub(crate) fn distinct(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn duplicates(&self) -> usize {
        self.0.values().sum::<usize>() - self.0.len()
    }

    pub(crate) fn has(&self, text: &str) -> bool {
        self.0.contains_key(text)
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.0.get(text).copied().unwrap_or(0)
    }

    /// Exactly these have come, each at least once.
    pub(crate) fn is_exactly(&self, expected: impl IntoIterator<Item = String>) -> Result<(), Fail> {
        let expected: Vec<String> = expected.into_iter().collect();
        let missing: Vec<_> = expected.iter().filter(|text| !self.has(text)).take(5).collect();
        ensure!(missing.is_empty(), "lost: {missing:?}, and maybe more");
        let strange: Vec<_> = self.0.keys().filter(|text| !expected.contains(text)).take(5).collect();
        ensure!(strange.is_empty(), "came and were not due: {strange:?}, and maybe more");
        Ok(())
    }
}

/// A message with this text.
pub(crate) fn message(text: impl fmt::Display) -> Envelope {
    Envelope::builder("conformance.case").payload(text.to_string()).build()
}

/// A message of a key.
pub(crate) fn keyed(key: &str, text: impl fmt::Display) -> Envelope {
    let mut envelope = message(text);
    envelope.ordering_key = Some(key.as_bytes().to_vec().into());
    envelope
}

/// The payload as text.
pub(crate) fn text(envelope: &Envelope) -> String {
    String::from_utf8_lossy(envelope.payload.as_deref().unwrap_or_default()).into_owned()
}

/// What a driver is given for an envelope.
pub(crate) fn outgoing(envelope: Envelope) -> Outgoing {
    Outgoing {
        envelope: Arc::new(envelope),
        operation: OperationId(Uuid::now_v7().as_u128()),
        delay: Duration::ZERO,
        failed_attempts: 0,
        history: None,
    }
}

/// The texts `0..count`.
pub(crate) fn numbers(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| number.to_string())
}
