//! Publishing: into a queue, or into every subscription of a topic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use throughline_core::capabilities::{Capabilities, Level};
use throughline_core::driver::{self, Completions, Endpoint, Outgoing, Receipt};
use throughline_core::{Error, ErrorKind, Result};

use crate::broker::{Broker, Destination};
use crate::config::Config;
use crate::like::Measure;

pub(crate) struct MemoryPublisher {
    broker: Arc<Broker>,
    config: Config,
    destination: Mutex<Destination>,
    closed: AtomicBool,
    drop_unroutable: bool,
    endpoint: Endpoint,
    measure: Option<Measure>,
}

impl MemoryPublisher {
    pub(crate) fn open(
        broker: Arc<Broker>,
        config: Config,
        measure: Option<Measure>,
    ) -> Result<Arc<dyn driver::Publisher>> {
        Ok(Arc::new(Self {
            destination: Mutex::new(broker.destination(&config)?),
            closed: AtomicBool::new(false),
            broker,
            drop_unroutable: config.drop_unroutable,
            endpoint: Endpoint { destination: config.place.name().to_owned(), ..Endpoint::default() },
            measure,
            config,
        }))
    }

    /// The destination; a queue that was deleted is found or created anew, where it may be.
    fn destination(&self) -> Result<Destination> {
        let mut destination = self.destination.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*destination, Destination::Queue(queue) if queue.is_deleted()) {
            *destination = self.broker.destination(&self.config)?;
        }
        Ok(destination.clone())
    }

    fn publish_to_topic(&self, topic: &str, batch: &[Outgoing], done: &Completions) {
        let subscriptions = match self.broker.subscriptions_for(topic, batch) {
            Ok(subscriptions) => subscriptions,
            Err(error) => return done.fail_rest(&error),
        };
        // A message that one subscription refuses is refused, and sent again to all: at least once to each.
        let mut results = vec![None; batch.len()];
        for queue in subscriptions {
            for (place, result) in results.iter_mut().zip(queue.push(batch)) {
                match result {
                    // Deleted meanwhile: as good as never there.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => *place = Some(Err(error)),
                    Ok(receipt) => {
                        place.get_or_insert(Ok(receipt));
                    }
                }
            }
        }
        let results = results.into_iter().map(|result| result.unwrap_or_else(|| self.unroutable(topic)));
        done.complete_many(results.enumerate());
    }

    fn unroutable(&self, topic: &str) -> Result<Receipt> {
        if self.drop_unroutable || self.broker.capabilities().unroutable == Level::No {
            return Ok(Receipt::default());
        }
        let text =
            format!("topic '{topic}' has no subscription; consume from it first, or add unroutable=drop");
        Err(Error::new(ErrorKind::Unroutable, text))
    }
}

#[async_trait]
impl driver::Publisher for MemoryPublisher {
    fn capabilities(&self) -> &Capabilities {
        self.broker.capabilities()
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn measure(&self, message: &Outgoing) -> Result<usize> {
        match self.measure {
            Some(measure) => measure(message, self.broker.capabilities()),
            None => Ok(message.envelope.payload_len()),
        }
    }

    async fn publish(&self, batch: Vec<Outgoing>, done: Completions) {
        if self.closed.load(Ordering::Acquire) {
            return done.fail_rest(&Error::new(ErrorKind::Closed, "the publisher is closed"));
        }
        match self.destination() {
            Ok(Destination::Queue(queue)) => {
                done.complete_many(queue.push(&batch).into_iter().enumerate());
            }
            Ok(Destination::Topic(topic)) => self.publish_to_topic(&topic, &batch, &done),
            Err(error) => done.fail_rest(&error),
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}
