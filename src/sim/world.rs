//! The simulated world: one clock, one agenda, and everything that lives by them. [`World::advance`] is
//! the loop; [`super::driver`] is the manager's side of it, [`super::happen`] what the script does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::cloud::Cloud;
use super::driver::{Call, Manager};
use super::probing::ProbeCall;
use super::proxies::{Proxy, Sent};
use super::rng::Rng;
use super::setup::{Happening, Setup};
use super::store::DurableState;
use super::trace::Trace;
use super::traffic::Traffic;
use super::usage::Usage;
use crate::decision::agenda::Agenda;
use crate::decision::controller::Event;
use crate::types::spec::FleetSpec;
use crate::types::table::RoutingTable;
use crate::types::{InstanceId, ProxyId, Timestamp, VariantKey};

/// When every simulation starts: at midnight (UTC, of 2025-01-01), so that the times of day in reasons
/// are times since the start.
pub(super) const START: Timestamp = Timestamp(1_735_689_600_000);

/// Turns without the clock moving on before the manager is said to spin. What clients do is none of its turns: as
/// many of them as will ask in the same millisecond.
const SPIN_LIMIT: u32 = 2_000;

/// All there is.
pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) rng: Rng,
    pub(super) agenda: Agenda<Due>,
    pub(super) setup: Setup,
    /// The config as the operator last wrote it.
    pub(super) fleet: Arc<FleetSpec>,
    pub(super) cloud: Cloud,
    pub(super) store: DurableState,
    pub(super) manager: Option<Manager>,
    /// Managers so far.
    pub(super) lives: u64,
    pub(super) proxies: Vec<Proxy>,
    /// The last table that the living manager published.
    pub(super) published: Option<Arc<RoutingTable>>,
    /// Actions until the manager dies, and for how long.
    pub(super) crash: Option<(u32, Duration)>,
    /// When each variant was last asked for, and at which proxy.
    pub(super) asked: BTreeMap<VariantKey, (Timestamp, usize)>,
    /// Variants that had an instance come into service since the set was last emptied.
    pub(super) served: BTreeSet<VariantKey>,
    /// The operator's command is being carried out.
    pub(super) commanding: bool,
    /// Nothing may change any more.
    pub(super) frozen: bool,
    /// The first thing that went wrong.
    pub(super) fault: Option<String>,
    pub(super) trace: Trace,
    pub(super) tally: Tally,
    pub(super) traffic: Traffic,
    /// Randomness of what providers take away by themselves, apart from all else.
    pub(super) spot_rng: Rng,
    /// Who served for how long, where a report is wanted.
    pub(super) usage: Option<Usage>,
}

/// Counts for the outcome.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) actions: u64,
    pub(super) crashes: u64,
    pub(super) requests: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
    pub(super) waited: u64,
}

/// One entry of the agenda.
#[derive(Debug)]
pub(super) enum Due {
    /// A manager starts.
    Boot,
    /// A call reaches whom it is for.
    Carry(Box<Call>),
    /// An answer reaches the manager that asked.
    Answer { life: u64, event: Box<Event> },
    /// Probes reach their instances.
    Probe(ProbeCall),
    /// An answer to probes reaches the manager that asked.
    Probed { call: ProbeCall, result: Result<(), String> },
    /// A report reaches the manager, whichever it is.
    Report { proxy: usize, event: Box<Event> },
    /// A table reaches a proxy.
    Table { proxy: usize, table: Arc<RoutingTable> },
    /// A proxy reports.
    ReportTurn { proxy: usize },
    /// Clients send requests to a proxy.
    BurstTurn { proxy: usize },
    /// A burst has been served.
    BurstEnds { proxy: usize, number: u64 },
    /// Requests have waited for too long.
    TimesOut { proxy: usize, variant: VariantKey, requests: u32 },
    /// An instance runs no more.
    MachineEnds { instance: InstanceId, reason: &'static str },
    /// A proxy is back.
    ProxyUp { proxy: usize, renamed: bool },
    /// A request of a stream comes, or the first of it is to be entered.
    ClientAsks { stream: usize },
    /// A request's answer is complete.
    RequestEnds { request: u64 },
    /// A request has waited for as long as it may.
    ClientGivesUp { request: u64 },
    /// Slots that could not be had at a proxy may be free again.
    SlotsFree { proxy: usize },
    /// A provider takes an instance away that it only lent.
    Reclaimed { instance: InstanceId },
    /// A line of the script.
    Happens(Box<Happening>),
}

impl Due {
    /// Whether a client is the cause, or a slot for one.
    fn is_of_clients(&self) -> bool {
        matches!(
            self,
            Self::ClientAsks { .. }
                | Self::RequestEnds { .. }
                | Self::ClientGivesUp { .. }
                | Self::SlotsFree { .. }
        )
    }
}

impl World {
    /// A world at its start; nothing has happened yet.
    pub(super) fn new(setup: Setup, seed: u64, trace: Trace) -> Self {
        let mut world = Self {
            now: START,
            rng: Rng::new(seed),
            agenda: Agenda::default(),
            fleet: Arc::clone(&setup.fleet),
            cloud: Cloud::new(setup.cloud.clone()),
            store: DurableState::default(),
            manager: None,
            lives: 0,
            proxies: Vec::new(),
            published: None,
            crash: None,
            asked: BTreeMap::new(),
            served: BTreeSet::new(),
            commanding: false,
            frozen: false,
            fault: None,
            trace,
            tally: Tally::default(),
            traffic: Traffic::new(setup.traffic.clone(), seed),
            spot_rng: Rng::new(seed ^ 0x5b07_0000_0000_0000),
            usage: None,
            setup,
        };
        world.agenda.enter(START, Due::Boot);
        for _ in 0..world.setup.proxies {
            world.add_proxy();
        }
        for (after, happening) in world.setup.script.clone() {
            world.agenda.enter(START + after, Due::Happens(Box::new(happening)));
        }
        for stream in 0..world.traffic.streams() {
            world.agenda.enter(START, Due::ClientAsks { stream });
        }
        world
    }

