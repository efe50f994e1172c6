//! What was measured of a variant: at a fine resolution (10 s, or finer where a policy's periods are short)
//! for three hours, and by the minute for 15 days. Percentiles are known for the three hours.
//!
//! Memory is bounded: each series has a fixed number of slots, a store a fixed number of series, and slots
//! without data take none. Equal neighbours of the long range are kept as one, so that what is idle or
//! constant costs next to nothing. At its bound a series takes [`Series::bytes`]; a test measures it. All
//! variants together have [`MOST_RUNS`] for their long ranges, each an equal share: past it the oldest minutes of
//! a variant's longest series go.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::types::durations::middle;
use crate::types::scaling::{Metric, Statistic};
use crate::types::{InstanceTypeName, Timestamp};

/// The usual fine resolution.
pub const FINE: Duration = Duration::from_secs(10);
/// How far the fine resolution reaches back, in slots of [`FINE`]; finer ones reach as many slots back, and are kept
/// beside those.
const FINE_SLOTS: u64 = 1_080;
const COARSE_MS: u64 = 60_000;
/// 15 days of minutes.
const COARSE_SLOTS: u64 = 21_600;
/// Series of one store.
const MOST_SERIES: usize = 4_096;
/// Entries of the long ranges over all variants: 1 GiB.
pub const MOST_RUNS: usize = 1 << 25;

/// The samples of a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Summary {
    count: f32,
    sum: f32,
    least: f32,
    most: f32,
}

impl Summary {
    const NONE: Self = Self { count: 0.0, sum: 0.0, least: f32::INFINITY, most: f32::NEG_INFINITY };

    #[allow(clippy::cast_possible_truncation, reason = "seven digits are enough")]
    fn of(count: u64, sum: f64, least: f64, most: f64) -> Self {
        Self { count: count as f32, sum: sum as f32, least: least as f32, most: most as f32 }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
    }
}

/// A fine slot: its number, its samples, and how many fell into which bucket.
#[derive(Debug, Clone, PartialEq)]
struct Fine {
    slot: u64,
    summary: Summary,
    buckets: Vec<(u8, u32)>,
}

/// Minutes of equal samples.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    first: u64,
    last: u64,
    summary: Summary,
}

/// One metric of one type, over time.
#[derive(Debug, Default)]
struct Series {
    /// Slots of [`FINE`].
    usual: VecDeque<Fine>,
    /// The same in shorter ones, where those are wanted.
    shorter: VecDeque<Fine>,
    coarse: VecDeque<Run>,
    /// The minute under way.
    minute: Option<(u64, Summary)>,
}

impl Series {
    fn record(&mut self, at: Timestamp, fine_ms: u64, summary: &Summary, buckets: &[(u8, u32)]) {
        put(&mut self.usual, at.0 / millis(FINE), summary, buckets);
        if fine_ms < millis(FINE) {
            put(&mut self.shorter, at.0 / fine_ms, summary, buckets);
        }
        let minute = at.0 / COARSE_MS;
        self.forget_after(minute);
        match &mut self.minute {
            Some((current, sum)) if *current == minute => sum.add(summary),
            _ => {
                self.close_minute();
                self.minute = Some((minute, *summary));
            }
        }
    }

    /// A clock that was set back: what it had told of later is not known.
    fn forget_after(&mut self, minute: u64) {
        while let Some(run) = self.coarse.back_mut().filter(|run| run.last >= minute) {
            if run.first < minute {
                run.last = minute - 1;
                break;
            }
            self.coarse.pop_back();
        }
        self.minute = self.minute.take().filter(|(current, _)| *current <= minute);
    }

    fn close_minute(&mut self) {
        let Some((minute, summary)) = self.minute.take() else { return };
        match self.coarse.back_mut() {
            Some(run) if run.last + 1 == minute && run.summary == summary => run.last = minute,
            _ => self.coarse.push_back(Run { first: minute, last: minute, summary }),
        }
        let oldest = minute.saturating_sub(COARSE_SLOTS - 1);
        while let Some(run) = self.coarse.front_mut() {
            if run.last >= oldest {
                run.first = run.first.max(oldest);
                break;
            }
            self.coarse.pop_front();
        }
    }

