//! The clock. Wall time for what is durable or shown, monotonic time for spans.

#![allow(clippy::disallowed_methods, reason = "this is the one module that reads the clock")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

static LATEST: AtomicU64 = AtomicU64::new(0);

/// Wall time that never goes back within this process: a clock set back stands still until it has
/// caught up.
#[must_use]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    Timestamp(LATEST.fetch_max(now, Ordering::Relaxed).max(now))
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
    #[test]
    fn never_goes_back() {
        let first = super::now();
        assert!(super::now() >= first);
        assert!(first.0 > 1_600_000_000_000);
    }
}
