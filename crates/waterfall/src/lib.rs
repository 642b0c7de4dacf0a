//! A recorded trace as a picture: a waterfall in the terminal, and a self-contained HTML page.
//!
//! [`Recorder`] keeps the spans of a process; [`of_trace`] picks those of one trace, [`rows`] puts each below its parent, and
//! [`terminal::render`] or [`html::page`] draws them.
//!
//! ```
//! use opentelemetry::trace::{Tracer, TracerProvider};
//! use opentelemetry_sdk::trace::SdkTracerProvider;
//! use throughline_waterfall::{Recorder, html, rows, terminal};
//!
//! let recorder = Recorder::default();
//! let provider = SdkTracerProvider::builder().with_simple_exporter(recorder.clone()).build();
//! provider.tracer("example").in_span("campaign.sync_report", |_| ());
//!
//! let spans = recorder.take();
//! let rows = rows(&spans);
//! assert!(terminal::render(&rows, 100, false).contains("campaign.sync_report"));
//! assert!(html::page("An example", &[], &rows).starts_with("<!doctype html>"));
//! ```

pub mod html;
mod recorder;
mod span;
pub mod terminal;
mod tree;

pub use recorder::Recorder;
pub use span::{Attributes, Kind, Link, Outcome, STAND_IN, Span, millis, of_trace};
pub use tree::{Row, rows};