    /// Lets time pass until `until`, or until something goes wrong.
    pub(super) fn advance(&mut self, until: Timestamp) {
        let mut spins = 0;
        while self.fault.is_none() {
            let timeout = self.manager.as_ref().and_then(|m| m.controller.poll_timeout());
            let due = self.agenda.next_at();
            let Some(next) = due.into_iter().chain(timeout).min().filter(|at| *at <= until) else {
                break;
            };
            if next > self.now {
                spins = 0;
            }
            if spins > SPIN_LIMIT {
                self.blame(format!("the manager spins: its next timeout is {timeout:?}"));
                break;
            }
            self.now = self.now.max(next);
            self.tally.steps += 1;
            if due.is_some_and(|at| at <= next) {
                if let Some((_, due)) = self.agenda.take() {
                    spins += u32::from(!due.is_of_clients());
                    self.dispatch(due);
                }
            } else {
                spins += 1;
                self.manager_timeout();
            }
        }
        self.now = self.now.max(until);
    }

    /// Notes what went wrong, if it is the first thing.
    pub(super) fn blame(&mut self, what: String) {
        self.note(|| format!("WRONG: {what}"));
        self.fault.get_or_insert(what);
    }

    /// Writes a line of the transcript, if one is kept.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        self.trace.note(self.now, line);
    }

    fn dispatch(&mut self, due: Due) {
        match due {
            Due::Boot => self.boot(),
            Due::Carry(call) => self.carry_out(*call),
            Due::Answer { life, event } => {
                if self.lives(life) {
                    self.tell(*event);
                }
            }
            Due::Probe(call) => self.answer_probes(call),
            Due::Probed { call, result } => self.probed(call, result),
            Due::Report { proxy, event } => {
                if let Some(manager) = &self.manager {
                    self.proxies[proxy].heard = Some(manager.life);
                }
                self.tell(*event);
            }
            Due::Table { proxy, table } => self.deliver(proxy, &table),
            Due::ReportTurn { proxy } => {
                self.check_overdue();
                self.report(proxy);
                let next = self.now + self.setup.report_every;
                if !self.gone(proxy) {
                    self.agenda.enter(next, Due::ReportTurn { proxy });
                }
            }
            Due::BurstTurn { proxy } => self.burst(proxy),
            Due::BurstEnds { proxy, number } => {
                self.proxies[proxy].finish(number);
                self.let_go(proxy);
            }
            Due::TimesOut { proxy, variant, requests } => {
                self.proxies[proxy].time_out(&variant, requests);
            }
            Due::MachineEnds { instance, reason } => self.machine_ends(&instance, reason),
            Due::ProxyUp { proxy, renamed } => self.proxy_up(proxy, renamed),
            Due::ClientAsks { stream } => self.client_asks(stream),
            Due::RequestEnds { request } => self.request_ends(request),
            Due::ClientGivesUp { request } => self.client_gives_up(request),
            Due::SlotsFree { proxy } => self.fill_all(proxy),
            Due::Reclaimed { instance } => self.reclaim(instance),
            Due::Happens(happening) => self.happen(*happening),
        }
    }

    /// Starts a further proxy; it is told the present table, if there is a manager to tell it.
    pub(super) fn add_proxy(&mut self) {
        let proxy = self.proxies.len();
        if let Ok(id) = ProxyId::new(format!("proxy-{proxy}")) {
            self.proxies.push(Proxy::new(id));
            self.agenda.enter(self.now, Due::ReportTurn { proxy });
            self.agenda.enter(self.now, Due::BurstTurn { proxy });
            self.connect(proxy);
        }
    }

