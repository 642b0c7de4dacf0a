//! The consumer: a member of a group, whose records a thread of its own takes in.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use rdkafka::consumer::Consumer as _;
use throughline_core::capabilities::{self, RetryMeans};
use throughline_core::driver::{self, Delivery, Endpoint, Settlement, Token};
use throughline_core::{Capabilities, ConsumeOptions, Error, ErrorKind, Order, Result};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::config::Destination;
use crate::connect::{blocking, exists};
use crate::error;
use crate::onward::{Leaving, Onward, To, no_dead_letter};
use crate::poll::{self, Client, Context};
use crate::publisher::endpoint;
use crate::state::{Bounds, Phase, Shared, State};

/// An open topic, or a part of it: whatever partitions the group gives us.
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    destination: Arc<Destination>,
    onward: Onward,
    capabilities: Capabilities,
    endpoint: Endpoint,
    thread: Mutex<Option<Polling>>,
    /// How long a close may take.
    longest_close: Duration,
}

/// The polling thread, and what tells that it has ended.
struct Polling {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl Consumer {
    /// Joins the group. The topics must exist.
    pub(crate) async fn open(
        cluster: Cluster,
        destination: Destination,
        options: &ConsumeOptions,
    ) -> Result<Self> {
        let group = destination.group()?.to_owned();
        let mut topics = vec![destination.topic()?.to_owned()];
        let mut capabilities = capabilities::KAFKA;
        if destination.retry_by_topic {
            topics.push(destination.retry_topic()?);
            if options.order == Order::Any {
                capabilities.retry = RetryMeans::Republish;
            }
        }
        for topic in &topics {
            exists(&cluster, topic, &destination).await?;
        }
        let bounds = Bounds {
            messages: options.max_unsettled.max(1),
            bytes: options.max_bytes.max(1),
            window: destination.window,
        };
        let shared = Arc::new(Shared::new(options.order == Order::PerKey, bounds));
        let destination = Arc::new(destination);
        let client = client(&cluster, &group, &destination, shared.clone())?;
        let names: Vec<_> = topics.iter().map(String::as_str).collect();
        client.subscribe(&names).map_err(error::map)?;
        let (end, ended) = oneshot::channel();
        let thread = {
            let (shared, destination) = (shared.clone(), destination.clone());
            let name = format!("kafka {group}");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || {
                    // Dropped last, whatever happens.
                    let _end: oneshot::Sender<()> = end;
                    poll::run(&shared, client, &destination);
                })
                .map_err(|error| {
                    Error::new(ErrorKind::Internal, "the polling thread cannot be started").with_source(error)
                })?
        };
        let mut endpoint = endpoint(&cluster, destination.topic()?);
        endpoint.attributes.push(KeyValue::new("messaging.consumer.group.name", group));
        Ok(Self {
            longest_close: cluster.timeout,
            onward: Onward::new(cluster, (*destination).clone()),
            shared,
            destination,
            capabilities,
            endpoint,
            thread: Mutex::new(Some(Polling { thread, ended })),
        })
    }

    /// Settles what can be settled here; gives what has to be sent on before, with its place in the batch.
    fn settle_here(
        &self,
        state: &mut State,
        token: &Token,
        settlement: &Settlement,
    ) -> Result<Option<Leaving>> {
        let keep_order = self.shared.keep_order;
        match settlement {
            Settlement::Ack => state.settle(token, keep_order).map(|()| None),
            Settlement::Release => state.release(token, keep_order).map(|()| None),
            Settlement::Retry { after, history } => {
                let entry = state.entry(token)?;
                let is_keyed = keep_order && entry.delivery.envelope.ordering_key.is_some();
                if self.destination.retry_by_topic && !is_keyed {
                    let (delivery, history) = (entry.delivery.clone(), history.clone());
                    return Ok(Some(Leaving { delivery, history, to: To::Retry(*after) }));
                }
                state.hold(token, *after, history, keep_order).map(|()| None)
            }
            Settlement::Reject { history } => {
                let delivery = state.entry(token)?.delivery.clone();
                if self.destination.dead_letter.is_none() {
                    return Err(no_dead_letter());
                }
                Ok(Some(Leaving { delivery, history: history.clone(), to: To::DeadLetter }))
            }
        }
    }

    /// Sends on, and settles what the brokers have; the rest stays held.
    async fn send_on(&self, leaving: Vec<Leaving>) -> Vec<Result<()>> {
        let answers = self.onward.send(&leaving).await;
        let mut state = self.shared.state();
        let keep_order = self.shared.keep_order;
        let settled = leaving.iter().zip(answers).map(|(leaving, answer)| match answer {
            Ok(()) => state.settle(&leaving.delivery.token, keep_order),
            Err(error) => state.entry(&leaving.delivery.token).and(Err(error)),
        });
        let settled = settled.collect();
        self.shared.tell(&state);
        settled
    }
}

