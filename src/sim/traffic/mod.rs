//! The clients of a scenario: single requests that arrive ([`arrivals`]), are routed or wait at a proxy
//! ([`gate`]), run for as long as their work takes ([`service`]), and are counted ([`tally`]). Generated
//! worlds have none of it: their load is bursts ([`super::proxies`]).
//!
//! All randomness here comes from streams of its own, made from the seed: with the same seed the same
//! requests arrive at the same moments whatever policy serves them.

pub(super) mod arrivals;
mod gate;
pub(super) mod service;
pub(super) mod tally;

use std::collections::BTreeMap;
use std::time::Duration;

pub(super) use gate::Gate;

use arrivals::{Source, Stream};
use gate::{SHUNNED, Taken};
use service::{ServiceTime, Work};
use tally::{Refusal, Tallies};

use super::rng::Rng;
use super::world::{Due, START, World};
use crate::decision::admit::Ticket;
use crate::types::{Generation, InstanceId, InstanceTypeName, Timestamp, VariantKey};

/// Who asks, and what their requests take.
#[derive(Debug, Clone)]
pub(super) struct TrafficSetup {
    pub(super) sources: Vec<Source>,
    pub(super) service: ServiceTime,
    /// For single types; `service` where there is no entry.
    pub(super) service_of: BTreeMap<InstanceTypeName, ServiceTime>,
}

/// Every request that has come and is not done.
#[derive(Debug)]
pub(super) struct Traffic {
    setup: TrafficSetup,
    streams: Vec<Stream>,
    /// The next request of each stream.
    coming: Vec<Option<Work>>,
    rng: Rng,
    requests: BTreeMap<u64, Request>,
    next: u64,
    pub(super) tallies: Tallies,
}

#[derive(Debug)]
struct Request {
    variant: VariantKey,
    proxy: usize,
    arrived: Timestamp,
    work: Work,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waits(Ticket),
    Runs { instance: InstanceId, generation: Generation, since: Timestamp },
}

/// Told apart from every other use of a seed.
const STREAM: u64 = 0xa771_7a15_0000_0000;

impl Traffic {
    /// The clients of `setup` before the first has asked.
    pub(super) fn new(setup: TrafficSetup, seed: u64) -> Self {
        let streams: Vec<Stream> = (1_u64..)
            .zip(&setup.sources)
            .map(|(number, source)| {
                let seed = Rng::new(seed ^ STREAM.wrapping_mul(number)).next();
                Stream::new(source.clone(), Rng::new(seed))
            })
            .collect();
        Self {
            coming: streams.iter().map(|_| None).collect(),
            streams,
            setup,
            rng: Rng::new(Rng::new(seed ^ STREAM).next()),
            requests: BTreeMap::new(),
            next: 0,
            tallies: Tallies::default(),
        }
    }

    /// Streams that there are.
    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Requests that wait or run.
    pub(super) fn open(&self) -> u64 {
        self.requests.len() as u64
    }

    fn service_of(&self, kind: &InstanceTypeName) -> ServiceTime {
        self.setup.service_of.get(kind).copied().unwrap_or(self.setup.service)
    }
}

impl World {
    /// A request of a stream comes, if one is due, and the next one is entered.
    pub(super) fn client_asks(&mut self, stream: usize) {
        if let Some(work) = self.traffic.coming[stream].take() {
            self.ask(stream, work);
        }
        if let Some((after, work)) = self.traffic.streams[stream].next() {
            self.traffic.coming[stream] = Some(work);
            self.agenda.enter(START + after, Due::ClientAsks { stream });
        }
    }

    fn ask(&mut self, stream: usize, work: Work) {
        let endpoint = self.traffic.streams[stream].endpoint().clone();
        let up = (0..self.proxies.len()).filter(|p| {
            let proxy = &self.proxies[*p];
            proxy.up && !proxy.leaving
        });
        let up: Vec<usize> = up.collect();
        let proxy = self.traffic.rng.pick(&up).copied();
        let draw = self.traffic.rng.next();
        let to = proxy.and_then(|p| Some((p, self.proxies[p].gate.variant(&endpoint, draw)?)));
        let Some((proxy, variant)) = to else {
            let variant = self.fleet.variants().find(|(e, _)| e.name == endpoint);
            if let Some((_, variant)) = variant {
                let key = VariantKey { endpoint, variant: variant.name.clone() };
                let tally = self.traffic.tallies.of(&key);
                tally.asked();
                tally.refused(Refusal::NoInstance);
            }
            return;
        };
        self.traffic.tallies.of(&variant).asked();
        self.asked.insert(variant.clone(), (self.now, proxy));
        let draw = self.traffic.rng.next();
        let (now, cloud) = (self.now, &self.cloud);
        let Some(lane) = self.proxies[proxy].gate.lane(&variant) else { return };
        lane.arrives();
        let serves = |id: &InstanceId| cloud.machines().get(id).is_some_and(|m| m.serves(now));
        // Nobody overtakes those who wait.
        let (taken, shunned) =
            if lane.queued() > 0 { (None, false) } else { lane.take(now, draw, serves) };
        self.traffic.next += 1;
        let number = self.traffic.next;
        if let Some(taken) = taken {
            let request = Request::new(variant, proxy, now, work, &taken);
            self.serve(number, request, &taken);
        } else if let Ok(ticket) = lane.wait(number) {
            let (limit, first) = (lane.queue_timeout, lane.queued() == 1);
            let stage = Stage::Waits(ticket);
            self.traffic
                .requests
                .insert(number, Request { variant, proxy, arrived: now, work, stage });
            self.agenda.enter(now + limit, Due::ClientGivesUp { request: number });
            if first {
                self.report(proxy);
            }
        } else {
            self.traffic.tallies.of(&variant).refused(Refusal::QueueFull);
        }
        if shunned {
            self.agenda.enter(now + SHUNNED, Due::SlotsFree { proxy });
        }
    }

