//! What users hold.

use std::fmt;
use std::future::Future;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use throughline::capabilities::{Browse, Level};
use throughline::driver::LogEnd;
use throughline::trace::TracePolicy;
use throughline::{
    Bus, ConsumeOptions, Error, ErrorKind, KeyOrder, PublishOptions, Publisher, Result, Timestamp,
};

use crate::copy::{Copy, DepthOf, Look, Sinks};
use crate::filter::{Filter, Rest};
use crate::ledger::Ledger;
use crate::map::Map;
use crate::progress::Progress;
use crate::report::Report;
use crate::verify::{Account, Verifying};

/// So long a sink may take to close.
const CLOSING: Duration = Duration::from_secs(10);

/// How the loop works.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) filter: Filter,
    pub(crate) rest: Rest,
    pub(crate) map: Map,
    pub(crate) hold: usize,
    pub(crate) max: Option<u64>,
    pub(crate) rate: Option<NonZeroU32>,
    pub(crate) until_empty: bool,
    pub(crate) key_order: KeyOrder,
    pub(crate) in_flight: usize,
    pub(crate) in_flight_bytes: usize,
    pub(crate) lease: Duration,
    pub(crate) patience: Option<Duration>,
    /// How many messages are read back at most.
    pub(crate) verify: Option<NonZeroUsize>,
    /// The ledger keeps what was sent beyond the run, and others may read it meanwhile: a migration compares with it.
    pub(crate) remember: bool,
    /// How often it is looked whether something is due.
    pub(crate) tick: Duration,
    /// So long without a message, and the source may be empty.
    pub(crate) quiet: Duration,
    /// So many looks in a row must find an estimated depth at zero.
    pub(crate) looks: u32,
    /// So long without a message is the end where the depth cannot tell.
    pub(crate) silence: Duration,
    /// So long without a message, while the source says that it has some, is told. Longer than a broker takes to notice
    /// that a consumer was killed (Kafka: 45 s).
    pub(crate) starved: Duration,
    /// How often the depth is asked for, to show it.
    pub(crate) depth_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            rest: Rest::default(),
            map: Map::default(),
            hold: 1000,
            max: None,
            rate: None,
            until_empty: false,
            key_order: KeyOrder::Strict,
            in_flight: 1000,
            in_flight_bytes: 64 * 1024 * 1024,
            lease: ConsumeOptions::default().lease,
            patience: None,
            verify: None,
            remember: false,
            tick: Duration::from_millis(50),
            quiet: Duration::from_millis(500),
            looks: 3,
            silence: Duration::from_secs(10),
            starved: Duration::from_secs(120),
            depth_every: Duration::from_secs(2),
        }
    }
}

/// Moves messages from one destination to another, of any two transports. The [crate's page](crate) tells the life of a
/// message.
///
/// ```
/// use throughline::{Bus, Envelope};
/// use throughline_bridge::Bridge;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> throughline::Result<()> {
/// # let file = std::env::temp_dir().join(format!("bridge-doc-{}.db", std::process::id()));
/// # let to = format!("sqlite:{}?queue=jobs", file.display());
/// let from = Bus::connect("memory:old?queue=jobs").await?;
/// let to = Bus::connect(to).await?;
/// # let publisher = from.publisher().await?;
/// # publisher.publish(Envelope::json("campaign.sync_report", &7)?).await?;
///
/// let report = Bridge::new(&from, &to).until_empty().run(std::future::pending()).await?;
/// assert!(report.is_success());
/// assert_eq!(report.totals.moved, 1);
/// # to.close().await?;
/// # for suffix in ["", "-wal", "-shm"] {
/// #     let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
/// # }
/// # Ok(())
/// # }
/// ```
#[must_use = "run it"]
#[derive(Clone)]
pub struct Bridge {
    pub(crate) from: Bus,
    pub(crate) to: Bus,
    reject: Option<Bus>,
    ledger: Option<PathBuf>,
    pub(crate) progress: Progress,
    pub(crate) settings: Settings,
}

impl Bridge {
    /// A bridge between the own destinations of two buses. Neither bus is closed by it.
    pub fn new(from: &Bus, to: &Bus) -> Self {
        Self {
            from: from.clone(),
            to: to.clone(),
            reject: None,
            ledger: None,
            progress: Progress::default(),
            settings: Settings::default(),
        }
    }

