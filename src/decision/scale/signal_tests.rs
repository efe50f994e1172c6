//! What policies see: the built-ins by their figures, and what is missing.

use super::*;

#[test]
fn of_a_full_fleet_the_built_ins_show_what_is_asked_of_it() {
    let took =
        crate::types::durations::middle(crate::types::durations::bucket(Duration::from_secs(12)));
    let shown = |requests: f64, arrivals, answered, built_in| {
        let fleet = Fleet::new().minutes(2, (2, 10.0), (0, 0.0));
        let fleet = fleet.minutes(1, (2, requests), (0, 0.0)).asked(arrivals, answered, 12.0);
        fleet.ask(&tracking(Signal::BuiltIn(built_in)), 2).value.expect("a value")
    };
    // Ten in a second, each for twelve seconds, at forty slots.
    let asked = 10.0 * took / 40.0;
    assert!((2.7..3.3).contains(&asked));
    for (requests, arrivals, answered, utilization) in [
        (20.0, 600, 200, asked),
        (18.0, 600, 180, asked),
        (17.0, 600, 180, 0.85), // not full: it serves all there is
        (20.0, 600, 0, 1.0),    // nobody knows how long they take
        (20.0, 0, 200, 1.0),
        (20.0, 60, 50, 1.0), // less comes than is there, and more than is answered
        (20.0, 60, 200, asked / 10.0), // what waits is being cleared
    ] {
        let case = (requests, arrivals, answered);
        for (built_in, times) in [
            (BuiltIn::Utilization, 1.0),
            (BuiltIn::UtilizationByType, 1.0),
            (BuiltIn::ConcurrencyPerCopy, 20.0),
        ] {
            let found = shown(requests, arrivals, answered, built_in) / times;
            assert!((found - utilization).abs() < 1e-6, "{built_in:?} of {case:?}: {found}");
        }
    }
}

#[test]
fn what_is_asked_of_a_full_fleet_is_averaged_and_it_never_shrinks() {
    let policy = tracking(Signal::BuiltIn(BuiltIn::Utilization));
    let mut fleet = Fleet::new().minutes(2, (2, 10.0), (0, 0.0)).asked(9_000, 9_000, 1.0);
    for arrivals in [9_000, 500, 700, 600, 540, 660] {
        fleet = fleet.minutes(1, (2, 20.0), (0, 0.0)).asked(arrivals, 200, 12.0);
    }
    // The last five, of ten in a second.
    let value = fleet.ask(&policy, 2).value.expect("a value");
    assert!((2.7..3.3).contains(&value), "{value}");
    // Twenty minutes of clearing what waits are no reason for fewer.
    for _ in 0..20 {
        fleet = fleet.minutes(1, (2, 20.0), (0, 0.0)).asked(60, 200, 12.0);
    }
    let verdict = fleet.ask(&policy, 2);
    assert!(verdict.value.is_some_and(|value| value < 0.4), "{verdict:?}");
    assert_eq!(verdict.wants, None);
    assert_eq!(fleet.minutes(1, (2, 4.0), (0, 0.0)).ask(&policy, 2).wants, Some(1));
}

/// Each of these is one mistake away from another one.
#[test]
fn the_other_built_ins_by_their_figures() {
    let mut fleet = Fleet::new().minutes(3, (2, 10.0), (1, 4.0)).asked(0, 240, 4.0);
    let end = fleet.now().0;
    for (second, waiting) in [(60, 0.0), (50, 0.0), (40, 0.0), (30, 6.0), (20, 6.0), (10, 0.0)] {
        let at = Timestamp(end - second * 1_000);
        fleet.measured.record(at, Metric::QueueDepth, None, waiting);
    }
    let first = crate::types::durations::bucket(Duration::from_millis(500));
    let at = Timestamp(end - 1_000);
    fleet.measured.durations(at, Metric::FirstChunkLatency, &kind("p5"), &[(first, 240)]);
    for (built_in, from, to) in [
        (BuiltIn::InvocationsPerInstance, 80.0, 80.0),
        (BuiltIn::QueueDepth, 2.0, 2.0),
        (BuiltIn::ModelLatencyP99, 3.5, 4.5),
        (BuiltIn::FirstChunkP99, 0.44, 0.56),
    ] {
        let value = fleet.ask(&tracking(Signal::BuiltIn(built_in)), 3).value.expect("a value");
        assert!((from..=to).contains(&value), "{built_in:?}: {value}");
    }
}

