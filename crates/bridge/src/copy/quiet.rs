//! Whether the source is empty, and for how long the sink has taken nothing: what is looked at from time to time.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use throughline::capabilities::{Lease, SettleMeaning};
use throughline::{Consumer, Depth, Error, ErrorKind, Result, Retry};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Copy;
use crate::report::End;

/// Asks the source how much it holds; with `true` also whether any of that can be read.
pub(crate) type DepthOf = Arc<dyn Fn(bool) -> BoxFuture<'static, Result<Look>> + Send + Sync>;

/// What the source says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    pub(crate) depth: Depth,
    /// Of a log, how many are left before the end that it had at the start.
    pub(crate) before_end: Option<u64>,
}

/// What is known of the source's end.
pub(super) struct Quiet {
    /// When something came last.
    pub(super) since: Instant,
    /// The looks since then that have found nothing.
    pub(super) looks: u32,
    pub(super) looked: Option<Instant>,
    /// Whether the look that is under way began after that.
    pub(super) is_idle: bool,
    pub(super) depth: Option<u64>,
}

impl Copy<'_> {
    /// Every moment: whether patience is over, and whether to ask for the source's depth.
    pub(super) fn on_tick(&mut self) {
        self.forget_lost();
        self.show();
        let now = Instant::now();
        if let (Some(patience), Some((since, error))) = (self.settings.patience, &self.trouble.since)
            && now - *since > patience
        {
            let error = error.clone();
            return self.finish(End::Failed { error });
        }
        if self.end.is_some() || self.look.is_some() {
            return;
        }
        let is_idle = self.in_flight == 0 && self.tasks.is_empty();
        if !is_idle {
            self.quiet.since = now;
            self.quiet.looks = 0;
        }
        let since_look = self.quiet.looked.map(|looked| now - looked);
        let for_empty = self.settings.until_empty
            && is_idle
            && now - self.quiet.since >= self.settings.quiet
            && since_look.is_none_or(|since| since >= self.settings.quiet);
        let for_progress = since_look.is_none_or(|since| since >= self.settings.depth_every);
        if for_empty || for_progress {
            self.quiet.looked = Some(now);
            self.quiet.is_idle = for_empty;
            let is_silent = for_empty && now - self.quiet.since >= self.settings.quiet * self.settings.looks;
            self.look = Some(tokio::spawn((self.depth_of)(is_silent)));
        }
    }

    /// The source has said how much it holds.
    pub(super) fn on_depth(&mut self, look: Result<Look>, consumer: &Consumer) {
        let held = self.held.len() as u64;
        let depth = match look {
            // All is moved that was there at the start, whatever has come since.
            Ok(Look { depth, before_end: Some(0) }) if self.settings.until_empty => {
                self.quiet.depth = Some(depth.ready);
                self.progress.set_depth(0);
                if self.end.is_none() {
                    self.finish(End::Empty { approximate: false });
                }
                return;
            }
            // Only these are waited for.
            Ok(Look { depth, before_end: Some(before_end) }) if self.settings.until_empty => {
                Some(Depth { ready: before_end, ..depth })
            }
            Ok(Look { depth, .. }) => Some(depth),
            // It will be asked again.
            Err(error) if error.retry() != Retry::Never => return,
            Err(_) => None,
        };
        // What is held here is left, too, but not to be waited for.
        let others = |depth: &Depth| {
            let unsettled = depth.unsettled.map_or(0, |count| count.saturating_sub(held));
            depth.ready.saturating_add(depth.delayed.unwrap_or(0)).saturating_add(unsettled)
        };
        if let Some(depth) = &depth {
            self.quiet.depth = Some(others(depth).saturating_add(held));
            self.progress.set_depth(others(depth));
        }
        if !self.quiet.is_idle || self.end.is_some() {
            return;
        }
        let capabilities = consumer.capabilities();
        // A log's depth is how far its group is; an embedded queue's is counted.
        let is_exact = capabilities.settle == SettleMeaning::Confirmed || capabilities.lease == Lease::None;
        let quiet = self.quiet.since.elapsed();
        match depth {
            Some(depth) if others(&depth) == 0 => {
                self.quiet.looks += 1;
                if is_exact || self.quiet.looks >= self.settings.looks {
                    self.finish(End::Empty { approximate: !is_exact });
                }
            }
            // Nothing more can be known: the broker does not tell, or counts what is held here.
            None if quiet >= self.settings.silence => self.finish(End::Empty { approximate: true }),
            Some(Depth { unsettled: None, .. }) if held > 0 && quiet >= self.settings.silence => {
                self.finish(End::Empty { approximate: true });
            }
            Some(depth) if depth.ready > 0 && quiet >= self.settings.starved => {
                self.finish(End::Starved { ready: depth.ready });
            }
            _ => self.quiet.looks = 0,
        }
    }
}

pub(super) async fn answer(look: &mut Option<JoinHandle<Result<Look>>>) -> Result<Look> {
    match look {
        Some(look) => look.await.unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Internal, "the look at the source failed")
                .with_retry(Retry::Safe)
                .with_source(error))
        }),
        None => std::future::pending().await,
    }
}
