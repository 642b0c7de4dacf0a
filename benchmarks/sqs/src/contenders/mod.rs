//! Who is compared: the SDK used well, ours, and the SDK as most code uses it, with one message a request.

mod ours;
mod raw;
mod single;

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;

use crate::load::{Load, Span};

pub(crate) const NAMES: [&str; 4] = ["raw", "throughline", "throughline-batches", "one-a-request"];

/// One way to use the service.
#[async_trait]
pub(crate) trait Contender: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Publishes the whole load and waits for the answers; opening and closing are not timed.
    async fn publish(&self, load: &Load) -> Result<Span>;

    /// Receives the whole load and deletes it; waiting for the last deletes is timed.
    async fn consume(&self, load: &Load) -> Result<Span>;
}

/// All of them, the one that the others are compared with first.
pub(crate) fn all() -> Vec<Arc<dyn Contender>> {
    vec![
        Arc::new(raw::Raw),
        Arc::new(ours::Ours { batches: false }),
        Arc::new(ours::Ours { batches: true }),
        Arc::new(single::Single),
    ]
}
