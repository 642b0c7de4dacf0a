//! HTTP with trace context: a client that injects it, a middleware that extracts it, and their spans by the HTTP conventions
//! (semantic-conventions 1.44).

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::{self, Next};
use axum::response::Response;
use opentelemetry::context::FutureExt;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use reqwest::StatusCode;
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const SCOPE: &str = "campaign_sync";
/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs `work` in a span, and gives its context; `end` says of the outcome what the span is to say.
pub(crate) async fn spanned<T>(
    name: String,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    work: impl Future<Output = T>,
    end: impl FnOnce(&T, &Context),
) -> (T, Context) {
    let tracer = global::tracer(SCOPE);
    let span = tracer.span_builder(name).with_kind(kind).with_attributes(attributes).start(&tracer);
    let context = Context::current_with_span(span);
    let outcome = work.with_context(context.clone()).await;
    end(&outcome, &context);
    context.span().end();
    (outcome, context)
}

/// Marks a span as failed.
pub(crate) fn failed(context: &Context, class: String, why: String) {
    context.span().set_attribute(KeyValue::new("error.type", class));
    context.span().set_status(Status::error(why));
}

/// An HTTP client that carries the trace on.
#[derive(Clone, Debug)]
pub(crate) struct Client(reqwest::Client);

impl Client {
    pub(crate) fn new() -> Result<Self> {
        // Loopback needs no proxy, whatever the environment says.
        Ok(Self(reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?))
    }

    /// Posts JSON within a client span; gives the answer, and the span's context.
    pub(crate) async fn post(
        &self,
        service: &'static str,
        to: SocketAddr,
        path: &'static str,
        body: &impl Serialize,
    ) -> (reqwest::Result<(StatusCode, Value)>, Context) {
        let url = format!("http://{to}{path}");
        let attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("url.full", url.clone()),
            KeyValue::new("server.address", to.ip().to_string()),
            KeyValue::new("server.port", i64::from(to.port())),
            KeyValue::new("peer.service", service),
        ];
        let call = async {
            let mut headers = HeaderMap::new();
            global::get_text_map_propagator(|propagator| {
                propagator.inject_context(&Context::current(), &mut HeaderInjector(&mut headers));
            });
            // An empty `tracestate` says nothing.
            if headers.get("tracestate").is_some_and(|state| state.is_empty()) {
                headers.remove("tracestate");
            }
            let response = self.0.post(&url).headers(headers).json(body).send().await?;
            let status = response.status();
            Ok((status, response.json().await?))
        };
        let end = |answer: &reqwest::Result<(StatusCode, Value)>, context: &Context| match answer {
            Ok((status, _)) => answered(context, *status, status.is_client_error()),
            Err(error) => failed(context, "transport".to_owned(), error.to_string()),
        };
        spanned(format!("POST {path}"), SpanKind::Client, attributes, call, end).await
    }
}

fn answered(context: &Context, status: StatusCode, is_our_fault: bool) {
    let span = context.span();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if is_our_fault || status.is_server_error() {
        failed(context, status.as_u16().to_string(), status.to_string());
    }
}

/// Serves on a free loopback port until the set is dropped, each request in a server span below the context that it carries.
pub(crate) async fn serve(servers: &mut JoinSet<()>, router: Router) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let router = router.layer(middleware::from_fn(move |request, next| traced(address, request, next)));
    servers.spawn(async move {
        // It ends with the set.
        let _ = axum::serve(listener, router).await;
    });
    Ok(address)
}

async fn traced(address: SocketAddr, request: Request, next: Next) -> Response {
    let parent = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &HeaderExtractor(request.headers()))
    });
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let attributes = vec![
        KeyValue::new("http.request.method", method.clone()),
        KeyValue::new("http.route", path.clone()),
        KeyValue::new("url.path", path.clone()),
        KeyValue::new("url.scheme", "http"),
        KeyValue::new("server.address", address.ip().to_string()),
        KeyValue::new("server.port", i64::from(address.port())),
    ];
    let work = next.run(request);
    let served =
        spanned(format!("{method} {path}"), SpanKind::Server, attributes, work, |response, context| {
            answered(context, response.status(), false);
        });
    served.with_context(parent).await.0
}
