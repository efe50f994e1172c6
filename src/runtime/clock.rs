//! The clock. Wall time for what is durable or shown, monotonic time for spans.

#![allow(clippy::disallowed_methods, reason = "this is the one module that reads the clock")]

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

static LATEST: Mutex<Option<Told>> = Mutex::new(None);

/// Wall time that never goes back within this process and never stands still: where the clock is set back it goes
/// on from there by monotonic time, a tenth slower, until the clock has caught up. So timers and periods go on, and
/// what was told before is not told again.
#[must_use]
pub fn now() -> Timestamp {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
    let told = Told::next(*latest, wall, Instant::now());
    *latest = Some(told);
    Timestamp(u64::try_from(told.time.as_millis()).unwrap_or(u64::MAX))
}

/// What the clock last told, since 1970, and when.
#[derive(Debug, Clone, Copy)]
struct Told {
    time: Duration,
    at: Instant,
}

impl Told {
    fn next(latest: Option<Self>, wall: Duration, at: Instant) -> Self {
        let by_monotonic = latest.map_or(Duration::ZERO, |latest| {
            latest.time + at.saturating_duration_since(latest.at) * 9 / 10
        });
        // Threads may have read the two in another order than they come here.
        let at = latest.map_or(at, |latest| latest.at.max(at));
        Self { time: wall.max(by_monotonic), at }
    }
}

/// Wall time in nanoseconds since 1970, as it is: it may go back. For what others measure too.
#[must_use]
pub fn wall_nanos() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

/// Monotonic time, for spans.
#[must_use]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Milliseconds since the first call in this process, at least 1: monotonic, and small enough for an atomic.
#[must_use]
pub fn uptime_ms() -> u64 {
    uptime_ms_at(Instant::now())
}

/// The same at `at`.
#[must_use]
pub fn uptime_ms_at(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(|| at);
    u64::try_from(at.saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX) + 1
}

/// Nanoseconds from the first call in this process to `at`; 0 for what was before.
#[must_use]
pub fn uptime_ns_at(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(|| at);
    u64::try_from(at.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back() {
        let first = now();
        assert!(now() >= first);
        assert!(first.0 > 1_600_000_000_000);
    }

    #[test]
    fn a_clock_that_is_set_back_goes_on_more_slowly_until_it_has_caught_up() {
        let (start, wall) = (Instant::now(), Duration::from_secs(1_700_000_000));
        let seconds = Duration::from_secs;
        let mut told = Told::next(None, wall, start);
        let mut at = |elapsed: u64, wall: Duration| {
            told = Told::next(Some(told), wall, start + seconds(elapsed));
            told.time
        };
        assert_eq!(at(10, wall + seconds(10)), wall + seconds(10));
        // An hour back. Each second counts for nine tenths, however often it is asked for.
        let back = seconds(1_700_000_000 - 3_600);
        assert_eq!(at(20, back + seconds(20)), wall + seconds(10) + seconds(9));
        for elapsed in 21..=1_010 {
            at(elapsed, back + seconds(elapsed));
        }
        assert_eq!(at(1_010, back + seconds(1_010)), wall + seconds(10) + seconds(900));
        // Ten hours later it has caught up, and it is the clock again.
        assert_eq!(at(36_011, back + seconds(36_011)), back + seconds(36_011));
        assert_eq!(at(36_100, back + seconds(36_100)), back + seconds(36_100));
        // One that is set forward is followed, and one thread's older view changes nothing.
        assert_eq!(at(36_200, wall + seconds(50_000)), wall + seconds(50_000));
        assert_eq!(at(36_199, wall + seconds(49_999)), wall + seconds(50_000));
    }
}
