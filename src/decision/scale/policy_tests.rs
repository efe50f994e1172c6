//! A table or a property for each rule. Periods are a minute; fleets are of p5 (20 slots) and g6 (8 slots).

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::types::InstanceTypeName;
use crate::types::scaling::{BuiltIn, Metric, MetricQuery, Signal, Statistic};

const START: u64 = 1_700_000_040_000;

fn kind(name: &str) -> InstanceTypeName {
    InstanceTypeName::new(name).expect("a name")
}

fn types() -> Vec<TypeFacts> {
    let facts = |name, slots| TypeFacts { name: kind(name), copies: 1, slots };
    vec![facts("p5", 20), facts("g6", 8)]
}

fn query(name: &str) -> MetricQuery {
    MetricQuery {
        metric: Metric::ConcurrentRequestsPerModel,
        instance_type: Some(kind(name)),
        statistic: Statistic::Average,
    }
}

/// SageMaker's published example.
fn weighted() -> Signal {
    let metrics = ["p5", "g6"].map(|name| (name.to_owned(), query(name)));
    Signal::Expression { text: "(p5 / 20 + g6 / 8) / 2".into(), metrics: BTreeMap::from(metrics) }
}

fn tracking(signal: Signal) -> ScalingPolicy {
    ScalingPolicy {
        name: "tracking".into(),
        signal,
        period: Duration::from_secs(60),
        scale_out_periods: 3,
        scale_in_periods: 15,
        scale_out_cooldown: Duration::from_secs(300),
        scale_in_cooldown: Duration::from_secs(300),
        scale_in: true,
        rule: Rule::TargetTracking { target: 0.7, tolerance: 0.1 },
    }
}

/// Minutes of (instances, requests each) for p5 and g6; no instances is no series.
struct Fleet {
    measured: Measured,
    minutes: u64,
    last: LastChanges,
}

impl Fleet {
    fn new() -> Self {
        Self { measured: Measured::default(), minutes: 0, last: LastChanges::default() }
    }

    fn minutes(mut self, count: u64, p5: (u32, f64), g6: (u32, f64)) -> Self {
        for _ in 0..count {
            for second in (0..60).step_by(10) {
                let at = Timestamp(START + self.minutes * 60_000 + second * 1_000);
                for (name, (instances, requests)) in [("p5", p5), ("g6", g6)] {
                    if instances == 0 {
                        continue;
                    }
                    let of = Some(&kind(name));
                    let mut record = |metric, value| self.measured.record(at, metric, of, value);
                    record(Metric::InstanceCount, f64::from(instances));
                    record(Metric::ConcurrentRequestsPerModel, requests);
                }
            }
            self.minutes += 1;
        }
        self
    }

    fn gap(mut self, minutes: u64) -> Self {
        self.minutes += minutes;
        self
    }

    /// In its last minute this many requests came, and as many as this were answered, each within so many seconds.
    fn asked(mut self, arrivals: u64, answered: u32, seconds: f64) -> Self {
        let at = Timestamp(self.now().0 - 1_000);
        self.measured.count(at, Metric::Arrivals, None, arrivals);
        let took = crate::types::durations::bucket(Duration::from_secs_f64(seconds));
        let (p5, buckets) = (kind("p5"), [(took, answered)]);
        if answered > 0 {
            self.measured.count(at, Metric::Invocations, Some(&p5), u64::from(answered));
            self.measured.durations(at, Metric::ModelLatency, &p5, &buckets);
        }
        self
    }

    fn now(&self) -> Timestamp {
        Timestamp(START + self.minutes * 60_000)
    }

    fn ask(&self, policy: &ScalingPolicy, desired: u32) -> Verdict {
        let known = Known { measured: &self.measured, types: &types(), desired, last: self.last };
        ask(policy, &known, self.now())
    }
}

