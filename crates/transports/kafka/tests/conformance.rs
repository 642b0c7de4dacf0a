//! The public suite. One case by name: `cargo test -p throughline-kafka --test conformance -- NAME`.

use std::process::ExitCode;
use std::time::Duration;

use futures_util::FutureExt;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline_conformance::{Registered, libtest};
use throughline_core::{Address, Error, ErrorKind, Result};
use throughline_kafka::{REGISTRATION, rdkafka};

fn main() -> ExitCode {
    let Some(url) = throughline_testkit::endpoint::broker("kafka", "conformance of kafka") else {
        return ExitCode::SUCCESS;
    };
    libtest::main(url.parse().and_then(|base: Address| {
        let brokers = base.authority().unwrap_or_default().to_owned();
        let harness = Registered::new(&REGISTRATION, base)?;
        Ok(harness.with_foreign(move |to| put_foreign(brokers.clone(), to).boxed()))
    }))
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
