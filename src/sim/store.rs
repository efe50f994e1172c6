//! The simulated world's durable state: commits in order, and what survives a crash of the manager.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::types::record::{
    CapacityKey, CapacityRecord, Change, EventRecord, InstanceRecord, ProxyRecord, StoredState,
    VariantRecord,
};
use crate::types::{InstanceId, InstanceState, ProxyId, VariantKey};

/// Events kept; the oldest are dropped past it.
const LOG_LIMIT: usize = 200;

/// Records, as the last commit left them.
#[derive(Debug, Default)]
pub(super) struct DurableState {
    pub(super) instances: BTreeMap<InstanceId, InstanceRecord>,
    /// Those of them that drain.
    pub(super) draining: BTreeSet<InstanceId>,
    pub(super) variants: BTreeMap<VariantKey, VariantRecord>,
    pub(super) capacities: BTreeMap<CapacityKey, CapacityRecord>,
    pub(super) proxies: BTreeMap<ProxyId, ProxyRecord>,
    events: VecDeque<EventRecord>,
    next_generation: u64,
}

impl DurableState {
    /// Commits a batch.
    pub(super) fn commit(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutInstance(record) => {
                    self.next_generation = self.next_generation.max(record.generation.0 + 1);
                    if record.state == InstanceState::Draining {
                        self.draining.insert(record.id.clone());
                    } else {
                        self.draining.remove(&record.id);
                    }
                    self.instances.insert(record.id.clone(), record.clone());
                }
                Change::DeleteInstance(id) => {
                    self.instances.remove(id);
                    self.draining.remove(id);
                }
                Change::PutVariant(record) => {
                    self.variants.insert(record.variant.clone(), record.clone());
                }
                Change::DeleteVariant(key) => drop(self.variants.remove(key)),
                Change::PutCapacity(record) => {
                    self.capacities.insert(record.key.clone(), record.clone());
                }
                Change::DeleteCapacity(key) => drop(self.capacities.remove(key)),
                Change::PutProxy(record) => {
                    self.proxies.insert(record.id.clone(), record.clone());
                }
                Change::DeleteProxy(id) => drop(self.proxies.remove(id)),
                Change::Log(event) => {
                    self.events.push_back(event.clone());
                    if self.events.len() > LOG_LIMIT {
                        self.events.pop_front();
                    }
                }
            }
        }
    }

    /// What a manager that starts is given.
    pub(super) fn load(&self) -> StoredState {
        StoredState {
            next_generation: self.next_generation,
            instances: self.instances.values().cloned().collect(),
            variants: self.variants.values().cloned().collect(),
            capacities: self.capacities.values().cloned().collect(),
            proxies: self.proxies.values().cloned().collect(),
            events: self.events.iter().cloned().collect(),
        }
    }
}
