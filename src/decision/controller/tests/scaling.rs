//! Scaling policies at work: what is measured, when they are asked, what becomes of it.

use super::specs::*;
use super::world::*;
use crate::decision::controller::CommandError;
use crate::types::Timestamp;
use crate::types::report::TypeReport;
use crate::types::scaling::{
    BuiltIn, Metric, MetricQuery, Rule, ScalingPolicy, Schedule, ScheduledAction, Signal, Statistic,
};

/// Tracks a utilisation of 0.7: out after three minutes, in after five.
fn busy() -> ScalingPolicy {
    ScalingPolicy {
        name: "busy".into(),
        signal: Signal::BuiltIn(BuiltIn::Utilization),
        period: secs(60),
        scale_out_periods: 3,
        scale_in_periods: 5,
        scale_out_cooldown: secs(300),
        scale_in_cooldown: secs(300),
        scale_in: true,
        rule: Rule::TargetTracking { target: 0.7, tolerance: 0.1 },
    }
}

/// One preferred instance and as many fallbacks as are wanted, two at first, each at this share of its slots.
fn scaled(policies: Vec<ScalingPolicy>) -> World {
    let mut variant = variant(&[(P5, 1), (G6, 2)], 2);
    variant.max_instance_count = 6;
    variant.scaling = policies;
    let mut world = World::new(fleet(&[("e", variant)]));
    world.capacity.insert(kind(P5), 1);
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 1));
    world
}

fn load(world: &mut World, share: f64) {
    let slots = |world: &World, id| {
        let kind = &world.running[id].instance_type;
        f64::from(world.spec.instance_types[kind].max_concurrency)
    };
    let ids: Vec<_> = world.running.keys().cloned().collect();
    let at = ids.iter().map(|id| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few")]
        (id.clone(), (slots(world, id) * share) as u32)
    });
    world.proxy = Some(at.collect());
}

fn desired(world: &mut World) -> u32 {
    let now = world.now;
    world.controller().status(now).endpoints[0].variants[0].desired_instance_count
}

#[test]
fn a_busy_fleet_grows_and_an_idle_one_shrinks_fallback_first() {
    let mut world = scaled(vec![busy()]);
    load(&mut world, 1.0);
    world.run(secs(175));
    assert_eq!(desired(&mut world), 2, "not three whole minutes yet");
    world.run(secs(65));
    // ceil(2 × 1.0 / 0.7).
    assert_eq!(desired(&mut world), 3);
    let told = world.events("autoscaled");
    assert!(
        told[0].contains(
            "policy busy takes e/primary from 2 to 3 instances: 1.00 is above 0.77 for 3 periods"
        ),
        "{told:?}"
    );
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 2));
    load(&mut world, 0.5);
    world.run(secs(900));
    assert_eq!(desired(&mut world), 3, "half of the slots taken is what three are for");
    load(&mut world, 0.1);
    world.run(secs(400));
    assert_eq!(desired(&mut world), 2, "in the first of those periods it was still more");
    world.run(secs(400));
    assert_eq!(desired(&mut world), 1);
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 0), "fallback first");
    let now = world.now;
    let status = world.controller().status(now);
    let policy = &status.endpoints[0].variants[0].scaling[0];
    assert_eq!(policy.name, "busy");
    assert!(policy.value.is_some_and(|value| value <= 0.1), "{policy:?}");
}

#[test]
fn it_stays_within_the_bounds_and_never_goes_to_zero() {
    let mut world = scaled(vec![busy()]);
    for _ in 0..12 {
        load(&mut world, 1.0);
        world.run(secs(300));
    }
    assert_eq!(desired(&mut world), 6, "the maximum");
    let now = world.now;
    let shown = world.controller().status(now).endpoints[0].variants[0].scaling[0].wants;
    assert_eq!(shown, Some(6), "of nine");
    let mut idle = variant(&[(P5, 3)], 2);
    idle.min_instance_count = 0;
    idle.scaling = vec![busy()];
    let mut world = World::new(fleet(&[("e", idle)]));
    world.run(secs(1_800));
    assert_eq!(desired(&mut world), 1);
    let now = world.now;
    let policy = &world.controller().status(now).endpoints[0].variants[0].scaling[0];
    assert_eq!(policy.wants, Some(1), "as few as policies go");
    let held = policy.held_back.as_deref();
    assert_eq!(held, Some("it wants 0, but policies leave one at least"));
}

#[test]
fn what_holds_a_policy_back_is_told() {
    let mut world = scaled(vec![busy()]);
    // There is no third: two have all the load the whole time.
    world.capacity.insert(kind(G6), 1);
    load(&mut world, 1.0);
    world.run(secs(240));
    assert_eq!(desired(&mut world), 3);
    world.scale("e", 2);
    world.run(secs(70));
    assert_eq!(desired(&mut world), 2);
    let now = world.now;
    let why = world.controller().explain(now, "e").expect("known").summary.join("\n");
    assert!(why.contains("policy busy: it wants 3, but it was scaled out to 3 at "), "{why}");
    assert!(why.contains("(scale_out_cooldown)"), "{why}");
    world.run(secs(300));
    assert_eq!(desired(&mut world), 3, "the cooldown is over");
}

