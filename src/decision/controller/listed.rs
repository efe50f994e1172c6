//! What a provider's list tells: what was adopted, what is lost, what nobody asked for.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::types::launch::{Listing, ProviderInstance, ProviderStatus};
use crate::types::{InstanceId, InstanceState, ProviderError, ProviderName, Timestamp};

use super::events::{At, EventKind, Leave, Span};
use super::fleet::{Instance, Interruption, Launch};
use super::machine::Trigger;
use super::{Action, Controller, QUICK_DEATH};

/// An orphan that is still listed is terminated again after this long.
const ORPHAN_AGAIN: Duration = Duration::from_secs(10);
/// How long one that its provider is ending may finish its requests.
pub(super) const FORCED_DRAIN: Duration = Duration::from_secs(30);

type Part = Arc<[ProviderInstance]>;

impl Controller {
    pub(super) fn listed(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        result: Result<Listing, ProviderError>,
    ) {
        let Some(view) = self.providers.get_mut(provider).filter(|v| v.in_flight) else { return };
        view.in_flight = false;
        match result {
            Ok(list) => {
                let failures = std::mem::take(&mut view.failures);
                let first = !std::mem::replace(&mut view.answered, true);
                view.last_error = None;
                let number = view.lists;
                if failures > 0 {
                    let message = format!("provider {provider} answers again");
                    self.log_global(now, EventKind::ProviderBack, message);
                }
                self.compare(now, provider, number, &list);
                if first {
                    self.dirty_users_of(provider);
                }
            }
            Err(error) => {
                view.failures = view.failures.saturating_add(1);
                view.last_error = Some(error.to_string());
                // The next list is compared whole, so that nothing need be kept until then.
                view.last_list = None;
                drop(self.fleet.take_changed(provider));
                if view.failures == 1 {
                    let message = format!("provider {provider} cannot be listed: {error}");
                    self.log_global(now, EventKind::ProviderUnreachable, message);
                }
            }
        }
        self.schedule_list(now, provider);
    }

    /// Compares what we know with list number `number`.
    fn compare(&mut self, now: Timestamp, provider: &ProviderName, number: u64, list: &Listing) {
        let (mut news, mut strangers) = (Vec::new(), Vec::new());
        for (id, there) in self.suspects(provider, list) {
            match self.fleet.get(&id) {
                Some(ours) if ours.record.provider == *provider => {
                    if !there.is_some_and(|there| is_as_known(ours, there)) {
                        news.push((id, there));
                    }
                }
                // What is recorded as another provider's is ours all the same.
                Some(_) => {}
                None => strangers.extend(there),
            }
        }
        if let Some(view) = self.providers.get_mut(provider) {
            let alive = strangers.iter().filter(|there| is_alive(there)).map(|there| &there.id);
            view.open = news.iter().map(|(id, _)| id).chain(alive).cloned().collect();
            view.last_list = Some(list.clone());
        }
        for (id, there) in news {
            match there {
                Some(there) => self.found(now, &id, there),
                None => self.not_found(now, &id, number),
            }
        }
        self.end_orphans(now, provider, &strangers);
    }

