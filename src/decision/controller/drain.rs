//! Proxies and the way out: whose reports count, when a draining instance may be stopped, and the
//! termination that is repeated until the provider's list no longer shows it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::decision::plan::backoff::backoff;
use crate::types::record::ProxyRecord;
use crate::types::report::{DemandReport, ProxyReport};
use crate::types::table::TableVersion;
use crate::types::{
    Generation, InstanceId, InstanceState, ProviderError, ProxyId, Timestamp, VariantKey,
};

use super::events::{EventKind, Leave, Span};
use super::fleet::{Launch, NEVER, Slot};
use super::machine::Trigger;
use super::timers::Waiter;
use super::variant::Variant;
use super::{Action, Controller, PROXY_LEASE, PROXY_MEMORY, RECONNECT_GRACE};

/// Proxies that are followed at once.
const PROXIES_MAX: usize = 1_024;
/// A report that comes at the very end of the lease still counts.
const AT_LAST: Duration = Duration::from_millis(1);
/// A termination that was never answered is repeated after this long.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
const STOP_RETRY_BASE: Duration = Duration::from_secs(1);
const STOP_RETRY_CAP: Duration = Duration::from_secs(60);
/// One that was accepted is repeated if the list still shows the instance after this long.
const STOP_AGAIN_BASE: Duration = Duration::from_secs(30);
const STOP_AGAIN_CAP: Duration = Duration::from_secs(300);

/// A proxy's last report, as far as it is needed.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) first_heard_at: Timestamp,
    /// Its last report, or this manager's start if that has heard none of it yet.
    pub(super) reported_at: Timestamp,
    /// This manager has heard it, and lately.
    pub(super) live: bool,
    pub(super) run: u64,
    pub(super) applied: TableVersion,
    /// What it has at each instance that there is and that it told of, in the order of their starts.
    pub(super) held: Vec<Held>,
    /// What it last told of each variant that there is, in order: requests waiting and running, and what its
    /// requests took since it started.
    told: Vec<DemandReport>,
    /// Its successor has its clients, and it ends by then.
    pub(super) draining_until: Option<Timestamp>,
}

impl Proxy {
    /// One that an earlier manager heard: until it reports it may route by any table.
    pub(super) fn restored(now: Timestamp, record: &ProxyRecord) -> Self {
        Self {
            first_heard_at: record.heard_at,
            reported_at: now,
            live: false,
            run: 0,
            applied: TableVersion::default(),
            held: Vec::new(),
            told: Vec::new(),
            draining_until: None,
        }
    }

    /// What it has at a start of an instance, if it told of it.
    fn held_at(&self, generation: Generation) -> Option<&Held> {
        let at = self.held.binary_search_by_key(&generation, |held| held.generation).ok()?;
        self.held.get(at)
    }

    /// An instance is gone.
    pub(super) fn forget(&mut self, generation: Generation) {
        self.held.retain(|held| held.generation != generation);
    }

    /// Requests waiting and running for a variant: nothing is known of a silent one's.
    pub(super) fn demand(&self, variant: &VariantKey) -> Option<(u32, u32)> {
        let told = told_of(&self.told, variant).filter(|_| self.live)?;
        Some((told.queued, told.outstanding))
    }
}

/// What a proxy has at an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) generation: Generation,
    /// Where the instance is kept.
    pub(super) slot: Slot,
    /// Requests at it.
    pub(super) requests: u32,
    /// Connections that it has broken so far.
    broken: u64,
}

/// What was told of a variant.
pub(super) fn told_of<'a>(
    told: &'a [DemandReport],
    variant: &VariantKey,
) -> Option<&'a DemandReport> {
    let at = told.binary_search_by(|demand| demand.variant.cmp(variant)).ok()?;
    told.get(at)
}

/// What was told of variants, in order, beside each of them.
pub(super) fn in_step<'t, 'v>(
    told: &'t [DemandReport],
    variants: &'v mut BTreeMap<VariantKey, Variant>,
) -> impl Iterator<Item = (&'t DemandReport, &'v mut Variant)> {
    let mut told = told.iter().peekable();
    variants.iter_mut().filter_map(move |(key, variant)| {
        while told.next_if(|demand| demand.variant < *key).is_some() {}
        Some((told.next_if(|demand| demand.variant == *key)?, variant))
    })
}

