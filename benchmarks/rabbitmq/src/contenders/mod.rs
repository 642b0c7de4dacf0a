//! Who is compared. Each is used as its own documents say that it is fastest, with the same guarantees where it has
//! them: durable messages, confirms, up to 1,000 unanswered, a prefetch of 1,000, every message acked.

mod mq_bridge;
mod omniqueue;
pub(crate) mod ours;
pub(crate) mod raw;
mod ruststream;
mod shove;

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;

use crate::load::{Load, QueueType, Span};

pub(crate) const NAMES: [&str; 7] =
    ["raw", "throughline", "throughline-batches", "mq-bridge", "shove", "ruststream-lapin", "omniqueue"];

/// One way to use the broker.
#[async_trait]
pub(crate) trait Contender: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Publishes the whole load and waits for the confirms; opening and closing are not timed.
    async fn publish(&self, load: &Load) -> Result<Span>;

    /// Consumes and acks the whole load.
    async fn consume(&self, load: &Load) -> Result<Span>;
}

/// All that can use such a queue.
pub(crate) fn all(queue_type: QueueType) -> Vec<Arc<dyn Contender>> {
    let mut all: Vec<Arc<dyn Contender>> = vec![
        Arc::new(raw::Raw),
        Arc::new(ours::Ours { batches: false }),
        Arc::new(ours::Ours { batches: true }),
        Arc::new(shove::Shove),
        Arc::new(ruststream::RustStream),
        Arc::new(omniqueue::Omniqueue),
    ];
    // Its consumer always declares the queue, and as a classic one.
    if queue_type == QueueType::Classic {
        all.push(Arc::new(mq_bridge::MqBridge));
    }
    all
}
