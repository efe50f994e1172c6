//! The manager dies between any two of its acts, and the next one finds exactly the desired fleet: no
//! orphan, no double, nothing forgotten.

use super::specs::*;
use super::world::*;
use crate::types::InstanceState::{Draining, InService, Pending, Starting};

/// Lets the manager die after `n` acts of `during`, starts another, and gives it time.
fn survive(n: usize, mut world: World, during: impl Fn(&mut World)) -> Option<World> {
    world.dies_after = Some(n);
    during(&mut world);
    if world.is_alive() {
        return None;
    }
    world.start();
    world.run(secs(700));
    Some(world)
}

/// Kills the manager after each number of acts until it lives through the whole of `during`.
fn sweep(world: impl Fn() -> World, during: impl Fn(&mut World), check: impl Fn(usize, &World)) {
    for n in 0.. {
        let Some(world) = survive(n, world(), &during) else {
            assert!(n > 10, "only {n} points were tried");
            return;
        };
        check(n, &world);
    }
}

#[test]
fn while_the_fleet_comes_up() {
    let run = |world: &mut World| {
        world.run(secs(30));
    };
    sweep(quickstart, run, |n, world| {
        world.assert_settled();
        assert_eq!(world.in_service(), (1, 2), "after {n} acts");
    });
}

fn settled() -> World {
    let mut world = quickstart();
    world.run(secs(40));
    assert_eq!(world.in_service(), (1, 2));
    world
}

#[test]
fn while_it_grows_and_shrinks() {
    let scales = |world: &mut World| {
        for count in [5, 2] {
            if world.is_alive() {
                world.scale("e", count);
                world.run(secs(40));
            }
        }
    };
    sweep(settled, scales, |n, world| {
        world.assert_settled();
        let desired = world.store.variants[0].desired as usize;
        let (preferred, fallback) = world.in_service();
        assert_eq!((preferred, preferred + fallback), (1, desired), "after {n} acts");
    });
}

#[test]
fn while_a_worker_is_replaced() {
    let kill = |world: &mut World| {
        let victim = world.ids(G6, InService)[0].clone();
        world.running.remove(&victim);
        world.run(secs(40));
    };
    sweep(settled, kill, |n, world| {
        world.assert_settled();
        assert_eq!(world.in_service(), (1, 2), "after {n} acts");
    });
}

#[test]
fn while_launches_go_unanswered() {
    let world = || {
        let mut world = World::new(fleet(&[("e", variant(&[(G6, 1)], 3))]));
        world.mumbling = true;
        world
    };
    let run = |world: &mut World| {
        world.run(secs(20));
        world.mumbling = false;
    };
    sweep(world, run, |n, world| {
        world.assert_settled();
        assert_eq!(world.in_service(), (0, 3), "after {n} acts");
    });
}

#[test]
fn restored_instances_are_routed_to_at_once() {
    let mut world = settled();
    let backends = world.table.endpoints[0].variants[0].backends.clone();
    world.hanging.insert(crate::types::ProviderName::new("local").expect("a name"));
    world.start();
    world.run(ms(1));
    assert_eq!(world.table.version.to_string(), "2.1");
    assert_eq!(world.table.endpoints[0].variants[0].backends, backends);
    assert_eq!(
        world.launches.iter().map(|b| b.instances.len()).sum::<usize>(),
        world.asked(P5) + 2
    );
}

#[test]
fn what_was_asked_for_and_is_no_longer_wanted_is_ended() {
    let mut world = World::new(fleet(&[("e", variant(&[(G6, 1)], 3))]));
    world.hanging.insert(crate::types::ProviderName::new("local").expect("a name"));
    world.run(secs(1));
    world.hanging.clear();
    world.start();
    world.dies_after = Some(4);
    world.run(secs(1));
    assert_eq!(world.count(G6, Pending), 3, "recorded, and not launched: {:?}", world.shape());
    assert!(!world.is_alive());
    world.store.variants[0].desired = 1;
    world.start();
    world.run(secs(30));
    world.assert_settled();
    assert_eq!(world.in_service(), (0, 1));
}

#[test]
fn a_drain_goes_on_after_a_restart_and_waits_for_the_proxies_to_come_back() {
    let mut world = settled();
    let victim = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(victim.clone(), 1)].into());
    world.run(secs(2));
    let now = world.now;
    world.controller().drain(now, victim.as_str()).expect("known");
    world.run(secs(2));
    let deadline = world.record(&victim).expect("recorded").drain_deadline;
    world.start();
    world.run(secs(100));
    let record = world.record(&victim).expect("recorded");
    assert_eq!((record.state, record.drain_deadline), (Draining, deadline));
    world.proxy = Some([(victim.clone(), 0)].into());
    world.run(secs(5));
    assert!(world.record(&victim).is_none());
}

#[test]
fn a_proxy_that_was_heard_before_a_restart_is_waited_for_after_it() {
    let mut world = settled();
    let victim = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(victim.clone(), 1)].into());
    world.run(secs(2));
    // It is cut off, and serves on by the table that it has.
    world.proxy = None;
    world.start();
    let now = world.now;
    world.controller().drain(now, victim.as_str()).expect("known");
    world.run(secs(590));
    assert!(world.running.contains_key(&victim));
    world.proxy = Some([(victim.clone(), 0)].into());
    world.run(secs(5));
    assert!(!world.running.contains_key(&victim));
    assert!(world.events("drain_expired").is_empty());
}

#[test]
fn after_a_restart_a_proxy_never_heard_has_time_to_report() {
    let mut world = settled();
    let victim = world.ids(G6, InService)[0].clone();
    world.start();
    let now = world.now;
    world.controller().drain(now, victim.as_str()).expect("known");
    world.run(ms(2_500));
    assert!(world.running.contains_key(&victim), "a proxy may still come back");
    world.run(secs(1));
    assert!(!world.running.contains_key(&victim));
}

#[test]
fn the_capacity_memory_survives() {
    let mut world = quickstart();
    world.run(secs(24));
    assert_eq!(world.in_service(), (1, 2));
    let refused = world.events("launch_refused").len();
    world.start();
    world.scale("e", 4);
    world.run(secs(2));
    assert_eq!(world.events("launch_refused").len(), refused, "held: the fallback is asked");
    assert_eq!(world.count(G6, Starting) + world.count(G6, InService), 3);
}
