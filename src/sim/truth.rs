//! Checks with the world's truth: what no controller can know, and what must hold all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use super::driver::Manager;
use super::world::World;
use crate::decision::controller::Action;
use crate::types::launch::LaunchBatch;
use crate::types::record::{Change, VariantRecord};
use crate::types::spec::Rebalance;
use crate::types::{InstanceId, InstanceState, InstanceTypeName, VariantKey};

/// How long after its time something due must have happened.
const OVERDUE: Duration = Duration::from_secs(5);

impl World {
    /// Checks an action that is about to be carried out.
    pub(super) fn check_truth(&mut self, action: &Action) {
        if self.frozen
            && let Some(what) = self.disturbs(action)
        {
            self.blame(format!("nothing was left to do, and {what}"));
        }
        if let Action::Launch { batch, .. } = action
            && let Some(better) = self.passed_over(batch)
        {
            self.blame(format!("{:?} is launched and {better} was never refused", batch.instances));
        }
        if let Some(what) = self.put_to_sleep(action) {
            self.blame(what);
        }
        for instance in self.stopped_by(action) {
            if let Some(why) = self.still_serving(&instance) {
                self.blame(format!("{instance} is stopped while {why}"));
            }
        }
    }

    /// A variant that is put to sleep although it was asked for lately. Nobody but the controller does
    /// that in a turn in which the operator said nothing.
    fn put_to_sleep(&self, action: &Action) -> Option<String> {
        let Action::Persist(changes) = action else { return None };
        changes.iter().find_map(|change| {
            let Change::PutVariant(record) = change else { return None };
            let before = self.store.variants.get(&record.variant)?.desired;
            let after = self.fleet.variant(&record.variant)?.scale_to_zero_after?;
            let (at, proxy) = *self.asked.get(&record.variant)?;
            let idle = self.now.since(at);
            let told = self.heard_for(proxy).min(idle) > self.setup.report_turn();
            let known = told && self.must_be_known(proxy);
            (before > 0 && record.desired == 0 && !self.commanding && known && idle < after)
                .then(|| format!("{} sleeps {idle:?} after a request", record.variant))
        })
    }

    /// A drain ends at its deadline, whoever still has requests.
    pub(super) fn check_overdue(&mut self) {
        let settled_in = |manager: &Manager| self.now.since(manager.started_at) > OVERDUE;
        if !self.manager.as_ref().is_some_and(settled_in) {
            return;
        }
        let mut draining = self.store.draining.iter().filter_map(|id| self.store.instances.get(id));
        let overdue = draining
            .find(|record| record.drain_deadline.is_some_and(|at| self.now.since(at) > OVERDUE));
        if let Some(record) = overdue {
            self.blame(format!("{} drains past its deadline", record.id));
        }
    }

