//! What leaves a consumer by another topic: retries and dead letters.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::Timestamp as Stamp;
use throughline_core::driver::{Completions, Delivery};
use throughline_core::{Error, ErrorKind, History, Result, Retry, Timestamp};
use tokio::sync::OnceCell;

use crate::cluster::Cluster;
use crate::codec::{DeadLetter, Hop};
use crate::config::Destination;
use crate::deadletter::Origin;
use crate::message::Message;
use crate::producer::Producer;

/// Publishes what a consumer sends on. Its producers are made when first needed.
pub(crate) struct Onward {
    cluster: Cluster,
    destination: Destination,
    dead_letters: OnceCell<Producer>,
    retries: OnceCell<Producer>,
}

/// A delivery that is sent on before it is settled.
pub(crate) struct Leaving {
    pub(crate) delivery: Delivery,
    pub(crate) history: Arc<History>,
    pub(crate) to: To,
}

/// Where it is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// To the group's retry topic, not to be delivered before that long from now.
    Retry(Duration),
    DeadLetter,
}

impl Onward {
    pub(crate) fn new(cluster: Cluster, destination: Destination) -> Self {
        Self { cluster, destination, dead_letters: OnceCell::new(), retries: OnceCell::new() }
    }

    /// Sends messages on, and waits until the brokers have them: one answer each, in order. What fails is not sent again
    /// here: the message stays where it is.
    pub(crate) async fn send(&self, messages: &[Leaving]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(messages.len());
        for run in messages.chunk_by(|a, b| (a.to == To::DeadLetter) == (b.to == To::DeadLetter)) {
            match self.producer(run).await {
                Ok(producer) => results.extend(self.send_by(producer, run).await),
                Err(error) => results.extend(run.iter().map(|_| Err(error.clone()))),
            }
        }
        // It is not sent again at once, whatever a later settlement brings.
        results.into_iter().map(|result| result.map_err(|error| error.with_retry(Retry::Never))).collect()
    }

    async fn producer(&self, run: &[Leaving]) -> Result<&Producer> {
        let (place, topic) = match run.first().map(|leaving| leaving.to) {
            Some(To::DeadLetter) => {
                let topic = self.destination.dead_letter.clone().ok_or_else(no_dead_letter)?;
                (&self.dead_letters, topic)
            }
            _ => (&self.retries, self.destination.retry_topic()?),
        };
        place.get_or_try_init(|| Producer::open(&self.cluster, &topic, &self.destination)).await
    }

    async fn send_by(&self, producer: &Producer, run: &[Leaving]) -> Vec<Result<()>> {
        let origins: Vec<_> = run.iter().map(|leaving| self.origin(&leaving.delivery)).collect();
        let (done, answers) = Completions::collect(run.len());
        let done = Arc::new(done);
        let mut fitting = Vec::with_capacity(run.len());
        for (index, (leaving, origin)) in run.iter().zip(&origins).enumerate() {
            let envelope = &leaving.delivery.envelope;
            let mut hop = self.hop(leaving, origin);
            if producer.measure(envelope, &hop).is_err() {
                tracing::warn!("no room for the history of failures: sent on without it");
                hop.history = None;
            }
            match producer.measure(envelope, &hop) {
                Ok(_) => fitting.push((index, envelope, hop)),
                Err(error) => done.complete(index, Err(error)),
            }
        }
        producer.send(fitting.into_iter(), &done).await;
        drop(done);
        answers.await.into_iter().map(|answer| answer.map(drop)).collect()
    }

    fn hop<'a>(&self, leaving: &'a Leaving, origin: &'a Origin) -> Hop<'a> {
        Hop {
            sent: Timestamp::now(),
            delay: if let To::Retry(after) = leaving.to { after } else { Duration::ZERO },
            failed_attempts: leaving.history.failed_attempts(leaving.delivery.failed_attempts),
            history: Some(&leaving.history),
            stamp: false,
            dead_letter: (leaving.to == To::DeadLetter)
                .then_some(DeadLetter { origin, style: self.destination.dead_letter_style }),
        }
    }

    fn origin(&self, delivery: &Delivery) -> Origin {
        let message = delivery.native.as_ref().and_then(|native| native.as_any().downcast_ref::<Message>());
        Origin {
            topic: self.destination.topic().unwrap_or_default().to_owned(),
            partition: message.map_or(-1, |message| message.partition),
            offset: message.map_or(-1, |message| message.offset),
            stamp: message.map_or(Stamp::NotAvailable, |message| message.timestamp),
            group: self.destination.maybe_group().unwrap_or_default().to_owned(),
        }
    }

    pub(crate) async fn close(&self) {
        for producer in [self.dead_letters.get(), self.retries.get()].into_iter().flatten() {
            producer.close().await;
        }
    }
}

/// Nowhere to go.
pub(crate) fn no_dead_letter() -> Error {
    Error::new(
        ErrorKind::NoDeadLetter,
        "no dead-letter topic is known: add ?dead_letter=TOPIC to the address; the message stays",
    )
}
