//! What only SQLite has to show.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

#[path = "native/admin.rs"]
mod admin;
#[path = "native/consuming.rs"]
mod consuming;
#[path = "native/errors.rs"]
mod errors;
#[path = "native/outbox.rs"]
mod outbox;
#[path = "native/rig.rs"]
mod rig;
