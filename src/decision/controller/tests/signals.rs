//! What instances tell of themselves: how long it counts, what is scaled by it, and what never follows from it.

use std::collections::BTreeMap;

use super::super::Event;
use super::specs::*;
use super::world::*;
use crate::types::report::{BackendReport, LoadReport, ProxyReport};
use crate::types::scaling::{Metric, MetricQuery, Rule, ScalingPolicy, Signal, Statistic};
use crate::types::signals::Signals;
use crate::types::status::InstanceStatus;
use crate::types::{Generation, InstanceId, ProxyId};

fn busy(share: f64) -> Signals {
    Signals { gpu: Some(share), running: Some(3.0), ..Signals::default() }
}

/// Two instances in service, a preferred one and a fallback.
fn two(policies: Vec<ScalingPolicy>) -> World {
    let mut variant = variant(&[(P5, 1), (G6, 2)], 2);
    variant.max_instance_count = 4;
    variant.scaling = policies;
    let mut world = World::new(fleet(&[("e", variant)]));
    world.capacity.insert(kind(P5), 1);
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 1));
    world
}

fn instances(world: &mut World) -> Vec<InstanceStatus> {
    let now = world.now;
    world.controller().status(now).endpoints[0].variants[0].instances.clone()
}

fn tell(world: &mut World, which: &InstanceStatus, signals: Signals, problem: Option<&str>) {
    world.feed(Event::Signals {
        instance: which.id.clone(),
        generation: which.generation,
        signals,
        problem: problem.map(str::to_owned),
    });
}

#[test]
fn what_is_told_is_shown_while_it_is_fresh_and_what_is_missing_is_explained() {
    let mut world = two(vec![]);
    let first = instances(&mut world).remove(0);
    tell(&mut world, &first, busy(0.5), None);
    assert_eq!(instances(&mut world)[0].signals, busy(0.5));
    // A scrape that brings nothing takes nothing away, and says why.
    tell(&mut world, &first, Signals::default(), Some(&"answered 501; ".repeat(100)));
    let shown = instances(&mut world).remove(0);
    assert_eq!(shown.signals, busy(0.5));
    assert!(shown.signals_problem.is_some_and(|problem| problem.len() <= 300));
    let now = world.now;
    let explained = world.controller().explain(now, "e").expect("an endpoint").summary;
    let about = format!("{} does not tell all of its load: answered 501", first.id);
    assert!(explained.iter().any(|line| line.starts_with(&about)), "{explained:?}");
    // Three intervals of 15 s, and ten seconds.
    world.run(secs(54));
    assert_eq!(instances(&mut world)[0].signals, busy(0.5));
    world.run(secs(2));
    assert_eq!(instances(&mut world)[0].signals, Signals::default());
    tell(&mut world, &first, busy(0.25), None);
    let shown = instances(&mut world).remove(0);
    assert_eq!((shown.signals, shown.signals_problem), (busy(0.25), None));
}

#[test]
fn an_earlier_start_and_an_unknown_instance_tell_nothing() {
    let mut world = two(vec![]);
    let first = instances(&mut world).remove(0);
    let earlier =
        InstanceStatus { generation: Generation(first.generation.0 + 1), ..first.clone() };
    tell(&mut world, &earlier, busy(0.5), Some("x"));
    let unknown = InstanceStatus { id: InstanceId::new("i-nobody").expect("a name"), ..first };
    tell(&mut world, &unknown, busy(0.5), Some("x"));
    for shown in instances(&mut world) {
        assert_eq!((shown.signals, shown.signals_problem), (Signals::default(), None));
    }
}

#[test]
fn nothing_is_replaced_or_moved_for_what_it_tells() {
    let mut world = two(vec![]);
    let before = instances(&mut world);
    for _ in 0..100 {
        for instance in &before {
            let full = Signals {
                running: Some(1e18),
                waiting: Some(1e18),
                kv_cache: Some(1.0),
                gpu: Some(1.0),
                gpu_memory: Some(1.0),
            };
            tell(&mut world, instance, full, Some("no answer in 5s"));
        }
        world.run(secs(10));
    }
    let ids = |all: &[InstanceStatus]| all.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&instances(&mut world)), ids(&before));
}