    /// Adds what it has from `from` to `to`, itself not included.
    fn collect(&self, from: Timestamp, to: Timestamp, fine_ms: u64, into: &mut Window) {
        let since = |slots: &VecDeque<Fine>, length: u64| {
            slots.front().map_or(u64::MAX, |first| first.slot * length)
        };
        let (length, usual) = (to.0 - from.0, millis(FINE));
        // Longer slots tell nothing of what is shorter than they are.
        if fine_ms < usual && (from.0 >= since(&self.shorter, fine_ms) || length < usual) {
            return collect_from(&self.shorter, fine_ms, (from, to), into);
        }
        if from.0 >= since(&self.usual, usual) || length < COARSE_MS {
            return collect_from(&self.usual, usual, (from, to), into);
        }
        let (first, end) = (from.0.div_ceil(COARSE_MS), to.0.div_ceil(COARSE_MS));
        let begin = self.coarse.partition_point(|run| run.last < first);
        for run in self.coarse.range(begin..).take_while(|run| run.first < end) {
            let minutes = run.last.min(end - 1) + 1 - run.first.max(first);
            let times = minutes as f32;
            let all = Summary {
                count: run.summary.count * times,
                sum: run.summary.sum * times,
                ..run.summary
            };
            into.summary.add(&all);
        }
        if let Some((minute, summary)) = &self.minute
            && (first..end).contains(minute)
        {
            into.summary.add(summary);
        }
    }

    /// Memory that it takes.
    fn bytes(&self) -> usize {
        let slots = || self.usual.iter().chain(&self.shorter);
        let buckets: usize = slots().map(|one| one.buckets.capacity()).sum();
        (self.usual.capacity() + self.shorter.capacity()) * size_of::<Fine>()
            + buckets * size_of::<(u8, u32)>()
            + self.coarse.capacity() * size_of::<Run>()
    }
}

/// Adds to the slot, which becomes the latest.
fn put(slots: &mut VecDeque<Fine>, slot: u64, summary: &Summary, buckets: &[(u8, u32)]) {
    while slots.back().is_some_and(|last| last.slot > slot) {
        slots.pop_back();
    }
    match slots.back_mut() {
        Some(last) if last.slot == slot => {
            last.summary.add(summary);
            merge(&mut last.buckets, buckets);
        }
        _ => slots.push_back(Fine { slot, summary: *summary, buckets: buckets.to_vec() }),
    }
    while slots.front().is_some_and(|first| first.slot + FINE_SLOTS <= slot) {
        slots.pop_front();
    }
}

/// Adds what slots of this length have of a span.
fn collect_from(
    slots: &VecDeque<Fine>,
    length: u64,
    (from, to): (Timestamp, Timestamp),
    into: &mut Window,
) {
    let (first, end) = (from.0.div_ceil(length), to.0.div_ceil(length));
    let begin = slots.partition_point(|one| one.slot < first);
    for one in slots.range(begin..).take_while(|one| one.slot < end) {
        into.summary.add(&one.summary);
        merge(&mut into.buckets, &one.buckets);
    }
}

/// Adds counts to counts; both are ordered by bucket.
fn merge(into: &mut Vec<(u8, u32)>, more: &[(u8, u32)]) {
    for (bucket, count) in more {
        match into.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
            Ok(at) => into[at].1 = into[at].1.saturating_add(*count),
            Err(at) => into.insert(at, (*bucket, *count)),
        }
    }
}

/// The samples of a period, of one series or of several.
#[derive(Debug, Clone)]
struct Window {
    summary: Summary,
    buckets: Vec<(u8, u32)>,
}

impl Window {
    fn statistic(&self, statistic: Statistic) -> Option<f64> {
        let summary = &self.summary;
        if summary.count <= 0.0 {
            return None;
        }
        match statistic {
            Statistic::Average => Some(f64::from(summary.sum) / f64::from(summary.count)),
            Statistic::Sum => Some(f64::from(summary.sum)),
            Statistic::Minimum => Some(f64::from(summary.least)),
            Statistic::Maximum => Some(f64::from(summary.most)),
            Statistic::SampleCount => Some(f64::from(summary.count)),
            Statistic::Percentile(share) => self.percentile(share),
        }
    }

    fn percentile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.buckets.iter().map(|(_, count)| u64::from(*count)).sum();
        let wanted = share.clamp(0.0, 1.0) * total as f64;
        let mut seen = 0_u64;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += u64::from(*count);
            seen as f64 >= wanted
        });
        found.map(|(bucket, _)| middle(*bucket))
    }
}

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
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// All series of a variant.
#[derive(Debug)]
pub struct Measured {
    fine_ms: u64,
    series: BTreeMap<(Metric, Option<InstanceTypeName>), Series>,
    /// Entries of the long ranges, and how many there may be.
    runs: usize,
    most_runs: usize,
}

impl Default for Measured {
    fn default() -> Self {
        let fine_ms = millis(FINE);
        Self { fine_ms, series: BTreeMap::new(), runs: 0, most_runs: MOST_RUNS }
    }
}

