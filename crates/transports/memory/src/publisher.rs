//! Publishing: into a queue, or into every subscription of a topic.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use throughline_core::capabilities::{self, Capabilities};
use throughline_core::driver::{self, Completions, Endpoint, Outgoing, Receipt};
use throughline_core::{Address, Error, ErrorKind, Result};

use crate::broker::{Broker, Destination};
use crate::config::Config;

pub(crate) struct MemoryPublisher {
    broker: Arc<Broker>,
    destination: Destination,
    drop_unroutable: bool,
    endpoint: Endpoint,
}

impl MemoryPublisher {
    pub(crate) fn open(broker: Arc<Broker>, address: &Address) -> Result<Arc<dyn driver::Publisher>> {
        let config = Config::new(address)?;
        Ok(Arc::new(Self {
            destination: broker.destination(&config)?,
            broker,
            drop_unroutable: config.drop_unroutable,
            endpoint: Endpoint { destination: config.place.name().to_owned(), ..Endpoint::default() },
        }))
    }

    fn publish_to_topic(&self, topic: &str, batch: &[Outgoing], done: &Completions) {
        let subscriptions = match self.broker.subscriptions(topic) {
            Ok(subscriptions) => subscriptions,
            Err(error) => return done.fail_rest(&error),
        };
        if subscriptions.is_empty() && !self.drop_unroutable {
            return done.fail_rest(&Error::new(
                ErrorKind::Unroutable,
                format!("topic '{topic}' has no subscription; consume from it first, or add unroutable=drop"),
            ));
        }
        // A message that one subscription refuses is refused, and sent again to all: at least once to each.
        let failed = Mutex::new(vec![None; batch.len()]);
        for queue in subscriptions {
            queue.push(batch, |index, result| {
                if let Err(error) = result
                    && let Some(place) = failed.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)
                {
                    *place = Some(error);
                }
            });
        }
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (index, error) in failed.into_iter().enumerate() {
            done.complete(index, error.map_or_else(|| Ok(Receipt::default()), Err));
        }
    }
}

#[async_trait]
impl driver::Publisher for MemoryPublisher {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::MEMORY
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        Ok(message.envelope.payload_len())
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        match &self.destination {
            Destination::Queue(queue) => queue.push(&batch, |index, result| done.complete(index, result)),
            Destination::Topic(topic) => self.publish_to_topic(topic, &batch, &done),
        }
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
