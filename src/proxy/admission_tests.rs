//! The hand-off under every kind of pressure: the counters end at zero, the limits hold, nobody who
//! could be served is left waiting.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::types::spec::RoutingStrategy;
use crate::types::table::{BackendRoute, EndpointRoute, RoutingTable, TableVersion, VariantRoute};

pub(super) const ANYBODY: Caller = Caller { priority: 0, id: 0 };

pub(super) fn backend(number: u64, copies: u32, max_concurrency: u32) -> BackendRoute {
    BackendRoute {
        instance: format!("i-{number}").parse().expect("id"),
        generation: Generation(number),
        instance_type: "ml.test".parse().expect("type"),
        address: "http://127.0.0.1:9".parse().expect("address"),
        model: "m".parse().expect("model"),
        copies,
        max_concurrency,
        protocol: crate::types::Protocol::Http1,
        tls: None,
        engine: None,
        on_client_abort: Default::default(),
        load_metrics: None,
        recoveries: 0,
    }
}

pub(super) fn table(revision: u64, queue_limit: u32, backends: Vec<BackendRoute>) -> RoutingTable {
    let variant = VariantRoute {
        name: "v".parse().expect("name"),
        model: "m".parse().expect("model"),
        weight: 1.0,
        strategy: RoutingStrategy::LeastOutstandingRequests,
        queue_limit,
        queue_timeout_ms: 30_000,
        requests: Default::default(),
        backends,
    };
    let endpoint = EndpointRoute { name: "e".parse().expect("name"), variants: vec![variant] };
    let endpoint = Arc::new(endpoint);
    RoutingTable {
        format: RoutingTable::FORMAT,
        version: TableVersion { epoch: 1, revision },
        endpoints: vec![endpoint],
    }
}

pub(super) fn router(queue_limit: u32, backends: Vec<BackendRoute>) -> Arc<Router> {
    let router = Router::new("p".parse().expect("id"));
    router.apply(&table(1, queue_limit, backends));
    router
}

pub(super) fn variant(router: &Router) -> Arc<Variant> {
    router.current().variants().next().cloned().expect("one variant")
}

fn counts(router: &Router) -> HashMap<u64, u32> {
    router.report().backends.iter().map(|b| (b.generation.0, b.outstanding)).collect()
}