    /// A request has its slot and runs.
    fn serve(&mut self, number: u64, request: Request, taken: &Taken) {
        let lasts = self.traffic.service_of(&taken.kind).of(request.work, taken.load);
        self.traffic.tallies.of(&request.variant).served(self.now.since(request.arrived));
        self.traffic.requests.insert(number, request);
        self.agenda.enter(self.now + lasts, Due::RequestEnds { request: number });
    }

    /// A request's answer is complete, unless it was lost before.
    pub(super) fn request_ends(&mut self, number: u64) {
        let Some(request) = self.traffic.requests.remove(&number) else { return };
        let Stage::Runs { generation, since, .. } = request.stage else { return };
        self.traffic.tallies.of(&request.variant).answered();
        if let Some(lane) = self.proxies[request.proxy].gate.lane(&request.variant) {
            lane.finish(generation, self.now.since(since));
        }
        self.fill(request.proxy, &request.variant);
        self.let_go(request.proxy);
    }

    /// A client has waited for as long as the queue lets it.
    pub(super) fn client_gives_up(&mut self, number: u64) {
        let Some(request) = self.traffic.requests.get(&number) else { return };
        let Stage::Waits(ticket) = request.stage else { return };
        let (proxy, variant) = (request.proxy, request.variant.clone());
        self.traffic.requests.remove(&number);
        self.traffic.tallies.of(&variant).refused(Refusal::QueueTimeout);
        if let Some(lane) = self.proxies[proxy].gate.lane(&variant) {
            lane.give_up(ticket);
        }
    }

    /// Whoever waits at a proxy and can go now goes.
    pub(super) fn fill_all(&mut self, proxy: usize) {
        for variant in self.proxies[proxy].gate.waiting() {
            self.fill(proxy, &variant);
        }
    }

    fn fill(&mut self, proxy: usize, variant: &VariantKey) {
        let now = self.now;
        loop {
            let cloud = &self.cloud;
            let Some(lane) = self.proxies[proxy].gate.lane(variant) else { return };
            if lane.queued() == 0 {
                return;
            }
            let serves = |id: &InstanceId| cloud.machines().get(id).is_some_and(|m| m.serves(now));
            let (taken, shunned) = lane.take(now, self.traffic.rng.next(), serves);
            let number = taken.as_ref().and_then(|_| lane.pop(now));
            if shunned {
                self.agenda.enter(now + SHUNNED, Due::SlotsFree { proxy });
            }
            let (Some(taken), Some(number)) = (taken, number) else { return };
            let Some(request) = self.traffic.requests.remove(&number) else { return };
            let request = Request { stage: Stage::runs(now, &taken), ..request };
            self.serve(number, request, &taken);
        }
    }

    /// Every request at an instance is lost.
    pub(super) fn lose_requests(&mut self, instance: &InstanceId) {
        let at = |request: &Request| matches!(&request.stage, Stage::Runs { instance: there, .. } if there == instance);
        let lost: Vec<u64> = self
            .traffic
            .requests
            .iter()
            .filter(|(_, request)| at(request))
            .map(|(number, _)| *number)
            .collect();
        for number in lost {
            if let Some(request) = self.traffic.requests.remove(&number) {
                self.traffic.tallies.of(&request.variant).lost();
            }
        }
        for proxy in &mut self.proxies {
            proxy.gate.fail(instance);
        }
    }
}

impl Request {
    fn new(variant: VariantKey, proxy: usize, now: Timestamp, work: Work, taken: &Taken) -> Self {
        Self { variant, proxy, arrived: now, work, stage: Stage::runs(now, taken) }
    }
}

impl Stage {
    fn runs(since: Timestamp, taken: &Taken) -> Self {
        Self::Runs { instance: taken.instance.clone(), generation: taken.generation, since }
    }
}

impl Default for TrafficSetup {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        let service = ServiceTime { mean: second, mean_full: second, sigma: 0.0 };
        Self { sources: Vec::new(), service, service_of: BTreeMap::new() }
    }
}
