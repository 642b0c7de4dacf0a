//! What of one partition is unsettled, and how far it may be committed.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use throughline_core::driver::Delivery;
use throughline_core::gate::Gate;
use tokio::time::Instant;

use crate::acked::Acked;

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

/// What a group has of a partition: everything below is settled, and what the metadata says (see [`Acked`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) offset: i64,
    pub(crate) metadata: Option<String>,
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
    /// What was acked before this was assigned, above all that was received.
    acked: Acked,
    /// What librdkafka has been told to commit; at first, where the group stood.
    told: Option<Position>,
    /// Whether it was told anything beyond that.
    is_moved: bool,
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
    /// `acked` is what was acked above the group's position.
    pub(crate) fn new(topic: Arc<str>, number: i32, acked: Acked) -> Self {
        Self {
            topic,
            number,
            window: VecDeque::new(),
            next: None,
            acked,
            told: None,
            is_moved: false,
            gate: Gate::default(),
            out: 0,
            bytes: 0,
            is_paused: false,
            is_leaving: false,
        }
    }

    /// A new record. `false` for one that nobody wants: it was there already, or is acked.
    pub(crate) fn insert(&mut self, offset: i64, delivery: Delivery) -> bool {
        if self.next.is_some_and(|next| offset < next) {
            return false;
        }
        self.next = Some(offset + 1);
        if self.acked.take(offset) {
            // What leads the window is unsettled.
            if !self.window.is_empty() {
                self.window.push_back((offset, None));
            }
            return false;
        }
        // Before it, there is nothing to commit.
        self.told.get_or_insert_with(|| Position { offset, metadata: self.acked.encode(offset) });
        let entry = Entry { delivery, is_out: false };
        self.bytes += entry.bytes();
        self.window.push_back((offset, Some(entry)));
        true
    }

    fn index(&self, offset: i64) -> Option<usize> {
        // Without gaps it is as far on as its offset.
        let (first, _) = self.window.front()?;
        let near = usize::try_from(offset.checked_sub(*first)?).ok()?;
        if self.window.get(near).is_some_and(|(found, _)| *found == offset) {
            return Some(near);
        }
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

    /// What to commit, where librdkafka has not been told of it; from now on it counts as told. `sparse` says whether what is
    /// acked above the position may go with it.
    pub(crate) fn take_untold(&mut self, sparse: bool) -> Option<Position> {
        let offset = self.position()?;
        let mut acked = Acked::default();
        if sparse {
            self.window
                .iter()
                .filter(|(_, entry)| entry.is_none())
                .for_each(|(offset, _)| acked.push(*offset));
            acked.extend(&self.acked);
        }
        let position = Position { offset, metadata: acked.encode(offset) };
        if self.told.as_ref() == Some(&position) {
            return None;
        }
        self.told = Some(position.clone());
        self.is_moved = true;
        Some(position)
    }

    /// What to commit at the end, whatever of it librdkafka has been told already.
    pub(crate) fn take_last(&mut self, sparse: bool) -> Option<Position> {
        self.take_untold(sparse).or_else(|| self.told.clone().filter(|_| self.is_moved))
    }

    /// What librdkafka was told has not been committed.
    pub(crate) fn tell_again(&mut self) {
        // No offset is negative.
        self.told = Some(Position { offset: -1, metadata: None });
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
        Tell,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => prop::collection::vec(1..4_i64, 1..6).prop_map(Step::Receive),
            3 => (0..60_i64).prop_map(Step::HandOut),
            5 => (0..60_i64).prop_map(Step::Settle),
            1 => (0..60_i64).prop_map(Step::TakeBack),
            1 => Just(Step::Tell),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn never_tells_of_an_unsettled_record(
            start in 0..9_i64,
            before in prop::collection::btree_set(0..20_i64, 0..9),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut known = Acked::default();
            before.iter().for_each(|offset| known.push(start + 1 + offset));
            let mut partition = Partition::new("t".into(), 0, known);
            let mut settled: BTreeSet<_> = before.iter().map(|offset| start + 1 + offset).collect();
            let (mut unsettled, mut out) = (BTreeSet::new(), BTreeSet::new());
            let (mut next, mut last) = (start, None);
            for step in steps {
                match step {
                    Step::Receive(gaps) => for gap in gaps {
                        let offset = next;
                        let is_new = !settled.contains(&offset);
                        prop_assert_eq!(partition.insert(offset, delivery(offset)), is_new);
                        prop_assert!(!partition.insert(offset, delivery(offset)));
                        if is_new { unsettled.insert(offset); }
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
                        // As far as it was there to be.
                        if last.is_some_and(|last| offset <= last) { settled.insert(offset); }
                    }
                    Step::TakeBack(offset) => {
                        prop_assert_eq!(partition.take_back(offset).is_some(), unsettled.contains(&offset));
                        out.remove(&offset);
                    }
                    Step::Tell => {
                        let Some(position) = partition.take_untold(true) else { continue };
                        prop_assert_eq!(partition.take_untold(true), None);
                        let expected = unsettled.first().copied().or(last.map(|last| last + 1));
                        prop_assert_eq!(Some(position.offset), expected);
                        let text = position.metadata.unwrap_or_default();
                        let mut acked = Acked::decode(text.as_bytes(), position.offset).unwrap_or_default();
                        for offset in position.offset..next + 30 {
                            let is_told = acked.take(offset);
                            prop_assert!(!is_told || !unsettled.contains(&offset));
                            // What lies between the records is nobody's.
                            prop_assert!(!is_told || settled.contains(&offset), "{}", offset);
                        }
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
        let mut partition = Partition::new("t".into(), 0, Acked::default());
        assert_eq!(partition.take_untold(true), None);
        partition.insert(7, delivery(7));
        assert_eq!((partition.take_untold(true), partition.take_last(true)), (None, None));
        assert!(partition.settle(7).is_some());
        let eight = Some(Position { offset: 8, metadata: None });
        assert_eq!((partition.take_untold(true), partition.take_untold(true)), (eight.clone(), None));
        partition.tell_again();
        assert_eq!((partition.take_untold(true), partition.take_untold(true)), (eight.clone(), None));
        assert_eq!(partition.take_last(true), eight);
    }

    #[test]
    fn what_was_acked_before_is_not_wanted_and_is_told_on_until_the_position_is_past_it() {
        let mut known = Acked::default();
        [2, 5].into_iter().for_each(|offset| known.push(offset));
        let mut partition = Partition::new("t".into(), 0, known);
        let inserted: Vec<_> = (1..4).map(|offset| partition.insert(offset, delivery(offset))).collect();
        assert_eq!(inserted, [true, false, true]);
        // As the group has it.
        assert_eq!(partition.take_untold(true), None);
        assert!(partition.settle(1).is_some());
        let position = partition.take_untold(true).unwrap();
        let mut acked = Acked::decode(position.metadata.unwrap().as_bytes(), 3).unwrap();
        assert_eq!((position.offset, acked.take(4), acked.take(5)), (3, false, true));
        // Without metadata, where the broker takes none.
        assert_eq!(partition.take_untold(false), Some(Position { offset: 3, metadata: None }));
        assert!(partition.settle(3).is_some());
        assert!(partition.insert(4, delivery(4)) && !partition.insert(5, delivery(5)));
        assert!(partition.settle(4).is_some());
        assert_eq!(partition.take_untold(true), Some(Position { offset: 6, metadata: None }));
    }
}