#[test]
fn the_published_table_scales_as_published() {
    for (p5, g6, value, wants) in [
        (5.0, 2.0, 0.25, Some(2)),
        (12.0, 5.0, 0.61, None),
        (18.0, 7.0, 0.89, Some(6)),
        (14.0, 6.0, 0.73, None),
    ] {
        let fleet = Fleet::new().minutes(15, (2, p5), (2, g6));
        let verdict = fleet.ask(&tracking(weighted()), 4);
        let shown = verdict.value.expect("a value");
        assert!((shown - value).abs() < 0.006, "{shown} is not {value}");
        assert_eq!(verdict.wants, wants, "({p5}, {g6}): {verdict:?}");
    }
    // Without a tolerance it is the bare alarm rule, by which 0.73 scales out.
    let mut bare = tracking(weighted());
    bare.rule = Rule::TargetTracking { target: 0.7, tolerance: 0.0 };
    let fleet = Fleet::new().minutes(3, (2, 14.0), (2, 6.0));
    assert_eq!(fleet.ask(&bare, 4).wants, Some(5));
}

/// 0.61 is below nine tenths of 0.7, of which a fleet of eight has one to spare: what the tolerance leaves of that holds.
#[test]
fn the_published_table_holds_at_every_size() {
    for each in [1, 2, 4, 7, 25, 400] {
        let size = 2 * each;
        for (p5, g6, share) in [
            (5.0, 2.0, Some(0.25)),
            (12.0, 5.0, None),
            (18.0, 7.0, Some(0.8875)),
            (14.0, 6.0, None),
        ] {
            let fleet = Fleet::new().minutes(15, (each, p5), (each, g6));
            let verdict = fleet.ask(&tracking(weighted()), size);
            let wanted = share.and_then(|share| proportional(f64::from(size), share, 0.7));
            assert_eq!(verdict.wants, wanted, "({p5}, {g6}) of {size}: {verdict:?}");
        }
    }
    // Without a tolerance it is the bare nine tenths.
    let mut bare = tracking(weighted());
    bare.rule = Rule::TargetTracking { target: 0.7, tolerance: 0.0 };
    let fleet = Fleet::new().minutes(15, (4, 12.0), (4, 5.0));
    assert_eq!(fleet.ask(&bare, 8).wants, Some(7));
}

#[test]
fn a_type_without_an_instance_is_left_out_of_the_built_ins_and_is_0_in_an_expression() {
    let alone = Fleet::new().minutes(15, (2, 20.0), (0, 0.0));
    let expression = alone.ask(&tracking(weighted()), 2);
    assert_eq!((expression.value, expression.wants), (Some(0.5), None), "it never passes 0.7");
    let built_in = alone.ask(&tracking(Signal::BuiltIn(BuiltIn::Utilization)), 2);
    assert_eq!((built_in.value, built_in.wants), (Some(1.0), Some(3)));
    // Weighted by instances, or each type as much as another.
    let mixed = Fleet::new().minutes(3, (3, 20.0), (1, 4.0));
    let of = |built_in| mixed.ask(&tracking(Signal::BuiltIn(built_in)), 4).value;
    assert_eq!(of(BuiltIn::Utilization), Some(0.875));
    assert_eq!(of(BuiltIn::UtilizationByType), Some(0.75));
    assert_eq!(of(BuiltIn::ConcurrencyPerCopy), Some(16.0));
}

#[test]
fn out_needs_three_periods_in_a_row_and_in_fifteen() {
    let policy = tracking(Signal::BuiltIn(BuiltIn::Utilization));
    let (high, low) = ((2, 20.0), (2, 2.0));
    let wants = |fleet: Fleet| fleet.ask(&policy, 2).wants;
    assert_eq!(wants(Fleet::new().minutes(2, high, (0, 0.0))), None);
    assert_eq!(wants(Fleet::new().minutes(3, high, (0, 0.0))), Some(3));
    let broken = Fleet::new().minutes(2, high, (0, 0.0)).minutes(1, low, (0, 0.0));
    assert_eq!(wants(broken.minutes(2, high, (0, 0.0))), None);
    assert_eq!(wants(Fleet::new().minutes(14, low, (0, 0.0))), None);
    assert_eq!(wants(Fleet::new().minutes(15, low, (0, 0.0))), Some(1));
    // Nine tenths of nine tenths of the target and more hold.
    assert_eq!(wants(Fleet::new().minutes(15, (20, 11.4), (0, 0.0))), None);
    let below = Fleet::new().minutes(15, (20, 11.3), (0, 0.0));
    assert_eq!(below.ask(&policy, 20).wants, Some(17));
}

