//! What is due when: one entry for each thing that waits, replaced whenever its owner is looked at. A
//! timer carries no data; whatever is woken looks at its own state.

use std::collections::{BTreeSet, HashMap};

use crate::types::{InstanceId, ProviderName, ProxyId, Timestamp, VariantKey};

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
    Instance(InstanceId),
    Variant(VariantKey),
    Provider(ProviderName),
    Proxy(ProxyId),
}

/// All timers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Timestamp, Waiter)>,
    by_waiter: HashMap<Waiter, Timestamp>,
}

impl Timers {
    /// Wakes `waiter` at `at`, or never; what was set before is forgotten.
    pub(super) fn set(&mut self, waiter: Waiter, at: Option<Timestamp>) {
        if let Some(old) = self.by_waiter.remove(&waiter) {
            self.by_time.remove(&(old, waiter.clone()));
        }
        if let Some(at) = at {
            self.by_waiter.insert(waiter.clone(), at);
            self.by_time.insert((at, waiter));
        }
    }

    /// Takes the first that is due.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<Waiter> {
        if self.next()? > now {
            return None;
        }
        let (_, waiter) = self.by_time.pop_first()?;
        self.by_waiter.remove(&waiter);
        Some(waiter)
    }

    /// When the first is due.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }
}
