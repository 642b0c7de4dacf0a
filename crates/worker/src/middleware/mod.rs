//! What stands around a handler, in this order, from the outside in:
//!
//! 1. [`concurrency`]: a message begins when there is room for it and nothing of its ordering key is before it.
//! 2. [`trace`]: one process span an attempt; all that follows happens below it.
//! 3. [`dead_letter`]: what failed for good becomes a dead letter, durably, before it is acked.
//! 4. [`retry`]: what failed is tried again, or given up.
//! 5. [`idempotency`]: what is done is not done again.
//! 6. [`timeout`]: the time limit, panics, a lost lease, the end of the time to drain.
//! 7. The handler.

pub(crate) mod concurrency;
pub(crate) mod dead_letter;
pub(crate) mod idempotency;
pub(crate) mod retry;
pub(crate) mod timeout;
pub(crate) mod trace;

use std::time::Duration;

use crate::error::HandlerError;
use timeout::{Ended, Interruption};

/// What an attempt came to, inside of [`retry`].
#[derive(Debug)]
pub(crate) enum Verdict {
    Done,
    /// It was done before.
    Duplicate,
    /// Somebody is doing it, for so long at most: looked at again then. No attempt.
    Postponed(Duration),
    Failed(HandlerError),
    /// Given back. No attempt of ours.
    Interrupted(Interruption),
}

impl Verdict {
    fn of(ended: Ended<crate::Outcome>) -> Self {
        match ended {
            Ended::Returned(Ok(())) => Self::Done,
            Ended::Returned(Err(error)) | Ended::Failed(error) => Self::Failed(error),
            Ended::Interrupted(why) => Self::Interrupted(why),
        }
    }
}
