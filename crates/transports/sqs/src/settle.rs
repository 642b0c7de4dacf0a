//! Settlement: deletes and visibility timeouts in batches, rejects by sending first.

use std::time::Duration;

use throughline_core::driver::{Settlement, Token};
use throughline_core::{Error, ErrorKind, Result, Retry, Timestamp};
use tokio::time::Instant;

use crate::batch;
use crate::config::round_up;
use crate::consumer::{Entry, Inner, LONGEST_HOLD, Source};
use crate::reject::Reject;

/// What a call asks of SQS; `at` is the place in the batch.
#[derive(Default)]
struct Plan {
    deletes: Vec<(usize, u64, String)>,
    /// With the seconds from now when it is visible again.
    visible: Vec<(usize, u64, String, i32)>,
    rejects: Vec<Reject>,
}

impl Source {
    pub(crate) async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let mut plan = Plan::default();
        {
            let mut inner = self.inner();
            for ((at, (token, settlement)), result) in batch.iter().enumerate().zip(&mut results) {
                *result = self.plan(&mut inner, at, token.tag, settlement, &mut plan);
            }
        }
        let url = &self.queue.url;
        // Sent before anything is deleted; what could not be sent stays held.
        for (reject, answer) in self.send_on(&plan.rejects).await {
            match answer {
                Ok(()) => plan.deletes.push((reject.at, reject.tag, reject.handle.clone())),
                Err(error) => {
                    if let Some(result) = results.get_mut(reject.at) {
                        *result = Err(error.with_retry(Retry::Never));
                    }
                }
            }
        }
        let (deleted, deletes): (Vec<_>, Vec<_>) =
            plan.deletes.into_iter().map(|(at, tag, handle)| ((at, tag), handle)).unzip();
        let (changed, visible): (Vec<_>, Vec<_>) =
            plan.visible.into_iter().map(|(at, tag, handle, seconds)| ((at, tag), (handle, seconds))).unzip();
        let (of_deletes, of_changes) = futures_util::future::join(
            batch::delete(&self.shared, url, deletes),
            batch::set_visibility(&self.shared, url, visible),
        )
        .await;
        let answers = deleted.into_iter().zip(of_deletes).chain(changed.into_iter().zip(of_changes));
        let mut back = Vec::new();
        {
            let mut inner = self.inner();
            for ((at, tag), answer) in answers {
                let is_safe = answer.as_ref().is_err_and(|error| error.retry() == Retry::Safe);
                // Kept for the next try; where none comes, until its lease is over.
                if !is_safe {
                    let settlement = batch.get(at).map(|(_, settlement)| settlement);
                    back.extend(inner.settled(tag, settlement, answer.is_ok()));
                }
                if let (Err(error), Some(result)) = (answer, results.get_mut(at)) {
                    *result = Err(error);
                }
            }
        }
        self.tell();
        self.give_back(back).await;
        results
    }

    fn plan(
        &self,
        inner: &mut Inner,
        at: usize,
        tag: u64,
        settlement: &Settlement,
        plan: &mut Plan,
    ) -> Result<()> {
        let Inner { entries, failures, .. } = inner;
        let entry = entries.get(&tag).filter(|entry| entry.expires > Instant::now()).ok_or_else(stale)?;
        let handle = entry.native.receipt_handle.clone();
        match settlement {
            Settlement::Ack => plan.deletes.push((at, tag, handle)),
            // Known before it is asked for: a request that is out may bring the message before this one is answered.
            Settlement::Release => {
                failures.released(&entry.native.message_id);
                plan.visible.push((at, tag, handle, 0));
            }
            Settlement::Retry { after, history } => {
                let held = entry.received.elapsed();
                // What of the time it has been held is cut off below: better early than refused.
                self.capabilities.check_retry(*after)?;
                let left = LONGEST_HOLD.saturating_sub(held);
                failures.failed(&entry.native.message_id, history.clone(), Timestamp::now().after(*after));
                plan.visible.push((at, tag, handle, whole_seconds(*after, left)));
            }
            Settlement::Reject { .. } if self.dead_letter.is_none() => {
                return Err(Error::new(
                    ErrorKind::NoDeadLetter,
                    "no dead-letter queue is known: add ?dead_letter=QUEUE to the address, or give the queue a redrive \
                     policy; the message stays",
                ));
            }
            Settlement::Reject { history } => {
                plan.rejects.push(Reject::new(at, tag, entry, history.clone()));
            }
        }
        Ok(())
    }

    pub(crate) async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<()>> {
        let asked = Instant::now();
        let mut results: Vec<Result<()>> = tokens.iter().map(|_| Err(stale())).collect();
        let mut handles = Vec::new();
        let mut extended = Vec::new();
        {
            let inner = self.inner();
            // What waits for a message of its group is held as long as that one.
            let waiting = inner.lanes.waiting().map(|tag| (usize::MAX, tag));
            let asked_for = tokens.iter().enumerate().map(|(at, token)| (at, token.tag));
            for (at, tag) in asked_for.chain(waiting) {
                let Some(entry) = inner.entries.get(&tag).filter(|entry| entry.expires > asked) else {
                    continue;
                };
                let left = LONGEST_HOLD.saturating_sub(entry.received.elapsed());
                let seconds = whole_seconds(by, left);
                extended.push((at, tag, Duration::from_secs(u64::try_from(seconds).unwrap_or(0))));
                handles.push((entry.native.receipt_handle.clone(), seconds));
            }
        }
        let answers = batch::set_visibility(&self.shared, &self.queue.url, handles).await;
        let mut inner = self.inner();
        for ((at, tag, by), answer) in extended.into_iter().zip(answers) {
            if let (Ok(()), Some(entry)) = (&answer, inner.entries.get_mut(&tag)) {
                entry.expires = asked + by;
            }
            if let Some(result) = results.get_mut(at) {
                *result = answer;
            }
        }
        results
    }
}

impl Inner {
    /// A message is settled: `ok`, or failed for good. Gives what has to go back behind it.
    fn settled(&mut self, tag: u64, settlement: Option<&Settlement>, ok: bool) -> Vec<Entry> {
        let is_gone = ok && matches!(settlement, Some(Settlement::Ack | Settlement::Reject { .. }));
        let (entry, back) = self.leave(tag, is_gone);
        if let Some(entry) = entry.filter(|_| is_gone) {
            self.failures.forget(&entry.native.message_id);
        }
        back
    }
}

/// Rounded up, but within what is left.
fn whole_seconds(by: Duration, left: Duration) -> i32 {
    i32::try_from(round_up(by).min(left.as_secs())).unwrap_or(i32::MAX)
}

fn stale() -> Error {
    Error::new(
        ErrorKind::Stale,
        "the delivery is no longer ours: its visibility timeout is over, and SQS delivers it again",
    )
}
