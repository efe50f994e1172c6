//! What is due when: one entry for each thing that waits, replaced whenever its owner is looked at. A
//! timer carries no data; whatever is woken looks at its own state.
//!
//! Those of instances, of which there are many, are never searched for: one
//! that is set anew leaves its old entry behind, which is passed over later. So the first may be due later than
//! [`Timers::next`] says, seldom.

use std::collections::{BTreeSet, HashMap};

use smallvec::SmallVec;

use super::fleet::Slot;
use super::sweeps::Phase;
use crate::decision::agenda::Agenda;
use crate::types::{ProviderName, ProxyId, Timestamp, VariantKey};

/// Who waits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Waiter {
    /// For the proxies to have had time to come back after a start.
    Reconnect,
    /// For the moment at which everything is measured.
    Sample,
    /// For the moment at which other bounds of a variant's size are in force.
    Schedule(VariantKey),
    /// For the end of a period of a variant's scaling policies.
    Scaling(VariantKey),
    Instance(Slot),
    /// For the turn of a sweep of probes.
    Sweep(Phase),
    Variant(VariantKey),
    Provider(ProviderName),
    Proxy(ProxyId),
}

/// Who is due, and since when. Nearly always one.
pub(super) type Due = SmallVec<[(Timestamp, Waiter); 1]>;

/// All timers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    instances: ByInstance,
    by_time: BTreeSet<(Timestamp, Waiter)>,
    by_waiter: HashMap<Waiter, Timestamp>,
}

impl Timers {
    /// Wakes `waiter` at `at`, or never; what was set before is forgotten.
    pub(super) fn set(&mut self, waiter: Waiter, at: Option<Timestamp>) {
        if let Waiter::Instance(slot) = waiter {
            return self.instances.set(slot, at);
        }
        if let Some(old) = self.by_waiter.remove(&waiter) {
            self.by_time.remove(&(old, waiter.clone()));
        }
        if let Some(at) = at {
            self.by_waiter.insert(waiter.clone(), at);
            self.by_time.insert((at, waiter));
        }
    }

    /// Takes all that are due, in no order.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Due {
        let mut due = Due::new();
        while self.by_time.first().is_some_and(|(at, _)| *at <= now) {
            let Some((at, waiter)) = self.by_time.pop_first() else { break };
            self.by_waiter.remove(&waiter);
            due.push((at, waiter));
        }
        while let Some((at, slot)) = self.instances.take_due(now) {
            due.push((at, Waiter::Instance(slot)));
        }
        due
    }

    /// When the first is due, at the earliest.
    pub(super) fn next(&self) -> Option<Timestamp> {
        let others = self.by_time.first().map(|(at, _)| *at);
        let instances = self.instances.set.next_at();
        others.into_iter().chain(instances).min()
    }
}

/// When each instance is to be woken: at most one moment counts, the last that was set.
#[derive(Debug, Default)]
struct ByInstance {
    /// Whatever was set, also what is not in force any more.
    set: Agenda<Slot>,
    /// What is in force, by slot.
    due_at: Vec<Timestamp>,
}

/// When one that does not wait is due.
const NEVER: Timestamp = Timestamp(u64::MAX);

impl ByInstance {
    fn set(&mut self, slot: Slot, at: Option<Timestamp>) {
        if self.due_at.len() <= slot.index() {
            self.due_at.resize(slot.index() + 1, NEVER);
        }
        let before = std::mem::replace(&mut self.due_at[slot.index()], at.unwrap_or(NEVER));
        if let Some(at) = at.filter(|at| *at != before) {
            self.set.enter(at, slot);
        }
    }

    fn take_due(&mut self, now: Timestamp) -> Option<(Timestamp, Slot)> {
        // What was set for a moment that had passed is entered for a later one.
        let in_force = |at, slot: &Slot| self.due_at[slot.index()] <= at;
        let (_, slot) = self.set.take_due(now, in_force)?;
        Some((std::mem::replace(&mut self.due_at[slot.index()], NEVER), slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside one that searches for whatever it is asked.
    #[test]
    fn instances_are_woken_when_they_were_last_set_to_be() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut timers = Timers::default();
        let mut plain: [Option<Timestamp>; 50] = [None; 50];
        let mut now = Timestamp(0);
        let (mut woken, mut in_vain) = (0, 0);
        for _ in 0..20_000 {
            let slot = chance.u32(0..50);
            // Now and then for a moment that has passed.
            let at = Timestamp((now.0 + chance.u64(0..1_000)).saturating_sub(10));
            let at = (chance.u32(0..8) > 0).then_some(at);
            timers.set(Waiter::Instance(Slot(slot)), at);
            plain[slot as usize] = at;
            now = Timestamp(now.0 + chance.u64(0..10));
            let asked = timers.next().is_some_and(|at| at <= now);
            let mut due: Vec<_> = timers.take_due(now).into_vec();
            due.sort();
            let mut expected = Vec::new();
            for (slot, at) in (0..).zip(&mut plain) {
                if let Some(at) = at.take_if(|at| *at <= now) {
                    expected.push((at, Waiter::Instance(Slot(slot))));
                }
            }
            expected.sort();
            assert_eq!(due, expected);
            assert!(asked || due.is_empty());
            woken += due.len();
            in_vain += usize::from(asked && due.is_empty());
        }
        assert!(woken > 3_000 && in_vain < 1_000, "{woken}, {in_vain} in vain");
    }
}
