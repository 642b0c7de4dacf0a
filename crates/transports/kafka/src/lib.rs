#![doc = include_str!("../README.md")]

mod acked;
mod admin;
mod cluster;
mod codec;
mod config;
mod connect;
mod consumer;
mod deadletter;
mod diagnose;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod memory;
mod message;
mod native;
mod onward;
mod partition;
mod poll;
mod producer;
mod publisher;
mod reports;
mod state;
mod transport;

use throughline_core::capabilities;
use throughline_core::driver::Registration;

pub use message::Message;
pub use publisher::measure;
pub use rdkafka;

/// How this transport presents itself to `Bus::connect`.
pub const REGISTRATION: Registration = Registration {
    name: "kafka",
    schemes: &["kafka"],
    options: config::OPTIONS,
    capabilities: &capabilities::KAFKA,
    connect: transport::connect,
    sibling: config::sibling,
    // The brokers' own list says where to go.
    endpoint: |_| None,
};
