//! Consuming from a queue or a subscription.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::capabilities::{self, Capabilities};
use throughline_core::driver::{self, Delivery, Endpoint, Settlement, Token};
use throughline_core::{ConsumeOptions, Result, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::claim::Claim;
use crate::config::{Config, Place};
use crate::file::File;

pub(crate) struct SqliteConsumer {
    file: Arc<File>,
    queue: i64,
    /// Tells when something may be ready.
    arrived: Arc<Notify>,
    config: Config,
    options: ConsumeOptions,
    endpoint: Endpoint,
    /// The subscription is this consumer's own, and ends with it.
    own: bool,
    stopped: watch::Sender<bool>,
}

impl SqliteConsumer {
    pub(crate) async fn open(
        file: Arc<File>,
        mut config: Config,
        options: &ConsumeOptions,
    ) -> Result<Arc<dyn driver::Consumer>> {
        let mut own = false;
        if let Place::Topic { subscription: subscription @ None, .. } = &mut config.place {
            *subscription = Some(Uuid::now_v7().to_string());
            own = true;
        }
        let asked = config.clone();
        let queue = file
            .write(move |store| {
                if !own {
                    return store.source(&asked).map(|queue| queue.id);
                }
                // It is made with its consumer, whatever `create` says; the topic is not.
                store.destination(&asked)?;
                let queue = store.source(&Config { create: true, ..asked.clone() })?.id;
                store.keep_alive(queue)?;
                Ok(queue)
            })
            .await?;
        if own {
            file.hub().keep_alive(queue);
        }
        Ok(Arc::new(Self {
            arrived: file.hub().of(queue),
            endpoint: Endpoint { destination: config.place.name().to_owned(), ..Endpoint::default() },
            options: options.clone(),
            stopped: watch::channel(false).0,
            file,
            queue,
            config,
            own,
        }))
    }
}

/// How long it is until then, by the wall clock, which other processes have in common with us.
fn until(then: Timestamp) -> Duration {
    let millis = then.millis_since(Timestamp::now());
    // At least a little: what is due this very millisecond is so in the next.
    Duration::from_millis(u64::try_from(millis).unwrap_or(0).max(1))
}

impl Drop for SqliteConsumer {
    fn drop(&mut self) {
        if self.own {
            self.file.hub().let_go(self.queue);
        }
    }
}

#[async_trait]
impl driver::Consumer for SqliteConsumer {
    fn capabilities(&self) -> &Capabilities {
        &capabilities::SQLITE
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn receive(&self, max: NonZeroUsize, wait: Duration) -> Result<Vec<Delivery>> {
        let deadline = Instant::now() + wait;
        let mut stopped = self.stopped.subscribe();
        let claim = Claim {
            queue: self.queue,
            max: max.get(),
            max_bytes: self.options.max_bytes.max(1),
            lease: self.options.lease,
            order: self.options.order,
        };
        let _waiting = self.file.hub().waiting();
        loop {
            if *stopped.borrow() {
                // The wake-up may have been for a message that is for others now.
                self.arrived.notify_one();
                return Ok(Vec::new());
            }
            let claimed = self
                .file
                .write_unless(move |connection| claim.peek(connection), move |store| store.claim(claim))
                .await?;
            if claimed.more {
                self.arrived.notify_one();
            }
            if !claimed.deliveries.is_empty() || Instant::now() >= deadline {
                return Ok(claimed.deliveries);
            }
            let next = claimed.next.map(|next| Instant::now() + until(next));
            tokio::select! {
                () = self.arrived.notified() => {}
                () = tokio::time::sleep_until(next.map_or(deadline, |next| next.min(deadline))) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        }
    }

    fn has_dead_letter(&self) -> bool {
        self.config.dead_letter.is_some()
    }

    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        let (queue, config, settled) = (self.queue, self.config.clone(), batch.to_vec());
        let releases = |(_, settlement): &(Token, Settlement)| matches!(settlement, Settlement::Release);
        let light = batch.iter().all(releases);
        let work = move |store: &mut crate::store::Store<'_>| store.settle(queue, &config, &settled);
        let results = if light { self.file.write_lightly(work).await } else { self.file.settle(work).await };
        results.unwrap_or_else(|error| vec![Err(error); batch.len()])
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<()>> {
        let (queue, extended) = (self.queue, tokens.to_vec());
        let results = self.file.write_lightly(move |store| store.extend(queue, &extended, by)).await;
        results.unwrap_or_else(|error| vec![Err(error); tokens.len()])
    }

    fn epoch(&self) -> u64 {
        0
    }

    /// Each delivery has its own, in its row: only a look tells.
    fn is_current(&self, _token: &Token) -> bool {
        true
    }

    async fn stop(&self) {
        self.stopped.send_replace(true);
    }

    async fn close(&self) -> Result<()> {
        self.stopped.send_replace(true);
        if !self.own {
            return Ok(());
        }
        self.file.hub().let_go(self.queue);
        let queue = self.queue;
        match self.file.write(move |store| store.mark_deleted(queue)).await {
            // It ends by itself a little later.
            Err(error) if error.kind() == throughline_core::ErrorKind::Closed => Ok(()),
            result => result,
        }
    }
}
