//! What the controller knows of each instance beyond its durable record, and the indices over them. Plain
//! bookkeeping; what it means is decided in [`super::life`] and the files beside it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::types::record::{CapacityKey, InstanceRecord};
use crate::types::table::TableVersion;
use crate::types::{
    Generation, InstanceId, InstanceState, InstanceTypeName, ProviderName, Timestamp, VariantKey,
};

use super::signals::Told;

/// Where the launch of an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launch {
    /// Asked for by an earlier manager, or about to be; the provider's list will tell.
    Unknown,
    /// To be asked for (again), with the same id, at this moment.
    Due(Timestamp),
    /// Asked for; given up for unanswered at this moment.
    InFlight(Timestamp),
    /// The provider has said what became of it.
    Answered,
}

/// Where the health probes of an instance stand.
#[derive(Debug, Clone, Default)]
pub(super) struct Probe {
    pub(super) next_at: Timestamp,
    pub(super) sent_at: Timestamp,
    /// A probe is out; given up for unanswered at this moment.
    pub(super) in_flight: Option<Timestamp>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// The last failure, in words.
    pub(super) last: Option<String>,
    /// How often it has passed again after failures, since it is in service.
    pub(super) recoveries: u32,
}

/// Where the termination of an instance stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stop {
    pub(super) next_at: Timestamp,
    pub(super) attempts: u32,
}

/// An announced end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interruption {
    pub(super) at: Timestamp,
    /// When it drains at the latest, replaced or not.
    pub(super) drain_at: Timestamp,
}

/// An instance: its durable record and what is under way for it.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) record: InstanceRecord,
    pub(super) launch: Launch,
    pub(super) launch_attempts: u32,
    /// The number of the first list whose silence on this instance proves that it does not exist: one
    /// begun after the provider last answered about it.
    pub(super) provable_from: u64,
    /// The provider has accepted it but does not run it yet.
    pub(super) provider_pending: bool,
    pub(super) probe: Probe,
    pub(super) stop: Stop,
    pub(super) interruption: Option<Interruption>,
    /// When a proxy last saw it send bytes or finish a request.
    pub(super) worked_at: Option<Timestamp>,
    /// The first published table without it, once it drains.
    pub(super) out_since: Option<TableVersion>,
    /// What it told of its own load.
    pub(super) told: Told,
}

/// A list's number that no list reaches: silence proves nothing.
pub(super) const NEVER: u64 = u64::MAX;

impl Instance {
    pub(super) fn new(record: InstanceRecord, launch: Launch) -> Self {
        Self {
            record,
            launch,
            launch_attempts: 0,
            provable_from: 1,
            provider_pending: false,
            probe: Probe::default(),
            stop: Stop::default(),
            interruption: None,
            worked_at: None,
            out_since: None,
            told: Told::default(),
        }
    }

    pub(super) fn state(&self) -> InstanceState {
        self.record.state
    }

    /// Whether its provider says that it runs, at an address.
    pub(super) fn runs(&self) -> bool {
        !self.provider_pending && self.record.address.is_some()
    }

    pub(super) fn capacity_key(&self) -> CapacityKey {
        CapacityKey {
            provider: self.record.provider.clone(),
            instance_type: self.record.instance_type.clone(),
            zone: None,
        }
    }

    /// When it is looked at next, apart from what a plan wants. `startup` is the whole allowance from
    /// granted to healthy.
    pub(super) fn due(&self, startup: Duration) -> Option<Timestamp> {
        let probe = || {
            let next = self.record.address.as_ref().map(|_| self.probe.next_at);
            self.probe.in_flight.or(next)
        };
        match self.state() {
            InstanceState::Pending => match self.launch {
                Launch::Due(at) | Launch::InFlight(at) => Some(at),
                Launch::Unknown | Launch::Answered => None,
            },
            InstanceState::Starting => {
                let deadline = self.record.granted_at.map(|at| at + startup);
                probe().into_iter().chain(deadline).min()
            }
            InstanceState::InService => probe(),
            InstanceState::Draining => self.record.drain_deadline,
            InstanceState::Stopping => match self.launch {
                Launch::InFlight(at) => Some(at),
                _ => Some(self.stop.next_at),
            },
        }
    }
}

