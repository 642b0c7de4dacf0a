//! Throughline: one publish/consume API over every message broker, and one trace through every queue.
//!
//! ```
//! use throughline::{Bus, Envelope};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> throughline::Result<()> {
//! let bus = Bus::connect("memory:shop?queue=reports").await?;
//!
//! let publisher = bus.publisher().await?;
//! publisher.publish(Envelope::json("campaign.sync_report", &7)?).await?;
//!
//! let mut consumer = bus.consumer().await?;
//! if let Some(delivery) = consumer.next().await {
//!     let delivery = delivery?;
//!     // In a span named `campaign.sync_report`, a child of the span that published it.
//!     delivery.process(async { delivery.json::<u32>().map(drop) }).await?;
//!     delivery.ack().await?;
//! }
//! consumer.close().await?;
//! bus.close().await
//! # }
//! ```
//!
//! The address alone chooses the transport: `amqp://user:pass@host/%2f?queue=reports` runs the same code on RabbitMQ.
//! Each transport is a feature of this crate, named after it.

mod bus;
#[cfg(feature = "memory")]
mod like;
mod registry;

pub use bus::Bus;
pub use registry::{registered, registrations};
pub use throughline_core::*;

#[cfg(feature = "eventbridge")]
pub use throughline_eventbridge as eventbridge;
#[cfg(feature = "kafka")]
pub use throughline_kafka as kafka;
#[cfg(feature = "memory")]
pub use throughline_memory as memory;
#[cfg(feature = "rabbitmq")]
pub use throughline_rabbitmq as rabbitmq;
#[cfg(feature = "sns")]
pub use throughline_sns as sns;
#[cfg(feature = "sqlite")]
pub use throughline_sqlite as sqlite;
#[cfg(feature = "sqs")]
pub use throughline_sqs as sqs;
#[cfg(feature = "worker")]
pub use throughline_worker as worker;
