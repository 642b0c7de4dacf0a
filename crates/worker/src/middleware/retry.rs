//! When a failed message is tried again, and when it is given up.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use throughline_core::capabilities::{Capabilities, Lease, RetryMeans};
use throughline_core::{Delivery, Timestamp};

use crate::error::HandlerError;
use crate::worker::FAR;

/// How much of a retry's delay is left to chance.
///
/// Equal is the default, not full: full jitter spreads best, but may come at once, and would put a failing dependency under
/// load exactly when it fails. Half of the delay is kept, and the other half still spreads what failed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jitter {
    /// Nothing: the same delay for all.
    None,
    /// Half: between half the delay and all of it.
    #[default]
    Equal,
    /// All: between nothing and the delay.
    Full,
}

/// When a failed message is tried again: exponential backoff with jitter, until so many attempts or such an age.
///
/// By default after about 1 s, twice as long each time, at most 5 minutes, 10 attempts: some 8 minutes in all. The chance
/// is drawn from the message's id and the attempt, so that a policy always gives the same delays for the same message.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    initial: Duration,
    factor: f64,
    max_delay: Duration,
    jitter: Jitter,
    max_attempts: u32,
    max_age: Option<Duration>,
    seed: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            factor: 2.0,
            max_delay: Duration::from_secs(5 * 60),
            jitter: Jitter::default(),
            max_attempts: 10,
            max_age: None,
            seed: 0,
        }
    }
}

impl RetryPolicy {
    /// One attempt only.
    pub fn never() -> Self {
        Self::default().max_attempts(1)
    }

    /// The same delay before each attempt, without jitter.
    pub fn fixed(delay: Duration) -> Self {
        Self { initial: delay, factor: 1.0, max_delay: delay, jitter: Jitter::None, ..Self::default() }
    }

    /// The delay before the second attempt.
    pub fn initial(mut self, delay: Duration) -> Self {
        self.initial = delay;
        self
    }

    /// By how much each delay is longer than the one before; at least 1.
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor.max(1.0);
        self
    }

    /// The longest delay.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// How much of a delay is left to chance.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// How many attempts there are in all, the first included; at least 1.
    ///
    /// A worker that is killed leaves a delivery without an outcome on each message that it held, begun or not, and those
    /// count where the broker counts deliveries: a message that kills its worker each time takes its neighbours along. Where
    /// that can happen, hold few in advance, as a worker does that [opens its consumer](crate::Worker::opening) itself.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }

    /// No attempt begins once the message is older: since it was made, or, where it does not say, since its first failure.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Draws other chances from the same ids.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The delay before the attempt after this one (from 1), of the message of this id.
    pub fn delay(&self, attempt: u32, id: &str) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let most = self.max_delay.as_secs_f64();
        let whole = (self.initial.as_secs_f64() * self.factor.powi(exponent)).min(most);
        let kept = match self.jitter {
            Jitter::None => 1.0,
            Jitter::Equal => 0.5,
            Jitter::Full => 0.0,
        };
        let delay = whole * (kept + (1.0 - kept) * self.chance(attempt, id));
        Duration::try_from_secs_f64(delay).unwrap_or(self.max_delay)
    }

    /// At least 0 and below 1.
    #[expect(clippy::cast_precision_loss, reason = "52 bits are exact")]
    fn chance(&self, attempt: u32, id: &str) -> f64 {
        let mut hasher = DefaultHasher::new();
        (self.seed, attempt, id).hash(&mut hasher);
        (hasher.finish() >> 12) as f64 / (1_u64 << 52) as f64
    }

    /// How long a failed message waits for its next attempt; `None` where there is none.
    pub(crate) fn next(
        &self,
        delivery: &Delivery,
        error: &HandlerError,
        longest: Option<Duration>,
    ) -> Option<Duration> {
        if error.is_permanent() || delivery.attempt() >= self.max_attempts {
            return None;
        }
        let delay = self.delay(delivery.attempt(), delivery.id());
        let delay = error.retry_after().map_or(delay, |after| after.max(delay));
        let delay = longest.map_or(delay, |longest| delay.min(longest)).min(FAR);
        let too_old = self.max_age.is_some_and(|max| age(delivery).saturating_add(delay) > max);
        (!too_old).then_some(delay)
    }

    /// Whether all attempts were made, without one of them giving up itself: each ended the worker.
    pub(crate) fn is_exhausted(&self, attempt: u32) -> bool {
        attempt > self.max_attempts
    }
}

fn age(delivery: &Delivery) -> Duration {
    let first_failure =
        || delivery.history().and_then(|history| history.failures().first()).map(|first| first.at);
    let since = delivery.envelope().time.or_else(first_failure).unwrap_or_else(|| delivery.received_at());
    Duration::from_millis(u64::try_from(Timestamp::now().millis_since(since)).unwrap_or(0))
}

/// The longest delay that the transport can do for a retry.
pub(crate) fn longest(capabilities: &Capabilities) -> Option<Duration> {
    match (capabilities.retry, capabilities.lease) {
        (RetryMeans::Republish, _) => capabilities.limits.delay,
        (RetryMeans::InPlace, Lease::Renewable(max)) => max,
        (RetryMeans::InPlace, Lease::Fixed(_) | Lease::None) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let policy = RetryPolicy::default().jitter(Jitter::None).max_delay(Duration::from_secs(10));
        let seconds: Vec<_> = (1..=6).map(|attempt| policy.delay(attempt, "m").as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
        assert_eq!(policy.delay(u32::MAX, "m"), Duration::from_secs(10));
    }

    #[test]
    fn jitter_is_the_messages_own_and_always_the_same() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.delay(3, "a"), policy.delay(3, "a"));
        assert_ne!(policy.delay(3, "a"), policy.delay(3, "b"));
        assert_ne!(policy.delay(3, "a"), policy.clone().seed(1).delay(3, "a"));
        // Spread over the whole half that is left to chance.
        let delays: Vec<_> = (0..1000).map(|n| policy.delay(1, &n.to_string()).as_millis()).collect();
        let below = delays.iter().filter(|millis| **millis < 750).count();
        assert!((400..600).contains(&below), "{below} of 1000 in the lower half");
    }

    proptest! {
        #[test]
        fn every_delay_is_within_its_bounds(
            initial in 0_u64..100_000, factor in -1.0_f64..1e9, max in 0_u64..1_000_000, attempt: u32, id: String, seed: u64,
        ) {
            let (initial, max) = (Duration::from_millis(initial), Duration::from_millis(max));
            let policy = RetryPolicy::default().initial(initial).factor(factor).max_delay(max).seed(seed);
            let whole = policy.clone().jitter(Jitter::None).delay(attempt, &id);
            // A float's rounding apart.
            let slack = Duration::from_micros(1);
            prop_assert!(whole <= max + slack && whole + slack >= initial.min(max));
            let full = policy.clone().jitter(Jitter::Full).delay(attempt, &id);
            let equal = policy.jitter(Jitter::Equal).delay(attempt, &id);
            prop_assert!(full <= whole + slack);
            prop_assert!(equal <= whole + slack && equal + slack >= whole / 2);
        }

        #[test]
        fn delays_never_shrink_without_jitter(attempt in 1_u32..1000, factor in 1.0_f64..10.0) {
            let policy = RetryPolicy::default().factor(factor).jitter(Jitter::None);
            prop_assert!(policy.delay(attempt, "m") <= policy.delay(attempt + 1, "m"));
        }
    }
}
