//! What people see: the fleet's status and the explanation of an endpoint.

use crate::types::spec::{PoolSpec, VariantSpec};
use crate::types::status::{
    CapacityHold, EndpointStatus, Explanation, FleetStatus, InstanceStatus, PoolStatus,
    ProxyStatus, VariantStatus,
};
use crate::types::{EndpointName, InstanceState, Timestamp, VariantKey};

use super::events::{At, Span};
use super::fleet::Instance;
use super::variant::Variant;
use super::{CommandError, Controller};

/// Events that an explanation shows at most.
const EVENTS_SHOWN: usize = 100;
/// Instances whose probes fail that an explanation names, for each variant.
const FAILING_SHOWN: usize = 10;

impl Controller {
    pub(super) fn view_status(&self, now: Timestamp) -> FleetStatus {
        FleetStatus {
            endpoints: self
                .endpoint_names()
                .into_iter()
                .map(|name| self.view_endpoint(now, name))
                .collect(),
            table_version: self.table.version,
            proxies: self
                .proxies
                .iter()
                .map(|(id, p)| ProxyStatus {
                    id: id.clone(),
                    applied: p.applied,
                    reported_at: p.reported_at,
                    silent: !p.live,
                    outstanding: p.held.iter().map(|held| u64::from(held.requests)).sum(),
                    draining_until: p.draining_until,
                })
                .collect(),
            capacity_holds: self
                .capacities
                .values()
                .map(|c| CapacityHold {
                    provider: c.key.provider.clone(),
                    instance_type: c.key.instance_type.clone(),
                    refusals: c.refusals,
                    next_try_at: c.hold_until.max(now),
                    reason: c.reason.clone(),
                })
                .collect(),
        }
    }

    /// In the config's order, then those that are being removed.
    fn endpoint_names(&self) -> Vec<EndpointName> {
        let mut names: Vec<_> = self.spec.endpoints.iter().map(|e| e.name.clone()).collect();
        for key in self.variants.keys() {
            if !names.contains(&key.endpoint) {
                names.push(key.endpoint.clone());
            }
        }
        names
    }

    /// An endpoint's variants in the config's order, then those that are being removed.
    fn variants_of(&self, name: &EndpointName) -> Vec<(&VariantKey, &Variant)> {
        let endpoint = self.spec.endpoints.iter().find(|e| e.name == *name);
        let place = |key: &VariantKey| {
            let known = endpoint.into_iter().flat_map(|e| &e.variants);
            known.into_iter().position(|v| v.name == key.variant).unwrap_or(usize::MAX)
        };
        let mut found: Vec<_> =
            self.variants.iter().filter(|(key, _)| key.endpoint == *name).collect();
        found.sort_by_key(|(key, _)| place(key));
        found
    }

    fn view_endpoint(&self, now: Timestamp, name: EndpointName) -> EndpointStatus {
        let variants = self.variants_of(&name);
        let status = if variants.iter().all(|(_, v)| !v.configured) {
            "Deleting"
        } else if variants.iter().any(|(_, v)| !v.record.was_in_service && v.record.desired > 0) {
            "Creating"
        } else if variants.iter().any(|(key, v)| !v.configured || self.is_changing(key, v)) {
            "Updating"
        } else {
            "InService"
        };
        let variants = variants.into_iter().map(|(k, v)| self.view_variant(now, k, v)).collect();
        EndpointStatus { name, status: status.to_owned(), variants }
    }

    fn is_changing(&self, key: &VariantKey, variant: &Variant) -> bool {
        let moving = self.fleet.of(key).any(|i| i.state() != InstanceState::InService);
        moving || self.in_service(key) != variant.record.desired
    }

    fn in_service(&self, key: &VariantKey) -> u32 {
        count(self.fleet.of(key).filter(|i| i.state() == InstanceState::InService))
    }

    fn view_variant(&self, now: Timestamp, key: &VariantKey, variant: &Variant) -> VariantStatus {
        let mut instances: Vec<_> = self.fleet.of(key).collect();
        instances.sort_by_key(|i| (i.record.priority, i.record.generation));
        let prices = instances
            .iter()
            .filter(|i| i.state() != InstanceState::Pending)
            .filter_map(|i| self.spec.instance_types.get(&i.record.instance_type)?.price_per_hour);
        let price_per_hour = prices.reduce(|sum, price| sum + price);
        VariantStatus {
            name: key.variant.clone(),
            desired_instance_count: if variant.configured { variant.record.desired } else { 0 },
            in_service_instance_count: self.in_service(key),
            queued: self.demand(key).0,
            waiting_for: variant.waiting.clone(),
            price_per_hour,
            scaling: self.policy_status(now, variant),
            pools: self.view_pools(key, variant.spec.as_deref()),
            instances: instances.into_iter().map(|i| self.view_instance(now, i)).collect(),
        }
    }

