//! The main job: a fleet that falls back, grows, shrinks, drains and repairs itself.

use super::specs::*;
use super::world::*;
use crate::decision::controller::{Event, PROXY_MEMORY};
use crate::types::InstanceState::{Draining, InService, Starting};
use crate::types::launch::ProviderStatus;
use crate::types::report::ProxyReport;
use crate::types::table::TableVersion;
use crate::types::{ProxyId, Timestamp, VariantKey};

#[test]
fn one_preferred_and_two_fallbacks() {
    let mut world = quickstart();
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 2));
    world.assert_settled();
    let now = world.now;
    let status = world.controller().status(now);
    assert_eq!(status.endpoints[0].status, "InService");
    assert_eq!(status.endpoints[0].variants[0].price_per_hour, Some(7.5));
}

#[test]
fn the_fallback_waits_for_the_window() {
    let mut world = quickstart();
    world.run(secs(19));
    assert_eq!((world.in_service(), world.asked(G6)), ((1, 0), 0));
    world.run(secs(3));
    assert_eq!(world.in_service(), (1, 2));
}

#[test]
fn a_table_is_published_at_once_even_if_empty() {
    let mut world = quickstart();
    world.run(ms(0));
    assert_eq!(world.table.version.to_string(), "1.1");
    assert_eq!(world.table.endpoints.len(), 1);
}

#[test]
fn grows_from_the_preferred_and_shrinks_fallback_first() {
    let mut world = quickstart();
    world.run(secs(60));
    world.capacity.insert(kind(P5), 3);
    world.run(secs(400));
    world.scale("e", 5);
    world.run(secs(60));
    assert_eq!(world.in_service(), (3, 2));
    world.scale("e", 3);
    world.run(secs(60));
    assert_eq!(world.in_service(), (3, 0));
    world.scale("e", 1);
    world.run(secs(60));
    assert_eq!(world.in_service(), (1, 0));
    world.assert_settled();
}

#[test]
fn the_least_loaded_leaves_first() {
    let mut world = quickstart();
    world.run(secs(60));
    let fallbacks = world.ids(G6, InService);
    let busy = [(fallbacks[0].clone(), 0), (fallbacks[1].clone(), 4)];
    world.proxy = Some(busy.into());
    world.run(secs(2));
    world.scale("e", 2);
    world.run(secs(10));
    assert_eq!(world.ids(G6, InService), [fallbacks[1].clone()]);
}

#[test]
fn a_drain_waits_for_the_table_and_for_the_requests() {
    let mut world = quickstart();
    world.run(secs(60));
    let fallbacks = world.ids(G6, InService);
    world.proxy = Some(fallbacks.iter().map(|id| (id.clone(), 1)).collect());
    world.proxy_stuck = true;
    world.run(secs(2));
    world.scale("e", 2);
    world.run(secs(5));
    let leaving = world.ids(G6, Draining);
    assert_eq!(leaving.len(), 1);
    world.proxy = Some([(leaving[0].clone(), 0)].into());
    world.run(secs(60));
    assert_eq!(world.count(G6, Draining), 1, "the proxy still routes by a table that has it");
    world.proxy = Some([(leaving[0].clone(), 1)].into());
    world.proxy_stuck = false;
    world.run(secs(60));
    assert_eq!(world.count(G6, Draining), 1, "a request still runs");
    world.proxy = Some([(leaving[0].clone(), 0)].into());
    world.run(secs(5));
    assert_eq!(world.shape().len(), 2);
    world.assert_settled();
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let mut world = quickstart();
    world.run(secs(60));
    let victim = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(victim.clone(), 1)].into());
    world.run(secs(2));
    let now = world.now;
    world.controller().drain(now, victim.as_str()).expect("known");
    world.run(secs(590));
    assert!(world.running.contains_key(&victim));
    world.run(secs(20));
    assert!(!world.running.contains_key(&victim));
    assert_eq!(world.events("drain_expired").len(), 1);
    assert_eq!(world.in_service(), (1, 2), "it was replaced");
}

#[test]
fn a_silent_proxy_holds_drains_up_to_their_deadline() {
    let mut world = quickstart();
    world.run(secs(60));
    let victim = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(victim.clone(), 1)].into());
    world.run(secs(2));
    world.proxy = None;
    let now = world.now;
    world.controller().drain(now, victim.as_str()).expect("known");
    world.run(secs(590));
    assert_eq!(world.events("proxy_silent").len(), 1);
    assert!(world.running.contains_key(&victim), "it may still serve by the table that it had");
    world.run(secs(20));
    assert!(!world.running.contains_key(&victim));
    assert_eq!(world.events("drain_expired").len(), 1);
}

