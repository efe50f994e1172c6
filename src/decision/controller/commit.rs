//! Ends the handling of an event: whoever is due is woken, rounds run until nothing is left to decide,
//! and what changed becomes one `Persist`, one `Publish` if the table changed, then the other actions.

use std::sync::Arc;

use crate::types::record::{Change, InstanceRecord, ProxyRecord};
use crate::types::spec::{EndpointSpec, VariantSpec};
use crate::types::table::{BackendRoute, EndpointRoute, RoutingTable, TableVersion, VariantRoute};
use crate::types::{InstanceState, Timestamp, VariantKey};

use super::fleet::{Instance, Launch, Slot};
use super::timers::Waiter;
use super::{Action, Controller};

/// Rounds within one event; more than are ever needed, so that a mistake cannot spin.
const ROUNDS_MAX: usize = 8;

impl Controller {
    /// Decides and commits until there is nothing left for `now`.
    pub(super) fn settle(&mut self, now: Timestamp) {
        for _ in 0..ROUNDS_MAX {
            self.decide(now);
            let newly_out = self.commit();
            if !newly_out {
                break;
            }
            self.check_drains(now);
            if self.dirty.is_empty() && self.touched.is_empty() {
                break;
            }
        }
    }

    fn decide(&mut self, now: Timestamp) {
        for _ in 0..ROUNDS_MAX {
            for key in std::mem::take(&mut self.dirty) {
                self.round(now, &key);
            }
            self.rearm();
            if !self.wake_due(now) && self.dirty.is_empty() {
                break;
            }
        }
    }

    /// Wakes everybody whose timer is due, by time and name; each once. Returns whether there was one.
    pub(super) fn wake_due(&mut self, now: Timestamp) -> bool {
        if self.timers.next().is_none_or(|at| at > now) {
            return false;
        }
        let mut due = self.timers.take_due(now);
        let id = |slot: Slot| self.fleet.in_slot(slot).map(|instance| &instance.record.id);
        due.sort_by(|(at, waiter), (other_at, other)| {
            let by_name = || match (waiter, other) {
                (Waiter::Instance(one), Waiter::Instance(other)) => id(*one).cmp(&id(*other)),
                _ => waiter.cmp(other),
            };
            at.cmp(other_at).then_with(by_name)
        });
        for (_, waiter) in due {
            match waiter {
                Waiter::Reconnect => self.check_drains(now),
                Waiter::Sample => self.sample(now),
                Waiter::Schedule(key) => self.keep_schedule(now, &key),
                Waiter::Scaling(key) => self.ask_policies(now, &key),
                Waiter::Instance(slot) => self.instance_due(now, slot),
                Waiter::Sweep(phase) => self.sweep_due(now, phase),
                Waiter::Variant(key) => {
                    self.dirty.insert(key);
                }
                Waiter::Provider(name) => self.list_due(now, &name),
                Waiter::Proxy(id) => self.proxy_silent(now, &id),
            }
        }
        true
    }

    /// Sets the timers of the instances that were looked at.
    fn rearm(&mut self) {
        while let Some(slot) = self.touched.pop() {
            // One that is gone has taken its timer along.
            let Some(instance) = self.fleet.in_slot(slot) else { continue };
            let asks_again = instance.state() == InstanceState::Pending
                && matches!(instance.launch, Launch::Due(_));
            let waits = asks_again && self.unheard_provider(&instance.record.variant).is_some();
            let due = instance.due().filter(|_| !waits);
            self.timers.set(Waiter::Instance(slot), due);
        }
    }

    /// Hands out what is to be done. Returns whether an instance has just left the table.
    fn commit(&mut self) -> bool {
        let changes = self.take_changes();
        if !changes.is_empty() {
            self.actions.push_back(Action::Persist(changes));
        }
        let newly_out = self.publish();
        self.actions.extend(self.after.drain(..));
        newly_out
    }

    fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.journal.is_empty() {
            return changes;
        }
        for key in std::mem::take(&mut self.journal.variants) {
            changes.push(match self.variants.get(&key) {
                Some(variant) => Change::PutVariant(variant.record.clone()),
                None => Change::DeleteVariant(key),
            });
        }
        for id in std::mem::take(&mut self.journal.instances) {
            changes.push(match self.fleet.get(&id) {
                Some(instance) => Change::PutInstance(InstanceRecord::clone(&instance.record)),
                None => Change::DeleteInstance(id),
            });
        }
        for key in std::mem::take(&mut self.journal.capacities) {
            changes.push(match self.capacities.get(&key) {
                Some(record) => Change::PutCapacity(record.clone()),
                None => Change::DeleteCapacity(key),
            });
        }
        for id in std::mem::take(&mut self.journal.proxies) {
            changes.push(match self.proxies.get(&id) {
                Some(proxy) => Change::PutProxy(ProxyRecord { id, heard_at: proxy.first_heard_at }),
                None => Change::DeleteProxy(id),
            });
        }
        changes.extend(std::mem::take(&mut self.journal.new_events).into_iter().map(Change::Log));
        changes
    }

    /// Publishes the table if it differs from the last. Returns whether an instance has left it.
    fn publish(&mut self) -> bool {
        let whole = std::mem::take(&mut self.table_dirty);
        let stale = std::mem::take(&mut self.stale_routes);
        if !whole && stale.is_empty() {
            return false;
        }
        let before = &self.table.endpoints;
        // Only a new spec changes which endpoints there are, and then all are stale.
        let part = |(at, endpoint): (usize, &EndpointSpec)| {
            let old = before.get(at);
            let kept = old.filter(|old| !whole && !stale.contains(&old.name));
            kept.cloned().unwrap_or_else(|| {
                let new = self.route(endpoint);
                let same = old.filter(|old| ***old == new);
                same.cloned().unwrap_or_else(|| Arc::new(new))
            })
        };
        let endpoints: Vec<_> = self.spec.endpoints.iter().enumerate().map(part).collect();
        let same = endpoints.len() == before.len()
            && endpoints.iter().zip(before).all(|(new, old)| Arc::ptr_eq(new, old));
        let revision = self.table.version.revision;
        if revision == 0 || !same {
            let version = TableVersion { epoch: self.epoch, revision: revision + 1 };
            let table = RoutingTable { format: RoutingTable::FORMAT, version, endpoints };
            self.table = Arc::new(table);
            self.actions.push_back(Action::Publish(self.table.clone()));
        }
        let version = self.table.version;
        let mut newly_out = false;
        let draining: Vec<_> = self
            .fleet
            .in_state(InstanceState::Draining)
            .filter(|i| i.out_since.is_none())
            .map(|i| i.record.id.clone())
            .collect();
        for id in draining {
            if let Some(instance) = self.fleet.get_mut(&id) {
                instance.out_since = Some(version);
                newly_out = true;
            }
        }
        newly_out
    }

    fn route(&self, endpoint: &EndpointSpec) -> EndpointRoute {
        let variants = endpoint.variants.iter().map(|variant| {
            let key = VariantKey { endpoint: endpoint.name.clone(), variant: variant.name.clone() };
            self.route_variant(&key, variant)
        });
        EndpointRoute { name: endpoint.name.clone(), variants: variants.collect() }
    }

    fn route_variant(&self, key: &VariantKey, spec: &VariantSpec) -> VariantRoute {
        VariantRoute {
            name: spec.name.clone(),
            model: spec.model.clone(),
            weight: spec.weight,
            strategy: spec.routing,
            queue_limit: spec.queue.limit,
            queue_timeout_ms: u64::try_from(spec.queue.timeout.as_millis()).unwrap_or(u64::MAX),
            requests: spec.requests.clone(),
            backends: self.fleet.of(key).filter_map(|i| self.backend(i, spec)).collect(),
        }
    }

    fn backend(&self, instance: &Instance, variant: &VariantSpec) -> Option<BackendRoute> {
        let record = &instance.record;
        if record.state != InstanceState::InService {
            return None;
        }
        let kind = self.spec.instance_types.get(&record.instance_type);
        let (protocol, tls) =
            self.protocols.get(&record.instance_type).cloned().unwrap_or_default();
        Some(BackendRoute {
            instance: record.id.clone(),
            generation: record.generation,
            instance_type: record.instance_type.clone(),
            address: record.address.clone()?,
            model: record.model.clone(),
            copies: record.copies,
            max_concurrency: record.max_concurrency,
            protocol,
            tls,
            engine: self.spec.engine(&record.instance_type, variant),
            on_client_abort: kind.map(|kind| kind.on_client_abort).unwrap_or_default(),
            load_metrics: kind.and_then(|kind| kind.signals.load_metrics),
            recoveries: instance.probe.recoveries,
        })
    }
}
