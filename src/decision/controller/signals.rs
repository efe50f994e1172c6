//! What instances tell of themselves: kept per instance while it is fresh, measured beside what proxies
//! count, shown. Nothing else follows from it: an instance is replaced for its probes and its traffic, never
//! for what a scrape says or for one that fails.

use std::time::Duration;

use crate::types::report::BackendReport;
use crate::types::scaling::Metric;
use crate::types::signals::Signals;
use crate::types::{Generation, InstanceId, InstanceState, Timestamp, VariantKey};

use super::Controller;
use super::fleet::{Instance, Slot};

/// A scraped value counts for so many intervals, and for a while more, so that a scrape that fails or comes late
/// leaves no gap.
const FRESH_INTERVALS: u32 = 3;
const FRESH_BEYOND: Duration = Duration::from_secs(10);
/// What came along with an answer counts for so long.
const FRESH_SENT: Duration = Duration::from_secs(30);
/// The longest piece of a problem's words that is kept.
const WORDS: usize = 300;

/// What an instance last told.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    scraped: Option<(Timestamp, Signals)>,
    /// Along with an answer, to some proxy.
    sent: Option<(Timestamp, Signals)>,
    /// Why the last scrape did not bring everything.
    problem: Option<String>,
}

impl Controller {
    /// A scrape has ended.
    pub(super) fn signalled(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        generation: Generation,
        signals: Signals,
        problem: Option<String>,
    ) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        if instance.record.generation != generation {
            return;
        }
        if !signals.is_empty() {
            instance.told.scraped = Some((now, signals));
            if let Some(variant) = self.variants.get_mut(&instance.record.variant) {
                variant.tells = true;
            }
        }
        instance.told.problem = problem.map(|mut words| {
            words.truncate(words.floor_char_boundary(WORDS));
            words
        });
    }

    /// Takes in what instances sent along with their answers.
    pub(super) fn note_loads(&mut self, now: Timestamp, known: &[(Slot, &BackendReport)]) {
        for (slot, backend) in known {
            let Some(load) = backend.load else { continue };
            let Some(instance) = self.fleet.in_slot_mut(*slot) else { continue };
            let at = Timestamp(now.0.saturating_sub(load.age_ms));
            if instance.told.sent.is_none_or(|(before, _)| before <= at) {
                instance.told.sent = Some((at, load.signals.checked()));
                if let Some(variant) = self.variants.get_mut(&instance.record.variant) {
                    variant.tells = true;
                }
            }
        }
    }

    /// What an instance told lately. A scrape is an answer to the question; what comes along with a request may
    /// be a default where the engine has measured nothing yet, so it only fills gaps.
    pub(super) fn signals(&self, now: Timestamp, instance: &Instance) -> Signals {
        let kind = self.spec.instance_types.get(&instance.record.instance_type);
        let interval = kind.map_or(Duration::ZERO, |kind| kind.signals.interval);
        let fresh_for = interval.saturating_mul(FRESH_INTERVALS).saturating_add(FRESH_BEYOND);
        let fresh = |told: Option<(Timestamp, Signals)>, limit| {
            let fresh = told.filter(|(at, _)| now.since(*at) <= limit);
            fresh.map(|(_, signals)| signals).unwrap_or_default()
        };
        fresh(instance.told.scraped, fresh_for).or(fresh(instance.told.sent, FRESH_SENT))
    }

    /// One sample of each value of each instance in service.
    pub(super) fn sample_signals(&mut self, now: Timestamp, key: &VariantKey) {
        if !self.variants.get(key).is_some_and(|variant| variant.tells) {
            return;
        }
        let told: Vec<_> = self
            .fleet
            .of(key)
            .filter(|instance| instance.state() == InstanceState::InService)
            .map(|instance| (instance.record.instance_type.clone(), self.signals(now, instance)))
            .collect();
        let Some(variant) = self.variants.get_mut(key) else { return };
        for (kind, signals) in told {
            for (metric, value) in metrics(&signals) {
                variant.measured.record(now, metric, Some(&kind), value);
            }
        }
    }

    /// A line for each instance whose last scrape did not bring everything.
    pub(super) fn explain_signals(&self, key: &VariantKey) -> Vec<String> {
        let lines = self.fleet.of(key).filter_map(|instance| {
            let problem = instance.told.problem.as_ref()?;
            Some(format!("{} does not tell all of its load: {problem}", instance.record.id))
        });
        lines.collect()
    }
}

impl Told {
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

/// What is measured of signals, in the units of the metrics: shares are percentages, as CloudWatch has them.
fn metrics(signals: &Signals) -> impl Iterator<Item = (Metric, f64)> {
    let percent = |share: f64| share * 100.0;
    let all = [
        (Metric::RunningRequests, signals.running),
        (Metric::WaitingRequests, signals.waiting),
        (Metric::KvCacheUtilization, signals.kv_cache.map(percent)),
        (Metric::GpuUtilization, signals.gpu.map(percent)),
        (Metric::GpuMemoryUtilization, signals.gpu_memory.map(percent)),
    ];
    all.into_iter().filter_map(|(metric, value)| Some((metric, value?)))
}
