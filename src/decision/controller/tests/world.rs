//! A tiny world for the controller's tests: providers with a capacity, a store, proxies that follow
//! every table, and a clock that jumps from one due time to the next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::decision::controller::{Action, Controller, Event};
use crate::types::launch::{Grant, LaunchBatch, LaunchOutcome, ProviderInstance, ProviderStatus};
use crate::types::record::{Change, StoredState};
use crate::types::report::{BackendReport, DemandReport, ProxyReport, TypeReport};
use crate::types::spec::FleetSpec;
use crate::types::table::RoutingTable;
use crate::types::{
    InstanceId, InstanceState, InstanceTypeName, ProviderError, ProviderName, ProxyId, Timestamp,
    VariantKey,
};

use super::super::jitter::Jitter;
use super::specs::{key, ms};

#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) provider: ProviderName,
    pub(crate) instance_type: InstanceTypeName,
    variant: VariantKey,
    port: u16,
    pub(crate) status: ProviderStatus,
    pub(crate) healthy: bool,
    pub(crate) interruption_at: Option<Timestamp>,
}

enum Later {
    Act(u64, Action),
    Answer(u64, Event),
}

pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) spec: Arc<FleetSpec>,
    pub(crate) store: StoredState,
    pub(crate) running: BTreeMap<InstanceId, Running>,
    /// Types without an entry have no limit.
    pub(crate) capacity: BTreeMap<InstanceTypeName, usize>,
    pub(crate) rejects: BTreeSet<InstanceTypeName>,
    /// Instances of these never answer their probes well.
    pub(crate) sick: BTreeSet<InstanceTypeName>,
    /// Instances of these are granted and never run.
    pub(crate) never_run: BTreeSet<InstanceTypeName>,
    /// Providers that answer nothing at all.
    pub(crate) hanging: BTreeSet<ProviderName>,
    /// Launches are carried out but answered with `Unavailable`.
    pub(crate) mumbling: bool,
    /// How many actions are carried out before the manager dies.
    pub(crate) dies_after: Option<usize>,
    pub(crate) launches: Vec<LaunchBatch>,
    pub(crate) table: Arc<RoutingTable>,
    /// What the one proxy has at each instance; `None`: there is no proxy.
    pub(crate) proxy: Option<BTreeMap<InstanceId, u32>>,
    pub(crate) proxy_name: &'static str,
    pub(crate) queued: u32,
    pub(crate) arrivals: u64,
    pub(crate) durations: Vec<TypeReport>,
    /// Instances that the proxy sees work, and that it sees hang.
    pub(crate) progress: BTreeSet<InstanceId>,
    pub(crate) stalls: BTreeSet<InstanceId>,
    /// The proxy does not take new tables.
    pub(crate) proxy_stuck: bool,
    applied: Arc<RoutingTable>,
    controller: Option<Controller>,
    epoch: u64,
    ports: u16,
    /// Every generation that was ever recorded, to see that none is used twice.
    generations: BTreeSet<u64>,
    answers: VecDeque<Event>,
    /// Providers act, and their answers arrive, after up to this many milliseconds each.
    pub(crate) slow_ms: u64,
    pub(super) chance: Jitter,
    later: Vec<(Timestamp, Later)>,
}

impl World {
    pub(crate) fn new(spec: Arc<FleetSpec>) -> Self {
        let mut world = Self {
            now: Timestamp(1_700_000_000_000),
            spec,
            store: StoredState::default(),
            running: BTreeMap::new(),
            capacity: BTreeMap::new(),
            rejects: BTreeSet::new(),
            sick: BTreeSet::new(),
            never_run: BTreeSet::new(),
            hanging: BTreeSet::new(),
            mumbling: false,
            dies_after: None,
            launches: Vec::new(),
            table: Arc::default(),
            proxy: Some(BTreeMap::new()),
            proxy_name: "proxy-1",
            queued: 0,
            arrivals: 0,
            durations: Vec::new(),
            progress: BTreeSet::new(),
            stalls: BTreeSet::new(),
            proxy_stuck: false,
            applied: Arc::default(),
            controller: None,
            epoch: 0,
            ports: 20_000,
            generations: BTreeSet::new(),
            answers: VecDeque::new(),
            slow_ms: 0,
            chance: Jitter::new(1),
            later: Vec::new(),
        };
        world.start();
        world
    }

