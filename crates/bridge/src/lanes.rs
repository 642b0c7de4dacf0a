//! Order per key: what has failed holds back what comes after it of the same key.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

/// Items on their way, numbered as they came. Of a key that has an item waiting, none is let go before it.
///
/// Bounded by who puts in: nothing is dropped here.
#[derive(Debug)]
pub(crate) struct Lanes<T> {
    next: u64,
    /// So many of one key are under way at once.
    most: usize,
    lanes: HashMap<Bytes, Lane>,
    waiting: BTreeMap<u64, (Option<Bytes>, T)>,
}

/// One key's.
#[derive(Debug, Default)]
struct Lane {
    under_way: usize,
    /// The numbers of those that wait.
    waiting: BTreeSet<u64>,
    /// They wait for one that has failed, and not only for room.
    has_failed: bool,
}

impl<T> Lanes<T> {
    pub(crate) fn new(most: usize) -> Self {
        Self { next: 0, most: most.max(1), lanes: HashMap::new(), waiting: BTreeMap::new() }
    }

    /// A new item: given back with its number if it may go now, kept if its key must wait.
    pub(crate) fn admit(&mut self, key: Option<&Bytes>, item: T) -> Option<(u64, T)> {
        let number = self.next;
        self.next += 1;
        if let Some(key) = key {
            let lane = self.lanes.entry(key.clone()).or_default();
            if !lane.waiting.is_empty() || lane.under_way >= self.most {
                lane.waiting.insert(number);
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
            if lane.under_way == 0 && lane.waiting.is_empty() {
                self.lanes.remove(key);
            }
        }
    }

    /// An item that was let go has failed, and waits.
    pub(crate) fn failed(&mut self, number: u64, key: Option<&Bytes>, item: T) {
        if let Some(key) = key {
            let lane = self.lanes.entry(key.clone()).or_default();
            lane.under_way = lane.under_way.saturating_sub(1);
            lane.waiting.insert(number);
            lane.has_failed = true;
        }
        self.waiting.insert(number, (key.cloned(), item));
    }

    /// Lets go, in order, what waits only for room, once there is room for half of what a key may have.
    pub(crate) fn freed(&mut self, key: &Bytes) -> Vec<(u64, T)> {
        match self.lanes.get_mut(key) {
            Some(lane) if !lane.has_failed && lane.under_way <= self.most / 2 => {
                let numbers = lane.let_go(self.most);
                self.take(numbers)
            }
            _ => Vec::new(),
        }
    }

    /// Lets go what has failed and what waits for it, in order; a key only when none of its items is under way.
    pub(crate) fn due(&mut self) -> Vec<(u64, T)> {
        let without_key =
            self.waiting.iter().filter(|(_, (key, _))| key.is_none()).map(|(number, _)| *number);
        let mut numbers: Vec<_> = without_key.collect();
        for lane in self.lanes.values_mut().filter(|lane| lane.under_way == 0) {
            lane.has_failed = false;
            numbers.extend(lane.let_go(self.most));
        }
        numbers.sort_unstable();
        self.take(numbers)
    }

    fn take(&mut self, numbers: Vec<u64>) -> Vec<(u64, T)> {
        let take = |number| self.waiting.remove(&number).map(|(_, item)| (number, item));
        numbers.into_iter().filter_map(take).collect()
    }

    /// Whether anything waits for its time, and not only for room.
    pub(crate) fn has_failed(&self) -> bool {
        self.lanes.values().any(|lane| lane.has_failed) || self.waiting.values().any(|(key, _)| key.is_none())
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

impl Lane {
    /// The numbers of those that have room, as under way from now on.
    fn let_go(&mut self, most: usize) -> Vec<u64> {
        let room = most.saturating_sub(self.under_way);
        let numbers: Vec<_> = (0..room).map_while(|_| self.waiting.pop_first()).collect();
        self.under_way += numbers.len();
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Items of few keys; some sends fail, in any order of answers. What gets through must be in order per key,
        /// each item once, with no more of a key under way than may be.
        #[test]
        fn every_key_gets_through_in_order_whatever_fails(
            keys in prop::collection::vec(0..4_u8, 1..60),
            choices in prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8), 0..400),
            most in 1..5_usize,
        ) {
            let key = |n: u8| (n > 0).then(|| Bytes::from(vec![n]));
            let mut lanes = Lanes::new(most);
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
                        sent.extend(key(n).map(|key| lanes.freed(&key)).into_iter().flatten());
                        through.push(index);
                    }
                }
                for n in 1..4 {
                    prop_assert!(sent.iter().filter(|(_, index)| keys[*index] == n).count() <= most);
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
        let mut lanes = Lanes::new(usize::MAX);
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

    #[test]
    fn a_key_has_so_many_under_way_and_the_next_when_half_of_them_are_done() {
        let key = Bytes::from_static(b"k");
        let mut lanes = Lanes::new(4);
        let went: String = "abcdefgh"
            .chars()
            .filter_map(|item| lanes.admit(Some(&key), item))
            .map(|(_, item)| item)
            .collect();
        assert_eq!((went.as_str(), lanes.has_failed()), ("abcd", false));
        assert!(lanes.due().is_empty(), "nothing has failed");
        let mut freed = String::new();
        for _ in 0..4 {
            lanes.done(Some(&key));
            freed.extend(lanes.freed(&key).into_iter().map(|(_, item)| item).chain(['.']));
        }
        assert_eq!(freed, ".ef..gh.");
    }
}
