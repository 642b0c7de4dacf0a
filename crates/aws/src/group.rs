//! Ordering keys as message group ids.

use sha2::{Digest, Sha256};
use throughline_core::driver::OperationId;

/// The longest group id, in characters.
const MAX_GROUP: usize = 128;
/// What our own groups begin with; a key that does is hashed, so that they cannot be confused.
const OWN: &str = "tl:";

/// The group of a message: its ordering key as it is where AWS takes that, else a hash of it. A message without a key is
/// in a group of its own, so that it waits for no other.
pub fn of(key: Option<&[u8]>, operation: OperationId) -> String {
    match key {
        None => format!("{OWN}none:{operation}"),
        Some(key) => exact(key).map_or_else(|| hashed(key), str::to_owned),
    }
}

/// The group id that says the key exactly, where there is one: 1 to 128 ASCII letters, digits and punctuation marks.
pub(crate) fn exact(key: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(key).ok()?;
    let fits = (1..=MAX_GROUP).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    (fits && !text.starts_with(OWN)).then_some(text)
}

/// The ordering key that a group id says exactly; `None` for a group of ours.
pub(crate) fn key(group: &str) -> Option<&str> {
    (!group.starts_with(OWN)).then_some(group)
}

fn hashed(key: &[u8]) -> String {
    let digest = Sha256::digest(key);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{OWN}key:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_group_where_that_is_legal_and_none_is_none_of_them() {
        let operation = OperationId(7);
        assert_eq!(of(Some(b"profile-1"), operation), "profile-1");
        let odd: [&[u8]; 5] = [b"", b"a b", b"\xff", b"tl:none:x", &[b'k'; 129]];
        let mut groups: Vec<_> = odd.iter().map(|key| of(Some(key), operation)).collect();
        groups.push(of(None, operation));
        groups.push(of(None, OperationId(8)));
        for group in &groups {
            assert!(group.len() <= MAX_GROUP && group.starts_with(OWN) && key(group).is_none(), "{group}");
        }
        groups.sort();
        groups.dedup();
        assert_eq!(groups.len(), 7);
        // The same in every process and version: others' messages of the key are in it.
        assert_eq!(of(Some(b"a b"), operation), "tl:key:c8687a08aa5d6ed2044328fa6a697ab8");
    }
}
