#![doc = include_str!("../README.md")]

mod admin;
mod config;
mod consumer;
mod diagnose;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod publisher;
mod transport;

use throughline_core::capabilities;
use throughline_core::driver::Registration;

pub use aws_sdk_eventbridge;
pub use publisher::measure;
/// The client's own message behind a delivery.
pub use throughline_sqs::Message;

/// How this transport presents itself to `Bus::connect`.
pub const REGISTRATION: Registration = Registration {
    name: "eventbridge",
    schemes: &["eventbridge"],
    options: &config::OPTIONS,
    capabilities: &capabilities::EVENTBRIDGE,
    connect: transport::connect,
    sibling: config::sibling,
    // Where requests go is an option, not the authority.
    endpoint: |_| None,
};
