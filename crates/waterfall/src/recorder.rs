//! Keeps the spans of a process.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use crate::span::Span;

/// An exporter that keeps every ended span in memory until it is taken: for one scenario, not for a service. Clones share what
/// they keep.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<SpanData>>>);

impl Recorder {
    /// The spans that have ended since the last call, in the order in which they ended.
    pub fn take(&self) -> Vec<Span> {
        let taken = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        taken.iter().map(Span::from).collect()
    }
}

impl SpanExporter for Recorder {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(batch);
        Ok(())
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}
