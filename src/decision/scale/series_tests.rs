//! What was recorded, asked for again.

use super::super::slots::merge;
use super::*;
use crate::types::durations::bucket;

const START: u64 = 1_700_000_040_000;

fn kind() -> InstanceTypeName {
    InstanceTypeName::new("ml.p5").expect("a name")
}

fn minutes(measured: &Measured, statistic: Statistic, now: u64, count: u32) -> Vec<Option<f64>> {
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
    for slot in 0..20 * 24 * 360_u64 {
        let at = Timestamp(START + slot * 10_000);
        let metric = Metric::ConcurrentRequestsPerModel;
        busy.record(at, metric, Some(&kind()), (slot * 7_919 % 10_007) as f64);
        idle.record(at, metric, Some(&kind()), 0.0);
    }
    // 15 days of minutes at 24 bytes, three hours of tens of seconds at 48, and a sixteenth of room to grow.
    let most = (21_600 * 24 + 1_080 * 48) * 17 / 16 + 1_000;
    assert!(busy.bytes() < most, "{} of {most} bytes", busy.bytes());
    assert_eq!(idle.take_news(), None);
    assert!(idle.bytes() < 150_000, "{} bytes", idle.bytes());
    for number in 0..5_000 {
        let kind = InstanceTypeName::new(format!("t{number}")).expect("a name");
        idle.record(Timestamp(START), Metric::InstanceCount, Some(&kind), 1.0);
    }
    assert_eq!(idle.series.len(), MOST_SERIES);
    assert_eq!((idle.take_news(), idle.take_news()), (Some(Limit::Series), None), "told once");
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
    let runs: Vec<_> = measured.series.values().map(Series::runs).collect();
    assert_eq!((measured.runs, runs), (1_000, vec![299, 701]));
    assert_eq!((measured.take_news(), measured.take_news()), (Some(Limit::Minutes), None));
    let now = START + 3_000 * 60_000;
    let all = minutes(&measured, Statistic::Average, now, 3_000);
    assert_eq!((all[2_000], all[2_999]), (None, Some(2_999.0)));
    // What goes is given back.
    let before = measured.bytes();
    measured.share_with(MOST_RUNS / 100);
    let given_back = before - measured.bytes();
    assert!((900 * 22..=900 * 26).contains(&given_back), "{given_back} bytes of 900 entries");
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
fn a_clock_that_is_set_back_by_hours_does_not_keep_what_was_later() {
    let mut measured = Measured::default();
    let metric = Metric::ConcurrentRequestsPerModel;
    for minute in (0..300).chain([100]) {
        let at = Timestamp(START + minute * 60_000);
        measured.record(at, metric, Some(&kind()), 1.0);
    }
    let after = minutes(&measured, Statistic::Sum, START + 112 * 60_000, 13);
    assert_eq!(&after[..2], [Some(1.0), Some(1.0)]);
    assert_eq!(&after[2..], [None; 11]);
}

/// What a policy sees of its last `count` periods, by whatever slots there are.
fn sums(measured: &Measured, metric: Metric, now: Timestamp, length: Duration) -> Vec<f64> {
    let periods = Periods::complete(now, length, 4);
    let found = measured.query(metric, None, Statistic::Sum, periods);
    found.into_iter().map(|sum| (sum.unwrap_or(f64::NAN) * 1e4).round() / 1e4).collect()
}

#[test]
fn a_sum_of_samples_does_not_depend_on_how_often_is_sampled() {
    let minute = Duration::from_secs(60);
    for every_ms in [100, 1_000, 2_200, 10_000] {
        let mut measured = Measured::default();
        let of = Some(&kind());
        let end = START + 600_000;
        let mut at = START.next_multiple_of(every_ms);
        while at < end {
            measured.sampled(Timestamp(at));
            measured.record(Timestamp(at), Metric::InstanceCount, of, 2.0);
            at += every_ms;
        }
        let now = Timestamp(end);
        assert_eq!(sums(&measured, Metric::InstanceCount, now, minute), [12.0; 4], "{every_ms}");
        let periods = Periods::complete(now, minute, 1);
        let query = |stat| measured.query(Metric::InstanceCount, of, stat, periods)[0];
        let count = query(Statistic::SampleCount).expect("samples");
        assert!((count - 6.0).abs() < 1e-9, "{count} at {every_ms}");
        assert_eq!(query(Statistic::Average), Some(2.0));
    }
    // A type that is there for half of it has half of the sum.
    let mut measured = Measured::default();
    for second in 0..60 {
        let at = Timestamp(START + second * 1_000);
        measured.sampled(at);
        if second < 30 {
            measured.record(at, Metric::InstanceCount, Some(&kind()), 2.0);
        }
    }
    let sum = sums(&measured, Metric::InstanceCount, Timestamp(START + 60_000), minute)[3];
    assert!((sum - 6.0).abs() < 1e-9, "{sum}");
}

#[test]
fn sums_are_even_whatever_the_periods_are_a_multiple_of() {
    for length_ms in [500, 3_000, 15_000, 55_000, 60_000, 70_000, 3_700_000] {
        let length = Duration::from_millis(length_ms);
        let mut measured = Measured::default();
        measured.set_periods([(length, 4), (Duration::from_millis(2_500), 7)].into_iter());
        let now = (START + 6 * length_ms).next_multiple_of(length_ms) + 10;
        for at in (now - 5 * length_ms - 10..now).step_by(500) {
            measured.count(Timestamp(at), Metric::Invocations, Some(&kind()), 2);
        }
        let all = sums(&measured, Metric::Invocations, Timestamp(now), length);
        #[allow(clippy::cast_precision_loss, reason = "few")]
        let expected = (length_ms / 250) as f64;
        assert_eq!(all, [expected; 4], "{length_ms} ms");
    }
}

#[test]
fn short_periods_are_known_as_far_back_as_their_policy_looks() {
    let mut measured = Measured::default();
    let (five, half) = (Duration::from_secs(5), Duration::from_millis(500));
    measured.set_periods([(five, 1_000), (half, 3)].into_iter());
    for at in (START..START + 6_000_000).step_by(500) {
        measured.record(Timestamp(at), Metric::QueueDepth, None, 1.0);
    }
    let known = |length, count| {
        let periods = Periods::complete(Timestamp(START + 6_000_000), length, count);
        let all = measured.query(Metric::QueueDepth, None, Statistic::Average, periods);
        all.iter().flatten().count()
    };
    assert_eq!((known(five, 1_000), known(half, 3)), (1_000, 3));
    // No more than that is kept of them, beside one under way, and what no policy asks for is not.
    assert_eq!((known(five, 1_200), known(half, 9)), (1_001, 4));
    assert_eq!(known(Duration::from_secs(2), 5), 0);
}

#[test]
fn percentiles_of_the_longest_reach_are_known_also_between_the_ends_of_its_periods() {
    let mut measured = Measured::default();
    let (hour, seconds) = (Duration::from_secs(3_600), 5 * 3_600);
    measured.set_periods([(hour, 3)].into_iter());
    let start = START.next_multiple_of(3_600_000);
    let bucket = bucket(Duration::from_secs(1));
    for second in (0..seconds + 1_800).step_by(10) {
        let at = Timestamp(start + second * 1_000);
        measured.durations(at, Metric::ModelLatency, &kind(), &[(bucket, 1)]);
    }
    let periods = Periods::complete(Timestamp(start + (seconds + 1_790) * 1_000), hour, 3);
    let of = Statistic::Percentile(0.99);
    let p99 = measured.query(Metric::ModelLatency, Some(&kind()), of, periods);
    assert!(p99.iter().all(Option::is_some), "{p99:?}");
}

#[test]
fn percentiles_are_known_of_the_period_in_which_a_series_begins() {
    for length in [60, 70] {
        let mut measured = Measured::default();
        let length = Duration::from_secs(length);
        measured.set_periods([(length, 3)].into_iter());
        let end = START.next_multiple_of(millis(length));
        let at = Timestamp(end - 1_000);
        let bucket = bucket(Duration::from_secs(1));
        measured.durations(at, Metric::ModelLatency, &kind(), &[(bucket, 1)]);
        let periods = Periods::complete(Timestamp(end), length, 1);
        let of = Statistic::Percentile(0.99);
        assert!(measured.query(Metric::ModelLatency, None, of, periods)[0].is_some());
        // Slots that begin later leave the rest to the usual ones.
        measured.set_periods([(length, 3), (Duration::from_secs(25), 9)].into_iter());
        measured.count(at, Metric::ModelLatency, Some(&kind()), 1);
        let periods = Periods { end: Timestamp(end), length: Duration::from_secs(25), count: 1 };
        let all = measured.query(Metric::ModelLatency, None, Statistic::SampleCount, periods);
        assert_eq!(all, [Some(2.0)]);
    }
}
