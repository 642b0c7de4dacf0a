#![doc = include_str!("../README.md")]

mod admin;
mod codec;
mod config;
mod confirm;
mod connect;
mod consumer;
mod delay;
mod diagnose;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod publisher;
mod republish;
mod settle;
mod tls;
mod transport;
mod value;
mod window;

use throughline_core::capabilities;
use throughline_core::driver::Registration;

pub use lapin;
pub use message::Message;
pub use publisher::measure;

/// How this transport presents itself to `Bus::connect`.
pub const REGISTRATION: Registration = Registration {
    name: "rabbitmq",
    schemes: &["amqp", "amqps"],
    options: config::OPTIONS,
    capabilities: &capabilities::RABBITMQ,
    connect: transport::connect,
    sibling: config::sibling,
    endpoint: config::endpoint,
};
