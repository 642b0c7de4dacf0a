//! What only Kafka has, on a real one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "native/rig.rs"]
mod rig;

#[path = "native/acked.rs"]
mod acked;
#[path = "native/admin.rs"]
mod admin;
#[path = "native/connecting.rs"]
mod connecting;
#[path = "native/consuming.rs"]
mod consuming;
#[path = "native/diagnosing.rs"]
mod diagnosing;
#[path = "native/foreign.rs"]
mod foreign;
#[path = "native/mock.rs"]
mod mock;
#[path = "native/publishing.rs"]
mod publishing;
#[path = "native/rebalancing.rs"]
mod rebalancing;
#[path = "native/retrying.rs"]
mod retrying;
