//! What was measured of a variant: at a fine resolution (10 s) for three hours, and by the minute for 15 days; for
//! the periods of its policies that are no multiple of those, in slots as long as the periods, as far back as
//! the policies look. Percentiles are known for the three hours.
//!
//! Some metrics are counted (requests answered, what they took), the others are sampled. However often that is,
//! the `Sum` and the `SampleCount` of a sampled one are those of a sample every 10 s, or of [`SAMPLES`] in a shorter
//! period: what another policy needs does not change them.
//!
//! Memory is bounded: each series has a fixed number of slots, a store [`MOST_SERIES`]. What is idle or constant costs
//! next to nothing ([`super::slots`]). At its bound a series takes [`Measured::bytes`]; a test measures it. All
//! variants together have [`MOST_RUNS`] for their long ranges, each an equal share: past it the oldest minutes of
//! a variant's longest series go. Reaching either bound is told once ([`Measured::take_news`]).

use std::collections::BTreeMap;
use std::iter::once;
use std::time::Duration;

use super::slots::{Own, Series, Summary, Window, millis};
use crate::types::durations::middle;
use crate::types::scaling::{Metric, Statistic};
use crate::types::{InstanceTypeName, Timestamp};

pub use super::slots::FINE;

/// Samples of each period, at least.
pub const SAMPLES: u32 = 5;
/// Series of one store.
pub const MOST_SERIES: usize = 4_096;
/// Entries of the long ranges over all variants: 1 GiB of 24 bytes each, with a sixteenth of it as room to grow.
pub const MOST_RUNS: usize = 42_000_000;

/// The periods that a question is about: `count` of them, the last of which ends at `end`.
#[derive(Debug, Clone, Copy)]
pub struct Periods {
    /// The end of the last one, a multiple of the length.
    pub end: Timestamp,
    /// How long each is.
    pub length: Duration,
    /// How many.
    pub count: u32,
}

impl Periods {
    /// The last `count` that are over at `now`.
    #[must_use]
    pub fn complete(now: Timestamp, length: Duration, count: u32) -> Self {
        let millis = millis(length);
        Self { end: Timestamp(now.0 / millis * millis), length, count }
    }

    /// Each one's beginning and end, the oldest first.
    fn each(self) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let millis = millis(self.length);
        (0..u64::from(self.count)).rev().map(move |back| {
            let end = self.end.0.saturating_sub(back * millis);
            (Timestamp(end.saturating_sub(millis)), Timestamp(end))
        })
    }

    /// The samples that a sum over each of them is told of.
    fn samples(self) -> f64 {
        (self.length.as_secs_f64() / FINE.as_secs_f64()).max(f64::from(SAMPLES))
    }
}

/// A bound that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Minutes are forgotten before their 15 days are over.
    Minutes,
    /// There are [`MOST_SERIES`]; another one is not kept.
    Series,
}

/// All series of a variant.
#[derive(Debug)]
pub struct Measured {
    own: Vec<Own>,
    series: BTreeMap<(Metric, Option<InstanceTypeName>), Series>,
    /// The moments at which was sampled.
    moments: Series,
    /// Entries of the long ranges, and how many there may be.
    runs: usize,
    most_runs: usize,
    /// Bounds that were reached, and those of which it was told.
    reached: Vec<Limit>,
    told: usize,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            own: Vec::new(),
            series: BTreeMap::new(),
            moments: Series::default(),
            runs: 0,
            most_runs: MOST_RUNS,
            reached: Vec::new(),
            told: 0,
        }
    }
}

impl Measured {
    /// From now on keeps what these questions need, each so many periods of a length.
    pub fn set_periods(&mut self, all: impl Iterator<Item = (Duration, u32)>) {
        let mut wanted: BTreeMap<u64, u32> = BTreeMap::new();
        for (length, count) in all {
            let most = wanted.entry(millis(length)).or_default();
            *most = count.max(*most);
        }
        self.own = wanted.into_iter().filter_map(|(ms, count)| Own::needed(ms, count)).collect();
        for series in self.series.values_mut().chain(once(&mut self.moments)) {
            series.keep(&self.own);
        }
    }

    /// Keeps to its share of the memory from now on, where so many have one.
    pub fn share_with(&mut self, variants: usize) {
        self.most_runs = MOST_RUNS / variants.max(1);
        self.keep_to_share();
    }

