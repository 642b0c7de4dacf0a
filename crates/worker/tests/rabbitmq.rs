//! The worker on a real RabbitMQ: killed, told to end, poisoned, cut off. `THROUGHLINE_RABBITMQ_URL`, without a destination.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "rabbitmq/messages.rs"]
mod messages;
#[path = "rabbitmq/processes.rs"]
mod processes;
#[path = "rabbitmq/rig.rs"]
mod rig;
