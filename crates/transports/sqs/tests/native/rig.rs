//! A transport on the emulator, with queues of its own, through a proxy that counts and injects.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use throughline_core::driver::Transport;
use throughline_core::{
    Address, ConsumeOptions, Consumer, Delivery, Envelope, PublishOptions, Publisher, Result,
};
use throughline_sqs::REGISTRATION;
use throughline_sqs::aws_sdk_sqs::Client;
use throughline_sqs::aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use throughline_testkit::aws_proxy::AwsProxy;
use throughline_testkit::endpoint;
use uuid::Uuid;

pub(crate) struct Rig {
    pub(crate) proxy: AwsProxy,
    pub(crate) transport: Arc<dyn Transport>,
    made: Mutex<Vec<Address>>,
}

pub(crate) async fn connect(address: &str) -> Result<Arc<dyn Transport>> {
    (REGISTRATION.connect)(address.parse()?).await
}

/// A name that no other test has.
pub(crate) fn unique(what: &str) -> String {
    format!("{what}-{}", Uuid::now_v7().simple())
}

impl Rig {
    /// `None`, loudly, without an emulator.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        let endpoint = endpoint::need("THROUGHLINE_AWS_ENDPOINT", "an AWS emulator", test)?;
        let proxy = AwsProxy::start(&endpoint).await;
        let transport = connect(&format!("sqs:?endpoint={}", proxy.endpoint())).await.unwrap();
        Some(Self { proxy, transport, made: Mutex::default() })
    }

    pub(crate) fn address(&self, queue: &str, options: &str) -> Address {
        format!("sqs://{queue}?endpoint={}{options}", self.proxy.endpoint()).parse().unwrap()
    }

    /// A new queue, deleted at the end.
    pub(crate) async fn queue(&self, options: &str) -> Address {
        let address = self.address(&unique("native"), options);
        self.create(address).await
    }

    pub(crate) async fn create(&self, address: Address) -> Address {
        self.transport.create(&address).await.unwrap();
        self.made.lock().unwrap().push(address.clone());
        address
    }

    /// A new queue with a dead-letter queue; both addresses.
    pub(crate) async fn queue_with_dead_letters(&self, options: &str) -> (Address, Address) {
        let dead = unique("dead");
        let queue = self.queue(&format!("&dead_letter={dead}{options}")).await;
        let dead = self.address(&dead, options);
        self.made.lock().unwrap().push(dead.clone());
        (queue, dead)
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
        let depth = self.transport.depth(of).await.unwrap();
        depth.ready + depth.unsettled.unwrap_or(0) + depth.delayed.unwrap_or(0)
    }

    /// Waits until so many messages are there, in flight or not.
    pub(crate) async fn settles_at(&self, of: &Address, count: u64) {
        for _ in 0..100 {
            if self.depth(of).await == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} messages are there, expected {count}", self.depth(of).await);
    }

    /// The client library itself, and the queue's URL.
    pub(crate) async fn raw(&self, queue: &Address) -> (Client, String) {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(self.proxy.endpoint())
            .http_client(throughline_aws::settings::http_client())
            .build();
        let client = Client::from_conf(config);
        let url = client.get_queue_url().queue_name(name(queue)).send().await.unwrap();
        (client, url.queue_url.unwrap())
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

/// The queue's own name.
pub(crate) fn name(address: &Address) -> String {
    let name = address.authority().unwrap();
    let is_fifo = address.option("fifo") == Some("true");
    if is_fifo { format!("{name}.fifo") } else { name.to_owned() }
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

pub(crate) fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload().to_vec()).unwrap()
}