/// All instances, indexed. Whatever walks over several goes by an index, in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    instances: HashMap<InstanceId, Instance>,
    ids: BTreeSet<InstanceId>,
    by_variant: BTreeMap<VariantKey, BTreeSet<InstanceId>>,
    by_provider: BTreeMap<ProviderName, BTreeSet<InstanceId>>,
    by_generation: HashMap<Generation, InstanceId>,
    by_state: BTreeMap<InstanceState, BTreeSet<InstanceId>>,
    /// How many are `Pending`, by whose capacity they ask for.
    pending: BTreeMap<CapacityKey, u32>,
    /// How many are `InService`.
    serving: BTreeMap<VariantKey, BTreeMap<InstanceTypeName, u32>>,
    /// Counts instances that came or went and states that changed.
    version: u64,
}

impl Fleet {
    pub(super) fn insert(&mut self, instance: Instance) {
        let record = &instance.record;
        let id = record.id.clone();
        self.by_variant.entry(record.variant.clone()).or_default().insert(record.id.clone());
        self.by_provider.entry(record.provider.clone()).or_default().insert(record.id.clone());
        self.by_generation.insert(record.generation, record.id.clone());
        self.ids.insert(record.id.clone());
        self.instances.insert(record.id.clone(), instance);
        self.enter_state(&id);
    }

    pub(super) fn remove(&mut self, id: &InstanceId) -> Option<Instance> {
        self.leave_state(id);
        let instance = self.instances.remove(id)?;
        let record = &instance.record;
        take_out(&mut self.by_variant, &record.variant, id);
        take_out(&mut self.by_provider, &record.provider, id);
        self.by_generation.remove(&record.generation);
        self.ids.remove(id);
        Some(instance)
    }

    /// Sets the state, and nothing else.
    pub(super) fn set_state(&mut self, id: &InstanceId, state: InstanceState) {
        self.leave_state(id);
        if let Some(instance) = self.instances.get_mut(id) {
            instance.record.state = state;
        }
        self.enter_state(id);
    }

    fn enter_state(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        let record = &instance.record;
        self.version += 1;
        self.by_state.entry(record.state).or_default().insert(id.clone());
        match record.state {
            InstanceState::Pending => {
                *self.pending.entry(instance.capacity_key()).or_default() += 1;
            }
            InstanceState::InService => {
                let types = self.serving.entry(record.variant.clone()).or_default();
                *types.entry(record.instance_type.clone()).or_default() += 1;
            }
            _ => {}
        }
    }

    fn leave_state(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        let record = &instance.record;
        self.version += 1;
        take_out(&mut self.by_state, &record.state, id);
        match record.state {
            InstanceState::Pending => count_down(&mut self.pending, &instance.capacity_key()),
            InstanceState::InService => {
                if let Some(types) = self.serving.get_mut(&record.variant) {
                    count_down(types, &record.instance_type);
                    if types.is_empty() {
                        self.serving.remove(&record.variant);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether somebody's launch waits for that capacity.
    pub(super) fn asks_for(&self, key: &CapacityKey) -> bool {
        self.pending.contains_key(key)
    }

    pub(super) fn get(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &InstanceId) -> Option<&mut Instance> {
        self.instances.get_mut(id)
    }

    /// Which one a start is of.
    pub(super) fn started_as(&self, generation: Generation) -> Option<&Instance> {
        self.get(self.by_generation.get(&generation)?)
    }

    /// As long as it is the same, so are all instances and their states.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.ids.iter().filter_map(|id| self.instances.get(id))
    }

    /// In no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.instances.values_mut()
    }

    /// A variant's instances, by id.
    pub(super) fn of(&self, variant: &VariantKey) -> impl Iterator<Item = &Instance> {
        let ids = self.by_variant.get(variant).into_iter().flatten();
        ids.filter_map(|id| self.instances.get(id))
    }

    /// A provider's instances, by id.
    pub(super) fn at(&self, provider: &ProviderName) -> impl Iterator<Item = &Instance> {
        let ids = self.by_provider.get(provider).into_iter().flatten();
        ids.filter_map(|id| self.instances.get(id))
    }

    /// How many of a variant are in service, by type; none is 0.
    pub(super) fn serving(
        &self,
        variant: &VariantKey,
    ) -> impl Iterator<Item = (&InstanceTypeName, u32)> {
        let types = self.serving.get(variant).into_iter().flatten();
        types.map(|(kind, count)| (kind, *count))
    }

    pub(super) fn in_state(&self, state: InstanceState) -> impl Iterator<Item = &Instance> {
        let ids = self.by_state.get(&state).into_iter().flatten();
        ids.filter_map(|id| self.instances.get(id))
    }
}

/// Removes `id` from the set of `key`, and the set with its last.
fn take_out<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<InstanceId>>, key: &K, id: &InstanceId) {
    if let Some(ids) = sets.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            sets.remove(key);
        }
    }
}

/// One less of `key`, and no entry for none.
fn count_down<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
