//! Where received records are kept. What the polling thread allocates, others would give back, which is dear: so bytes
//! share blocks, and what is settled comes back here.

use std::mem::take;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use throughline_core::Envelope;
use throughline_core::driver::Delivery;

/// How large a block is, in bytes: so much one small payload can hold on to.
const BLOCK: usize = 16 * 1024;
/// So many envelopes are kept, and of each the strings that are not longer, in bytes.
const ENVELOPES: usize = 1_024;
const LONGEST: usize = 128;

/// The memory of a thread that receives records.
#[derive(Default)]
pub(crate) struct Memory {
    /// Bytes are copied here, several to a block, because most of them come and go together.
    ///
    /// Not librdkafka's own memory: a record holds on to the whole response that it came with, about 1 MiB, and to the
    /// client.
    block: BytesMut,
    /// Nobody else holds them. They are empty, but for the memory of id and type.
    envelopes: Vec<Arc<Envelope>>,
}

impl Memory {
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() > BLOCK / 4 {
            return Bytes::copy_from_slice(bytes);
        }
        if self.block.capacity() < bytes.len() {
            self.block = BytesMut::with_capacity(BLOCK);
        }
        self.block.extend_from_slice(bytes);
        self.block.split().freeze()
    }

    /// A place for an envelope, and two empty strings.
    pub(crate) fn envelope(&mut self) -> (Arc<Envelope>, [String; 2]) {
        let mut place =
            self.envelopes.pop().unwrap_or_else(|| Arc::new(Envelope::foreign(String::new(), None)));
        let strings = match Arc::get_mut(&mut place) {
            Some(old) => [take(&mut old.id), old.message_type.take().unwrap_or_default()],
            None => Default::default(),
        };
        (place, strings)
    }

    /// Takes back what was settled, where the application does not hold on to it.
    pub(crate) fn take_back(&mut self, settled: Vec<Delivery>) {
        for mut place in settled.into_iter().map(|delivery| delivery.envelope) {
            if self.envelopes.len() == ENVELOPES {
                return;
            }
            let Some(old) = Arc::get_mut(&mut place) else { continue };
            let [id, message_type] =
                [take(&mut old.id), old.message_type.take().unwrap_or_default()].map(emptied);
            *old = Envelope::foreign(id, None);
            old.message_type = Some(message_type);
            self.envelopes.push(place);
        }
    }
}

/// A string without its text, and without the memory of a long one.
fn emptied(mut text: String) -> String {
    if text.capacity() > LONGEST {
        return String::new();
    }
    text.clear();
    text
}

#[cfg(test)]
mod tests {
    use throughline_core::driver::Token;

    use super::*;

    fn settled(envelope: &Arc<Envelope>) -> Delivery {
        Delivery::new(envelope.clone(), Token { epoch: 1, tag: 1 })
    }

    #[test]
    fn an_envelope_comes_back_empty_and_never_one_that_is_held() {
        let mut memory = Memory::default();
        let held = Arc::new(Envelope::builder("held").payload("x").build());
        let free = Envelope::builder("free").key("k").header("tenant", "5").payload("x").build();
        memory.take_back(vec![settled(&held), Delivery::new(Arc::new(free), Token { epoch: 1, tag: 2 })]);
        assert_eq!(held.message_type.as_deref(), Some("held"));
        assert_eq!(memory.envelopes.len(), 1);
        let (place, strings) = memory.envelope();
        assert_eq!(*place, Envelope::foreign(String::new(), None));
        assert_eq!(strings, ["", ""]);
        assert!(memory.envelopes.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut memory = Memory::default();
        let long = Arc::new(Envelope::builder("x".repeat(LONGEST + 1)).id("y".repeat(LONGEST + 1)).build());
        memory.take_back(vec![Delivery::new(long, Token { epoch: 1, tag: 1 })]);
        assert_eq!(memory.envelope().1.map(|text| text.capacity()), [0, 0]);
        let many = |n| Delivery::new(Arc::new(Envelope::new("x")), Token { epoch: 1, tag: n });
        memory.take_back((0..2 * ENVELOPES as u64).map(many).collect());
        assert_eq!(memory.envelopes.len(), ENVELOPES);
    }
}
