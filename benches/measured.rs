//! What the manager's store of metrics takes at its worst: every metric of a variant with two instance types
//! differs at every sample, for 15 days: `cargo bench --bench measured`. Not a criterion benchmark: it measures
//! memory. The figures are in `README.md` beside this file.

#![allow(clippy::print_stdout, reason = "prints what it measures")]

use std::time::Duration;

use forebay::decision::scale::series::{FINE, Measured};
use forebay::types::scaling::Metric;
use forebay::types::{InstanceTypeName, Timestamp, durations};

const START: Timestamp = Timestamp(1_735_689_600_000);
const SAMPLES: u32 = 15 * 24 * 360;
/// How many durations each type tells in a sample.
const DURATIONS: usize = 20;

const SAMPLED: [Metric; 7] = [
    Metric::ConcurrentRequestsPerModel,
    Metric::InstanceCount,
    Metric::Invocations,
    Metric::QueueDepth,
    Metric::GpuUtilization,
    Metric::GpuMemoryUtilization,
    Metric::KvCacheUtilization,
];

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn main() {
    let types: [InstanceTypeName; 2] = ["ml.p5", "ml.g6"].map(|name| name.parse().expect("a name"));
    let mut chance = fastrand::Rng::with_seed(1);
    let mut measured = Measured::default();
    let before = resident();
    for sample in 0..SAMPLES {
        let at = START + FINE * sample;
        for kind in &types {
            for metric in SAMPLED {
                measured.record(at, metric, Some(kind), chance.f64());
            }
            for metric in [Metric::ModelLatency, Metric::FirstChunkLatency] {
                let mut took: Vec<u8> = (0..DURATIONS)
                    .map(|_| durations::bucket(Duration::from_millis(chance.u64(100..60_000))))
                    .collect();
                took.sort_unstable();
                let buckets: Vec<(u8, u32)> = took
                    .chunk_by(|a, b| a == b)
                    .map(|same| (same[0], u32::try_from(same.len()).expect("few")))
                    .collect();
                measured.durations(at, metric, kind, &buckets);
            }
        }
    }
    let mib = |bytes: f64| bytes / 1_048_576.0;
    println!(
        "{} series of one variant: {:.1} MiB, and {:.1} MiB more resident",
        (SAMPLED.len() + 2) * types.len(),
        mib(measured.bytes() as f64),
        mib((resident() - before) as f64 * 1024.0)
    );
}
