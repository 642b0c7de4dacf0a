//! The work itself: the database, the downstream API, the database again.

use std::net::SocketAddr;

use opentelemetry::KeyValue;
use throughline::worker::{HandlerError, Job, Json, ResultExt, Router};

use crate::ads;
use crate::database::Database;
use crate::http::Client;
use crate::planner::{SYNC_REPORT, SyncReport};

pub(crate) struct Reports {
    pub(crate) database: Database,
    pub(crate) client: Client,
    pub(crate) ads_api: SocketAddr,
}

pub(crate) fn router(reports: Reports) -> Router<Reports> {
    Router::with_state(reports).on(SYNC_REPORT, sync_report)
}

async fn sync_report(Json(report): Json<SyncReport>, job: Job<Reports>) -> Result<(), HandlerError> {
    job.set_attribute(KeyValue::new("tenant.company_id", report.company));
    job.set_attribute(KeyValue::new("ads.profile_id", report.profile));
    job.set_attribute(KeyValue::new("job.type", "campaign-report-sync"));
    let Reports { database, client, ads_api } = &**job.state();
    let account = database.account(report.profile).await.dependency("database")?;
    if account.is_none() {
        let missing = format!("there is no profile {}", report.profile);
        return Err(HandlerError::permanent(missing).with_class("unknown_profile"));
    }
    let impressions =
        fetch(client, *ads_api, report.profile).await.map_err(|e| e.with_dependency("ads-api"))?;
    database.save(report.profile, impressions).await.dependency("database")?;
    Ok(())
}

async fn fetch(client: &Client, ads_api: SocketAddr, profile: i64) -> Result<i64, HandlerError> {
    let (answer, _) = client.post("ads-api", ads_api, "/v1/reports", &ads::Request { profile }).await;
    let (status, body) = answer?;
    if !status.is_success() {
        let error = HandlerError::retryable(format!("ads-api answered {status}"));
        return Err(error.with_class(format!("http_{}", status.as_u16())));
    }
    let impressions = body.get("impressions").and_then(serde_json::Value::as_i64);
    impressions
        .ok_or_else(|| HandlerError::permanent("the report has no impressions").with_class("bad_answer"))
}
