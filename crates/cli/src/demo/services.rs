//! The two HTTP services: the API that publishes, and the stand-in of an ads API that is down for one call.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router, middleware};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, KeyValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use throughline::{Envelope, Publisher};
use throughline_waterfall::STAND_IN;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::http::{self, Route};
use crate::failure::{Exit, Failure};

/// The business operation, and so the name of its spans.
pub(super) const OPERATION: &str = "campaign.sync_report";
pub(super) const COMPANY: i64 = 5000;
pub(super) const PROFILE: i64 = 50_000_100;

/// The message's payload.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) company_id: i64,
    pub(super) profile_id: i64,
}

impl Job {
    /// What the spans of this piece of business have in common.
    pub(super) fn attributes(&self) -> [KeyValue; 3] {
        [
            KeyValue::new("tenant.company_id", self.company_id),
            KeyValue::new("ads.profile_id", self.profile_id),
            KeyValue::new("job.type", "campaign-report-sync"),
        ]
    }
}

/// `POST /sync`: publishes a message and answers 202 once the broker has it.
pub(super) async fn api(servers: &mut JoinSet<()>, publisher: Publisher) -> Result<SocketAddr, Failure> {
    let router = Router::new().route("/sync", post(sync)).with_state(publisher);
    serve(servers, router, &[]).await
}

async fn sync(State(publisher): State<Publisher>, Json(job): Json<Job>) -> (StatusCode, Json<Value>) {
    Context::current().span().set_attributes(job.attributes());
    let envelope = Envelope::builder(OPERATION)
        .key(format!("profile-{}", job.profile_id))
        .source("demo-api")
        .idempotency_key(format!("sync-report-{}", job.profile_id))
        .json(&job)
        .map(|builder| builder.build());
    let published = match envelope {
        Ok(envelope) => {
            let id = envelope.id.clone();
            publisher.publish(envelope).await.map(|_| id)
        }
        Err(error) => Err(error),
    };
    match published {
        Ok(id) => (StatusCode::ACCEPTED, Json(json!({ "message_id": id }))),
        Err(error) => {
            let exit = Exit::of(error.kind()) as u8;
            (StatusCode::BAD_GATEWAY, Json(json!({ "error": error.to_string(), "exit": exit })))
        }
    }
}

/// `POST /v1/reports`: answers 503 to its first call, and 200 from then on.
pub(super) async fn ads_api(servers: &mut JoinSet<()>) -> Result<SocketAddr, Failure> {
    let calls = Arc::new(AtomicU32::new(0));
    let router = Router::new().route("/v1/reports", post(report)).with_state(calls);
    serve(servers, router, &[KeyValue::new(STAND_IN, true)]).await
}

async fn report(State(calls): State<Arc<AtomicU32>>, Json(job): Json<Job>) -> (StatusCode, Json<Value>) {
    http::pretend_to_work(6).await;
    match calls.fetch_add(1, Ordering::Relaxed) {
        0 => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "down for maintenance" }))),
        _ => (StatusCode::OK, Json(json!({ "profile_id": job.profile_id, "impressions": 1_048_576 }))),
    }
}

async fn serve(
    servers: &mut JoinSet<()>,
    router: Router,
    attributes: &[KeyValue],
) -> Result<SocketAddr, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Exit::Failed, "cannot listen on a port of the loopback interface").caused_by(&error)
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    let route = Route { address, attributes: attributes.into() };
    let router = router.layer(middleware::from_fn_with_state(route, http::traced));
    servers.spawn(async move {
        // It ends with the demo.
        let _ = axum::serve(listener, router).await;
    });
    Ok(address)
}
