//! What only SQS has, against an emulator of it: `THROUGHLINE_AWS_ENDPOINT`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "native/admin.rs"]
mod admin;
#[path = "native/consuming.rs"]
mod consuming;
#[path = "native/diagnosing.rs"]
mod diagnosing;
#[path = "native/faults.rs"]
mod faults;
#[path = "native/fifo.rs"]
mod fifo;
#[path = "native/foreign.rs"]
mod foreign;
#[path = "native/limits.rs"]
mod limits;
#[path = "native/publishing.rs"]
mod publishing;
#[path = "native/rig.rs"]
mod rig;
