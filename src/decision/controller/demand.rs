//! To zero and back: what the proxies see clients ask for, latched until something serves it.

use std::time::Duration;

use crate::types::report::{DemandReport, ProxyReport};
use crate::types::scaling::Metric;
use crate::types::spec::VariantSpec;
use crate::types::{Timestamp, VariantKey};

use super::Controller;
use super::drain::in_step;
use super::events::{EventKind, Span};

/// A variant with requests is looked at again this soon, to see whether it is idle.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Controller {
    /// Takes in the demand that a report has `told`. `since` is the start of the proxy that was heard lately: of one that has
    /// not been, the count of arrivals is the base to count from, unless it has only just started.
    pub(super) fn note_demand(
        &mut self,
        now: Timestamp,
        report: &ProxyReport,
        told: &[DemandReport],
        since: Option<u64>,
    ) {
        let restarted = since.is_some_and(|run| run != report.run);
        let all_new = restarted || since.is_none() && report.applied.epoch == 0;
        let mut wanted = Vec::new();
        for (demand, variant) in in_step(told, &mut self.variants) {
            let base = variant.arrivals.insert(report.proxy.clone(), demand.arrivals);
            let base = base.filter(|_| !restarted);
            let grew = match base {
                Some(base) => demand.arrivals != base && demand.arrivals > 0,
                None => all_new && demand.arrivals > 0,
            };
            // Of a proxy heard for the first time, since a restart say, nobody knows when its requests came:
            // perhaps just now. That keeps a variant awake; it wakes none.
            let unknown = base.is_none() && demand.arrivals > 0;
            // Of those of a longer time nobody knows the rate.
            let counted_from = if all_new { Some(0) } else { base.filter(|_| since.is_some()) };
            if let Some(before) = counted_from {
                let more = demand.arrivals.saturating_sub(before);
                variant.measured.count(now, Metric::Arrivals, None, more);
            }
            let here = u64::from(demand.queued) + u64::from(demand.outstanding);
            if here > 0 || grew || unknown {
                variant.last_busy_at = now;
            }
            if demand.queued > 0 || grew {
                wanted.push((&demand.variant, here));
            }
        }
        for (key, here) in wanted {
            if !self.serves(key) {
                let need = (here + self.demand_but(key, report)).max(1);
                self.latch(key, need);
            }
        }
    }

    /// So many requests want a variant that nothing serves.
    fn latch(&mut self, key: &VariantKey, need: u64) {
        let Some(variant) = self.variants.get_mut(key) else { return };
        if need > variant.latched_demand {
            variant.latched_demand = need;
            self.dirty.insert(key.clone());
        }
    }

    fn demand_but(&self, key: &VariantKey, report: &ProxyReport) -> u64 {
        let others = self.proxies.iter().filter(|(id, _)| **id != report.proxy);
        others
            .filter_map(|(_, p)| p.demand(key))
            .map(|(queued, running)| u64::from(queued) + u64::from(running))
            .sum()
    }

    /// Requests waiting, and requests running, over all proxies.
    pub(super) fn demand(&self, key: &VariantKey) -> (u64, u64) {
        let all = self.proxies.values().filter_map(|p| p.demand(key));
        all.fold((0, 0), |(q, r), (queued, running)| {
            (q + u64::from(queued), r + u64::from(running))
        })
    }

    /// Requests that wait at the proxies that are heard.
    pub(super) fn queued_at_live(&self, key: &VariantKey) -> u64 {
        let live = self.proxies.values().filter(|proxy| proxy.live);
        let queued = live.filter_map(|proxy| proxy.demand(key));
        queued.map(|(queued, _)| u64::from(queued)).sum()
    }

    fn serves(&self, key: &VariantKey) -> bool {
        self.fleet.crews.serving(key).next().is_some()
    }

    /// Wakes a variant, or lets it go to zero. Returns when it may go to zero at the earliest.
    pub(super) fn follow_demand(
        &mut self,
        now: Timestamp,
        key: &VariantKey,
        spec: &VariantSpec,
    ) -> Option<Timestamp> {
        let (queued, running) = self.demand(key);
        let serves = self.serves(key);
        let slots = self.slots_of_first_pool(spec);
        let variant = self.variants.get_mut(key)?;
        if variant.bounds.min > 0 {
            return None;
        }
        let desired = variant.record.desired;
        if variant.latched_demand > 0 && (desired == 0 || variant.waking) {
            let need = u32::try_from(variant.latched_demand.div_ceil(slots)).unwrap_or(u32::MAX);
            let need = need.clamp(1, variant.bounds.max.max(1));
            if need > desired {
                let requests = variant.latched_demand;
                variant.waking = true;
                variant.record.desired = need;
                self.journal.variants.insert(key.clone());
                let message = format!(
                    "{requests} requests wake {key}: {need} instances desired, {slots} requests each"
                );
                self.log(now, EventKind::Woken, key, None, message);
            }
            return None;
        }
        let after = spec.scale_to_zero_after?;
        if desired == 0 || !serves || variant.waking || !variant.record.was_in_service {
            return None;
        }
        let at = variant.last_busy_at + after;
        if queued + running > 0 {
            return Some(at.max(now + LOOK_AGAIN));
        }
        if now < at {
            return Some(at);
        }
        variant.record.desired = 0;
        self.journal.variants.insert(key.clone());
        let message =
            format!("{key} goes from {desired} instances to zero: no request for {}", Span(after));
        self.log(now, EventKind::ToZero, key, None, message);
        None
    }

    /// Requests that one instance of the most preferred pool takes at once.
    fn slots_of_first_pool(&self, spec: &VariantSpec) -> u64 {
        let first = spec.pools.first();
        let kind = first.and_then(|p| self.spec.instance_types.get(&p.instance_type));
        kind.map_or(1, |t| u64::from(t.max_concurrency) * u64::from(t.copies)).max(1)
    }
}
