#![doc = include_str!("../README.md")]

mod admin;
mod claim;
mod codec;
mod config;
mod connect;
mod consumer;
mod diagnose;
mod error;
mod file;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod insert;
mod lease;
#[cfg(test)]
mod model;
mod network;
mod outbox;
#[cfg(test)]
mod plans;
mod publisher;
mod ready;
mod schema;
mod settle;
mod store;
mod writer;

pub use admin::Sqlite;
pub use outbox::Outbox;
pub use rusqlite;
use throughline_core::Address;
use throughline_core::capabilities;
use throughline_core::driver::{Connecting, Registration};

/// How this transport presents itself to `Bus::connect`.
pub static REGISTRATION: Registration = Registration {
    name: "sqlite",
    schemes: &["sqlite"],
    options: config::OPTIONS,
    capabilities: &capabilities::SQLITE,
    connect,
    sibling: config::sibling,
    endpoint: |_| None,
};

fn connect(address: Address) -> Connecting {
    Box::pin(async move { Sqlite::open(&address).await })
}
