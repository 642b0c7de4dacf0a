//! What is acked above a group's position, in the commit's metadata: a text that Kafka keeps with the position.
//!
//! `tl-acks/1:` and, in URL-safe base64 without padding, numbers of 7 bits a byte, the lowest first, the high bit set on all
//! but the last: the position that it belongs to, and of each run of acked offsets, in ascending order, how far it begins
//! after the position or the end of the run before, and its length less one. Whoever finds another position beside it, as
//! after a reset or a copy to another cluster, takes nothing from it.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const PREFIX: &str = "tl-acks/1:";
/// How many bytes of numbers fit with the prefix, as base64, into the 4,096 that brokers allow by default:
/// <https://kafka.apache.org/documentation/#brokerconfigs_offset.metadata.max.bytes>.
const MOST: usize = (4_096 - PREFIX.len()) / 4 * 3;

/// Offsets that are acked, as ascending runs: the first of each, and the one after its last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acked(VecDeque<(i64, i64)>);

impl Acked {
    /// Adds an offset that is above all others.
    pub(crate) fn push(&mut self, offset: i64) {
        self.push_run(offset, offset.saturating_add(1));
    }

    fn push_run(&mut self, from: i64, to: i64) {
        match self.0.back_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ => self.0.push_back((from, to)),
        }
    }

    /// Adds what another has, all of it above.
    pub(crate) fn extend(&mut self, above: &Self) {
        for (from, to) in &above.0 {
            self.push_run(*from, *to);
        }
    }

    /// Whether an offset is acked. Forgets all up to it: what is asked for next is above.
    pub(crate) fn take(&mut self, offset: i64) -> bool {
        while let Some((from, to)) = self.0.front_mut() {
            if offset < *from {
                return false;
            }
            if offset < *to {
                *from = offset.saturating_add(1);
                return true;
            }
            self.0.pop_front();
        }
        false
    }

    /// The text to keep with this position; `None` where there is nothing to say. What does not fit is left out, from the
    /// end: it is delivered again.
    pub(crate) fn encode(&self, position: i64) -> Option<String> {
        let mut bytes = Vec::new();
        push_number(&mut bytes, position);
        let (least, mut end) = (bytes.len(), position);
        for (from, to) in &self.0 {
            // What `take` has emptied.
            if from >= to {
                continue;
            }
            let fits = bytes.len();
            push_number(&mut bytes, from - end);
            push_number(&mut bytes, to - from - 1);
            if bytes.len() > MOST {
                bytes.truncate(fits);
                break;
            }
            end = *to;
        }
        (bytes.len() > least).then(|| format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Reads the text that was kept with this position; `None` for one that is not of ours, not of this position, or broken.
    pub(crate) fn decode(text: &[u8], position: i64) -> Option<Self> {
        let mut bytes = &*URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX.as_bytes())?).ok()?;
        if take_number(&mut bytes)? != position {
            return None;
        }
        let (mut acked, mut end) = (Self::default(), position);
        while !bytes.is_empty() {
            let from = end.checked_add(take_number(&mut bytes)?)?;
            end = from.checked_add(take_number(&mut bytes)?)?.checked_add(1)?;
            acked.push_run(from, end);
        }
        Some(acked)
    }
}

/// Offsets and what is between them are never negative.
fn push_number(bytes: &mut Vec<u8>, number: i64) {
    let mut rest = number.cast_unsigned();
    while rest > 0x7f {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<i64> {
    let mut number = 0_i64;
    // 63 bits.
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= i64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn acked(offsets: &BTreeSet<i64>) -> Acked {
        let mut acked = Acked::default();
        offsets.iter().for_each(|offset| acked.push(*offset));
        acked
    }

    /// Those that it holds, of these.
    fn found(acked: &Acked, among: impl Iterator<Item = i64>) -> BTreeSet<i64> {
        let mut acked = acked.clone();
        among.filter(|offset| acked.take(*offset)).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            position in prop_oneof![0..1_000_i64, 0..i64::MAX / 2],
            above in prop::collection::btree_set(0..400_i64, 0..200),
            asked in 0..400_i64,
        ) {
            let offsets: BTreeSet<_> = above.iter().map(|above| position + above).collect();
            let mut acked = acked(&offsets);
            match acked.encode(position) {
                None => prop_assert!(offsets.is_empty()),
                Some(text) => {
                    prop_assert!(text.len() <= 4_096);
                    let read = Acked::decode(text.as_bytes(), position);
                    prop_assert_eq!(read.as_ref(), Some(&acked));
                    prop_assert_eq!(found(&acked, position..position + 400), offsets.clone());
                    prop_assert_eq!(Acked::decode(text.as_bytes(), position + 1), None);
                }
            }
            // What was asked for is forgotten, and the rest is still there, with what comes above.
            let asked = position + asked;
            prop_assert_eq!(acked.take(asked), offsets.contains(&asked));
            let mut whole = Acked::default();
            whole.push(asked);
            whole.extend(&acked);
            let left: BTreeSet<_> = offsets.iter().copied().filter(|offset| *offset > asked).chain([asked]).collect();
            let text = whole.encode(position).unwrap();
            let read = Acked::decode(text.as_bytes(), position).unwrap();
            prop_assert_eq!(found(&read, position..position + 400), left);
        }

        #[test]
        fn foreign_and_broken_metadata_is_nothing(text in prop::collection::vec(any::<u8>(), 0..60), position in any::<i64>()) {
            prop_assert_eq!(Acked::decode(&text, position), None);
            let ours = [PREFIX.as_bytes(), &text].concat();
            let _ = Acked::decode(&ours, position);
            let coded = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&text));
            // Whatever can be read, is of this position, and above it.
            if let Some(mut acked) = Acked::decode(coded.as_bytes(), position) {
                prop_assert!(position == i64::MIN || !acked.take(position - 1));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_the_end() {
        let every_other: BTreeSet<_> = (0..5_000).map(|n| 1_000_000 + 2 * n + 1).collect();
        let text = acked(&every_other).encode(1_000_000).unwrap();
        assert!((4_090..=4_096).contains(&text.len()), "{}", text.len());
        let read = Acked::decode(text.as_bytes(), 1_000_000).unwrap();
        let found = found(&read, 1_000_000..1_010_000);
        assert!(found.len() > 1_500, "{}", found.len());
        assert!(every_other.iter().take(found.len()).eq(found.iter()));
    }

    #[test]
    fn the_text_stays_as_it_is() {
        let acked = acked(&[1_043, 1_044, 1_200].into());
        assert_eq!(acked.encode(1_042).as_deref(), Some("tl-acks/1:kggBAZsBAA"));
    }
}
