//! The checker's own books: everything that went in and out of one controller, as far as it matters to
//! whether the next action is right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::table::{check_backend, check_table, wrong};
use super::{Violation, changes};
use crate::decision::controller::{Action, Event};
use crate::types::launch::{LaunchBatch, LaunchOutcome, Listing, ProviderStatus};
use crate::types::record::{InstanceRecord, StoredState, VariantRecord};
use crate::types::report::ProxyReport;
use crate::types::spec::FleetSpec;
use crate::types::table::{RoutingTable, TableVersion};
use crate::types::{
    Address, Generation, InstanceId, InstanceState, InstanceTypeName, ProviderError, ProviderName,
    ProxyId, Timestamp, VariantKey,
};

/// A second set of books beside one [`crate::decision::controller::Controller`]. Feed it each event
/// before the controller and each action before it is carried out.
#[derive(Debug)]
pub struct Ledger {
    pub(super) spec: Arc<FleetSpec>,
    pub(super) instances: BTreeMap<InstanceId, Known>,
    pub(super) variants: BTreeMap<VariantKey, VariantRecord>,
    /// Types whose last launch was refused for lack of capacity, as recorded.
    pub(super) refusing: BTreeSet<(ProviderName, InstanceTypeName)>,
    pub(super) next_generation: u64,
    pub(super) proxies: BTreeMap<ProxyId, Heard>,
    proxy_lease: Duration,
    /// What each provider's last list showed, and whom it serves.
    pub(super) listed: BTreeMap<ProviderName, BTreeMap<InstanceId, Option<VariantKey>>>,
    listing: BTreeMap<ProviderName, u64>,
    table: Option<Arc<RoutingTable>>,
    /// Counts events and actions, to tell whether a list was begun after something else.
    step: u64,
}

/// What is known of one recorded instance.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, each true or false")]
pub(super) struct Known {
    pub(super) record: InstanceRecord,
    /// A launch of it was begun, in this ledger's time or perhaps before.
    pub(super) sent: bool,
    /// The answer to a launch is outstanding.
    launching: bool,
    /// The last launch was answered with an error after which nothing runs.
    pub(super) refused: bool,
    /// A list begun at this step or later would show it if it ran.
    visible_from: u64,
    /// The provider said that it runs no more.
    pub(super) gone: bool,
    /// Its last probe succeeded.
    pub(super) healthy: bool,
    /// Something spoke against its health since the last good probe.
    pub(super) failing: bool,
    pub(super) interruption_at: Option<Timestamp>,
    pub(super) drain_asked: bool,
    /// It was in a table, here or before.
    pub(super) tabled: bool,
    /// The first table without it, once it had been in one.
    pub(super) left_at: Option<TableVersion>,
}

/// What a proxy last said; one that an earlier manager heard may route by any table.
#[derive(Debug)]
pub(super) struct Heard {
    at: Timestamp,
    pub(super) applied: TableVersion,
    /// Instances with requests of it.
    pub(super) busy: Vec<(InstanceId, Generation, u32)>,
}

impl Heard {
    fn of(now: Timestamp, report: &ProxyReport) -> Self {
        let busy = report.backends.iter().filter(|backend| backend.outstanding > 0);
        Self {
            at: now,
            applied: report.applied,
            busy: busy.map(|b| (b.instance.clone(), b.generation, b.outstanding)).collect(),
        }
    }
}

