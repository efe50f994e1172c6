//! Exponential back-off with jitter, as one pure function: the random draw is an argument.

use std::time::Duration;

/// The wait after the `attempt`-th failure in a row (1 is the first): `base · 2^(attempt − 1)`, at most
/// `cap`, of which the upper half is drawn ("equal jitter"), so that many waiters spread out and none
/// comes back at once.
#[must_use]
pub fn backoff(base: Duration, cap: Duration, attempt: u32, draw: u64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(31);
    let full = base.saturating_mul(1 << doublings).min(cap);
    let half = u64::try_from((full / 2).as_millis()).unwrap_or(u64::MAX / 2);
    full.saturating_sub(Duration::from_millis(half)) + Duration::from_millis(draw % (half + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stays_between_half_and_whole_of_the_capped_power(
            base in 1_u64..5_000,
            cap in 1_u64..600_000,
            attempt in 0_u32..80,
            draw: u64,
        ) {
            let full = u128::from(base)
                .saturating_mul(1 << attempt.saturating_sub(1).min(31))
                .min(u128::from(cap));
            let wait = backoff(
                Duration::from_millis(base),
                Duration::from_millis(cap),
                attempt,
                draw,
            )
            .as_millis();
            prop_assert!(wait <= full && wait * 2 >= full, "{wait} of {full}");
        }
    }

    #[test]
    fn doubles_from_the_base_to_the_cap() {
        let at = |attempt| {
            backoff(Duration::from_secs(1), Duration::from_secs(30), attempt, 0).as_millis()
        };
        assert_eq!([at(1), at(2), at(3), at(6), at(40)], [500, 1000, 2000, 15_000, 15_000]);
    }
}
