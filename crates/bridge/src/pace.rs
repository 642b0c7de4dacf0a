//! So many messages a second, and no more.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// Spreads messages evenly; what was not used in a tenth of a second is gone.
#[derive(Debug)]
pub(crate) struct Pace {
    each: Duration,
    burst: usize,
    /// When the next message may go; in the past, several may.
    next: Instant,
}

impl Pace {
    pub(crate) fn new(rate: NonZeroU32, now: Instant) -> Self {
        let burst = usize::try_from(rate.get() / 10).unwrap_or(1).max(1);
        Self { each: Duration::from_secs(1) / rate.get(), burst, next: now }
    }

    /// How many may go now; where none may, when the next one may.
    pub(crate) fn allowed(&self, now: Instant) -> Result<usize, Instant> {
        if self.next > now {
            return Err(self.next);
        }
        let saved = (now - self.next).as_nanos() / self.each.as_nanos().max(1);
        Ok(usize::try_from(saved).unwrap_or(usize::MAX).saturating_add(1).min(self.burst))
    }

    pub(crate) fn took(&mut self, count: usize, now: Instant) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let saved = self.each * u32::try_from(self.burst).unwrap_or(u32::MAX);
        let earliest = now.checked_sub(saved).unwrap_or(now);
        self.next = self.next.max(earliest) + self.each.saturating_mul(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_a_burst(rate in 1..5000_u32, waits in prop::collection::vec(0..300_u64, 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::new(NonZeroU32::new(rate).unwrap(), now);
            let mut sent = 0;
            for wait in waits {
                now += Duration::from_millis(wait);
                if let Ok(allowed) = pace.allowed(now) {
                    prop_assert!(allowed > 0);
                    pace.took(allowed, now);
                    sent += allowed as u64;
                }
                let most = (now - start).as_millis() as u64 * u64::from(rate) / 1000 + u64::from(rate / 10).max(1) + 1;
                prop_assert!(sent <= most, "{} of {}", sent, most);
            }
        }
    }

    #[test]
    fn who_asks_when_it_is_time_gets_the_whole_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(NonZeroU32::new(100).unwrap(), start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(10) {
            match pace.allowed(now) {
                Ok(_) => {
                    pace.took(1, now);
                    sent += 1;
                }
                Err(next) => now = next,
            }
        }
        assert_eq!(sent, 1000);
    }
}