impl Controller {
    pub(super) fn reported(&mut self, now: Timestamp, mut report: ProxyReport) {
        let id = report.proxy.clone();
        if report.leaving {
            self.forget_proxy(now, &id);
            return;
        }
        let before = self.proxies.remove(&id);
        if before.is_none() && self.proxies.len() >= PROXIES_MAX && !self.forget_a_silent_proxy(now)
        {
            let message =
                format!("proxy {id} is not followed: {PROXIES_MAX} others report already");
            self.log_global(now, EventKind::TooManyProxies, message);
            return;
        }
        let mut suspects = Vec::new();
        // Those that there are, and where each is kept.
        let mut known = Vec::with_capacity(report.backends.len());
        for backend in &report.backends {
            // Whoever is counted already is there: what is forgotten is counted no more.
            let counted = before.as_ref().and_then(|p| p.held_at(backend.generation));
            let slot = counted.map(|held| held.slot);
            let Some(slot) = slot.or_else(|| self.slot_of(&backend.instance, backend.generation))
            else {
                continue;
            };
            // Whoever was left out of the report before had nothing to tell: no broken connection.
            let same_run = before.as_ref().is_some_and(|p| p.run == report.run);
            let broken = if same_run {
                counted.map_or(0, |held| held.broken)
            } else {
                backend.connect_failures
            };
            if backend.connect_failures > broken && self.serves_as(&backend.instance) {
                suspects.push(backend.instance.clone());
            }
            known.push((slot, backend));
        }
        let held = known.iter().map(|(slot, backend)| Held {
            generation: backend.generation,
            slot: *slot,
            requests: backend.outstanding,
            broken: backend.connect_failures,
        });
        let mut held: Vec<Held> = held.collect();
        held.sort_unstable_by_key(|held| held.generation);
        held.dedup_by_key(|held| held.generation);
        let mut told = std::mem::take(&mut report.variants);
        told.sort_by(|one, other| one.variant.cmp(&other.variant));
        let mut keys = self.variants.keys().peekable();
        told.retain(|demand| {
            while keys.next_if(|key| **key < demand.variant).is_some() {}
            keys.next_if(|key| **key == demand.variant).is_some()
        });
        let lately = before.as_ref().filter(|p| p.live);
        self.note_demand(now, &report, &told, lately.map(|p| p.run));
        if let Some(before) = before.as_ref().filter(|proxy| proxy.run == report.run) {
            self.note_durations(now, &told, &before.told);
        }
        if before.is_none() {
            self.journal.proxies.insert(id.clone());
        }
        let proxy = Proxy {
            first_heard_at: before.map_or(now, |p| p.first_heard_at),
            reported_at: now,
            live: true,
            run: report.run,
            applied: report.applied,
            held,
            told,
            draining_until: report.draining_until,
        };
        self.proxies.insert(id.clone(), proxy);
        self.timers.set(Waiter::Proxy(id), Some(now + PROXY_LEASE + AT_LAST));
        for suspect in suspects {
            self.suspect(now, &suspect);
        }
        self.note_work(now, &report.proxy, &known);
        self.note_loads(now, &known);
        self.check_drains(now);
    }

    /// A proxy's time without a report has run out: at first it is only silent, in the end forgotten.
    pub(super) fn proxy_silent(&mut self, now: Timestamp, id: &ProxyId) {
        let Some(proxy) = self.proxies.get_mut(id) else { return };
        let silence = now.since(proxy.reported_at);
        if silence >= PROXY_MEMORY {
            let message = format!("proxy {id} has been silent for {}: it is dead", Span(silence));
            self.log_global(now, EventKind::ProxyForgotten, message);
            self.forget_proxy(now, id);
            return;
        }
        proxy.live = false;
        for variant in self.variants.values_mut() {
            variant.arrivals.remove(id);
        }
        let forgotten_at = proxy.reported_at + PROXY_MEMORY;
        self.timers.set(Waiter::Proxy(id.clone()), Some(forgotten_at));
        let message = format!(
            "proxy {id} has not reported for {}: it may serve on by its last table, so instances that it may use drain to their deadlines",
            Span(silence)
        );
        self.log_global(now, EventKind::ProxySilent, message);
        self.check_drains(now);
    }

    /// Makes room for one more. Returns whether a proxy was silent.
    fn forget_a_silent_proxy(&mut self, now: Timestamp) -> bool {
        let silent = self.proxies.iter().filter(|(_, p)| !p.live);
        let Some(id) = silent.min_by_key(|(_, p)| p.reported_at).map(|(id, _)| id.clone()) else {
            return false;
        };
        let message = format!(
            "proxy {id} is silent, and {PROXIES_MAX} proxies are followed: it is forgotten"
        );
        self.log_global(now, EventKind::ProxyForgotten, message);
        self.forget_proxy(now, &id);
        true
    }