    /// Where messages go that the sink does not take: as they came, with the reason in their history, as dead letters
    /// have it. Without one, the first such message stops the bridge, and stays in the source.
    pub fn reject(mut self, to: &Bus) -> Self {
        self.reject = Some(to.clone());
        self
    }

    /// The file that outlives this process: a bridge that was killed and is run again with the same ledger acks what had
    /// been moved without sending it again. It is made where it is missing, and belongs to this pair of addresses. Without
    /// one, what a killed bridge had in flight may be sent twice.
    pub fn ledger(mut self, path: impl Into<PathBuf>) -> Self {
        self.ledger = Some(path.into());
        self
    }

    /// [`ledger`](Self::ledger), in a folder that exists, under a name that belongs to this pair of addresses.
    pub fn ledger_in(self, folder: impl AsRef<Path>) -> Self {
        let mut of_both = Sha256::new();
        for bus in [&self.from, &self.to] {
            of_both.update(bus.address().to_string());
            of_both.update([0]);
        }
        let name: String = of_both.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.ledger(folder.as_ref().join(format!("bridge-{name}.ledger")))
    }

    /// The ledger's file, where it has one.
    pub fn ledger_path(&self) -> Option<&Path> {
        self.ledger.as_deref()
    }

    /// Ends when the source is empty, and not only when it is asked to. Empty is what the broker calls so when nothing has
    /// come for a while: an embedded queue's count at one look, an estimate (RabbitMQ, SQS) at three in a row. The report says
    /// whether it was one. A log (Kafka) is at its end when all is moved that was there when the bridge began; what others
    /// append meanwhile is not waited for, though some of it may have been moved, too.
    pub fn until_empty(mut self) -> Self {
        self.settings.until_empty = true;
        self
    }

    /// Ends after so many messages, those at the reject address included.
    pub fn max(mut self, count: u64) -> Self {
        self.settings.max = Some(count);
        self
    }

    /// So many messages a second at most.
    pub fn rate(mut self, per_second: NonZeroU32) -> Self {
        self.settings.rate = Some(per_second);
        self
    }

