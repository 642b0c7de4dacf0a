//! The worker on the memory transport.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "worker/burying.rs"]
mod burying;
#[path = "worker/idempotency.rs"]
mod idempotency;
#[path = "worker/rig.rs"]
mod rig;
#[path = "worker/settling.rs"]
mod settling;
#[path = "worker/shutdown.rs"]
mod shutdown;
#[cfg(feature = "tower")]
#[path = "worker/tower.rs"]
mod tower;
#[path = "worker/tracing.rs"]
mod tracing;
