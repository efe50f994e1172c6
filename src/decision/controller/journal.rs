//! What has changed since the last commit, gathered so that one handled event makes one
//! [`crate::decision::controller::Action::Persist`]; and the newest events, kept for `explain`.

use std::collections::{BTreeSet, VecDeque};

use crate::types::record::{CapacityKey, EventRecord};
use crate::types::{InstanceId, ProxyId, VariantKey};

/// Events kept in memory over all endpoints; the store keeps its own number.
const EVENTS_KEPT: usize = 2_000;

/// Changes since the last commit: which records, not their contents, so that the last state wins.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) instances: BTreeSet<InstanceId>,
    pub(super) variants: BTreeSet<VariantKey>,
    pub(super) capacities: BTreeSet<CapacityKey>,
    pub(super) proxies: BTreeSet<ProxyId>,
    pub(super) new_events: Vec<EventRecord>,
    recent: VecDeque<EventRecord>,
}

impl Journal {
    pub(super) fn restored(events: Vec<EventRecord>) -> Self {
        let mut recent = VecDeque::from(events);
        while recent.len() > EVENTS_KEPT {
            recent.pop_front();
        }
        Self { recent, ..Self::default() }
    }

    pub(super) fn log(&mut self, event: EventRecord) {
        if self.recent.len() >= EVENTS_KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(event.clone());
        self.new_events.push(event);
    }

    /// Whether nothing has changed.
    pub(super) fn is_empty(&self) -> bool {
        self.instances.is_empty()
            && self.variants.is_empty()
            && self.capacities.is_empty()
            && self.proxies.is_empty()
            && self.new_events.is_empty()
    }

    /// The newest events, oldest first.
    pub(super) fn recent(&self) -> impl DoubleEndedIterator<Item = &EventRecord> {
        self.recent.iter()
    }
}