    /// The instances whose end an action decides: those recorded as being stopped from now on, and what
    /// is terminated without a record.
    fn stopped_by(&self, action: &Action) -> Vec<InstanceId> {
        let stored = |id: &InstanceId| self.store.instances.get(id).map(|record| record.state);
        match action {
            Action::Terminate { instance, .. } if stored(instance).is_none() => {
                vec![instance.clone()]
            }
            Action::Persist(changes) => changes
                .iter()
                .filter_map(|change| match change {
                    Change::PutInstance(record) if record.state == InstanceState::Stopping => {
                        (stored(&record.id) != Some(record.state)).then(|| record.id.clone())
                    }
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// A better type than the one of a batch that nothing has ever spoken against.
    fn passed_over(&self, batch: &LaunchBatch) -> Option<&InstanceTypeName> {
        if self.setup.troubled {
            return None;
        }
        let spec = self.fleet.variant(&batch.variant)?;
        let own = spec.pools.iter().find(|pool| pool.instance_type == batch.instance_type)?;
        let better = spec.pools.iter().filter(|pool| pool.priority < own.priority);
        let mut kinds = better.map(|pool| &pool.instance_type);
        kinds.find(|kind| self.cloud.refusals.get(*kind).is_none_or(|count| *count == 0))
    }

    /// What an action changes of a fleet that is as it should be.
    fn disturbs(&self, action: &Action) -> Option<String> {
        match action {
            Action::Launch { batch, .. } => Some(format!("{:?} is launched", batch.instances)),
            Action::Terminate { instance, .. } => Some(format!("{instance} is terminated")),
            Action::Persist(changes) if changes.iter().all(|c| self.is_bookkeeping(c)) => None,
            Action::Persist(changes) => Some(format!("{changes:?} are written")),
            Action::Publish(table) if self.published.is_some() => {
                Some(format!("table {} is published", table.version))
            }
            Action::List(_) | Action::Probe(_) | Action::Publish(_) => None,
        }
    }

    /// Old memories may be forgotten, a late answer logged, and a round closed once a provider that hung
    /// has answered, at any time.
    fn is_bookkeeping(&self, change: &Change) -> bool {
        match change {
            Change::DeleteCapacity(_)
            | Change::PutProxy(_)
            | Change::DeleteProxy(_)
            | Change::Log(_) => true,
            Change::PutVariant(record) => {
                let before = self.store.variants.get(&record.variant);
                let closed = before.cloned().map(|before| VariantRecord { round: None, ..before });
                closed.as_ref() == Some(record)
            }
            _ => false,
        }
    }

    /// Why requests at an instance would be cut off before their time.
    fn still_serving(&self, instance: &InstanceId) -> Option<String> {
        let machine = self.cloud.machines().get(instance).filter(|m| m.serves(self.now))?;
        let over = machine.stopping_at.is_some()
            || machine.interruption_at.is_some_and(|at| at <= self.now)
            || self
                .store
                .instances
                .get(instance)
                .and_then(|record| record.drain_deadline)
                .is_some_and(|at| at <= self.now);
        if over {
            return None;
        }
        (0..self.proxies.len()).find_map(|proxy| {
            let outstanding = self.proxies[proxy].outstanding_at(instance);
            (outstanding > 0 && self.must_be_known(proxy))
                .then(|| format!("{} has {outstanding} requests there", self.proxies[proxy].id))
        })
    }

    /// Whether the manager can know that there is a proxy: it has heard it, one before it has and recorded
    /// that, or it could have been heard (a manager that has just started must wait for that).
    fn must_be_known(&self, proxy: usize) -> bool {
        let state = &self.proxies[proxy];
        let Some(life) = state.heard else { return false };
        let same = self.manager.as_ref().is_some_and(|manager| manager.life == life);
        same || self.store.proxies.contains_key(&state.id)
            || self.heard_for(proxy) > self.setup.report_turn()
    }

    /// For how long a proxy has had its line to the manager since it was last cut off.
    fn heard_for(&self, proxy: usize) -> Duration {
        self.now.since(self.proxies[proxy].silent_until)
    }

    /// Why the fleet is not yet what it should be, with all the capacity it needs and nothing failing.
    pub(super) fn unsettled(&self, plenty: bool) -> Option<String> {
        let Some(manager) = &self.manager else { return Some("there is no manager".into()) };
        let running: BTreeSet<_> = self
            .cloud
            .machines()
            .iter()
            .filter(|(_, machine)| machine.ended.is_none())
            .map(|(id, _)| id)
            .collect();
        let doomed = self.cloud.machines().iter().find(|(_, machine)| machine.doomed());
        if let Some((id, _)) = doomed {
            return Some(format!("{id} is about to end"));
        }
        let recorded: BTreeSet<_> = self.store.instances.keys().collect();
        if running != recorded {
            return Some(format!("the cloud runs {running:?}, the store has {recorded:?}"));
        }
        if let Some(record) =
            self.store.instances.values().find(|r| r.state != InstanceState::InService)
        {
            return Some(format!("{} is {}", record.id, record.state));
        }
        let configured: BTreeSet<VariantKey> = self
            .fleet
            .variants()
            .map(|(e, v)| VariantKey { endpoint: e.name.clone(), variant: v.name.clone() })
            .collect();
        let kept: BTreeSet<VariantKey> = self.store.variants.keys().cloned().collect();
        if configured != kept {
            return Some(format!("variants {configured:?} are configured, {kept:?} recorded"));
        }
        configured
            .iter()
            .find_map(|key| self.unsettled_variant(key, plenty))
            .or_else(|| self.unsettled_proxies())
            .or_else(|| self.unsettled_view(&manager.controller.status(self.now)))
    }

    fn unsettled_variant(&self, key: &VariantKey, plenty: bool) -> Option<String> {
        let spec = self.fleet.variant(key)?;
        let desired = self.store.variants.get(key).map_or(0, |record| record.desired);
        let instances: Vec<_> =
            self.store.instances.values().filter(|r| r.variant == *key).collect();
        if instances.len() != desired as usize {
            return Some(format!("{key} has {} instances of {desired}", instances.len()));
        }
        if spec.scale_to_zero_after.is_some() && spec.min_instance_count == 0 && desired > 0 {
            return Some(format!("{key} is idle and has {desired} instances"));
        }
        let first = spec.pools.iter().map(|pool| pool.priority).min()?;
        for record in instances {
            let pool = spec.pools.iter().find(|pool| pool.instance_type == record.instance_type);
            let Some(pool) = pool else {
                return Some(format!("{} is of a pool that is not configured", record.id));
            };
            let active = spec.rebalance.mode == Rebalance::Active && plenty;
            if active && pool.priority > first {
                return Some(format!("{} is fallback and need not be", record.id));
            }
        }
        None
    }

    fn unsettled_proxies(&self) -> Option<String> {
        let Some(table) = &self.published else {
            return Some("no table has been published".into());
        };
        let tabled: BTreeSet<_> = table
            .endpoints
            .iter()
            .flat_map(|e| &e.variants)
            .flat_map(|v| &v.backends)
            .map(|backend| &backend.instance)
            .collect();
        let recorded: BTreeSet<_> = self.store.instances.keys().collect();
        if tabled != recorded {
            return Some(format!("the table has {tabled:?}, the store {recorded:?}"));
        }
        self.proxies.iter().filter(|proxy| proxy.up).find_map(|proxy| {
            if proxy.applied() != table.version {
                return Some(format!("{} routes by {}", proxy.id, proxy.applied()));
            }
            let left = proxy.outstanding() + proxy.queued();
            (left > 0).then(|| format!("{} still has {left} requests", proxy.id))
        })
    }

    /// The view that operators get must agree with what is.
    fn unsettled_view(&self, status: &crate::types::status::FleetStatus) -> Option<String> {
        let variants = status
            .endpoints
            .iter()
            .flat_map(|endpoint| endpoint.variants.iter().map(move |v| (endpoint.name.clone(), v)));
        for (endpoint, variant) in variants {
            let key = VariantKey { endpoint, variant: variant.name.clone() };
            let desired = self.store.variants.get(&key).map_or(0, |record| record.desired);
            let pools: u32 = variant.pools.iter().map(|pool| pool.current_instance_count).sum();
            let shown = [
                variant.desired_instance_count,
                variant.in_service_instance_count,
                pools,
                u32::try_from(variant.instances.len()).unwrap_or(u32::MAX),
            ];
            if shown != [desired; 4] {
                return Some(format!("the status of {key} shows {shown:?}, desired {desired}"));
            }
            if variant.queued > 0 || variant.instances.iter().any(|i| i.outstanding > 0) {
                return Some(format!("the status of {key} shows requests, there are none"));
            }
        }
        None
    }
}
