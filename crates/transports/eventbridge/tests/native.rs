//! What only EventBridge has, against an emulator of it: `THROUGHLINE_AWS_ENDPOINT`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "native/diagnosing.rs"]
mod diagnosing;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Delivery, Envelope, ErrorKind, HeaderValue, IdOrigin, PublishOptions,
    Publisher, Retry,
};
use throughline_eventbridge::REGISTRATION;
use throughline_eventbridge::aws_sdk_eventbridge::Client;
use throughline_eventbridge::aws_sdk_eventbridge::config::{BehaviorVersion, Config, Credentials, Region};
use throughline_eventbridge::aws_sdk_eventbridge::types::PutEventsRequestEntry;
use throughline_testkit::aws_proxy::{AwsProxy, Fault};
use throughline_testkit::endpoint;
use uuid::Uuid;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

struct Rig {
    proxy: AwsProxy,
    bus: String,
    transport: Arc<dyn Transport>,
}

impl Rig {
    /// `None`, loudly, without an emulator.
    async fn new(test: &str) -> Option<Self> {
        let endpoint = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", test)?;
        let proxy = AwsProxy::start(&endpoint).await;
        let address: Address = format!("eventbridge:?endpoint={}", proxy.endpoint()).parse().unwrap();
        let transport = (REGISTRATION.connect)(address).await.unwrap();
        Some(Self { proxy, bus: format!("native-{}", Uuid::now_v7().simple()), transport })
    }

    /// The test's bus, with options.
    fn address(&self, options: &str) -> Address {
        format!("eventbridge://{}?endpoint={}{options}", self.bus, self.proxy.endpoint()).parse().unwrap()
    }

    /// A rule with a target queue, made.
    async fn rule(&self, name: &str, options: &str) -> Address {
        let address = self.address(&format!("&queue={}-{name}{options}", self.bus));
        self.transport.create(&address).await.unwrap();
        address
    }

    async fn publisher(&self, to: &Address) -> Publisher {
        Publisher::new(self.transport.publisher(to).await.unwrap(), to, PublishOptions::default())
    }

    async fn consumer(&self, from: &Address) -> Consumer {
        let options = ConsumeOptions::default();
        Consumer::new(self.transport.consumer(from, &options).await.unwrap(), from, options)
    }

    async fn finish(self, addresses: &[&Address]) {
        for address in addresses {
            self.transport.delete(address).await.unwrap();
        }
        self.transport.close().await.unwrap();
    }
}

