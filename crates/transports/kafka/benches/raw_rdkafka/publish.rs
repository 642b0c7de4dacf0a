//! Publishing.

use std::collections::VecDeque;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use rdkafka::util::Timeout;
use throughline_core::{Address, Envelope, Pending, PublishOptions, Publisher, SendOptions};
use throughline_kafka::rdkafka;
use uuid::Uuid;

use crate::report::{Span, Started};
use crate::{BATCH, Bench, IN_FLIGHT, name};

impl Bench {
    /// As ours: idempotent, acks=all, the same partitioner.
    pub(crate) fn raw_publisher(&self, linger: &str) -> FutureProducer {
        self.config()
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", linger)
            .create()
            .unwrap()
    }

    /// So many in flight as ours; an id, a type and a time, as an application would set.
    pub(crate) async fn publish_raw(&self, topic: &Address, linger: &str) -> Span {
        let producer = self.raw_publisher(linger);
        let started = Started::now();
        let mut reports = VecDeque::with_capacity(IN_FLIGHT);
        for n in 0..self.messages {
            if reports.len() == IN_FLIGHT {
                let oldest: DeliveryFuture = reports.pop_front().unwrap();
                oldest.await.unwrap().unwrap();
            }
            let id = Uuid::now_v7().to_string();
            let time = n.to_string();
            let headers = OwnedHeaders::new()
                .insert(Header { key: "id", value: Some(&id) })
                .insert(Header { key: "type", value: Some("bench") })
                .insert(Header { key: "time", value: Some(&time) });
            let record = FutureRecord::<(), [u8]>::to(name(topic)).payload(&self.body).headers(headers);
            reports.push_back(producer.send_result(record).map_err(|(error, _)| error).unwrap());
        }
        for report in reports {
            report.await.unwrap().unwrap();
        }
        let span = started.end();
        producer.flush(Timeout::After(Duration::from_secs(5))).unwrap();
        span
    }

    pub(crate) async fn publisher(&self, topic: &Address) -> Publisher {
        let driver = self.transport.publisher(topic).await.unwrap();
        let options = PublishOptions { max_in_flight: IN_FLIGHT, ..PublishOptions::default() };
        Publisher::new(driver, topic, options)
    }

    pub(crate) fn envelope(&self) -> Envelope {
        Envelope::builder("bench").payload(self.body.clone()).build()
    }

    pub(crate) async fn publish_singly(&self, topic: &Address) -> Span {
        let publisher = self.publisher(topic).await;
        let started = Started::now();
        let mut pending: VecDeque<Pending> = VecDeque::with_capacity(IN_FLIGHT);
        for _ in 0..self.messages {
            if pending.len() == IN_FLIGHT {
                pending.pop_front().unwrap().await.unwrap();
            }
            pending.push_back(publisher.enqueue(self.envelope(), SendOptions::default()).await.unwrap());
        }
        for receipt in pending {
            receipt.await.unwrap();
        }
        let span = started.end();
        publisher.close().await.unwrap();
        span
    }

    /// So many batches at once as make up what is in flight.
    pub(crate) async fn publish_batches(&self, topic: &Address) -> Span {
        let publisher = self.publisher(topic).await;
        let started = Started::now();
        let lane = async |messages: usize| {
            for _ in 0..messages / BATCH {
                let results = publisher.publish_batch((0..BATCH).map(|_| self.envelope())).await;
                assert!(results.iter().all(Result::is_ok));
            }
        };
        let lanes = IN_FLIGHT / BATCH;
        futures_util::future::join_all((0..lanes).map(|_| lane(self.messages / lanes))).await;
        let span = started.end();
        publisher.close().await.unwrap();
        span
    }
}
