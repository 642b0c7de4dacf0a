//! The buses of this process, by name, and what they hold.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use throughline_core::capabilities::{Capabilities, Level};
use throughline_core::driver::Outgoing;
use throughline_core::{Error, ErrorKind, Result};

use crate::config::{Config, Place};
use crate::queue::Queue;

/// Kept until the process ends, so that a bus that is connected to again still has its messages.
/// Buses that are like different transports are different buses.
static BUSES: Mutex<BTreeMap<(String, &'static str), Arc<Broker>>> = Mutex::new(BTreeMap::new());

pub(crate) struct Broker {
    capabilities: &'static Capabilities,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<String, Arc<Queue>>,
    /// The subscriptions of each topic, by name. They are queues of their own, apart from those of work queues.
    topics: BTreeMap<String, Topic>,
}

#[derive(Default)]
struct Topic {
    subscriptions: BTreeMap<String, Arc<Queue>>,
    /// What was published, where a topic keeps it for those that subscribe later; the latest [`LOG`].
    log: VecDeque<Outgoing>,
}

/// How many messages a topic keeps, where it does.
const LOG: usize = 10_000;

impl Broker {
    pub(crate) fn named(name: &str, capabilities: &'static Capabilities) -> Arc<Self> {
        let mut buses = BUSES.lock().unwrap_or_else(PoisonError::into_inner);
        let broker = buses.entry((name.to_owned(), capabilities.transport));
        broker.or_insert_with(|| Arc::new(Self { capabilities, state: Mutex::default() })).clone()
    }

    /// What it can do.
    pub(crate) fn capabilities(&self) -> &'static Capabilities {
        self.capabilities
    }

    fn queue(&self, state: &mut State, name: &str, config: &Config) -> Result<Arc<Queue>> {
        match state.queues.get(name) {
            Some(queue) => Ok(queue.clone()),
            None if config.create => {
                let queue = Arc::new(Queue::new(name, config.max_length, self.capabilities));
                state.queues.insert(name.to_owned(), queue.clone());
                Ok(queue)
            }
            None => Err(missing("queue", name)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue or subscription that an address consumes from, created where it may be.
    pub(crate) fn source(&self, config: &Config) -> Result<Arc<Queue>> {
        let mut state = self.state();
        match &config.place {
            Place::Queue(name) => self.queue(&mut state, name, config),
            Place::Topic { topic, subscription } => {
                let subscription = subscription.as_deref().ok_or_else(|| {
                    Error::new(ErrorKind::InvalidAddress, "names no subscription; add &queue=NAME")
                })?;
                if !config.create && !state.topics.contains_key(topic) {
                    return Err(missing("topic", topic));
                }
                let Topic { subscriptions, log } = state.topics.entry(topic.clone()).or_default();
                if let Some(queue) = subscriptions.get(subscription) {
                    return Ok(queue.clone());
                }
                if !config.create && !config.own {
                    return Err(missing("subscription", subscription));
                }
                let queue = Arc::new(Queue::new(subscription, config.max_length, self.capabilities));
                // It begins where the topic does.
                queue.push(log.make_contiguous());
                subscriptions.insert(subscription.to_owned(), queue.clone());
                Ok(queue)
            }
        }
    }

    /// Makes sure that what an address publishes to is there.
    pub(crate) fn destination(&self, config: &Config) -> Result<Destination> {
        let mut state = self.state();
        match &config.place {
            Place::Queue(name) => Ok(Destination::Queue(self.queue(&mut state, name, config)?)),
            Place::Topic { topic, .. } => {
                if !config.create && !state.topics.contains_key(topic) {
                    return Err(missing("topic", topic));
                }
                state.topics.entry(topic.clone()).or_default();
                Ok(Destination::Topic(topic.clone()))
            }
        }
    }

    /// The present subscriptions of a topic.
    pub(crate) fn subscriptions(&self, topic: &str) -> Result<Vec<Arc<Queue>>> {
        self.subscriptions_for(topic, &[])
    }

    /// The present subscriptions of a topic, for messages to it; those that come later find them in its log, where it has
    /// one.
    pub(crate) fn subscriptions_for(&self, topic: &str, batch: &[Outgoing]) -> Result<Vec<Arc<Queue>>> {
        let mut state = self.state();
        let topic = state.topics.get_mut(topic).ok_or_else(|| missing("topic", topic))?;
        if self.capabilities.unroutable == Level::No {
            topic.log.extend(batch.iter().cloned());
            let too_many = topic.log.len().saturating_sub(LOG);
            topic.log.drain(..too_many);
        }
        Ok(topic.subscriptions.values().cloned().collect())
    }

    /// A queue for dead letters.
    pub(crate) fn dead_letters(&self, name: &str, config: &Config) -> Result<Arc<Queue>> {
        self.queue(&mut self.state(), name, config)
    }

    /// Creates what an address names, and says what was made; what is there already is left as it is, if it is the same.
    pub(crate) fn create(&self, config: &Config) -> Result<Vec<String>> {
        let there = Config { create: false, ..config.clone() };
        let config = Config { create: true, ..config.clone() };
        let mut made = Vec::new();
        let mut make = |what: String, existing: Option<Arc<Queue>>| match existing {
            None => {
                made.push(what);
                Ok(())
            }
            Some(queue) if queue.max_length() == config.max_length => Ok(()),
            Some(queue) => Err(Error::new(
                ErrorKind::Conflict,
                format!("{what} exists with max_length={}, not {}", queue.max_length(), config.max_length),
            )),
        };
        match &config.place {
            Place::Queue(name) => {
                make(format!("queue '{name}'"), self.source(&there).ok())?;
                self.source(&config)?;
            }
            Place::Topic { topic, subscription } => {
                if self.destination(&there).is_err() {
                    make(format!("topic '{topic}'"), None)?;
                }
                self.destination(&config)?;
                if let Some(subscription) = subscription {
                    let what = format!("subscription '{subscription}' of topic '{topic}'");
                    make(what, self.source(&there).ok())?;
                    self.source(&config)?;
                }
            }
        }
        if let Some(name) = &config.dead_letter {
            make(format!("dead-letter queue '{name}'"), self.dead_letters(name, &there).ok())?;
            self.dead_letters(name, &config)?;
        }
        Ok(made)
    }

    /// Deletes what an address names, with its messages, and says what.
    pub(crate) fn delete(&self, config: &Config) -> Vec<String> {
        let mut state = self.state();
        match &config.place {
            Place::Queue(name) => state.queues.remove(name).map_or_else(Vec::new, |queue| {
                queue.delete();
                vec![format!("queue '{name}'")]
            }),
            Place::Topic { topic, subscription: Some(subscription) } => {
                let queue =
                    state.topics.get_mut(topic).and_then(|topic| topic.subscriptions.remove(subscription));
                queue.map_or_else(Vec::new, |queue| {
                    queue.delete();
                    vec![format!("subscription '{subscription}' of topic '{topic}'")]
                })
            }
            Place::Topic { topic, subscription: None } => {
                let Some(Topic { subscriptions, .. }) = state.topics.remove(topic) else { return Vec::new() };
                let mut deleted = vec![format!("topic '{topic}'")];
                for (name, queue) in subscriptions {
                    queue.delete();
                    deleted.push(format!("subscription '{name}' of topic '{topic}'"));
                }
                deleted
            }
        }
    }
}

/// What a publisher sends to.
#[derive(Clone)]
pub(crate) enum Destination {
    Queue(Arc<Queue>),
    Topic(String),
}

fn missing(what: &str, name: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no {what} '{name}' in this process; create it first, or leave out create=never"),
    )
}
