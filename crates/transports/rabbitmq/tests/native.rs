//! What only RabbitMQ has, against a real one: `THROUGHLINE_RABBITMQ_URL`, without a destination.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "native/admin.rs"]
mod admin;
#[path = "native/channels.rs"]
mod channels;
#[path = "native/connecting.rs"]
mod connecting;
#[path = "native/consuming.rs"]
mod consuming;
#[path = "native/diagnosing.rs"]
mod diagnosing;
#[path = "native/foreign.rs"]
mod foreign;
#[path = "native/publishing.rs"]
mod publishing;
#[path = "native/reconnecting.rs"]
mod reconnecting;
#[path = "native/retrying.rs"]
mod retrying;
#[path = "native/rig.rs"]
mod rig;
#[path = "native/tls.rs"]
mod tls;
