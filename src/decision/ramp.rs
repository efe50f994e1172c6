//! Slow start: how many slots a copy is given while it is new.

use std::time::Duration;

/// The slots of a backend that has been in the table for `age`: from 1 up to all `slots` over `slow_start`,
/// evenly; at once where that is zero. Never fewer as it grows older.
#[must_use]
pub fn allowed(slots: u32, age: Duration, slow_start: Duration) -> u32 {
    if age >= slow_start {
        return slots;
    }
    let share = age.as_secs_f64() / slow_start.as_secs_f64();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a u32 fits a u32"
    )]
    let ramped = (f64::from(slots) * share).ceil() as u32;
    ramped.clamp(1, slots.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn grows_evenly_from_one_to_all() {
        let at = |seconds| allowed(20, Duration::from_secs(seconds), Duration::from_secs(10));
        assert_eq!([at(0), at(1), at(5), at(9), at(10), at(99)], [1, 2, 10, 18, 20, 20]);
        assert_eq!(allowed(20, Duration::ZERO, Duration::ZERO), 20);
    }

    proptest! {
        #[test]
        fn never_shrinks_never_zero_never_too_many(
            slots in 1_u32..10_000, slow_ms in 0_u64..100_000, a in 0_u64..200_000, b in 0_u64..200_000,
        ) {
            let allowed = |ms| allowed(slots, Duration::from_millis(ms), Duration::from_millis(slow_ms));
            let (young, old) = (a.min(b), a.max(b));
            prop_assert!(1 <= allowed(young) && allowed(young) <= allowed(old) && allowed(old) <= slots);
        }
    }
}
