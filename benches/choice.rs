//! Choosing and reserving a copy, and the same with giving it back: among 4 and 16 copies, which are scanned, 17, 64 and
//! 1,024, which are ranked; on one thread and on two.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use forebay::proxy::bench::Fleet;
use forebay::types::spec::RoutingStrategy;

fn choice(c: &mut Criterion) {
    for (name, strategy) in [
        ("least_outstanding", RoutingStrategy::LeastOutstandingRequests),
        ("least_utilization", RoutingStrategy::LeastUtilization),
    ] {
        let mut group = c.benchmark_group(name);
        for copies in [4, 16, 17, 64, 1024] {
            let fleet = Fleet::new(copies, 20, strategy);
            // Half-loaded, so that neither the first nor the last is always the best.
            let held: Vec<_> = (0..copies * 3).filter_map(|_| fleet.take()).collect();
            group.bench_function(BenchmarkId::new("one_thread", copies), |b| {
                b.iter(|| black_box(fleet.take()));
            });
            // What was taken is given back after the clock has stopped.
            let some = BatchSize::NumIterations(u64::from(copies));
            group.bench_function(BenchmarkId::new("taking_alone", copies), |b| {
                b.iter_batched(|| (), |()| fleet.take(), some);
            });
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        black_box(fleet.take());
                    }
                });
                group.bench_function(BenchmarkId::new("beside_another_thread", copies), |b| {
                    b.iter(|| black_box(fleet.take()));
                });
                group.bench_function(
                    BenchmarkId::new("beside_another_taking_alone", copies),
                    |b| {
                        b.iter_batched(|| (), |()| fleet.take(), some);
                    },
                );
                stop.store(true, Ordering::Relaxed);
            });
            drop(held);
        }
        group.finish();
    }
}

criterion_group!(benches, choice);
criterion_main!(benches);