    /// Hands a proxy the table that is published, as if it had just asked.
    pub(super) fn connect(&mut self, proxy: usize) {
        if let Some(table) = self.published.clone() {
            let at = self.now + self.rng.span(self.setup.message);
            self.agenda.enter(at, Due::Table { proxy, table });
        }
    }

    pub(super) fn silent(&self, proxy: usize) -> bool {
        self.proxies[proxy].silent_until > self.now
    }

    /// Whether a proxy has left for good.
    pub(super) fn gone(&self, proxy: usize) -> bool {
        self.proxies[proxy].leaving && !self.proxies[proxy].up
    }

    fn deliver(&mut self, proxy: usize, table: &Arc<RoutingTable>) {
        if !self.proxies[proxy].up || self.silent(proxy) {
            return;
        }
        let newer = self.proxies[proxy].apply(table);
        if newer && self.traffic.streams() > 0 {
            self.proxies[proxy].gate.apply(self.now, table);
            self.fill_all(proxy);
        }
        let sent = self.proxies[proxy].release(&mut self.rng);
        for (number, instance) in sent {
            self.track(proxy, number, &instance);
        }
        self.report(proxy);
    }

    /// Sends a proxy's picture of this moment.
    pub(super) fn report(&mut self, proxy: usize) {
        if !self.proxies[proxy].up || self.silent(proxy) {
            return;
        }
        let event = Box::new(Event::Reported(self.proxies[proxy].report()));
        let at = self.now + self.rng.span(self.setup.message);
        self.agenda.enter(at, Due::Report { proxy, event });
    }

    fn burst(&mut self, proxy: usize) {
        let load = self.setup.load;
        if self.gone(proxy) {
            return;
        }
        let next = self.now + self.rng.span(load.every);
        self.agenda.enter(next, Due::BurstTurn { proxy });
        if load.burst == 0 || !self.proxies[proxy].up || self.proxies[proxy].leaving {
            return;
        }
        let variants = self.proxies[proxy].variants();
        let Some(variant) = self.rng.pick(&variants) else { return };
        let requests = self.rng.between(1, load.burst);
        self.request(proxy, variant, requests);
    }

    /// Clients send `requests` for `variant` to a proxy.
    pub(super) fn request(&mut self, proxy: usize, variant: &VariantKey, requests: u32) {
        self.tally.requests += u64::from(requests);
        self.asked.insert(variant.clone(), (self.now, proxy));
        match self.proxies[proxy].send(variant, requests, &mut self.rng) {
            Sent::To(number, instance) => self.track(proxy, number, &instance),
            Sent::Waits(limit) => {
                let (variant, at) = (variant.clone(), self.now + limit);
                self.note(|| format!("proxy {proxy}: {requests} requests wait for {variant}"));
                self.agenda.enter(at, Due::TimesOut { proxy, variant, requests });
                self.tally.waited += u64::from(requests);
                self.report(proxy);
            }
            Sent::Refused => self.tally.refused += u64::from(requests),
        }
    }

    /// Follows a burst to its end: at once where nobody serves, after its service time otherwise.
    fn track(&mut self, proxy: usize, number: u64, instance: &InstanceId) {
        let serves = self.cloud.machines().get(instance).is_some_and(|m| m.serves(self.now));
        if serves {
            let at = self.now + self.rng.span(self.setup.load.service);
            self.agenda.enter(at, Due::BurstEnds { proxy, number });
        } else {
            self.proxies[proxy].finish(number);
            self.tally.lost += 1;
        }
    }

    /// A leaving proxy goes with its last request.
    pub(super) fn let_go(&mut self, proxy: usize) {
        if self.proxies[proxy].up
            && self.proxies[proxy].leaving
            && self.proxies[proxy].outstanding() == 0
        {
            self.report(proxy);
            self.proxies[proxy].die();
            self.note(|| format!("proxy {proxy} has left"));
        }
    }

    fn proxy_up(&mut self, proxy: usize, renamed: bool) {
        let number = self.tally.steps;
        let renamed = renamed.then(|| ProxyId::new(format!("proxy-{proxy}-{number}")).ok());
        self.proxies[proxy].up = true;
        if let Some(id) = renamed.flatten() {
            self.proxies[proxy].id = id;
        }
        self.note(|| format!("proxy {proxy} is back"));
        self.report(proxy);
        self.connect(proxy);
    }

    /// An instance runs no more, and what it served has failed.
    pub(super) fn machine_ends(&mut self, instance: &InstanceId, reason: &'static str) {
        self.cloud.end(self.now, instance, reason, &mut self.rng);
        self.fail_requests(instance);
        self.note(|| format!("{instance} has ended: {reason}"));
    }

    /// Every request at an instance fails.
    pub(super) fn fail_requests(&mut self, instance: &InstanceId) {
        self.lose_requests(instance);
        for proxy in 0..self.proxies.len() {
            self.tally.lost += u64::from(self.proxies[proxy].fail(instance));
            self.let_go(proxy);
        }
    }
}
