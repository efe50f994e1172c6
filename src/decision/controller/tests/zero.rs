//! To zero and back: demand wakes once, sized to the need, and nothing sleeps before it has served.

use super::specs::*;
use super::world::*;
use crate::types::InstanceState::InService;

fn sleeper() -> World {
    let mut spec = variant(&[(G6, 1)], 0);
    spec.min_instance_count = 0;
    spec.max_instance_count = 4;
    spec.scale_to_zero_after = Some(secs(60));
    let mut world = World::new(fleet(&[("e", spec)]));
    world.run(secs(30));
    assert!(world.running.is_empty());
    world
}

#[test]
fn a_burst_wakes_as_many_as_it_needs_in_one_step() {
    let mut world = sleeper();
    world.queued = 17;
    world.arrivals = 17;
    world.run(secs(5));
    assert_eq!(world.count(G6, InService), 3);
    assert_eq!(world.launches.len(), 1, "one decision");
    assert_eq!(world.events("woken").len(), 1);
}

#[test]
fn more_than_the_maximum_is_never_woken() {
    let mut world = sleeper();
    world.queued = 1_000;
    world.run(secs(5));
    assert_eq!(world.count(G6, InService), 4);
}

#[test]
fn a_request_that_came_and_went_wakes_too() {
    let mut world = sleeper();
    world.arrivals = 1;
    world.run(secs(5));
    assert_eq!(world.count(G6, InService), 1);
}

#[test]
fn nothing_sleeps_before_it_has_served_and_then_only_when_idle() {
    let mut world = sleeper();
    world.capacity.insert(kind(G6), 0);
    world.queued = 1;
    world.run(secs(3));
    world.queued = 0;
    world.run(secs(600));
    assert_eq!(world.store.variants[0].desired, 1, "latched until served");
    world.capacity.insert(kind(G6), 9);
    world.until(secs(301), |w| w.count(G6, InService) == 1);
    let served_at = world.now;
    world.run(secs(55));
    assert_eq!(world.count(G6, InService), 1);
    let id = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(id, 1)].into());
    world.run(secs(200));
    assert_eq!(world.count(G6, InService), 1, "a request still runs since {served_at}");
    world.proxy = Some([].into());
    world.run(secs(55));
    assert_eq!(world.count(G6, InService), 1);
    world.run(secs(15));
    assert!(world.running.is_empty(), "{:?}", world.shape());
    assert_eq!(world.events("to_zero").len(), 1);
    world.queued = 1;
    world.run(secs(5));
    assert_eq!(world.count(G6, InService), 1, "and wakes again");
}

#[test]
fn a_restart_neither_wakes_nor_forgets() {
    let mut world = sleeper();
    world.arrivals = 1;
    world.run(secs(70));
    world.run(secs(30));
    assert!(world.running.is_empty());
    world.start();
    world.run(secs(30));
    assert!(world.running.is_empty(), "old arrivals are no demand");
    world.hanging.insert(crate::types::ProviderName::new("local").expect("a name"));
    world.start();
    world.queued = 9;
    world.run(secs(3));
    world.queued = 0;
    world.run(secs(3));
    world.hanging.clear();
    world.start();
    world.queued = 9;
    world.run(secs(3));
    assert_eq!(world.count(G6, InService), 2);
}
