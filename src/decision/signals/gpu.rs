//! What is told of GPUs: by NVIDIA's DCGM exporter, by Triton, and by `nvidia-smi`. One instance's value is
//! the mean over its GPUs; of memory it is the share of all of it.
//!
//! Sources: NVIDIA/dcgm-exporter, etc/default-counters.csv (utilisation in percent, framebuffer in MiB);
//! triton-inference-server/server, `docs/user_guide/metrics.md` (shares of 1, bytes);
//! `nvidia-smi --help-query-gpu` (percent, MiB, `[N/A]` and the like where a device does not tell).

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::exposition::{self, Sample};
use super::{MOST_SAMPLES, is_amount, mean, share};
use crate::types::signals::Signals;

/// How busy a GPU is, and what makes a share of it; the first that is there counts. The second is what is left
/// where a GPU is cut into instances (MIG), which have no other.
const BUSY: [(&str, f64); 3] = [
    ("DCGM_FI_DEV_GPU_UTIL", 0.01),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 1.0),
    ("nv_gpu_utilization", 1.0),
];
/// Parts of a GPU's memory.
const MEMORY: [(&str, Memory); 5] = [
    ("DCGM_FI_DEV_FB_USED", Memory::Used),
    ("DCGM_FI_DEV_FB_FREE", Memory::Free),
    ("DCGM_FI_DEV_FB_RESERVED", Memory::Free),
    ("nv_gpu_memory_used_bytes", Memory::Used),
    ("nv_gpu_memory_total_bytes", Memory::Total),
];
/// What DCGM says for a field that a device does not have, and more for the reasons (`dcgm_fields.h`,
/// `DCGM_INT32_BLANK`).
const DCGM_BLANK: f64 = 2_147_483_632.0;
/// What names a GPU, or an instance of one.
const NAMES: [&str; 4] = ["UUID", "uuid", "gpu_uuid", "gpu"];
const PART: &str = "GPU_I_ID";

/// The columns that `nvidia-smi` is asked for.
pub const NVIDIA_SMI_COLUMNS: &str = "index,uuid,utilization.gpu,memory.used,memory.total";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Used,
    /// Not used: free, or held back by the driver.
    Free,
    Total,
}

/// A GPU's memory, in any unit.
#[derive(Debug, Clone, Copy, Default)]
struct Amounts {
    used: Option<f64>,
    free: f64,
    total: Option<f64>,
}

/// What an exporter's page tells of the GPUs whose labels have these values; of all without any.
#[must_use]
pub fn exporter_page(page: &str, labels: &BTreeMap<String, String>) -> Signals {
    let samples: Vec<Sample<'_>> = exposition::samples(page, is_known)
        .filter(|sample| has(|name| sample.label(name), labels))
        .take(MOST_SAMPLES)
        .collect();
    of(&samples)
}

/// What `nvidia-smi` has printed of [`NVIDIA_SMI_COLUMNS`] as CSV without a header. Its index and UUID count
/// as the labels `gpu` and `UUID`.
#[must_use]
pub fn nvidia_smi(text: &str, labels: &BTreeMap<String, String>) -> Signals {
    let mut busy = Vec::new();
    let mut memory = Vec::new();
    for line in text.lines().take(MOST_SAMPLES) {
        let mut cells = line.split(',').map(str::trim);
        let (Some(index), Some(uuid)) = (cells.next(), cells.next()) else { continue };
        let named = [("gpu", index), ("UUID", uuid)];
        let of = |name: &str| {
            let found = named.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| Cow::Borrowed(*value))
        };
        if !has(of, labels) {
            continue;
        }
        let mut amount = || cells.next().and_then(number);
        let (percent, used, total) = (amount(), amount(), amount());
        busy.extend(percent.map(|percent| percent / 100.0));
        memory.push(Amounts { used, free: 0.0, total });
    }
    Signals { gpu: mean(&busy).map(share), gpu_memory: used(memory), ..Signals::default() }
}

/// Whether a metric tells of GPUs.
pub(super) fn is_known(name: &str) -> bool {
    BUSY.iter().any(|(known, _)| *known == name) || MEMORY.iter().any(|(known, _)| *known == name)
}

/// What samples tell.
pub(super) fn of(samples: &[Sample<'_>]) -> Signals {
    let busy = BUSY.iter().find_map(|(name, unit)| {
        let each = each(samples, name);
        let shares: Vec<f64> = each.values().map(|value| value * unit).collect();
        mean(&shares)
    });
    let mut memory: BTreeMap<String, Amounts> = BTreeMap::new();
    for (name, part) in MEMORY {
        for (gpu, amount) in each(samples, name) {
            let amounts = memory.entry(gpu).or_default();
            match part {
                Memory::Used => amounts.used = Some(amount),
                Memory::Free => amounts.free += amount,
                Memory::Total => amounts.total = Some(amount),
            }
        }
    }
    let memory = memory.into_values().map(|amounts| {
        let sum = amounts.used.unwrap_or(0.0) + amounts.free;
        // What is used alone says nothing of the share.
        let total = amounts.total.or((amounts.free > 0.0).then_some(sum));
        Amounts { total, ..amounts }
    });
    Signals { gpu: busy.map(share), gpu_memory: used(memory), ..Signals::default() }
}

/// A metric's value for each GPU. One that is told several times, once for each pod that shares it, counts
/// once.
fn each(samples: &[Sample<'_>], name: &str) -> BTreeMap<String, f64> {
    let mut each: BTreeMap<String, f64> = BTreeMap::new();
    let is_blank = |value: f64| name.starts_with("DCGM_") && value >= DCGM_BLANK;
    let of_metric = samples.iter().filter(|sample| sample.name == name);
    for sample in of_metric.filter(|sample| is_amount(sample.value) && !is_blank(sample.value)) {
        let gpu = NAMES.iter().find_map(|label| sample.label(label)).unwrap_or_default();
        let part = sample.label(PART).unwrap_or_default();
        let most = each.entry(format!("{gpu}/{part}")).or_insert(0.0);
        *most = most.max(sample.value);
    }
    each
}

/// The share in use of the memory of all GPUs that tell both.
fn used(gpus: impl IntoIterator<Item = Amounts>) -> Option<f64> {
    let known = gpus.into_iter().filter_map(|gpu| Some((gpu.used?, gpu.total?)));
    let (used, total) = known.fold((0.0, 0.0), |sum, gpu| (sum.0 + gpu.0, sum.1 + gpu.1));
    (total > 0.0).then(|| share(used / total))
}

fn has<'a>(
    label: impl Fn(&str) -> Option<Cow<'a, str>>,
    wanted: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(name, value)| label(name).is_some_and(|found| found == value.as_str()))
}

/// A cell with a number, with its unit or without.
fn number(cell: &str) -> Option<f64> {
    cell.split(' ').next()?.parse().ok().filter(|value| is_amount(*value))
}
