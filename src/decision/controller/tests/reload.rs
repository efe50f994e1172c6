//! Another spec while the fleet runs: the difference is applied, nothing else.

use super::specs::*;
use super::world::*;
use crate::decision::controller::Event;
use crate::types::InstanceState::InService;
use crate::types::spec::{FleetSpec, VariantSpec};

fn reload(world: &mut World, endpoints: &[(&str, VariantSpec)]) {
    let spec = fleet(endpoints);
    world.spec = spec.clone();
    world.feed(Event::Reconfigured(spec));
}

#[test]
fn an_unchanged_spec_changes_nothing() {
    let mut world = quickstart();
    world.run(secs(60));
    world.scale("e", 4);
    world.run(secs(30));
    let (version, launches) = (world.table.version, world.launches.len());
    let spec = world.spec.clone();
    world.feed(Event::Reconfigured(spec));
    world.run(secs(30));
    assert_eq!((world.table.version, world.launches.len()), (version, launches));
    assert_eq!(world.store.variants[0].desired, 4, "only a changed initial count resets it");
}

#[test]
fn a_changed_initial_count_and_changed_bounds_apply() {
    let mut world = quickstart();
    world.run(secs(60));
    world.scale("e", 6);
    world.run(secs(30));
    let mut spec = variant(&[(P5, 1), (G6, 2)], 3);
    spec.max_instance_count = 5;
    reload(&mut world, &[("e", spec)]);
    world.run(secs(30));
    assert_eq!(world.store.variants[0].desired, 5, "clamped");
    reload(&mut world, &[("e", variant(&[(P5, 1), (G6, 2)], 2))]);
    world.run(secs(30));
    assert_eq!(world.in_service(), (1, 1));
    world.assert_settled();
}

#[test]
fn a_removed_pool_drains_after_its_replacements_are_in_service() {
    let mut world = quickstart();
    world.run(secs(60));
    world.capacity.insert(kind("ml.g5.48xlarge"), 1);
    reload(&mut world, &[("e", variant(&[(P5, 1), ("ml.g5.48xlarge", 3)], 3))]);
    let end = world.now + secs(120);
    while world.now < end {
        world.run(secs(1));
        assert!(world.table.endpoints[0].variants[0].backends.len() >= 3);
    }
    assert_eq!(world.in_service(), (1, 1), "one could be replaced, the other serves on");
    world.capacity.insert(kind("ml.g5.48xlarge"), 9);
    world.run(secs(320));
    assert_eq!(world.count("ml.g5.48xlarge", InService), 2);
    assert_eq!(world.in_service(), (1, 0));
    world.assert_settled();
}

#[test]
fn priorities_change_without_moving_anybody() {
    let mut world = quickstart();
    world.run(secs(60));
    let running: Vec<_> = world.running.keys().cloned().collect();
    reload(&mut world, &[("e", variant(&[(G6, 1), (P5, 2)], 3))]);
    world.run(secs(60));
    assert_eq!(world.running.keys().cloned().collect::<Vec<_>>(), running);
    world.scale("e", 2);
    world.run(secs(30));
    assert_eq!(world.in_service(), (0, 2), "the other is the fallback now");
}

#[test]
fn a_removed_variant_leaves_the_table_at_once_and_is_deleted_when_drained() {
    let mut world = quickstart();
    world.run(secs(60));
    let busy = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(busy.clone(), 1)].into());
    world.run(secs(2));
    reload(&mut world, &[("f", variant(&[(G6, 1)], 1))]);
    world.run(secs(30));
    assert!(world.running.contains_key(&busy), "its request runs");
    assert!(world.table.endpoints.iter().all(|e| e.name.as_str() == "f"));
    let now = world.now;
    let status = world.controller().status(now);
    let shown: Vec<_> =
        status.endpoints.iter().map(|e| (e.name.as_str(), e.status.as_str())).collect();
    assert_eq!(shown, [("f", "InService"), ("e", "Deleting")]);
    world.proxy = Some([].into());
    world.run(secs(10));
    world.assert_settled();
    let left: Vec<_> = world.store.variants.iter().map(|v| v.variant.to_string()).collect();
    assert_eq!(left, ["f/primary"]);
}

#[test]
fn a_variant_that_was_removed_while_no_manager_ran_is_drained() {
    let mut world = quickstart();
    world.run(secs(60));
    world.spec = std::sync::Arc::new(FleetSpec::default());
    world.start();
    world.run(secs(30));
    assert!(world.running.is_empty());
    assert!(world.store.instances.is_empty() && world.store.variants.is_empty());
}

#[test]
fn limits_apply_to_running_instances() {
    let mut world = quickstart();
    world.run(secs(60));
    let mut spec = (*world.spec).clone();
    for kind in spec.instance_types.values_mut() {
        kind.max_concurrency = 3;
    }
    world.feed(Event::Reconfigured(std::sync::Arc::new(spec)));
    world.run(secs(1));
    let backends = &world.table.endpoints[0].variants[0].backends;
    assert!(backends.iter().all(|b| b.max_concurrency == 3));
    assert_eq!(backends.len(), 3);
}
