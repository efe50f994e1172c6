//! A proxy's side of single requests, built over the deciders of the real one: [`route::choose`] picks a copy
//! by the variant's strategy among those with a free slot, [`WaitQueue`] orders those who wait, and
//! [`ramp::allowed`] gives a new copy its slots.
//!
//! Not played: sessions, callers and priorities (all clients are one), replays of what broke off, and leaving
//! badly answering instances alone. One that refuses a connection is left alone for [`SHUNNED`], and the
//! request goes elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::decision::admit::{Caller, Full, Ticket, WaitQueue};
use crate::decision::ramp;
use crate::decision::route::{self, Candidate};
use crate::types::durations;
use crate::types::report::{BackendReport, DemandReport, TypeReport};
use crate::types::spec::RoutingStrategy;
use crate::types::table::{BackendRoute, EndpointRoute, RoutingTable, VariantRoute};
use crate::types::{EndpointName, Generation, InstanceId, InstanceTypeName, Timestamp, VariantKey};

/// How long nobody is sent to an instance that refused a connection.
pub(super) const SHUNNED: Duration = Duration::from_secs(1);

const ANYBODY: Caller = Caller { priority: 5, id: 0 };

/// What one proxy knows of its variants.
#[derive(Debug, Default)]
pub(in crate::sim) struct Gate {
    lanes: BTreeMap<VariantKey, Lane>,
    /// The variants of each endpoint with their weights.
    endpoints: BTreeMap<EndpointName, Routed>,
}

/// An endpoint's part of the table.
#[derive(Debug)]
struct Routed {
    route: Arc<EndpointRoute>,
    variants: Vec<(VariantKey, f64)>,
}

/// One variant at one proxy.
#[derive(Debug, Default)]
pub(super) struct Lane {
    strategy: RoutingStrategy,
    pub(super) queue_limit: u32,
    pub(super) queue_timeout: Duration,
    /// Those of the table, in its order.
    backends: Vec<Backend>,
    /// The positions of those that have anything to tell, and perhaps of some that had: few of a large fleet.
    telling: Vec<usize>,
    /// Those that left the table and still have requests.
    leaving: Vec<Backend>,
    queue: WaitQueue<u64>,
    arrivals: u64,
    /// Requests by type and bucket, both in order.
    latency: BTreeMap<InstanceTypeName, Vec<(u8, u64)>>,
}

/// One instance at one proxy.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pub(super) instance: InstanceId,
    pub(super) generation: Generation,
    pub(super) kind: InstanceTypeName,
    copies: u32,
    slots: u32,
    since: Timestamp,
    slow_start: Duration,
    /// When its slow start is over.
    grown_at: Timestamp,
    outstanding: u32,
    connect_failures: u64,
    progressed: bool,
    shunned_until: Timestamp,
    /// It is among those that tell.
    listed: bool,
}

/// Where a request got its slot.
pub(super) struct Taken {
    pub(super) instance: InstanceId,
    pub(super) generation: Generation,
    pub(super) kind: InstanceTypeName,
    /// The share of the instance's slots that are taken now.
    pub(super) load: f64,
}

impl Gate {
    /// Routes by `table` from now on.
    pub(in crate::sim) fn apply(&mut self, now: Timestamp, table: &RoutingTable) {
        let mut before = std::mem::take(&mut self.lanes);
        let old = std::mem::take(&mut self.endpoints);
        for endpoint in &table.endpoints {
            let same = old.get(&endpoint.name).is_some_and(|o| Arc::ptr_eq(&o.route, endpoint));
            let mut variants = Vec::new();
            for route in &endpoint.variants {
                let (endpoint, variant) = (endpoint.name.clone(), route.name.clone());
                let key = VariantKey { endpoint, variant };
                let mut lane = before.remove(&key).unwrap_or_default();
                if !same {
                    lane.apply(now, route);
                }
                variants.push((key.clone(), route.weight));
                self.lanes.insert(key, lane);
            }
            let routed = Routed { route: Arc::clone(endpoint), variants };
            self.endpoints.insert(endpoint.name.clone(), routed);
        }
        // What left the config is finished, and nobody is sent there.
        for (key, mut lane) in before {
            lane.let_all_leave();
            if !lane.leaving.is_empty() || !lane.queue.is_empty() {
                self.lanes.insert(key, lane);
            }
        }
    }

