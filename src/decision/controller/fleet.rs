//! What the controller knows of each instance beyond its durable record, and the indices over them. Plain
//! bookkeeping; what it means is decided in [`super::life`] and the files beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::types::record::{CapacityKey, InstanceRecord};
use crate::types::table::TableVersion;
use crate::types::{InstanceId, InstanceState, Timestamp, VariantKey};

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

/// All instances, indexed.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    instances: BTreeMap<InstanceId, Instance>,
    by_variant: BTreeMap<VariantKey, BTreeSet<InstanceId>>,
    by_state: BTreeMap<InstanceState, BTreeSet<InstanceId>>,
    /// How many are `Pending`, by whose capacity they ask for.
    pending: BTreeMap<CapacityKey, usize>,
}

impl Fleet {
    pub(super) fn insert(&mut self, instance: Instance) {
        let record = &instance.record;
        self.by_variant.entry(record.variant.clone()).or_default().insert(record.id.clone());
        self.by_state.entry(record.state).or_default().insert(record.id.clone());
        if record.state == InstanceState::Pending {
            *self.pending.entry(instance.capacity_key()).or_default() += 1;
        }
        self.instances.insert(record.id.clone(), instance);
    }

    pub(super) fn remove(&mut self, id: &InstanceId) -> Option<Instance> {
        let instance = self.instances.remove(id)?;
        if let Some(members) = self.by_variant.get_mut(&instance.record.variant) {
            members.remove(id);
            if members.is_empty() {
                self.by_variant.remove(&instance.record.variant);
            }
        }
        self.by_state.entry(instance.record.state).or_default().remove(id);
        if instance.record.state == InstanceState::Pending {
            self.no_longer_pending(&instance.capacity_key());
        }
        Some(instance)
    }

    /// Sets the state, and nothing else.
    pub(super) fn set_state(&mut self, id: &InstanceId, state: InstanceState) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let from = std::mem::replace(&mut instance.record.state, state);
        let key = instance.capacity_key();
        self.by_state.entry(from).or_default().remove(id);
        self.by_state.entry(state).or_default().insert(id.clone());
        if state == InstanceState::Pending {
            *self.pending.entry(key.clone()).or_default() += 1;
        }
        if from == InstanceState::Pending {
            self.no_longer_pending(&key);
        }
    }

    fn no_longer_pending(&mut self, key: &CapacityKey) {
        if let Some(count) = self.pending.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.pending.remove(key);
            }
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

    pub(super) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.instances.values_mut()
    }

    /// A variant's instances, by id.
    pub(super) fn of(&self, variant: &VariantKey) -> impl Iterator<Item = &Instance> {
        let ids = self.by_variant.get(variant).into_iter().flatten();
        ids.filter_map(|id| self.instances.get(id))
    }

    pub(super) fn in_state(&self, state: InstanceState) -> impl Iterator<Item = &Instance> {
        let ids = self.by_state.get(&state).into_iter().flatten();
        ids.filter_map(|id| self.instances.get(id))
    }
}
