//! The downstream API: a real HTTP service on loopback, down for the first call of one profile, and for good for another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::http;

/// Answers 503 to its first call.
pub(crate) const FLAKY: i64 = 50_000_200;
/// Answers 503 to all of them.
pub(crate) const BROKEN: i64 = 50_000_300;
/// How long a report takes.
const WORK: Duration = Duration::from_millis(8);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) profile: i64,
}

/// Calls so far, by profile.
type Calls = Arc<Mutex<HashMap<i64, u32>>>;

pub(crate) async fn serve(servers: &mut JoinSet<()>) -> Result<SocketAddr> {
    let router = Router::new().route("/v1/reports", post(report)).with_state(Calls::default());
    http::serve(servers, router).await
}

async fn report(State(calls): State<Calls>, Json(request): Json<Request>) -> (StatusCode, Json<Value>) {
    tokio::time::sleep(WORK).await;
    let before = {
        let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry(request.profile).or_default();
        *count += 1;
        *count - 1
    };
    match (request.profile, before) {
        (BROKEN, _) | (FLAKY, 0) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "down for maintenance" })))
        }
        (profile, _) => (StatusCode::OK, Json(json!({ "profile": profile, "impressions": 1_048_576 }))),
    }
}