impl Ledger {
    /// Books opened at `now` with what the controller is given. A proxy may be forgotten when it has left,
    /// or has been silent for `proxy_lease` at the very least.
    #[must_use]
    pub fn new(
        now: Timestamp,
        spec: Arc<FleetSpec>,
        stored: &StoredState,
        proxy_lease: Duration,
    ) -> Self {
        let unheard = || Heard { at: now, applied: TableVersion::default(), busy: Vec::new() };
        let highest = stored.instances.iter().map(|record| record.generation.0 + 1).max();
        let mut ledger = Self {
            spec,
            instances: BTreeMap::new(),
            variants: stored.variants.iter().map(|v| (v.variant.clone(), v.clone())).collect(),
            refusing: stored.capacities.iter().map(|c| changes::type_of(&c.key)).collect(),
            next_generation: stored.next_generation.max(highest.unwrap_or(0)),
            proxies: stored.proxies.iter().map(|p| (p.id.clone(), unheard())).collect(),
            proxy_lease,
            listed: BTreeMap::new(),
            listing: BTreeMap::new(),
            table: None,
            step: 0,
        };
        for record in &stored.instances {
            let mut known = Known::new(record.clone(), 0);
            known.sent = true;
            known.healthy = record.state == InstanceState::InService;
            known.tabled = record.in_service_at.is_some();
            ledger.instances.insert(record.id.clone(), known);
        }
        ledger
    }

    /// Notes that the operator wants `instance` drained, so that its leaving is nobody's choice.
    pub fn note_drain(&mut self, instance: &str) {
        if let Some(known) = self.instances.get_mut(instance) {
            known.drain_asked = true;
        }
    }

    /// Notes what the controller is about to be told.
    pub fn note_event(&mut self, now: Timestamp, event: &Event) {
        self.step += 1;
        match event {
            Event::Listed { provider, result } => {
                let begun = self.listing.remove(provider).unwrap_or(0);
                if let Ok(instances) = result {
                    self.note_list(provider, begun, instances);
                }
            }
            Event::Launched { outcomes, .. } => {
                for outcome in outcomes {
                    self.note_launched(outcome);
                }
            }
            Event::Terminated { instance, result } => {
                if let (Some(known), Err(ProviderError::NotFound)) =
                    (self.instances.get_mut(instance), result)
                {
                    known.gone = true;
                }
            }
            Event::Probed { probes, result } => {
                for probe in probes.iter() {
                    if let Some(known) = self.instances.get_mut(&probe.instance)
                        && known.record.generation == probe.generation
                    {
                        known.healthy = result.is_ok();
                        known.failing = result.is_err();
                    }
                }
            }
            Event::Reported(report) => {
                if report.leaving {
                    self.proxies.remove(&report.proxy);
                } else {
                    self.proxies.insert(report.proxy.clone(), Heard::of(now, report));
                }
            }
            Event::Reconfigured(spec) => self.spec = Arc::clone(spec),
            Event::ProviderNudged(_) | Event::Signals { .. } => {}
        }
    }

    /// Enters that a proxy is forgotten: one that has not left must have been silent.
    pub(super) fn forget_proxy(&mut self, now: Timestamp, id: &ProxyId) -> Option<Violation> {
        let silence = now.since(self.proxies.remove(id)?.at);
        (silence < self.proxy_lease)
            .then(|| wrong(format!("proxy {id}"), "silence", format!("{silence:?}")))
    }

    /// Checks `action`, which is to be carried out at `now` after everything noted so far, and enters it
    /// into the books.
    #[must_use]
    pub fn check_action(&mut self, now: Timestamp, action: &Action) -> Vec<Violation> {
        self.step += 1;
        match action {
            Action::Persist(batch) => changes::check(self, now, batch),
            Action::List(provider) => {
                let before = self.listing.insert(provider.clone(), self.step);
                before.map(|_| Violation::ListedTwice(provider.clone())).into_iter().collect()
            }
            Action::Launch { provider, batch } => self.check_launch(provider, batch),
            Action::Terminate { provider, instance } => self.check_terminate(provider, instance),
            Action::Probe(probes) => {
                let wrong = probes.iter().flat_map(|probe| {
                    self.check_probe(&probe.instance, probe.generation, &probe.address)
                });
                wrong.collect()
            }
            Action::Publish(table) => self.check_publish(table),
        }
    }

