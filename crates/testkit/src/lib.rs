//! What Throughline's own tests share.
//!
//! - [`spans`]: records the spans of a process, and looks at them.
//! - [`endpoint`]: the real brokers that a test run has, and loud skips where there is none.
//! - [`proxy`]: a TCP proxy that can be cut.
//! - [`scripted`]: drivers that answer as a test says, for the portable layer's unit tests.
//!
//! It is for tests: what goes wrong panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub mod endpoint;
pub mod proxy;
pub mod scripted;
pub mod spans;
