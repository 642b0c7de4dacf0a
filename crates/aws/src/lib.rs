//! What Throughline's `sqs`, `sns` and `eventbridge` transports share.
//!
//! - [`settings`]: region, profile, endpoint and credentials, from an address and AWS's standard chain.
//! - [`error`]: what AWS answers, as Throughline's errors, with a retry class that is true.
//! - [`codec`]: an envelope as a body and at most ten attributes, and back; with [`attribute`], [`text`] and [`group`].
//! - [`event`]: an envelope as an EventBridge event, and back.
//! - [`xray`]: X-Ray's trace header as W3C's `traceparent`, and back.
//! - [`notification`]: what SNS wraps around a message where raw delivery is off.
//!
//! All but [`settings`] is pure: no I/O, no clock.

pub mod attribute;
pub mod codec;
pub mod error;
pub mod event;
pub mod group;
mod json;
pub mod notification;
pub mod settings;
pub mod text;
pub mod xray;