#[test]
fn what_is_not_known_scales_nothing() {
    let policy = tracking(Signal::BuiltIn(BuiltIn::Utilization));
    let low = Fleet::new().minutes(20, (4, 1.0), (0, 0.0));
    assert!(low.ask(&policy, 4).wants.is_some());
    assert_eq!(
        low.gap(1).ask(&policy, 4),
        Verdict {
            value: None,
            wants: None,
            because: "there is no value for the latest period".into(),
        }
    );
    let holed = Fleet::new().minutes(7, (4, 1.0), (0, 0.0)).gap(1).minutes(7, (4, 1.0), (0, 0.0));
    assert_eq!(holed.ask(&policy, 4).wants, None);
    assert_eq!(Fleet::new().gap(30).ask(&policy, 4).wants, None, "nor does a fleet of none");
}

#[test]
fn a_step_of_load_is_one_decision_however_slowly_instances_come() {
    let policy = tracking(Signal::BuiltIn(BuiltIn::Utilization));
    // Forty requests more than two instances at target can take: six are needed, and then six are desired.
    let mut fleet = Fleet::new().minutes(3, (2, 40.0), (0, 0.0));
    assert_eq!(fleet.ask(&policy, 2).wants, Some(6));
    for _ in 0..30 {
        fleet = fleet.minutes(1, (2, 40.0), (0, 0.0));
        assert_eq!(fleet.ask(&policy, 6).wants, None, "four are coming");
    }
    // Three of them are there and share the load.
    let fleet = fleet.minutes(3, (5, 16.0), (0, 0.0));
    assert_eq!(fleet.ask(&policy, 6).wants, None);
}

#[test]
fn what_is_coming_is_not_asked_for_again_for_a_little_more() {
    let policy = tracking(Signal::BuiltIn(BuiltIn::Utilization));
    // Of six that are wanted at 0.7 two are there: a tenth more still holds, as it would with all six.
    for (requests, size) in [(40.0, None), (46.0, None), (46.4, Some(7)), (60.0, Some(9))] {
        let fleet = Fleet::new().minutes(3, (2, requests), (0, 0.0));
        assert_eq!(fleet.ask(&policy, 6).wants, size, "{requests}");
    }
}

#[test]
fn one_quiet_period_does_not_empty_a_fleet() {
    let policy = tracking(Signal::BuiltIn(BuiltIn::Utilization));
    let busy = Fleet::new().minutes(14, (10, 10.0), (0, 0.0));
    let verdict = busy.minutes(1, (10, 0.0), (0, 0.0)).ask(&policy, 10);
    assert_eq!(verdict.wants, Some(8), "{verdict:?}");
    assert_eq!(verdict.because, "0.00 is below 0.57 for 15 periods, 0.50 the most in them");
    // What was before those periods is forgotten, and fewer instances with the same load needed less.
    let fleet = Fleet::new().minutes(1, (10, 10.0), (0, 0.0)).minutes(15, (10, 2.0), (0, 0.0));
    assert_eq!(fleet.ask(&policy, 10).wants, Some(2));
    let fleet = Fleet::new().minutes(8, (4, 10.0), (0, 0.0)).minutes(8, (8, 4.0), (0, 0.0));
    assert_eq!(fleet.ask(&policy, 8).wants, Some(3));
}

