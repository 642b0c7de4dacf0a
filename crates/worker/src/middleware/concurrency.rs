//! Which message may begin: at most so many at once of each ordering key, in order.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use throughline_core::{Delivery, IdOrigin};
use tokio::time::Instant;

/// How much later than it is due a retried message may come back before its key goes on without it: it went to another
/// consumer.
const GRACE: Duration = Duration::from_secs(10);

/// The ordering keys with a message under way, and what waits for them. Bounded by the consumer's `max_unsettled` and
/// `max_bytes`: what waits is held, its lease kept, and counts as unsettled.
pub(crate) struct Lanes<T = Delivery> {
    /// So many of a key at once.
    limit: usize,
    /// A key's later messages wait for one that is retried.
    keeps_order: bool,
    lanes: HashMap<Bytes, Lane<T>>,
    held: usize,
}

struct Lane<T> {
    running: usize,
    held: VecDeque<T>,
    retried: Option<Retried>,
}

/// A message that comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retried {
    /// `None` where each delivery gets an id of its own.
    pub(crate) id: Option<String>,
    /// The attempt that failed.
    pub(crate) attempt: u32,
    /// When it is due.
    pub(crate) due: Instant,
}

impl Retried {
    /// When it is not waited for any longer.
    pub(crate) fn given_up(&self) -> Instant {
        self.due + GRACE
    }
}

/// What the lanes have to know of a message.
pub(crate) trait Keyed {
    fn key(&self) -> Option<&Bytes>;
    /// Whether it is the one that comes back.
    fn is(&self, retried: &Retried) -> bool;
}

impl Keyed for Delivery {
    fn key(&self) -> Option<&Bytes> {
        self.envelope().ordering_key.as_ref()
    }

    fn is(&self, retried: &Retried) -> bool {
        match &retried.id {
            Some(id) => self.id() == id,
            None => self.attempt() > retried.attempt,
        }
    }
}

/// A message's stable id, to know it again.
pub(crate) fn stable_id(delivery: &Delivery) -> Option<String> {
    (delivery.envelope().id_origin != IdOrigin::Synthetic).then(|| delivery.id().to_owned())
}

impl<T: Keyed> Lanes<T> {
    pub(crate) fn new(limit: usize, keeps_order: bool) -> Self {
        Self { limit: limit.max(1), keeps_order, lanes: HashMap::new(), held: 0 }
    }

    /// How many messages wait for their key.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Gives the message back where it may begin; else it is held.
    pub(crate) fn admit(&mut self, message: T) -> Option<T> {
        let Some(key) = message.key() else { return Some(message) };
        let Some(lane) = self.lanes.get_mut(key) else {
            self.lanes.insert(key.clone(), Lane { running: 1, held: VecDeque::new(), retried: None });
            return Some(message);
        };
        let comes_back = lane.retried.as_ref().is_some_and(|retried| message.is(retried));
        let is_free = lane.retried.is_none() && lane.running < self.limit && lane.held.is_empty();
        if comes_back || is_free {
            lane.retried = None;
            lane.running += 1;
            return Some(message);
        }
        lane.held.push_back(message);
        self.held += 1;
        None
    }

    /// A message of the key is settled; gives the next that may begin.
    pub(crate) fn finished(&mut self, key: &Bytes, retried: Option<Retried>) -> Option<T> {
        let lane = self.lanes.get_mut(key)?;
        lane.running = lane.running.saturating_sub(1);
        if self.keeps_order && self.limit == 1 {
            // It may be back before its end was told.
            let back = retried.as_ref().and_then(|it| lane.held.iter().position(|message| message.is(it)));
            if let Some(message) = back.and_then(|at| lane.held.remove(at)) {
                lane.running += 1;
                self.held -= 1;
                return Some(message);
            }
            lane.retried = retried;
        }
        self.advance(key)
    }

    /// Goes on without a message that did not come back in time; gives the next that may begin.
    pub(crate) fn give_up(&mut self, key: &Bytes, now: Instant) -> Option<T> {
        let lane = self.lanes.get_mut(key)?;
        lane.retried.take_if(|retried| retried.given_up() <= now)?;
        self.advance(key)
    }

    fn advance(&mut self, key: &Bytes) -> Option<T> {
        let lane = self.lanes.get_mut(key)?;
        if lane.retried.is_some() || lane.running >= self.limit {
            return None;
        }
        match lane.held.pop_front() {
            Some(next) => {
                lane.running += 1;
                self.held -= 1;
                Some(next)
            }
            None if lane.running == 0 => {
                self.lanes.remove(key);
                None
            }
            None => None,
        }
    }

