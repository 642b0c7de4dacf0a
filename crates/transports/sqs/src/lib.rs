#![doc = include_str!("../README.md")]

mod admin;
mod batch;
mod config;
mod consumer;
mod diagnose;
mod failures;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod lanes;
mod message;
mod publisher;
mod queue;
mod reject;
mod settle;
pub mod source;
mod transport;

use throughline_core::capabilities;
use throughline_core::driver::Registration;

pub use aws_sdk_sqs;
pub use message::Message;
pub use publisher::measure;

/// How this transport presents itself to `Bus::connect`.
pub const REGISTRATION: Registration = Registration {
    name: "sqs",
    schemes: &["sqs"],
    options: &config::OPTIONS,
    capabilities: &capabilities::SQS,
    connect: transport::connect,
    sibling: config::sibling,
    // Where requests go is an option, not the authority.
    endpoint: |_| None,
};
