//! The core of Throughline: the [`Envelope`] that every broker carries, the [driver contract](driver) that every
//! adapter fulfils, and the portable [`Publisher`] and [`Consumer`] that users hold.
//!
//! There is no broker code and no I/O here. Batching, limits, order per key, resending, tracing, prefetch, settlement
//! and lease extension live in this crate once; an adapter only translates.
//!
//! Most users depend on the facade crate, `throughline`, which re-exports all of this together with `Bus::connect`.

pub mod address;
mod answer;
mod batch;
mod browse;
pub mod capabilities;
pub mod carriage;
pub mod codec;
mod consumer;
mod delivery;
pub mod diagnosis;
pub mod driver;
mod envelope;
mod error;
pub mod gate;
pub mod headers;
mod lease;
mod metrics;
pub mod pack;
mod publisher;
pub mod retry;
mod settle;
mod sibling;
mod timestamp;
pub mod trace;

pub use address::Address;
pub use capabilities::Capabilities;
pub use codec::{Codec, Json};
pub use consumer::{ConsumeOptions, Consumer, Order, SettleErrors};
pub use delivery::{Delivery, Process, QueueDelay};
pub use diagnosis::{DiagnoseOptions, Diagnosis};
pub use driver::{Depth, Receipt};
pub use envelope::{Envelope, EnvelopeBuilder, IdOrigin};
pub use error::{Error, ErrorKind, Result, Retry};
pub use headers::{HeaderValue, Headers};
pub use publisher::{KeyOrder, Pending, PublishOptions, Publisher, SendOptions, WeakPublisher};
pub use retry::{Failure, History};
pub use timestamp::Timestamp;
