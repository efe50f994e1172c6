//! The proxies of the simulated world, as far as the manager can tell: the table each routes by, its
//! requests in flight as counts, what waits, and what it reports.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::rng::Rng;
use super::traffic::Gate;
use crate::types::report::{BackendReport, DemandReport, ProxyReport};
use crate::types::table::{BackendRoute, RoutingTable, TableVersion};
use crate::types::{Generation, InstanceId, ProxyId, Timestamp, VariantKey};

/// One proxy process, across its restarts.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) id: ProxyId,
    pub(super) up: bool,
    /// Which start of it this is.
    run: u64,
    /// Its table, in memory and on disk.
    pub(super) table: Option<Arc<RoutingTable>>,
    /// It and the manager cannot reach each other until then.
    pub(super) silent_until: Timestamp,
    /// Which manager its last report reached, since this process started.
    pub(super) heard: Option<u64>,
    /// It takes no more requests and goes when it has none.
    pub(super) leaving: bool,
    /// Bursts at an instance, by number.
    bursts: BTreeMap<u64, Burst>,
    next_burst: u64,
    demand: BTreeMap<VariantKey, Demand>,
    /// The single requests of a scenario's clients; generated worlds have none.
    pub(super) gate: Gate,
}

/// Requests that went to one instance together.
#[derive(Debug)]
struct Burst {
    variant: VariantKey,
    instance: InstanceId,
    generation: Generation,
    requests: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Demand {
    queued: u32,
    arrivals: u64,
}

/// Where a burst went.
pub(super) enum Sent {
    /// To an instance; it ends under this number.
    To(u64, InstanceId),
    /// It waits for an instance, for so long at most.
    Waits(Duration),
    /// It was refused, or there was nobody to ask for.
    Refused,
}

impl Proxy {
    pub(super) fn new(id: ProxyId) -> Self {
        Self {
            id,
            up: true,
            run: 1,
            table: None,
            silent_until: Timestamp(0),
            heard: None,
            leaving: false,
            bursts: BTreeMap::new(),
            next_burst: 0,
            demand: BTreeMap::new(),
            gate: Gate::default(),
        }
    }

    /// The table it routes by.
    pub(super) fn applied(&self) -> TableVersion {
        self.table.as_ref().map_or_else(TableVersion::default, |table| table.version)
    }

    /// Takes a table if it is newer; whether it was.
    pub(super) fn apply(&mut self, table: &Arc<RoutingTable>) -> bool {
        let newer = table.version > self.applied();
        if newer {
            self.table = Some(Arc::clone(table));
        }
        newer
    }

    /// Dies: requests and counters are lost, the table is on disk.
    pub(super) fn die(&mut self) {
        self.up = false;
        self.run += 1;
        self.heard = None;
        self.bursts.clear();
        self.demand.clear();
        self.gate = Gate::default();
    }

    /// Variants that clients can ask for here.
    pub(super) fn variants(&self) -> Vec<VariantKey> {
        let endpoints = self.table.iter().flat_map(|table| &table.endpoints);
        endpoints
            .flat_map(|e| {
                e.variants
                    .iter()
                    .map(|v| VariantKey { endpoint: e.name.clone(), variant: v.name.clone() })
            })
            .collect()
    }

    /// How the table routes requests for `variant`.
    fn route(&self, variant: &VariantKey) -> Option<(Arc<RoutingTable>, usize, usize)> {
        let table = self.table.as_ref()?;
        let endpoint = table.endpoints.iter().position(|e| e.name == variant.endpoint)?;
        let variants = &table.endpoints[endpoint].variants;
        let at = variants.iter().position(|v| v.name == variant.variant)?;
        Some((Arc::clone(table), endpoint, at))
    }

    /// Clients send `requests` for `variant`.
    pub(super) fn send(&mut self, variant: &VariantKey, requests: u32, rng: &mut Rng) -> Sent {
        let demand = self.demand.entry(variant.clone()).or_default();
        demand.arrivals += u64::from(requests);
        let queued = demand.queued + requests;
        let Some((table, endpoint, at)) = self.route(variant) else { return Sent::Refused };
        let route = &table.endpoints[endpoint].variants[at];
        match rng.pick(&route.backends) {
            Some(backend) => self.dispatch(variant, backend, requests),
            None if queued <= route.queue_limit => {
                self.wait(variant, queued);
                Sent::Waits(Duration::from_millis(route.queue_timeout_ms))
            }
            None => Sent::Refused,
        }
    }

    fn wait(&mut self, variant: &VariantKey, queued: u32) {
        if let Some(demand) = self.demand.get_mut(variant) {
            demand.queued = queued;
        }
    }

