//! Points in time as the deciders see them: milliseconds since the Unix epoch, handed in as arguments.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch. Durable records hold it, so it means the same after a restart.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// How long ago `earlier` was; zero if it is not in the past.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// How long until `later`; zero if it has passed.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        later.since(self)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The first millisecond of the year 10000, which RFC 3339 has no way to write.
const YEAR_10000: u64 = 253_402_300_800_000;

impl Timestamp {
    /// Whether it can be written as RFC 3339 has it.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.0 < YEAR_10000
    }
}

impl fmt::Display for Timestamp {
    /// As RFC 3339 has it, up to its last year. Whatever a file or a sum makes of time is shown somehow: to fail
    /// here would be a panic in whoever shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_writable() {
            return f.write_str("after the year 9999");
        }
        let time = std::time::UNIX_EPOCH + Duration::from_millis(self.0);
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let at = Timestamp(5);
        assert_eq!(at.since(Timestamp(9)), Duration::ZERO);
        assert_eq!(at.until(Timestamp(9)), Duration::from_millis(4));
        assert_eq!(at - Duration::from_secs(1), Timestamp(0));
        assert_eq!(Timestamp(u64::MAX) + Duration::MAX, Timestamp(u64::MAX));
    }

    #[test]
    fn shows_as_rfc3339_and_beyond_its_last_year_as_well() {
        let last = Timestamp(YEAR_10000 - 1);
        assert_eq!(last.to_string(), "9999-12-31T23:59:59.999Z");
        for beyond in [last + Duration::from_millis(1), Timestamp(u64::MAX)] {
            assert_eq!(format!("{beyond}"), "after the year 9999");
        }
        assert_eq!(Timestamp(1_500).to_string(), "1970-01-01T00:00:01.500Z");
    }
}
