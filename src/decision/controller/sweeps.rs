//! When instances in service are probed: in sweeps. Each instance belongs to one of [`PARTS`] parts of its interval, and
//! all of one part are asked at once, at the same moment of every interval. So probes are spread evenly, and what is
//! done for each costs next to nothing even where there are ten thousand: one timer, one action and one walk serve a
//! hundred of them.
//!
//! # Rules
//! * S1: one in service is asked once in each interval, at the latest one interval after it came into service.
//! * S2: none is asked while it has not answered; what is never answered counts as failed at its next turn.
//! * S3: what has left service is not asked.
//!
//! A sweep does not hear of those that leave: it looks at each of its members in its turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{Generation, InstanceState, Timestamp};

use super::fleet::{Fleet, Slot};
use super::timers::Waiter;
use super::{Action, Controller, Probe};

/// Parts of an interval, each with its sweep.
const PARTS: u64 = 1 << PART_BITS;
const PART_BITS: u32 = 6;

/// One part of every interval of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Phase {
    interval: Duration,
    part: u64,
}

impl Phase {
    /// That of a start of an instance. Multiples of the golden ratio lie as far apart from each other as so many can
    /// (Knuth, "The Art of Computer Programming", 6.4), so those who were started together are spread over the interval.
    fn of(generation: Generation, interval: Duration) -> Self {
        let share = generation.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { interval, part: share >> (u64::BITS - PART_BITS) }
    }

    /// Its first moment after `now`.
    fn after(self, now: Timestamp) -> Timestamp {
        let interval = u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let first = interval / PARTS * self.part + interval % PARTS * self.part / PARTS;
        let since = now.0.checked_sub(first);
        Timestamp(since.map_or(first, |since| now.0 - since % interval + interval))
    }
}

/// All sweeps that have members.
#[derive(Debug, Default)]
pub(super) struct Sweeps(BTreeMap<Phase, Sweep>);

/// Those who are asked together.
#[derive(Debug, Default)]
struct Sweep {
    members: Vec<Member>,
    /// What each of them is asked, until any of it changes.
    probes: Option<Arc<[Probe]>>,
}

/// A start of an instance.
#[derive(Debug, Clone, Copy)]
struct Member {
    slot: Slot,
    generation: Generation,
}

impl Sweeps {
    /// Where or what an instance is to be asked has changed.
    pub(super) fn ask_anew(&mut self) {
        self.0.values_mut().for_each(|sweep| sweep.probes = None);
    }
}

impl Sweep {
    /// Lets those go that are not in service any more.
    fn keep_serving(&mut self, fleet: &Fleet) {
        let before = self.members.len();
        self.members.retain(|member| {
            fleet.in_slot(member.slot).is_some_and(|instance| {
                instance.generation() == member.generation
                    && instance.state() == InstanceState::InService
            })
        });
        if self.members.len() < before {
            self.probes = None;
        }
    }
}

impl Controller {
    /// An instance has come into service.
    pub(super) fn join_sweep(&mut self, now: Timestamp, slot: Slot) {
        let Some(instance) = self.fleet.in_slot(slot) else { return };
        let Some(spec) = &instance.spec else { return };
        let generation = instance.generation();
        let phase = Phase::of(generation, spec.health.interval);
        let sweep = self.sweeps.0.entry(phase).or_default();
        if sweep.members.is_empty() {
            self.timers.set(Waiter::Sweep(phase), Some(phase.after(now)));
        }
        sweep.members.push(Member { slot, generation });
        sweep.probes = None;
    }

    /// Intervals and questions may be others from now on.
    pub(super) fn sweep_anew(&mut self, now: Timestamp) {
        for phase in std::mem::take(&mut self.sweeps).0.into_keys() {
            self.timers.set(Waiter::Sweep(phase), None);
        }
        let serving = self.fleet.in_state(InstanceState::InService);
        let serving: Vec<Slot> = serving.map(|instance| instance.slot).collect();
        for slot in serving {
            self.join_sweep(now, slot);
        }
    }

    /// It is a sweep's turn.
    pub(super) fn sweep_due(&mut self, now: Timestamp, phase: Phase) {
        let Some(mut sweep) = self.sweeps.0.remove(&phase) else { return };
        for member in &sweep.members {
            self.give_up_probe(now, member.slot);
        }
        sweep.keep_serving(&self.fleet);
        if sweep.members.is_empty() {
            return;
        }
        let probes = sweep.probes.take().unwrap_or_else(|| self.questions(&sweep.members));
        let mut busy = Vec::new();
        for (at, probe) in probes.iter().enumerate() {
            let instance = self.fleet.in_slot_mut(probe.slot);
            if !instance.is_some_and(|instance| instance.probe.asked(now)) {
                busy.push(at);
            }
        }
        let asked = if busy.is_empty() {
            Arc::clone(&probes)
        } else {
            let free = probes.iter().enumerate().filter(|(at, _)| !busy.contains(at));
            free.map(|(_, probe)| probe.clone()).collect()
        };
        if !asked.is_empty() {
            self.after.push(Action::Probe(asked));
        }
        sweep.probes = Some(probes);
        self.sweeps.0.insert(phase, sweep);
        self.timers.set(Waiter::Sweep(phase), Some(phase.after(now)));
    }

    fn questions(&self, members: &[Member]) -> Arc<[Probe]> {
        let instances = members.iter().filter_map(|member| self.fleet.in_slot(member.slot));
        instances.filter_map(|instance| self.question(instance)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_phase_comes_once_in_each_interval(
            interval in 1_u64..1 << 40, generation: u64, now in 0_u64..1 << 45,
        ) {
            let phase = Phase::of(Generation(generation), Duration::from_millis(interval));
            let next = phase.after(Timestamp(now));
            prop_assert!((now + 1..=now + interval).contains(&next.0));
            prop_assert_eq!(phase.after(next).0, next.0 + interval);
            prop_assert_eq!(phase.after(Timestamp(next.0 - 1)), next);
        }
    }
}
