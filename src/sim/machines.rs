//! The instances that the pretend cloud runs, as they really are, found by id and by where they are kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::types::launch::{Listing, ProviderInstance, ProviderStatus};
use crate::types::{Address, InstanceId, InstanceTypeName, ProviderName, Timestamp, VariantKey};

/// Every instance ever launched whose end has not been forgotten yet.
#[derive(Debug, Default)]
pub(super) struct Machines {
    /// Places of those that are forgotten are empty, and taken again.
    kept: Vec<Option<Machine>>,
    empty: Vec<usize>,
    by_id: FxHashMap<InstanceId, usize>,
    /// The same in the order of their ids, by which whatever walks over them goes.
    ids: BTreeMap<InstanceId, usize>,
    /// By provider and variant: what is listed together.
    groups: BTreeMap<ProviderName, BTreeMap<VariantKey, Group>>,
}

/// A variant's machines at a provider.
#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<InstanceId, usize>,
    /// What is listed of them, until something changes or that moment.
    listed: Option<(Arc<[ProviderInstance]>, Timestamp)>,
}

/// What comes of a probe that is not answered.
pub(super) const TIMED_OUT: &str = "timed out";

/// One instance as it really is.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) running_at: Timestamp,
    /// When it would be healthy first; `None`: never.
    pub(super) healthy_at: Option<Timestamp>,
    pub(super) sick_until: Timestamp,
    pub(super) address: Address,
    /// It is dead and its provider has not noticed.
    pub(super) dead: bool,
    pub(super) provider: ProviderName,
    pub(super) instance_type: InstanceTypeName,
    pub(super) variant: VariantKey,
    pub(super) slot: u16,
    pub(super) address_from: Timestamp,
    pub(super) launched_at: Timestamp,
    pub(super) interruption_at: Option<Timestamp>,
    /// When it was told to stop.
    pub(super) stopping_at: Option<Timestamp>,
    pub(super) ended: Option<Ended>,
    /// When it will end by itself.
    pub(super) dies_at: Option<Timestamp>,
}

/// That an instance runs no more.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) reason: String,
    /// Until when it is listed.
    pub(super) listed_until: Timestamp,
}

impl Machine {
    /// Whether it runs, or is about to, and nobody has told it to stop.
    pub(super) fn lives(&self) -> bool {
        self.ended.is_none() && self.stopping_at.is_none()
    }

    /// Whether it has not ended.
    pub(super) fn runs(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether it could serve a request.
    pub(super) fn serves(&self, now: Timestamp) -> bool {
        self.ended.is_none() && !self.dead && self.healthy_at.is_some_and(|at| at <= now)
    }

    /// How it answers a probe.
    pub(super) fn probe(&self, now: Timestamp) -> Result<(), &'static str> {
        match self.healthy_at {
            _ if self.running_at > now => Err("connection refused"),
            _ if self.dead => Err(TIMED_OUT),
            _ if self.sick_until > now => Err("status 500"),
            Some(at) if at <= now => Ok(()),
            _ => Err("status 503"),
        }
    }

    /// Whether its end is certain and has not come yet.
    pub(super) fn doomed(&self) -> bool {
        self.ended.is_none()
            && (self.dead || self.dies_at.is_some() || self.interruption_at.is_some())
    }

    pub(super) fn status(&self, now: Timestamp) -> ProviderStatus {
        match (&self.ended, self.stopping_at) {
            (Some(ended), _) => ProviderStatus::Ended { reason: ended.reason.clone() },
            (None, Some(_)) => ProviderStatus::Stopping,
            (None, None) if self.running_at <= now => ProviderStatus::Running,
            (None, None) => ProviderStatus::Pending,
        }
    }
}

impl Machines {
    /// Keeps one more, at the place that it returns.
    pub(super) fn insert(&mut self, id: &InstanceId, machine: Machine) -> usize {
        let place = self.empty.pop().unwrap_or_else(|| {
            self.kept.push(None);
            self.kept.len() - 1
        });
        let variants = self.groups.entry(machine.provider.clone()).or_default();
        let group = variants.entry(machine.variant.clone()).or_default();
        group.members.insert(id.clone(), place);
        group.listed = None;
        self.kept[place] = Some(machine);
        self.by_id.insert(id.clone(), place);
        self.ids.insert(id.clone(), place);
        place
    }

    /// Forgets one.
    pub(super) fn remove(&mut self, id: &InstanceId) {
        self.ids.remove(id);
        let Some(place) = self.by_id.remove(id) else { return };
        self.empty.push(place);
        if let Some(machine) = self.kept[place].take()
            && let Some(group) = group_of(&mut self.groups, &machine)
        {
            group.members.remove(id);
            group.listed = None;
        }
    }

    /// The one at a place.
    pub(super) fn at(&self, place: usize) -> Option<&Machine> {
        self.kept.get(place)?.as_ref()
    }

    pub(super) fn get(&self, id: &InstanceId) -> Option<&Machine> {
        self.at(*self.by_id.get(id)?)
    }

    /// One that is about to change: it is listed anew.
    pub(super) fn get_mut(&mut self, id: &InstanceId) -> Option<&mut Machine> {
        let machine = self.kept.get_mut(*self.by_id.get(id)?)?.as_mut()?;
        if let Some(group) = group_of(&mut self.groups, machine) {
            group.listed = None;
        }
        Some(machine)
    }

    pub(super) fn knows(&self, id: &InstanceId) -> bool {
        self.by_id.contains_key(id)
    }

    /// All of them, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&InstanceId, &Machine)> {
        self.ids.iter().filter_map(|(id, place)| Some((id, self.at(*place)?)))
    }

    /// What `provider` lists at this moment, in parts that stay the very same while nothing in them changes.
    pub(super) fn list(&mut self, now: Timestamp, provider: &ProviderName) -> Listing {
        let kept = &self.kept;
        let groups = self.groups.get_mut(provider).into_iter().flat_map(BTreeMap::values_mut);
        let parts = groups.map(|group| match &group.listed {
            Some((list, until)) if now < *until => Arc::clone(list),
            _ => group.list(now, kept),
        });
        Listing::of(parts.collect())
    }
}

impl Group {
    fn list(&mut self, now: Timestamp, kept: &[Option<Machine>]) -> Arc<[ProviderInstance]> {
        let machines = self.members.iter().filter_map(|(id, place)| {
            let machine = kept.get(*place)?.as_ref()?;
            Some((id, machine))
        });
        let listed =
            machines.filter(|(_, m)| m.ended.as_ref().is_none_or(|e| e.listed_until > now));
        let mut until = Timestamp(u64::MAX);
        let list: Arc<[ProviderInstance]> = listed
            .map(|(id, m)| {
                let forgotten_at = m.ended.as_ref().map(|ended| ended.listed_until);
                let moments = [m.address_from, m.running_at].into_iter().chain(forgotten_at);
                until = moments.filter(|at| *at > now).fold(until, Timestamp::min);
                ProviderInstance {
                    id: id.clone(),
                    instance_type: m.instance_type.clone(),
                    variant: Some(m.variant.clone()),
                    address: (m.address_from <= now).then(|| m.address.clone()),
                    status: m.status(now),
                    interruption_at: m.interruption_at,
                }
            })
            .collect();
        self.listed = Some((Arc::clone(&list), until));
        list
    }
}

/// Whom a machine is listed with.
fn group_of<'a>(
    groups: &'a mut BTreeMap<ProviderName, BTreeMap<VariantKey, Group>>,
    machine: &Machine,
) -> Option<&'a mut Group> {
    groups.get_mut(&machine.provider)?.get_mut(&machine.variant)
}
