//! What of one channel's deliveries is unsettled, and which acks settle how much of it at once.

use std::collections::VecDeque;

/// An ack to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    /// Whether all unsettled deliveries below are meant, too.
    pub(crate) multiple: bool,
}

/// The unsettled deliveries of one channel, and so at most as many as its prefetch; what was delivered on the channel and
/// is not in here is settled.
#[derive(Debug)]
pub(crate) struct Window<T> {
    /// By tag, as they were delivered. What is settled leaves a hole: at most as many holes as there are others, so that
    /// one delivery that is held for long keeps no room for all that came after it.
    entries: VecDeque<(u64, Option<T>)>,
    unsettled: usize,
}

impl<T> Window<T> {
    pub(crate) fn new() -> Self {
        Self { entries: VecDeque::new(), unsettled: 0 }
    }

    /// A new delivery; the broker's tags rise.
    pub(crate) fn insert(&mut self, tag: u64, entry: T) {
        self.entries.push_back((tag, Some(entry)));
        self.unsettled += 1;
    }

    pub(crate) fn get(&self, tag: u64) -> Option<&T> {
        self.entries.get(self.place(tag)?)?.1.as_ref()
    }

    pub(crate) fn get_mut(&mut self, tag: u64) -> Option<&mut T> {
        let place = self.place(tag)?;
        self.entries.get_mut(place)?.1.as_mut()
    }

    /// A delivery that is settled on its own, by a nack. `None` if it was already.
    pub(crate) fn remove(&mut self, tag: u64) -> Option<T> {
        let place = self.place(tag)?;
        let entry = self.entries.get_mut(place)?.1.take()?;
        self.unsettled -= 1;
        while self.entries.front().is_some_and(|(_, entry)| entry.is_none()) {
            self.entries.pop_front();
        }
        if self.entries.len() > 2 * self.unsettled {
            self.entries.retain(|(_, entry)| entry.is_some());
        }
        Some(entry)
    }

    fn place(&self, tag: u64) -> Option<usize> {
        // Without holes taken out, tags have no gaps.
        let first = self.entries.front()?.0;
        let direct = usize::try_from(tag.checked_sub(first)?).ok()?;
        match self.entries.get(direct) {
            Some((at, _)) if *at == tag => Some(direct),
            _ => self.entries.binary_search_by_key(&tag, |(at, _)| *at).ok(),
        }
    }

    /// Settles deliveries by acks. Gives, for each tag, what was unsettled, and the acks to write, in this order: one for
    /// all that is settled from the bottom up without a gap, and one for each other.
    ///
    /// An ack of `multiple` names a tag that the broker still holds, and covers nothing that is unsettled.
    pub(crate) fn ack(&mut self, tags: &[u64]) -> (Vec<Option<T>>, Vec<Ack>) {
        let taken: Vec<_> = tags.iter().map(|tag| self.remove(*tag)).collect();
        let mut fresh: Vec<u64> =
            tags.iter().zip(&taken).filter(|(_, taken)| taken.is_some()).map(|(tag, _)| *tag).collect();
        fresh.sort_unstable();
        // Everything below the lowest that is left is settled now.
        let lowest = self.entries.front().map_or(u64::MAX, |(tag, _)| *tag);
        let (prefix, rest) = fresh.split_at(fresh.partition_point(|tag| *tag < lowest));
        let mut acks = Vec::with_capacity(1 + rest.len());
        if let Some(last) = prefix.last() {
            acks.push(Ack { tag: *last, multiple: prefix.len() > 1 });
        }
        acks.extend(rest.iter().map(|tag| Ack { tag: *tag, multiple: false }));
        (taken, acks)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    /// RabbitMQ's side of it: an unknown tag closes the channel.
    #[derive(Default)]
    struct Broker(BTreeSet<u64>);

    impl Broker {
        fn ack(&mut self, ack: Ack) {
            assert!(self.0.contains(&ack.tag), "PRECONDITION_FAILED - unknown delivery tag {}", ack.tag);
            if ack.multiple {
                self.0 = self.0.split_off(&(ack.tag + 1));
            } else {
                self.0.remove(&ack.tag);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver(u64),
        Ack(Vec<u64>),
        Nack(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..8_u64).prop_map(Step::Deliver),
            4 => prop::collection::vec(0..60_u64, 0..12).prop_map(Step::Ack),
            1 => (0..60_u64).prop_map(Step::Nack),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_broker_holds_exactly_what_is_unsettled(steps in prop::collection::vec(step(), 0..40)) {
            let mut window = Window::new();
            let mut broker = Broker::default();
            let mut unsettled = BTreeSet::new();
            let mut next = 1;
            for step in steps {
                match step {
                    Step::Deliver(count) => {
                        for tag in next..next + count {
                            window.insert(tag, tag);
                            broker.0.insert(tag);
                            unsettled.insert(tag);
                        }
                        next += count;
                    }
                    Step::Ack(tags) => {
                        let (taken, acks) = window.ack(&tags);
                        for (tag, taken) in tags.iter().zip(taken) {
                            prop_assert_eq!(taken, unsettled.take(tag));
                        }
                        acks.into_iter().for_each(|ack| broker.ack(ack));
                    }
                    Step::Nack(tag) => {
                        prop_assert_eq!(window.remove(tag), unsettled.take(&tag));
                        broker.0.remove(&tag);
                    }
                }
                prop_assert_eq!(&broker.0, &unsettled);
                prop_assert_eq!(window.unsettled, unsettled.len());
                prop_assert!(window.entries.len() <= 2 * unsettled.len());
                for tag in 0..next + 2 {
                    prop_assert_eq!(window.get(tag).is_some(), unsettled.contains(&tag));
                }
            }
        }
    }

    #[test]
    fn one_ack_covers_a_batch_and_a_gap_is_never_covered() {
        let mut window = Window::new();
        (1..=10).for_each(|tag| window.insert(tag, ()));
        assert_eq!(window.ack(&[3, 1, 2]).1, [Ack { tag: 3, multiple: true }]);
        assert_eq!(window.ack(&[6, 5]).1, [Ack { tag: 5, multiple: false }, Ack { tag: 6, multiple: false }]);
        // 5 and 6 are settled already: the run goes over them, and its ack names a tag that the broker holds.
        assert_eq!(window.ack(&[4]).1, [Ack { tag: 4, multiple: false }]);
        assert_eq!(window.ack(&[7, 7, 8]).1, [Ack { tag: 8, multiple: true }]);
        assert_eq!(window.ack(&[8]).1, []);
        assert!(window.remove(9).is_some() && window.remove(9).is_none());
        assert_eq!(window.ack(&[10]).1, [Ack { tag: 10, multiple: false }]);
    }
}
