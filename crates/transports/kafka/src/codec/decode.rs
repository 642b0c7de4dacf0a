//! A record as it is read.

use std::sync::Arc;

use bytes::Bytes;
use rdkafka::Timestamp as Stamp;
use throughline_core::driver::{Clock, wire};
use throughline_core::pack::{PACKED_HEADER, Packed};
use throughline_core::{Envelope, HeaderValue, History, IdOrigin, Timestamp};

use super::*;
use crate::{deadletter, message};

/// A received record.
pub(crate) struct Record<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Bytes>,
    pub(crate) payload: Option<Bytes>,
    pub(crate) stamp: Stamp,
}

/// A received record, taken apart.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) envelope: Envelope,
    /// By our own header, or by a foreign dead letter's.
    pub(crate) failed_attempts: u32,
    pub(crate) history: Option<Arc<History>>,
    /// When this hop began, a requested delay added, and whose clock that is.
    pub(crate) enqueued: Option<(Timestamp, Clock)>,
    /// Not to be delivered before.
    pub(crate) due: Option<Timestamp>,
    /// What a dead letter of ours says: where it comes from, and why.
    pub(crate) dead_letter: Vec<(&'static str, String)>,
}

/// Takes a record apart. Never fails: what is not as we write it is an ordinary header. `headers` calls its argument with
/// each header, in order. `spare` are two empty strings that may have room.
pub(crate) fn decode(
    record: Record<'_>,
    spare: [String; 2],
    headers: impl FnOnce(&mut dyn FnMut(&[u8], Option<&[u8]>)),
) -> Decoded {
    let [id, message_type] = spare;
    let mut envelope = Envelope::foreign(id, record.payload);
    envelope.ordering_key = record.key;
    let mut own = Own { message_type, ..Own::default() };
    let mut user: Vec<(String, HeaderValue)> = Vec::new();
    headers(&mut |name, value| {
        let Ok(name) = std::str::from_utf8(name) else {
            user.push(from_raw(name, value));
            return;
        };
        // Only names that begin so can be ours; looked up by a comparison of a few bytes for all others.
        if (name.starts_with("tl-") || name.starts_with("content-")) && own.take(name, value, &mut envelope) {
            return;
        }
        let value = match value.map(|value| (value, std::str::from_utf8(value))) {
            Some((_, Ok(text))) => HeaderValue::Text(text.to_owned()),
            Some((bytes, Err(_))) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes)),
            None => HeaderValue::Null,
        };
        user.push((name.to_owned(), value));
    });
    for position in own.binary {
        if let Some((_, value @ HeaderValue::Text(_))) = user.get_mut(position)
            && let HeaderValue::Text(text) = std::mem::replace(value, HeaderValue::Null)
        {
            *value = HeaderValue::Bytes(text.into());
        }
    }
    if let Some(packed) = own.packed {
        user.extend(packed.headers);
    }
    envelope.headers = user.into_iter().collect();
    if envelope.id.is_empty() {
        envelope.id = message::native_id(record.topic, record.partition, record.offset);
        envelope.id_origin = IdOrigin::Broker;
    }
    envelope.time = match own.time {
        Some(time) => time,
        // The broker's stamp is no time of the message's.
        None => match record.stamp {
            Stamp::CreateTime(time) if time >= 0 => Some(Timestamp::from_millis(time)),
            _ => None,
        },
    };
    let delayed = |at: i64| Timestamp::from_millis(at.saturating_add(own.delay));
    if own.history.is_none() {
        own.history = deadletter::read(&envelope.headers).map(Arc::new);
        let failures = own.history.as_ref().map_or(0, |history| history.failures().len());
        own.failed_attempts = own.failed_attempts.max(u32::try_from(failures).unwrap_or(u32::MAX));
    }
    Decoded {
        failed_attempts: own.failed_attempts,
        history: own.history,
        enqueued: match (record.stamp, own.sent) {
            (Stamp::LogAppendTime(at), _) if at >= 0 => Some((delayed(at), Clock::Broker)),
            (_, sent) => sent.map(|sent| (delayed(sent), Clock::Publisher)),
        },
        due: own.sent.filter(|_| own.delay > 0).map(delayed),
        dead_letter: own.dead_letter,
        envelope,
    }
}

/// What our own headers say.
#[derive(Default)]
struct Own {
    /// Room for the type.
    message_type: String,
    binary: Vec<usize>,
    packed: Option<Packed>,
    /// Of the envelope, where the record's timestamp is not it.
    time: Option<Option<Timestamp>>,
    sent: Option<i64>,
    delay: i64,
    failed_attempts: u32,
    history: Option<Arc<History>>,
    dead_letter: Vec<(&'static str, String)>,
}

impl Own {
    /// Takes a header of ours; says whether it was one, in the form that we write, and the first of its name.
    fn take(&mut self, name: &str, value: Option<&[u8]>, envelope: &mut Envelope) -> bool {
        let Some(text) = value.and_then(|value| std::str::from_utf8(value).ok()) else { return false };
        self.try_take(name, text, envelope).is_some()
    }

    fn try_take(&mut self, name: &str, text: &str, envelope: &mut Envelope) -> Option<()> {
        let number = || text.parse::<i64>().ok();
        match name {
            ID if envelope.id.is_empty() && !text.is_empty() => text.clone_into(&mut envelope.id),
            TYPE if envelope.message_type.is_none() => {
                let mut message_type = std::mem::take(&mut self.message_type);
                text.clone_into(&mut message_type);
                envelope.message_type = Some(message_type);
            }
            SOURCE => put(&mut envelope.source, text.to_owned())?,
            CONTENT_TYPE => put(&mut envelope.content_type, text.to_owned())?,
            CONTENT_ENCODING => put(&mut envelope.content_encoding, text.to_owned())?,
            CORRELATION_ID => put(&mut envelope.correlation_id, text.to_owned())?,
            REPLY_TO => put(&mut envelope.reply_to, text.to_owned())?,
            IDEMPOTENCY_KEY => put(&mut envelope.idempotency_key, text.to_owned())?,
            EXPIRES_AT => put(&mut envelope.expires_at, Timestamp::from_millis(number()?))?,
            PRIORITY => put(&mut envelope.priority, text.parse().ok()?)?,
            ID_ORIGIN => {
                envelope.id_origin = match text {
                    "broker" => IdOrigin::Broker,
                    "synthetic" => IdOrigin::Synthetic,
                    _ => return None,
                }
            }
            TIME if text.is_empty() => put(&mut self.time, None)?,
            TIME => put(&mut self.time, Some(Timestamp::from_millis(number()?)))?,
            BINARY => {
                self.binary = text.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
            }
            PACKED_HEADER => {
                // Fields are packed by other transports; one that comes here by a foreign hand is kept as a header.
                let packed = Packed::from_text(text).filter(|packed| packed.fields.is_empty())?;
                put(&mut self.packed, packed)?;
            }
            wire::SENT => put(&mut self.sent, number()?)?,
            wire::DELAY => self.delay = number()?,
            wire::FAILED_ATTEMPTS => self.failed_attempts = text.parse().ok()?,
            wire::HISTORY => put(&mut self.history, Arc::new(History::from_header(text)?))?,
            wire::DEAD_LETTER_SOURCE => self.dead_letter.push((wire::DEAD_LETTER_SOURCE, text.to_owned())),
            wire::DEAD_LETTER_REASON => self.dead_letter.push((wire::DEAD_LETTER_REASON, text.to_owned())),
            _ => return None,
        }
        Some(())
    }
}

/// Fills an empty place; a second header of the name is not ours.
fn put<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.is_none().then(|| *place = Some(value))
}
