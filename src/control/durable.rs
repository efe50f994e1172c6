//! The store, asked from async code: each call runs on a thread that may block.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::store::{Store, StoreError};
use crate::types::Timestamp;
use crate::types::record::{Change, StoredState};

/// A shared handle on the store.
#[derive(Clone)]
pub(super) struct Durable {
    store: Arc<Mutex<Box<dyn Store>>>,
}

impl Durable {
    pub(super) fn new(store: Box<dyn Store>) -> Self {
        Self { store: Arc::new(Mutex::new(store)) }
    }

    pub(super) async fn acquire_lease(
        &self,
        owner: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<u64, StoreError> {
        let owner = owner.to_owned();
        self.call(move |store| store.acquire_lease(&owner, now, ttl)).await
    }

    pub(super) async fn release_lease(&self, epoch: u64) -> Result<(), StoreError> {
        self.call(move |store| store.release_lease(epoch)).await
    }

    pub(super) async fn load(&self) -> Result<StoredState, StoreError> {
        self.call(super::super::store::Store::load).await
    }

    pub(super) async fn commit(
        &self,
        epoch: u64,
        changes: Arc<Vec<Change>>,
    ) -> Result<(), StoreError> {
        self.call(move |store| store.commit(epoch, &changes)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            call(store.as_mut())
        })
        .await
        .unwrap_or_else(|error| Err(StoreError::Io(format!("a store call failed: {error}"))))
    }
}