    /// The clients of `requests` that wait have waited for too long.
    pub(super) fn time_out(&mut self, variant: &VariantKey, requests: u32) {
        if let Some(demand) = self.demand.get_mut(variant) {
            demand.queued = demand.queued.saturating_sub(requests);
        }
    }

    /// Whatever waits and can go now goes; each as a burst, with the instance it went to.
    pub(super) fn release(&mut self, rng: &mut Rng) -> Vec<(u64, InstanceId)> {
        let mut sent = Vec::new();
        let waiting: Vec<(VariantKey, u32)> = self
            .demand
            .iter()
            .filter(|(_, demand)| demand.queued > 0)
            .map(|(key, demand)| (key.clone(), demand.queued))
            .collect();
        for (variant, queued) in waiting {
            let Some((table, endpoint, at)) = self.route(&variant) else {
                // Nobody is to be asked for it any more: refused.
                self.wait(&variant, 0);
                continue;
            };
            let backends = &table.endpoints[endpoint].variants[at].backends;
            let Some(backend) = rng.pick(backends) else { continue };
            self.wait(&variant, 0);
            if let Sent::To(number, instance) = self.dispatch(&variant, backend, queued) {
                sent.push((number, instance));
            }
        }
        sent
    }

    fn dispatch(&mut self, variant: &VariantKey, backend: &BackendRoute, requests: u32) -> Sent {
        self.next_burst += 1;
        let burst = Burst {
            variant: variant.clone(),
            instance: backend.instance.clone(),
            generation: backend.generation,
            requests,
        };
        self.bursts.insert(self.next_burst, burst);
        Sent::To(self.next_burst, backend.instance.clone())
    }

    /// A burst has been served.
    pub(super) fn finish(&mut self, number: u64) {
        self.bursts.remove(&number);
    }

    /// Every burst at an instance has failed; how many requests that were.
    pub(super) fn fail(&mut self, instance: &InstanceId) -> u32 {
        let lost = self.bursts_at(instance);
        self.bursts.retain(|_, burst| burst.instance != *instance);
        lost
    }

    /// Requests at an instance, whichever start of it.
    pub(super) fn outstanding_at(&self, instance: &InstanceId) -> u32 {
        self.bursts_at(instance) + self.gate.outstanding_at(instance)
    }

    fn bursts_at(&self, instance: &InstanceId) -> u32 {
        self.bursts.values().filter(|b| b.instance == *instance).map(|b| b.requests).sum()
    }

    /// Requests at all instances.
    pub(super) fn outstanding(&self) -> u32 {
        let bursts: u32 = self.bursts.values().map(|burst| burst.requests).sum();
        bursts + self.gate.outstanding()
    }

    /// Requests that wait.
    pub(super) fn queued(&self) -> u32 {
        self.demand.values().map(|demand| demand.queued).sum::<u32>() + self.gate.queued()
    }

    /// Clients give up waiting.
    pub(super) fn give_up(&mut self) {
        self.demand.values_mut().for_each(|demand| demand.queued = 0);
    }

    /// What it tells the manager.
    pub(super) fn report(&mut self) -> ProxyReport {
        let (backends, variants) =
            if self.gate.routes() { self.gate.report() } else { self.report_bursts() };
        ProxyReport {
            proxy: self.id.clone(),
            run: self.run,
            applied: self.applied(),
            backends,
            variants,
            leaving: self.leaving && self.outstanding() == 0,
            draining_until: None,
        }
        .short()
    }

    fn report_bursts(&self) -> (Vec<BackendReport>, Vec<DemandReport>) {
        let mut counts: BTreeMap<(InstanceId, Generation), u32> = BTreeMap::new();
        let mut outstanding: BTreeMap<&VariantKey, u32> = BTreeMap::new();
        let endpoints = self.table.iter().flat_map(|table| &table.endpoints);
        for backend in endpoints.flat_map(|e| &e.variants).flat_map(|v| &v.backends) {
            counts.insert((backend.instance.clone(), backend.generation), 0);
        }
        for burst in self.bursts.values() {
            *counts.entry((burst.instance.clone(), burst.generation)).or_default() +=
                burst.requests;
            *outstanding.entry(&burst.variant).or_default() += burst.requests;
        }
        let backends = counts
            .into_iter()
            .map(|((instance, generation), outstanding)| BackendReport {
                instance,
                generation,
                outstanding,
                connect_failures: 0,

                progressed: false,
                stalled: false,
                load: None,
            })
            .collect();
        let variants = self
            .variants()
            .into_iter()
            .map(|variant| {
                let demand = self.demand.get(&variant).copied().unwrap_or_default();
                let outstanding = outstanding.get(&variant).copied().unwrap_or(0);
                let Demand { queued, arrivals } = demand;
                DemandReport { variant, queued, outstanding, arrivals, types: Vec::new() }
            })
            .collect();
        (backends, variants)
    }
}