    /// All that is held.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.held = 0;
        self.lanes.values_mut().flat_map(|lane| std::mem::take(&mut lane.held)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Message(&'static str, Option<Bytes>);

    impl Keyed for Message {
        fn key(&self) -> Option<&Bytes> {
            self.1.as_ref()
        }

        fn is(&self, retried: &Retried) -> bool {
            retried.id.as_deref() == Some(self.0)
        }
    }

    fn of(id: &'static str, key: &'static str) -> Message {
        Message(id, Some(Bytes::from_static(key.as_bytes())))
    }

    fn id(message: Option<Message>) -> Option<&'static str> {
        message.map(|message| message.0)
    }

    const A: Bytes = Bytes::from_static(b"a");

    #[test]
    fn a_keys_messages_begin_one_after_the_other_and_others_meanwhile() {
        let mut lanes = Lanes::new(1, true);
        assert_eq!(id(lanes.admit(of("1", "a"))), Some("1"));
        assert_eq!(id(lanes.admit(of("2", "a"))), None);
        assert_eq!(id(lanes.admit(of("3", "b"))), Some("3"));
        assert_eq!(id(lanes.admit(Message("4", None))), Some("4"));
        assert_eq!(id(lanes.admit(of("5", "a"))), None);
        assert_eq!(lanes.held(), 2);
        assert_eq!(id(lanes.finished(&A, None)), Some("2"));
        assert_eq!(id(lanes.finished(&A, None)), Some("5"));
        assert_eq!(id(lanes.finished(&A, None)), None);
        assert_eq!(lanes.held(), 0);
        assert_eq!(lanes.lanes.len(), 1, "a key with nothing under way is forgotten");
    }

    #[test]
    fn a_retried_message_comes_first_and_nothing_of_its_key_before() {
        let mut lanes = Lanes::new(1, true);
        let due = Instant::now();
        lanes.admit(of("1", "a"));
        lanes.admit(of("2", "a"));
        let retried = Retried { id: Some("1".into()), attempt: 1, due };
        assert_eq!(id(lanes.finished(&A, Some(retried.clone()))), None);
        assert_eq!(id(lanes.admit(of("3", "a"))), None);
        assert_eq!(id(lanes.admit(of("1", "a"))), Some("1"));
        // It fails again, and this time goes to another consumer.
        assert_eq!(id(lanes.finished(&A, Some(retried.clone()))), None);
        assert_eq!(id(lanes.give_up(&A, due)), None);
        assert_eq!(id(lanes.give_up(&A, retried.given_up())), Some("2"));
        assert_eq!(id(lanes.give_up(&A, retried.given_up())), None, "only once");
        assert_eq!(id(lanes.finished(&A, None)), Some("3"));
    }

    #[test]
    fn a_retried_message_that_is_back_before_its_end_was_told_goes_on_first() {
        let mut lanes = Lanes::new(1, true);
        lanes.admit(of("1", "a"));
        lanes.admit(of("2", "a"));
        // The broker was quicker than the worker's own bookkeeping.
        assert_eq!(id(lanes.admit(of("1", "a"))), None);
        let retried = Retried { id: Some("1".into()), attempt: 1, due: Instant::now() };
        assert_eq!(id(lanes.finished(&A, Some(retried))), Some("1"));
        assert_eq!(id(lanes.finished(&A, None)), Some("2"));
        assert_eq!((id(lanes.finished(&A, None)), lanes.held()), (None, 0));
    }

    #[test]
    fn with_room_for_more_of_a_key_a_retried_one_holds_nothing_up() {
        let mut lanes = Lanes::new(2, true);
        assert!(lanes.admit(of("1", "a")).is_some() && lanes.admit(of("2", "a")).is_some());
        assert!(lanes.admit(of("3", "a")).is_none());
        let retried = Retried { id: Some("1".into()), attempt: 1, due: Instant::now() };
        assert_eq!(id(lanes.finished(&A, Some(retried))), Some("3"));
    }

    #[test]
    fn what_is_held_can_be_given_back() {
        let mut lanes = Lanes::new(1, true);
        lanes.admit(of("1", "a"));
        lanes.admit(of("2", "a"));
        assert_eq!(lanes.drain(), [of("2", "a")]);
        assert_eq!(lanes.held(), 0);
        assert_eq!(id(lanes.finished(&A, None)), None);
    }
}
