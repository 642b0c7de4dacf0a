//! What turns an event into jobs: one for each profile of the company.

use opentelemetry::KeyValue;
use serde::{Deserialize, Serialize};
use throughline::worker::{HandlerError, Job, Json, ResultExt, Router};
use throughline::{Envelope, Publisher};

use crate::api::{SYNC_REQUESTED, SyncRequested};
use crate::database::Database;

/// The jobs' type, and so the name of their spans.
pub(crate) const SYNC_REPORT: &str = "campaign.sync_report";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SyncReport {
    pub(crate) company: i64,
    pub(crate) profile: i64,
}

pub(crate) struct Planner {
    pub(crate) jobs: Publisher,
    pub(crate) database: Database,
}

pub(crate) fn router(planner: Planner) -> Router<Planner> {
    Router::with_state(planner).on(SYNC_REQUESTED, plan)
}

async fn plan(Json(request): Json<SyncRequested>, job: Job<Planner>) -> Result<(), HandlerError> {
    let company = request.company;
    job.set_attribute(KeyValue::new("tenant.company_id", company));
    let profiles = job.state().database.profiles(company).await.dependency("database")?;
    let mut jobs = Vec::with_capacity(profiles.len());
    for profile in profiles {
        let envelope = Envelope::builder(SYNC_REPORT)
            .key(format!("profile-{profile}"))
            .source("campaign-planner")
            // The same event makes the same jobs, should it come twice.
            .idempotency_key(format!("{}-{profile}", job.id()))
            .json(&SyncReport { company, profile })?;
        jobs.push(envelope.build());
    }
    for published in job.state().jobs.publish_batch(jobs).await {
        published.dependency("jobs")?;
    }
    Ok(())
}
