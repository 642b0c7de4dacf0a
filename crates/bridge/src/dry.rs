//! What a bridge would do with the messages that are there, without moving any.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use throughline::capabilities::Browse;
use throughline::driver::{OperationId, Outgoing};
use throughline::{Envelope, Publisher, Result, Timestamp};

use crate::bridge::Bridge;
use crate::filter::Rest;
use crate::report::Rejected;
use crate::verdict::class;

/// What [`Bridge::dry_run`] has found.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DryRun {
    /// How many messages were looked at.
    pub looked_at: u64,
    /// Whether there may be more than those.
    pub may_be_more: bool,
    /// How many would be moved.
    pub would_move: u64,
    /// Which the sink would refuse, by checks that need no network, and why.
    pub would_reject: Vec<Rejected>,
    /// How many the filter does not take, and would be given back.
    pub would_leave: u64,
    /// How many it does not take, and would be acked without being copied.
    pub would_skip: u64,
    /// Whether looking has disturbed: delivery counts have risen.
    pub disturbed: bool,
}

impl Bridge {
    /// Looks at no more than so many messages of the source, and says what would become of them. Nothing is moved. Where a
    /// broker cannot show messages without taking them (RabbitMQ, SQS), they are given back and their delivery counts
    /// rise.
    ///
    /// Errors: what opening the sink and looking at the source fail with; `Unsupported` where the source shows nothing.
    pub async fn dry_run(&self, look_at: NonZeroUsize) -> Result<DryRun> {
        let sink = self.to.publisher_to("", self.publish_options()).await?;
        let messages = self.from.browse("", look_at).await;
        let checked = messages.map(|messages| {
            let mut found = DryRun {
                looked_at: messages.len() as u64,
                may_be_more: messages.len() >= look_at.get(),
                would_move: 0,
                would_reject: Vec::new(),
                would_leave: 0,
                would_skip: 0,
                disturbed: self.from.capabilities().browse == Browse::Disturbing,
            };
            for message in &messages {
                if !self.settings.filter.takes(&message.envelope) {
                    match self.settings.rest {
                        Rest::Leave => found.would_leave += 1,
                        Rest::Skip => found.would_skip += 1,
                    }
                    continue;
                }
                let outgoing = Outgoing {
                    envelope: self.settings.map.apply(&message.envelope),
                    operation: OperationId(0),
                    delay: Duration::ZERO,
                    failed_attempts: message.history.as_ref().map_or(0, |history| history.count()),
                    history: message.history.clone(),
                };
                match check(&sink, &outgoing) {
                    Ok(()) => found.would_move += 1,
                    Err(error) => found.would_reject.push(rejected(&message.envelope, &error)),
                }
            }
            found
        });
        sink.close().await?;
        checked
    }
}

/// What the portable publisher checks before it queues a message.
fn check(sink: &Publisher, message: &Outgoing) -> Result<()> {
    message.envelope.validate()?;
    sink.capabilities().check_payload(message.envelope.payload_len())?;
    sink.driver().measure(message).map(drop)
}

fn rejected(envelope: &Arc<Envelope>, error: &throughline::Error) -> Rejected {
    Rejected {
        at: Timestamp::now().to_string(),
        id: envelope.id.clone(),
        message_type: envelope.message_type.clone(),
        class: class(error.kind()),
        reason: error.to_string(),
    }
}
