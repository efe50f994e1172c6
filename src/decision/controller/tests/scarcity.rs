//! Pools without capacity: windows, passes, memory, partial grants, and the way back.

use super::specs::*;
use super::world::*;
use crate::types::InstanceState::InService;
use crate::types::spec::{Fallback, Rebalance};

const A: &str = "type-a";
const B: &str = "type-b";
const C: &str = "type-c";

fn three_pools(fallback: Fallback, initial: u32) -> World {
    let mut spec = variant(&[(A, 1), (B, 2), (C, 3)], initial);
    spec.fallback = fallback;
    let mut world = World::new(fleet(&[("e", spec)]));
    for name in [A, B, C] {
        world.capacity.insert(kind(name), 0);
    }
    world
}

#[test]
fn at_once_falls_through_without_waiting() {
    let mut world = three_pools(Fallback::AtOnce, 3);
    world.capacity.insert(kind(A), 1);
    world.capacity.insert(kind(C), 9);
    world.run(secs(2));
    assert_eq!((world.count(A, InService), world.count(C, InService)), (1, 2));
    world.assert_settled();
}

#[test]
fn after_window_gives_each_pool_its_window_and_then_comes_up_wherever_anything_is_free() {
    let mut world = three_pools(Fallback::AfterWindow, 2);
    world.run(secs(15));
    assert_eq!((world.asked(B), world.asked(C)), (0, 0));
    world.run(secs(10));
    assert!(world.asked(B) > 0);
    assert_eq!(world.asked(C), 0);
    world.run(secs(20));
    assert!(world.asked(C) > 0);
    world.run(secs(600));
    for name in [A, B, C] {
        let tries = world.asked(name);
        assert!(tries < 40, "{name} was asked {tries} times in ten minutes");
    }
    world.capacity.insert(kind(B), 2);
    world.run(secs(301));
    assert_eq!(world.count(B, InService), 2, "{:?}", world.shape());
    world.assert_settled();
}

#[test]
fn parallel_keeps_whichever_answers_and_releases_the_surplus() {
    let mut world = three_pools(Fallback::Parallel, 3);
    world.capacity.insert(kind(B), 9);
    world.run(secs(5));
    assert_eq!(world.count(B, InService), 3);
    world.capacity.insert(kind(A), 2);
    world.run(secs(14));
    assert_eq!((world.count(A, InService), world.count(B, InService)), (2, 1));
    world.capacity.insert(kind(A), 3);
    world.run(secs(300));
    assert_eq!(
        (world.count(A, InService), world.count(B, InService)),
        (2, 1),
        "the window is over"
    );
    world.assert_settled();
}

#[test]
fn a_partial_grant_is_kept() {
    let mut world = three_pools(Fallback::AtOnce, 4);
    world.capacity.insert(kind(A), 2);
    world.capacity.insert(kind(B), 9);
    world.run(secs(3));
    assert_eq!((world.count(A, InService), world.count(B, InService)), (2, 2));
    assert_eq!(world.launches[0].instances.len(), 4, "one batch for the whole deficit");
    assert_eq!(world.launches[1].instances.len(), 2);
    let errors = world.controller().capacity_errors().clone();
    assert_eq!(errors[&(key("e"), kind(A))], 2);
}

#[test]
fn one_probe_at_a_time_over_all_endpoints_finds_out_that_capacity_is_back() {
    let spec = variant(&[(A, 1)], 3);
    let mut world = World::new(fleet(&[("e", spec.clone()), ("f", spec.clone()), ("g", spec)]));
    world.capacity.insert(kind(A), 0);
    world.run(secs(1_200));
    let probes = world.launches.len() - 3;
    assert!(probes < 80, "{probes} probes in twenty minutes");
    assert!(world.launches[3..].iter().all(|b| b.instances.len() == 1));
    world.capacity.insert(kind(A), 9);
    world.run(secs(305));
    assert_eq!(world.count(A, InService), 9);
    assert!(world.store.capacities.is_empty());
    assert!(!world.events("capacity_back").is_empty());
}

#[test]
fn a_held_pool_is_not_asked_first() {
    let mut world = quickstart();
    world.run(secs(24));
    let asked = world.asked(P5);
    world.scale("e", 4);
    world.run(secs(3));
    assert_eq!((world.asked(P5), world.in_service()), (asked, (1, 3)));
    world.run(secs(60));
    world.scale("e", 5);
    world.run(secs(3));
    assert_eq!(world.asked(P5), asked + 1, "one try, and no new window");
    assert_eq!(world.in_service(), (1, 4));
}

#[test]
fn active_variants_return_to_the_preferred_pool() {
    let mut spec = variant(&[(P5, 1), (G6, 2)], 4);
    spec.rebalance.mode = Rebalance::Active;
    spec.fallback = Fallback::AtOnce;
    let mut world = World::new(fleet(&[("e", spec)]));
    world.capacity.insert(kind(P5), 0);
    world.run(secs(30));
    assert_eq!(world.in_service(), (0, 4));
    world.capacity.insert(kind(P5), 3);
    let end = world.now + secs(400);
    while world.now < end {
        world.run(secs(1));
        let (preferred, fallback) = world.in_service();
        assert!((4..=5).contains(&(preferred + fallback)), "{:?}", world.shape());
    }
    assert_eq!(world.in_service(), (3, 1));
    world.assert_settled();
    assert!(world.events("move_started").len() >= 3);
}

#[test]
fn without_active_the_fleet_stays_where_it_is() {
    let mut world = quickstart();
    world.run(secs(60));
    world.capacity.insert(kind(P5), 9);
    world.run(secs(900));
    assert_eq!(world.in_service(), (1, 2));
    world.scale("e", 4);
    world.run(secs(60));
    assert_eq!(world.in_service(), (2, 2), "the next scale-out asks the preferred pool first");
}

#[test]
fn an_announced_interruption_is_replaced_first() {
    let mut world = quickstart();
    world.run(secs(60));
    let victim = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(victim.clone(), 1)].into());
    let at = world.now + secs(120);
    world.running.get_mut(&victim).expect("runs").interruption_at = Some(at);
    let mut replaced = false;
    while world.now < at {
        world.run(secs(1));
        assert!(world.in_service().0 + world.in_service().1 >= 3, "{:?}", world.shape());
        replaced |= world.in_service() == (1, 2) && !world.ids(G6, InService).contains(&victim);
    }
    assert!(replaced, "{:?}", world.shape());
    let deadline = world.record(&victim).and_then(|r| r.drain_deadline);
    assert!(deadline.is_none_or(|d| d <= at));
    world.run(secs(10));
    assert_eq!(world.in_service(), (1, 2));
    world.assert_settled();
}

#[test]
fn an_interruption_without_replacement_drains_within_the_notice() {
    let mut world = quickstart();
    world.run(secs(60));
    world.capacity.insert(kind(G6), 2);
    let victim = world.ids(G6, InService)[0].clone();
    let at = world.now + secs(120);
    world.running.get_mut(&victim).expect("runs").interruption_at = Some(at);
    world.run(secs(50));
    assert!(world.ids(G6, InService).contains(&victim), "it serves on");
    world.run(secs(30));
    assert!(!world.running.contains_key(&victim), "gone before the provider takes it");
    world.run(secs(400));
    assert_eq!(world.in_service(), (1, 2));
}