#[tokio::test]
async fn simultaneous_requests_on_idle_copies_go_one_to_each() {
    for round in 0..50 {
        let router = router(8, (0..16).map(|n| backend(n, 1, 4)).collect());
        let variant = variant(&router);
        let start = std::sync::Barrier::new(4);
        let held: Vec<_> = std::thread::scope(|scope| {
            let take = || {
                start.wait();
                (0..4)
                    .filter_map(|_| variant.admit(ANYBODY, &[], Affinity::None).now_or_never())
                    .collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(held.len(), 16);
        assert!(counts(&router).values().all(|n| *n == 1), "round {round}: {:?}", counts(&router));
    }
}

#[tokio::test]
async fn waiters_are_served_in_order_and_slots_never_idle() {
    let router = router(8, vec![backend(1, 1, 1)]);
    let variant = variant(&router);
    let held = variant.admit(ANYBODY, &[], Affinity::None).await.expect("a free slot");
    let mut first = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    let mut second = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    let mut third = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    for waiter in [&mut first, &mut second, &mut third] {
        assert!(waiter.now_or_never().is_none());
    }
    assert_eq!(router.report().variants[0].queued, 3);
    drop(second);
    assert_eq!(router.report().variants[0].queued, 2);
    drop(held);
    let held = first.as_mut().now_or_never().expect("its turn").expect("a slot");
    assert!(third.as_mut().now_or_never().is_none());
    drop(held);
    drop(third.now_or_never().expect("its turn").expect("a slot"));
    assert_eq!(counts(&router)[&1], 0);
}

#[tokio::test]
async fn a_grant_that_nobody_takes_goes_to_the_next() {
    let router = router(8, vec![backend(1, 1, 1)]);
    let variant = variant(&router);
    let held = variant.admit(ANYBODY, &[], Affinity::None).await.expect("a free slot");
    let mut first = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    let mut second = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    drop(held);
    // The first has been granted the slot, but is gone before it looks.
    drop(first);
    drop(second.now_or_never().expect("its turn").expect("a slot"));
    assert_eq!(counts(&router)[&1], 0);
    assert_eq!(router.report().variants[0].queued, 0);
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_bounded_in_number_and_time() {
    let router = router(1, vec![backend(1, 1, 1)]);
    let variant = variant(&router);
    let _held = variant.admit(ANYBODY, &[], Affinity::None).await.expect("a free slot");
    let mut waiting = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    assert!(waiting.as_mut().now_or_never().is_none());
    let full = variant.admit(ANYBODY, &[], Affinity::None).await.expect_err("the queue is full");
    assert!(matches!(full, Refusal::QueueFull { waiting: 1, .. }), "{full}");
    let late = waiting.await.expect_err("nothing came free");
    assert!(matches!(late, Refusal::QueueTimeout { .. }), "{late}");
    assert_eq!(router.report().variants[0].queued, 0);
}

#[tokio::test]
async fn a_new_table_serves_those_who_wait_or_turns_them_away() {
    let router = router(8, Vec::new());
    let variant = variant(&router);
    let mut waiting = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    assert!(waiting.as_mut().now_or_never().is_none());
    router.apply(&table(2, 8, vec![backend(1, 1, 1)]));
    let held = waiting.now_or_never().expect("served").expect("a slot");
    let variant = self::variant(&router);
    let mut waiting = Box::pin(variant.admit(ANYBODY, &[], Affinity::None));
    assert!(waiting.as_mut().now_or_never().is_none());
    let gone = RoutingTable { endpoints: Vec::new(), ..table(3, 8, Vec::new()) };
    router.apply(&gone);
    let refusal = waiting.now_or_never().expect("told").expect_err("the variant is gone");
    assert_eq!(refusal, Refusal::VariantRemoved);
    assert_eq!(router.outstanding(), 1, "what left the table is counted to its end");
    drop(held);
    assert_eq!(router.outstanding(), 0);
}

#[tokio::test]
async fn counts_belong_to_a_start_not_to_an_address() {
    let router = router(8, vec![backend(1, 1, 4)]);
    let old = variant(&router).admit(ANYBODY, &[], Affinity::None).await.expect("a slot");
    router.apply(&table(2, 8, vec![backend(2, 1, 4)]));
    assert_eq!(counts(&router), HashMap::from([(1, 1), (2, 0)]));
    let new = variant(&router).admit(ANYBODY, &[], Affinity::None).await.expect("a slot");
    drop(old);
    assert_eq!(counts(&router), HashMap::from([(2, 1)]), "the late release changed nothing");
    // Other limits for the same start: the count goes on.
    router.apply(&table(3, 8, vec![backend(2, 1, 1)]));
    assert_eq!(counts(&router), HashMap::from([(2, 1)]));
    assert!(
        variant(&router).admit(ANYBODY, &[], Affinity::None).now_or_never().is_none(),
        "it is full now"
    );
    drop(new);
    assert_eq!(router.outstanding(), 0);
}

#[tokio::test]
async fn nothing_is_sent_by_an_old_table_once_the_new_one_is_confirmed() {
    let router = router(8, vec![backend(1, 1, 4), backend(2, 1, 4)]);
    let old = variant(&router);
    router.apply(&table(2, 8, vec![backend(2, 1, 4)]));
    for _ in 0..4 {
        let backend = old.take_slot(&[], rng::draw).expect("the one that stays");
        assert_eq!(backend.route.generation, Generation(2));
    }
    assert!(old.take_slot(&[], rng::draw).is_none());
}

#[tokio::test]
async fn a_second_try_never_goes_to_the_same_instance() {
    let router = router(8, vec![backend(1, 1, 1), backend(2, 1, 1)]);
    let variant = variant(&router);
    let second = variant.admit(ANYBODY, &[Generation(1)], Affinity::None).await.expect("the other");
    assert_eq!(second.backend.route.generation, Generation(2));
    // The other is full, and the first has room: it waits for the other.
    let mut third = Box::pin(variant.admit(ANYBODY, &[Generation(1)], Affinity::None));
    assert!(third.as_mut().now_or_never().is_none());
    drop(second);
    let third = third.now_or_never().expect("its turn").expect("the other");
    assert_eq!(third.backend.route.generation, Generation(2));
    // The first has left the table: the other has still not been tried.
    router.apply(&table(2, 8, vec![backend(2, 1, 1)]));
    let variant = self::variant(&router);
    let mut fourth = Box::pin(variant.admit(ANYBODY, &[Generation(1)], Affinity::None));
    assert!(fourth.as_mut().now_or_never().is_none());
    drop(third);
    drop(fourth.now_or_never().expect("its turn").expect("the other"));
    let all = [Generation(1), Generation(2)];
    let refusal = variant.admit(ANYBODY, &all, Affinity::None).await.expect_err("none is left");
    assert_eq!(refusal, Refusal::NoOtherInstance);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is admitted, held, cancelled while waiting, and whatever tables come meanwhile: never
    /// above a limit, nobody waits beside a free slot, and in the end all is zero.
    #[test]
    fn all_counters_return_to_zero(
        steps in proptest::collection::vec((0_u8..8, any::<u16>()), 1..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        runtime.block_on(async {
            let all = |revision: u64| -> Vec<_> {
                (0..4).filter(|n| revision & (1 << n) != 0).map(|n| backend(n, 1, 2)).collect()
            };
            let router = router(16, all(0b1111));
            let mut revision = 1_u64;
            let mut mask = 0b1111_u64;
            let mut held = Vec::new();
            let mut waiting = Vec::new();
            for (what, pick) in steps {
                let at = |len: usize| usize::from(pick) % len;
                match what {
                    0..4 => {
                        let variant = variant(&router);
                        let mut admitted =
                            Box::pin(async move { variant.admit(ANYBODY, &[], Affinity::None).await });
                        match admitted.as_mut().now_or_never() {
                            Some(Ok(reservation)) => held.push(reservation),
                            Some(Err(_)) => {}
                            None => waiting.push(admitted),
                        }
                    }
                    4 if !held.is_empty() => drop(held.swap_remove(at(held.len()))),
                    5 if !waiting.is_empty() => drop(waiting.swap_remove(at(waiting.len()))),
                    6 => {
                        revision += 1;
                        mask = u64::from(pick) & 0b1111;
                        router.apply(&table(revision, 16, all(mask)));
                    }
                    _ => {}
                }
                let mut still = Vec::new();
                for mut waiter in waiting {
                    match waiter.as_mut().now_or_never() {
                        Some(Ok(reservation)) => held.push(reservation),
                        Some(Err(_)) => {}
                        None => still.push(waiter),
                    }
                }
                waiting = still;
                let counts = counts(&router);
                assert!(counts.values().all(|n| *n <= 2));
                let total: u32 = counts.values().sum();
                assert_eq!(total as usize, held.len());
                let free = (0..4).any(|n| mask & (1 << n) != 0 && counts[&n] < 2);
                assert!(!free || waiting.is_empty(), "somebody waits beside a free slot");
            }
            drop((held, waiting));
            assert_eq!(router.outstanding(), 0);
            assert_eq!(router.report().variants[0].queued, 0);
        });
    }
}

/// Four threads that admit, wait, leave and cancel as fast as they can while tables change.
#[test]
fn a_storm_on_several_threads_ends_at_zero() {
    let router = router(64, (0..3).map(|n| backend(n, 1, 2)).collect());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .expect("runtime");
                    runtime.block_on(async {
                        let tasks = (0..32).map(|_| storm(&router));
                        futures_util::future::join_all(tasks).await;
                    });
                })
            })
            .collect();
        scope.spawn(|| {
            let mut revision = 1;
            while !done.load(Ordering::Relaxed) {
                revision += 1;
                let backends = (0..3 - revision % 2).map(|n| backend(n, 1, 2)).collect();
                router.apply(&table(revision, 64, backends));
                std::thread::yield_now();
            }
        });
        for worker in workers {
            worker.join().expect("no panic");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(router.outstanding(), 0);
    assert_eq!(router.report().variants[0].queued, 0);
}

async fn storm(router: &Arc<Router>) {
    for _ in 0..200 {
        let draw = rng::draw();
        let variant = variant(router);
        let patience = Duration::from_micros(draw % 300);
        // Some are served, some leave while they wait, some at the moment that they are served.
        if let Ok(Ok(reservation)) =
            tokio::time::timeout(patience, variant.admit(ANYBODY, &[], Affinity::None)).await
        {
            assert!(reservation.backend.slot.outstanding() <= 2);
            if draw & 1024 == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}