    /// Whether it routes by a table.
    pub(in crate::sim) fn routes(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// The variant that a request for `endpoint` is for, by their weights.
    pub(super) fn variant(&self, endpoint: &EndpointName, draw: u64) -> Option<VariantKey> {
        let variants = &self.endpoints.get(endpoint)?.variants;
        let weights = variants.iter().map(|(_, weight)| *weight);
        let at = route::choose_weighted(weights, draw)?;
        Some(variants[at].0.clone())
    }

    pub(super) fn lane(&mut self, variant: &VariantKey) -> Option<&mut Lane> {
        self.lanes.get_mut(variant)
    }

    /// Variants in which somebody waits.
    pub(super) fn waiting(&self) -> Vec<VariantKey> {
        let waiting = self.lanes.iter().filter(|(_, lane)| !lane.queue.is_empty());
        waiting.map(|(key, _)| key.clone()).collect()
    }

    /// Everything at an instance has failed.
    pub(super) fn fail(&mut self, instance: &InstanceId) {
        for lane in self.lanes.values_mut() {
            for backend in lane.backends.iter_mut().filter(|b| b.instance == *instance) {
                backend.outstanding = 0;
            }
            lane.leaving.retain(|backend| backend.instance != *instance);
        }
    }

    pub(in crate::sim) fn outstanding_at(&self, instance: &InstanceId) -> u32 {
        let at = self.all().filter(|backend| backend.instance == *instance);
        at.map(|backend| backend.outstanding).sum()
    }

    pub(in crate::sim) fn outstanding(&self) -> u32 {
        self.all().map(|backend| backend.outstanding).sum()
    }

    pub(in crate::sim) fn queued(&self) -> u32 {
        self.lanes.values().map(|lane| lane.queue.len()).sum()
    }

    fn all(&self) -> impl Iterator<Item = &Backend> {
        self.lanes.values().flat_map(|lane| lane.backends.iter().chain(&lane.leaving))
    }

    /// What the proxy tells the manager of them.
    pub(in crate::sim) fn report(&mut self) -> (Vec<BackendReport>, Vec<DemandReport>) {
        let mut backends = Vec::new();
        self.lanes.values_mut().for_each(|lane| lane.report(&mut backends));
        let routed = self.endpoints.values().flat_map(|endpoint| &endpoint.variants);
        let demands = routed
            .filter_map(|(key, _)| self.lanes.get(key).map(|lane| lane.demand(key)))
            .collect();
        (backends, demands)
    }
}

impl Lane {
    fn apply(&mut self, now: Timestamp, route: &VariantRoute) {
        self.strategy = route.strategy;
        self.queue_limit = route.queue_limit;
        self.queue_timeout = Duration::from_millis(route.queue_timeout_ms);
        let mut before: BTreeMap<Generation, Backend> = std::mem::take(&mut self.backends)
            .into_iter()
            .chain(std::mem::take(&mut self.leaving))
            .map(|backend| (backend.generation, backend))
            .collect();
        for new in &route.backends {
            let slots = new.copies * new.max_concurrency;
            let known = before.remove(&new.generation);
            let backend = known.unwrap_or_else(|| Backend::new(now, new));
            let slow_start = route.requests.slow_start;
            let grown_at = backend.since + slow_start;
            let copies = new.copies;
            self.backends.push(Backend { copies, slots, slow_start, grown_at, ..backend });
        }
        self.leaving = before.into_values().filter(|backend| backend.outstanding > 0).collect();
        self.telling.clear();
        for (position, backend) in self.backends.iter_mut().enumerate() {
            backend.listed = backend.tells();
            self.telling.extend(backend.listed.then_some(position));
        }
    }

    fn let_all_leave(&mut self) {
        self.telling.clear();
        self.leaving.append(&mut self.backends);
        self.leaving.retain(|backend| backend.outstanding > 0);
    }

    /// Counts a request that has come.
    pub(super) fn arrives(&mut self) {
        self.arrivals += 1;
    }

    /// How many wait.
    pub(super) fn queued(&self) -> u32 {
        self.queue.len()
    }

    /// Takes a slot of the best copy that `serves`. The second value tells that one was found that does not.
    pub(super) fn take(
        &mut self,
        now: Timestamp,
        draw: u64,
        serves: impl Fn(&InstanceId) -> bool,
    ) -> (Option<Taken>, bool) {
        let mut shunned = false;
        loop {
            let candidates = self.backends.iter().map(|b| b.candidate(now));
            let Some(chosen) = route::choose(self.strategy, candidates, draw) else {
                return (None, shunned);
            };
            let backend = &mut self.backends[chosen.position];
            if !std::mem::replace(&mut backend.listed, true) {
                self.telling.push(chosen.position);
            }
            if serves(&backend.instance) {
                return (Some(backend.take()), shunned);
            }
            backend.connect_failures += 1;
            backend.shunned_until = now + SHUNNED;
            shunned = true;
        }
    }

