//! What only SNS has, against an emulator of it: `THROUGHLINE_AWS_ENDPOINT`.
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

use throughline_core::capabilities::Level;
use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Delivery, Envelope, ErrorKind, HeaderValue, PublishOptions, Publisher,
};
use throughline_sns::{Message, REGISTRATION};
use throughline_testkit::endpoint;
use uuid::Uuid;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

struct Rig {
    endpoint: String,
    topic: String,
    transport: Arc<dyn Transport>,
}

impl Rig {
    /// `None`, loudly, without an emulator.
    async fn new(test: &str) -> Option<Self> {
        let endpoint = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", test)?;
        let address: Address = format!("sns:?endpoint={endpoint}").parse().unwrap();
        let transport = (REGISTRATION.connect)(address).await.unwrap();
        Some(Self { endpoint, topic: format!("native-{}", Uuid::now_v7().simple()), transport })
    }

    /// The test's topic, with options.
    fn address(&self, options: &str) -> Address {
        format!("sns://{}?endpoint={}{options}", self.topic, self.endpoint).parse().unwrap()
    }

    /// A subscription of it, made.
    async fn subscription(&self, name: &str, options: &str) -> Address {
        let address = self.address(&format!("&queue={}-{name}{options}", self.topic));
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
async fn each_subscription_gets_everything_equal_raw_or_wrapped() {
    let Some(rig) = Rig::new("each_subscription_gets_everything_equal_raw_or_wrapped").await else { return };
    let raw = rig.subscription("raw", "").await;
    let wrapped = rig.subscription("wrapped", "&raw=false").await;
    let sent = [
        Envelope::builder("campaign.sync_report")
            .key("profile-1")
            .source("ads")
            .headers((0..12).map(|n| (format!("h{n}"), format!("v{n}"))))
            .header("traceparent", TRACEPARENT)
            .header("n", HeaderValue::Typed { kind: "sqs:Number".into(), text: "7".into() })
            .payload(r#"{"report":7}"#)
            .build(),
        Envelope::builder("empty").build(),
        // Without a binary header: this emulator loses them in batches.
        Envelope::builder("binary").payload(vec![0, 0xff]).build(),
    ];
    let publisher = rig.publisher(&rig.address("")).await;
    for result in publisher.publish_batch(sent.clone()).await {
        assert!(result.unwrap().native_id.is_some());
    }
    for (subscription, is_wrapped) in [(&raw, false), (&wrapped, true)] {
        let mut consumer = rig.consumer(subscription).await;
        let mut open = sent.to_vec();
        while !open.is_empty() {
            let delivery = next(&mut consumer).await;
            let at = open.iter().position(|sent| sent.id == delivery.id()).expect("one that was sent");
            assert_eq!(**delivery.envelope(), open.remove(at));
            assert_eq!(delivery.native::<Message>().unwrap().topic.is_some(), is_wrapped);
            delivery.ack().await.unwrap();
        }
        consumer.close().await.unwrap();
    }
    publisher.close().await.unwrap();
    rig.finish(&[&raw, &wrapped]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_filters_match_on_stays_native() {
    let Some(rig) = Rig::new("what_filters_match_on_stays_native").await else { return };
    let filtered = rig.subscription("filtered", r#"&filter={"tl-type":["wanted"],"tenant":["5000"]}"#).await;
    let publisher = rig.publisher(&filtered).await;
    for (kind, tenant) in [("other", "5000"), ("wanted", "1"), ("wanted", "5000")] {
        publisher
            .publish(Envelope::builder(kind).header("tenant", tenant).payload("x").build())
            .await
            .unwrap();
    }
    let mut consumer = rig.consumer(&filtered).await;
    let delivery = next(&mut consumer).await;
    let envelope = delivery.envelope();
    assert_eq!(
        (envelope.message_type.as_deref(), envelope.headers.get_str("tenant")),
        (Some("wanted"), Some("5000"))
    );
    delivery.ack().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), consumer.next()).await.is_err());
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish(&[&filtered]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_topic_keeps_the_order_of_each_key() {
    let Some(rig) = Rig::new("a_fifo_topic_keeps_the_order_of_each_key").await else { return };
    let fifo = rig.subscription("fifo", "&fifo=true").await;
    let publisher = rig.publisher(&fifo).await;
    assert_eq!(publisher.capabilities().order, Level::Native);
    let messages = (0..40)
        .map(|n| Envelope::builder("t").key(format!("key {}", n % 4)).payload((n / 4).to_string()).build());
    for result in publisher.publish_batch(messages).await {
        result.unwrap();
    }
    let mut consumer = rig.consumer(&fifo).await;
    let mut due = std::collections::HashMap::new();
    for _ in 0..40 {
        let delivery = next(&mut consumer).await;
        let due = due.entry(delivery.envelope().ordering_key.clone().unwrap()).or_insert(0);
        assert_eq!(delivery.payload(), due.to_string().as_bytes());
        *due += 1;
        delivery.ack().await.unwrap();
    }
    consumer.close().await.unwrap();
    publisher.close().await.unwrap();
    rig.finish(&[&fifo]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_again_makes_nothing_and_the_topic_goes_with_its_last_subscription() {
    let Some(rig) = Rig::new("creating_again_makes_nothing").await else { return };
    let one = rig.subscription("one", "").await;
    let two = rig.subscription("two", "").await;
    assert_eq!(rig.transport.create(&one).await.unwrap(), Vec::<String>::new());
    let other = one.clone().with_option("raw", "false");
    assert_eq!(rig.transport.create(&other).await.unwrap_err().kind(), ErrorKind::Conflict);
    let deleted = rig.transport.delete(&one).await.unwrap();
    assert!(deleted.iter().any(|line| line.contains("not topic")), "{deleted:?}");
    let deleted = rig.transport.delete(&two).await.unwrap();
    assert!(deleted.iter().any(|line| line.starts_with("topic")), "{deleted:?}");
    assert_eq!(rig.transport.delete(&two).await.unwrap(), Vec::<String>::new());
    for error in [
        rig.transport.publisher(&one).await.err().unwrap(),
        rig.transport.consumer(&one, &ConsumeOptions::default()).await.err().unwrap(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("throughline create 'sns://native-"), "{error}");
    }
    rig.finish(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_checked_before_the_network() {
    let Some(rig) = Rig::new("limits_are_checked_before_the_network").await else { return };
    let topic = rig.address("");
    rig.transport.create(&topic).await.unwrap();
    let publisher = rig.publisher(&topic).await;
    let error =
        publisher.publish(Envelope::builder("t").payload("x".repeat(261_121)).build()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("the limit is 261120 bytes"), "{error}");
    publisher.close().await.unwrap();
    rig.finish(&[&topic]).await;
}
