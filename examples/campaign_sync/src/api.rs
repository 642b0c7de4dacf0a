//! The service that the request goes to: it publishes an event, and answers once the broker has it.

use std::net::SocketAddr;

use anyhow::Result;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, KeyValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use throughline::{Envelope, Publisher};
use tokio::task::JoinSet;

use crate::http;

/// The event's type, and so the name of its spans.
pub(crate) const SYNC_REQUESTED: &str = "campaign.sync_requested";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SyncRequested {
    pub(crate) company: i64,
}

pub(crate) async fn serve(servers: &mut JoinSet<()>, events: Publisher) -> Result<SocketAddr> {
    http::serve(servers, Router::new().route("/sync", post(sync)).with_state(events)).await
}

async fn sync(
    State(events): State<Publisher>,
    Json(request): Json<SyncRequested>,
) -> (StatusCode, Json<Value>) {
    Context::current().span().set_attribute(KeyValue::new("tenant.company_id", request.company));
    match publish(&events, &request).await {
        Ok(id) => (StatusCode::ACCEPTED, Json(json!({ "event": id }))),
        Err(error) => (StatusCode::BAD_GATEWAY, Json(json!({ "error": error.to_string() }))),
    }
}

async fn publish(events: &Publisher, request: &SyncRequested) -> throughline::Result<String> {
    let event = Envelope::builder(SYNC_REQUESTED).source("campaign-api").json(request)?.build();
    let id = event.id.clone();
    events.publish(event).await?;
    Ok(id)
}