#[test]
fn what_instances_in_service_do_not_tell_is_no_reason_to_scale_in() {
    let query = |name| MetricQuery { metric: Metric::KvCacheUtilization, ..query(name) };
    let metrics = ["p5", "g6"].map(|name| (name.to_owned(), query(name)));
    let text = "(p5 + g6) / 200".to_owned();
    let policy = tracking(Signal::Expression { text, metrics: BTreeMap::from(metrics) });
    // So many of the g6 tell, since so many minutes.
    let told = |g6_instances: u32, tell_since: u64, telling: u32| {
        let mut fleet = Fleet::new().minutes(15, (2, 1.0), (g6_instances, 1.0));
        let end = fleet.now().0;
        for at in (START..end).step_by(10_000) {
            let mut tell = |name, count| {
                let of = Some(&kind(name));
                for _ in 0..count {
                    fleet.measured.record(Timestamp(at), Metric::KvCacheUtilization, of, 20.0);
                }
            };
            tell("p5", 2);
            if at >= end - tell_since * 60_000 {
                tell("g6", telling);
            }
        }
        let verdict = fleet.ask(&policy, 2 + g6_instances.max(2));
        let held = verdict.because.ends_with(", but not all that are in service tell it");
        assert_eq!(held, verdict.wants.is_none(), "{verdict:?}");
        (verdict.value, verdict.wants)
    };
    assert_eq!(told(2, 15, 2), (Some(0.2), Some(2)));
    assert_eq!(told(2, 0, 0), (Some(0.1), None), "they may be full");
    assert_eq!(told(2, 15, 1), (Some(0.2), None), "one may be");
    assert_eq!(told(12, 15, 11), (Some(0.2), Some(4)), "a few of many hide little");
    assert_eq!(told(2, 14, 2), (Some(0.2), None), "they may have been");
    assert_eq!(told(0, 0, 0), (Some(0.1), Some(1)), "there are none");
}

#[test]
fn a_type_that_leaves_has_no_requests_and_is_no_gap() {
    let mut fleet = Fleet::new().minutes(3, (2, 18.0), (2, 7.0)).minutes(3, (2, 20.0), (0, 0.0));
    let Signal::Expression { metrics, .. } = weighted() else { panic!("an expression") };
    let sum = Signal::Expression { text: "p5 / 20 + g6 / 8".into(), metrics };
    // In each period on its own, however far back is looked.
    for looks_back in [1, 3, 15] {
        let policy = ScalingPolicy { scale_in_periods: looks_back, ..tracking(sum.clone()) };
        let verdict = fleet.ask(&policy, 2);
        assert_eq!(
            (verdict.value, verdict.wants),
            (Some(1.0), Some(3)),
            "{looks_back}: {verdict:?}"
        );
    }
    for second in (0..360).step_by(10) {
        fleet.measured.record(Timestamp(START + second * 1_000), Metric::QueueDepth, None, 0.0);
    }
    let verdict = fleet.ask(&tracking(sum), 2);
    assert_eq!((verdict.value, verdict.wants), (Some(1.0), Some(3)), "{verdict:?}");
}

#[test]
fn what_is_made_of_nothing_scales_out_and_never_in() {
    let filled = |text: &str| {
        let metrics = [(
            "kv".to_owned(),
            MetricQuery {
                metric: Metric::KvCacheUtilization,
                instance_type: None,
                statistic: Statistic::Average,
            },
        )];
        tracking(Signal::Expression { text: text.to_owned(), metrics: metrics.into() })
    };
    let fleet = Fleet::new().minutes(15, (2, 18.0), (0, 0.0));
    assert_eq!(fleet.ask(&filled("FILL(kv, 0)"), 2).wants, None);
    assert_eq!(fleet.ask(&filled("FILL(kv, 1.4)"), 2).wants, Some(4));
}

