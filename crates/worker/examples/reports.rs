//! A worker with retries, dead letters and idempotency, on an address of your choice:
//! `cargo run -p throughline-worker --example reports -- 'memory:demo?queue=reports&dead_letter=reports.dead'`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use serde::{Deserialize, Serialize};
use throughline::{Bus, Envelope};
use throughline_worker::{HandlerError, Idempotency, Job, Json, MemoryStore, ResultExt, RetryPolicy, Router};
use tokio::sync::Notify;

#[derive(Serialize, Deserialize)]
struct SyncReport {
    company: i64,
}

/// Stands for a database and a downstream API, which fails the first time.
#[derive(Default)]
struct App {
    was_asked: AtomicBool,
    done: Notify,
}

impl App {
    async fn fetch(&self) -> std::io::Result<&'static str> {
        match self.was_asked.swap(true, Ordering::Relaxed) {
            false => Err(std::io::Error::other("503 Service Unavailable")),
            true => Ok("42 clicks"),
        }
    }
}

async fn sync_report(Json(report): Json<SyncReport>, job: Job<Arc<App>>) -> Result<(), HandlerError> {
    job.set_attribute(KeyValue::new("tenant.company_id", report.company));
    println!("attempt {} for company {}", job.attempt(), report.company);
    let clicks = job.state().fetch().await.dependency("ads-api").class("http_503")?;
    println!("{clicks}");
    job.state().done.notify_one();
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> throughline::Result<()> {
    let address = std::env::args().nth(1);
    let bus =
        Bus::connect(address.as_deref().unwrap_or("memory:demo?queue=reports&dead_letter=dead")).await?;
    let publisher = bus.publisher().await?;
    publisher.publish(Envelope::json("campaign.sync_report", &SyncReport { company: 5000 })?).await?;

    let app = Arc::new(App::default());
    let router = Router::with_state(app.clone()).on("campaign.sync_report", sync_report);
    let report = bus
        .worker(router)
        .concurrency(16)
        .timeout(Duration::from_secs(60))
        .retry(RetryPolicy::default().initial(Duration::from_millis(200)))
        .idempotency(Idempotency::new(MemoryStore::new()))
        // A service gives `shutdown_signal()`, which is SIGTERM or Ctrl-C.
        .run(async { app.done.notified().await })
        .await?;
    println!("{report:?}");
    bus.close().await
}