#[test]
fn what_comes_along_with_answers_fills_gaps_for_a_while() {
    let mut world = two(vec![]);
    let first = instances(&mut world).remove(0);
    let sent = |waiting, age_ms| {
        let signals = Signals { waiting: Some(waiting), running: Some(9.0), ..Signals::default() };
        Some(LoadReport { age_ms, signals })
    };
    let report = |world: &mut World, generation, load| {
        let proxy = ProxyReport {
            proxy: ProxyId::new("other").expect("a name"),
            run: 1,
            applied: world.table.version,
            backends: vec![BackendReport {
                instance: first.id.clone(),
                generation,
                outstanding: 0,
                connect_failures: 0,
                progressed: false,
                stalled: false,
                load,
            }],
            variants: vec![],
            leaving: false,
            draining_until: None,
        };
        world.feed(Event::Reported(proxy));
    };
    let shown = |world: &mut World| instances(world)[0].signals;
    report(&mut world, Generation(first.generation.0 + 1), sent(1.0, 0));
    assert!(shown(&mut world).is_empty(), "of another start");
    report(&mut world, first.generation, sent(2.0, 5_000));
    assert_eq!((shown(&mut world).waiting, shown(&mut world).running), (Some(2.0), Some(9.0)));
    // What another proxy heard before is older.
    report(&mut world, first.generation, sent(3.0, 6_000));
    assert_eq!(shown(&mut world).waiting, Some(2.0));
    report(&mut world, first.generation, sent(f64::INFINITY, 0));
    assert_eq!((shown(&mut world).waiting, shown(&mut world).running), (None, Some(9.0)));
    // A scrape is asked for and knows better.
    tell(&mut world, &first, busy(0.5), None);
    report(&mut world, first.generation, sent(4.0, 0));
    assert_eq!(shown(&mut world), Signals { waiting: Some(4.0), ..busy(0.5) });
    world.run(secs(31));
    assert_eq!(shown(&mut world), busy(0.5));
}

/// Tracks half of the GPUs' time, over all types together.
fn by_gpu() -> ScalingPolicy {
    let query = MetricQuery {
        metric: Metric::GpuUtilization,
        instance_type: None,
        statistic: Statistic::Average,
    };
    ScalingPolicy {
        name: "gpu".into(),
        signal: Signal::Expression {
            text: "gpu".into(),
            metrics: BTreeMap::from([("gpu".to_owned(), query)]),
        },
        period: secs(60),
        scale_out_periods: 2,
        scale_in_periods: 2,
        scale_out_cooldown: secs(60),
        scale_in_cooldown: secs(60),
        scale_in: true,
        rule: Rule::TargetTracking { target: 50.0, tolerance: 0.1 },
    }
}

fn desired(world: &mut World) -> u32 {
    let now = world.now;
    world.controller().status(now).endpoints[0].variants[0].desired_instance_count
}

#[test]
fn a_policy_scales_by_the_gpus_and_never_in_without_their_data() {
    let mut world = two(vec![by_gpu()]);
    let hold = |world: &mut World, share: f64, seconds: u64| {
        for _ in 0..seconds / 10 {
            for instance in instances(world) {
                tell(world, &instance, busy(share), None);
            }
            world.run(secs(10));
        }
    };
    hold(&mut world, 0.9, 190);
    // ceil(2 × 90 / 50).
    assert_eq!(desired(&mut world), 4);
    let told = world.events("autoscaled");
    assert!(told[0].contains("90.00 is above 55.00"), "{told:?}");
    world.run(secs(1_200));
    assert_eq!(desired(&mut world), 4, "no data scales nothing in");
    hold(&mut world, 0.1, 400);
    assert_eq!(desired(&mut world), 1);
}
