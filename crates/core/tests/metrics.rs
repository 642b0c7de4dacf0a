//! The metrics of the messaging conventions. A binary of its own, because a meter provider is the whole process's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use throughline_core::{Address, ConsumeOptions, Consumer, Envelope, PublishOptions, Publisher};
use throughline_testkit::scripted::{self, Reply, ScriptedConsumer, ScriptedPublisher};

/// Metric name → attributes of each point → count of measurements, or sum of the counter.
fn points(exporter: &InMemoryMetricExporter) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut all: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for resource in exporter.get_finished_metrics().unwrap() {
        for metric in resource.scope_metrics().flat_map(|scope| scope.metrics()) {
            let points = all.entry(metric.name().to_owned()).or_default();
            let label = |attributes: &mut dyn Iterator<Item = &opentelemetry::KeyValue>| {
                let mut pairs: Vec<_> = attributes
                    .filter(|a| ["messaging.operation.name", "error.type"].contains(&a.key.as_str()))
                    .map(|a| a.value.to_string())
                    .collect();
                pairs.sort();
                pairs.join(" ")
            };
            match metric.data() {
                AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                    assert_eq!(metric.unit(), "s");
                    for point in histogram.data_points() {
                        points.insert(label(&mut point.attributes()), point.count());
                    }
                }
                AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                    assert_eq!(metric.unit(), "{message}");
                    for point in sum.data_points() {
                        points.insert(label(&mut point.attributes()), point.value());
                    }
                }
                _ => panic!("an unexpected kind of metric: {}", metric.name()),
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_consumed_processed_and_settled_is_counted_and_timed() {
    let exporter = InMemoryMetricExporter::default();
    let provider =
        SdkMeterProvider::builder().with_reader(PeriodicReader::builder(exporter.clone()).build()).build();
    opentelemetry::global::set_meter_provider(provider.clone());

    let address: Address = "memory:scripted?queue=q".parse().unwrap();
    let sink = ScriptedPublisher::new(|message| match scripted::text(&message.envelope).as_str() {
        "fails" => Reply::Fail(scripted::never()),
        _ => Reply::Accept,
    });
    let publisher = Publisher::new(sink, &address, PublishOptions::default());
    publisher.publish_batch(["a", "b", "fails"].map(Envelope::new)).await;

    let source = ScriptedConsumer::new();
    source.feed(Envelope::new("a"));
    source.feed(Envelope::new("b"));
    let mut consumer = Consumer::new(source, &address, ConsumeOptions::default());
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.process(async { Ok::<_, String>(()) }).await.unwrap();
    delivery.ack().await.unwrap();
    let delivery = consumer.next().await.unwrap().unwrap();
    delivery.process(async { Err::<(), _>("no") }).await.unwrap_err();
    delivery.reject("no").await.unwrap();
    consumer.close().await.unwrap();
    provider.force_flush().unwrap();

    let points = points(&exporter);
    let of = |metric: &str, label: &str| points[metric].get(label).copied().unwrap_or(0);
    assert_eq!(of("messaging.client.sent.messages", "publish"), 2);
    assert_eq!(of("messaging.client.sent.messages", "Refused publish"), 1);
    assert_eq!(of("messaging.client.consumed.messages", "receive"), 2);
    assert_eq!(of("messaging.process.duration", "process"), 1);
    assert_eq!(of("messaging.process.duration", "&str process"), 1);
    for name in ["ack", "reject"] {
        assert_eq!(of("messaging.client.operation.duration", name), 1, "{points:?}");
    }
}
