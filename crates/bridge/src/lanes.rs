//! Order per key: what has failed holds back what comes after it of the same key.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

/// Items on their way, numbered as they came. Of a key that has an item waiting, none is let go before it.
///
/// Bounded by who puts in: nothing is dropped here.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    next: u64,
    lanes: HashMap<Bytes, Lane>,
    waiting: BTreeMap<u64, (Option<Bytes>, T)>,
}

/// One key's.
#[derive(Debug, Default)]
struct Lane {
    under_way: usize,
    waiting: usize,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { next: 0, lanes: HashMap::new(), waiting: BTreeMap::new() }
    }
}

impl<T> Lanes<T> {
    /// A new item: given back with its number if it may go now, kept if its key must wait.
    pub(crate) fn admit(&mut self, key: Option<&Bytes>, item: T) -> Option<(u64, T)> {
        let number = self.next;
        self.next += 1;
        if let Some(key) = key {
            let lane = self.lanes.entry(key.clone()).or_default();
            if lane.waiting > 0 {
                lane.waiting += 1;
                self.waiting.insert(number, (Some(key.clone()), item));
                return None;
            }
            lane.under_way += 1;
        }
        Some((number, item))
    }

    /// An item that was let go is done with.
    pub(crate) fn done(&mut self, key: Option<&Bytes>) {
        let Some(key) = key else { return };
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.under_way = lane.under_way.saturating_sub(1);
            if lane.under_way == 0 && lane.waiting == 0 {
                self.lanes.remove(key);
            }
        }
    }

    /// An item that was let go has failed, and waits.
    pub(crate) fn failed(&mut self, number: u64, key: Option<&Bytes>, item: T) {
        if let Some(key) = key {
            let lane = self.lanes.entry(key.clone()).or_default();
            lane.under_way = lane.under_way.saturating_sub(1);
            lane.waiting += 1;
        }
        self.waiting.insert(number, (key.cloned(), item));
    }

    /// Lets go what waits, in order; a key only when none of its items is under way.
    pub(crate) fn due(&mut self) -> Vec<(u64, T)> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut due = Vec::with_capacity(waiting.len());
        for (number, (key, item)) in waiting {
            let is_held = key
                .as_ref()
                .and_then(|key| self.lanes.get(key))
                // Those that are let go here are counted only below.
                .is_some_and(|lane| lane.under_way > 0);
            if is_held {
                self.waiting.insert(number, (key, item));
            } else {
                due.push((number, key, item));
            }
        }
        for (_, key, _) in &due {
            if let Some(lane) = key.as_ref().and_then(|key| self.lanes.get_mut(key)) {
                lane.waiting = lane.waiting.saturating_sub(1);
                lane.under_way += 1;
            }
        }
        due.into_iter().map(|(number, _, item)| (number, item)).collect()
    }

    /// Those that wait, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.values().map(|(_, item)| item)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Items of few keys; some sends fail, in any order of answers. What gets through must be in order per key,
        /// each item once.
        #[test]
        fn every_key_gets_through_in_order_whatever_fails(
            keys in prop::collection::vec(0..4_u8, 1..60),
            choices in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8), 0..400),
        ) {
            let key = |n: u8| (n > 0).then(|| Bytes::from(vec![n]));
            let mut lanes = Lanes::default();
            let mut sent: Vec<(u64, usize)> = Vec::new();
            let mut through: Vec<usize> = Vec::new();
            let mut coming = keys.iter().enumerate();
            let mut choices = choices.into_iter();
            loop {
                let (which, what) = match choices.next() {
                    Some((which, what)) => (Some(which), what),
                    None => (None, 2),
                };
                if let Some((index, n)) = coming.next() {
                    sent.extend(lanes.admit(key(*n).as_ref(), index));
                }
                if what == 1 || (which.is_none() && sent.is_empty()) {
                    sent.extend(lanes.due());
                }
                if !sent.is_empty() {
                    let at = which.map_or(0, |which| which.index(sent.len()));
                    let n = keys[sent[at].1];
                    // As a sink does it: after a failure nothing of the key is taken until all of it has failed.
                    let first = sent.iter().position(|(_, index)| n > 0 && keys[*index] == n).unwrap_or(at);
                    if what == 0 {
                        let mut failed: Vec<_> = Vec::new();
                        if n == 0 {
                            failed.push(sent.remove(at));
                        } else {
                            let (of_key, others) = sent.iter().partition(|(_, index)| keys[*index] == n);
                            (failed, sent) = (of_key, others);
                        }
                        // Answers come in any order.
                        for (number, index) in failed.into_iter().rev() {
                            lanes.failed(number, key(n).as_ref(), index);
                        }
                    } else {
                        let (_, index) = sent.remove(first);
                        lanes.done(key(n).as_ref());
                        through.push(index);
                    }
                }
                if which.is_none() && coming.len() == 0 && sent.is_empty() && lanes.waiting() == 0 {
                    break;
                }
            }
            for n in 1..4 {
                let of_key: Vec<_> = through.iter().filter(|index| keys[**index] == n).copied().collect();
                prop_assert!(of_key.is_sorted(), "{:?}", of_key);
            }
            through.sort_unstable();
            prop_assert_eq!(through, (0..keys.len()).collect::<Vec<_>>());
            prop_assert!(lanes.lanes.is_empty());
        }
    }

    #[test]
    fn a_key_waits_until_none_of_it_is_under_way() {
        let key = Bytes::from_static(b"k");
        let mut lanes = Lanes::default();
        let (first, _) = lanes.admit(Some(&key), 'a').unwrap();
        let (second, _) = lanes.admit(Some(&key), 'b').unwrap();
        lanes.failed(second, Some(&key), 'b');
        assert!(lanes.admit(Some(&key), 'c').is_none());
        assert!(lanes.admit(None, 'x').is_some());
        assert!(lanes.due().is_empty(), "'a' is still under way, and may fail, too");
        lanes.failed(first, Some(&key), 'a');
        assert_eq!(lanes.due().into_iter().map(|(_, item)| item).collect::<String>(), "abc");
        assert_eq!(lanes.waiting(), 0);
    }
}
