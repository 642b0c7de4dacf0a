//! The worker: a plain loop that processes each message in its span, and acknowledges or retries it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry::context::FutureExt;
use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use throughline::{Consumer, Delivery, Failure as Attempt};

use super::http::{self, Client, SCOPE};
use super::services::Job;
use crate::failure::{Exit, Failure};
use throughline_waterfall::STAND_IN;

/// The wait before the second attempt.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// The downstream service fails once; more attempts than this are a fault of the demo's own.
const MAX_ATTEMPTS: u32 = 4;
/// The dependency that fails.
const ADS_API: &str = "ads-api";

/// Works until the demo's message is done.
pub(super) async fn work(
    mut consumer: Consumer,
    message: &str,
    client: &Client,
    ads_api: &SocketAddr,
) -> Result<(), Failure> {
    let mut foreign: Vec<Delivery> = Vec::new();
    let result = loop {
        let delivery = match next_of(message, &mut consumer, &mut foreign).await {
            Ok(delivery) => delivery,
            Err(failure) => break Err(failure),
        };
        let settled = match delivery.process(sync_report(&delivery, client, ads_api)).await {
            Ok(()) => break delivery.ack().await.map_err(Failure::from),
            Err(failed) if delivery.attempt() >= MAX_ATTEMPTS => {
                let mut text = format!("attempt {} failed too: {failed}", delivery.attempt());
                if let Err(error) = delivery.reject(failed.attempt()).await {
                    text.push_str(&format!("; the message was not rejected: {error}"));
                }
                break Err(Failure::new(Exit::Failed, text));
            }
            Err(failed) => delivery.retry(RETRY_DELAY, failed.attempt()).await,
        };
        if let Err(error) = settled {
            break Err(error.into());
        }
    };
    drop(foreign);
    let closed = consumer.close().await;
    result?;
    closed?;
    Ok(())
}

/// The next delivery of a message. What is somebody else's, in a queue that the user named, is kept: dropped with the rest, it
/// is released.
pub(super) async fn next_of(
    message: &str,
    consumer: &mut Consumer,
    foreign: &mut Vec<Delivery>,
) -> Result<Delivery, Failure> {
    loop {
        match consumer.next().await {
            Some(Ok(delivery)) if delivery.id() == message => return Ok(delivery),
            Some(Ok(delivery)) => foreign.push(delivery),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Failure::new(Exit::Failed, "the queue ended before the message was done")),
        }
    }
}

/// The business work: the database, then the downstream service.
async fn sync_report(delivery: &Delivery, client: &Client, ads_api: &SocketAddr) -> Result<(), SyncFailed> {
    let job: Job = delivery.json().map_err(|error| SyncFailed::new("undecodable", None, error))?;
    Context::current().span().set_attributes(job.attributes());
    load_profile().await;
    let call = client.post(ADS_API, ads_api, "/v1/reports", &job).await;
    match call {
        Ok((answer, _)) if answer.status == 200 => Ok(()),
        Ok((answer, _)) => {
            let text = format!("{ADS_API} answered {}", answer.status);
            Err(SyncFailed::new(&format!("http_{}", answer.status), Some(ADS_API), text))
        }
        Err(failure) => Err(SyncFailed::new("transport", Some(ADS_API), failure)),
    }
}

/// Stands in for a query: a span as a database client would make it, and a pause.
async fn load_profile() {
    let tracer = global::tracer(SCOPE);
    let span = tracer
        .span_builder("SELECT ads_profiles")
        .with_kind(SpanKind::Client)
        .with_attributes([
            KeyValue::new("db.system.name", "other_sql"),
            KeyValue::new("db.operation.name", "SELECT"),
            KeyValue::new("db.collection.name", "ads_profiles"),
            KeyValue::new("db.query.text", "SELECT * FROM ads_profiles WHERE id = ?"),
            KeyValue::new(STAND_IN, true),
        ])
        .start(&tracer);
    let context = Context::current_with_span(span);
    http::pretend_to_work(4).with_context(context.clone()).await;
    context.span().end();
}

/// Why an attempt failed.
#[derive(Debug)]
struct SyncFailed {
    class: String,
    dependency: Option<&'static str>,
    text: String,
}

impl SyncFailed {
    fn new(class: &str, dependency: Option<&'static str>, text: impl fmt::Display) -> Self {
        Self { class: class.to_owned(), dependency, text: text.to_string() }
    }

    /// For the message's history, and the span of the next attempt.
    fn attempt(&self) -> Attempt {
        let attempt = Attempt::new(self.class.clone()).message(self.text.clone());
        match self.dependency {
            Some(dependency) => attempt.dependency(dependency),
            None => attempt,
        }
    }
}

impl fmt::Display for SyncFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