fn client(cluster: &Cluster, group: &str, destination: &Destination, shared: Arc<Shared>) -> Result<Client> {
    // The brokers' own protocol brings its own assignors, and refuses to be told of one.
    let is_classic = cluster.property("group.protocol").is_none_or(|protocol| protocol == "classic");
    let defaults = [
        // So long after its creation librdkafka takes a topic that is not there for one that is not everywhere yet. Ours was
        // seen before.
        ("topic.metadata.propagation.max.ms", "5000"),
        // A deletion is told also where no partition is ours. The default is 5 minutes.
        ("topic.metadata.refresh.interval.ms", "10000"),
        // Where enough is fetched ahead, librdkafka looks again after so long; its default is 1 s, in which a quick consumer runs
        // out of all that it allows (64 MiB, 100,000 messages).
        ("fetch.queue.backoff.ms", "20"),
        ("partition.assignment.strategy", "cooperative-sticky"),
    ];
    let config = cluster.client(
        if is_classic { &defaults } else { &defaults[..3] },
        &[
            ("group.id", group),
            ("auto.offset.reset", destination.from.property()),
            // What we store, which is never past an unsettled record, it commits as partitions are taken away and as the
            // consumer closes. At intervals we do it: librdkafka would leave out metadata that changes while the position stays.
            ("enable.auto.commit", "true"),
            ("auto.commit.interval.ms", "0"),
            ("enable.auto.offset.store", "false"),
        ],
    );
    // Half of what a close may take: the last commit takes its time, too.
    let leaving = if is_classic { cluster.timeout / 2 } else { Duration::ZERO };
    config.create_with_context(Context::new(shared, destination.drain, leaving)).map_err(error::map)
}

#[async_trait]
impl driver::Consumer for Consumer {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let deadline = Instant::now() + wait;
        loop {
            let (out, due) = self.shared.take(max.get());
            if !out.is_empty() {
                return Ok(out);
            }
            {
                let state = self.shared.state();
                if state.phase > Phase::Running {
                    return Ok(out);
                }
                if let Some(error) = &state.ended {
                    return Err(error.clone());
                }
            }
            let until = due.map_or(deadline, |due| due.min(deadline));
            // Nobody else waits, so that what is told meanwhile is kept for this call.
            let told = tokio::time::timeout_at(until, self.shared.arrived.notified()).await;
            if told.is_err() && Instant::now() >= deadline {
                return Ok(out);
            }
        }
    }

    fn has_dead_letter(&self) -> bool {
        self.destination.dead_letter.is_some()
    }

    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut leaving = Vec::new();
        {
            let mut state = self.shared.state();
            for (at, (token, settlement)) in batch.iter().enumerate() {
                results.push(self.settle_here(&mut state, token, settlement).map(|onward| {
                    leaving.extend(onward.map(|onward| (at, onward)));
                }));
            }
            self.shared.tell(&state);
        }
        let (places, leaving): (Vec<usize>, Vec<_>) = leaving.into_iter().unzip();
        if !leaving.is_empty() {
            for (at, outcome) in places.into_iter().zip(self.send_on(leaving).await) {
                if let Some(result) = results.get_mut(at) {
                    *result = outcome;
                }
            }
        }
        results
    }

    /// It is the polling thread that commits.
    fn ack_now(&self, tokens: &[Token]) -> Option<Vec<Result<()>>> {
        let mut state = self.shared.state();
        let results = tokens.iter().map(|token| state.settle(token, self.shared.keep_order)).collect();
        self.shared.tell(&state);
        Some(results)
    }

    async fn extend(&self, tokens: &[Token], _: Duration) -> Vec<Result<()>> {
        let error = Error::new(ErrorKind::Unsupported, "Kafka's deliveries have no lease to extend");
        tokens.iter().map(|_| Err(error.clone())).collect()
    }

    fn epoch(&self) -> u64 {
        self.shared.epoch()
    }

    fn is_current(&self, token: &Token) -> bool {
        self.shared.is_live(token.epoch)
    }

    async fn stop(&self) {
        self.shared.advance(Phase::Stopped);
    }

    async fn close(&self) -> Result<()> {
        self.shared.advance(Phase::Closing);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let joined = match thread {
            // It ends by dropping the sender. A thread that waits for a broker which does not come cannot be joined in time: it
            // ends by itself.
            Some(Polling { thread, ended }) => match tokio::time::timeout(self.longest_close, ended).await {
                Ok(_) => blocking(move || thread.join().map_err(|_| panicked())).await,
                Err(_) => Err(unclosed(self.longest_close)),
            },
            None => Ok(()),
        };
        self.onward.close().await;
        joined
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "the polling thread failed")
}

fn unclosed(waited: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!(
            "the brokers did not take the last commit within {waited:?}: what was acked last may be delivered again"
        ),
    )
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Without a close the thread ends by itself.
        self.shared.advance(Phase::Closing);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("topic", &self.endpoint.destination).finish_non_exhaustive()
    }
}