    /// Instances of a variant that count towards its size.
    pub(super) fn active<'a>(
        &'a self,
        variant: &'a VariantKey,
    ) -> impl Iterator<Item = &'a Known> + use<'a> {
        self.instances
            .values()
            .filter(move |known| known.record.variant == *variant)
            .filter(|known| !known.record.state.is_leaving())
    }

    /// Enters a record that was not there before.
    pub(super) fn enter(&mut self, record: InstanceRecord) {
        let known = Known::new(record, self.step);
        self.instances.insert(known.record.id.clone(), known);
    }

    fn note_list(&mut self, provider: &ProviderName, begun: u64, instances: &Listing) {
        let step = self.step;
        let listed: BTreeMap<_, _> = instances.iter().map(|there| (&there.id, there)).collect();
        let mut there = listed.values().peekable();
        // Both are in the order of their ids: one walk through them, instead of a search for each.
        for known in self.instances.values_mut() {
            let id = &known.record.id;
            while there.next_if(|there| there.id < *id).is_some() {}
            let there = there.next_if(|there| there.id == *id);
            if known.record.provider != *provider {
                continue;
            }
            match there {
                Some(instance) => {
                    // It runs, whatever the answer to its launch will be.
                    known.launching = false;
                    known.visible_from = step;
                    known.interruption_at = instance.interruption_at;
                    known.gone |= matches!(instance.status, ProviderStatus::Ended { .. });
                    known.failing |= instance.status == ProviderStatus::Stopping;
                }
                None if !known.launching && begun >= known.visible_from => known.gone = true,
                None => {}
            }
        }
        let shown = listed.values().map(|there| (there.id.clone(), there.variant.clone()));
        self.listed.insert(provider.clone(), shown.collect());
    }

    fn note_launched(&mut self, outcome: &LaunchOutcome) {
        let step = self.step;
        if let Some(known) = self.instances.get_mut(&outcome.instance) {
            known.launching = false;
            known.visible_from = step;
            known.refused = outcome
                .result
                .as_ref()
                .is_err_and(|error| !matches!(error, ProviderError::Unavailable { .. }));
        }
    }

    fn check_launch(&mut self, provider: &ProviderName, batch: &LaunchBatch) -> Vec<Violation> {
        let mut found = self.check_probing(provider, batch);
        let mut ids = BTreeSet::new();
        if batch.instances.is_empty() {
            found.push(wrong("a launch batch".into(), "instances", "none".into()));
        }
        for id in &batch.instances {
            let mut fault = |problem: String| {
                found.push(Violation::WrongLaunch { instance: id.clone(), problem });
            };
            if !ids.insert(id) {
                fault("is in the batch twice".into());
                continue;
            }
            let Some(known) = self.instances.get_mut(id) else {
                fault("has no durable record".into());
                continue;
            };
            if known.record.state != InstanceState::Pending {
                fault(format!("is {}", known.record.state));
            }
            if known.launching {
                fault("an earlier launch of it is still under way".into());
            }
            if !known.matches(provider, batch) {
                fault("its record says something else".into());
            }
            known.sent = true;
            known.launching = true;
            known.refused = false;
        }
        found
    }

    /// Whether a type that is refused is asked for one at a time. Asking again for what may have been
    /// started is no new question.
    fn check_probing(&self, provider: &ProviderName, batch: &LaunchBatch) -> Vec<Violation> {
        if !self.refusing.contains(&(provider.clone(), batch.instance_type.clone())) {
            return Vec::new();
        }
        let under_way = self.instances.values().find(|known| {
            let record = &known.record;
            known.launching
                && record.state == InstanceState::Pending
                && record.provider == *provider
                && record.instance_type == batch.instance_type
        });
        let new = |id: &&InstanceId| self.instances.get(*id).is_some_and(|known| !known.sent);
        let mut new = batch.instances.iter().filter(new);
        let (first, second) = (new.next(), new.next());
        let problem = match (first, under_way, second) {
            (Some(_), Some(other), _) => {
                format!("its type lacks capacity and is being asked for {}", other.record.id)
            }
            (Some(_), None, Some(other)) => {
                format!("its type lacks capacity and is asked for {other} at once")
            }
            (None, ..) | (Some(_), None, None) => return Vec::new(),
        };
        first
            .map(|id| Violation::WrongLaunch { instance: id.clone(), problem })
            .into_iter()
            .collect()
    }

    fn check_terminate(&self, provider: &ProviderName, instance: &InstanceId) -> Vec<Violation> {
        let problem = match self.instances.get(instance) {
            Some(known) if known.record.provider != *provider => {
                format!("runs at {}, not at {provider}", known.record.provider)
            }
            Some(known) if known.record.state != InstanceState::Stopping => {
                format!("is {}", known.record.state)
            }
            None if !self.listed.get(provider).is_some_and(|l| l.contains_key(instance)) => {
                "was neither recorded nor listed".into()
            }
            Some(_) | None => return Vec::new(),
        };
        vec![Violation::WrongTermination { instance: instance.clone(), problem }]
    }

    fn check_probe(
        &self,
        instance: &InstanceId,
        generation: Generation,
        address: &Address,
    ) -> Vec<Violation> {
        let right = self.instances.get(instance).is_some_and(|known| {
            known.record.generation == generation && known.record.address.as_ref() == Some(address)
        });
        if right {
            return Vec::new();
        }
        vec![Violation::WrongProbe { instance: instance.clone(), generation }]
    }

    fn check_publish(&mut self, table: &Arc<RoutingTable>) -> Vec<Violation> {
        let mut found = check_table(self.table.as_deref(), table);
        self.check_names(table, &mut found);
        let mut tabled = BTreeSet::new();
        for endpoint in &table.endpoints {
            for variant in &endpoint.variants {
                for backend in &variant.backends {
                    let key = VariantKey {
                        endpoint: endpoint.name.clone(),
                        variant: variant.name.clone(),
                    };
                    tabled.insert(&backend.instance);
                    let known = self.instances.get(&backend.instance);
                    found.extend(check_backend(known, &key, backend));
                }
            }
        }
        for (id, known) in &mut self.instances {
            if tabled.contains(id) {
                known.tabled = true;
                known.left_at = None;
            } else {
                if known.record.state == InstanceState::InService {
                    found.push(Violation::MissingFromTable { instance: id.clone() });
                }
                if known.tabled {
                    known.left_at.get_or_insert(table.version);
                }
            }
        }
        self.table = Some(Arc::clone(table));
        found
    }

    fn check_names(&self, table: &RoutingTable, found: &mut Vec<Violation>) {
        let named = |table: &RoutingTable| -> BTreeSet<String> {
            table
                .endpoints
                .iter()
                .flat_map(|e| e.variants.iter().map(move |v| format!("{}/{}", e.name, v.name)))
                .collect()
        };
        let inside = named(table);
        let known: BTreeSet<String> =
            self.spec.variants().map(|(e, v)| format!("{}/{}", e.name, v.name)).collect();
        for name in inside.difference(&known) {
            let problem = "is in the table and not configured";
            found.push(Violation::WrongName { name: name.clone(), problem });
        }
        for name in known.difference(&inside) {
            let problem = "is configured and missing from the table";
            found.push(Violation::WrongName { name: name.clone(), problem });
        }
    }
}

impl Known {
    fn new(record: InstanceRecord, visible_from: u64) -> Self {
        Self {
            record,
            sent: false,
            launching: false,
            refused: false,
            visible_from,
            gone: false,
            healthy: false,
            failing: false,
            interruption_at: None,
            drain_asked: false,
            tabled: false,
            left_at: None,
        }
    }

    fn matches(&self, provider: &ProviderName, batch: &LaunchBatch) -> bool {
        let record = &self.record;
        record.provider == *provider
            && record.instance_type == batch.instance_type
            && record.variant == batch.variant
            && record.model == batch.model
            && record.copies == batch.copies
            && record.max_concurrency == batch.max_concurrency
    }
}