impl Measured {
    /// Keeps slots of this length as well from now on; what was kept in other ones that are shorter than usual is
    /// forgotten.
    pub fn set_fine(&mut self, fine: Duration) {
        let fine_ms = millis(fine);
        if fine_ms != self.fine_ms {
            self.fine_ms = fine_ms;
            for series in self.series.values_mut() {
                series.shorter.clear();
            }
        }
    }

    /// Keeps to its share of the memory from now on, where so many have one.
    pub fn share_with(&mut self, variants: usize) {
        self.most_runs = MOST_RUNS / variants.max(1);
        self.keep_to_share();
    }

    fn keep_to_share(&mut self) {
        while self.runs > self.most_runs {
            let longest = self.series.values_mut().max_by_key(|series| series.coarse.len());
            let Some(longest) = longest else { return };
            longest.coarse.pop_front();
            self.runs -= 1;
        }
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
        instance_type: &InstanceTypeName,
        times: u64,
    ) {
        let summary = Summary::of(times, times as f64, 1.0, 1.0);
        if times > 0 {
            self.put(at, metric, Some(instance_type), &summary, &[]);
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
            return;
        }
        let series = self.series.entry(key).or_default();
        self.runs -= series.coarse.len();
        series.record(at, self.fine_ms, summary, buckets);
        self.runs += series.coarse.len();
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
        periods
            .each()
            .map(|(from, to)| {
                let mut window = Window { summary: Summary::NONE, buckets: Vec::new() };
                for series in &of_metric {
                    series.collect(from, to, self.fine_ms, &mut window);
                }
                window.statistic(statistic)
            })
            .collect()
    }

    /// Memory that all of it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.series.values().map(Series::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::durations::bucket;

    const START: u64 = 1_700_000_040_000;

    fn kind() -> InstanceTypeName {
        InstanceTypeName::new("ml.p5").expect("a name")
    }

    fn minutes(
        measured: &Measured,
        statistic: Statistic,
        now: u64,
        count: u32,
    ) -> Vec<Option<f64>> {
        let periods = Periods::complete(Timestamp(now), Duration::from_secs(60), count);
        measured.query(Metric::ConcurrentRequestsPerModel, Some(&kind()), statistic, periods)
    }

    #[test]
    fn samples_become_the_statistics_of_their_periods() {
        let mut measured = Measured::default();
        for (second, value) in [(0, 4.0), (10, 8.0), (50, 6.0), (130, 1.0)] {
            let at = Timestamp(START + second * 1_000);
            measured.record(at, Metric::ConcurrentRequestsPerModel, Some(&kind()), value);
        }
        let now = START + 180_000;
        for (statistic, first, third) in [
            (Statistic::Average, 6.0, 1.0),
            (Statistic::Sum, 18.0, 1.0),
            (Statistic::Minimum, 4.0, 1.0),
            (Statistic::Maximum, 8.0, 1.0),
            (Statistic::SampleCount, 3.0, 1.0),
        ] {
            let found = minutes(&measured, statistic, now, 3);
            assert_eq!(found, [Some(first), None, Some(third)], "{statistic:?}");
        }
        // The period under way is not told.
        assert_eq!(minutes(&measured, Statistic::Sum, now - 1, 1), [None]);
        let other = InstanceTypeName::new("ml.g6").expect("a name");
        let periods = Periods { end: Timestamp(now), length: Duration::from_secs(180), count: 1 };
        let of = |kind| {
            let metric = Metric::ConcurrentRequestsPerModel;
            measured.query(metric, kind, Statistic::Sum, periods)
        };
        assert_eq!(of(Some(&other)), [None]);
        assert_eq!(of(None), [Some(19.0)], "all types together");
    }

