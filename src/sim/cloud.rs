//! The pretend cloud: what its providers run, and what they answer. It honours the contract of
//! [`crate::provider`]'s trait to the letter, and no more than the letter.

use std::collections::{BTreeMap, BTreeSet};

use super::machines::{Ended, Machine, Machines};
use super::rng::Rng;
use super::setup::{CloudSetup, Faults};
use crate::types::launch::{Grant, LaunchBatch, LaunchOutcome, Listing};
use crate::types::{Address, InstanceId, InstanceTypeName, ProviderError, ProviderName, Timestamp};

/// Addresses that there are, each a port of one host.
const SLOTS: u16 = 50_000;
const FIRST_PORT: u16 = 9_000;
/// A place at which no machine is ever kept.
const NOBODY: usize = usize::MAX;

/// All providers together.
#[derive(Debug)]
pub(super) struct Cloud {
    setup: CloudSetup,
    pub(super) rejecting: BTreeSet<InstanceTypeName>,
    /// Providers that run nothing until then.
    pub(super) out_until: BTreeMap<ProviderName, Timestamp>,
    machines: Machines,
    /// Those that have ended, by when that is forgotten.
    ended: BTreeSet<(Timestamp, InstanceId)>,
    /// By the last part of the address.
    listening: Vec<Listener>,
    /// Addresses that were in use and are free; the lowest one is taken next, so that they are used again.
    freed: BTreeSet<u16>,
    /// Instances that have not ended, by type.
    held: BTreeMap<InstanceTypeName, u32>,
    /// Launches refused for lack of capacity, by type.
    pub(super) refusals: BTreeMap<InstanceTypeName, u64>,
    pub(super) launches: BTreeMap<InstanceTypeName, u64>,
}

/// Who listens at an address.
#[derive(Debug, Clone, Copy)]
struct Listener {
    /// Where that machine is kept; [`NOBODY`]: none listens.
    place: usize,
    /// It was healthy when it was last asked, and nothing has happened to it since.
    well: bool,
}

impl Cloud {
    pub(super) fn new(setup: CloudSetup) -> Self {
        Self {
            setup,
            rejecting: BTreeSet::new(),
            out_until: BTreeMap::new(),
            machines: Machines::default(),
            ended: BTreeSet::new(),
            listening: Vec::new(),
            freed: BTreeSet::new(),
            held: BTreeMap::new(),
            refusals: BTreeMap::new(),
            launches: BTreeMap::new(),
        }
    }

    /// From now on at most `available` instances of a type are run; `None` lifts the limit.
    pub(super) fn set_available(&mut self, kind: &InstanceTypeName, available: Option<u32>) {
        match available {
            Some(available) => drop(self.setup.available.insert(kind.clone(), available)),
            None => drop(self.setup.available.remove(kind)),
        }
    }

    /// How many of a type may run at once, if that is limited.
    pub(super) fn available(&self, kind: &InstanceTypeName) -> Option<u32> {
        self.setup.available.get(kind).copied()
    }

    /// Carries out a launch. An id that is known starts nothing.
    pub(super) fn launch(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        batch: &LaunchBatch,
        faults: Faults,
        rng: &mut Rng,
    ) -> Vec<LaunchOutcome> {
        batch
            .instances
            .iter()
            .map(|id| {
                let result = self.launch_one(now, provider, id, batch, faults, rng);
                LaunchOutcome { instance: id.clone(), result }
            })
            .collect()
    }

    fn launch_one(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        id: &InstanceId,
        batch: &LaunchBatch,
        faults: Faults,
        rng: &mut Rng,
    ) -> Result<Grant, ProviderError> {
        let at_grant = self.setup.address_at_grant;
        if let Some(machine) = self.machines.get(id) {
            return Ok(Grant { address: at_grant.then(|| machine.address.clone()) });
        }
        let kind = &batch.instance_type;
        if self.rejecting.contains(kind) {
            return Err(ProviderError::Rejected { reason: format!("no image for {kind}") });
        }
        if self.out_until.get(provider).is_some_and(|until| *until > now) {
            *self.refusals.entry(kind.clone()).or_default() += 1;
            let reason = format!("{provider} runs nothing");
            return Err(ProviderError::InsufficientCapacity { reason });
        }
        let running = self.running(kind);
        if self.available(kind).is_some_and(|available| running >= available) {
            *self.refusals.entry(kind.clone()).or_default() += 1;
            let reason = format!("{running} of {kind} run and no more are to be had");
            return Err(if rng.chance(self.setup.quota_share) {
                ProviderError::QuotaExceeded { reason }
            } else {
                ProviderError::InsufficientCapacity { reason }
            });
        }
        *self.launches.entry(kind.clone()).or_default() += 1;
        let machine = self.make(now, provider, batch, faults, rng);
        *self.held.entry(kind.clone()).or_default() += 1;
        let address = at_grant.then(|| machine.address.clone());
        let slot = usize::from(machine.slot);
        let place = self.machines.insert(id, machine);
        let nobody = Listener { place: NOBODY, well: false };
        self.listening.resize(self.listening.len().max(slot + 1), nobody);
        self.listening[slot].place = place;
        Ok(Grant { address })
    }

