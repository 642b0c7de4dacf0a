//! A FIFO queue's message groups at the consumer: the next message of a group goes out when the one before is acked.
//!
//! SQS itself gives out no more of a group while one of it is in flight, but one answer can hold several.

use std::collections::{HashMap, VecDeque};

/// The groups that have a message out.
#[derive(Debug, Default)]
pub(crate) struct Lanes(HashMap<String, Lane>);

#[derive(Debug)]
struct Lane {
    out: u64,
    waiting: VecDeque<u64>,
}

/// What becomes of those that waited for a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    /// May go out now.
    pub(crate) next: Option<u64>,
    /// Have to come after the message that goes back to the queue, so they go back too.
    pub(crate) back: Vec<u64>,
}

impl Lanes {
    /// Whether a message may go out; else it waits.
    pub(crate) fn enter(&mut self, group: &str, tag: u64) -> bool {
        match self.0.get_mut(group) {
            Some(lane) => {
                lane.waiting.push_back(tag);
                false
            }
            None => {
                self.0.insert(group.to_owned(), Lane { out: tag, waiting: VecDeque::new() });
                true
            }
        }
    }

    /// A message is gone: for good, or back to the queue.
    pub(crate) fn leave(&mut self, group: &str, tag: u64, for_good: bool) -> Freed {
        let Some(lane) = self.0.get_mut(group) else { return Freed::default() };
        if lane.out != tag {
            lane.waiting.retain(|waiting| *waiting != tag);
            return Freed::default();
        }
        if for_good && let Some(next) = lane.waiting.pop_front() {
            lane.out = next;
            return Freed { next: Some(next), back: Vec::new() };
        }
        let back = self.0.remove(group).map(|lane| lane.waiting.into()).unwrap_or_default();
        Freed { next: None, back }
    }

    /// All that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = u64> {
        self.0.values().flat_map(|lane| lane.waiting.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_group_is_out_and_what_waits_follows_it() {
        let mut lanes = Lanes::default();
        assert!(lanes.enter("a", 1) && lanes.enter("b", 2));
        assert!(!lanes.enter("a", 3) && !lanes.enter("a", 4));
        assert_eq!(lanes.waiting().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(lanes.leave("a", 1, true), Freed { next: Some(3), back: vec![] });
        assert_eq!(lanes.leave("a", 3, false), Freed { next: None, back: vec![4] });
        assert!(lanes.enter("a", 5));
        assert_eq!(lanes.leave("a", 5, true), Freed::default());
        assert_eq!(lanes.leave("a", 5, true), Freed::default());
        assert!(lanes.enter("a", 6));
    }

    #[test]
    fn one_that_waits_can_leave() {
        let mut lanes = Lanes::default();
        assert!(lanes.enter("a", 1) && !lanes.enter("a", 2) && !lanes.enter("a", 3));
        assert_eq!(lanes.leave("a", 2, false), Freed::default());
        assert_eq!(lanes.leave("a", 1, true).next, Some(3));
    }
}