    #[test]
    fn percentiles_are_within_a_tenth() {
        let mut measured = Measured::default();
        let buckets = |millis: std::ops::RangeInclusive<u64>| {
            let mut all = Vec::new();
            for millis in millis {
                merge(&mut all, &[(bucket(Duration::from_millis(millis)), 1)]);
            }
            all
        };
        let metric = Metric::ModelLatency;
        measured.durations(Timestamp(START), metric, &kind(), &buckets(1..=500));
        measured.durations(Timestamp(START + 11_000), metric, &kind(), &buckets(501..=1_000));
        let periods = Periods::complete(Timestamp(START + 60_000), Duration::from_secs(60), 1);
        for (share, seconds) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (1.0, 1.0)] {
            let of = Statistic::Percentile(share);
            let found = measured.query(metric, None, of, periods)[0].expect("a value");
            assert!((found / seconds - 1.0).abs() <= 0.125, "p{share}: {found}");
        }
        assert_eq!(measured.query(metric, None, Statistic::SampleCount, periods), [Some(1_000.0)]);
    }

    #[test]
    fn old_minutes_outlive_the_fine_slots_and_end_after_fifteen_days() {
        let mut measured = Measured::default();
        let day = 24 * 60;
        for minute in 0..16 * day {
            let at = Timestamp(START + minute * 60_000);
            measured.record(at, Metric::ConcurrentRequestsPerModel, Some(&kind()), minute as f64);
        }
        let now = START + 16 * day * 60_000;
        let all = minutes(&measured, Statistic::Average, now, 16 * 24 * 60);
        assert_eq!(all[usize::try_from(day).expect("small") - 2], None, "older than 15 days");
        assert_eq!(all[usize::try_from(day).expect("small")], Some(1_440.0));
        assert_eq!(all.last(), Some(&Some(16.0 * 1_440.0 - 1.0)));
    }

    #[test]
    fn memory_is_bounded_and_what_is_constant_costs_next_to_nothing() {
        let (mut busy, mut idle) = (Measured::default(), Measured::default());
        let mut chance = fastrand::Rng::with_seed(1);
        for slot in 0..20 * 24 * 360_u64 {
            let at = Timestamp(START + slot * 10_000);
            let metric = Metric::ConcurrentRequestsPerModel;
            busy.record(at, metric, Some(&kind()), chance.f64());
            idle.record(at, metric, Some(&kind()), 0.0);
        }
        // 15 days of minutes at 32 bytes, three hours of tens of seconds at 48, and room to grow.
        assert!(busy.bytes() < 2 * (21_600 * 32 + 1_080 * 48), "{} bytes", busy.bytes());
        assert!(idle.bytes() < 150_000, "{} bytes", idle.bytes());
        for number in 0..5_000 {
            let kind = InstanceTypeName::new(format!("t{number}")).expect("a name");
            idle.record(Timestamp(START), Metric::InstanceCount, Some(&kind), 1.0);
        }
        assert_eq!(idle.series.len(), MOST_SERIES);
    }

    #[test]
    fn past_the_share_of_the_memory_the_oldest_minutes_of_the_longest_series_go() {
        let mut measured = Measured::default();
        measured.share_with(MOST_RUNS / 1_000);
        let other = InstanceTypeName::new("ml.g6").expect("a name");
        let metric = Metric::ConcurrentRequestsPerModel;
        for minute in 0..3_000_u64 {
            let at = Timestamp(START + minute * 60_000);
            measured.record(at, metric, Some(&kind()), minute as f64);
            if minute % 10 == 0 {
                measured.record(at, metric, Some(&other), minute as f64);
            }
        }
        let runs: Vec<_> = measured.series.values().map(|series| series.coarse.len()).collect();
        assert_eq!((measured.runs, runs), (1_000, vec![299, 701]));
        let now = START + 3_000 * 60_000;
        let all = minutes(&measured, Statistic::Average, now, 3_000);
        assert_eq!((all[2_000], all[2_999]), (None, Some(2_999.0)));
    }

    #[test]
    fn a_clock_that_is_set_back_starts_again_from_there() {
        let mut measured = Measured::default();
        for at in [START + 60_000, START] {
            measured.record(Timestamp(at), Metric::ConcurrentRequestsPerModel, Some(&kind()), 1.0);
        }
        assert_eq!(minutes(&measured, Statistic::Sum, START + 120_000, 2), [Some(1.0), None]);
        measured.record(
            Timestamp(START + 60_000),
            Metric::ConcurrentRequestsPerModel,
            Some(&kind()),
            2.0,
        );
        assert_eq!(minutes(&measured, Statistic::Sum, START + 120_000, 2), [Some(1.0), Some(2.0)]);
    }

    #[test]
    fn shorter_slots_take_nothing_from_the_usual_three_hours() {
        let mut measured = Measured::default();
        measured.set_fine(Duration::from_millis(100));
        let bucket = crate::types::durations::bucket(Duration::from_secs(1));
        for second in 0..600 {
            let at = Timestamp(START + second * 1_000);
            measured.durations(at, Metric::ModelLatency, &kind(), &[(bucket, 1)]);
        }
        let (end, length) = (Timestamp(START + 600_000), Duration::from_secs(60));
        let periods = Periods { end, length, count: 10 };
        let p99 = measured.query(
            Metric::ModelLatency,
            Some(&kind()),
            Statistic::Percentile(0.99),
            periods,
        );
        assert!(p99.iter().all(Option::is_some), "{p99:?}");
    }
}
