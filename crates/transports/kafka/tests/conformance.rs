//! The public suite, on a real Apache Kafka, or without one on librdkafka's MockCluster; the report says which it was. One case
//! by name: `cargo test -p throughline-kafka --test conformance -- NAME`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline_conformance::{Harness, Registered, Settings, libtest};
use throughline_core::driver::{Sibling, Transport};
use throughline_core::{Address, Error, ErrorKind, Result};
use throughline_kafka::{REGISTRATION, rdkafka};

use self::mock::{Mock, Mocked};

#[path = "conformance/mock.rs"]
mod mock;

fn main() -> ExitCode {
    let real = throughline_testkit::endpoint::broker("kafka", "conformance of kafka on a real Apache Kafka");
    // Not both: the mock lets whoever joins a group wait for 3 s, and proves nothing that the broker does not. The tables tell of
    // Apache Kafka.
    libtest::all([match real {
        Some(url) => (url.parse().and_then(Kafka::real), Settings::default()),
        None => (Kafka::mock(), Settings { reported: false, ..Settings::default() }),
    }])
}

struct Kafka {
    inner: Registered,
    mock: Option<Arc<Mock>>,
}

impl Kafka {
    fn real(base: Address) -> Result<Self> {
        let brokers = base.authority().unwrap_or_default().to_owned();
        let inner = Registered::new(&REGISTRATION, base)?;
        let inner = inner.with_foreign(move |to| put_foreign(brokers.clone(), to).boxed());
        Ok(Self { inner, mock: None })
    }

    fn mock() -> Result<Self> {
        let mock = Mock::start()?;
        let real = Self::real(format!("kafka://{}/?{}", mock.servers, mock::OPTIONS).parse()?)?;
        Ok(Self { inner: real.inner.variant("MockCluster"), mock: Some(Arc::new(mock)) })
    }
}

#[async_trait]
impl Harness for Kafka {
    async fn connect(&self) -> Result<Arc<dyn Transport>> {
        let transport = self.inner.connect().await?;
        Ok(match &self.mock {
            Some(mock) => Arc::new(Mocked { transport, mock: mock.clone() }),
            None => transport,
        })
    }

    fn address(&self, sibling: &Sibling<'_>) -> Option<Address> {
        self.inner.address(sibling)
    }

    fn variant(&self) -> Option<&str> {
        Harness::variant(&self.inner)
    }

    async fn put_foreign(&self, to: &Address) -> Result<bool> {
        self.inner.put_foreign(to).await
    }
}

/// A record that another client has sent, with what we read in headers of broken forms.
async fn put_foreign(brokers: String, to: Address) -> Result<()> {
    let put = async {
        let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        let broken: &[(&str, Option<&[u8]>)] = &[
            ("tl-headers", Some(b"{\"h\":[[")),
            ("tl-history", Some(b"[1,2")),
            ("tl-binary", Some(b"0,99,x")),
            ("tl-failed-attempts", Some(b"many")),
            ("tl-sent", Some(b"true")),
            ("tl-delay", Some(b"-1")),
            ("tl-time", None),
            ("tl-expires-at", Some(b"never")),
            ("tl-priority", Some(b"0.5")),
            ("traceparent", Some(b"7")),
            ("tracestate", Some(b"\xff\x00")),
        ];
        let mut headers = OwnedHeaders::new();
        for (key, value) in broken {
            headers = headers.insert(Header { key, value: *value });
        }
        let topic = to.path().trim_start_matches('/');
        let record = FutureRecord::<[u8], [u8]>::to(topic).payload(b"foreign").headers(headers);
        producer.send(record, Duration::from_secs(20)).await.map_err(|(error, _)| error).map(drop)
    };
    put.await.map_err(|error: rdkafka::error::KafkaError| {
        Error::new(ErrorKind::Internal, "cannot put a foreign message").with_source(error)
    })
}
