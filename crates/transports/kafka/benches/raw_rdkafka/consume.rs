//! Consuming. Each measures from its first message on: joining the group takes seconds, and is nobody's throughput.

use std::num::NonZeroUsize;

use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use throughline_core::{Address, ConsumeOptions, Consumer, Delivery};
use throughline_kafka::rdkafka;

use crate::report::{Span, Started};
use crate::{BATCH, Bench, IN_FLIGHT, name};

impl Bench {
    /// `take` has what an application keeps that works on several messages at once: the message's own payload and headers.
    pub(crate) async fn consume_raw(&self, topic: &Address, take: bool) -> Span {
        let consumer: StreamConsumer = self
            .config()
            .set("group.id", topic.option("group").unwrap())
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.offset.store", "false")
            .set("auto.commit.interval.ms", "1000")
            .create()
            .unwrap();
        consumer.subscribe(&[name(topic)]).unwrap();
        let mut started = None;
        for _ in 0..self.messages {
            let message = consumer.recv().await.unwrap();
            started.get_or_insert_with(Started::now);
            assert_eq!(message.payload().unwrap().len(), self.body.len());
            if take {
                std::hint::black_box(taken(&message));
            }
            consumer.store_offset_from_message(&message).unwrap();
        }
        started.unwrap().end()
    }

    async fn consumer(&self, topic: &Address) -> Consumer {
        let options = ConsumeOptions { max_unsettled: IN_FLIGHT, ..ConsumeOptions::default() };
        let driver = self.transport.consumer(topic, &options).await.unwrap();
        Consumer::new(driver, topic, options)
    }

    pub(crate) async fn consume_singly(&self, topic: &Address) -> Span {
        let mut consumer = self.consumer(topic).await;
        let mut started = None;
        for _ in 0..self.messages {
            let delivery = consumer.next().await.unwrap().unwrap();
            started.get_or_insert_with(Started::now);
            assert_eq!(delivery.payload().len(), self.body.len());
            delivery.ack().await.unwrap();
        }
        self.end(started, consumer).await
    }

    pub(crate) async fn consume_batches(&self, topic: &Address) -> Span {
        let mut consumer = self.consumer(topic).await;
        let mut started = None;
        let mut count = 0;
        while count < self.messages {
            let batch = consumer.next_batch(NonZeroUsize::new(BATCH).unwrap()).await.unwrap();
            started.get_or_insert_with(Started::now);
            assert!(batch.iter().all(|delivery| delivery.payload().len() == self.body.len()));
            count += batch.len();
            assert!(Delivery::ack_all(batch).await.iter().all(Result::is_ok));
        }
        self.end(started, consumer).await
    }

    async fn end(&self, started: Option<Started>, consumer: Consumer) -> Span {
        let span = started.unwrap().end();
        assert_eq!(consumer.settle_errors(), 0);
        consumer.close().await.unwrap();
        span
    }
}

fn taken(message: &BorrowedMessage<'_>) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let headers = message.headers().unwrap();
    let headers = headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap().to_vec()));
    (message.payload().unwrap().to_vec(), headers.collect())
}
