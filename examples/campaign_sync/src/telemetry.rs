//! Spans: kept in memory for the waterfall, and sent by OTLP where `OTEL_EXPORTER_OTLP_ENDPOINT` says where to.

use anyhow::{Context, Result};
use opentelemetry::global;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use throughline_waterfall::{Recorder, Span};

pub(crate) struct Telemetry {
    provider: SdkTracerProvider,
    recorder: Recorder,
}

impl Telemetry {
    pub(crate) fn install() -> Result<Self> {
        let recorder = Recorder::default();
        let resource = Resource::builder().with_service_name("campaign_sync").build();
        let mut builder =
            SdkTracerProvider::builder().with_resource(resource).with_simple_exporter(recorder.clone());
        if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some_and(|endpoint| !endpoint.is_empty()) {
            let exporter = SpanExporter::builder().with_http().build().context("no OTLP exporter")?;
            builder = builder.with_batch_exporter(exporter);
        }
        let provider = builder.build();
        global::set_tracer_provider(provider.clone());
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self { provider, recorder })
    }

    /// Sends what is left; gives all that was recorded.
    pub(crate) async fn finish(self) -> Vec<Span> {
        let Self { provider, recorder } = self;
        // It blocks until the collector has answered.
        match tokio::task::spawn_blocking(move || provider.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("warning: spans were not exported: {error}"),
            Err(error) => eprintln!("warning: spans were not exported: {error}"),
        }
        recorder.take()
    }
}
