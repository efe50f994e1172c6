//! What a test may ask the [`World`]: recorded instances, what runs, the log.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::record::InstanceRecord;
use crate::types::{InstanceId, InstanceState};

use super::specs::{G6, P5};
use super::world::World;

impl World {
    pub(crate) fn record(&self, id: &InstanceId) -> Option<&InstanceRecord> {
        self.store.instances.iter().find(|i| i.id == *id)
    }

    /// Recorded instances of a type in a state.
    pub(crate) fn count(&self, name: &str, state: InstanceState) -> usize {
        let of = |i: &&_| is_of(i, name, state);
        self.store.instances.iter().filter(of).count()
    }

    /// The ids of a type in a state, by age.
    pub(crate) fn ids(&self, name: &str, state: InstanceState) -> Vec<InstanceId> {
        let mut found: Vec<_> =
            self.store.instances.iter().filter(|i| is_of(i, name, state)).collect();
        found.sort_by_key(|i| i.generation);
        found.into_iter().map(|i| i.id.clone()).collect()
    }

    /// In service of the preferred type and of the fallback.
    pub(crate) fn in_service(&self) -> (usize, usize) {
        (self.count(P5, InstanceState::InService), self.count(G6, InstanceState::InService))
    }

    /// How many of each type are in which state.
    pub(crate) fn shape(&self) -> BTreeMap<String, usize> {
        let mut shape = BTreeMap::new();
        for i in &self.store.instances {
            *shape.entry(format!("{} {}", i.instance_type, i.state)).or_default() += 1;
        }
        shape
    }

    /// What runs and what is recorded are the same set, and all of it is in service.
    pub(crate) fn assert_settled(&self) {
        let recorded: BTreeSet<_> = self.store.instances.iter().map(|i| &i.id).collect();
        let running: BTreeSet<_> = self.running.keys().collect();
        assert_eq!(recorded, running, "what is recorded and what runs");
        let all = self.store.instances.iter().all(|i| i.state == InstanceState::InService);
        assert!(all, "{:#?}", self.shape());
    }

    pub(crate) fn events(&self, kind: &str) -> Vec<&str> {
        let of = self.store.events.iter().filter(|e| e.kind == kind);
        of.map(|e| e.message.as_str()).collect()
    }

    /// Asked-for instances of a type, over all launches.
    pub(crate) fn asked(&self, name: &str) -> usize {
        let of = self.launches.iter().filter(|b| b.instance_type.as_str() == name);
        of.map(|b| b.instances.len()).sum()
    }
}

fn is_of(record: &InstanceRecord, name: &str, state: InstanceState) -> bool {
    record.instance_type.as_str() == name && record.state == state
}
