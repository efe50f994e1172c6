//! What the controller knows of each instance beyond its durable record, and the indices over them. Plain
//! bookkeeping; what it means is decided in [`super::life`] and the files beside it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::types::record::{CapacityKey, InstanceRecord};
use crate::types::spec::VariantSpec;
use crate::types::table::TableVersion;
use crate::types::{Generation, InstanceId, InstanceState, ProviderName, Timestamp, VariantKey};

use super::crews::{CrewNumber, Crews};
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
pub(super) struct Probing {
    /// When it is asked by itself, apart from its sweep; `None`: it is not.
    pub(super) next_at: Option<Timestamp>,
    pub(super) sent_at: Timestamp,
    /// A probe is out.
    pub(super) in_flight: bool,
    /// Failures in a row.
    pub(super) failures: u32,
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

/// An instance: its durable record and what is under way for it. What each probe looks at lies together, and what is
/// large lies elsewhere: with ten thousand instances most of the time of a probe would else go into fetching memory.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct Instance {
    /// Those of the record.
    generation: Generation,
    state: InstanceState,
    /// Where the fleet keeps it.
    pub(super) slot: Slot,
    /// What it is part of.
    pub(super) crew: CrewNumber,
    pub(super) probe: Probing,
    /// What its last probe found, if nothing good.
    pub(super) complaint: Option<Box<str>>,
    /// Its variant's, as last configured; `None` if that was removed before this controller started.
    pub(super) spec: Option<Arc<VariantSpec>>,
    pub(super) record: Box<InstanceRecord>,
    pub(super) launch: Launch,
    pub(super) launch_attempts: u32,
    /// The number of the first list whose silence on this instance proves that it does not exist: one
    /// begun after the provider last answered about it.
    pub(super) provable_from: u64,
    /// The provider has accepted it but does not run it yet.
    pub(super) provider_pending: bool,
    pub(super) stop: Stop,
    pub(super) interruption: Option<Interruption>,
    /// When a proxy last saw it send bytes or finish a request.
    pub(super) worked_at: Option<Timestamp>,
    /// The first published table without it, once it drains.
    pub(super) out_since: Option<TableVersion>,
    /// What it told of its own load.
    pub(super) told: Box<Told>,
}

/// Where an instance is kept as long as it is there: what is done for each of them many times a minute finds it by
/// this and compares no names. Used again when it is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot(pub(super) u32);

impl Slot {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A list's number that no list reaches: silence proves nothing.
pub(super) const NEVER: u64 = u64::MAX;

impl Instance {
    pub(super) fn new(record: InstanceRecord, launch: Launch) -> Self {
        Self {
            generation: record.generation,
            state: record.state,
            slot: Slot::default(),
            crew: 0,
            probe: Probing::default(),
            complaint: None,
            spec: None,
            record: Box::new(record),
            launch,
            launch_attempts: 0,
            provable_from: 1,
            provider_pending: false,
            stop: Stop::default(),
            interruption: None,
            worked_at: None,
            out_since: None,
            told: Box::default(),
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) fn state(&self) -> InstanceState {
        self.state
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

    /// How long after its grant it is given up, if it is still starting then. `model_download_timeout` is the time
    /// to run, where it is set; what runs may use what is left of it and `startup_timeout`, since many a server
    /// downloads its model itself.
    pub(super) fn startup_allowance(&self) -> Duration {
        let Some(spec) = &self.spec else { return Duration::ZERO };
        match (self.runs(), spec.model_download_timeout) {
            (false, Duration::ZERO) => spec.startup_timeout,
            (false, download) => download,
            (true, download) => download + spec.startup_timeout,
        }
    }

    /// When it is looked at next, apart from what a plan wants.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self.state() {
            InstanceState::Pending => match self.launch {
                Launch::Due(at) | Launch::InFlight(at) => Some(at),
                Launch::Unknown | Launch::Answered => None,
            },
            InstanceState::Starting => {
                let deadline = self.record.granted_at.map(|at| at + self.startup_allowance());
                self.probe_due().into_iter().chain(deadline).min()
            }
            InstanceState::InService => self.probe_due(),
            InstanceState::Draining => self.record.drain_deadline,
            InstanceState::Stopping => match self.launch {
                Launch::InFlight(at) => Some(at),
                _ => Some(self.stop.next_at),
            },
        }
    }
}

/// The instances of an index, in the order of their ids.
type Members = BTreeMap<InstanceId, Slot>;

/// All instances, indexed. Whatever walks over several goes by an index, in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    slots: Vec<Option<Instance>>,
    /// Slots without one.
    free: Vec<Slot>,
    by_id: HashMap<InstanceId, Slot>,
    by_generation: FxHashMap<Generation, Slot>,
    ids: Members,
    by_variant: BTreeMap<VariantKey, Members>,
    by_provider: BTreeMap<ProviderName, Members>,
    by_state: BTreeMap<InstanceState, Members>,
    /// How many are `Pending`, by whose capacity they ask for.
    pending: BTreeMap<CapacityKey, u32>,
    /// How many are `InService`.
    pub(super) crews: Crews,
    /// Instances that came or went and those whose state changed, by provider, until somebody asks.
    changed: BTreeMap<ProviderName, BTreeSet<InstanceId>>,
}

