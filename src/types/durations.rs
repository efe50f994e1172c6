//! Counting durations: in buckets of four to each doubling, from a microsecond on, so that an estimate of a
//! percentile is within an eighth of it.

use std::time::Duration;

/// How many buckets there are; the last is for whatever is longer.
pub const BUCKETS: usize = 160;

/// The bucket of a duration.
#[must_use]
pub fn bucket(span: Duration) -> u8 {
    let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
    let doublings = u64::from(micros.ilog2());
    let quarter = if doublings < 2 { 0 } else { (micros >> (doublings - 2)) & 3 };
    u8::try_from((doublings * 4 + quarter).min(BUCKETS as u64 - 1)).unwrap_or(u8::MAX)
}

/// The middle of a bucket, in seconds.
#[must_use]
pub fn middle(bucket: u8) -> f64 {
    let (doublings, quarter) = (f64::from(bucket / 4), f64::from(bucket % 4));
    // From `4 + quarter` to one more, in quarters of the power of two below.
    (4.5 + quarter) / 4.0 * doublings.exp2() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_within_an_eighth_of_its_middle(micros in 8_u64..3_600_000_000) {
            let span = Duration::from_micros(micros);
            let ratio = middle(bucket(span)) / span.as_secs_f64();
            prop_assert!((0.875..=1.125).contains(&ratio), "{ratio}");
        }

        #[test]
        fn longer_is_never_in_an_earlier_bucket(a in 0_u64..u64::MAX / 2, more in 0_u64..u64::MAX / 2) {
            let [short, long] = [a, a + more].map(Duration::from_micros);
            prop_assert!(bucket(short) <= bucket(long));
        }
    }
}