#[test]
fn the_switch_for_scaling_in_leaves_scaling_out() {
    let mut policy = tracking(Signal::BuiltIn(BuiltIn::Utilization));
    policy.scale_in = false;
    assert_eq!(Fleet::new().minutes(15, (4, 1.0), (0, 0.0)).ask(&policy, 4).wants, None);
    assert_eq!(Fleet::new().minutes(3, (4, 20.0), (0, 0.0)).ask(&policy, 4).wants, Some(6));
}

#[test]
fn a_policy_acts_at_the_end_of_its_own_period_and_the_others_have_their_say() {
    let policies = vec![tracking(weighted()); 2];
    let decided = |wanted: [Option<u32>; 2], due: [bool; 2]| {
        let (verdicts, last) = (wanted.map(wants), LastChanges::default());
        let now = Timestamp(START);
        decide(&policies, &verdicts, &due, 5, (1, 10), last, now).map(|d| (d.size, d.policy))
    };
    for (wanted, due, decision) in [
        ([Some(8), None], [true, true], Some((8, 0))),
        ([Some(8), None], [false, true], None),
        // A scale-in is the largest that any of them wants, whoever's period has ended.
        ([Some(2), Some(4)], [true, false], Some((4, 1))),
        ([Some(2), Some(4)], [false, true], Some((4, 1))),
        ([Some(2), Some(4)], [false, false], None),
        ([Some(2), None], [true, false], None),
        ([Some(2), Some(7)], [true, false], None),
        ([Some(6), Some(7)], [true, false], Some((7, 1))),
    ] {
        assert_eq!(decided(wanted, due), decision, "{wanted:?} at the ends of {due:?}");
    }
}

fn wants(size: Option<u32>) -> Verdict {
    Verdict { value: Some(1.0), wants: size, because: String::new() }
}

#[test]
fn the_largest_wins_and_in_needs_the_consent_of_all() {
    let two = [tracking(weighted()), tracking(weighted())];
    let size = |verdicts: &[Verdict]| {
        let last = LastChanges::default();
        decide(&two, verdicts, &[], 5, (1, 10), last, Timestamp(START)).map(|d| (d.size, d.policy))
    };
    assert_eq!(size(&[wants(Some(6)), wants(Some(8))]), Some((8, 1)));
    assert_eq!(size(&[wants(Some(2)), wants(Some(8))]), Some((8, 1)));
    assert_eq!(size(&[wants(Some(2)), wants(Some(3))]), Some((3, 1)));
    assert_eq!(size(&[wants(Some(2)), wants(None)]), None);
    assert_eq!(size(&[wants(None), wants(None)]), None);
    assert_eq!(size(&[wants(Some(99)), wants(None)]), Some((10, 0)), "the maximum holds");
    assert_eq!(size(&[wants(Some(0)), wants(Some(0))]), Some((1, 1)), "and the minimum");
    // One that only ever adds is not asked for its consent to fewer, one that takes away is.
    let exact = Adjustment::ExactCapacity;
    let added = Adjustment::ChangeInCapacity;
    for (above, adjustment, change, decision) in [
        (true, added, 1.0, Some(2)),
        (false, added, 1.0, Some(2)),
        (true, added, -1.0, None),
        (false, added, -1.0, None),
        (true, exact, 9.0, Some(2)),
        (false, exact, 1.0, None),
    ] {
        let mut steps = two.clone();
        let step = vec![Step { from: None, to: None, change }];
        steps[1].rule = Rule::Step { threshold: 1.0, above, adjustment, least: 0, steps: step };
        let verdicts = [wants(Some(2)), wants(None)];
        let last = LastChanges::default();
        let found = decide(&steps, &verdicts, &[], 5, (1, 10), last, Timestamp(START));
        assert_eq!(found.map(|found| found.size), decision, "{adjustment:?} {change} {above}");
    }
    // While one wants more, and waits for its cooldown, there are not fewer.
    let mut add_only = two.clone();
    let step = vec![Step { from: None, to: None, change: 1.0 }];
    add_only[1].rule =
        Rule::Step { threshold: 1.0, above: true, adjustment: added, least: 0, steps: step };
    let last = LastChanges { out: Some((Timestamp(START), 6)), ..LastChanges::default() };
    let verdicts = [wants(Some(2)), wants(Some(6))];
    assert_eq!(decide(&add_only, &verdicts, &[], 5, (1, 10), last, Timestamp(START + 1)), None);
    // One that never scales in is not asked.
    let mut one_way = two.clone();
    one_way[1].scale_in = false;
    let verdicts = [wants(Some(2)), wants(None)];
    let last = LastChanges::default();
    let decision = decide(&one_way, &verdicts, &[], 5, (1, 10), last, Timestamp(START));
    assert_eq!(decision, Some(Decision { size: 2, policy: 0 }));
}

