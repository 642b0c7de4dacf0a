#![doc = include_str!("../README.md")]

mod admin;
mod broker;
mod config;
mod consumer;
mod diagnose;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod like;
mod publisher;
mod queue;
mod stored;

pub use admin::Memory;
pub use like::{LIKE, Measure};
use throughline_core::Address;
use throughline_core::capabilities;
use throughline_core::driver::{Connecting, Registration};

/// How this transport presents itself to `Bus::connect`.
pub const REGISTRATION: Registration = Registration {
    name: "memory",
    schemes: &["memory"],
    options: config::OPTIONS,
    capabilities: &capabilities::MEMORY,
    connect,
    sibling: config::sibling,
    endpoint: |_| None,
};

fn connect(address: Address) -> Connecting {
    Box::pin(async move { Memory::open(&address) })
}
