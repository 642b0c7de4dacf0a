//! What a worker counts. A binary of its own, because a meter provider is the whole process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, SumDataPoint};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use throughline::{Bus, Envelope};
use throughline_worker::{
    HandlerError, Idempotency, Job, Json, MemoryStore, Report, ResultExt, RetryPolicy, Router,
};
use tokio::sync::Notify;

fn label<T>(point: &SumDataPoint<T>) -> String {
    let ours = ["throughline.worker.outcome", "throughline.worker.state", "error.type"];
    let named = |key: &str| ours.contains(&key) || key == "throughline.failure.dependency";
    let mut pairs: Vec<_> =
        point.attributes().filter(|a| named(a.key.as_str())).map(|a| a.value.to_string()).collect();
    assert!(point.attributes().any(|a| a.key.as_str() == "messaging.destination.name"));
    pairs.sort();
    pairs.join(" ")
}

/// Metric name → attributes of each point → its value, as of the last export.
fn points(exporter: &InMemoryMetricExporter) -> BTreeMap<String, BTreeMap<String, i64>> {
    let mut all: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    for resource in exporter.get_finished_metrics().unwrap() {
        for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
            let points = all.entry(metric.name().to_owned()).or_default();
            match metric.data() {
                AggregatedMetrics::U64(MetricData::Sum(sum)) if metric.name().contains("worker") => {
                    points.extend(sum.data_points().map(|p| (label(p), i64::try_from(p.value()).unwrap())));
                }
                AggregatedMetrics::I64(MetricData::Sum(sum)) => {
                    points.extend(sum.data_points().map(|point| (label(point), point.value())));
                }
                _ => {}
            }
        }
    }
    all
}

const LONG: Duration = Duration::from_secs(60);
static WAITS: Notify = Notify::const_new();

async fn handler(Json(text): Json<String>, job: Job) -> Result<(), HandlerError> {
    match (text.as_str(), job.attempt()) {
        ("fails", 1) => Err(std::io::Error::other("503")).dependency("ads-api").class("http_503"),
        ("fails", _) => Err(HandlerError::permanent("gone").with_class("http_410")),
        ("waits", _) => {
            WAITS.notified().await;
            Ok(())
        }
        _ => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_counted_by_outcome_and_those_in_flight_observed() {
    let exporter = InMemoryMetricExporter::default();
    let provider =
        SdkMeterProvider::builder().with_reader(PeriodicReader::builder(exporter.clone()).build()).build();
    opentelemetry::global::set_meter_provider(provider.clone());

    let bus = Bus::connect("memory:metrics?queue=jobs&dead_letter=dead").await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    let job = |text: &str| Envelope::json("job", text).unwrap();
    let once = || Envelope::builder("job").idempotency_key("k").json("once").unwrap().build();
    for result in publisher.publish_batch([job("fine"), job("fails"), once(), job("waits")]).await {
        result.unwrap();
    }
    let worker = bus
        .worker(Router::new().on("job", handler))
        .retry(RetryPolicy::fixed(Duration::ZERO))
        .idempotency(Idempotency::new(MemoryStore::new()));
    let (health, stop) = (worker.health(), std::sync::Arc::new(Notify::new()));
    let running = tokio::spawn(worker.run({
        let stop = stop.clone();
        async move { stop.notified().await }
    }));
    let until = async |acked, duplicates| {
        let has = |report: Report| report.acked >= acked && report.duplicates >= duplicates;
        while !has(health.report()) || health.report().dead_lettered < 1 || health.running() != 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, until(2, 0)).await.expect("all but one have ended");
    publisher.publish(once()).await.unwrap();
    tokio::time::timeout(LONG, until(2, 1)).await.expect("it is a duplicate");
    provider.force_flush().unwrap();
    let in_flight = points(&exporter).remove("throughline.worker.in_flight").unwrap();
    assert_eq!(in_flight, BTreeMap::from([("held".to_owned(), 0), ("running".to_owned(), 1)]));
    WAITS.notify_one();
    stop.notify_one();
    let report = running.await.unwrap().unwrap();
    assert_eq!((report.acked, report.duplicates, report.postponed), (3, 1, 0), "{report:?}");
    provider.force_flush().unwrap();
    let points = points(&exporter);
    let handled: Vec<_> =
        points["throughline.worker.messages"].iter().map(|(l, v)| (l.as_str(), *v)).collect();
    let expected =
        [("ads-api http_503 retried", 1), ("dead_lettered http_410", 1), ("done", 3), ("duplicate", 1)];
    assert_eq!(handled, expected);
    assert!(points.contains_key("messaging.process.duration"), "by core");
}
