//! A request that finds no slot: it enters the queue, its turn comes, and a slot that is given back is handed
//! to it, with 1 and with 1,000 waiting.

use std::collections::VecDeque;
use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use forebay::proxy::bench::Fleet;
use forebay::types::spec::RoutingStrategy;
use futures_util::FutureExt;

fn handoff(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _inside = runtime.enter();
    let mut group = c.benchmark_group("handoff");
    for waiting in [1, 1000] {
        let fleet = Fleet::new(4, 8, RoutingStrategy::LeastOutstandingRequests);
        let mut held: VecDeque<_> = std::iter::from_fn(|| fleet.take()).collect();
        assert_eq!(held.len(), 32, "every slot is taken");
        let enter = || {
            let mut waiter = Box::pin(fleet.wait());
            assert!(waiter.as_mut().now_or_never().is_none(), "it waits");
            waiter
        };
        let mut queue: VecDeque<_> = (1..waiting).map(|_| enter()).collect();
        group.bench_function(BenchmarkId::new("waiting", waiting), |b| {
            b.iter(|| {
                queue.push_back(enter());
                drop(held.pop_front());
                let first = queue.pop_front().expect("one waits");
                let slot = first.now_or_never().flatten().expect("the slot was handed to the head");
                held.push_back(black_box(slot));
            });
        });
        drop(queue);
    }
    group.finish();
}

criterion_group!(benches, handoff);
criterion_main!(benches);