    pub(crate) fn start(&mut self) {
        self.epoch += 1;
        self.answers.clear();
        let stored = self.store.clone();
        let seed = self.epoch;
        let spec = self.spec.clone();
        self.controller = Some(Controller::new(self.epoch, self.now, spec, stored, seed));
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.controller.is_some()
    }

    pub(crate) fn controller(&mut self) -> &mut Controller {
        self.controller.as_mut().expect("a manager runs")
    }

    pub(crate) fn feed(&mut self, event: Event) {
        let now = self.now;
        self.controller().handle_event(now, event);
    }

    pub(crate) fn scale(&mut self, endpoint: &str, count: u32) {
        let now = self.now;
        self.controller().set_desired(now, endpoint, None, count).expect("within bounds");
    }

    /// Runs until `span` has passed or the manager has died.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        let mut steps = 0;
        while self.is_alive() {
            self.work();
            let Some(controller) = &self.controller else { return };
            let report_at = Timestamp((self.now.0 / 1_000 + 1) * 1_000);
            let arrival = self.later.iter().map(|(at, _)| *at).min();
            let next = controller.poll_timeout().into_iter().chain(arrival).min();
            let next = next.map_or(report_at, |at| at.min(report_at));
            if next > end {
                self.now = end;
                return;
            }
            steps += 1;
            assert!(steps < 200_000, "the controller spins at {next}");
            self.now = self.now.max(next);
            let now = self.now;
            self.arrive();
            self.controller().handle_timeout(now);
            if now >= report_at {
                self.report();
            }
        }
    }

    /// Runs until `done`, for at most `span`.
    pub(crate) fn until(&mut self, span: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + span;
        while !done(self) {
            assert!(self.now < end, "not reached within {span:?}: {:#?}", self.shape());
            self.run(ms(100));
        }
    }

    /// What was slow and is due now happens.
    fn arrive(&mut self) {
        let (due, later) = self.later.drain(..).partition(|(at, _)| *at <= self.now);
        self.later = later;
        let due: Vec<_> = due;
        for (_, what) in due {
            match what {
                Later::Act(epoch, action) => self.perform(epoch, action),
                Later::Answer(epoch, event) if epoch == self.epoch => self.feed(event),
                Later::Answer(..) => {}
            }
        }
    }

    fn after_a_while(&mut self) -> Timestamp {
        let slow = self.slow_ms;
        self.now + ms(self.chance.draw() % (slow + 1))
    }

    fn answer(&mut self, epoch: u64, event: Event) {
        if self.slow_ms > 0 {
            let at = self.after_a_while();
            self.later.push((at, Later::Answer(epoch, event)));
        } else if epoch == self.epoch {
            self.answers.push_back(event);
        }
    }

    /// Rule 2 of the contract, against what the proxy really has.
    fn assert_may_stop(&self, id: &InstanceId) {
        let Some(deadline) = self.record(id).and_then(|r| r.drain_deadline) else { return };
        let Some(at) = self.proxy.as_ref().filter(|_| deadline > self.now) else { return };
        assert_eq!(at.get(id).copied().unwrap_or(0), 0, "{id} is stopped with requests at it");
        let routed = self.applied.endpoints.iter().flat_map(|e| &e.variants);
        let routed = routed.flat_map(|v| &v.backends).any(|b| b.instance == *id);
        assert!(!routed, "{id} is stopped while a proxy routes to it");
    }

    /// The instances that the proxy may send to.
    pub(crate) fn routed(&self) -> Vec<InstanceId> {
        let variants = self.applied.endpoints.iter().flat_map(|e| &e.variants);
        variants.flat_map(|v| &v.backends).map(|b| b.instance.clone()).collect()
    }

    /// Carries out actions and feeds answers until there are none.
    fn work(&mut self) {
        loop {
            while let Some(action) = self.controller.as_mut().and_then(Controller::poll_action) {
                if self.dies_after == Some(0) {
                    self.controller = None;
                    self.dies_after = None;
                    return;
                }
                self.dies_after = self.dies_after.map(|n| n - 1);
                self.carry_out(action);
            }
            let Some(answer) = self.answers.pop_front() else { return };
            self.feed(answer);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Persist(changes) => {
                assert!(!changes.is_empty(), "an empty commit");
                for change in changes {
                    self.commit(change);
                }
            }
            Action::Publish(table) => {
                assert!(table.version > self.table.version, "versions only grow");
                for backend in
                    table.endpoints.iter().flat_map(|e| &e.variants).flat_map(|v| &v.backends)
                {
                    let record = self.record(&backend.instance).expect("recorded before published");
                    assert_eq!(record.state, InstanceState::InService);
                }
                self.table = table;
            }
            Action::Terminate { ref instance, .. } => {
                self.assert_may_stop(instance);
                self.begin(action);
            }
            Action::Launch { ref batch, .. } => {
                for id in &batch.instances {
                    assert!(self.record(id).is_some(), "{id} is launched without a record");
                }
                self.launches.push(batch.clone());
                self.begin(action);
            }
            Action::List(_) | Action::Probe(_) => self.begin(action),
        }
    }

    fn begin(&mut self, action: Action) {
        let epoch = self.epoch;
        if self.slow_ms > 0 {
            let at = self.after_a_while();
            self.later.push((at, Later::Act(epoch, action)));
        } else {
            self.perform(epoch, action);
        }
    }

    /// The provider's or the worker's part.
    fn perform(&mut self, epoch: u64, action: Action) {
        match action {
            Action::Persist(_) | Action::Publish(_) => {}
            Action::List(provider) => {
                if !self.hanging.contains(&provider) {
                    let result = Ok(self.list(&provider).into());
                    self.answer(epoch, Event::Listed { provider, result });
                }
            }
            Action::Launch { provider, batch } => {
                if !self.hanging.contains(&provider) {
                    let outcomes = self.launch(&provider, &batch);
                    self.answer(epoch, Event::Launched { provider, outcomes });
                }
            }
            Action::Terminate { provider, instance } => {
                if self.hanging.contains(&provider) {
                    return;
                }
                let there = self.running.remove(&instance);
                let result = there.map(drop).ok_or(ProviderError::NotFound);
                self.answer(epoch, Event::Terminated { instance, result });
            }
            Action::Probe(probes) => probes.iter().for_each(|probe| {
                let result = match self.running.get(&probe.instance) {
                    Some(r) if r.healthy && !self.sick.contains(&r.instance_type) => Ok(()),
                    Some(_) => Err("status 500".to_owned()),
                    None => Err("connection refused".to_owned()),
                };
                self.answer(epoch, Event::Probed { probes: [probe.clone()].into(), result });
            }),
        }
    }

    fn list(&self, provider: &ProviderName) -> Vec<ProviderInstance> {
        let here = self.running.iter().filter(|(_, r)| r.provider == *provider);
        here.map(|(id, r)| ProviderInstance {
            id: id.clone(),
            instance_type: r.instance_type.clone(),
            variant: Some(r.variant.clone()),
            address: Some(address(r.port)),
            status: r.status.clone(),
            interruption_at: r.interruption_at,
        })
        .collect()
    }

    fn launch(&mut self, provider: &ProviderName, batch: &LaunchBatch) -> Vec<LaunchOutcome> {
        let start = |id: &InstanceId| LaunchOutcome {
            instance: id.clone(),
            result: self.launch_one(provider, batch, id),
        };
        batch.instances.iter().map(start).collect()
    }

    fn launch_one(
        &mut self,
        provider: &ProviderName,
        batch: &LaunchBatch,
        id: &InstanceId,
    ) -> Result<Grant, ProviderError> {
        if self.rejects.contains(&batch.instance_type) {
            return Err(ProviderError::Rejected { reason: "no such image".to_owned() });
        }
        if !self.running.contains_key(id) {
            let used = self.running.values().filter(|r| r.instance_type == batch.instance_type);
            let limit = self.capacity.get(&batch.instance_type).copied().unwrap_or(usize::MAX);
            if used.count() >= limit {
                let reason = format!("all {limit} {} are in use", batch.instance_type);
                return Err(ProviderError::InsufficientCapacity { reason });
            }
            self.ports += 1;
            let runs = !self.never_run.contains(&batch.instance_type);
            let running = Running {
                provider: provider.clone(),
                instance_type: batch.instance_type.clone(),
                variant: batch.variant.clone(),
                port: self.ports,
                status: if runs { ProviderStatus::Running } else { ProviderStatus::Pending },
                healthy: runs,
                interruption_at: None,
            };
            self.running.insert(id.clone(), running);
        }
        if self.mumbling {
            return Err(ProviderError::unavailable("gateway timeout"));
        }
        Ok(Grant { address: Some(address(self.running[id].port)) })
    }

    fn commit(&mut self, change: Change) {
        let store = &mut self.store;
        match change {
            Change::PutInstance(record) => {
                let known = store.instances.iter().any(|i| i.id == record.id);
                let new = self.generations.insert(record.generation.0);
                assert!(known || new, "generation {} is used twice", record.generation);
                store.next_generation = store.next_generation.max(record.generation.0 + 1);
                store.instances.retain(|i| i.id != record.id);
                store.instances.push(record);
            }
            Change::DeleteInstance(id) => store.instances.retain(|i| i.id != id),
            Change::PutVariant(record) => {
                store.variants.retain(|v| v.variant != record.variant);
                store.variants.push(record);
            }
            Change::DeleteVariant(key) => store.variants.retain(|v| v.variant != key),
            Change::PutProxy(record) => {
                store.proxies.retain(|p| p.id != record.id);
                store.proxies.push(record);
            }
            Change::DeleteProxy(id) => store.proxies.retain(|p| p.id != id),
            Change::PutCapacity(record) => {
                store.capacities.retain(|c| c.key != record.key);
                store.capacities.push(record);
            }
            Change::DeleteCapacity(key) => store.capacities.retain(|c| c.key != key),
            Change::Log(event) => store.events.push(event),
        }
    }

    /// The proxy reports, after it has taken the newest table.
    pub(crate) fn report(&mut self) {
        if !self.proxy_stuck {
            self.applied = self.table.clone();
        }
        let Some(at) = &self.proxy else { return };
        let backends = at.iter().filter_map(|(id, outstanding)| {
            let record = self.store.instances.iter().find(|i| i.id == *id)?;
            Some(BackendReport {
                instance: id.clone(),
                generation: record.generation,
                outstanding: *outstanding,
                connect_failures: 0,
                progressed: self.progress.contains(id),
                stalled: self.stalls.contains(id),
                load: None,
            })
        });
        let variants = self.spec.endpoints.iter().map(|e| DemandReport {
            variant: key(e.name.as_str()),
            queued: self.queued,
            outstanding: at.values().sum(),
            arrivals: self.arrivals,
            types: self.durations.clone(),
        });
        let report = ProxyReport {
            proxy: ProxyId::new(self.proxy_name).expect("a valid id"),
            run: 0,
            applied: self.applied.version,
            backends: backends.collect(),
            variants: variants.collect(),
            leaving: false,
            draining_until: None,
        };
        self.feed(Event::Reported(report));
    }
}

fn address(port: u16) -> crate::types::Address {
    crate::types::Address::http(([127, 0, 0, 1], port).into())
}
