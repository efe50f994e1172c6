//! Autoscaling: measures every variant at even intervals, takes in what proxies tell of durations, asks the
//! scaling policies at the end of each of their periods, and changes the desired number as they say.
//!
//! What is measured is in memory only. After a restart there is no data at first, and without data nothing
//! is scaled; cooldowns are in the store.

use std::time::Duration;

use crate::decision::scale::held::{self, Standing};
use crate::decision::scale::policy::{self, Known, Verdict};
use crate::decision::scale::series::{FINE, Limit, MOST_SERIES, Periods, SAMPLES};
use crate::decision::scale::signal::{Limits, TypeFacts};
use crate::types::report::DemandReport;
use crate::types::scaling::{Metric, ScalingPolicy};
use crate::types::spec::VariantSpec;
use crate::types::status::PolicyStatus;
use crate::types::{InstanceState, Timestamp, VariantKey};

use super::Controller;
use super::drain::{in_step, told_of};
use super::events::EventKind;
use super::timers::Waiter;
use super::variant::Variant;

/// Nothing is measured more often.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

impl Controller {
    /// Measures from now on as often as the shortest period needs.
    pub(super) fn follow_scaling(&mut self, now: Timestamp) {
        let policies = self.spec.variants().flat_map(|(_, variant)| &variant.scaling);
        let shortest = policies.map(|policy| policy.period / SAMPLES).min().unwrap_or(FINE);
        self.sample_every = shortest.clamp(LEAST_INTERVAL, FINE);
        self.timers.set(Waiter::Sample, Some(next(now, self.sample_every)));
        let variants = self.variants.len();
        for (key, variant) in &mut self.variants {
            variant.measured.share_with(variants);
            let looks = |policy: &ScalingPolicy| (policy.period, policy.looks_back());
            let periods: Vec<_> = variant.policies().iter().map(looks).collect();
            variant.measured.set_periods(periods.iter().copied());
            let shortest = periods.iter().map(|(period, _)| *period).min();
            let at = shortest.map(|period| next(now, period));
            self.timers.set(Waiter::Scaling(key.clone()), at);
            if at.is_none() {
                variant.verdicts.clear();
            }
        }
    }

    /// Requests at each type's instances in service, requests that wait, and what instances tell.
    pub(super) fn sample(&mut self, now: Timestamp) {
        self.timers.set(Waiter::Sample, Some(next(now, self.sample_every)));
        let keys: Vec<VariantKey> = self.variants.keys().cloned().collect();
        for key in &keys {
            if let Some(variant) = self.variants.get_mut(key) {
                variant.measured.sampled(now);
            }
            self.sample_signals(now, key);
            self.tell_of_limits(now, key);
        }
        // What nobody has reported is not known to be nothing.
        if !self.proxies.values().any(|proxy| proxy.live) {
            return;
        }
        let running = self.requests_at_live();
        for key in keys {
            let queued = self.queued_at_live(&key);
            let Some(variant) = self.variants.get_mut(&key) else { continue };
            let measured = &mut variant.measured;
            measured.record(now, Metric::QueueDepth, None, queued as f64);
            for (kind, crew, count) in self.fleet.crews.serving(&key) {
                let (count, of) = (f64::from(count), Some(kind));
                measured.record(now, Metric::InstanceCount, of, count);
                let each = running[crew as usize] as f64 / count;
                measured.record(now, Metric::ConcurrentRequestsPerModel, of, each);
            }
        }
    }

    /// An event for each bound of what is kept, the first time that it is reached.
    fn tell_of_limits(&mut self, now: Timestamp, key: &VariantKey) {
        let Some(variant) = self.variants.get_mut(key) else { return };
        let Some(limit) = variant.measured.take_news() else { return };
        let message = match limit {
            Limit::Minutes => format!(
                "what was measured of {key} is kept for less than 15 days: its share of the memory for that is full"
            ),
            Limit::Series => format!(
                "another metric of {key} is not kept: {MOST_SERIES} series are, one for each metric of each type"
            ),
        };
        self.log(now, EventKind::MeasuredLimit, key, None, message);
    }

