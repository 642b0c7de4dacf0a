//! Records every span of the process, and finds what a test looks for.

use std::sync::OnceLock;

use opentelemetry::propagation::TextMapCompositePropagator;
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry::{Value, global};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};

/// The recorder of this process: a tracer provider with W3C propagators, installed once. Tests in one process share it,
/// so each looks only at its own trace.
pub struct Recorder {
    exporter: InMemorySpanExporter,
    provider: SdkTracerProvider,
}

impl Recorder {
    /// The recorder, installed on the first call.
    pub fn install() -> &'static Self {
        static RECORDER: OnceLock<Recorder> = OnceLock::new();
        RECORDER.get_or_init(|| {
            let exporter = InMemorySpanExporter::default();
            let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
            global::set_tracer_provider(provider.clone());
            global::set_text_map_propagator(TextMapCompositePropagator::new(vec![
                Box::new(TraceContextPropagator::new()),
                Box::new(BaggagePropagator::new()),
            ]));
            Self { exporter, provider }
        })
    }

    /// The ended spans of a trace, by their start.
    pub fn trace(&self, trace: TraceId) -> Vec<SpanData> {
        self.filter(|span| span.span_context.trace_id() == trace)
    }

    /// The ended spans outside a trace that link to a span in it, by their start.
    pub fn linked_to(&self, trace: TraceId) -> Vec<SpanData> {
        self.filter(|span| {
            span.span_context.trace_id() != trace
                && span.links.iter().any(|link| link.span_context.trace_id() == trace)
        })
    }

    fn filter(&self, keep: impl Fn(&SpanData) -> bool) -> Vec<SpanData> {
        self.provider.force_flush().expect("spans are flushed");
        let mut spans = self.exporter.get_finished_spans().expect("spans are recorded");
        spans.retain(keep);
        spans.sort_by_key(|span| span.start_time);
        spans
    }
}

/// The one span of this name.
pub fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
    assert_eq!(found.len(), 1, "one span '{name}' among {names:?}");
    found.first().copied().expect("counted")
}

/// An attribute of a span.
pub fn attribute<'a>(span: &'a SpanData, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|attribute| attribute.key.as_str() == name).map(|attribute| &attribute.value)
}

/// The spans that a span links to.
pub fn links(span: &SpanData) -> Vec<SpanId> {
    span.links.iter().map(|link| link.span_context.span_id()).collect()
}