#[test]
fn cooldowns_hold_back_what_is_not_more_urgent() {
    let one = [tracking(weighted())];
    let at = |seconds: u64| Timestamp(START + seconds * 1_000);
    let size = |verdict, desired, last, now| {
        decide(&one, &[wants(Some(verdict))], &[], desired, (1, 20), last, now).map(|d| d.size)
    };
    let out = LastChanges { out: Some((at(0), 6)), ..LastChanges::default() };
    // Somebody has taken two away meanwhile: as many as were decided are not asked for again so soon.
    assert_eq!(size(6, 4, out, at(299)), None);
    assert_eq!(size(6, 4, out, at(300)), Some(6));
    assert_eq!(size(7, 6, out, at(10)), Some(7), "a larger one is");
    let inward = LastChanges { inward: Some(at(0)), ..LastChanges::default() };
    assert_eq!(size(3, 4, inward, at(299)), None);
    assert_eq!(size(3, 4, inward, at(300)), Some(3));
    assert_eq!(size(8, 4, inward, at(1)), Some(8), "scaling out waits for no scale-in");
    let grown = LastChanges { out: Some((at(10), 4)), ..inward };
    assert_eq!(size(3, 4, grown, at(200)), Some(3), "scaling out ends it");
    // A clock that was set back while nobody was there.
    let early = Timestamp(START - 1_000);
    assert_eq!((size(6, 4, out, early), size(3, 4, inward, early)), (Some(6), Some(3)));
}

#[path = "signal_tests.rs"]
mod signals;
#[path = "step_tests.rs"]
mod steps;

proptest! {
    #[test]
    fn a_decision_is_a_change_within_the_bounds(
        sizes in proptest::collection::vec(proptest::option::of(0_u32..30), 1..4),
        desired in 0_u32..30, min in 0_u32..10, more in 0_u32..20,
        out in proptest::option::of((0_u64..600, 0_u32..30)), inward in proptest::option::of(0_u64..600),
    ) {
        let policies = vec![tracking(weighted()); sizes.len()];
        let verdicts: Vec<_> = sizes.iter().copied().map(wants).collect();
        let last = LastChanges {
            out: out.map(|(at, size)| (Timestamp(START + at * 1_000), size)),
            out_from: None,
            inward: inward.map(|at| Timestamp(START + at * 1_000)),
        };
        let now = Timestamp(START + 600_000);
        let bounds = (min, min + more);
        if let Some(decision) = decide(&policies, &verdicts, &[], desired, bounds, last, now) {
            prop_assert_ne!(decision.size, desired);
            prop_assert!((min..=min + more).contains(&decision.size));
            if decision.size < desired {
                prop_assert!(sizes.iter().all(Option::is_some));
            }
        }
    }

    #[test]
    fn more_load_never_wants_a_smaller_fleet(
        served in 1_u32..50, value in 0.0_f64..5.0, more in 0.0_f64..2.0, target in 0.05_f64..2.0,
    ) {
        let size = |value| proportional(f64::from(served), value, target);
        prop_assert!(size(value) <= size(value + more));
        // At that size the load is at the target or below, and with one fewer it would be above.
        let size = f64::from(size(value).expect("a size"));
        let load = f64::from(served) * value;
        prop_assert!(load <= size * target + 1e-3);
        prop_assert!(size < 1.0 || load > (size - 1.0) * target - 1e-3);
    }
}
