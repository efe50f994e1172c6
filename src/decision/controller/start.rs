//! Where a controller begins: what is restored from the store, and how a spec is taken over, at the
//! start and at every reload.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::decision::scale::schedule;
use crate::decision::scale::series::FINE;
use crate::types::record::{CapacityKey, LastChanges, StoredState, VariantRecord};
use crate::types::spec::{EndpointSpec, FleetSpec, VariantSpec};
use crate::types::table::{RoutingTable, TableVersion};
use crate::types::{InstanceState, Timestamp, VariantKey};

use super::drain::Proxy;
use super::events::{EventKind, Leave};
use super::fleet::{Fleet, Instance, Launch};
use super::jitter::Jitter;
use super::journal::Journal;
use super::machine::Trigger;
use super::sweeps::Sweeps;
use super::timers::{Timers, Waiter};
use super::variant::Variant;
use super::{Controller, PROXY_LEASE, RECONNECT_GRACE};

impl Controller {
    pub(super) fn start(
        epoch: u64,
        now: Timestamp,
        spec: &Arc<FleetSpec>,
        stored: StoredState,
        seed: u64,
    ) -> Self {
        let version = TableVersion { epoch, revision: 0 };
        let mut controller = Self {
            epoch,
            started_at: now,
            spec: Arc::default(),
            jitter: Jitter::new(seed),
            fleet: Fleet::default(),
            variants: BTreeMap::new(),
            providers: BTreeMap::new(),
            proxies: stored
                .proxies
                .iter()
                .map(|p| (p.id.clone(), Proxy::restored(now, p)))
                .collect(),
            capacities: stored.capacities.into_iter().map(|c| (c.key.clone(), c)).collect(),
            capacity_errors: BTreeMap::new(),
            protocols: BTreeMap::new(),
            next_generation: stored.next_generation.max(1),
            journal: Journal::restored(stored.events),
            timers: Timers::default(),
            sweeps: Sweeps::default(),
            sample_every: FINE,
            dirty: BTreeSet::new(),
            touched: Vec::new(),
            table: Arc::new(RoutingTable { version, ..RoutingTable::default() }),
            stale_routes: BTreeSet::new(),
            table_dirty: true,
            after: Vec::new(),
            actions: VecDeque::new(),
        };
        for record in stored.variants {
            controller.variants.insert(record.variant.clone(), Variant::new(record, now));
        }
        for record in stored.instances {
            controller.restore(now, Instance::new(record, Launch::Unknown));
        }
        for id in controller.proxies.keys() {
            controller.timers.set(Waiter::Proxy(id.clone()), Some(now + PROXY_LEASE));
        }
        controller.timers.set(Waiter::Reconnect, Some(now + RECONNECT_GRACE));
        controller.adopt_spec(now, spec);
        controller.handle_timeout(now);
        controller
    }

    fn restore(&mut self, now: Timestamp, mut instance: Instance) {
        let record = &instance.record;
        self.next_generation = self.next_generation.max(record.generation.0 + 1);
        if record.state != InstanceState::Pending {
            instance.launch = Launch::Answered;
        }
        instance.probe.next_at = Some(now);
        instance.stop.next_at = now;
        let key = record.variant.clone();
        self.variants.entry(key.clone()).or_insert_with(|| {
            let record = VariantRecord {
                variant: key,
                desired: 0,
                configured_initial: 0,
                was_in_service: false,
                round: None,
                scaled: LastChanges::default(),
            };
            Variant::new(record, now)
        });
        let slot = self.fleet.insert(instance);
        self.touched.push(slot);
    }

    /// Follows another spec from now on; what differs is applied by the rounds that follow.
    pub(super) fn adopt_spec(&mut self, now: Timestamp, spec: &Arc<FleetSpec>) {
        self.forget_changed_capacities(spec);
        self.spec = spec.clone();
        for variant in self.variants.values_mut() {
            variant.configured = false;
        }
        for (endpoint, variant) in spec.variants() {
            self.adopt_variant(now, endpoint, variant);
        }
        self.adopt_members();
        self.sweep_anew(now);
        let kinds = spec.instance_types.values().map(|t| t.provider.clone());
        let used: BTreeSet<_> =
            kinds.chain(self.fleet.iter().map(|i| i.record.provider.clone())).collect();
        for provider in used {
            self.follow_provider(now, &provider);
        }
        self.release_removed(now);
        self.follow_scaling(now);
        self.follow_schedules(now);
        self.dirty.extend(self.variants.keys().cloned());
        self.table_dirty = true;
    }

