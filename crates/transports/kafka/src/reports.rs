//! Delivery reports: what a producer's threads, its callbacks and its publishers share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::{ClientContext, Message as _};
use throughline_core::driver::Receipt;
use tokio::sync::Notify;

use crate::connect::Events;
use crate::error;
use crate::native::{self, Report, Sent};

/// A full queue is looked at again after so long, even where no report says that there is room.
pub(crate) const FULL: Duration = Duration::from_millis(50);

/// The context of a producer's client.
#[derive(Default)]
pub(crate) struct Reports {
    events: Events,
    /// Messages in librdkafka's queue.
    pub(crate) waiting: AtomicUsize,
    /// What is queued next is held until no more than so many are waiting.
    pub(crate) most: AtomicUsize,
    /// librdkafka's queue had no room for a message.
    pub(crate) is_full: AtomicBool,
    /// Told when there is room.
    pub(crate) reported: Notify,
    /// The client can do no more, and has to be made anew.
    pub(crate) is_broken: AtomicBool,
    /// What the flushing thread is to do.
    pub(crate) order: Mutex<Order>,
    pub(crate) ordered: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    Wait,
    Flush,
    End,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.log(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.note(&error);
        self.events.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Sent>;

    /// Only what is purged as the client ends comes this way.
    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        let report = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, message)) => Err((error.clone(), native::is_surely_not_stored(message))),
        };
        self.answer(vec![(sent, report)]);
    }
}

impl Reports {
    /// After a fatal error (librdkafka can no longer promise order and uniqueness) the client refuses everything.
    pub(crate) fn note(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(Code::Fatal) {
            self.give_up();
        }
    }

    pub(crate) fn give_up(&self) {
        if !self.is_broken.swap(true, Ordering::AcqRel) {
            tracing::warn!("the Kafka producer cannot go on and is made anew");
        }
    }

    pub(crate) fn order(&self, order: Order) {
        let mut present = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if *present != Order::End {
            *present = order;
            self.ordered.notify_one();
        }
    }

    /// Answers messages, those of a batch together.
    pub(crate) fn answer(&self, mut reports: Vec<(Box<Sent>, Report)>) {
        let count = reports.len();
        for run in reports.chunk_by_mut(|(a, _), (b, _)| Arc::ptr_eq(&a.done, &b.done)) {
            let Some((first, _)) = run.first() else { continue };
            let done = first.done.clone();
            done.complete_many(run.iter().map(|(sent, report)| {
                let result = match report {
                    Ok((partition, offset)) => Ok(Receipt::with_native_id(format!("{partition}:{offset}"))),
                    Err((error, surely_not_stored)) => {
                        self.note(error);
                        Err(error::of_delivery(error, *surely_not_stored))
                    }
                };
                (sent.index, result)
            }));
        }
        let before = self.waiting.fetch_sub(count, Ordering::AcqRel);
        let is_told = before - count <= self.most.load(Ordering::Acquire);
        if self.is_full.swap(false, Ordering::AcqRel) || is_told {
            self.reported.notify_one();
        }
    }

    /// Waits until so few are waiting for their reports that more may be queued.
    pub(crate) async fn room(&self) {
        while self.waiting.load(Ordering::Acquire) > self.most.load(Ordering::Acquire) {
            let _ = tokio::time::timeout(FULL, self.reported.notified()).await;
        }
    }
}
