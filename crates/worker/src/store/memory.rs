//! A store within a process: for tests, and where a process that ends may do its work again.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use throughline_core::Result;
use tokio::time::Instant;

use super::{AttemptStore, Attempts, Begun, Claim, IdempotencyStore};

/// What is over is looked for again when there is twice as much as after the last look, and at least this.
const SWEEP: usize = 1024;

/// A store in memory: gone with the process, and of this process alone.
#[derive(Default)]
pub struct MemoryStore {
    keys: Mutex<Expiring<Key>>,
    attempts: Mutex<Expiring<Attempts>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Key {
    Claimed(Claim),
    Done,
}

/// Values that are over at some time; what is over is dropped now and then, so that it costs little and does not grow.
struct Expiring<T> {
    entries: HashMap<String, (T, Instant)>,
    sweep_at: usize,
}

impl<T> Default for Expiring<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), sweep_at: SWEEP }
    }
}

impl<T> Expiring<T> {
    fn get(&self, key: &str) -> Option<(&T, Instant)> {
        self.entries
            .get(key)
            .map(|(value, until)| (value, *until))
            .filter(|(_, until)| *until > Instant::now())
    }

    fn put(&mut self, key: &str, value: T, keep: Duration) {
        let now = Instant::now();
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, (_, until)| *until > now);
            self.sweep_at = (self.entries.len() * 2).max(SWEEP);
        }
        // As good as for ever, where the clock cannot count it.
        let until = now.checked_add(keep).unwrap_or(now + Duration::from_secs(86_400 * 365 * 30));
        self.entries.insert(key.to_owned(), (value, until));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

#[async_trait]
impl IdempotencyStore for MemoryStore {
    async fn begin(&self, key: &str, claim: Duration) -> Result<Begun> {
        let mut keys = lock(&self.keys);
        match keys.get(key) {
            Some((Key::Done, _)) => return Ok(Begun::Done),
            Some((Key::Claimed(_), until)) => {
                return Ok(Begun::InProgress(until.saturating_duration_since(Instant::now())));
            }
            None => {}
        }
        let new = Claim::unique();
        keys.put(key, Key::Claimed(new), claim);
        Ok(Begun::New(new))
    }

    async fn extend(&self, key: &str, claim: Claim, by: Duration) -> Result<bool> {
        let mut keys = lock(&self.keys);
        let ours = keys.get(key).is_some_and(|(key, _)| *key == Key::Claimed(claim));
        if ours {
            keys.put(key, Key::Claimed(claim), by);
        }
        Ok(ours)
    }

    async fn done(&self, key: &str, claim: Claim, keep: Duration) -> Result<bool> {
        let mut keys = lock(&self.keys);
        let ours = keys.get(key).is_none_or(|(key, _)| *key == Key::Claimed(claim));
        if ours {
            keys.put(key, Key::Done, keep);
        }
        Ok(ours)
    }

    async fn abandon(&self, key: &str, claim: Claim) -> Result<()> {
        let mut keys = lock(&self.keys);
        if keys.get(key).is_some_and(|(key, _)| *key == Key::Claimed(claim)) {
            keys.entries.remove(key);
        }
        Ok(())
    }
}

#[async_trait]
impl AttemptStore for MemoryStore {
    async fn load(&self, key: &str) -> Result<Option<Attempts>> {
        Ok(lock(&self.attempts).get(key).map(|(attempts, _)| attempts.clone()))
    }

    async fn save(&self, key: &str, attempts: &Attempts, keep: Duration) -> Result<()> {
        lock(&self.attempts).put(key, attempts.clone(), keep);
        Ok(())
    }

    async fn forget(&self, key: &str) -> Result<()> {
        lock(&self.attempts).entries.remove(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::law;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_what_every_store_must() {
        law::a_key_is_new_then_in_progress_then_done(&MemoryStore::new()).await;
        law::a_claim_that_is_over_is_anothers(&MemoryStore::new()).await;
        law::a_late_done_counts_where_nobody_else_began(&MemoryStore::new()).await;
        law::attempts_are_kept_until_forgotten(&MemoryStore::new()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_of_many_gets_a_key() {
        law::one_of_many_gets_a_key(Arc::new(MemoryStore::new())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_grow_with_what_is_over() {
        let store = MemoryStore::new();
        for n in 0..10 * SWEEP {
            let Begun::New(claim) = store.begin(&n.to_string(), Duration::from_secs(1)).await.unwrap() else {
                panic!("{n}");
            };
            store.done(&n.to_string(), claim, Duration::from_secs(1)).await.unwrap();
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(lock(&store.keys).entries.len() <= SWEEP);
    }
}
