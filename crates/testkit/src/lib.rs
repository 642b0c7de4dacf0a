//! What Throughline's own tests share.
//!
//! - [`spans`]: records the spans of a process, and looks at them.
//! - [`endpoint`]: the real brokers that a test run has, and loud skips where there is none.
//! - [`mutant`]: a transport that is broken in exactly one way, to show that the conformance suite sees it.
//! - [`proxy`]: a TCP proxy that can be cut.
//! - [`aws_proxy`]: an HTTP proxy that injects AWS's own failures.
//! - [`carriage`]: whether a codec puts things where the capability table says.
//! - [`aws_raw`]: an AWS emulator without any client.
//! - [`scripted`]: drivers that answer as a test says, for the portable layer's unit tests.
//!
//! It is for tests: what goes wrong panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

pub mod aws_proxy;
pub mod aws_raw;
pub mod carriage;
pub mod endpoint;
pub mod mutant;
pub mod proxy;
pub mod scripted;
pub mod spans;
