//! Everything at once, from a seed: slow and silent providers, vanishing capacity, dying workers and
//! managers, scaling, reloads, interruptions. Whatever happened, once it is quiet the fleet is what it
//! should be. The simulator does the same at length; this is the quick form beside the code.

use super::super::jitter::Jitter;
use super::specs::*;
use super::world::*;
use crate::decision::controller::Event;
use crate::types::InstanceState::InService;
use crate::types::launch::ProviderStatus;
use crate::types::spec::{Fallback, FleetSpec, Rebalance};

const TYPES: [&str; 3] = ["type-a", "type-b", "far.type-c"];

fn pick<T: Copy>(chance: &mut Jitter, among: &[T]) -> T {
    among[usize::try_from(chance.draw() % among.len() as u64).expect("small")]
}

fn random_fleet(chance: &mut Jitter) -> std::sync::Arc<FleetSpec> {
    let pools = [
        &[(TYPES[0], 1), (TYPES[1], 2), (TYPES[2], 3)][..],
        &[(TYPES[1], 1), (TYPES[0], 1)],
        &[(TYPES[2], 1), (TYPES[0], 2)],
    ];
    let mut variants = ["e", "f"].map(|name| (name, variant(pick(chance, &pools), 3)));
    for (name, spec) in &mut variants {
        spec.fallback =
            pick(chance, &[Fallback::AfterWindow, Fallback::AtOnce, Fallback::Parallel]);
        spec.rebalance.mode = pick(chance, &[Rebalance::Active, Rebalance::OnScaleOut]);
        spec.max_instance_count = 6;
        spec.drain_timeout = secs(pick(chance, &[5, 60]));
        if *name == "f" {
            spec.min_instance_count = 0;
            spec.scale_to_zero_after = Some(secs(40));
        }
    }
    // Every type stays configured, whether a pool uses it or not.
    let mut spec = (*fleet(&variants)).clone();
    let unused = fleet(&[("x", variant(&TYPES.map(|name| (name, 1)), 1))]);
    spec.instance_types.extend(unused.instance_types.clone());
    std::sync::Arc::new(spec)
}

fn disturb(world: &mut World, chance: &mut Jitter) {
    let ids: Vec<_> = world.running.keys().cloned().collect();
    let name = kind(pick(chance, &TYPES));
    match chance.draw() % 13 {
        0..=2 => {
            world.capacity.insert(name, pick(chance, &[0, 1, 2, 9]));
        }
        3 if !ids.is_empty() => {
            let id = &ids[usize::try_from(chance.draw()).unwrap_or(0) % ids.len()];
            world.running.remove(id);
        }
        4 if !ids.is_empty() => {
            let id = &ids[usize::try_from(chance.draw()).unwrap_or(0) % ids.len()];
            let end = world.now + secs(pick(chance, &[3, 60]));
            let one = world.running.get_mut(id).expect("runs");
            match chance.draw() % 4 {
                0 => one.interruption_at = Some(end),
                1 => one.healthy = false,
                2 => one.status = ProviderStatus::Stopping,
                _ => one.status = ProviderStatus::Ended { reason: "exit code 1".to_owned() },
            }
        }
        5 | 6 => {
            let count = pick(chance, &[1, 2, 4, 6]);
            let endpoint = pick(chance, &["e", "f"]);
            world.scale(endpoint, count);
        }
        7 => world.mumbling = !world.mumbling,
        8 => {
            let (sick, rejects) = (&mut world.sick, &mut world.rejects);
            let set = if chance.draw() & 1 == 0 { sick } else { rejects };
            if !set.remove(&name) {
                set.insert(name);
            }
        }
        9 => {
            let routed = world.routed();
            let busy = routed.into_iter().map(|id| (id, pick(chance, &[0, 1, 5])));
            world.proxy = Some(busy.collect());
            world.queued = pick(chance, &[0, 0, 20]);
            world.arrivals += chance.draw() % 2;
        }
        10 => {
            world.spec = random_fleet(chance);
            let spec = world.spec.clone();
            world.feed(Event::Reconfigured(spec));
        }
        11 => world.dies_after = Some(usize::try_from(chance.draw() % 12).expect("small")),
        _ => world.slow_ms = pick(chance, &[0, 300, 5_000]),
    }
}

fn calm(world: &mut World) {
    world.dies_after = None;
    world.slow_ms = 0;
    world.mumbling = false;
    world.sick.clear();
    world.rejects.clear();
    world.queued = 0;
    world.proxy = Some([].into());
    world.running.retain(|_, r| matches!(r.status, ProviderStatus::Running));
    for one in world.running.values_mut() {
        one.healthy = true;
        one.interruption_at = None;
    }
    for name in TYPES {
        world.capacity.insert(kind(name), 99);
    }
    if !world.is_alive() {
        world.start();
    }
    world.run(secs(1_500));
}

fn live_through(seed: u64) {
    let mut chance = Jitter::new(seed);
    let mut world = World::new(random_fleet(&mut chance));
    world.chance = Jitter::new(seed ^ 0xfeed);
    for _ in 0..40 {
        if world.is_alive() {
            disturb(&mut world, &mut chance);
        }
        world.run(secs(pick(&mut chance, &[0, 1, 5, 30])));
        if !world.is_alive() {
            world.start();
        }
    }
    calm(&mut world);
    world.assert_settled();
    for record in &world.store.variants {
        let of = |i: &&crate::types::record::InstanceRecord| i.variant == record.variant;
        let in_service =
            world.store.instances.iter().filter(of).filter(|i| i.state == InService).count();
        assert_eq!(in_service, record.desired as usize, "{}", record.variant);
    }
}

#[test]
fn whatever_happens_the_fleet_comes_out_right() {
    let seeds = std::env::var("FOREBAY_CHAOS_SEEDS").ok().and_then(|n| n.parse().ok());
    for seed in 0..seeds.unwrap_or(150) {
        let lived = std::panic::catch_unwind(|| live_through(seed));
        if let Err(panic) = lived {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}
