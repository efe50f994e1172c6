//! How many requests a caller may send: a token bucket in one number, as the generic cell rate algorithm has
//! it (ITU-T I.371, the virtual scheduling algorithm). A bucket of `burst` tokens fills by `per_minute` a
//! minute; each request takes one.
//!
//! What is kept is the moment at which the bucket will be full again: a request moves it on by the time that
//! one token takes, unless it would then lie further ahead than a whole bucket takes. So there is nothing to
//! refill, and threads share it without a lock.
//!
//! Properties, each tested: P1 over any span of `t` seconds, no more than `burst` + `per_minute` × `t` / 60
//! requests pass; P2 one that is refused passes after the wait that it was told, if no other came between, and
//! not a millisecond sooner; P3 one that keeps to the rate is never refused; P4 what is refused takes nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::access::RateLimit;

/// Of time, in what is counted here.
const MINUTE_NS: u64 = 60_000_000_000;

/// One caller's bucket, full to begin with.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at_ns: AtomicU64,
}

/// The bucket is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Empty {
    /// So long until the next token, rounded up.
    pub wait_ms: u64,
}

impl Bucket {
    /// Takes a token. `now_ns` counts from any moment that is the same for all calls, as `limit` is: a changed
    /// one needs a bucket of its own.
    ///
    /// # Errors
    /// [`Empty`] when there is none; nothing is taken then.
    pub fn take(&self, limit: RateLimit, now_ns: u64) -> Result<(), Empty> {
        let token = MINUTE_NS / u64::from(limit.per_minute.max(1));
        let whole = token * u64::from(limit.burst.max(1));
        let mut wait = 0;
        let next = |full_at: u64| {
            let full_at = full_at.max(now_ns) + token;
            wait = full_at.saturating_sub(now_ns + whole);
            (wait == 0).then_some(full_at)
        };
        match self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(_) => Ok(()),
            Err(_) => Err(Empty { wait_ms: wait.div_ceil(1_000_000) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(per_minute: u32, burst: u32) -> RateLimit {
        RateLimit { per_minute, burst }
    }

    proptest! {
        /// P1, and P4: what was refused before makes no difference.
        #[test]
        fn no_span_has_more_than_the_rate_and_a_burst(
            per_minute in 1_u32..100_000,
            burst in 1_u32..50,
            gaps_ms in proptest::collection::vec(0_u64..2_000, 1..200),
        ) {
            let bucket = Bucket::default();
            let (mut now_ms, mut passed) = (0, Vec::new());
            for gap_ms in gaps_ms {
                now_ms += gap_ms;
                if bucket.take(limit(per_minute, burst), now_ms * 1_000_000).is_ok() {
                    passed.push(now_ms);
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (last, to) in passed.iter().enumerate().skip(first) {
                    let most = f64::from(burst)
                        + f64::from(per_minute) * ((to - from) as f64 / 60_000.0);
                    // A token's time is a whole number of nanoseconds: a hair more may pass.
                    prop_assert!((last - first + 1) as f64 <= most + 1.001, "{from} to {to}");
                }
            }
        }

        /// P2.
        #[test]
        fn the_wait_that_is_told_is_the_one_it_takes(
            per_minute in 1_u32..100_000,
            burst in 1_u32..50,
            start in 0_u64..1_000_000,
        ) {
            let bucket = Bucket::default();
            let at = |ms: u64| start + ms * 1_000_000;
            let limit = limit(per_minute, burst);
            for _ in 0..burst {
                prop_assert_eq!(bucket.take(limit, at(0)), Ok(()));
            }
            let Err(Empty { wait_ms }) = bucket.take(limit, at(0)) else {
                return Err(TestCaseError::fail("the burst was more than it is"));
            };
            prop_assert!(bucket.take(limit, at(wait_ms - 1)).is_err());
            prop_assert_eq!(bucket.take(limit, at(wait_ms)), Ok(()));
        }

        /// P3.
        #[test]
        fn whoever_keeps_to_the_rate_is_never_refused(
            per_minute in 1_u32..10_000,
            burst in 1_u32..5,
        ) {
            let bucket = Bucket::default();
            for number in 0..500 {
                let due = MINUTE_NS.div_ceil(u64::from(per_minute)) * number;
                prop_assert_eq!(bucket.take(limit(per_minute, burst), due), Ok(()));
            }
        }
    }
}