    fn view_pools(&self, key: &VariantKey, spec: Option<&VariantSpec>) -> Vec<PoolStatus> {
        let pools = spec.into_iter().flat_map(|s| &s.pools);
        let view = |pool: &PoolSpec| {
            let here =
                || self.fleet.of(key).filter(|i| i.record.instance_type == pool.instance_type);
            PoolStatus {
                instance_type: pool.instance_type.clone(),
                priority: pool.priority,
                current_instance_count: count(
                    here().filter(|i| i.state() != InstanceState::Pending),
                ),
                in_service_instance_count: count(
                    here().filter(|i| i.state() == InstanceState::InService),
                ),
            }
        };
        pools.into_iter().map(view).collect()
    }

    fn view_instance(&self, now: Timestamp, instance: &Instance) -> InstanceStatus {
        let record = &instance.record;
        InstanceStatus {
            id: record.id.clone(),
            generation: record.generation,
            instance_type: record.instance_type.clone(),
            provider: record.provider.clone(),
            state: record.state,
            address: record.address.clone(),
            outstanding: self.outstanding(record.generation),
            copies: record.copies,
            model: record.model.clone(),
            asked_at: record.asked_at,
            reason: record.leaving_because.clone().or_else(|| probe_failed(instance)),
            signals: self.signals(now, instance),
            signals_problem: instance.told.problem().map(str::to_owned),
        }
    }

    pub(super) fn view_explanation(
        &self,
        now: Timestamp,
        endpoint: &str,
    ) -> Result<Explanation, CommandError> {
        let name = self.endpoint_names().into_iter().find(|n| n.as_str() == endpoint);
        let name = name.ok_or_else(|| CommandError::UnknownEndpoint(endpoint.to_owned()))?;
        let variants = self.variants_of(&name);
        let summary = variants.into_iter().flat_map(|(k, v)| self.summary(now, k, v)).collect();
        let about = self.journal.recent().rev().filter(|e| e.endpoint.as_ref() == Some(&name));
        let mut events: Vec<_> = about.take(EVENTS_SHOWN).cloned().collect();
        events.reverse();
        Ok(Explanation { endpoint: name, summary, events })
    }

    fn summary(&self, now: Timestamp, key: &VariantKey, variant: &Variant) -> Vec<String> {
        let pools = self.view_pools(key, variant.spec.as_deref());
        let shares: Vec<_> = pools
            .iter()
            .map(|p| format!("{} × {}", p.in_service_instance_count, p.instance_type))
            .collect();
        let mut lines = vec![format!(
            "{key}: {} desired, {} in service ({})",
            variant.record.desired,
            self.in_service(key),
            shares.join(", ")
        )];
        lines.extend(variant.waiting.as_ref().map(|w| format!("{key} {w}")));
        lines.extend(self.explain_policies(now, variant));
        lines.extend(variant.explain_schedule(now));
        lines.extend(self.explain_signals(key));
        for pool in variant.spec.iter().flat_map(|s| &s.pools) {
            let memory = self.capacity_key(pool).and_then(|c| self.capacities.get(&c));
            lines.extend(memory.map(|c| {
                format!(
                    "{} was refused {}, last {} ago ({}); asked first again at {}",
                    pool.instance_type,
                    in_a_row(c.refusals),
                    Span(now.since(c.refused_at)),
                    c.reason,
                    At(c.hold_until, now)
                )
            }));
            let failing = variant.failing.get(&pool.instance_type).filter(|f| f.until > now);
            lines.extend(failing.map(|f| {
                format!(
                    "{} failed {} and is tried again at {}: {}",
                    pool.instance_type,
                    in_a_row(f.count),
                    At(f.until, now),
                    f.reason
                )
            }));
        }
        let failing = self.fleet.of(key).filter_map(|instance| {
            let (record, why) = (&instance.record, probe_failed(instance)?);
            let address = record.address.as_ref()?;
            Some(format!(
                "{} ({}, {}) at {address}: {why}",
                record.id, record.instance_type, record.state
            ))
        });
        lines.extend(failing.take(FAILING_SHOWN));
        lines
    }
}

/// What its last probe found, where that is nothing good.
fn probe_failed(instance: &Instance) -> Option<String> {
    let probed = !instance.record.state.is_leaving();
    let last = instance.complaint.as_ref().filter(|_| probed)?;
    Some(format!("its last probe failed: {last}"))
}

/// How often, as people say it.
fn in_a_row(times: u32) -> String {
    if times == 1 { "once".to_owned() } else { format!("{times} times in a row") }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
