//! What of one partition is unsettled, and how far it may be committed.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use throughline_core::driver::Delivery;
use throughline_core::gate::Gate;
use tokio::time::Instant;

/// What waits for a retried message, and with it: its key, or it alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Turn {
    Key(Bytes),
    Alone(i64),
}

/// An unsettled delivery.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) delivery: Delivery,
    /// Whether the application has it.
    pub(crate) is_out: bool,
}

impl Entry {
    pub(crate) fn bytes(&self) -> usize {
        self.delivery.envelope.payload_len()
    }
}

/// One partition for as long as it is assigned to us.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    /// From the oldest unsettled record on, in order of their offsets, which have gaps; `None` is settled.
    window: VecDeque<(i64, Option<Entry>)>,
    /// The offset after the last record received.
    next: Option<i64>,
    /// What librdkafka has been told to commit; at first, where the group stood.
    stored: Option<i64>,
    pub(crate) gate: Gate<Turn>,
    /// How many are with the application.
    pub(crate) out: usize,
    /// Payload bytes in the window.
    bytes: usize,
    /// As librdkafka was told.
    pub(crate) is_paused: bool,
    /// It is being taken away: nothing of it is handed out any more.
    pub(crate) is_leaving: bool,
}

impl Partition {
    pub(crate) fn new(topic: Arc<str>, number: i32) -> Self {
        Self {
            topic,
            number,
            window: VecDeque::new(),
            next: None,
            stored: None,
            gate: Gate::default(),
            out: 0,
            bytes: 0,
            is_paused: false,
            is_leaving: false,
        }
    }

    /// A new record. `false` for one that was there already.
    pub(crate) fn insert(&mut self, offset: i64, delivery: Delivery) -> bool {
        if self.next.is_some_and(|next| offset < next) {
            return false;
        }
        self.next = Some(offset + 1);
        // Before it, there is nothing to commit.
        self.stored.get_or_insert(offset);
        let entry = Entry { delivery, is_out: false };
        self.bytes += entry.bytes();
        self.window.push_back((offset, Some(entry)));
        true
    }

    fn index(&self, offset: i64) -> Option<usize> {
        self.window.binary_search_by_key(&offset, |(offset, _)| *offset).ok()
    }

    /// An unsettled delivery.
    pub(crate) fn get_mut(&mut self, offset: i64) -> Option<&mut Entry> {
        let index = self.index(offset)?;
        self.window.get_mut(index)?.1.as_mut()
    }

    /// Hands a delivery out.
    pub(crate) fn hand_out(&mut self, offset: i64) -> Option<Delivery> {
        let entry = self.get_mut(offset)?;
        let delivery = entry.delivery.clone();
        if !std::mem::replace(&mut entry.is_out, true) {
            self.out += 1;
        }
        Some(delivery)
    }

    /// Takes a delivery back that was handed out; `None` if it is settled.
    pub(crate) fn take_back(&mut self, offset: i64) -> Option<&mut Entry> {
        let index = self.index(offset)?;
        let entry = self.window.get_mut(index)?.1.as_mut()?;
        if std::mem::replace(&mut entry.is_out, false) {
            self.out -= 1;
        }
        Some(entry)
    }

    /// Settles a delivery for good; `None` if it was settled before.
    pub(crate) fn settle(&mut self, offset: i64) -> Option<Entry> {
        let index = self.index(offset)?;
        let entry = self.window.get_mut(index)?.1.take()?;
        self.bytes -= entry.bytes();
        self.out -= usize::from(entry.is_out);
        while let Some((_, None)) = self.window.front() {
            self.window.pop_front();
        }
        Some(entry)
    }

    /// Where a key's retried message makes others wait. `keep_order` says whether keys count.
    pub(crate) fn turn(entry: &Entry, offset: i64, keep_order: bool) -> Turn {
        match &entry.delivery.envelope.ordering_key {
            Some(key) if keep_order => Turn::Key(key.clone()),
            _ => Turn::Alone(offset),
        }
    }

