//! Publishing on behalf of a consumer: retries to its own queue, rejects to the dead-letter destination.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;
use throughline_core::driver::Completions;
use throughline_core::{Envelope, Error, ErrorKind, Result, Retry};

use crate::codec::{self, Hop};
use crate::config::Route;
use crate::confirm::{Job, Sender, Unroutable};
use crate::delay::{Target, Tiers};
use crate::publisher::FRAME;
use crate::transport::Shared;

/// Publishes what a consumer sends on: retries to its own queue, rejects to the dead-letter destination.
pub(crate) struct Republisher {
    shared: Arc<Shared>,
    sender: Sender,
}

/// One message to be sent on.
pub(crate) struct Onward<'a> {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) hop: Hop<'a>,
    pub(crate) to: Destined<'a>,
}

/// Where a message is sent on.
pub(crate) enum Destined<'a> {
    /// Back to the queue.
    Queue(&'a ShortString, Duration),
    /// To the dead-letter destination.
    DeadLetter(&'a Route),
}

/// How often a message that the broker has certainly not taken is sent on again, and the wait between, times the tries.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

impl Republisher {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { sender: Sender::new(shared.publishing.clone()), shared }
    }

    /// Sends messages on, and waits until the broker has them: one answer each, in order.
    pub(crate) async fn send(&self, messages: Vec<Onward<'_>>) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = messages.iter().map(|_| Ok(())).collect();
        let mut open: Vec<usize> = (0..messages.len()).collect();
        for tries in 1..=TRIES {
            let (done, answers) = Completions::collect(open.len());
            let done = Arc::new(done);
            let mut jobs = Vec::with_capacity(open.len());
            for (index, message) in open.iter().filter_map(|at| messages.get(*at)).enumerate() {
                match self.job(message, index).await {
                    Ok(job) => jobs.push(job),
                    Err(error) => done.complete(index, Err(error)),
                }
            }
            self.sender.send(jobs, &done).await;
            drop(done);
            let mut again = Vec::new();
            for (at, answer) in open.into_iter().zip(answers.await) {
                if answer.as_ref().is_err_and(|error| error.retry() == Retry::Safe) && tries < TRIES {
                    again.push(at);
                } else if let Some(result) = results.get_mut(at) {
                    *result = answer.map(drop);
                }
            }
            if again.is_empty() {
                break;
            }
            open = again;
            tokio::time::sleep(PAUSE * tries).await;
        }
        results
    }

    async fn job(&self, message: &Onward<'_>, index: usize) -> Result<Job> {
        let link = self.shared.publishing.link().await?;
        let limit = link.frame_max().saturating_sub(FRAME);
        let mut hop = message.hop.clone();
        // A message that was at the limit before has no room for its history.
        if codec::size(&message.envelope, &hop) > limit {
            tracing::warn!("no room in the headers for the history of failures: sent on without it");
            hop.history = None;
        }
        let size = codec::size(&message.envelope, &hop);
        if size > limit {
            return Err(Error::limit(
                "the size of all properties and headers, ours for retries included,",
                format!("{size} bytes"),
                format!("{limit} bytes"),
            ));
        }
        let shared = self.shared.clone();
        let (route, unroutable): (_, Unroutable) = match &message.to {
            Destined::DeadLetter(route) => {
                let text = format!("the dead-letter destination '{}' takes no message", shown(route));
                let error = Error::new(ErrorKind::Unroutable, text);
                ((*route).clone(), Arc::new(move |_: &str| error.clone()))
            }
            Destined::Queue(queue, delay) if delay.is_zero() => {
                let error = Error::new(ErrorKind::NotFound, format!("there is no queue '{queue}' any more"));
                (Route::to_queue((*queue).clone()), Arc::new(move |_: &str| error.clone()))
            }
            Destined::Queue(queue, delay) => {
                hop.expires = false;
                let target = Target::Queue((*queue).clone());
                let route = tiers(&shared).route(&target, queue, *delay).await?;
                let gone = move |_: &str| {
                    tiers(&shared).forget_all();
                    Error::new(ErrorKind::Unroutable, "the delay queue has been deleted")
                        .with_retry(Retry::Safe)
                };
                (route, Arc::new(gone))
            }
        };
        let properties = codec::encode(&message.envelope, &hop);
        Ok(Job { envelope: message.envelope.clone(), properties, route, mandatory: true, unroutable, index })
    }

    pub(crate) async fn close(&self) {
        self.sender.close().await;
    }
}

fn tiers(shared: &Shared) -> &Tiers {
    &shared.tiers
}

fn shown(route: &Route) -> String {
    match route.exchange.as_str() {
        "" => route.key.to_string(),
        exchange => format!("{exchange}:{}", route.key),
    }
}

impl fmt::Debug for Republisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Republisher").finish_non_exhaustive()
    }
}
