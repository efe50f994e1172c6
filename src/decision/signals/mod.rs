//! Reads what instances tell of themselves: the metrics of their engine, of a GPU exporter or of
//! `nvidia-smi`, and the load reports that come with answers ([`orca`]). All of it comes from outside, so nothing in it is believed: what is no number, negative
//! or beyond all measure is left out, shares end at 1, and a page is read up to [`MOST_SAMPLES`] values of interest.
//!
//! One engine may tell a value several times. Its parts (data-parallel ranks, models) add up to one
//! instance; what is told once for each rank that works on the same request counts once, and a breakdown by
//! priority, which comes beside the whole, not at all.

pub mod exposition;
pub mod gpu;
pub mod orca;

use std::collections::BTreeMap;

use crate::decision::engine::{self, Gauge, Metrics};
use crate::types::signals::{LARGEST, Signals};
use crate::types::spec::Engine;
use exposition::Sample;

/// Values of interest that are read of one page.
pub const MOST_SAMPLES: usize = 4_096;

/// Ranks that work on the same requests: each tells of all of them.
const SHARED_RANKS: [&str; 3] = ["tp_rank", "pp_rank", "moe_ep_rank"];
/// With a value, a part of what another series tells as a whole (`SGLang`).
const BREAKDOWN: &str = "priority";

/// What the page of an engine tells; without an engine, or for one that has no names of its own, the names
/// of all are known.
///
/// # Examples
/// ```
/// use forebay::decision::signals::engine_page;
/// use forebay::types::spec::Engine;
/// let page = "vllm:num_requests_running{engine=\"0\"} 2\nvllm:num_requests_running{engine=\"1\"} 3\n";
/// assert_eq!(engine_page(page, Some(Engine::Vllm)).running, Some(5.0));
/// ```
#[must_use]
pub fn engine_page(page: &str, engine: Option<Engine>) -> Signals {
    let known = engine.map(|engine| engine::profile(engine).metrics);
    let names: Vec<Metrics> = match known.filter(|metrics| metrics.path.is_some()) {
        Some(metrics) => vec![metrics],
        None => Engine::ALL.iter().map(|engine| engine::profile(*engine).metrics).collect(),
    };
    let gauges = |of: fn(&Metrics) -> &'static [Gauge]| names.iter().flat_map(of);
    let is_wanted = |name: &str| {
        let all = gauges(|m| m.running).chain(gauges(|m| m.waiting)).chain(gauges(|m| m.kv_use));
        let mut all = all.map(|gauge| gauge.name);
        all.any(|known| known == name) || gpu::is_known(name)
    };
    let samples: Vec<Sample<'_>> =
        exposition::samples(page, is_wanted).take(MOST_SAMPLES).collect();
    let first = |of: fn(&Metrics) -> &'static [Gauge]| {
        gauges(of).map(|gauge| parts(&samples, gauge)).find(|parts| !parts.is_empty())
    };
    let own = Signals {
        running: first(|metrics| metrics.running).map(|parts| parts.iter().sum()),
        waiting: first(|metrics| metrics.waiting).map(|parts| parts.iter().sum()),
        kv_cache: first(|metrics| metrics.kv_use).and_then(|parts| mean(&parts)).map(share),
        ..Signals::default()
    };
    own.or(gpu::of(&samples))
}

/// The values of a gauge, one for each part of the engine.
fn parts(samples: &[Sample<'_>], gauge: &Gauge) -> Vec<f64> {
    let mut parts: BTreeMap<Vec<(String, String)>, f64> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.name == gauge.name) {
        let mut part = Vec::new();
        let (mut is_it, mut is_breakdown) = (gauge.label.is_none(), false);
        for (name, value) in sample.labels() {
            is_it |= gauge.label == Some((name, value.as_ref()));
            is_breakdown |= name == BREAKDOWN && !value.is_empty();
            if !SHARED_RANKS.contains(&name) {
                part.push((name.to_owned(), value.into_owned()));
            }
        }
        if is_it && !is_breakdown && is_amount(sample.value) {
            part.sort();
            let most = parts.entry(part).or_insert(0.0);
            *most = most.max(sample.value);
        }
    }
    parts.into_values().collect()
}

/// Whether it can be a number of things, or a share.
fn is_amount(value: f64) -> bool {
    (0.0..=LARGEST).contains(&value)
}

fn share(value: f64) -> f64 {
    value.clamp(0.0, 1.0)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests;