    /// The next offset to read: everything below is settled.
    fn position(&self) -> Option<i64> {
        self.window.front().map(|(offset, _)| *offset).or(self.next)
    }

    /// The position, where librdkafka has not been told of it; from now on it counts as told.
    pub(crate) fn take_unstored(&mut self) -> Option<i64> {
        let position = self.position().filter(|position| self.stored != Some(*position))?;
        self.stored.replace(position);
        Some(position)
    }

    /// librdkafka has not taken the position.
    pub(crate) fn store_again(&mut self) {
        // No offset is negative.
        self.stored = Some(-1);
    }

    /// How far reading is ahead of the oldest unsettled record, in records, and the payload bytes held for it.
    pub(crate) fn ahead(&self) -> (usize, usize) {
        (self.window.len(), self.bytes)
    }

    /// When a message that is held is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.is_leaving { None } else { self.gate.next_due() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use throughline_core::Envelope;
    use throughline_core::driver::Token;

    use super::*;

    fn delivery(offset: i64) -> Delivery {
        Delivery::new(Arc::new(Envelope::new("x")), Token { epoch: 1, tag: offset.cast_unsigned() })
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Records, each so far after the one before: compaction and transactions leave gaps.
        Receive(Vec<i64>),
        HandOut(i64),
        Settle(i64),
        TakeBack(i64),
        Store,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => prop::collection::vec(1..4_i64, 1..6).prop_map(Step::Receive),
            3 => (0..60_i64).prop_map(Step::HandOut),
            5 => (0..60_i64).prop_map(Step::Settle),
            1 => (0..60_i64).prop_map(Step::TakeBack),
            1 => Just(Step::Store),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn never_stores_past_an_unsettled_record(start in 0..9_i64, steps in prop::collection::vec(step(), 0..60)) {
            let mut partition = Partition::new("t".into(), 0);
            let (mut unsettled, mut out) = (BTreeSet::new(), BTreeSet::new());
            let (mut next, mut stored) = (start, None);
            let mut last = None;
            for step in steps {
                match step {
                    Step::Receive(gaps) => for gap in gaps {
                        let offset = next;
                        prop_assert!(partition.insert(offset, delivery(offset)));
                        prop_assert!(!partition.insert(offset, delivery(offset)));
                        unsettled.insert(offset);
                        stored.get_or_insert(offset);
                        next = offset + gap;
                        last = Some(offset);
                    },
                    Step::HandOut(offset) => {
                        prop_assert_eq!(partition.hand_out(offset).is_some(), unsettled.contains(&offset));
                        if unsettled.contains(&offset) { out.insert(offset); }
                    }
                    Step::Settle(offset) => {
                        prop_assert_eq!(partition.settle(offset).is_some(), unsettled.remove(&offset));
                        out.remove(&offset);
                    }
                    Step::TakeBack(offset) => {
                        prop_assert_eq!(partition.take_back(offset).is_some(), unsettled.contains(&offset));
                        out.remove(&offset);
                    }
                    Step::Store => {
                        let position = unsettled.first().copied().or(last.map(|last| last + 1));
                        prop_assert_eq!(partition.take_unstored(), position.filter(|at| stored != Some(*at)));
                        stored = position.or(stored);
                    }
                }
                prop_assert_eq!(partition.out, out.len());
                prop_assert_eq!(partition.bytes, unsettled.len());
                prop_assert!(partition.ahead().0 >= unsettled.len());
            }
        }
    }

    #[test]
    fn a_position_that_was_not_taken_is_told_again() {
        let mut partition = Partition::new("t".into(), 0);
        assert_eq!(partition.take_unstored(), None);
        partition.insert(7, delivery(7));
        assert_eq!(partition.take_unstored(), None);
        assert!(partition.settle(7).is_some());
        assert_eq!((partition.take_unstored(), partition.take_unstored()), (Some(8), None));
        partition.store_again();
        assert_eq!((partition.take_unstored(), partition.take_unstored()), (Some(8), None));
    }
}
