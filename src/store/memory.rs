//! A store in memory, with exactly the semantics of the durable one. Its clones share one state, so a
//! test drops a manager, starts another on a clone, and has "restarted" it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{EVENT_LIMIT, Store, StoreError};
use crate::types::record::{
    CapacityKey, CapacityRecord, Change, EventRecord, InstanceRecord, ProxyRecord, StoredState,
    VariantRecord,
};
use crate::types::{InstanceId, ProxyId, Timestamp, VariantKey};

/// A handle on a state in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    lease: Option<Lease>,
    epoch: u64,
    next_generation: u64,
    instances: BTreeMap<InstanceId, InstanceRecord>,
    variants: BTreeMap<VariantKey, VariantRecord>,
    capacities: BTreeMap<CapacityKey, CapacityRecord>,
    proxies: BTreeMap<ProxyId, ProxyRecord>,
    events: VecDeque<EventRecord>,
}

#[derive(Debug)]
struct Lease {
    owner: String,
    expires_at: Timestamp,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn acquire_lease(
        &mut self,
        owner: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<u64, StoreError> {
        let mut inner = self.inner();
        let renews = inner.lease.as_ref().is_some_and(|lease| lease.owner == owner);
        if !renews {
            if let Some(lease) = inner.lease.as_ref().filter(|lease| lease.expires_at > now) {
                return Err(StoreError::LeaseHeld {
                    owner: lease.owner.clone(),
                    remaining: now.until(lease.expires_at),
                });
            }
            inner.epoch = super::next_epoch(inner.epoch, now);
        }
        inner.lease = Some(Lease { owner: owner.to_owned(), expires_at: now + ttl });
        Ok(inner.epoch)
    }

    fn release_lease(&mut self, epoch: u64) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.fence(epoch)?;
        inner.lease = None;
        Ok(())
    }

    fn load(&mut self) -> Result<StoredState, StoreError> {
        let inner = self.inner();
        Ok(StoredState {
            next_generation: inner.next_generation,
            instances: inner.instances.values().cloned().collect(),
            variants: inner.variants.values().cloned().collect(),
            capacities: inner.capacities.values().cloned().collect(),
            proxies: inner.proxies.values().cloned().collect(),
            events: inner.events.iter().cloned().collect(),
        })
    }

    fn commit(&mut self, epoch: u64, changes: &[Change]) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.fence(epoch)?;
        for change in changes {
            inner.apply(change.clone());
        }
        Ok(())
    }
}

impl Inner {
    fn fence(&self, epoch: u64) -> Result<(), StoreError> {
        if self.lease.is_some() && self.epoch == epoch {
            Ok(())
        } else {
            Err(StoreError::Fenced { epoch })
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::PutInstance(record) => {
                self.next_generation =
                    self.next_generation.max(record.generation.0.saturating_add(1));
                self.instances.insert(record.id.clone(), record);
            }
            Change::DeleteInstance(id) => {
                self.instances.remove(&id);
            }
            Change::PutVariant(record) => {
                self.variants.insert(record.variant.clone(), record);
            }
            Change::DeleteVariant(key) => {
                self.variants.remove(&key);
            }
            Change::PutCapacity(record) => {
                self.capacities.insert(record.key.clone(), record);
            }
            Change::DeleteCapacity(key) => {
                self.capacities.remove(&key);
            }
            Change::PutProxy(record) => {
                self.proxies.insert(record.id.clone(), record);
            }
            Change::DeleteProxy(id) => {
                self.proxies.remove(&id);
            }
            Change::Log(event) => {
                if self.events.len() == EVENT_LIMIT {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryStore;
    use crate::store::conformance;

    #[test]
    fn conforms() {
        conformance::suite(|| {
            let store = MemoryStore::new();
            move || Box::new(store.clone())
        });
    }
}
