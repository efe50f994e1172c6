//! What counting a request costs: its counter and three latencies in the recorder that is in use, once by one
//! thread and once while another counts the same.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use forebay::runtime::clock;
use forebay::telemetry::traffic::{self, LATENCY_BUCKETS, Traffic};
use forebay::types::VariantKey;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Samples are gathered until the next upkeep, which the process does every few seconds.
const UPKEEP_AFTER: u64 = 50_000;

fn count(traffic: &Traffic) {
    traffic.sent(Duration::from_micros(20));
    traffic.first_chunk(Duration::from_millis(3));
    traffic.finished(Duration::from_millis(4));
    traffic.answered(200);
}

/// `times` requests, without the upkeep in between.
fn timed(traffic: &Traffic, metrics: &PrometheusHandle, times: u64) -> Duration {
    let (mut left, mut took) = (times, Duration::ZERO);
    while left > 0 {
        let now = left.min(UPKEEP_AFTER);
        let began: Instant = clock::monotonic();
        for _ in 0..now {
            count(traffic);
        }
        took += began.elapsed();
        metrics.run_upkeep();
        left -= now;
    }
    took
}

fn counting(c: &mut Criterion) {
    let builder = traffic::histograms().into_iter().fold(PrometheusBuilder::new(), |b, name| {
        let matcher = Matcher::Full(name.to_owned());
        b.set_buckets_for_metric(matcher, &LATENCY_BUCKETS).expect("there are buckets")
    });
    let metrics = builder.install_recorder().expect("the first recorder");
    let valid = "a valid name";
    let variant =
        VariantKey { endpoint: "e".parse().expect(valid), variant: "v".parse().expect(valid) };
    let traffic =
        Traffic::new(&variant, &"m".parse().expect(valid), Some(&"t".parse().expect(valid)));
    let mut group = c.benchmark_group("metrics");
    group.bench_function("one_thread", |b| b.iter_custom(|n| timed(&traffic, &metrics, n)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                timed(&traffic, &metrics, UPKEEP_AFTER);
            }
        });
        group.bench_function("beside_another_thread", |b| {
            b.iter_custom(|n| timed(&traffic, &metrics, n));
        });
        stop.store(true, Ordering::Relaxed);
    });
    group.finish();
}

criterion_group!(benches, counting);
criterion_main!(benches);
