//! What this consumer knows of messages that it gave back: SQS delivers the same message again, and cannot carry it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use throughline_core::{History, Timestamp};

/// How many messages are remembered; then the oldest is forgotten. Another consumer knows none of it, either.
const MAX: usize = 10_000;

/// One message that was given back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Its failures, where it failed.
    pub(crate) history: Option<Arc<History>>,
    /// How often it was given back without having failed: SQS counts those receipts, too.
    pub(crate) releases: u32,
    /// From when on it waits in the queue again.
    pub(crate) due: Option<Timestamp>,
}

/// Messages that were given back, by their id.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    known: HashMap<String, Known>,
    oldest: VecDeque<String>,
}

impl Failures {
    pub(crate) fn get(&self, id: &str) -> Option<&Known> {
        self.known.get(id)
    }

    pub(crate) fn forget(&mut self, id: &str) {
        self.known.remove(id);
    }

    /// It failed, and comes again at `due`.
    pub(crate) fn failed(&mut self, id: &str, history: Arc<History>, due: Timestamp) {
        let known = self.entry(id);
        known.history = Some(history);
        known.due = Some(due);
    }

    /// It was given back without having failed.
    pub(crate) fn released(&mut self, id: &str) {
        let known = self.entry(id);
        known.releases = known.releases.saturating_add(1);
        known.due = Some(Timestamp::now());
    }

    fn entry(&mut self, id: &str) -> &mut Known {
        if !self.known.contains_key(id) {
            // The queue holds ids that were forgotten meanwhile, too; they go as they come up.
            while self.oldest.len() >= MAX
                && let Some(oldest) = self.oldest.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.oldest.push_back(id.to_owned());
        }
        self.known.entry(id.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_latest_and_is_bounded() {
        let mut failures = Failures::default();
        failures.released("a");
        failures.released("a");
        failures.failed("a", Arc::default(), Timestamp::from_millis(7));
        let known = failures.get("a").unwrap();
        assert_eq!(
            (known.releases, known.due, known.history.is_some()),
            (2, Some(Timestamp::from_millis(7)), true)
        );
        for n in 0..MAX {
            failures.released(&n.to_string());
        }
        assert!(failures.get("a").is_none() && failures.known.len() <= MAX && failures.oldest.len() <= MAX);
        failures.forget("7");
        assert!(failures.get("7").is_none());
    }
}
