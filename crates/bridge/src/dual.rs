//! Publishing to two places at once, from application code, while a workload moves from one to the other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use throughline::driver::Receipt;
use throughline::trace::SendSpan;
use throughline::{Envelope, Error, ErrorKind, Publisher, Result, Retry, SendOptions};

/// Which of the two decides whether a message is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// The place that the workload comes from.
    Old,
    /// The place that it moves to.
    New,
}

/// How a [`DualPublisher`] works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualOptions {
    /// A message counts as published only once both have accepted it. Then either side can fail the application, and one
    /// that is published again may be on one side twice, with one id. Off by default.
    pub both: bool,
    /// How long the leading side's answer may be kept waiting for the other's, where not both must accept; 1 s by
    /// default.
    pub patience: Duration,
}

impl Default for DualOptions {
    fn default() -> Self {
        Self { both: false, patience: Duration::from_secs(1) }
    }
}

/// Both answers, where the leading side has accepted the message.
#[derive(Debug)]
pub struct DualReceipt {
    /// Of the leading side.
    pub lead: Receipt,
    /// Of the other one. What it has not accepted is missing there: the comparison of both sides finds it.
    pub other: Result<Receipt>,
}

/// A publisher that writes each message to two places: the same envelope, with the same id and the same creation context,
/// in the same order.
///
/// One side leads: it alone decides whether a message is published, and the other can neither fail nor hold up the
/// application ([`DualOptions::both`] says otherwise). [`lead_by`](Self::lead_by) changes sides while the application runs: to
/// cut over, and to go back.
///
/// Cheap to clone. Neither publisher is closed by it.
///
/// ```
/// use throughline::{Bus, Envelope};
/// use throughline_bridge::{DualPublisher, Lead};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> throughline::Result<()> {
/// let old = Bus::connect("memory:dual?queue=old").await?;
/// let new = Bus::connect("memory:dual?queue=new").await?;
/// let publisher = DualPublisher::new(old.publisher().await?, new.publisher().await?);
///
/// let receipt = publisher.publish(Envelope::json("campaign.sync_report", &7)?).await?;
/// assert!(receipt.other.is_ok());
/// publisher.lead_by(Lead::New);     // the cut-over; `Lead::Old` goes back
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DualPublisher(Arc<Inner>);

struct Inner {
    old: Publisher,
    new: Publisher,
    new_leads: AtomicBool,
    options: DualOptions,
    missed: AtomicU64,
}

impl DualPublisher {
    /// A publisher to both, of which the old one leads.
    pub fn new(old: Publisher, new: Publisher) -> Self {
        Self::with_options(old, new, DualOptions::default())
    }

    /// The same, with options.
    pub fn with_options(old: Publisher, new: Publisher, options: DualOptions) -> Self {
        let (new_leads, missed) = (AtomicBool::new(false), AtomicU64::new(0));
        Self(Arc::new(Inner { old, new, new_leads, options, missed }))
    }

    /// Lets this side decide from now on, for all clones.
    pub fn lead_by(&self, lead: Lead) {
        self.0.new_leads.store(lead == Lead::New, Ordering::Relaxed);
    }

    /// Which side decides.
    pub fn lead(&self) -> Lead {
        if self.0.new_leads.load(Ordering::Relaxed) { Lead::New } else { Lead::Old }
    }

    /// How many messages the side that did not lead has not accepted, as far as is known. Those whose answer was
    /// abandoned before they were handed over count, too.
    pub fn missed(&self) -> u64 {
        self.0.missed.load(Ordering::Relaxed)
    }

    /// Sends one message to both and waits for their answers.
    ///
    /// Errors: those of [`Publisher::publish`], of the side that leads, or with [`DualOptions::both`] of either. A message
    /// that the leading side has not accepted may be on the other one; publishing it again, the same envelope, mends that.
    /// A key whose message failed on the leading side is held back there, as with one publisher, until
    /// [`resume`](Self::resume).
    ///
    /// Dropping the future abandons the answers, not the sends.
    pub async fn publish(&self, envelope: impl Into<Arc<Envelope>>) -> Result<DualReceipt> {
        self.publish_with(envelope, SendOptions::default()).await
    }

    /// The same, with options.
    pub async fn publish_with(
        &self,
        envelope: impl Into<Arc<Envelope>>,
        options: SendOptions,
    ) -> Result<DualReceipt> {
        let (lead, other) = match self.lead() {
            Lead::Old => (&self.0.old, &self.0.new),
            Lead::New => (&self.0.new, &self.0.old),
        };
        let mut envelope = envelope.into();
        // One creation context for both copies: the two send spans link to it.
        let span = SendSpan::start(&mut envelope, lead.capabilities(), lead.driver().endpoint());
        let result = self.send(lead, other, &envelope, options).await;
        span.end(result.as_ref().err());
        result
    }