    /// Takes only some of the messages.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.settings.filter = filter;
        self
    }

    /// What becomes of the others.
    pub fn rest(mut self, rest: Rest) -> Self {
        self.settings.rest = rest;
        self
    }

    /// How many of the others may be held at once, where they are left; 1,000 by default.
    pub fn hold(mut self, count: usize) -> Self {
        self.settings.hold = count.max(1);
        self
    }

    /// Renames types and headers on the way, or takes the key from elsewhere.
    pub fn map(mut self, map: Map) -> Self {
        self.settings.map = map;
        self
    }

    /// Keeps many messages of a key on their way also where the sink could let a later one overtake one that it refuses
    /// (RabbitMQ, SQS FIFO). Much faster where few keys have many messages. Order is then kept as long as the sink refuses
    /// none in passing: what it has nacked comes after what it had taken meanwhile.
    pub fn pipelined(mut self) -> Self {
        self.settings.key_order = KeyOrder::Pipelined;
        self
    }

    /// How many messages may be on their way at once; 1,000 by default.
    pub fn in_flight(mut self, count: usize) -> Self {
        self.settings.in_flight = count.max(1);
        self
    }

    /// How many bytes of payload may be on their way before no more is taken; 64 MiB by default. What one call to the
    /// source gives may exceed it.
    pub fn in_flight_bytes(mut self, bytes: usize) -> Self {
        self.settings.in_flight_bytes = bytes.max(1);
        self
    }

    /// How long a lease on a message of the source is, where it can be chosen (SQS, SQLite); 30 s by default. It is extended as
    /// long as it is needed; after a kill, so long passes until what was in flight comes again.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long the sink may take nothing before the bridge gives up; by default it waits for ever.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.settings.patience = Some(patience);
        self
    }

    /// Reads the sink back at the end, at most so many messages, and compares them with what was sent: what is missing,
    /// twice, changed, or out of order in its key. The report names the level of the evidence: where the sink shows
    /// nothing, that is said.
    ///
    /// Reads the source before, too, where that leaves no trace (Kafka, SQLite, memory), at most so many messages: what was
    /// there and is in the end neither sent, rejected nor left is missing. Of other sources only what the broker counts is
    /// known: reading them would raise the delivery counts of messages that are yet to be moved.
    ///
    /// Memory stays flat: digests, some 250 bytes a message, are in the ledger and in temporary files.
    ///
    /// It compares with all that this run has sent, and those before it with the same ledger that did not end in order. A
    /// consumer at the sink meanwhile makes messages look missing.
    pub fn verify(mut self, at_most: NonZeroUsize) -> Self {
        self.settings.verify = Some(at_most);
        self
    }

    /// How far it is, while it runs.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Moves messages until the end that was asked for, or `shutdown`: then what is on its way is finished, and the rest
    /// released. What stopped it is in the report.
    ///
    /// Dropping the future abandons what is on its way: it is neither noted nor acked, and comes again.
    ///
    /// Errors, before anything is moved: what opening the sink, the reject address, the ledger or the source fails with;
    /// `InvalidAddress` where two of them are the same; `Conflict` where the ledger is another bridge's, or in use.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<Report> {
        self.check()?;
        self.settings.key_order = self.publish_options().key_order;
        let began = (Timestamp::now(), Instant::now());
        // With what the filter leaves, too: any of it may be sent.
        let in_flight = self.consume_options().max_unsettled;
        let log_end = if self.settings.until_empty { self.from.log_end("").await? } else { None };
        let sink = self.to.publisher_to("", self.publish_options()).await?;
        let reject = match &self.reject {
            Some(bus) => Some(bus.publisher_to("", self.publish_options()).await?),
            None => None,
        };
        let (from, to) = (self.from.address().to_string(), self.to.address().to_string());
        let path = self.ledger.as_deref();
        let ledger = if self.settings.remember {
            Ledger::open_shared(path, from.clone(), to.clone(), in_flight).await?
        } else {
            Ledger::open(path, from.clone(), to.clone(), in_flight).await?
        };
        let mut shutdown = pin!(shutdown);
        let (account, is_stopped) = tokio::select! {
            biased;
            account = self.account() => (account, false),
            () = &mut shutdown => (None, true),
        };
        let mut consumer = match self.from.consumer_of("", self.consume_options()).await {
            Ok(consumer) => consumer,
            Err(error) => {
                ledger.end(false).await?;
                return Err(error);
            }
        };
        let sinks = Sinks { sink: sink.clone(), reject: reject.clone() };
        let copy =
            Copy::new(&self.settings, sinks, self.depth(log_end), ledger.writer(), self.progress.clone());
        let stopped = async {
            if !is_stopped {
                shutdown.await;
            }
        };
        let outcome = copy.run(&mut consumer, stopped).await;
        let expired = consumer.expired();
        let mut warnings = Vec::new();
        let mut note = |what: &str, result: Result<()>| {
            warnings.extend(result.err().map(|error| format!("{what} was not closed in order: {error}")));
        };
        let closed = consumer.close().await;
        // Acks that were answered before they were made, and then failed.
        let is_acked = closed.as_ref().is_ok_and(|unmade| unmade.count == 0);
        note("the source", closed.map(drop));
        let verification = match self.settings.verify {
            Some(most) => {
                let verifying = Verifying { most, account, expired, moved: outcome.totals.moved };
                Some(verifying.run(&self.from, &self.to, sink.capabilities(), &ledger.writer()).await)
            }
            None => None,
        };
        note("the sink", closed_in_time(&sink).await);
        if let Some(reject) = reject {
            note("the reject address", closed_in_time(&reject).await);
        }
        let before = ledger.before();
        let is_settled = is_acked && outcome.unacked == 0;
        let rejected = ledger.end(is_settled).await.unwrap_or_else(|error| {
            warnings.push(error.to_string());
            Vec::new()
        });
        Ok(Report {
            from,
            to,
            reject: self.reject.as_ref().map(|bus| bus.address().to_string()),
            began: began.0,
            took: began.1.elapsed(),
            end: outcome.end,
            totals: outcome.totals,
            earlier: before.totals,
            earlier_runs: before.runs,
            killed_runs: before.killed,
            killed_in_flight: before.killed_in_flight,
            left: outcome.left,
            expired,
            unacked: outcome.unacked,
            depth: outcome.depth,
            rejected,
            verification,
            warnings,
        })
    }

    /// What both ends hold before anything is moved, where it is to be verified.
    async fn account(&self) -> Option<Account> {
        let most = self.settings.verify?;
        Some(Account::open(&self.from, &self.to, most, &self.settings.filter, &self.settings.map).await)
    }

    fn check(&self) -> Result<()> {
        let (from, to) = (self.from.address(), self.to.address());
        let same = |what: &'static str| Err(Error::new(ErrorKind::InvalidAddress, what).at("bridge", from));
        match &self.reject {
            _ if from == to => same("is the source and the sink: messages would go round for ever"),
            Some(reject) if reject.address() == from => {
                same("is the source and the reject address: messages would go round for ever")
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn publish_options(&self) -> PublishOptions {
        // Where either end knows no order, there is none to keep, and waiting for each message of a key would keep nothing.
        let is_ordered = [&self.from, &self.to].iter().all(|bus| bus.capabilities().order != Level::No);
        PublishOptions {
            max_in_flight: self.settings.in_flight,
            key_order: if is_ordered { self.settings.key_order } else { KeyOrder::Pipelined },
            ..PublishOptions::default()
        }
    }

    fn consume_options(&self) -> ConsumeOptions {
        let Settings { in_flight, in_flight_bytes, hold, filter, rest, max, .. } = &self.settings;
        let hold = if filter.is_empty() || *rest == Rest::Skip { 0 } else { *hold };
        let most =
            max.and_then(|max| usize::try_from(max).ok()).map_or(*in_flight, |max| max.min(*in_flight));
        ConsumeOptions {
            max_unsettled: most.saturating_add(hold),
            max_bytes: *in_flight_bytes,
            lease: self.settings.lease,
            // The hop is no part of the message's own work.
            trace: TracePolicy::Link,
            ..ConsumeOptions::default()
        }
    }

    fn depth(&self, end: Option<LogEnd>) -> DepthOf {
        let (from, end) = (self.from.clone(), Arc::new(end));
        Arc::new(move |thoroughly| {
            let (from, end) = (from.clone(), end.clone());
            Box::pin(async move {
                let mut look = Look { depth: from.depth("").await?, before_end: None };
                if let Some(end) = end.as_ref() {
                    look.before_end = Some(from.depth_before("", end).await?);
                }
                // A log counts what cannot be read, too: the marks of transactions, and what compaction took.
                let may_read = thoroughly && from.capabilities().browse == Browse::Native;
                if may_read && look.depth.ready > 0 && from.browse("", NonZeroUsize::MIN).await?.is_empty() {
                    look.depth.ready = 0;
                    look.before_end = look.before_end.map(|_| 0);
                }
                Ok(look)
            })
        })
    }
}

/// A sink that answers nothing (RabbitMQ blocks publishers while it is short of memory) is not waited for: what it was asked
/// for was given up, or is settled.
async fn closed_in_time(publisher: &Publisher) -> Result<()> {
    match tokio::time::timeout(CLOSING, publisher.close()).await {
        Ok(closed) => closed,
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            format!("no answer within {CLOSING:?}; what it has not confirmed is still in the source"),
        )),
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge")
            .field("from", self.from.address())
            .field("to", self.to.address())
            .field("reject", &self.reject.as_ref().map(Bus::address))
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use throughline::Envelope;
    use throughline_testkit::scripted::{Reply, ScriptedPublisher};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_answers_nothing_is_not_waited_for_at_the_end() {
        let blocked = ScriptedPublisher::new(|_| Reply::Accept);
        blocked.hold(true);
        let address = "memory:x?queue=q".parse().unwrap();
        let options = PublishOptions { timeout: Duration::from_secs(3600), ..PublishOptions::default() };
        let publisher = Publisher::new(blocked.clone(), &address, options);
        let pending = publisher.enqueue(Envelope::builder("x").build(), Default::default()).await.unwrap();
        let began = tokio::time::Instant::now();
        let error = closed_in_time(&publisher).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(began.elapsed() <= CLOSING + Duration::from_secs(1) && error.to_string().contains("source"));
        blocked.hold(false);
        drop(pending);
    }
}
