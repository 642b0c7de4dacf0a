//! HTTP with trace context: a client that injects it, a middleware that extracts it, and their spans by the HTTP
//! conventions (semantic-conventions 1.44).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::context::FutureExt;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Exit, Failure};

/// The instrumentation scope of the demo's own spans.
pub(super) const SCOPE: &str = "throughline-demo";
/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Stands in for work that takes some time.
pub(super) async fn pretend_to_work(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// An HTTP client that carries the trace on.
#[derive(Clone, Debug)]
pub(super) struct Client(reqwest::Client);

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Client {
    pub(super) fn new() -> Result<Self, Failure> {
        // Loopback needs no proxy, whatever the environment says.
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build();
        client
            .map(Self)
            .map_err(|error| Failure::new(Exit::Failed, "cannot make an HTTP client").caused_by(&error))
    }

    /// Posts JSON within a client span below the current one; gives the answer, and the span's context.
    pub(super) async fn post(
        &self,
        service: &'static str,
        to: &SocketAddr,
        path: &'static str,
        body: &impl Serialize,
    ) -> Result<(Answer, Context), Failure> {
        let url = format!("http://{to}{path}");
        let tracer = global::tracer(SCOPE);
        let span = tracer
            .span_builder(format!("POST {path}"))
            .with_kind(SpanKind::Client)
            .with_attributes([
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("url.full", url.clone()),
                KeyValue::new("server.address", to.ip().to_string()),
                KeyValue::new("server.port", i64::from(to.port())),
                KeyValue::new("peer.service", service),
            ])
            .start(&tracer);
        let context = Context::current_with_span(span);
        let mut headers = HeaderMap::new();
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Headers(&mut headers));
        });
        let call = async {
            let response = self.0.post(&url).headers(headers).json(body).send().await?;
            let status = response.status();
            let body = response.json().await?;
            Ok::<_, reqwest::Error>((status, body))
        };
        let result = call.with_context(context.clone()).await;
        let span = context.span();
        let answer = match result {
            Ok((status, body)) => {
                span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
                if status.is_client_error() || status.is_server_error() {
                    span.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
                    span.set_status(Status::error(format!("{service} answered {status}")));
                }
                Ok(Answer { status: status.as_u16(), body })
            }
            Err(error) => {
                span.set_attribute(KeyValue::new("error.type", "transport"));
                span.set_status(Status::error(error.to_string()));
                Err(Failure::new(Exit::Failed, format!("the call of {service} failed")).caused_by(&error))
            }
        };
        span.end();
        Ok((answer?, context.clone()))
    }
}

/// What a server's spans say of it.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) address: SocketAddr,
    pub(super) attributes: Arc<[KeyValue]>,
}

/// Handles a request within a server span, below the context that the request carries.
pub(super) async fn traced(State(route): State<Route>, mut request: Request, next: Next) -> Response {
    let parent = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &Headers(request.headers_mut()))
    });
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.clone()),
        KeyValue::new("http.route", path.clone()),
        KeyValue::new("url.path", path.clone()),
        KeyValue::new("url.scheme", "http"),
        KeyValue::new("server.address", route.address.ip().to_string()),
        KeyValue::new("server.port", i64::from(route.address.port())),
    ];
    attributes.extend_from_slice(&route.attributes);
    let tracer = global::tracer(SCOPE);
    let span = tracer
        .span_builder(format!("{method} {path}"))
        .with_kind(SpanKind::Server)
        .with_attributes(attributes)
        .start_with_context(&tracer, &parent);
    let context = parent.with_span(span);
    let response = next.run(request).with_context(context.clone()).await;
    let (span, status) = (context.span(), response.status());
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if status.is_server_error() {
        span.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
        span.set_status(Status::error(status.to_string()));
    }
    span.end();
    response
}

/// HTTP headers as a carrier.
struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty `tracestate` says nothing.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value))
            && !value.is_empty()
        {
            self.0.insert(name, value);
        }
    }
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