impl Fleet {
    pub(super) fn insert(&mut self, mut instance: Instance) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // There is room for as many in no memory.
            Slot(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX))
        });
        instance.slot = slot;
        let record = &instance.record;
        instance.crew = self.crews.join(&record.variant, &record.instance_type);
        let id = || record.id.clone();
        self.by_variant.entry(record.variant.clone()).or_default().insert(id(), slot);
        self.by_provider.entry(record.provider.clone()).or_default().insert(id(), slot);
        self.by_generation.insert(record.generation, slot);
        self.by_id.insert(id(), slot);
        self.ids.insert(id(), slot);
        self.slots[slot.index()] = Some(instance);
        self.enter_state(slot);
        slot
    }

    pub(super) fn remove(&mut self, id: &InstanceId) -> Option<Instance> {
        let slot = *self.by_id.get(id)?;
        self.leave_state(slot);
        self.by_id.remove(id);
        let instance = self.slots[slot.index()].take()?;
        self.free.push(slot);
        let record = &instance.record;
        self.crews.leave(&record.variant, &record.instance_type);
        take_out(&mut self.by_variant, &record.variant, id);
        take_out(&mut self.by_provider, &record.provider, id);
        self.by_generation.remove(&record.generation);
        self.ids.remove(id);
        Some(instance)
    }

    /// Sets the state, and nothing else.
    pub(super) fn set_state(&mut self, id: &InstanceId, state: InstanceState) {
        let Some(slot) = self.by_id.get(id).copied() else { return };
        self.leave_state(slot);
        if let Some(instance) = self.in_slot_mut(slot) {
            instance.state = state;
            instance.record.state = state;
        }
        self.enter_state(slot);
    }

    fn enter_state(&mut self, slot: Slot) {
        let Some(instance) = &self.slots[slot.index()] else { return };
        let record = &instance.record;
        self.changed.entry(record.provider.clone()).or_default().insert(record.id.clone());
        self.by_state.entry(record.state).or_default().insert(record.id.clone(), slot);
        match record.state {
            InstanceState::Pending => {
                *self.pending.entry(instance.capacity_key()).or_default() += 1;
            }
            InstanceState::InService => self.crews.serves(instance.crew),
            _ => {}
        }
    }

    fn leave_state(&mut self, slot: Slot) {
        let Some(instance) = &self.slots[slot.index()] else { return };
        let record = &instance.record;
        self.changed.entry(record.provider.clone()).or_default().insert(record.id.clone());
        take_out(&mut self.by_state, &record.state, &record.id);
        match record.state {
            InstanceState::Pending => count_down(&mut self.pending, &instance.capacity_key()),
            InstanceState::InService => self.crews.rests(instance.crew),
            _ => {}
        }
    }

    /// Whether somebody's launch waits for that capacity.
    pub(super) fn asks_for(&self, key: &CapacityKey) -> bool {
        self.pending.contains_key(key)
    }

    pub(super) fn get(&self, id: &InstanceId) -> Option<&Instance> {
        self.in_slot(*self.by_id.get(id)?)
    }

    pub(super) fn get_mut(&mut self, id: &InstanceId) -> Option<&mut Instance> {
        self.in_slot_mut(*self.by_id.get(id)?)
    }

    pub(super) fn in_slot(&self, slot: Slot) -> Option<&Instance> {
        self.slots.get(slot.index())?.as_ref()
    }

    pub(super) fn in_slot_mut(&mut self, slot: Slot) -> Option<&mut Instance> {
        self.slots.get_mut(slot.index())?.as_mut()
    }

    /// Which one a start is of.
    pub(super) fn started_as(&self, generation: Generation) -> Option<&Instance> {
        self.in_slot(*self.by_generation.get(&generation)?)
    }

    /// Which of a provider's came or went or changed their state since this was last asked.
    pub(super) fn take_changed(&mut self, provider: &ProviderName) -> BTreeSet<InstanceId> {
        self.changed.remove(provider).unwrap_or_default()
    }

    fn each<'a>(&'a self, members: Option<&'a Members>) -> impl Iterator<Item = &'a Instance> {
        members.into_iter().flat_map(BTreeMap::values).filter_map(|slot| self.in_slot(*slot))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.each(Some(&self.ids))
    }

    /// In no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.slots.iter_mut().flatten()
    }

    /// A variant's instances, by id.
    pub(super) fn of(&self, variant: &VariantKey) -> impl Iterator<Item = &Instance> {
        self.each(self.by_variant.get(variant))
    }

    /// A provider's instances, by id.
    pub(super) fn at(&self, provider: &ProviderName) -> impl Iterator<Item = &Instance> {
        self.each(self.by_provider.get(provider))
    }

    pub(super) fn in_state(&self, state: InstanceState) -> impl Iterator<Item = &Instance> {
        self.each(self.by_state.get(&state))
    }
}

/// Removes `id` from the index entry of `key`, and that with its last.
fn take_out<K: Ord>(indices: &mut BTreeMap<K, Members>, key: &K, id: &InstanceId) {
    if let Some(members) = indices.get_mut(key) {
        members.remove(id);
        if members.is_empty() {
            indices.remove(key);
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
