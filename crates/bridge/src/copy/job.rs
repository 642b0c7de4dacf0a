//! One message on its way, and the tasks that see it through: sink accepted, then ledger, then source acked.

use std::sync::Arc;

use bytes::Bytes;
use throughline::{Delivery, Envelope, Error, Failure, Pending, Publisher, Result, SendOptions, Timestamp};

use super::Finished;
use crate::identity::Identity;
use crate::ledger::{Entry, Writer};
use crate::report::{Rejected, Totals};
use crate::verdict::class;
use crate::verify::{Became, Sent};

/// A message that was taken from the source. Dropped, it is released there.
pub(crate) struct Job {
    pub(super) delivery: Delivery,
    /// As it goes on.
    pub(super) envelope: Arc<Envelope>,
    identity: Option<Identity>,
    /// Why the sink does not take it: it goes to the reject address.
    pub(super) refused: Option<Error>,
    /// How often it was sent and nobody knows what became of it.
    pub(super) sent_again: u64,
}

impl Job {
    pub(super) fn new(delivery: Delivery, envelope: Arc<Envelope>, identity: Option<Identity>) -> Self {
        Self { delivery, envelope, identity, refused: None, sent_again: 0 }
    }

    pub(super) fn key(&self) -> Option<&Bytes> {
        self.envelope.ordering_key.as_ref()
    }

    /// Its history goes along. Deliveries to the bridge are no attempts, so they are not counted.
    pub(super) fn options(&self) -> SendOptions {
        let mut options = SendOptions { verbatim: true, ..SendOptions::default() };
        if let Some(history) = self.delivery.history() {
            options.failed_attempts = history.count();
            options.history = Some(Arc::new(history.clone()));
        }
        options
    }

    fn finished(&self) -> Finished {
        (self.key().cloned(), self.identity.clone())
    }
}

/// What became of messages.
#[derive(Default)]
pub(crate) struct Done {
    /// They are done with, here.
    pub(super) finished: Vec<Finished>,
    pub(super) failed: Vec<(u64, Job, Error)>,
    pub(super) totals: Totals,
    /// The source did not take the ack of these; `None` where one cannot be recognised.
    pub(super) unacked: Vec<Option<Identity>>,
    /// Known before, and acked now.
    pub(super) acked_again: Vec<Identity>,
    /// The ledger failed: nothing was acked.
    pub(super) fatal: Option<Error>,
}

impl Done {
    /// Notes what was accepted, and acks it once that is in the ledger.
    async fn close(mut self, entries: Vec<Entry>, deliveries: Vec<Delivery>, writer: &Writer) -> Self {
        if deliveries.is_empty() {
            return self;
        }
        let again = self.totals.moved + self.totals.rejected == 0;
        let identities: Vec<_> = if again {
            deliveries.iter().map(Identity::of).collect()
        } else {
            entries.iter().map(|entry| entry.identity.clone()).collect()
        };
        match writer.note(entries, self.totals).await {
            Ok(copies) => {
                self.totals.copies += copies;
                let acked = Delivery::ack_all(deliveries).await;
                for (identity, ack) in identities.into_iter().zip(acked) {
                    match ack {
                        Ok(()) if again => self.acked_again.extend(identity),
                        Ok(()) => {}
                        Err(error) => {
                            tracing::debug!(%error, "an ack has failed: the message comes again");
                            self.unacked.push(identity);
                        }
                    }
                }
            }
            Err(error) => {
                self.unacked = identities;
                self.fatal = Some(error);
            }
        }
        self
    }
}

/// Waits for the receipts of messages that were sent together.
pub(super) async fn settle(sent: Vec<(u64, Job, Pending)>, writer: Writer, verified: bool) -> Done {
    let mut done = Done::default();
    let (mut entries, mut deliveries) = (Vec::with_capacity(sent.len()), Vec::with_capacity(sent.len()));
    for (number, job, pending) in sent {
        match pending.receipt().await {
            Ok(receipt) => {
                done.finished.push(job.finished());
                done.totals.moved += 1;
                done.totals.bytes += job.envelope.payload_len() as u64;
                done.totals.sent_again += job.sent_again;
                done.totals.deduplicated += u64::from(receipt.deduplicated);
                let sent = verified.then(|| Sent::new(Became::Sent, number, &job.envelope));
                entries.push(Entry { identity: job.identity, rejected: None, sent });
                deliveries.push(job.delivery);
            }
            Err(error) => done.failed.push((number, job, error)),
        }
    }
    done.close(entries, deliveries, &writer).await
}

/// Sends a message that the sink refuses to the reject address, as it came, with the reason.
pub(super) async fn reject(number: u64, job: Job, to: Publisher, writer: Writer, verified: bool) -> Done {
    let mut done = Done::default();
    match send_rejected(&job, &to).await {
        Ok(rejected) => {
            done.finished.push(job.finished());
            done.totals.rejected = 1;
            done.totals.sent_again = job.sent_again;
            let sent = verified.then(|| Sent::new(Became::Rejected, number, &job.envelope));
            let entry = Entry { identity: job.identity, rejected: Some(rejected), sent };
            done.close(vec![entry], vec![job.delivery], &writer).await
        }
        Err(error) => {
            done.failed.push((number, job, error));
            done
        }
    }
}

async fn send_rejected(job: &Job, to: &Publisher) -> Result<Rejected> {
    let envelope = job.delivery.envelope();
    let (class, reason) = match &job.refused {
        Some(error) => (class(error.kind()), error.to_string()),
        None => (String::new(), String::new()),
    };
    if let Some(key) = &envelope.ordering_key {
        // One of it may have failed here before; rejected messages have no order to keep.
        to.resume(key);
    }
    let failure = Failure::new(class.clone()).message(reason.clone()).worker("throughline bridge");
    job.delivery.send_dead_letter(to, failure).await?;
    let (id, message_type) = (envelope.id.clone(), envelope.message_type.clone());
    Ok(Rejected { at: Timestamp::now().to_string(), id, message_type, class, reason })
}

/// Acks what is not to be sent: it was moved before, or is skipped.
pub(super) async fn ack_only(
    deliveries: Vec<Delivery>,
    totals: Totals,
    sent: Vec<Sent>,
    writer: Writer,
) -> Done {
    let entries = sent.into_iter().map(|sent| Entry { identity: None, rejected: None, sent: Some(sent) });
    Done { totals, ..Done::default() }.close(entries.collect(), deliveries, &writer).await
}
