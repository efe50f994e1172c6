//! How large numbers and how long durations may be. Far beyond any use, but small enough that sums and
//! products of them never overflow anywhere, and that a slip of the unit is noticed.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::reader::{Located, Table};

/// Instances of one variant or type.
pub(super) const INSTANCES: RangeInclusive<u32> = 0..=100_000;
/// Copies of a model in one instance.
pub(super) const COPIES: RangeInclusive<u32> = 1..=1_024;
/// Requests that one copy takes at once.
pub(super) const CONCURRENCY: RangeInclusive<u32> = 1..=1_000_000;
/// Requests that may wait.
pub(super) const QUEUE: RangeInclusive<u32> = 0..=1_000_000;
/// Shares of a hundred.
pub(super) const PERCENT: RangeInclusive<u32> = 0..=1_000;
/// Bad outcomes in a row.
pub(super) const EJECTION: RangeInclusive<u32> = 0..=1_000;
/// Shares of a whole.
pub(super) const SHARE: RangeInclusive<f64> = 0.0..=1.0;
/// Priorities of pools.
pub(super) const PRIORITY: RangeInclusive<u32> = 1..=1_000;
/// Prices, powers and weights.
pub(super) const AMOUNT: RangeInclusive<f64> = 0.0..=1_000_000_000.0;

/// The longest duration: a year, as durations in the file count it.
const LONGEST: Duration = Duration::from_secs(31_557_600);
/// The shortest one where none at all makes no sense.
const SHORTEST: Duration = Duration::from_millis(1);

/// Whether a duration may be zero.
#[derive(Debug, Clone, Copy)]
pub(super) enum Span {
    /// From nothing to a year.
    Any,
    /// From a millisecond to a year.
    Positive,
}

impl Span {
    fn range(self) -> RangeInclusive<Duration> {
        match self {
            Self::Any => Duration::ZERO..=LONGEST,
            Self::Positive => SHORTEST..=LONGEST,
        }
    }
}

/// The duration `key`, if it is there and within `span`.
pub(super) fn duration(table: &Table<'_>, key: &'static str, span: Span) -> Option<Duration> {
    duration_at(table, key, span).map(|found| found.value)
}

/// As [`duration`], with its place.
pub(super) fn duration_at(
    table: &Table<'_>,
    key: &'static str,
    span: Span,
) -> Option<Located<Duration>> {
    let show = |duration: &Duration| humantime::format_duration(*duration).to_string();
    table.get_in(key, span.range(), show)
}

/// The duration `key` within `span`, or what holds without it.
pub(super) fn duration_or(
    table: &Table<'_>,
    key: &'static str,
    span: Span,
    default: Duration,
) -> Duration {
    duration(table, key, span).unwrap_or(default)
}