    /// Requests at the instances in service of each crew, over the proxies that are heard: goes by what they report,
    /// which is little of a large fleet.
    fn requests_at_live(&self) -> Vec<u64> {
        let mut requests = self.fleet.crews.zeros();
        let live = self.proxies.values().filter(|proxy| proxy.live);
        for held in live.flat_map(|proxy| &proxy.held).filter(|held| held.requests > 0) {
            let instance = self.fleet.in_slot(held.slot);
            let serving = instance.filter(|instance| instance.state() == InstanceState::InService);
            if let Some(instance) = serving {
                requests[instance.crew as usize] += u64::from(held.requests);
            }
        }
        requests
    }

    /// Takes in what has been counted since `before`, what the last report of the same run of that proxy told.
    pub(super) fn note_durations(
        &mut self,
        now: Timestamp,
        told: &[DemandReport],
        before: &[DemandReport],
    ) {
        for (at, (demand, variant)) in in_step(told, &mut self.variants).enumerate() {
            // Nearly always it tells of the same variants.
            let same = before.get(at).filter(|old| old.variant == demand.variant);
            let old = same.or_else(|| told_of(before, &demand.variant));
            let Some(old) = old.filter(|old| old.types != demand.types) else { continue };
            for kind in &demand.types {
                let name = &kind.instance_type;
                let old = old.types.iter().find(|old| old.instance_type == *name);
                let measured = &mut variant.measured;
                let latency = grown(&kind.latency, old.map(|old| &old.latency[..]));
                let answered = latency.iter().map(|(_, count)| u64::from(*count)).sum();
                measured.count(now, Metric::Invocations, Some(name), answered);
                measured.durations(now, Metric::ModelLatency, name, &latency);
                let first_chunk = grown(&kind.first_chunk, old.map(|old| &old.first_chunk[..]));
                measured.durations(now, Metric::FirstChunkLatency, name, &first_chunk);
            }
        }
    }

    /// A period is over: asks every policy of the variant, and does what they agree on.
    pub(super) fn ask_policies(&mut self, now: Timestamp, key: &VariantKey) {
        let Some(variant) = self.variants.get(key).filter(|variant| variant.configured) else {
            return;
        };
        let Some(spec) = variant.spec.clone() else { return };
        let shortest = spec.scaling.iter().map(|policy| policy.period).min();
        self.timers.set(Waiter::Scaling(key.clone()), shortest.map(|period| next(now, period)));
        let types = self.type_facts(&spec);
        let desired = variant.record.desired;
        let last = variant.record.scaled;
        let known = Known { measured: &variant.measured, types: &types, desired, last };
        let ended = |policy: &ScalingPolicy| Periods::complete(now, policy.period, 1).end;
        let asked: Vec<Timestamp> = spec.scaling.iter().map(ended).collect();
        let before = &variant.asked;
        let due: Vec<bool> = (0..asked.len()).map(|n| before.get(n) != asked.get(n)).collect();
        let verdicts: Vec<Verdict> =
            spec.scaling.iter().map(|policy| policy::ask(policy, &known, now)).collect();
        // From zero it is demand that wakes, and to zero only its absence leads.
        let may_change = desired > 0 && !variant.waking;
        let bounds = held::followed(variant.bounds);
        let bounds = (bounds.min, bounds.max);
        let all_heard = self.all_heard();
        let decision = may_change
            .then(|| policy::decide(&spec.scaling, &verdicts, &due, desired, bounds, last, now))
            .flatten()
            .filter(|decision| decision.size > desired || all_heard);
        if let Some(decision) = decision
            && let (Some(policy), Some(verdict)) =
                (spec.scaling.get(decision.policy), verdicts.get(decision.policy))
        {
            let message = format!(
                "policy {} takes {key} from {desired} to {} instances: {}",
                policy.name, decision.size, verdict.because
            );
            self.resize(now, key, decision.size, message);
        }
        if let Some(variant) = self.variants.get_mut(key) {
            variant.verdicts = verdicts;
            variant.asked = asked;
        }
    }

