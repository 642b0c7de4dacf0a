//! A transport on the real broker, with topics of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::OwnedMessage;
use rdkafka::{Offset, TopicPartitionList};
use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Delivery, Envelope, PublishOptions, Publisher, Result,
};
use throughline_kafka::{REGISTRATION, rdkafka};
use uuid::Uuid;

pub(crate) struct Rig {
    pub(crate) base: String,
    pub(crate) transport: Arc<dyn Transport>,
    made: Mutex<Vec<Address>>,
}

pub(crate) async fn connect(address: &str) -> Result<Arc<dyn Transport>> {
    (REGISTRATION.connect)(address.parse()?).await
}

/// A name that no other test has.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{}", Uuid::now_v7())
}

/// Settled at once, so that a count can be waited for.
pub(crate) fn options() -> ConsumeOptions {
    ConsumeOptions { poll: Duration::from_secs(1), ..ConsumeOptions::default() }
}

impl Rig {
    /// `None`, loudly, without a broker.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let base = throughline_testkit::endpoint::broker("kafka", test)?;
        let transport = connect(&base).await.unwrap();
        Some(Self { base, transport, made: Mutex::default() })
    }

    /// The `bootstrap.servers` of the client library itself.
    pub(crate) fn servers(&self) -> &str {
        self.base.strip_prefix("kafka://").unwrap().trim_end_matches('/')
    }

    pub(crate) fn address(&self, topic: &str, options: &str) -> Address {
        format!("{}/{topic}?{options}", self.base.trim_end_matches('/')).parse().unwrap()
    }

    /// A new topic with a group of its own, deleted at the end.
    pub(crate) async fn topic(&self, options: &str) -> Address {
        let topic = unique("native");
        self.create(&topic, &format!("group={topic}-g&{options}")).await
    }

    pub(crate) async fn create(&self, topic: &str, options: &str) -> Address {
        let address = self.address(topic, options);
        self.transport.create(&address).await.unwrap();
        self.made.lock().unwrap().push(address.clone());
        address
    }

    pub(crate) async fn publisher(&self, to: &Address) -> Publisher {
        Publisher::new(self.transport.publisher(to).await.unwrap(), to, PublishOptions::default())
    }

    pub(crate) async fn consumer(&self, from: &Address) -> Consumer {
        self.consumer_with(from, options()).await
    }

    pub(crate) async fn consumer_with(&self, from: &Address, options: ConsumeOptions) -> Consumer {
        Consumer::new(self.transport.consumer(from, &options).await.unwrap(), from, options)
    }

    pub(crate) async fn depth(&self, of: &Address) -> u64 {
        self.transport.depth(of).await.unwrap().ready
    }

    /// Waits until so many messages are not committed: a commit comes a moment after the ack.
    pub(crate) async fn settles_at(&self, of: &Address, ready: u64) {
        for _ in 0..100 {
            if self.depth(of).await == ready {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} messages are ready, expected {ready}", self.depth(of).await);
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.servers());
        config
    }

    /// A record of the first partition, read by the client library itself.
    pub(crate) async fn raw_get(&self, topic: &str, offset: i64) -> OwnedMessage {
        let consumer: BaseConsumer = self.config().set("group.id", "raw").create().unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(topic, 0, Offset::Offset(offset)).unwrap();
        consumer.assign(&from).unwrap();
        tokio::task::spawn_blocking(move || {
            let message = consumer.poll(Duration::from_secs(20)).expect("a record in time").unwrap();
            message.detach()
        })
        .await
        .unwrap()
    }

    /// Deletes what was made, and closes.
    pub(crate) async fn finish(self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap());
        for address in made {
            self.transport.delete(&address).await.unwrap();
        }
        self.transport.close().await.unwrap();
    }
}

pub(crate) fn name(address: &Address) -> &str {
    address.path().trim_start_matches('/')
}

pub(crate) fn message(body: impl Into<String>) -> Envelope {
    Envelope::builder("native.test").payload(body.into()).build()
}

pub(crate) fn keyed(key: &str, body: impl Into<String>) -> Envelope {
    Envelope::builder("native.test").key(key.to_owned()).payload(body.into()).build()
}

/// The next delivery, within a time that no healthy broker needs.
pub(crate) async fn next(consumer: &mut Consumer) -> Delivery {
    tokio::time::timeout(Duration::from_secs(30), consumer.next())
        .await
        .expect("a message in time")
        .unwrap()
        .unwrap()
}

/// Whether nothing comes for a while.
pub(crate) async fn nothing(consumer: &mut Consumer, time: Duration) -> bool {
    tokio::time::timeout(time, consumer.next()).await.is_err()
}

pub(crate) fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}

pub(crate) fn record(delivery: &Delivery) -> &throughline_kafka::Message {
    delivery.native().unwrap()
}