#[test]
fn a_fleet_that_nobody_reports_of_keeps_its_size() {
    let mut world = scaled(vec![busy()]);
    world.proxy = None;
    world.run(secs(1_800));
    assert_eq!(desired(&mut world), 2);
}

#[test]
fn cooldowns_outlive_a_restart_and_what_was_measured_does_not() {
    let mut policy = busy();
    policy.scale_in_cooldown = secs(3_600);
    let mut world = scaled(vec![policy]);
    world.scale("e", 6);
    world.run(secs(120));
    load(&mut world, 0.3);
    world.run(secs(400));
    assert_eq!(desired(&mut world), 3, "ceil(6 × 0.3 / 0.7)");
    world.start();
    load(&mut world, 0.1);
    world.run(secs(240));
    assert_eq!(desired(&mut world), 3, "five minutes are not measured yet");
    world.run(secs(1_800));
    assert_eq!(desired(&mut world), 3, "it has scaled in within the hour");
    world.run(secs(2_400));
    assert_eq!(desired(&mut world), 1);
}

#[test]
fn durations_are_counted_from_one_report_to_the_next() {
    let mut policy = busy();
    policy.signal = Signal::BuiltIn(BuiltIn::ModelLatencyP99);
    policy.rule = Rule::TargetTracking { target: 2.0, tolerance: 0.0 };
    let mut world = scaled(vec![policy]);
    let told = |slow: u64| {
        vec![TypeReport {
            instance_type: kind(P5),
            latency: vec![
                (crate::types::durations::bucket(secs(1)), 5_000),
                (crate::types::durations::bucket(secs(4)), slow),
            ],
            first_chunk: Vec::new(),
        }]
    };
    // What was counted before the first report of all is nobody's.
    world.durations = told(1_000);
    world.run(secs(600));
    assert_eq!(desired(&mut world), 2);
    // Until three whole minutes are slow.
    for minute in 1..=20 {
        if desired(&mut world) > 2 {
            assert!((4..=5).contains(&minute), "after {minute} minutes");
            break;
        }
        world.durations = told(1_000 + minute * 10);
        world.run(secs(60));
    }
    let now = world.now;
    let status = world.controller().status(now);
    let policy = &status.endpoints[0].variants[0].scaling[0];
    let value = policy.value.expect("a value");
    assert!((3.5..4.5).contains(&value), "{policy:?}");
    let size = desired(&mut world);
    assert!((4..=5).contains(&size), "ceil(2 × 4 s / 2 s), a bucket's width aside: {size}");
}

#[test]
fn a_reload_takes_over_other_policies() {
    let mut world = scaled(Vec::new());
    load(&mut world, 1.0);
    world.run(secs(600));
    assert_eq!(desired(&mut world), 2, "nobody said that it should grow");
    let mut spec = (*world.spec).clone();
    spec.endpoints[0].variants[0].scaling = vec![busy()];
    world.spec = std::sync::Arc::new(spec.clone());
    world.feed(crate::decision::controller::Event::Reconfigured(world.spec.clone()));
    world.run(secs(250));
    assert_eq!(desired(&mut world), 3, "what was measured before counts");
    assert!(world.now > Timestamp(0));
}

/// Between so many instances from `seconds` on.
fn from(seconds: u64, min: Option<u32>, max: Option<u32>) -> ScheduledAction {
    let name = format!("from-{seconds}");
    ScheduledAction { name, when: Schedule::At(Timestamp(seconds * 1_000)), min, max }
}

#[test]
fn scheduled_actions_move_the_bounds_and_the_size_with_them() {
    let mut variant = variant(&[(P5, 1), (G6, 2)], 2);
    variant.max_instance_count = 4;
    let start = World::new(fleet(&[])).now.0 / 1_000;
    variant.schedule = vec![
        from(start + 600, Some(5), Some(6)),
        from(start + 1_200, None, Some(1)),
        from(start + 1_800, None, None),
    ];
    let mut world = World::new(fleet(&[("e", variant)]));
    world.capacity.insert(kind(P5), 1);
    world.run(secs(590));
    assert_eq!(desired(&mut world), 2);
    let now = world.now;
    let told = world.controller().explain(now, "e").expect("known").summary.join("\n");
    assert!(told.contains("scheduled action from-") && told.contains("between 5 and 6"), "{told}");
    world.run(secs(20));
    assert_eq!(desired(&mut world), 5);
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 4));
    for count in [4, 7] {
        let now = world.now;
        let refused = world.controller().set_desired(now, "e", None, count);
        assert!(matches!(refused, Err(CommandError::OutOfBounds { min: 5, max: 6, .. })));
    }
    world.scale("e", 6);
    world.run(secs(1));
    // A manager that was away for the whole time comes to the same.
    world.start();
    world.run(secs(10));
    assert_eq!(desired(&mut world), 6);
    world.run(secs(600));
    assert_eq!(desired(&mut world), 1);
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 0), "fallback first");
    world.run(secs(600));
    world.scale("e", 4);
    assert_eq!(desired(&mut world), 4, "the variant's own bounds again");
    let told = world.events("scheduled");
    assert!(told[0].contains("which takes it from 2 to 5"), "{told:?}");
}