    fn resize(&mut self, now: Timestamp, key: &VariantKey, size: u32, message: String) {
        let Some(variant) = self.variants.get_mut(key) else { return };
        let before = std::mem::replace(&mut variant.record.desired, size);
        if size > before {
            variant.record.scaled.out = Some((now, size));
            variant.record.scaled.out_from = Some(before);
        } else {
            variant.record.scaled.inward = Some(now);
        }
        self.journal.variants.insert(key.clone());
        self.log(now, EventKind::Autoscaled, key, None, message);
        self.dirty.insert(key.clone());
    }

    /// A line for each policy, and what is wrong with it.
    pub(super) fn explain_policies(&self, now: Timestamp, variant: &Variant) -> Vec<String> {
        let facts = variant.spec.as_deref().map(|spec| self.type_facts(spec)).unwrap_or_default();
        let queue = variant.spec.as_deref().map_or(0, |spec| spec.queue.limit);
        let mut lines = Vec::new();
        for (number, policy) in variant.policies().iter().enumerate() {
            let because = variant.verdicts.get(number).map(|verdict| verdict.because.as_str());
            let because = because.unwrap_or("its first period is not over yet");
            lines.push(format!("policy {}: {because}", policy.name));
            let held = self.standing(variant).held_back(number, now);
            lines.extend(held.map(|held| format!("policy {}: {held}", policy.name)));
            let warning = policy::out_of_reach(policy, &Limits { types: &facts, queue });
            lines.extend(warning.map(|warning| format!("policy {}: {warning}", policy.name)));
        }
        lines
    }

    /// What people see of them.
    pub(super) fn policy_status(&self, now: Timestamp, variant: &Variant) -> Vec<PolicyStatus> {
        let standing = self.standing(variant);
        let asked = standing.policies.iter().zip(standing.verdicts).enumerate();
        asked
            .map(|(number, (policy, verdict))| PolicyStatus {
                name: policy.name.clone(),
                value: verdict.value,
                wants: verdict.wants.map(|size| standing.bounds.clamp(size)),
                because: verdict.because.clone(),
                held_back: standing.held_back(number, now),
            })
            .collect()
    }

    /// What keeps the variant's policies from having what they want.
    fn standing<'a>(&self, variant: &'a Variant) -> Standing<'a> {
        Standing {
            policies: variant.policies(),
            verdicts: &variant.verdicts,
            desired: variant.record.desired,
            bounds: held::followed(variant.bounds),
            last: variant.record.scaled,
            all_heard: self.all_heard(),
        }
    }

    /// What a silent proxy has is not known: it may be busy.
    fn all_heard(&self) -> bool {
        self.proxies.values().all(|proxy| proxy.live)
    }

    fn type_facts(&self, spec: &VariantSpec) -> Vec<TypeFacts> {
        let facts = spec.pools.iter().filter_map(|pool| {
            let kind = self.spec.instance_types.get(&pool.instance_type)?;
            Some(TypeFacts {
                name: pool.instance_type.clone(),
                copies: kind.copies,
                slots: kind.copies * kind.max_concurrency,
            })
        });
        facts.collect()
    }
}

impl Variant {
    /// The policies of the config.
    fn policies(&self) -> &[ScalingPolicy] {
        self.spec.as_deref().filter(|_| self.configured).map_or(&[], |spec| &spec.scaling)
    }
}

/// The next multiple of `span`: periods begin at the same moments for everybody.
fn next(now: Timestamp, span: Duration) -> Timestamp {
    Periods::complete(now, span, 1).end + span.max(Duration::from_millis(1))
}

/// What has been counted since, in each bucket.
fn grown(now: &[(u8, u64)], before: Option<&[(u8, u64)]>) -> Vec<(u8, u32)> {
    let before = before.unwrap_or_default();
    let grown = now.iter().filter_map(|(bucket, count)| {
        let old = before.binary_search_by_key(bucket, |(bucket, _)| *bucket);
        let more = count.saturating_sub(old.map_or(0, |at| before[at].1));
        (more > 0).then(|| (*bucket, u32::try_from(more).unwrap_or(u32::MAX)))
    });
    grown.collect()
}
