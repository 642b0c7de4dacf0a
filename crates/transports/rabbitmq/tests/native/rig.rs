//! A transport on the real broker, with queues of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::options::BasicGetOptions;
use lapin::{Channel, Connection, ConnectionProperties};
use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Delivery, Envelope, PublishOptions, Publisher, Result,
};
use throughline_rabbitmq::{REGISTRATION, lapin};
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

impl Rig {
    /// `None`, loudly, without a broker.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let base = throughline_testkit::endpoint::broker("rabbitmq", test)?;
        let transport = connect(&base).await.unwrap();
        Some(Self { base, transport, made: Mutex::default() })
    }

    pub(crate) fn address(&self, options: &str) -> Address {
        format!("{}?{options}", self.base).parse().unwrap()
    }

    /// A new queue, deleted at the end.
    pub(crate) async fn queue(&self, options: &str) -> Address {
        self.create(&format!("queue={}{options}", unique("native"))).await
    }

    pub(crate) async fn create(&self, options: &str) -> Address {
        let address = self.address(options);
        self.transport.create(&address).await.unwrap();
        self.made.lock().unwrap().push(address.clone());
        address
    }

    pub(crate) async fn publisher(&self, to: &Address) -> Publisher {
        Publisher::new(self.transport.publisher(to).await.unwrap(), to, PublishOptions::default())
    }

    pub(crate) async fn consumer(&self, from: &Address) -> Consumer {
        self.consumer_with(from, ConsumeOptions::default()).await
    }

    pub(crate) async fn consumer_with(&self, from: &Address, options: ConsumeOptions) -> Consumer {
        Consumer::new(self.transport.consumer(from, &options).await.unwrap(), from, options)
    }

    pub(crate) async fn depth(&self, of: &Address) -> u64 {
        self.transport.depth(of).await.unwrap().ready
    }

    /// Waits until so many messages are ready: the broker counts a moment late.
    pub(crate) async fn settles_at(&self, of: &Address, ready: u64) {
        for _ in 0..100 {
            if self.depth(of).await == ready {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} messages are ready, expected {ready}", self.depth(of).await);
    }

    /// A channel of the client library itself.
    pub(crate) async fn raw(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.base, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
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
    address.option("queue").unwrap()
}

pub(crate) fn message(body: impl Into<String>) -> Envelope {
    Envelope::builder("native.test").payload(body.into()).build()
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

/// A ready message, taken by the client library itself.
pub(crate) async fn raw_get(channel: &Channel, queue: &str) -> lapin::message::BasicGetMessage {
    for _ in 0..100 {
        let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap();
        if let Some(message) = got {
            return message;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no message in {queue}");
}

pub(crate) fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}
