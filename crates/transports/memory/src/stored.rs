//! A message in a queue, what is known of it, and the operations that a queue remembers.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use opentelemetry::KeyValue;
use rustc_hash::FxHashSet;
use throughline_core::driver::{Clock, Delivery, Native, OperationId, Token, wire};
use throughline_core::{Envelope, HeaderValue, History, Timestamp};

use crate::like::Rules;

/// How many operations a queue remembers at least, to tell a second send.
const REMEMBERED: usize = 1024;

/// Where a message was rejected, and why: the native details of a dead letter.
pub(crate) struct DeadLetter {
    pub(crate) source: String,
    pub(crate) reason: String,
}

impl Native for DeadLetter {
    fn details(&self) -> Vec<(Cow<'static, str>, HeaderValue)> {
        vec![
            (wire::DEAD_LETTER_SOURCE.into(), self.source.as_str().into()),
            (wire::DEAD_LETTER_REASON.into(), self.reason.as_str().into()),
        ]
    }

    fn span_attributes(&self) -> Vec<KeyValue> {
        Vec::new()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) envelope: Arc<Envelope>,
    /// The order of arrival.
    pub(crate) arrival: u64,
    pub(crate) enqueued: Timestamp,
    pub(crate) failed_attempts: u32,
    pub(crate) history: Option<Arc<History>>,
    /// Where it was rejected, and why. What was rejected is kept, however late somebody looks at it: it does not expire.
    pub(crate) dead_letter: Option<Arc<DeadLetter>>,
    pub(crate) receive_count: u32,
    /// Its key is locked for it.
    pub(crate) owns_key: bool,
    /// What only the consumer that gave it back knows of it: where a retry is in place, the message cannot carry it.
    pub(crate) known: Option<Box<Known>>,
}

#[derive(Clone, Default)]
pub(crate) struct Known {
    by: u64,
    failed: u32,
    history: Option<Arc<History>>,
    /// Deliveries that did not fail.
    released: u32,
}

/// The last operations: two generations, of which the older is forgotten as a whole. Operation ids are our own: nobody
/// can choose them to collide.
#[derive(Default)]
pub(crate) struct Remembered {
    recent: FxHashSet<OperationId>,
    older: FxHashSet<OperationId>,
}

impl Remembered {
    pub(crate) fn contains(&self, operation: OperationId) -> bool {
        self.recent.contains(&operation) || self.older.contains(&operation)
    }

    /// Whether the operation is new.
    pub(crate) fn insert(&mut self, operation: OperationId) -> bool {
        if self.older.contains(&operation) || !self.recent.insert(operation) {
            return false;
        }
        if self.recent.len() >= REMEMBERED {
            std::mem::swap(&mut self.recent, &mut self.older);
            self.recent.clear();
        }
        true
    }
}

impl Stored {
    /// What a consumer learns by giving it back: after a failure, or as it was.
    pub(crate) fn learn(&mut self, consumer: u64, failed: Option<&Arc<History>>) {
        let known = self.known.get_or_insert_default();
        if known.by != consumer {
            **known = Known { by: consumer, ..Known::default() };
        }
        match failed {
            Some(history) => {
                known.failed += 1;
                known.history = Some(history.clone());
            }
            None => known.released += 1,
        }
    }

    fn known(&self, consumer: u64) -> Option<&Known> {
        self.known.as_deref().filter(|known| known.by == consumer)
    }

    /// How often it has failed, as far as a consumer knows: where a retry is in place, by the deliveries that were not its
    /// own releases, or without a count by its own failures.
    pub(crate) fn failed(&self, rules: Rules, consumer: u64) -> u32 {
        if !rules.in_place {
            return self.failed_attempts;
        }
        let known = self.known(consumer);
        let here = if rules.counts {
            let released = known.map_or(0, |known| known.released);
            self.receive_count.saturating_sub(1).saturating_sub(released)
        } else {
            known.map_or(0, |known| known.failed)
        };
        self.failed_attempts.saturating_add(here)
    }

    pub(crate) fn delivery(&self, token: Token, rules: Rules, consumer: u64) -> Delivery {
        let mut delivery = Delivery::new(self.envelope.clone(), token);
        delivery.receive_count = rules.counts.then_some(self.receive_count);
        delivery.failed_attempts = self.failed(rules, consumer);
        let known = self.known(consumer).and_then(|known| known.history.as_ref());
        delivery.history = known.or(self.history.as_ref()).cloned();
        delivery.enqueued = Some((self.enqueued, Clock::Broker));
        delivery.is_dead_letter = self.dead_letter.is_some();
        delivery.native = self.dead_letter.clone().map(|why| why as Arc<dyn Native>);
        delivery
    }
}
