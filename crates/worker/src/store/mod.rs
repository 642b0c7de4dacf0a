//! What outlives an attempt: which messages are done, and how often one has failed.

mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

use async_trait::async_trait;
use throughline_core::{History, Result};
use uuid::Uuid;

pub use memory::MemoryStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;

/// Remembers which keys are done, so that a message that comes twice has its effect once.
///
/// A key is *new*, *in progress* for a claim's time, or *done* until it is forgotten. All is decided in `begin`, in one
/// step: of several workers that begin the same key at once, one gets the claim. A claim that was not kept up is over, and
/// the next `begin` gets it; what the late one then says changes nothing.
#[async_trait]
pub trait IdempotencyStore: Send + Sync + 'static {
    /// Claims a key for so long, where it is new or its claim is over.
    async fn begin(&self, key: &str, claim: Duration) -> Result<Begun>;

    /// Keeps a claim for that long from now. `false`: it was over, and is another's or nobody's.
    async fn extend(&self, key: &str, claim: Claim, by: Duration) -> Result<bool>;

    /// The work is done: the key is known for that long. `false`: the claim was over and is another's, which will do the
    /// work again.
    async fn done(&self, key: &str, claim: Claim, keep: Duration) -> Result<bool>;

    /// The work is not done: the key is new again. Without effect where the claim was over.
    async fn abandon(&self, key: &str, claim: Claim) -> Result<()>;
}

/// What [`IdempotencyStore::begin`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The work is ours to do.
    New(Claim),
    /// Somebody is doing it, and has a claim for so long yet.
    InProgress(Duration),
    /// It is done.
    Done,
}

/// Tells one claim of a key from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim(pub u128);

impl Claim {
    /// A claim that no other is equal to.
    pub fn unique() -> Self {
        Self(Uuid::now_v7().as_u128())
    }
}

/// Remembers the failed attempts of messages that a broker retries in place, where it cannot carry their history.
#[async_trait]
pub trait AttemptStore: Send + Sync + 'static {
    /// What is known of a message.
    async fn load(&self, key: &str) -> Result<Option<Attempts>>;

    /// Remembers what is known of a message, for that long.
    async fn save(&self, key: &str, attempts: &Attempts, keep: Duration) -> Result<()>;

    /// Forgets a message.
    async fn forget(&self, key: &str) -> Result<()>;
}

/// The failed attempts of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// How many have failed.
    pub failed: u32,
    /// Those failures, as far as they are known.
    pub history: History,
}

/// What every store must hold; the same for each. A time that passes is really waited for: some look at the clock on the
/// wall.
#[cfg(test)]
pub(crate) mod law {
    use std::sync::Arc;

    use throughline_core::Failure;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(30);
    const OVER: Duration = Duration::from_millis(90);

    fn claim(begun: Begun) -> Claim {
        match begun {
            Begun::New(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn a_key_is_new_then_in_progress_then_done(store: &dyn IdempotencyStore) {
        let first = claim(store.begin("a", LONG).await.unwrap());
        match store.begin("a", LONG).await.unwrap() {
            Begun::InProgress(left) => assert!(left <= LONG && left > LONG / 2, "{left:?}"),
            other => panic!("{other:?}"),
        }
        claim(store.begin("b", LONG).await.unwrap());
        store.abandon("a", first).await.unwrap();
        let second = claim(store.begin("a", LONG).await.unwrap());
        assert_ne!(first, second);
        assert!(store.done("a", second, LONG).await.unwrap());
        assert_eq!(store.begin("a", LONG).await.unwrap(), Begun::Done);
    }

    pub(crate) async fn a_claim_that_is_over_is_anothers(store: &dyn IdempotencyStore) {
        let late = claim(store.begin("a", SHORT).await.unwrap());
        assert!(store.extend("a", late, SHORT).await.unwrap());
        tokio::time::sleep(OVER).await;
        let present = claim(store.begin("a", LONG).await.unwrap());
        assert!(!store.extend("a", late, LONG).await.unwrap());
        assert!(!store.done("a", late, LONG).await.unwrap());
        store.abandon("a", late).await.unwrap();
        assert!(matches!(store.begin("a", LONG).await.unwrap(), Begun::InProgress(_)));
        assert!(store.extend("a", present, LONG).await.unwrap());
        assert!(store.done("a", present, SHORT).await.unwrap());
        assert_eq!(store.begin("a", LONG).await.unwrap(), Begun::Done);
        // What is done is forgotten in time.
        tokio::time::sleep(OVER).await;
        claim(store.begin("a", LONG).await.unwrap());
    }

    /// Its work was finished, and nobody else has begun: that it took longer than it said is no reason to do it again.
    pub(crate) async fn a_late_done_counts_where_nobody_else_began(store: &dyn IdempotencyStore) {
        let late = claim(store.begin("a", SHORT).await.unwrap());
        tokio::time::sleep(OVER).await;
        assert!(store.done("a", late, LONG).await.unwrap());
        assert_eq!(store.begin("a", LONG).await.unwrap(), Begun::Done);
    }

    pub(crate) async fn one_of_many_gets_a_key(store: Arc<dyn IdempotencyStore>) {
        for round in 0..20 {
            let key = format!("key-{round}");
            let tries = (0..8).map(|_| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move { store.begin(&key, LONG).await.unwrap() })
            });
            let begun = futures_util::future::join_all(tries).await;
            let won = begun.iter().filter(|begun| matches!(begun, Ok(Begun::New(_)))).count();
            assert_eq!(won, 1, "{begun:?}");
        }
    }

    pub(crate) async fn attempts_are_kept_until_forgotten(store: &dyn AttemptStore) {
        assert_eq!(store.load("a").await.unwrap(), None);
        let mut attempts = Attempts { failed: 1, ..Attempts::default() };
        attempts.history.push(Failure::new("http_503").message("no").dependency("ads-api").worker("w"));
        store.save("a", &attempts, LONG).await.unwrap();
        attempts.failed = 2;
        store.save("a", &attempts, LONG).await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), Some(attempts.clone()));
        store.forget("a").await.unwrap();
        assert_eq!(store.load("a").await.unwrap(), None);
        store.save("a", &attempts, SHORT).await.unwrap();
        tokio::time::sleep(OVER).await;
        assert_eq!(store.load("a").await.unwrap(), None);
    }
}
