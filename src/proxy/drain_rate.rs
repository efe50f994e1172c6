//! How fast a variant's slots come free: what `Retry-After` is computed from.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Slots freed per second, smoothed over about ten seconds by [`DrainRate::tick`].
#[derive(Debug, Default)]
pub(super) struct DrainRate {
    freed: AtomicU64,
    seen: AtomicU64,
    /// Per second, in thousandths.
    rate_milli: AtomicU32,
}

/// Clients are told to come back within this many seconds at the latest.
const LONGEST_SECONDS: u32 = 60;
/// The weight of one new second.
const NEWEST: f64 = 0.2;

impl DrainRate {
    /// A slot came free.
    pub(super) fn freed(&self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes in what happened in the `seconds` since the last tick. One caller only.
    pub(super) fn tick(&self, seconds: f64) {
        let freed = self.freed.load(Ordering::Relaxed);
        let new = freed - self.seen.swap(freed, Ordering::Relaxed);
        let now = new as f64 / seconds.max(0.001);
        let before = f64::from(self.rate_milli.load(Ordering::Relaxed)) / 1000.0;
        let rate =
            if before == 0.0 { now } else { before + (NEWEST * seconds).min(1.0) * (now - before) };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is positive, and the cast saturates"
        )]
        self.rate_milli.store((rate * 1000.0) as u32, Ordering::Relaxed);
    }

    /// How long until `waiting` requests have had their turn: whole seconds, 1 to 60; 60 where nothing
    /// was freed lately.
    pub(super) fn seconds_to_drain(&self, waiting: u32) -> u32 {
        let rate = u64::from(self.rate_milli.load(Ordering::Relaxed));
        if rate == 0 {
            return if waiting == 0 { 1 } else { LONGEST_SECONDS };
        }
        let seconds = (u64::from(waiting) * 1000).div_ceil(rate);
        u32::try_from(seconds).unwrap_or(LONGEST_SECONDS).clamp(1, LONGEST_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_length_over_rate() {
        let rate = DrainRate::default();
        assert_eq!(rate.seconds_to_drain(5), 60);
        for _ in 0..20 {
            rate.freed();
        }
        rate.tick(2.0);
        assert_eq!(rate.seconds_to_drain(95), 10);
        assert_eq!(rate.seconds_to_drain(0), 1);
        assert_eq!(rate.seconds_to_drain(1_000_000), 60);
        for _ in 0..200 {
            rate.tick(1.0);
        }
        assert_eq!(rate.seconds_to_drain(5), 60, "nothing has been freed for long");
    }
}