    /// The instances about which there may be news, with what the list shows of each: those in parts of it that were
    /// not in the last one, or have gone with parts of that; those that have changed since; and what the last one left
    /// open. Without a last one, all of them.
    fn suspects<'a>(
        &mut self,
        provider: &ProviderName,
        list: &'a Listing,
    ) -> BTreeMap<InstanceId, Option<&'a ProviderInstance>> {
        let mut others = self.fleet.take_changed(provider);
        let Some(view) = self.providers.get_mut(provider) else { return BTreeMap::new() };
        others.append(&mut view.open);
        let before = view.last_list.as_ref();
        if before.is_none() {
            others.extend(self.fleet.at(provider).map(|instance| instance.record.id.clone()));
        }
        let (old, new) = (before.map_or(&[][..], Listing::parts), list.parts());
        let mut suspects = BTreeMap::new();
        let same = old.len() == new.len() && old.iter().zip(new).all(|(o, n)| Arc::ptr_eq(o, n));
        if !same {
            let addresses = |parts: &[Part]| parts.iter().map(Arc::as_ptr).collect::<HashSet<_>>();
            let (in_old, in_new) = (addresses(old), addresses(new));
            let new = new.iter().filter(|part| !in_old.contains(&Arc::as_ptr(part)));
            let shown = new.flat_map(|part| part.iter());
            suspects.extend(shown.map(|there| (there.id.clone(), Some(there))));
            let gone = old.iter().filter(|part| !in_new.contains(&Arc::as_ptr(part)));
            others.extend(gone.flat_map(|part| part.iter()).map(|there| there.id.clone()));
        }
        for id in others {
            if let Entry::Vacant(free) = suspects.entry(id) {
                let there = list.find(free.key());
                free.insert(there);
            }
        }
        suspects
    }

    fn found(&mut self, now: Timestamp, id: &InstanceId, there: &ProviderInstance) {
        match &there.status {
            ProviderStatus::Ended { reason } => self.ended(now, id, Trigger::Ended, reason),
            ProviderStatus::Stopping => {
                let leave = Leave::new(EventKind::InstanceLost, "its provider is ending it")
                    .within(FORCED_DRAIN);
                self.apply(now, id, Trigger::EndedByProvider, Some(&leave));
            }
            ProviderStatus::Pending | ProviderStatus::Running => {
                let adopted = self.fleet.get(id).is_some_and(|i| i.launch == Launch::Unknown);
                if self.apply(now, id, Trigger::Found, None) {
                    self.was_granted(now, id, adopted);
                }
                self.update(now, id, there);
            }
        }
    }

    /// The list tells what the answer to the launch did not (yet).
    fn was_granted(&mut self, now: Timestamp, id: &InstanceId, adopted: bool) {
        let Some(instance) = self.fleet.get(id) else { return };
        let record = instance.record.clone();
        let (key, kind) = (record.variant, record.instance_type);
        self.capacity_is_back(now, &record.provider, &kind, &key);
        if adopted {
            let message = format!("{kind} was launched before the last restart and is adopted");
            self.log(now, EventKind::Adopted, &key, Some(id), message);
        }
    }

    /// Takes over what the provider knows of one that lives.
    fn update(&mut self, now: Timestamp, id: &InstanceId, there: &ProviderInstance) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        instance.provider_pending = there.status == ProviderStatus::Pending;
        if instance.state() == InstanceState::Stopping
            && matches!(instance.launch, Launch::InFlight(_))
        {
            // It runs, so its launch is answered, whatever the answer will say.
            instance.launch = Launch::Answered;
            self.touched.push(instance.slot);
        }
        let known = instance.record.address.as_ref();
        if let Some(address) = there.address.as_ref().filter(|new| known != Some(*new)) {
            instance.record.address = Some(address.clone());
            if instance.record.state == InstanceState::InService {
                self.sweeps.ask_anew();
                self.stale_routes.insert(instance.record.variant.endpoint.clone());
            }
            self.journal.instances.insert(id.clone());
            self.touched.push(instance.slot);
        }
        self.note_interruption(now, id, there.interruption_at);
    }

    fn note_interruption(&mut self, now: Timestamp, id: &InstanceId, at: Option<Timestamp>) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        if instance.interruption.map(|i| i.at) == at || instance.state().is_leaving() {
            return;
        }
        let key = instance.record.variant.clone();
        let kind = instance.record.instance_type.clone();
        let drain_timeout =
            self.variants.get(&key).map_or(Duration::ZERO, super::variant::Variant::drain_timeout);
        instance.interruption = at.map(|at| {
            let lead = drain_timeout.min(now.until(at) / 2);
            Interruption { at, drain_at: at - lead }
        });
        let message = match instance.interruption {
            Some(Interruption { at, drain_at }) => format!(
                "the provider takes {kind} away at {}; it is replaced, and drains from {} on at the latest",
                At(at, now),
                At(drain_at, now)
            ),
            None => format!("the provider keeps {kind} after all"),
        };
        self.dirty.insert(key.clone());
        self.log(now, EventKind::Interruption, &key, Some(id), message);
    }

    fn not_found(&mut self, now: Timestamp, id: &InstanceId, number: u64) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        match instance.state() {
            InstanceState::Pending if instance.launch == Launch::Unknown => {
                instance.launch = Launch::Due(now);
                self.touched.push(instance.slot);
                let key = instance.record.variant.clone();
                self.dirty.insert(key);
            }
            InstanceState::Pending => {}
            _ if instance.provable_from <= number => {
                self.ended(now, id, Trigger::Absent, "its provider does not know it any more");
            }
            _ => {}
        }
    }

    /// It runs no more.
    fn ended(&mut self, now: Timestamp, id: &InstanceId, trigger: Trigger, reason: &str) {
        let Some(instance) = self.fleet.get(id) else { return };
        let record = instance.record.clone();
        if !self.apply(now, id, trigger, None) {
            return;
        }
        let (key, kind) = (&record.variant, &record.instance_type);
        match record.state {
            InstanceState::Pending | InstanceState::Starting => {
                let reason = format!("{kind} ended before it was healthy: {reason}");
                self.fail_pool(now, EventKind::StartFailed, &record, &reason);
            }
            InstanceState::InService => {
                let lived = now.since(record.in_service_at.unwrap_or(now));
                let message = format!("{kind} ended after {} in service: {reason}", Span(lived));
                if lived < QUICK_DEATH {
                    self.fail_pool(now, EventKind::InstanceLost, &record, &message);
                } else {
                    self.log(now, EventKind::InstanceLost, key, Some(id), message);
                }
            }
            InstanceState::Draining => {
                let message = format!("{kind} ended while it drained: {reason}");
                self.log(now, EventKind::InstanceLost, key, Some(id), message);
            }
            InstanceState::Stopping => {}
        }
    }

    /// Ends what runs under our tag without a record: every record is loaded before the first list, and
    /// written before its launch, so nobody wants it.
    fn end_orphans(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        strangers: &[&ProviderInstance],
    ) {
        let Some(view) = self.providers.get_mut(provider) else { return };
        let alive: BTreeMap<&InstanceId, &ProviderInstance> =
            strangers.iter().filter(|there| is_alive(there)).map(|p| (&p.id, *p)).collect();
        view.orphans.retain(|id, _| alive.contains_key(id));
        let mut new = Vec::new();
        for (id, there) in alive {
            let asked = view.orphans.get(id).copied();
            if asked.is_some_and(|at| now.since(at) < ORPHAN_AGAIN) {
                continue;
            }
            view.orphans.insert(id.clone(), now);
            self.after.push(Action::Terminate { provider: provider.clone(), instance: id.clone() });
            if asked.is_none() {
                new.push((id.clone(), there.instance_type.clone(), there.variant.clone()));
            }
        }
        for (id, kind, variant) in new {
            let message = format!("{kind} {id} runs at {provider} without a record and is ended");
            match variant.filter(|v| self.variants.contains_key(v)) {
                Some(key) => self.log(now, EventKind::OrphanEnded, &key, Some(&id), message),
                None => self.log_global(now, EventKind::OrphanEnded, message),
            }
        }
    }
}

/// Whether an instance is shown just as it is known, so that [`Controller::found`] would change nothing.
fn is_as_known(instance: &Instance, there: &ProviderInstance) -> bool {
    let leaving = instance.state().is_leaving();
    match there.status {
        ProviderStatus::Ended { .. } => false,
        ProviderStatus::Stopping => leaving,
        ProviderStatus::Pending | ProviderStatus::Running => {
            instance.state() != InstanceState::Pending
                && instance.launch == Launch::Answered
                && instance.provider_pending == (there.status == ProviderStatus::Pending)
                && (there.address.is_none() || there.address == instance.record.address)
                && (leaving || instance.interruption.map(|i| i.at) == there.interruption_at)
        }
    }
}

/// Whether something runs that its provider is not ending.
fn is_alive(there: &ProviderInstance) -> bool {
    matches!(there.status, ProviderStatus::Pending | ProviderStatus::Running)
}
