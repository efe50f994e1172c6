//! The end of everything, for operators who want no worker to outlive the manager: the proxies are given
//! a table without instances and time to finish, then every provider ends what it runs for us, and the
//! records of what has ended are deleted. Desired counts stay, so the next start brings back the same
//! fleet. What could not be ended in time keeps its record and is found again by the next manager.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::Limits;
use super::driver::Driver;
use crate::types::launch::ProviderStatus;
use crate::types::record::{Change, EventRecord};
use crate::types::report::ProxyReport;
use crate::types::table::{RoutingTable, TableVersion};
use crate::types::{InstanceId, ProviderName, ProxyId};

/// Between two looks at what still runs.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What runs at the providers that answered.
type Running = BTreeMap<ProviderName, BTreeSet<InstanceId>>;

impl Driver {
    /// Drains and ends every instance, within the limits' time.
    pub(super) async fn end_everything(&mut self, limits: &Limits) {
        let version = self.publish_empty();
        if timeout(limits.exit_drain, self.proxies_idle(version)).await.is_err() {
            tracing::warn!(limit = ?limits.exit_drain, "requests still run; ending the instances anyway");
        }
        let mut told = BTreeSet::new();
        let mut last = Running::new();
        let ended = timeout(limits.exit_terminate, self.terminate_all(&mut told, &mut last)).await;
        if ended.is_err() {
            let left: Vec<_> = last.values().flatten().map(InstanceId::as_str).collect();
            tracing::warn!(?left, limit = ?limits.exit_terminate, "not all instances could be ended");
        }
        self.forget_ended(&last, told.len()).await;
    }

    /// Publishes the last table without its instances.
    fn publish_empty(&self) -> TableVersion {
        let mut table = RoutingTable::clone(&self.tables.borrow());
        for endpoint in &mut table.endpoints {
            Arc::make_mut(endpoint).variants.iter_mut().for_each(|v| v.backends.clear());
        }
        table.version.epoch = table.version.epoch.max(self.lease.epoch());
        table.version.revision += 1;
        table.format = RoutingTable::FORMAT;
        let version = table.version;
        self.tables.send_replace(Arc::new(table));
        version
    }

    /// Waits until every proxy routes by `version` and has no request at any instance, or has left. One
    /// that is silent may serve on, and is waited for as long as the caller will.
    async fn proxies_idle(&self, version: TableVersion) {
        let now = self.clock.now();
        let mut busy: BTreeSet<ProxyId> =
            self.controller.status(now).proxies.into_iter().map(|proxy| proxy.id).collect();
        while !busy.is_empty() {
            tokio::select! {
                reports = self.reports.take() => for report in reports {
                    if is_idle(&report, version) {
                        busy.remove(&report.proxy);
                    } else {
                        busy.insert(report.proxy);
                    }
                },
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Ends what runs until nothing does. `running` holds what was last seen, `told` who was told.
    async fn terminate_all(&self, told: &mut BTreeSet<InstanceId>, running: &mut Running) {
        loop {
            let names: Vec<_> = self.calls.names().cloned().collect();
            let lists = join_all(names.iter().map(|name| self.calls.listing(name))).await;
            let mut unknown = false;
            let mut to_tell = Vec::new();
            for (name, list) in names.into_iter().zip(lists) {
                let Ok(list) = list else {
                    unknown = true;
                    running.remove(&name);
                    continue;
                };
                let alive = list
                    .into_iter()
                    .filter(|instance| !matches!(instance.status, ProviderStatus::Ended { .. }));
                let alive: BTreeSet<_> = alive.map(|instance| instance.id).collect();
                to_tell.extend(alive.difference(told).map(|id| (name.clone(), id.clone())));
                running.insert(name, alive);
            }
            if !unknown && running.values().all(BTreeSet::is_empty) {
                return;
            }
            let answers = join_all(to_tell.into_iter().map(|(name, id)| async move {
                let accepted = self.calls.termination(&name, id.clone()).await;
                (id, accepted)
            }))
            .await;
            for (id, accepted) in answers {
                match accepted {
                    Ok(()) => drop(told.insert(id)),
                    Err(error) => {
                        tracing::warn!(instance = %id, %error, "could not end an instance");
                    }
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Deletes the records of what no longer runs at a provider that answered.
    async fn forget_ended(&self, running: &Running, told: usize) {
        let stored = match self.store.load().await {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(%error, "cannot record what has ended; the next start will find out");
                return;
            }
        };
        let (gone, left): (Vec<_>, Vec<_>) = stored.instances.into_iter().partition(|record| {
            running.get(&record.provider).is_some_and(|alive| !alive.contains(&record.id))
        });
        // What they held is free again, so a refusal from when it was not says nothing any more.
        let freed = stored.capacities.into_iter().map(|record| record.key).filter(|key| {
            gone.iter()
                .any(|r| (&r.provider, &r.instance_type) == (&key.provider, &key.instance_type))
        });
        let mut changes: Vec<_> = freed.map(Change::DeleteCapacity).collect();
        changes.extend(gone.iter().map(|record| Change::DeleteInstance(record.id.clone())));
        let message = format!(
            "the manager ended: {told} instances told to end, {} gone, {} left for the next one",
            gone.len(),
            left.len()
        );
        changes.push(Change::Log(EventRecord {
            at: self.clock.now(),
            endpoint: None,
            variant: None,
            instance: None,
            kind: "manager_stopped".into(),
            message,
        }));
        self.crash.before(&changes);
        let changes = Arc::new(changes);
        match self.store.commit(self.lease.epoch(), changes.clone()).await {
            Ok(()) => self.crash.after(&changes),
            Err(error) => {
                tracing::warn!(%error, "cannot record what has ended; the next start will find out");
            }
        }
    }
}

fn is_idle(report: &ProxyReport, version: TableVersion) -> bool {
    report.leaving
        || (report.applied >= version
            && report.backends.iter().all(|backend| backend.outstanding == 0))
}