#[test]
fn a_proxy_that_has_left_or_is_dead_for_certain_holds_nothing_up() {
    for leaves in [true, false] {
        let mut world = quickstart();
        world.run(secs(60));
        let victim = world.ids(G6, InService)[0].clone();
        world.proxy = Some([(victim.clone(), 1)].into());
        world.run(secs(2));
        world.proxy = None;
        if leaves {
            world.feed(Event::Reported(ProxyReport {
                proxy: ProxyId::new("proxy-1").expect("a valid id"),
                run: 0,
                applied: TableVersion::default(),
                backends: Vec::new(),
                variants: Vec::new(),
                leaving: true,
                draining_until: None,
            }));
            world.run(secs(1));
        } else {
            world.run(PROXY_MEMORY);
            assert_eq!(world.events("proxy_forgotten").len(), 1);
        }
        assert!(world.store.proxies.is_empty());
        let now = world.now;
        world.controller().drain(now, victim.as_str()).expect("known");
        world.run(secs(5));
        assert!(!world.running.contains_key(&victim));
    }
}
#[test]
fn a_killed_worker_leaves_the_table_and_is_replaced() {
    let mut world = quickstart();
    world.run(secs(60));
    let victim = world.ids(G6, InService)[0].clone();
    world.running.remove(&victim);
    world.run(secs(6));
    assert!(world.record(&victim).is_none());
    world.run(secs(10));
    assert_eq!(world.in_service(), (1, 2));
    let victim = world.ids(G6, InService)[1].clone();
    let reason = "exit code 137".to_owned();
    world.running.get_mut(&victim).expect("runs").status = ProviderStatus::Ended { reason };
    world.run(secs(20));
    world.running.remove(&victim);
    assert_eq!(world.in_service(), (1, 2));
    assert!(world.events("instance_lost")[1].contains("exit code 137"));
}

#[test]
fn a_worker_that_fails_its_probes_is_replaced() {
    let mut world = quickstart();
    world.run(secs(60));
    let victim = world.ids(G6, InService)[0].clone();
    world.running.get_mut(&victim).expect("runs").healthy = false;
    world.run(secs(40));
    assert!(!world.running.contains_key(&victim));
    assert_eq!(world.in_service(), (1, 2));
    world.assert_settled();
    assert!(
        world.events("unhealthy")[0].contains("3 probes failed in a row, the last: status 500")
    );
}

#[test]
fn one_that_is_too_busy_for_probes_stays() {
    let mut world = quickstart();
    world.run(secs(60));
    let busy = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(busy.clone(), 8)].into());
    world.progress.insert(busy.clone());
    world.running.get_mut(&busy).expect("runs").healthy = false;
    world.run(secs(120));
    assert!(world.ids(G6, InService).contains(&busy));
    world.progress.clear();
    world.run(secs(60));
    assert!(!world.running.contains_key(&busy), "now it does nothing");
}

#[test]
fn one_that_answers_probes_and_finishes_nothing_is_replaced() {
    let mut world = quickstart();
    world.run(secs(60));
    let hung = world.ids(G6, InService)[0].clone();
    world.proxy = Some([(hung.clone(), 8)].into());
    world.stalls.insert(hung.clone());
    world.run(secs(3));
    assert_eq!(world.ids(G6, Draining), std::slice::from_ref(&hung));
    world.run(secs(40));
    assert!(!world.running.contains_key(&hung));
    assert!(world.events("unhealthy")[0].contains("8 requests of proxy proxy-1 wait"));
    assert_eq!(world.in_service(), (1, 2));
}

#[test]
fn a_rejected_launch_backs_off_and_does_not_march_through_the_pools() {
    let mut world = quickstart();
    world.rejects.insert(kind(P5));
    world.run(secs(120));
    assert_eq!(world.in_service(), (0, 0));
    assert_eq!(world.asked(G6), 0);
    let tries = world.events("launch_rejected").len();
    assert!((3..=8).contains(&tries), "{tries} tries");
    let now = world.now;
    let status = world.controller().status(now);
    let waiting = status.endpoints[0].variants[0].waiting_for.clone().expect("it waits");
    assert!(waiting.contains("no such image"), "{waiting}");
    world.rejects.clear();
    world.run(secs(330));
    assert_eq!(world.in_service(), (1, 2));
}

