//! What a message is recognised by when it comes again.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use throughline::{Delivery, Envelope, HeaderValue, History, IdOrigin, Timestamp};

/// A longer name is hashed, so that a row of the ledger stays small.
const LONGEST_NAME: usize = 96;

/// What a stored message is recognised by: its name (the broker's own id or place of it, else the envelope's id) and a
/// digest of its content. The digest is there because names are given by strangers: another message of the same name, or
/// one at the place of a deleted one, is another message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity(Arc<[u8]>);

impl Identity {
    /// `None` where there is nothing to recognise it by: an id that was made up at this delivery.
    pub(crate) fn of(delivery: &Delivery) -> Option<Self> {
        let (envelope, history) = (delivery.envelope(), delivery.history());
        match (delivery.native_id(), envelope.id_origin) {
            (Some(place), _) => Some(Self::new(b'n', &place, envelope, history)),
            (None, IdOrigin::Synthetic) => None,
            (None, IdOrigin::Envelope | IdOrigin::Broker) => {
                Some(Self::new(b'i', &envelope.id, envelope, history))
            }
        }
    }

    fn new(kind: u8, name: &str, envelope: &Envelope, history: Option<&History>) -> Self {
        let digest = digest(envelope, history);
        let hashed = (name.len() > LONGEST_NAME).then(|| Sha256::digest(name.as_bytes()));
        let name = hashed.as_ref().map_or(name.as_bytes(), |hashed| &hashed[..]);
        let mut bytes = Vec::with_capacity(1 + name.len() + 16);
        bytes.push(kind);
        // First, so that neighbours in the queue are neighbours in the ledger's index.
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&digest);
        Self(bytes.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Whether a delivery may be of a message that was moved before. Where the broker says that it was never delivered, it
/// cannot be, and a message like it in all is another one. A count that only approximates (SQS) comes with a native id.
pub(crate) fn may_come_again(delivery: &Delivery) -> bool {
    delivery.receive_count() != Some(1) || delivery.native_id().is_some()
}

/// SHA-256 over what is the same at each delivery of a message, of which the first half is kept. The history is in it,
/// because a message that failed again since it was moved, and came back, is to be moved again. The expiry is not: of a
/// foreign message it may be counted from its receipt.
fn digest(envelope: &Envelope, history: Option<&History>) -> [u8; 16] {
    let mut content = Content(Sha256::new());
    for part in [key, fields, headers, payload] {
        part(envelope, &mut content);
        // No field begins with it: it would be a length.
        content.0.update([0xff; 8]);
    }
    content.maybe(history.map(History::to_header).as_ref().map(String::as_bytes));
    content.half()
}

fn key(envelope: &Envelope, content: &mut Content) {
    content.maybe(envelope.ordering_key.as_deref());
}

fn payload(envelope: &Envelope, content: &mut Content) {
    content.maybe(envelope.payload.as_deref());
}

fn fields(envelope: &Envelope, content: &mut Content) {
    let Envelope {
        id,
        message_type,
        source,
        time,
        content_type,
        content_encoding,
        correlation_id,
        reply_to,
        priority,
        idempotency_key,
        ..
    } = envelope;
    content.bytes(id.as_bytes());
    for text in
        [message_type, source, content_type, content_encoding, correlation_id, reply_to, idempotency_key]
    {
        content.maybe(text.as_ref().map(String::as_bytes));
    }
    content.time(*time);
    content.maybe(priority.map(|priority| [priority]).as_ref().map(|bytes| &bytes[..]));
}

fn headers(envelope: &Envelope, content: &mut Content) {
    let mut sorted: Vec<_> = envelope.headers.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    for (name, value) in sorted {
        content.bytes(name.as_bytes());
        content.header(value);
    }
}

/// Digests a sequence of values.
pub(crate) struct Content(pub(crate) Sha256);

impl Content {
    pub(crate) fn of(put: impl FnOnce(&mut Self)) -> [u8; 16] {
        let mut content = Self(Sha256::new());
        put(&mut content);
        content.half()
    }

    /// The first half of the digest.
    pub(crate) fn half(self) -> [u8; 16] {
        let whole: [u8; 32] = self.0.finalize().into();
        let mut half = [0; 16];
        half.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
        half
    }

    /// With its length before it, so that no two sequences of fields are the same bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    pub(crate) fn header(&mut self, value: &HeaderValue) {
        match value {
            HeaderValue::Text(text) => self.tagged(b't', text.as_bytes()),
            HeaderValue::Bytes(bytes) => self.tagged(b'b', bytes),
            HeaderValue::Null => self.tagged(b'n', &[]),
            HeaderValue::Typed { kind, text } => {
                self.tagged(b'k', kind.as_bytes());
                self.bytes(text.as_bytes());
            }
        }
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update([tag]);
        self.bytes(bytes);
    }

    fn time(&mut self, time: Option<Timestamp>) {
        self.maybe(time.map(|time| time.as_millis().to_be_bytes()).as_ref().map(|bytes| &bytes[..]));
    }

    fn maybe(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.tagged(1, bytes),
            None => self.0.update([0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use throughline::Failure;

    fn headers(pairs: &[(&'static str, &'static str)]) -> Envelope {
        let mut envelope = Envelope::foreign("a".into(), None);
        envelope.headers = pairs.iter().copied().collect();
        envelope
    }

    #[test]
    fn every_field_counts_and_the_order_across_names_does_not() {
        let plain = Envelope::foreign("a".into(), Some(bytes::Bytes::new()));
        let with = |change: fn(&mut Envelope)| {
            let mut envelope = plain.clone();
            change(&mut envelope);
            digest(&envelope, None)
        };
        let mut all = vec![
            digest(&plain, None),
            with(|e| e.id = "b".into()),
            with(|e| e.message_type = Some(String::new())),
            with(|e| e.source = Some(String::new())),
            with(|e| e.content_type = Some(String::new())),
            with(|e| e.content_encoding = Some(String::new())),
            with(|e| e.correlation_id = Some(String::new())),
            with(|e| e.reply_to = Some(String::new())),
            with(|e| e.idempotency_key = Some(String::new())),
            with(|e| e.ordering_key = Some(bytes::Bytes::new())),
            with(|e| e.time = Some(throughline::Timestamp::from_millis(0))),
            with(|e| e.priority = Some(0)),
            with(|e| e.payload = None),
            with(|e| e.headers.append("x", "")),
            with(|e| e.headers.append("x", HeaderValue::Null)),
            with(|e| e.headers.append("x", Vec::new())),
        ];
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "two of them are the same");
        assert_eq!(
            digest(&headers(&[("x", "1"), ("y", "2"), ("x", "3")]), None),
            digest(&headers(&[("y", "2"), ("x", "1"), ("x", "3")]), None)
        );
        assert_ne!(
            digest(&headers(&[("x", "1"), ("x", "3")]), None),
            digest(&headers(&[("x", "3"), ("x", "1")]), None)
        );
    }

    #[test]
    fn what_failed_again_is_another_message_and_a_moment_of_expiry_is_not() {
        let plain = Envelope::foreign("a".into(), None);
        let mut history = History::default();
        history.push(Failure::new("http_503").dependency("ads-api"));
        let once = digest(&plain, Some(&history));
        history.push(Failure::new("http_503").dependency("ads-api"));
        assert_ne!(digest(&plain, None), once);
        assert_ne!(digest(&plain, Some(&history)), once);

        let mut expiring = plain.clone();
        expiring.expires_at = Some(Timestamp::from_millis(7));
        assert_eq!(digest(&expiring, None), digest(&plain, None));
    }

    proptest! {
        #[test]
        fn another_content_or_name_is_another_message(a in "\\PC{0,200}", b in "\\PC{0,200}", x: Vec<u8>, y: Vec<u8>) {
            let of = |name: &str, payload: &[u8]| {
                let envelope = Envelope::foreign("id".into(), Some(payload.to_vec().into()));
                Identity::new(b'n', name, &envelope, None)
            };
            prop_assert_eq!(of(&a, &x) == of(&b, &y), (&a, &x) == (&b, &y));
            prop_assert!(of(&a, &x).as_bytes().len() <= 1 + LONGEST_NAME + 16);
        }
    }
}
