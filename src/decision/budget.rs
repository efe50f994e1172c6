//! The retry budget of a variant: a token bucket that counts tries when they are decided, so that retries
//! in back-off are in it, against first tries.
//!
//! Over any span, retries ≤ first tries × `percent` / 100 + [`BURST`]: with every worker saying "not run",
//! tries stay under 1.2 × requests + 10. The death of a worker breaks all that it has at once, far more than a
//! burst, and is paid for on credit: up to as many replays as it takes requests ([`RetryBudget::may_replay`]),
//! which later first tries pay back before anything else is retried. So the deaths of many in a row are not.
//! (A budget on *active* requests escapes itself in back-off and
//! shrinks as requests fail: both have happened to others.)

use std::sync::atomic::{AtomicI64, Ordering};

/// Retries that are allowed before any first try has earned one.
pub const BURST: i64 = 10;

/// What one retry costs; a first try earns `percent` of it.
const COST: i64 = 100;
/// More than this is never saved up, so that a quiet day does not pay for a storm.
const MOST: i64 = BURST * COST;

/// Shared by all threads; no lock.
#[derive(Debug)]
pub struct RetryBudget {
    tokens: AtomicI64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { tokens: AtomicI64::new(MOST) }
    }
}

impl RetryBudget {
    /// A request is sent for the first time; it earns `percent` of a retry.
    pub fn first_try(&self, percent: u32) {
        // Full is the usual state, and then there is nothing to write.
        if self.tokens.load(Ordering::Relaxed) < MOST {
            let earn = |tokens: i64| Some((tokens + i64::from(percent)).min(MOST));
            let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
        }
    }

    /// Decides a retry: true pays for it.
    pub fn may_retry(&self) -> bool {
        self.pay_down_to(0)
    }

    /// Decides the replay of a request whose worker, which takes `slots` at once, broke off.
    pub fn may_replay(&self, slots: u32) -> bool {
        self.pay_down_to(-i64::from(slots) * COST)
    }

    fn pay_down_to(&self, least: i64) -> bool {
        let pay = |tokens: i64| (tokens - COST >= least).then(|| tokens - COST);
        self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order of first tries and retries, and however many of either.
        #[test]
        fn tries_stay_within_the_budget_over_any_span(
            steps in proptest::collection::vec((any::<bool>(), 1_u32..30), 0..60),
        ) {
            let budget = RetryBudget::default();
            let (mut first, mut retries) = (0_u64, 0_u64);
            for (is_first, times) in steps {
                for _ in 0..times {
                    if is_first {
                        budget.first_try(20);
                        first += 1;
                    } else if budget.may_retry() {
                        retries += 1;
                    }
                }
                prop_assert!(retries * 10 <= first * 2 + 100, "{} retries of {}", retries, first);
            }
        }
    }

    #[test]
    fn one_death_is_on_credit_and_the_next_is_not() {
        let budget = RetryBudget::default();
        let replays = |slots| (0..1_000).filter(|_| budget.may_replay(slots)).count();
        assert_eq!(replays(40), 50);
        assert!(!budget.may_retry(), "nothing is saved");
        assert_eq!(replays(40), 0);
        assert_eq!(replays(50), 10, "a larger one has more at stake");
        for _ in 0..250 {
            budget.first_try(20);
        }
        assert!(!budget.may_retry(), "the debt comes first");
        for _ in 0..5 {
            budget.first_try(20);
        }
        assert!(budget.may_retry());
    }

    #[test]
    fn when_everything_fails_a_fifth_is_retried() {
        let budget = RetryBudget::default();
        let retries = (0..10_000).filter(|_| {
            budget.first_try(20);
            budget.may_retry()
        });
        let retries = retries.count();
        assert!((2_000..=2_010).contains(&retries), "{retries}");
    }
}
