//! Consuming from a queue or a subscription.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::capabilities::{Capabilities, Lease, SettleMeaning};
use throughline_core::driver::{self, Consumer as _, Delivery, Endpoint, Settlement, Token};
use throughline_core::{ConsumeOptions, Error, ErrorKind, History, Result};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::broker::Broker;
use crate::config::{Config, Place};
use crate::queue::Queue;
use crate::stored::DeadLetter;

pub(crate) struct MemoryConsumer {
    broker: Arc<Broker>,
    queue: Arc<Queue>,
    config: Config,
    options: ConsumeOptions,
    endpoint: Endpoint,
    stopped: watch::Sender<bool>,
    /// Names it to the queue.
    id: u64,
}

/// The ids of consumers.
static IDS: AtomicU64 = AtomicU64::new(1);

impl MemoryConsumer {
    pub(crate) fn open(
        broker: Arc<Broker>,
        mut config: Config,
        options: &ConsumeOptions,
    ) -> Result<Arc<dyn driver::Consumer>> {
        if let Place::Topic { subscription: subscription @ None, .. } = &mut config.place {
            *subscription = Some(Uuid::now_v7().to_string());
            config.own = true;
        }
        Ok(Arc::new(Self {
            queue: broker.source(&config)?,
            endpoint: Endpoint { destination: config.place.name().to_owned(), ..Endpoint::default() },
            options: options.clone(),
            stopped: watch::channel(false).0,
            id: IDS.fetch_add(1, Ordering::Relaxed),
            broker,
            config,
        }))
    }

    fn settle_one(&self, token: Token, settlement: &Settlement) -> Result<()> {
        match settlement {
            Settlement::Ack => self.queue.remove(token).map(drop),
            Settlement::Release => self.queue.put_back(token, None),
            Settlement::Retry { after, history } => {
                self.capabilities().check_retry(*after)?;
                self.queue.put_back(token, Some((*after, history)))
            }
            Settlement::Reject { history } => self.reject(token, history),
        }
    }

    fn reject(&self, token: Token, history: &Arc<History>) -> Result<()> {
        let name = self.config.dead_letter.as_deref().ok_or_else(|| {
            Error::new(
                ErrorKind::NoDeadLetter,
                "no dead-letter queue is known, so the message stays; add dead_letter=QUEUE to the address",
            )
        })?;
        let dead_letters = self.broker.dead_letters(name, &self.config)?;
        let rejected = self.queue.remove(token)?;
        let reason = history.last().map_or_else(|| "rejected".to_owned(), ToString::to_string);
        let why = DeadLetter { source: self.queue.name().to_owned(), reason };
        dead_letters.push_dead_letter(rejected, history.clone(), why);
        Ok(())
    }
}

#[async_trait]
impl driver::Consumer for MemoryConsumer {
    fn capabilities(&self) -> &Capabilities {
        self.broker.capabilities()
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let deadline = Instant::now() + wait;
        let mut stopped = self.stopped.subscribe();
        loop {
            if *stopped.borrow() {
                // The wake-up may have been for a message that is for others now.
                self.queue.pass_on();
                return Ok(Vec::new());
            }
            let (taken, next) =
                self.queue.take(max.get(), self.options.lease, self.options.order, self.id)?;
            if !taken.is_empty() || Instant::now() >= deadline {
                return Ok(taken);
            }
            let until = next.map_or(deadline, |next| next.min(deadline));
            tokio::select! {
                () = self.queue.arrival() => {}
                () = tokio::time::sleep_until(until) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        }
    }

    fn has_dead_letter(&self) -> bool {
        self.config.dead_letter.is_some()
    }

    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        let is_ack = |(_, settlement): &(Token, Settlement)| matches!(settlement, Settlement::Ack);
        let mut results = Vec::with_capacity(batch.len());
        for run in batch.chunk_by(|a, b| is_ack(a) && is_ack(b)) {
            match run {
                [(token, settlement)] => results.push(self.settle_one(*token, settlement)),
                acks => self.queue.ack(acks.iter().map(|(token, _)| *token), &mut results),
            }
        }
        results
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<()>> {
        if matches!(self.capabilities().lease, Lease::Renewable(_)) {
            return tokens.iter().map(|token| self.queue.extend(*token, by)).collect();
        }
        let text = format!("{} cannot extend a lease", self.capabilities().transport);
        tokens.iter().map(|_| Err(Error::new(ErrorKind::Unsupported, text.clone()))).collect()
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn is_current(&self, token: &Token) -> bool {
        // Where an ack is answered before it is done, it is to be known here that it will be.
        self.capabilities().settle != SettleMeaning::Deferred || self.queue.holds(*token)
    }

    async fn stop(&self) {
        self.stopped.send_replace(true);
    }

    async fn close(&self) -> Result<()> {
        self.stopped.send_replace(true);
        self.queue.let_go(self.id);
        if self.config.own {
            self.broker.delete(&self.config);
        }
        Ok(())
    }
}