    fn make(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        batch: &LaunchBatch,
        faults: Faults,
        rng: &mut Rng,
    ) -> Machine {
        let kind = &batch.instance_type;
        let startup = self.setup.startup_by_type.get(kind).copied().unwrap_or(self.setup.startup);
        let startup = rng.span(startup);
        let running_at = now + startup / 2;
        let slot = self.free_slot();
        let socket = std::net::SocketAddr::from(([10, 0, 0, 1], FIRST_PORT + slot));
        Machine {
            provider: provider.clone(),
            instance_type: kind.clone(),
            variant: batch.variant.clone(),
            slot,
            address: Address::http(socket),
            address_from: if self.setup.address_at_grant { now } else { running_at },
            launched_at: now,
            running_at,
            healthy_at: (!rng.chance(faults.never_healthy)).then_some(now + startup),
            sick_until: Timestamp(0),
            dead: false,
            interruption_at: None,
            stopping_at: None,
            ended: None,
            dies_at: rng.chance(faults.dies_young).then_some(now + startup / 3),
        }
    }

    /// The lowest address that is free: those that never were in use follow those that are or were.
    fn free_slot(&mut self) -> u16 {
        let fresh = u16::try_from(self.listening.len()).unwrap_or(SLOTS);
        self.freed.pop_first().unwrap_or(fresh.min(SLOTS))
    }

    /// Instances of a type that hold capacity.
    pub(super) fn running(&self, kind: &InstanceTypeName) -> u32 {
        self.held.get(kind).copied().unwrap_or(0)
    }

    /// Every instance, by id.
    pub(super) fn machines(&self) -> &Machines {
        &self.machines
    }

    /// One of them, to be changed.
    pub(super) fn machine_mut(&mut self, id: &InstanceId) -> Option<&mut Machine> {
        let machine = self.machines.get_mut(id)?;
        self.listening[usize::from(machine.slot)].well = false;
        Some(machine)
    }

    /// What `provider` lists at this moment.
    pub(super) fn list(&mut self, now: Timestamp, provider: &ProviderName) -> Listing {
        self.machines.list(now, provider)
    }

    /// Tells an instance to stop; when it will have ended, if that was news.
    pub(super) fn terminate(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        rng: &mut Rng,
    ) -> Result<Option<Timestamp>, ProviderError> {
        let machine = self.machines.get_mut(id).ok_or(ProviderError::NotFound)?;
        match &machine.ended {
            Some(ended) if ended.listed_until <= now => Err(ProviderError::NotFound),
            None if machine.stopping_at.is_none() => {
                machine.stopping_at = Some(now);
                Ok(Some(now + rng.span(self.setup.stop)))
            }
            _ => Ok(None),
        }
    }

    /// Ends an instance.
    pub(super) fn end(&mut self, now: Timestamp, id: &InstanceId, reason: &str, rng: &mut Rng) {
        let listed_until = now + rng.span(self.setup.remembered);
        if let Some(machine) = self.machines.get_mut(id).filter(|m| m.ended.is_none()) {
            machine.ended = Some(Ended { reason: reason.to_owned(), listed_until });
            self.ended.insert((listed_until, id.clone()));
            self.listening[usize::from(machine.slot)] = Listener { place: NOBODY, well: false };
            self.freed.insert(machine.slot);
            if let Some(held) = self.held.get_mut(&machine.instance_type) {
                *held -= 1;
            }
        }
    }

    /// How a probe of `address` is answered: by whoever listens there now.
    pub(super) fn probe(&mut self, now: Timestamp, address: &Address) -> Result<(), String> {
        let slot = address.port().checked_sub(FIRST_PORT).map(usize::from);
        let listener = slot.and_then(|slot| self.listening.get_mut(slot));
        let listener = listener.ok_or("connection refused")?;
        if !listener.well {
            let machine = self.machines.at(listener.place);
            machine.ok_or("connection refused")?.probe(now)?;
            listener.well = true;
        }
        Ok(())
    }

    /// Forgets what ended long ago.
    pub(super) fn forget(&mut self, now: Timestamp) {
        while self.ended.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, id)) = self.ended.pop_first() {
                self.machines.remove(&id);
            }
        }
    }
}