    fn keep_to_share(&mut self) {
        while self.runs > self.most_runs {
            let all = self.series.values_mut().chain(once(&mut self.moments));
            let Some(longest) = all.max_by_key(|series| series.runs()) else { return };
            longest.forget_oldest();
            self.runs -= 1;
            self.reach(Limit::Minutes);
        }
    }

    fn reach(&mut self, limit: Limit) {
        if !self.reached.contains(&limit) {
            self.reached.push(limit);
        }
    }

    /// A bound that was reached for the first time, of which it was not told yet.
    pub fn take_news(&mut self) -> Option<Limit> {
        let news = self.reached.get(self.told).copied();
        self.told += usize::from(news.is_some());
        news
    }

    /// A moment at which is sampled whatever there is to sample.
    pub fn sampled(&mut self, at: Timestamp) {
        self.runs -= self.moments.runs();
        self.moments.record(at, &self.own, &Summary::of(1, 1.0, 1.0, 1.0), &[]);
        self.runs += self.moments.runs();
        self.keep_to_share();
    }

    /// One sample.
    pub fn record(
        &mut self,
        at: Timestamp,
        metric: Metric,
        instance_type: Option<&InstanceTypeName>,
        value: f64,
    ) {
        self.put(at, metric, instance_type, &Summary::of(1, value, value, value), &[]);
    }

    /// Something happened so often: the sum of a period counts it.
    pub fn count(
        &mut self,
        at: Timestamp,
        metric: Metric,
        instance_type: Option<&InstanceTypeName>,
        times: u64,
    ) {
        let summary = Summary::of(times, times as f64, 1.0, 1.0);
        if times > 0 {
            self.put(at, metric, instance_type, &summary, &[]);
        }
    }

    /// Durations, by bucket in ascending order.
    pub fn durations(
        &mut self,
        at: Timestamp,
        metric: Metric,
        instance_type: &InstanceTypeName,
        buckets: &[(u8, u32)],
    ) {
        let (Some((least, _)), Some((most, _))) = (buckets.first(), buckets.last()) else { return };
        let count = buckets.iter().map(|(_, count)| u64::from(*count)).sum();
        let sum = buckets.iter().map(|(bucket, count)| middle(*bucket) * f64::from(*count)).sum();
        let summary = Summary::of(count, sum, middle(*least), middle(*most));
        self.put(at, metric, Some(instance_type), &summary, buckets);
    }

    fn put(
        &mut self,
        at: Timestamp,
        metric: Metric,
        instance_type: Option<&InstanceTypeName>,
        summary: &Summary,
        buckets: &[(u8, u32)],
    ) {
        let key = (metric, instance_type.cloned());
        if self.series.len() >= MOST_SERIES && !self.series.contains_key(&key) {
            return self.reach(Limit::Series);
        }
        let series = self.series.entry(key).or_default();
        self.runs -= series.runs();
        series.record(at, &self.own, summary, buckets);
        self.runs += series.runs();
        self.keep_to_share();
    }

    /// The statistic of each period, the oldest first. Without a type all types are taken together.
    #[must_use]
    pub fn query(
        &self,
        metric: Metric,
        instance_type: Option<&InstanceTypeName>,
        statistic: Statistic,
        periods: Periods,
    ) -> Vec<Option<f64>> {
        let of_metric: Vec<&Series> = self
            .series
            .iter()
            .filter(|((other, kind), _)| {
                *other == metric && (instance_type.is_none() || kind.as_ref() == instance_type)
            })
            .map(|(_, series)| series)
            .collect();
        let adds_up = matches!(statistic, Statistic::Sum | Statistic::SampleCount);
        let by_samples = adds_up && metric.is_sampled();
        let each = periods.each().map(|(from, to)| {
            let mut window = Window::EMPTY;
            for series in &of_metric {
                series.collect(from, to, &mut window);
            }
            let value = window.statistic(statistic)?;
            if !by_samples {
                return Some(value);
            }
            let mut moments = Window::EMPTY;
            self.moments.collect(from, to, &mut moments);
            let moments = moments.statistic(Statistic::SampleCount);
            Some(moments.map_or(value, |moments| value * periods.samples() / moments))
        });
        each.collect()
    }

    /// Memory that all of it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.series.values().chain(once(&self.moments)).map(Series::bytes).sum()
    }
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
