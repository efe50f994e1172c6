//! What became of the requests of each variant, and how long they waited. Waits are kept one by one (a
//! scenario's requests are bounded), so that percentiles are exact.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::types::VariantKey;

/// Of every variant that was asked for.
#[derive(Debug, Default)]
pub(in crate::sim) struct Tallies {
    by_variant: BTreeMap<VariantKey, Tally>,
}

/// Of one variant.
#[derive(Debug, Default)]
pub(in crate::sim) struct Tally {
    counts: RequestCounts,
    /// Those that got a slot at once.
    unwaited: u64,
    /// How long the others waited for theirs, in milliseconds.
    waits: Vec<u32>,
}

/// What became of requests. Those that are in none of the other counts run or wait at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// Sent by clients.
    pub asked: u64,
    /// Answered to the end.
    pub answered: u64,
    /// Refused because as many as may were waiting already (429).
    pub queue_full: u64,
    /// Refused because no slot came free in time (503).
    pub queue_timeout: u64,
    /// Refused because there was no proxy, or it had no table yet (503).
    pub no_instance: u64,
    /// Broken off because their instance ended.
    pub lost: u64,
}

/// Waits for a slot, in seconds, of the requests that got one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Waits {
    /// Half of them waited for no longer.
    pub p50_s: f64,
    /// 90 % did not.
    pub p90_s: f64,
    /// 99 % did not.
    pub p99_s: f64,
    /// Nobody did.
    pub max_s: f64,
}

/// Why a proxy refuses a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal {
    QueueFull,
    QueueTimeout,
    NoInstance,
}

impl Tallies {
    /// That of `variant`.
    pub(super) fn of(&mut self, variant: &VariantKey) -> &mut Tally {
        if !self.by_variant.contains_key(variant) {
            self.by_variant.insert(variant.clone(), Tally::default());
        }
        match self.by_variant.get_mut(variant) {
            Some(tally) => tally,
            None => unreachable!("it was just inserted"),
        }
    }

    /// Each variant's counts and waits.
    pub(in crate::sim) fn figures(
        &self,
    ) -> impl Iterator<Item = (&VariantKey, RequestCounts, Waits)> {
        self.by_variant.iter().map(|(key, tally)| (key, tally.counts, Waits::of([tally])))
    }

    /// All of them together.
    pub(in crate::sim) fn total(&self) -> (RequestCounts, Waits) {
        let mut counts = RequestCounts::default();
        for tally in self.by_variant.values() {
            counts.add(tally.counts);
        }
        (counts, Waits::of(self.by_variant.values()))
    }

    /// All counts together.
    pub(in crate::sim) fn counts(&self) -> RequestCounts {
        let mut counts = RequestCounts::default();
        self.by_variant.values().for_each(|tally| counts.add(tally.counts));
        counts
    }
}

impl Tally {
    /// One has come.
    pub(super) fn asked(&mut self) {
        self.counts.asked += 1;
    }

    /// One is refused.
    pub(super) fn refused(&mut self, why: Refusal) {
        match why {
            Refusal::QueueFull => self.counts.queue_full += 1,
            Refusal::QueueTimeout => self.counts.queue_timeout += 1,
            Refusal::NoInstance => self.counts.no_instance += 1,
        }
    }

    /// One got its slot after `wait`.
    pub(super) fn served(&mut self, wait: Duration) {
        match u32::try_from(wait.as_millis()).unwrap_or(u32::MAX) {
            0 => self.unwaited += 1,
            wait => self.waits.push(wait),
        }
    }

    /// One is done.
    pub(super) fn answered(&mut self) {
        self.counts.answered += 1;
    }

    /// The instance of one has ended.
    pub(super) fn lost(&mut self) {
        self.counts.lost += 1;
    }
}

impl Waits {
    fn of<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Self {
        let mut unwaited = 0;
        let mut waits = Vec::new();
        for tally in tallies {
            unwaited += tally.unwaited;
            waits.extend_from_slice(&tally.waits);
        }
        waits.sort_unstable();
        let count = unwaited + waits.len() as u64;
        // The least wait that so many of a hundred do not exceed.
        let at = |percent: u64| {
            let rank = (count * percent).div_ceil(100);
            let waited = rank.checked_sub(unwaited + 1).and_then(|at| usize::try_from(at).ok());
            let wait = waited.and_then(|at| waits.get(at)).copied();
            f64::from(wait.unwrap_or(0)) / 1000.0
        };
        Self { p50_s: at(50), p90_s: at(90), p99_s: at(99), max_s: at(100) }
    }
}

impl RequestCounts {
    /// Of those that have ended, the share that was answered; 1 if none has.
    #[must_use]
    pub fn availability(&self) -> f64 {
        let ended = self.answered + self.refused() + self.lost;
        if ended == 0 { 1.0 } else { self.answered as f64 / ended as f64 }
    }

    /// Refused for whatever reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.queue_full + self.queue_timeout + self.no_instance
    }

    fn add(&mut self, other: Self) {
        self.asked += other.asked;
        self.answered += other.answered;
        self.queue_full += other.queue_full;
        self.queue_timeout += other.queue_timeout;
        self.no_instance += other.no_instance;
        self.lost += other.lost;
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the figures are exact")]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_least_waits_that_so_many_do_not_exceed() {
        let mut tally = Tally::default();
        for wait in 0..100 {
            // Half of them do not wait.
            tally.served(Duration::from_secs(if wait < 50 { 0 } else { wait + 1 }));
        }
        let waits = Waits { p50_s: 0.0, p90_s: 90.0, p99_s: 99.0, max_s: 100.0 };
        assert_eq!(Waits::of([&tally]), waits);
        tally.served(Duration::from_secs(1));
        assert_eq!(Waits::of([&tally]).p50_s, 1.0);
        assert_eq!(Waits::of([]), Waits::default());
    }

    #[test]
    fn availability_is_of_those_that_have_ended() {
        assert_eq!(RequestCounts::default().availability(), 1.0);
        let counts = RequestCounts {
            asked: 30,
            answered: 15,
            queue_full: 1,
            queue_timeout: 2,
            no_instance: 1,
            lost: 1,
        };
        assert_eq!(counts.availability(), 0.75);
    }
}
