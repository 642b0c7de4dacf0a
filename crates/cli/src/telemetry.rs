//! Spans out of this process, by OTLP, where the environment names an endpoint; and the log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::propagation::TextMapCompositePropagator;
use opentelemetry_otlp::SpanExporter as Otlp;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
use throughline_waterfall::Recorder;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::{Exit, Failure};
use crate::output::Console;

/// How long the last spans may take to leave.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// Where the endpoint is named; the first that is set counts.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Logs to stderr: `RUST_LOG`, else what `-v` asks for, else our own warnings. What a client library has to say reaches the
/// user in our errors.
pub(crate) fn log_to_stderr(verbose: u8) {
    let own = Targets::new().with_target("throughline", LevelFilter::WARN);
    let by_verbosity = match verbose {
        0 => own,
        1 => own.with_default(LevelFilter::WARN).with_target("throughline", LevelFilter::INFO),
        2 => Targets::new().with_default(LevelFilter::DEBUG),
        _ => Targets::new().with_default(LevelFilter::TRACE),
    }
    // The client logs returned messages with their bodies.
    .with_target("lapin::returned_messages", LevelFilter::OFF);
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let targets = asked.and_then(|text| text.parse().ok()).unwrap_or(by_verbosity);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // It fails where there is one already, which nobody installs before.
    let _ = tracing_subscriber::registry().with(layer).with(targets).try_init();
}

/// The tracer provider, where there is one, and how its export went.
#[derive(Debug)]
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
    endpoint: Option<String>,
    lost: Arc<Mutex<Lost>>,
}

impl Telemetry {
    /// Installs a tracer provider and the W3C propagators, if the environment names an OTLP endpoint or there is a
    /// recorder. Without, spans cost nothing and contexts are forwarded verbatim.
    pub(crate) fn install(service: &'static str, recorder: Option<Recorder>) -> Result<Self, Failure> {
        let lost = Arc::<Mutex<Lost>>::default();
        let exporter = endpoint()?.map(|endpoint| (exporter(lost.clone()), endpoint));
        if exporter.is_none() && recorder.is_none() {
            return Ok(Self { provider: None, endpoint: None, lost });
        }
        let mut builder = SdkTracerProvider::builder().with_resource(resource(service));
        if let Some(recorder) = recorder {
            // All that is recorded is drawn, whatever sampler the environment names.
            builder = builder.with_sampler(Sampler::AlwaysOn).with_simple_exporter(recorder);
        }
        let mut exporting = None;
        if let Some((exporter, endpoint)) = exporter {
            builder = builder.with_batch_exporter(exporter?);
            exporting = Some(endpoint);
        }
        let provider = builder.build();
        global::set_tracer_provider(provider.clone());
        global::set_text_map_propagator(TextMapCompositePropagator::new(vec![
            Box::new(TraceContextPropagator::new()),
            Box::new(BaggagePropagator::new()),
        ]));
        Ok(Self { provider: Some(provider), endpoint: exporting, lost })
    }

    /// Whether spans leave this process.
    pub(crate) fn exports(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Sends the last spans, and tells what could not be sent. Blocks.
    pub(crate) fn finish(self, console: &Console) {
        let Some(provider) = self.provider else { return };
        let result = provider.shutdown_with_timeout(SHUTDOWN);
        let Some(endpoint) = self.endpoint else { return };
        let lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        match (lost.why, result) {
            (Some(why), _) => {
                console.warn(&format!("{} spans could not be exported to {endpoint}: {why}", lost.spans));
            }
            (None, Err(error)) => {
                console.warn(&format!("spans may not have reached {endpoint}: {error}"));
            }
            (None, Ok(())) => {}
        }
    }
}

/// The endpoint that the environment names, without what must not be shown.
fn endpoint() -> Result<Option<String>, Failure> {
    let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    let named = ENDPOINTS.into_iter().find_map(|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value))
    });
    let Some((name, value)) = named.filter(|_| !disabled) else { return Ok(None) };
    let Some(rest) = value.strip_prefix("http://") else {
        return Err(Failure::usage(format!("{name}: this build exports to http:// endpoints only"))
            .hint("point it at a collector nearby, such as http://localhost:4318"));
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    Ok(Some(format!("http://{host}")))
}

fn exporter(lost: Arc<Mutex<Lost>>) -> Result<Exporter, Failure> {
    let otlp = Otlp::builder().with_http().build().map_err(|error| {
        Failure::new(Exit::Usage, "the OTEL_EXPORTER_OTLP_* variables do not make an exporter")
            .caused_by(&error)
    })?;
    Ok(Exporter { otlp, lost })
}

/// The environment's resource; with our service name, where it has none.
fn resource(service: &'static str) -> Resource {
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|text| text.contains("service.name="));
    let builder = Resource::builder();
    if named { builder.build() } else { builder.with_service_name(service).build() }
}

/// The OTLP exporter, remembering what it could not send.
#[derive(Debug)]
struct Exporter {
    otlp: Otlp,
    lost: Arc<Mutex<Lost>>,
}

#[derive(Debug, Default)]
struct Lost {
    spans: usize,
    why: Option<String>,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.otlp.export(batch).await;
        if let Err(error) = &result {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.spans += count;
            lost.why = Some(error.to_string());
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}
