//! Another transport's limits and levels, so that a test finds them without its broker.

use throughline_core::capabilities::{
    self, Capabilities, EVENTBRIDGE, KAFKA, Lease, Level, MEMORY, RABBITMQ, RetryMeans, SNS, SNS_FIFO, SQS,
    SQS_FIFO,
};
use throughline_core::driver::Outgoing;
use throughline_core::{Address, Result};

/// What a message is on another transport's wire, in bytes, where a destination can do this; an error where it would be
/// refused. The pure half of that adapter's own `measure`.
pub type Measure = fn(&Outgoing, &Capabilities) -> Result<usize>;

/// What the option `like` can be: a transport's name, or that of its FIFO kind.
pub const LIKE: &[&str] = &["eventbridge", "kafka", "rabbitmq", "sns", "sns-fifo", "sqs", "sqs-fifo"];

/// In the order of [`LIKE`].
static CAPABILITIES: [Capabilities; 7] = [
    like("memory-like-eventbridge", EVENTBRIDGE),
    like("memory-like-kafka", KAFKA),
    like("memory-like-rabbitmq", RABBITMQ),
    like("memory-like-sns", SNS),
    like("memory-like-sns-fifo", SNS_FIFO),
    like("memory-like-sqs", SQS),
    like("memory-like-sqs-fifo", SQS_FIFO),
];

/// The other's limits and levels; spans and errors still say that this is memory.
const fn like(transport: &'static str, other: Capabilities) -> Capabilities {
    Capabilities { transport, system: MEMORY.system, reach: MEMORY.reach, ..other }
}

/// What an address asks this transport to be like; `None` where it does not say.
pub(crate) fn of(address: &Address) -> Result<Option<&'static Capabilities>> {
    let name = address.one_of("like", LIKE)?;
    let place = LIKE.iter().position(|like| Some(*like) == name);
    Ok(place.and_then(|place| CAPABILITIES.get(place)))
}

/// How a queue behaves, by its transport's levels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// A key's next message waits until the one before is settled.
    pub(crate) locks_keys: bool,
    /// A keyed message that waits for its retry holds up those of its key that are not handed out yet.
    pub(crate) holds_retried: bool,
    /// Every other message is overtaken by the one behind it.
    pub(crate) overtakes: bool,
    pub(crate) deduplicates: bool,
    pub(crate) has_priorities: bool,
    /// Expired messages are dropped here; else the portable consumer sees to it.
    pub(crate) drops_expired: bool,
    pub(crate) counts: bool,
    /// A retry changes nothing in the message: only the consumer that asked for it knows of it.
    pub(crate) in_place: bool,
    /// Looking counts as a delivery.
    pub(crate) browse_counts: bool,
    pub(crate) lease: Lease,
}

impl Rules {
    pub(crate) fn of(capabilities: &Capabilities) -> Self {
        Self {
            locks_keys: capabilities.order == Level::Native,
            holds_retried: capabilities.order == Level::Emulated,
            overtakes: capabilities.order == Level::No,
            deduplicates: capabilities.deduplication != Level::No,
            has_priorities: capabilities.priority != Level::No,
            drops_expired: capabilities.expiry == Level::Native,
            counts: capabilities.delivery_count != Level::No,
            in_place: capabilities.retry == RetryMeans::InPlace,
            browse_counts: capabilities.browse == capabilities::Browse::Disturbing,
            lease: capabilities.lease,
        }
    }
}