    async fn send(
        &self,
        lead: &Publisher,
        other: &Publisher,
        envelope: &Arc<Envelope>,
        options: SendOptions,
    ) -> Result<DualReceipt> {
        let pending = lead.enqueue(envelope.clone(), options.clone()).await?;
        let mut missed = Missed { count: &self.0.missed, is_sent: false };
        let follow = async {
            let pending = other.enqueue(envelope.clone(), options).await?;
            missed.is_sent = true;
            pending.receipt().await
        };
        let bounded = async {
            if self.0.options.both {
                return follow.await;
            }
            tokio::time::timeout(self.0.options.patience, follow).await.unwrap_or_else(|_| {
                let text = format!("did not answer within {:?}", self.0.options.patience);
                Err(Error::new(ErrorKind::Timeout, text).with_retry(Retry::Uncertain))
            })
        };
        let (led, followed) = tokio::join!(pending.receipt(), bounded);
        missed.is_sent = followed.is_ok();
        drop(missed);
        if let Err(error) = &followed {
            tracing::warn!(id = envelope.id, %error, "one of two sides has not accepted a message");
            if let (false, Some(key)) = (self.0.options.both, &envelope.ordering_key) {
                // Nobody waits for it to be sent again.
                other.resume(key);
            }
        }
        match (led?, followed) {
            (_, Err(error)) if self.0.options.both => Err(error),
            (lead, other) => Ok(DualReceipt { lead, other }),
        }
    }

    /// Lifts the fence of an ordering key on both sides; see [`Publisher::resume`]. Says whether there was one.
    pub fn resume(&self, key: &[u8]) -> bool {
        let old = self.0.old.resume(key);
        self.0.new.resume(key) || old
    }
}

impl fmt::Debug for DualPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DualPublisher")
            .field("old", &self.0.old)
            .field("new", &self.0.new)
            .field("lead", &self.lead())
            .finish_non_exhaustive()
    }
}

/// Counts a message that the other side has not got, also where nobody waits any more.
struct Missed<'a> {
    count: &'a AtomicU64,
    is_sent: bool,
}

impl Drop for Missed<'_> {
    fn drop(&mut self) {
        if !self.is_sent {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use throughline::PublishOptions;
    use throughline_testkit::scripted::{self, Reply, ScriptedPublisher};

    use super::*;

    fn publisher(driver: &Arc<ScriptedPublisher>) -> Publisher {
        Publisher::new(driver.clone(), &"memory:x?queue=q".parse().unwrap(), PublishOptions::default())
    }

    fn message(text: &str) -> Envelope {
        Envelope::builder("x").key("k").payload(text.to_owned()).build()
    }

    #[tokio::test]
    async fn both_get_the_same_message_in_the_same_order() {
        let sides = [ScriptedPublisher::new(|_| Reply::Accept), ScriptedPublisher::new(|_| Reply::Accept)];
        let dual = DualPublisher::new(publisher(&sides[0]), publisher(&sides[1]));
        let all = (0..20).map(|n| dual.publish(message(&n.to_string())));
        for receipt in futures_util::future::join_all(all).await {
            assert!(receipt.unwrap().other.is_ok());
        }
        let sent = |side: &Arc<ScriptedPublisher>| {
            side.batches().into_iter().flatten().map(|message| message.envelope).collect::<Vec<_>>()
        };
        assert_eq!(sent(&sides[0]), sent(&sides[1]));
        assert_eq!(scripted::text(&sent(&sides[0])[19]), "19");
        assert_eq!(dual.missed(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_side_that_does_not_lead_can_neither_fail_nor_hold_up_the_application() {
        let good = ScriptedPublisher::new(|_| Reply::Accept);
        let mut answers = [Reply::Fail(scripted::never()), Reply::Silence, Reply::Accept].into_iter();
        let bad = ScriptedPublisher::new(move |_| answers.next().unwrap());
        let dual = DualPublisher::new(publisher(&good), publisher(&bad));
        let began = tokio::time::Instant::now();
        let failed = dual.publish(message("1")).await.unwrap();
        assert_eq!(failed.other.unwrap_err().kind(), ErrorKind::Refused);
        let silent = dual.publish(message("2")).await.unwrap();
        assert_eq!(silent.other.unwrap_err().retry(), Retry::Uncertain);
        assert!(began.elapsed() < Duration::from_secs(2));
        assert_eq!(dual.missed(), 2);
        assert_eq!(bad.texts(), ["1", "2"], "the key went on");
    }

    #[tokio::test]
    async fn the_side_that_leads_decides_and_can_be_changed() {
        let old = ScriptedPublisher::new(|_| Reply::Fail(scripted::never()));
        let new = ScriptedPublisher::new(|_| Reply::Accept);
        let dual = DualPublisher::new(publisher(&old), publisher(&new));
        assert_eq!(dual.publish(message("1")).await.unwrap_err().kind(), ErrorKind::Refused);
        let other_handle = dual.clone();
        other_handle.lead_by(Lead::New);
        assert_eq!(dual.lead(), Lead::New);
        assert!(dual.publish(message("2")).await.unwrap().other.is_err());

        let options = DualOptions { both: true, ..DualOptions::default() };
        let both = DualPublisher::with_options(publisher(&new), publisher(&old), options);
        assert_eq!(both.publish(message("3")).await.unwrap_err().kind(), ErrorKind::Refused);
        assert_eq!(both.missed(), 1);
    }
}