    pub(super) fn wait(&mut self, request: u64) -> Result<Ticket, Full> {
        self.queue.push(self.queue_limit, ANYBODY, request)
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<u64> {
        self.queue.pop(now.0)
    }

    pub(super) fn give_up(&mut self, ticket: Ticket) {
        self.queue.remove(ticket);
    }

    /// A request is done after `latency`.
    pub(super) fn finish(&mut self, generation: Generation, latency: Duration) {
        let is_it = |at: &&usize| self.backends[**at].generation == generation;
        let at = self.telling.iter().find(is_it).copied();
        let mut leaving = self.leaving.iter_mut();
        let backend = match at {
            Some(at) => Some(&mut self.backends[at]),
            None => leaving.find(|backend| backend.generation == generation),
        };
        let Some(backend) = backend else { return };
        backend.outstanding = backend.outstanding.saturating_sub(1);
        backend.progressed = true;
        let counts = match self.latency.get_mut(&backend.kind) {
            Some(counts) => counts,
            None => self.latency.entry(backend.kind.clone()).or_default(),
        };
        let bucket = durations::bucket(latency);
        match counts.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => counts[at].1 += 1,
            Err(at) => counts.insert(at, (bucket, 1)),
        }
        self.leaving.retain(|backend| backend.outstanding > 0);
    }

    /// Adds what there is to tell of its instances.
    fn report(&mut self, into: &mut Vec<BackendReport>) {
        self.telling.sort_unstable();
        let Self { telling, backends, leaving, .. } = self;
        into.extend(telling.iter().filter_map(|at| backends[*at].report()));
        into.extend(leaving.iter_mut().filter_map(Backend::report));
        telling.retain(|at| {
            let backend = &mut backends[*at];
            backend.listed = backend.tells();
            backend.listed
        });
    }

    fn demand(&self, key: &VariantKey) -> DemandReport {
        let types = self.latency.iter().map(|(kind, counts)| TypeReport {
            instance_type: kind.clone(),
            latency: counts.clone(),
            // A request is served in one piece: there is nothing to tell of its first.
            first_chunk: Vec::new(),
        });
        let telling = self.telling.iter().map(|at| &self.backends[*at]);
        let all = telling.chain(&self.leaving);
        DemandReport {
            variant: key.clone(),
            queued: self.queue.len(),
            outstanding: all.map(|backend| backend.outstanding).sum(),
            arrivals: self.arrivals,
            types: types.collect(),
        }
    }
}

impl Backend {
    fn new(now: Timestamp, route: &BackendRoute) -> Self {
        Self {
            instance: route.instance.clone(),
            generation: route.generation,
            kind: route.instance_type.clone(),
            copies: route.copies,
            slots: route.copies * route.max_concurrency,
            since: now,
            slow_start: Duration::ZERO,
            grown_at: now,
            outstanding: 0,
            connect_failures: 0,
            progressed: false,
            shunned_until: Timestamp(0),
            listed: false,
        }
    }

    fn tells(&self) -> bool {
        self.outstanding > 0 || self.connect_failures > 0 || self.progressed
    }

    fn report(&mut self) -> Option<BackendReport> {
        self.tells().then(|| BackendReport {
            instance: self.instance.clone(),
            generation: self.generation,
            outstanding: self.outstanding,
            connect_failures: self.connect_failures,
            progressed: std::mem::take(&mut self.progressed),
            stalled: false,
            load: None,
        })
    }

    fn candidate(&self, now: Timestamp) -> Option<Candidate> {
        (self.shunned_until <= now).then(|| Candidate {
            outstanding: self.outstanding,
            copies: self.copies,
            slots: if now < self.grown_at {
                ramp::allowed(self.slots, now.since(self.since), self.slow_start)
            } else {
                self.slots
            },
            predicted: f32::NAN,
        })
    }

    fn take(&mut self) -> Taken {
        self.outstanding += 1;
        Taken {
            instance: self.instance.clone(),
            generation: self.generation,
            kind: self.kind.clone(),
            load: f64::from(self.outstanding) / f64::from(self.slots.max(1)),
        }
    }
}