    /// A proxy is gone, or is taken for gone.
    fn forget_proxy(&mut self, now: Timestamp, id: &ProxyId) {
        if self.proxies.remove(id).is_some() {
            self.journal.proxies.insert(id.clone());
        }
        self.timers.set(Waiter::Proxy(id.clone()), None);
        for variant in self.variants.values_mut() {
            variant.arrivals.remove(id);
        }
        self.check_drains(now);
    }

    /// Requests at an instance, over all proxies.
    pub(super) fn outstanding(&self, generation: Generation) -> u64 {
        let at = |p: &Proxy| p.held_at(generation).map_or(0, |held| u64::from(held.requests));
        self.proxies.values().map(at).sum()
    }

    fn slot_of(&self, id: &InstanceId, generation: Generation) -> Option<Slot> {
        let instance = self.fleet.started_as(generation);
        instance.filter(|instance| instance.record.id == *id).map(|instance| instance.slot)
    }

    fn serves_as(&self, id: &InstanceId) -> bool {
        self.fleet.get(id).is_some_and(|instance| instance.state() == InstanceState::InService)
    }

    pub(super) fn check_drains(&mut self, now: Timestamp) {
        let draining: Vec<_> =
            self.fleet.in_state(InstanceState::Draining).map(|i| i.record.id.clone()).collect();
        for id in draining {
            self.check_drain(now, &id);
        }
    }

    pub(super) fn check_drain(&mut self, now: Timestamp, id: &InstanceId) {
        let Some(instance) = self.fleet.get(id) else { return };
        let record = &instance.record;
        let outstanding = self.outstanding(record.generation);
        if record.drain_deadline.is_some_and(|deadline| deadline <= now) {
            let because = format!("its drain deadline passed with {outstanding} requests at it");
            let leave = Leave::new(EventKind::DrainExpired, because);
            self.apply(now, id, Trigger::DrainExpired, Some(&leave));
            return;
        }
        let Some(out_since) = instance.out_since else { return };
        let confirmed = self.proxies.values().all(|p| p.applied >= out_since);
        if now >= self.started_at + RECONNECT_GRACE && confirmed && outstanding == 0 {
            let because = match self.proxies.len() {
                0 => "there is no proxy that could send it anything".to_owned(),
                n => format!("it is out of the table of all {n} proxies and its requests are done"),
            };
            let leave = Leave::new(EventKind::Drained, because);
            self.apply(now, id, Trigger::Drained, Some(&leave));
        }
    }

    /// Sends a termination that is due.
    pub(super) fn stop_due(&mut self, now: Timestamp, id: &InstanceId) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        if let Launch::InFlight(give_up) = instance.launch {
            // A termination that overtakes its launch would stop nothing.
            if now < give_up {
                return;
            }
            instance.launch = Launch::Answered;
        }
        if instance.stop.next_at > now {
            return;
        }
        instance.stop.next_at = now + STOP_PATIENCE;
        let provider = instance.record.provider.clone();
        self.touched.push(instance.slot);
        self.after.push(Action::Terminate { provider, instance: id.clone() });
    }

    pub(super) fn terminated(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        result: Result<(), ProviderError>,
    ) {
        let draw = self.jitter.draw();
        let Some(instance) = self.fleet.get_mut(id) else { return };
        if instance.state() != InstanceState::Stopping {
            return;
        }
        self.touched.push(instance.slot);
        let attempt = instance.stop.attempts.saturating_add(1);
        instance.stop.attempts = attempt;
        let provider = instance.record.provider.clone();
        match result {
            Ok(()) | Err(ProviderError::NotFound) => {
                instance.stop.next_at =
                    now + backoff(STOP_AGAIN_BASE, STOP_AGAIN_CAP, attempt, draw);
                if instance.provable_from == NEVER {
                    instance.provable_from =
                        self.providers.get(&provider).map_or(0, |p| p.lists) + 1;
                }
                self.hasten_list(now, &provider);
            }
            Err(error) => {
                let wish = match &error {
                    ProviderError::Unavailable { retry_after, .. } => *retry_after,
                    _ => None,
                };
                let wait = backoff(STOP_RETRY_BASE, STOP_RETRY_CAP, attempt, draw);
                instance.stop.next_at = now + wish.unwrap_or(wait).max(wait);
                if attempt == 1 {
                    let key = instance.record.variant.clone();
                    let message =
                        format!("{provider} did not take the termination: {error}; asked again");
                    self.log(now, EventKind::StopFailed, &key, Some(id), message);
                }
            }
        }
    }
}