async fn next(consumer: &mut Consumer) -> Delivery {
    tokio::time::timeout(Duration::from_secs(30), consumer.next()).await.expect("in time").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_through_equal() {
    let Some(rig) = Rig::new("everything_comes_through_equal").await else { return };
    let rule = rig.rule("all", "").await;
    let mut sent = vec![
        Envelope::builder("campaign.sync_report")
            .key("profile-1")
            .source("ads")
            .headers((0..60).map(|n| (format!("h{n}"), format!("v{n}"))))
            .header("traceparent", TRACEPARENT)
            .header("tracestate", "vendor=x")
            .header("bytes", vec![0xff])
            .header("null", HeaderValue::Null)
            .header("twice", "1")
            .header("twice", "2")
            .payload(r#"{"report":7,"a":[1.5,"ä"]}"#)
            .build(),
        Envelope::builder("empty").build(),
        Envelope::builder("tombstone").tombstone().build(),
        Envelope::builder("binary").payload(vec![0, 0xff]).build(),
        Envelope::builder("blanks").payload(r#"{ "a" : 1 }"#).build(),
        Envelope::builder("x".repeat(200)).source("aws.mine").correlation_id("\u{1}").payload("text").build(),
    ];
    let publisher = rig.publisher(&rule).await;
    for result in publisher.publish_batch(sent.clone()).await {
        assert!(result.unwrap().native_id.is_some());
    }
    let mut consumer = rig.consumer(&rule).await;
    while !sent.is_empty() {
        let delivery = next(&mut consumer).await;
        let at = sent.iter().position(|sent| sent.id == delivery.id()).expect("one that was sent");
        assert_eq!(**delivery.envelope(), sent.remove(at));
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish(&[&rule]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_match_on_source_data_and_metadata() {
    let Some(rig) = Rig::new("rules_match_on_source_data_and_metadata").await else { return };
    let by_source = rig.rule("source", "&source=shop").await;
    let pattern = r#"{"detail":{"data":{"report":[7]},"metadata":{"headers":{"tenant":["5000"]}}}}"#;
    let by_detail = rig.rule("detail", &format!("&pattern={pattern}")).await;
    let publisher = rig.publisher(&by_source).await;
    let message = |tenant: &str, source: &str, body: &'static str| {
        Envelope::builder("t").source(source).header("tenant", tenant).payload(body).build()
    };
    publisher.publish(message("5000", "shop", r#"{"report":1}"#)).await.unwrap();
    publisher.publish(message("5000", "other", r#"{"report":7}"#)).await.unwrap();
    publisher.publish(message("1", "other", r#"{"report":7}"#)).await.unwrap();
    for (rule, body) in [(&by_source, r#"{"report":1}"#), (&by_detail, r#"{"report":7}"#)] {
        let mut consumer = rig.consumer(rule).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.payload(), body.as_bytes());
        delivery.ack().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), consumer.next()).await.is_err());
        consumer.close().await.unwrap();
    }
    publisher.close().await.unwrap();
    rig.finish(&[&by_source, &by_detail]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_batch_that_fails_in_part_only_the_rest_is_sent_again() {
    let Some(rig) = Rig::new("of_a_batch_that_fails_in_part_only_the_rest_is_sent_again").await else {
        return;
    };
    let rule = rig.rule("faults", "").await;
    let publisher = rig.publisher(&rule).await;
    let entries = |places: &[usize], code| Fault::Entries { places: places.to_vec(), code, sender: false };
    let throttled = Fault::Refuse { status: 400, code: "ThrottlingException" };
    rig.proxy.inject(
        "PutEvents",
        [entries(&[1, 4], "ThrottlingException"), throttled, entries(&[0], "InternalFailure")],
    );
    let messages = |count: usize| (0..count).map(|n| Envelope::builder("t").payload(n.to_string()).build());
    for result in publisher.publish_batch(messages(10)).await {
        result.unwrap();
    }
    rig.proxy.inject("PutEvents", [entries(&[2], "MalformedDetail")]);
    let results = publisher.publish_batch(messages(5)).await;
    for (place, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), place == 2, "{result:?}");
    }
    let error = results[2].as_ref().unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::InvalidMessage, Retry::Never));
    let mut consumer = rig.consumer(&rule).await;
    for _ in 0..14 {
        next(&mut consumer).await.ack().await.unwrap();
    }
    assert!(tokio::time::timeout(Duration::from_secs(1), consumer.next()).await.is_err());
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish(&[&rule]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_event_is_its_detail_and_a_raw_one_is_the_payload_itself() {
    let Some(rig) = Rig::new("a_foreign_event_is_its_detail").await else { return };
    let rule = rig.rule("foreign", "&raw=true").await;
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(rig.proxy.endpoint())
        .http_client(throughline_aws::settings::http_client())
        .build();
    let entry = PutEventsRequestEntry::builder()
        .event_bus_name(&rig.bus)
        .source("shop")
        .detail_type("order.placed")
        .detail(r#"{"order":1}"#);
    Client::from_conf(config).put_events().entries(entry.build()).send().await.unwrap();
    let mut consumer = rig.consumer(&rule).await;
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope();
    assert_eq!(
        (envelope.message_type.as_deref(), envelope.source.as_deref()),
        (Some("order.placed"), Some("shop"))
    );
    assert_eq!(envelope.id_origin, IdOrigin::Broker);
    assert_eq!(delivery.json::<Value>().unwrap(), serde_json::json!({ "order": 1 }));
    delivery.ack().await.unwrap();

    let publisher = rig.publisher(&rule).await;
    let sent = Envelope::builder("t").header("tenant", "1").payload(r#"{"z":1,"a":2}"#).build();
    publisher.publish(sent.clone()).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(**delivery.envelope(), sent);
    delivery.ack().await.unwrap();
    let error = publisher.publish(Envelope::builder("t").payload("7").build()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidMessage);
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish(&[&rule]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_again_makes_nothing_and_the_bus_goes_with_its_last_rule() {
    let Some(rig) = Rig::new("creating_again_makes_nothing").await else { return };
    let one = rig.rule("one", "&source=shop").await;
    let two = rig.rule("two", "").await;
    assert_eq!(rig.transport.create(&one).await.unwrap(), Vec::<String>::new());
    let other = one.clone().with_option("source", "other");
    assert_eq!(rig.transport.create(&other).await.unwrap_err().kind(), ErrorKind::Conflict);
    let deleted = rig.transport.delete(&one).await.unwrap();
    assert!(deleted.iter().any(|line| line.contains("not event bus")), "{deleted:?}");
    let deleted = rig.transport.delete(&two).await.unwrap();
    assert!(deleted.iter().any(|line| line.starts_with("event bus")), "{deleted:?}");
    assert_eq!(rig.transport.delete(&two).await.unwrap(), Vec::<String>::new());
    for error in [
        rig.transport.publisher(&one).await.err().unwrap(),
        rig.transport.consumer(&one, &ConsumeOptions::default()).await.err().unwrap(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("throughline create 'eventbridge://native-"), "{error}");
    }
    rig.finish(&[]).await;
}