#[test]
fn one_that_never_gets_healthy_is_ended_and_its_pool_rests() {
    let mut world = quickstart();
    world.sick.insert(kind(P5));
    world.run(secs(30));
    let first = world.ids(P5, Starting);
    assert_eq!(first.len(), 1);
    world.run(secs(40));
    assert_ne!(world.ids(P5, Starting), first, "the first was ended, another is tried");
    assert!(!world.running.contains_key(&first[0]));
    assert!(world.events("startup_timeout")[0].contains("status 500"));
    assert_eq!(world.count(G6, InService), 2, "no more fallback than capacity asked for");
    world.sick.clear();
    world.run(secs(90));
    assert_eq!(world.in_service(), (1, 2));
}

#[test]
fn what_does_not_run_and_what_does_not_get_healthy_have_clocks_of_their_own() {
    let mut slow = variant(&[(P5, 1)], 1);
    slow.model_download_timeout = secs(20);
    slow.startup_timeout = secs(50);
    let spec = fleet(&[("e", slow)]);
    let mut world = World::new(spec.clone());
    world.sick.insert(kind(P5));
    world.run(secs(10));
    let first = world.ids(P5, Starting)[0].clone();
    world.run(secs(55));
    assert!(world.running.contains_key(&first), "it runs: both clocks are its");
    world.run(secs(10));
    assert!(!world.running.contains_key(&first));
    let told = world.events("startup_timeout");
    assert!(told[0].contains("model_download_timeout 20s + startup_timeout 50s"), "{told:?}");
    assert_eq!(world.events("download_timeout"), Vec::<String>::new());

    let mut world = World::new(spec);
    world.never_run.insert(kind(P5));
    world.run(secs(15));
    let first = world.ids(P5, Starting)[0].clone();
    world.run(secs(10));
    assert!(!world.running.contains_key(&first), "the first of its clocks is over");
    let told = world.events("download_timeout");
    assert!(told[0].contains("did not run"), "{told:?}");
    assert!(told[0].contains("(model_download_timeout 20s)"), "{told:?}");
}

#[test]
fn one_provider_that_hangs_delays_only_those_who_need_it() {
    let specs =
        [("near", variant(&[(G6, 1)], 2)), ("mixed", variant(&[(G6, 1), ("far.h100", 2)], 1))];
    let mut world = World::new(fleet(&specs));
    world.hanging.insert(crate::types::ProviderName::new("far").expect("a name"));
    world.run(secs(10));
    let of = |world: &World, key: &VariantKey| {
        world.store.instances.iter().filter(|i| i.variant == *key).count()
    };
    assert_eq!(of(&world, &key("near")), 2);
    assert_eq!(of(&world, &key("mixed")), 0, "nothing is decided on a partial picture");
    let now = world.now;
    let status = world.controller().status(now);
    let waiting = status.endpoints[1].variants[0].waiting_for.clone().expect("it waits");
    assert!(waiting.starts_with("waits for provider far"), "{waiting}");
}

#[test]
fn an_orphan_is_ended() {
    let mut world = quickstart();
    world.run(secs(60));
    let one = world.running.values().next().expect("runs").clone();
    let id = crate::types::InstanceId::new("nobody-knows-it").expect("a valid id");
    world.running.insert(id.clone(), one);
    world.run(secs(10));
    assert!(!world.running.contains_key(&id));
    assert_eq!(world.events("orphan_ended").len(), 1);
    assert_eq!(world.in_service(), (1, 2));
}

#[test]
fn without_an_answer_the_same_ids_are_asked_for_again() {
    let mut world = World::new(fleet(&[("e", variant(&[(G6, 1)], 2))]));
    world.mumbling = true;
    world.run(secs(5));
    assert_eq!(world.running.len(), 2, "launched once, adopted from the list");
    world.mumbling = false;
    world.run(secs(10));
    assert_eq!(world.in_service(), (0, 2));
    world.assert_settled();
}

#[test]
fn commands_check_what_they_are_given() {
    let mut world = quickstart();
    world.run(secs(1));
    let now: Timestamp = world.now;
    let refused = |error: crate::decision::controller::CommandError| error.to_string();
    let controller = world.controller();
    assert_eq!(
        controller.set_desired(now, "e", None, 21).map_err(refused),
        Err("21 instances are outside the bounds 1 to 20 of e/primary".to_owned())
    );
    assert_eq!(
        controller.set_desired(now, "x", None, 1).map_err(refused),
        Err("no endpoint is called \"x\"; forebay status shows those there are".to_owned())
    );
    assert_eq!(
        controller.set_desired(now, "e", Some("b"), 1).map_err(refused),
        Err("endpoint \"e\" has no variant \"b\"; it has primary".to_owned())
    );
    assert_eq!(
        controller.drain(now, "x y").map_err(refused),
        Err("no instance is called \"x y\"; forebay status shows those there are".to_owned())
    );
}
