//! Consuming: from the rule's target queue. What EventBridge makes of a message is undone there.

use std::sync::Arc;

use throughline_core::driver;
use throughline_core::{ConsumeOptions, Result, capabilities};

use crate::config::Destination;
use crate::transport::Shared;

/// Opens the target queue, which must exist.
pub(crate) async fn open(
    shared: &Shared,
    from: &Destination,
    options: &ConsumeOptions,
) -> Result<Arc<dyn driver::Consumer>> {
    shared.queues.consumer(&from.address, options, capabilities::EVENTBRIDGE).await
}
