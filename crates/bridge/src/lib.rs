//! Throughline's bridge: moves messages from one destination to another, of any two transports. It is fail-closed (what the
//! sink does not take is never acked away), keeps order per key, resumes after a kill, and tells what it did.
//!
//! [`Bridge`] is the way in; `throughline bridge FROM TO` is the same as a command.
//!
//! # The life of a message
//!
//! 1. It is *taken* from the source, as long as less is on its way than [`in_flight`](Bridge::in_flight) and
//!    [`in_flight_bytes`](Bridge::in_flight_bytes) allow. One that the [`Filter`] does not take is held and given back
//!    ([`Rest`] says otherwise).
//! 2. One that was *moved before*, by this run or one that was killed, is acked and not sent again. It is recognised by the
//!    broker's own id or place of it, or by the envelope's id where the broker says that this is no first delivery, and in
//!    both cases by a digest of its content and history, so that a stranger's ids cannot make two messages one. An id that was made up
//!    at this delivery is no identity. What the source holds twice is moved twice, and counted (`copies`),
//!    unless both are said to be redelivered: then nothing tells them apart.
//! 3. It is *sent*, many at a time, in the order of arrival: id, key, times, type, payload and all headers as they came, the
//!    creation context verbatim; the send's span links it. [`Map`] renames what it is told to. Its history goes along;
//!    deliveries to the bridge are no attempts.
//! 4. The sink has *durably accepted* it. Then it is *noted* in the ledger. Then it is *acked* at the source. Between these
//!    steps a kill makes it come again: before the note it may be in the sink twice, after it is recognised by step 2.
//!
//! A send that fails *in passing* (the sink is out of reach, or throttles) is made again with backoff, from 50 ms to 5 s, for
//! ever or as long as [`patience`](Bridge::patience) says, and later messages of its key wait for it. One whose outcome
//! nobody knows is sent again, too, and counted (`sent_again`). A message that the sink *refuses* (its size, its
//! characters, an option) goes to the [`reject`](Bridge::reject) address with the reason, durably, and is then acked; without
//! such an address the bridge stops, names it, and leaves it in the source with all that came after it in its key. Where the
//! *sink itself* fails for good (missing, forbidden), the bridge stops.
//!
//! # Order
//!
//! Messages of one key arrive in order, as far as both transports know an order: where the sink could let a later message
//! overtake a failed one (RabbitMQ, SQS FIFO), one message of a key is on its way at a time
//! ([`pipelined`](Bridge::pipelined) says otherwise), and few wait in the publisher: a long line of one key before a slow sink
//! must not run out of the time that a send may take. A refused message leaves its place; one that comes again after a lost
//! lease comes later.
//!
//! # Who owns what
//!
//! | Decision | Owner |
//! |---|---|
//! | taking, order, what a failure means, when to end | `copy`: one task, which owns all that is on its way |
//! | receipts, then the ledger, then acks | a task for each chunk, of at most 100 messages |
//! | what was moved before | `ledger`: a thread with one SQLite connection |
//! | limits, spans, batches, resending what has certainly not arrived | core's portable publisher and consumer |
//!
//! # The ledger
//!
//! One SQLite file for one source and one sink, used by one process at a time. It holds the runs with their totals, the
//! identities of what was moved, and what was rejected and why; no payloads, no headers. Whatever waits for the ledger's thread
//! shares a transaction. Commits are not synced: what was committed outlives the process; a power failure may undo the
//! last of it, which makes duplicates and loses nothing. Identities are kept in two tables, of which the older is emptied
//! when the newer holds a million: the file stays below some 200 MB, and no broker redelivers what it took an ack for so long
//! ago. When a run ends with everything settled, none need be remembered, and none is.
//!
//! What was in flight when a run was killed, and had not been noted, may be in the sink twice: the next report says how many
//! that can be at most (`killed_in_flight`).
//!
//! # Verification
//!
//! [`Bridge::verify`] notes digests of what is sent, reads the sink back at the end, and compares: what is missing, there
//! twice, changed (key, fields, headers, payload) or out of order in its key. The report names the level of the evidence:
//! *read back* without a trace (Kafka, SQLite, memory), *read back* with delivery counts rising (RabbitMQ, SQS), *broker's
//! count* where the sink only says how many it has, or *receipts only*: then only what the sink has confirmed is known.
//!
//! What was sent is not all that was there. So a source that can be read without a trace (Kafka, SQLite, memory) is read
//! before the first message is taken, and what it held and is neither sent, rejected nor left is *unaccounted* for. Of
//! other sources (RabbitMQ, SQS) the broker's count is told: reading them would raise delivery counts, for which brokers
//! have limits.
//!
//! [`Comparison`] reads any two destinations and compares them, without a bridge.

mod bridge;
mod compare;
mod comparison;
mod copy;
mod dry;
mod dual;
mod filter;
mod identity;
mod lanes;
mod ledger;
mod map;
mod pace;
mod page;
mod plan;
mod probe;
mod progress;
mod report;
mod verdict;
mod verify;

pub use bridge::Bridge;
pub use comparison::{Changed, ChangedMessage, Comparison, Differences, Messages, Reading, Side};
pub use dry::DryRun;
pub use dual::{DualOptions, DualPublisher, DualReceipt, Lead};
pub use filter::{Filter, Rest};
pub use map::{KeyFrom, Map};
pub use plan::{Fate, Plan, Step};
pub use probe::{Probe, ProbeOutcome, Probed};
pub use progress::{Progress, Snapshot};
pub use report::{End, Rejected, Report, Totals};
pub use verify::{Evidence, Found, Source, SourceEvidence, Verification};
