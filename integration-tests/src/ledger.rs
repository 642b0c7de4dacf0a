//! Both sides of a flow under faults, written down: what was accepted, what came, how often, in which order, and how long
//! nothing went.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A message: its ordering key's number and its place within the key.
pub type Id = (u32, u64);

/// The key number of messages that have no ordering key, and so no order.
pub const UNKEYED: u32 = 0;

/// What happened on both sides. Shared by the tasks of a flow.
#[derive(Debug)]
pub struct Ledger {
    began: Instant,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    accepted: HashMap<Id, Instant>,
    received: HashMap<Id, u32>,
    /// Of each key, the place of the last message that came for the first time.
    furthest: HashMap<u32, u64>,
    out_of_order: Vec<(Id, u64)>,
    failures: BTreeMap<String, u64>,
    acceptances: Vec<Instant>,
    arrivals: Vec<Instant>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { began: Instant::now(), entries: Mutex::default() }
    }
}

impl Ledger {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker has accepted a message.
    pub fn accepted(&self, id: Id) {
        let now = Instant::now();
        let mut entries = self.entries();
        entries.accepted.entry(id).or_insert(now);
        entries.acceptances.push(now);
    }

    /// A publish or a settlement failed; failures are counted by their text.
    pub fn failed(&self, what: &str, error: &throughline::Error) {
        let text = format!("{what}: {:?}, {:?}", error.kind(), error.retry());
        *self.entries().failures.entry(text).or_default() += 1;
    }

    /// A message came.
    pub fn received(&self, id: Id) {
        let mut entries = self.entries();
        entries.arrivals.push(Instant::now());
        let times = entries.received.entry(id).or_default();
        *times += 1;
        if *times > 1 {
            return;
        }
        let (key, place) = id;
        match entries.furthest.get(&key) {
            Some(&furthest) if furthest > place && key != UNKEYED => {
                entries.out_of_order.push((id, furthest));
            }
            _ => drop(entries.furthest.insert(key, place)),
        }
    }

    /// Whether all that was accepted has come.
    pub fn is_complete(&self) -> bool {
        let entries = self.entries();
        entries.accepted.keys().all(|id| entries.received.contains_key(id))
    }

    /// How many were accepted, and how many came, since then.
    pub fn passed_since(&self, since: Instant) -> (usize, usize) {
        let count = |times: &[Instant]| times.iter().rev().take_while(|time| **time >= since).count();
        let entries = self.entries();
        (count(&entries.acceptances), count(&entries.arrivals))
    }

    /// How long after `since` the first message was accepted, and the first came. `None`: none yet.
    pub fn recovery(&self, since: Instant) -> (Option<Duration>, Option<Duration>) {
        let first = |times: &[Instant]| {
            let after = times.iter().rev().take_while(|time| **time >= since).last();
            after.map(|time| *time - since)
        };
        let entries = self.entries();
        (first(&entries.acceptances), first(&entries.arrivals))
    }

    /// What it comes to.
    pub fn summary(&self) -> Summary {
        let entries = self.entries();
        let mut lost: Vec<Id> =
            entries.accepted.keys().filter(|id| !entries.received.contains_key(id)).copied().collect();
        lost.sort_unstable();
        Summary {
            accepted: entries.accepted.len(),
            received: entries.received.len(),
            lost,
            duplicates: entries.received.values().filter(|times| **times > 1).count(),
            unasked: entries.received.keys().filter(|id| !entries.accepted.contains_key(id)).count(),
            out_of_order: entries.out_of_order.clone(),
            longest_pauses: (longest_pause(&entries.acceptances), longest_pause(&entries.arrivals)),
            failures: entries.failures.clone(),
            time: self.began.elapsed(),
        }
    }
}

fn longest_pause(times: &[Instant]) -> Duration {
    times.iter().zip(times.iter().skip(1)).map(|(one, next)| *next - *one).max().unwrap_or_default()
}

/// A ledger, added up.
#[derive(Debug)]
pub struct Summary {
    /// Messages that the broker accepted.
    pub accepted: usize,
    /// Different messages that came.
    pub received: usize,
    /// Accepted, and never came.
    pub lost: Vec<Id>,
    /// Messages that came more than once.
    pub duplicates: usize,
    /// Messages that came although nobody was told that they were accepted: their outcome was uncertain.
    pub unasked: usize,
    /// Messages that came for the first time after a later one of their key, with that one's place.
    pub out_of_order: Vec<(Id, u64)>,
    /// The longest time without an acceptance, and without an arrival.
    pub longest_pauses: (Duration, Duration),
    /// Failed publishes and settlements, by what they were.
    pub failures: BTreeMap<String, u64>,
    /// How long the ledger was kept.
    pub time: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:.0?}: accepted {}, received {}, lost {}, duplicates {}, uncertain and received {}, out of order {}; \
             longest pause {:.1?} publishing, {:.1?} consuming",
            self.time,
            self.accepted,
            self.received,
            self.lost.len(),
            self.duplicates,
            self.unasked,
            self.out_of_order.len(),
            self.longest_pauses.0,
            self.longest_pauses.1,
        )?;
        for (failure, times) in &self.failures {
            writeln!(f, "  {times} × {failure}")?;
        }
        Ok(())
    }
}