#[test]
fn policies_keep_to_the_bounds_in_force_and_a_sleeper_is_woken_by_them() {
    let mut busy_one = variant(&[(P5, 1), (G6, 2)], 2);
    busy_one.max_instance_count = 6;
    busy_one.scaling = vec![busy()];
    let start = World::new(fleet(&[])).now.0 / 1_000;
    busy_one.schedule = vec![from(start + 10, None, Some(3))];
    let mut world = World::new(fleet(&[("e", busy_one)]));
    world.capacity.insert(kind(P5), 1);
    world.run(secs(60));
    for _ in 0..4 {
        load(&mut world, 1.0);
        world.run(secs(300));
    }
    assert_eq!(desired(&mut world), 3);
    let mut sleeper = variant(&[(P5, 1)], 0);
    sleeper.min_instance_count = 0;
    sleeper.schedule = vec![from(start + 300, Some(1), None)];
    let mut world = World::new(fleet(&[("e", sleeper)]));
    world.run(secs(290));
    assert_eq!(desired(&mut world), 0);
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 0));
}

#[test]
fn a_dead_proxy_is_no_load_and_its_silence_no_reason_to_shrink() {
    let mut world = scaled(vec![busy()]);
    load(&mut world, 1.0);
    world.run(secs(100));
    // It dies, and another one reports, of nothing.
    world.proxy_name = "proxy-2";
    load(&mut world, 0.0);
    world.run(secs(1_800));
    assert_eq!(
        desired(&mut world),
        2,
        "neither out for what the dead one had nor in while it may have it"
    );
    let now = world.now;
    let status = world.controller().status(now);
    let value = status.endpoints[0].variants[0].scaling[0].value;
    assert_eq!(value, Some(0.0));
}

/// Looks at what all samples of this add up to.
fn sum(metric: Metric) -> ScalingPolicy {
    let query = MetricQuery { metric, instance_type: None, statistic: Statistic::Sum };
    let metrics = [("m".to_owned(), query)].into();
    ScalingPolicy { signal: Signal::Expression { text: "m".into(), metrics }, ..busy() }
}

#[test]
fn another_endpoints_short_periods_change_no_sum() {
    let other = |period| {
        let mut counts = variant(&[(P5, 1)], 2);
        counts.scaling = vec![sum(Metric::InstanceCount)];
        counts.scaling[0].rule = Rule::TargetTracking { target: 12.0, tolerance: 0.1 };
        let mut quick = variant(&[(G6, 1)], 1);
        quick.scaling = vec![ScalingPolicy { period, ..busy() }];
        let mut world = World::new(fleet(&[("e", counts), ("quick", quick)]));
        load(&mut world, 0.0);
        world.run(secs(240));
        let now = world.now;
        world.controller().status(now).endpoints[0].variants[0].scaling[0].value
    };
    let (alone, beside) = (other(secs(60)), other(std::time::Duration::from_millis(500)));
    assert_eq!(alone, Some(12.0), "two instances, six samples");
    assert!((beside.expect("a value") - 12.0).abs() < 1e-6, "{beside:?}");
}

#[test]
fn short_periods_scale_in_however_many_are_asked_for_and_whatever_is_asked_beside_them() {
    let mut slow = busy();
    slow.period = secs(5);
    slow.scale_in_periods = 217;
    let mut quick = busy();
    quick.name = "quick".into();
    quick.period = std::time::Duration::from_millis(500);
    quick.scale_in_periods = 10;
    for policies in [vec![slow.clone()], vec![slow, quick]] {
        let mut world = scaled(policies);
        load(&mut world, 0.7);
        world.run(secs(30));
        load(&mut world, 0.1);
        world.run(secs(1_060));
        assert_eq!(desired(&mut world), 2);
        world.run(secs(90));
        assert_eq!(desired(&mut world), 1);
    }
}

#[test]
fn a_bound_of_what_is_kept_is_told_of_once() {
    let mut world = scaled(vec![busy()]);
    let (key, now) = (key("e"), world.now);
    let measured = &mut world.controller().variants.get_mut(&key).expect("known").measured;
    measured.share_with(usize::MAX);
    for minute in 0..3_u64 {
        let at = Timestamp(now.0 + minute * 60_000);
        measured.record(at, Metric::QueueDepth, None, minute as f64);
    }
    world.run(secs(600));
    let told = world.events("measured_limit");
    assert!(told.len() == 1 && told[0].contains("less than 15 days"), "{told:?}");
}