#[test]
fn what_cannot_reach_its_target_is_warned_of() {
    let facts = types();
    let limits = Limits { types: &facts, queue: 100 };
    let of_each = |text: &str, metric| {
        let query = |name| MetricQuery { metric, ..query(name) };
        let metrics = [("a", "p5"), ("b", "g6")].map(|(id, name)| (id.to_owned(), query(name)));
        Signal::Expression { text: text.into(), metrics: metrics.into() }
    };
    let (gpu, cache, queue) =
        (Metric::GpuUtilization, Metric::KvCacheUtilization, Metric::QueueDepth);
    let average = "(a + b) / 2";
    let reached = |signal: Signal, target: f64| {
        let rule = Rule::TargetTracking { target, tolerance: 0.1 };
        out_of_reach(&ScalingPolicy { rule, ..tracking(signal) }, &limits)
    };
    for (signal, target, says) in [
        (of_each(average, cache), 100.0, Some("shows 100.00 at most and never passes 110.00, so")),
        (
            of_each(average, gpu),
            70.0,
            Some("while only p5 is in service this `expression` shows 50.00"),
        ),
        (of_each(average, gpu), 40.0, None),
        (of_each("100 - MIN([a, b])", gpu), 70.0, None),
        (of_each("ABS(a - b)", gpu), 70.0, None),
        (of_each("MAX([a, b]) * 1", cache), 100.0, Some("shows 100.00 at most")),
        // What these show at most is not where either of the two is at a bound, or need not be.
        (of_each("a * (100 - a) + b", cache), 2_500.0, None),
        (of_each("IF(a > 90, 0, a)", cache), 85.0, None),
        (of_each("100 * b / a", cache), 1_000.0, None),
        (of_each(average, Metric::RunningRequests), 1e9, None),
        (of_each("a", queue), 95.0, Some("with `queue_limit` = 100 and one proxy")),
        (weighted(), 0.7, Some("while only p5 is in service this `expression` shows 0.50")),
        (
            Signal::BuiltIn(BuiltIn::ConcurrencyPerCopy),
            15.0,
            Some(
                "while only g6 is in service this metric shows 8.00 when every slot is taken, and passes 16.50 only",
            ),
        ),
        (Signal::BuiltIn(BuiltIn::ConcurrencyPerCopy), 7.0, None),
        (
            Signal::BuiltIn(BuiltIn::QueueDepth),
            5_000.0,
            Some(
                "shows 100.00 at most and never passes 5500.00, with `queue_limit` = 100 and one proxy",
            ),
        ),
        (Signal::BuiltIn(BuiltIn::QueueDepth), 50.0, None),
        (Signal::BuiltIn(BuiltIn::Utilization), 0.95, Some("shows 1.00 when every slot is taken")),
        (Signal::BuiltIn(BuiltIn::ModelLatencyP99), 1e9, None),
    ] {
        let told = reached(signal.clone(), target);
        let case = format!("{signal:?}: {told:?}");
        match says {
            None => assert_eq!(told, None, "{case}"),
            Some(text) => assert!(told.is_some_and(|told| told.contains(text)), "{case}"),
        }
    }
}

#[test]
fn a_step_that_cannot_be_reached_is_warned_of() {
    let facts = types();
    let limits = Limits { types: &facts, queue: 100 };
    let warns = |above, steps: &[(Option<f64>, f64)]| {
        let step =
            |(from, change): &(Option<f64>, f64)| Step { from: *from, to: None, change: *change };
        let rule = Rule::Step {
            threshold: 0.4,
            above,
            adjustment: Adjustment::ChangeInCapacity,
            least: 0,
            steps: steps.iter().map(step).collect(),
        };
        out_of_reach(&ScalingPolicy { rule, ..tracking(weighted()) }, &limits).is_some()
    };
    assert!(!warns(true, &[(Some(0.0), 1.0)]));
    assert!(warns(true, &[(Some(0.7), 1.0)]), "it begins at 1.1");
    assert!(!warns(true, &[(Some(0.0), 1.0), (Some(0.7), 3.0)]), "the first one is reached");
    assert!(warns(true, &[(Some(0.0), 0.0), (Some(0.7), 3.0)]), "which does nothing");
    assert!(!warns(true, &[(Some(0.7), -1.0)]), "it is not there to grow by");
    assert!(!warns(false, &[(None, 1.0)]));
}
