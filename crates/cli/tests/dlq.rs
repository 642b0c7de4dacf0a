//! `dlq` on a real RabbitMQ: `THROUGHLINE_RABBITMQ_URL`, without a destination.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but does not know the helpers of a test"
)]

mod common;

use std::time::Duration;

use common::{Run, throughline};
use throughline::{Bus, Envelope, Failure};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

async fn dlq(args: &[&str]) -> Run {
    let all: Vec<_> = ["dlq"].iter().chain(args).copied().collect();
    let mut command = throughline(&all);
    tokio::task::spawn_blocking(move || command.output().unwrap().into()).await.unwrap()
}

fn json(run: &Run) -> Vec<serde_json::Value> {
    assert_eq!(run.code, 0, "{run:?}");
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_explained_and_put_back_to_work() {
    let test = "dead_letters_are_explained_and_put_back_to_work";
    let Some(url) = throughline_testkit::endpoint::broker("rabbitmq", test) else { return };
    let name = format!("cli-dlq-{}", std::process::id());
    let jobs = format!("{url}?queue={name}&dead_letter={name}-dead");
    let dead = format!("{url}?queue={name}-dead");
    let bus = Bus::connect(&jobs).await.unwrap();
    bus.create("").await.unwrap();
    bus.create(&format!("?queue={name}-dead")).await.unwrap();
    let publisher = bus.publisher().await.unwrap();
    let sent: Vec<_> = ["ads-api", "ads-api", "database"]
        .map(|body| {
            Envelope::builder("report")
                .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
                .payload(body)
                .build()
        })
        .into();
    for envelope in &sent {
        publisher.publish(envelope.clone()).await.unwrap();
    }
    let mut consumer = bus.consumer().await.unwrap();
    for _ in &sent {
        let delivery = consumer.next().await.unwrap().unwrap();
        let dependency = String::from_utf8(delivery.payload().to_vec()).unwrap();
        delivery.reject(Failure::new("http_503").dependency(dependency).worker("w1")).await.unwrap();
    }
    consumer.close().await.unwrap();

    let explained = dlq(&["explain", &dead, "--json"]).await;
    assert!(explained.stderr.contains("delivery counts"), "{explained:?}");
    let groups = json(&explained);
    assert_eq!(groups.len(), 2);
    assert_eq!((&groups[0]["dependency"], &groups[0]["count"]), (&"ads-api".into(), &2.into()));
    assert_eq!((&groups[0]["error"], &groups[0]["example"]["trace_id"]), (&"http_503".into(), &TRACE.into()));
    assert_eq!(groups[1]["example"]["history"][0]["worker"], "w1");
    assert_eq!(json(&dlq(&["list", &dead, "--json"]).await).len(), 3);
    let shown = dlq(&["show", &dead, &sent[2].id]).await;
    assert!(
        shown.stdout.contains("http_503 (database)") && shown.stdout.contains("\n  database\n"),
        "{shown:?}"
    );
    assert_eq!(dlq(&["show", &dead, "nosuch"]).await.code, 3);

    let filter = ["redrive", &dead, "--to", &jobs, "--dependency", "ads-api", "--json"];
    let planned = json(&dlq(&[&filter[..], &["--dry-run"]].concat()).await);
    assert_eq!((&planned[0]["would_redrive"], &planned[0]["would_leave"]), (&2.into(), &1.into()));
    assert_eq!(json(&dlq(&["list", &dead, "--json"]).await).len(), 3, "a dry run moves nothing");
    let moved = json(&dlq(&filter).await);
    assert_eq!((&moved[0]["redriven"], &moved[0]["left"]), (&2.into(), &1.into()));
    let mut consumer = bus.consumer().await.unwrap();
    for envelope in &sent[..2] {
        let delivery = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await.unwrap();
        let delivery = delivery.unwrap().unwrap();
        assert_eq!((&**delivery.envelope(), delivery.attempt()), (envelope, 1));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();

    assert_eq!(dlq(&["purge", &dead]).await.code, 2);
    assert_eq!(json(&dlq(&["purge", &dead, "--yes", "--json"]).await)[0]["purged"], 1);
    publisher.close().await.unwrap();
    bus.delete("").await.unwrap();
    bus.delete(&format!("?queue={name}-dead")).await.unwrap();
    bus.close().await.unwrap();
}
