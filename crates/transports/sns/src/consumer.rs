//! Consuming: from the subscribed queue. What SNS wrapped around a message is taken off there.

use std::sync::Arc;

use throughline_core::driver;
use throughline_core::{ConsumeOptions, Result, capabilities};

use crate::config::Destination;
use crate::transport::Shared;

/// Opens the subscribed queue, which must exist.
pub(crate) async fn open(
    shared: &Shared,
    from: &Destination,
    options: &ConsumeOptions,
) -> Result<Arc<dyn driver::Consumer>> {
    let capabilities = if from.is_fifo() { capabilities::SNS_FIFO } else { capabilities::SNS };
    shared.queues.consumer(&from.queue(), options, capabilities).await
}
