//! A provider whose workers are small HTTP servers in this process: real sockets, exact capacities,
//! idempotent by id, complete in its list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use forebay::provider::Provider;
use forebay::types::launch::{Grant, LaunchBatch, LaunchOutcome, ProviderInstance, ProviderStatus};
use forebay::types::{Address, InstanceId, InstanceTypeName, ProviderError, VariantKey};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

/// Where the workers stand. Clones share it.
#[derive(Clone)]
pub(crate) struct Hall {
    inner: Arc<Mutex<Inner>>,
    pub(crate) nudge: Arc<Notify>,
}

struct Inner {
    /// Types that are missing here are unlimited, if the map is not empty; else none is there.
    capacity: BTreeMap<String, usize>,
    workers: BTreeMap<InstanceId, Worker>,
    started: usize,
}

struct Worker {
    kind: InstanceTypeName,
    variant: VariantKey,
    address: Address,
    server: tokio::task::JoinHandle<()>,
}

impl Hall {
    /// With so many of some types; others without limit, or, with none given, nothing at all.
    pub(crate) fn new(capacity: &[(&str, usize)]) -> Self {
        let capacity = capacity.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
        let inner = Inner { capacity, workers: BTreeMap::new(), started: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), nudge: Arc::new(Notify::new()) }
    }

    /// Allows `n` of `kind` from now on; types without a number are not to be had.
    pub(crate) fn allow(&self, kind: &str, n: usize) {
        let mut inner = self.lock();
        for other in ["p5", "g6"] {
            inner.capacity.entry(other.to_owned()).or_default();
        }
        inner.capacity.insert(kind.to_owned(), n);
    }

    /// The ids of what runs.
    pub(crate) fn running(&self) -> BTreeSet<String> {
        self.lock().workers.keys().map(ToString::to_string).collect()
    }

    /// How many workers were ever started.
    pub(crate) fn started(&self) -> usize {
        self.lock().started
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while locked")
    }

    async fn start(&self, id: &InstanceId, batch: &LaunchBatch) -> Result<Grant, ProviderError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = Address::http(listener.local_addr().expect("bound"));
        let mut inner = self.lock();
        if let Some(worker) = inner.workers.get(id) {
            return Ok(Grant { address: Some(worker.address.clone()) });
        }
        let kind = batch.instance_type.as_str();
        let taken = inner.workers.values().filter(|w| w.kind.as_str() == kind).count();
        let unlimited = if inner.capacity.is_empty() { 0 } else { usize::MAX };
        let limit = inner.capacity.get(kind).copied().unwrap_or(unlimited);
        if taken >= limit {
            return Err(ProviderError::InsufficientCapacity {
                reason: format!("all {limit} are taken"),
            });
        }
        let router = Router::new().route("/ping", get(|| async { "pong" }));
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serves");
        });
        let worker = Worker {
            kind: batch.instance_type.clone(),
            variant: batch.variant.clone(),
            address: address.clone(),
            server,
        };
        inner.workers.insert(id.clone(), worker);
        inner.started += 1;
        Ok(Grant { address: Some(address) })
    }
}

impl Provider for Hall {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>> {
        async move {
            let inner = self.lock();
            let all = inner.workers.iter().map(|(id, worker)| ProviderInstance {
                id: id.clone(),
                instance_type: worker.kind.clone(),
                variant: Some(worker.variant.clone()),
                address: Some(worker.address.clone()),
                status: ProviderStatus::Running,
                interruption_at: None,
            });
            Ok(all.collect())
        }
        .boxed()
    }

    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>> {
        async move {
            let mut outcomes = Vec::new();
            for id in &batch.instances {
                let result = self.start(id, &batch).await;
                outcomes.push(LaunchOutcome { instance: id.clone(), result });
            }
            outcomes
        }
        .boxed()
    }

    fn terminate(
        &self,
        instance: InstanceId,
        _grace: Duration,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        async move {
            let worker = self.lock().workers.remove(&instance).ok_or(ProviderError::NotFound)?;
            worker.server.abort();
            self.nudge.notify_one();
            Ok(())
        }
        .boxed()
    }
}