    /// A type that the operator has changed, its capacity perhaps, has no history.
    fn forget_changed_capacities(&mut self, spec: &FleetSpec) {
        let old = &self.spec.instance_types;
        let changed = |key: &CapacityKey| {
            let before = old.get(&key.instance_type);
            before.is_some() && before != spec.instance_types.get(&key.instance_type)
        };
        let gone: Vec<_> = self.capacities.keys().filter(|key| changed(key)).cloned().collect();
        for key in gone {
            self.capacities.remove(&key);
            self.journal.capacities.insert(key);
        }
    }

    fn adopt_variant(&mut self, now: Timestamp, endpoint: &EndpointSpec, spec: &VariantSpec) {
        let key = VariantKey { endpoint: endpoint.name.clone(), variant: spec.name.clone() };
        let bounds = schedule::bounds(spec, now);
        let initial = spec.initial_instance_count;
        let created = !self.variants.contains_key(&key);
        let variant = self.variants.entry(key.clone()).or_insert_with(|| {
            let record = VariantRecord {
                variant: key.clone(),
                desired: bounds.clamp(initial),
                configured_initial: initial,
                was_in_service: false,
                round: None,
                scaled: LastChanges::default(),
            };
            Variant::new(record, now)
        });
        variant.configured = true;
        variant.bounds = bounds;
        variant.spec = Some(Arc::new(spec.clone()));
        let before = variant.record.clone();
        if before.configured_initial != initial {
            variant.record.desired = initial;
            variant.record.configured_initial = initial;
        }
        variant.record.desired = bounds.clamp(variant.record.desired);
        let (old, new) = (before.desired, variant.record.desired);
        if created || before != variant.record {
            self.journal.variants.insert(key.clone());
        }
        if created {
            let message = format!("{key} is followed from now on, with {new} instances desired");
            self.log(now, EventKind::VariantCreated, &key, None, message);
        } else if old != new {
            let message = format!("the config changes {key} from {old} to {new} instances desired");
            self.log(now, EventKind::DesiredChanged, &key, None, message);
        }
    }

    /// Gives instances the spec of their variant, and the priority and limits that their pools have now.
    fn adopt_members(&mut self) {
        let spec = self.spec.clone();
        for (name, kind) in &spec.instance_types {
            self.protocols.insert(name.clone(), (kind.protocol, kind.tls.clone()));
        }
        let mut changed = Vec::new();
        for instance in self.fleet.iter_mut() {
            instance.spec =
                self.variants.get(&instance.record.variant).and_then(|v| v.spec.clone());
            let record = &mut instance.record;
            let pools = spec.variant(&record.variant).into_iter().flat_map(|v| &v.pools);
            let Some(pool) = pools.into_iter().find(|p| p.instance_type == record.instance_type)
            else {
                continue;
            };
            let limit = spec
                .instance_types
                .get(&record.instance_type)
                .map_or(record.max_concurrency, |t| t.max_concurrency);
            if (record.priority, record.max_concurrency) != (pool.priority, limit) {
                record.priority = pool.priority;
                record.max_concurrency = limit;
                changed.push(record.id.clone());
            }
        }
        self.journal.instances.extend(changed);
        let running: BTreeSet<_> =
            self.fleet.iter().map(|i| i.record.instance_type.clone()).collect();
        self.protocols
            .retain(|name, _| spec.instance_types.contains_key(name) || running.contains(name));
    }

    /// Lets the instances of variants that the config no longer has go.
    fn release_removed(&mut self, now: Timestamp) {
        let removed: Vec<_> =
            self.variants.iter().filter(|(_, v)| !v.configured).map(|(k, _)| k.clone()).collect();
        for key in removed {
            let ids: Vec<_> = self
                .fleet
                .of(&key)
                .filter(|i| !i.state().is_leaving())
                .map(|i| i.record.id.clone())
                .collect();
            if !ids.is_empty() {
                let message = format!("{key} left the config; its {} instances leave", ids.len());
                self.log(now, EventKind::VariantRemoved, &key, None, message);
            }
            for id in ids {
                let leave = Leave::new(EventKind::VariantRemoved, "its variant left the config");
                self.apply(now, &id, Trigger::Released, Some(&leave));
            }
        }
    }
}
