//! The controller's own source of jitter: splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
//! number generators", 2014), so that one seed makes the whole run.

use std::time::Duration;

/// A seeded generator.
#[derive(Debug, Clone)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A draw, uniform over `u64`.
    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A span within a tenth of `span`, so that periodic work of many does not fall together.
    pub(super) fn around(&mut self, span: Duration) -> Duration {
        let tenth = u64::try_from(span.as_millis() / 10).unwrap_or(0);
        let off = Duration::from_millis(self.draw() % (2 * tenth + 1));
        span.saturating_sub(Duration::from_millis(tenth)) + off
    }

    /// A span below `span`, for a first time among many.
    pub(super) fn within(&mut self, span: Duration) -> Duration {
        let whole = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.draw() % whole)
    }
}
