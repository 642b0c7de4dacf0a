//! Keeps a key's messages behind the one that is being retried in its place: for adapters whose broker cannot.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

use tokio::time::Instant;

/// The keys of which a message failed. From then until it is settled, later messages of the key that have not been handed
/// out wait; several that failed are handed out again one after the other, in the queue's order.
///
/// A message is a tag, higher for later ones. Nothing here is bounded: the adapter bounds its unsettled messages.
#[derive(Debug)]
pub struct Gate<K>(HashMap<K, Key>);

#[derive(Debug, Default)]
struct Key {
    /// The messages being retried: when they are due, or that they are out.
    retried: BTreeMap<u64, Turn>,
    parked: VecDeque<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Due(Instant),
    Out,
}

impl<K> Default for Gate<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq + Clone> Gate<K> {
    /// Holds a failed message until it is due.
    pub fn hold(&mut self, key: &K, tag: u64, due: Instant) {
        self.0.entry(key.clone()).or_default().retried.insert(tag, Turn::Due(due));
    }

    /// Whether a message must wait; then it is kept.
    pub fn park(&mut self, key: &K, tag: u64) -> bool {
        match self.0.get_mut(key) {
            Some(key) if !key.retried.contains_key(&tag) => {
                key.parked.push_back(tag);
                true
            }
            _ => false,
        }
    }

    /// A message is settled; gives those that waited for it alone.
    pub fn settled(&mut self, key: &K, tag: u64) -> VecDeque<u64> {
        let Some(state) = self.0.get_mut(key) else { return VecDeque::new() };
        state.retried.remove(&tag);
        state.parked.retain(|parked| *parked != tag);
        if !state.retried.is_empty() {
            return VecDeque::new();
        }
        self.0.remove(key).map(|key| key.parked).unwrap_or_default()
    }

    /// Hands out again what is due, at most `max`.
    pub fn take_due(&mut self, now: Instant, max: usize) -> Vec<u64> {
        let mut due = Vec::new();
        for key in self.0.values_mut() {
            if due.len() == max {
                break;
            }
            if let Some(mut first) = key.retried.first_entry()
                && matches!(*first.get(), Turn::Due(at) if at <= now)
            {
                first.insert(Turn::Out);
                due.push(*first.key());
            }
        }
        due
    }

    /// Whether a message is being retried here, so that a settlement has to be told.
    pub fn is_retried(&self, key: &K, tag: u64) -> bool {
        self.0.get(key).is_some_and(|key| key.retried.contains_key(&tag))
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// When the next message is due.
    pub fn next_due(&self) -> Option<Instant> {
        let firsts = self.0.values().filter_map(|key| key.retried.first_key_value());
        firsts.filter_map(|(_, turn)| if let Turn::Due(at) = turn { Some(*at) } else { None }).min()
    }

    /// All that is kept here and not handed out; afterwards no key is held.
    pub fn drain(&mut self) -> Vec<u64> {
        let keys = std::mem::take(&mut self.0);
        let kept = keys.into_values().flat_map(|key| {
            let held = key.retried.into_iter().filter(|(_, turn)| *turn != Turn::Out).map(|(tag, _)| tag);
            held.chain(key.parked).collect::<Vec<_>>()
        });
        kept.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use bytes::Bytes;

    #[test]
    fn nothing_of_a_key_overtakes_its_retried_message() {
        let mut gate = Gate::default();
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let now = Instant::now();
        let second = Duration::from_secs(1);
        assert!(!gate.park(&a, 1));
        // 1 and 2 were out when both failed; 2 is due first, and still comes after 1.
        gate.hold(&a, 1, now + second * 2);
        gate.hold(&a, 2, now + second);
        assert!(gate.park(&a, 3) && !gate.park(&b, 4) && gate.park(&a, 5));
        assert_eq!(gate.next_due(), Some(now + second * 2));
        assert!(gate.take_due(now + second, 10).is_empty());
        assert_eq!(gate.take_due(now + second * 2, 10), [1]);
        assert!(gate.is_retried(&a, 1) && !gate.is_retried(&a, 3) && !gate.is_retried(&b, 4));
        assert_eq!(gate.next_due(), None);
        assert!(gate.take_due(now + second * 9, 10).is_empty());
        assert!(gate.settled(&a, 1).is_empty());
        assert_eq!(gate.take_due(now + second * 9, 10), [2]);
        // It fails again, and then succeeds.
        gate.hold(&a, 2, now + second * 10);
        assert!(gate.park(&a, 6));
        assert_eq!(gate.take_due(now + second * 10, 10), [2]);
        assert_eq!(gate.settled(&a, 2), [3, 5, 6]);
        assert!(!gate.park(&a, 7));
        assert!(gate.is_empty());
    }

    #[test]
    fn what_is_kept_can_be_given_back() {
        let mut gate = Gate::default();
        let key = Bytes::from_static(b"a");
        let now = Instant::now();
        gate.hold(&key, 1, now);
        gate.hold(&key, 2, now);
        gate.park(&key, 3);
        assert_eq!(gate.take_due(now, 1), [1]);
        assert_eq!(gate.drain(), [2, 3]);
        assert_eq!(gate.next_due(), None);
    }
}
