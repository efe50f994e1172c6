//! Health probes: what is asked, what the answers mean, those of a single instance (while it starts, and when a proxy
//! could not reach it), and the clocks of an instance that starts. Those in service are asked in [`super::sweeps`].

use std::time::Duration;

use crate::types::report::BackendReport;
use crate::types::{InstanceId, InstanceState, ProxyId, Timestamp};

use super::events::{EventKind, Leave, Span};
use super::fleet::{Instance, Probing, Slot};
use super::listed::FORCED_DRAIN;
use super::machine::{Next, Trigger, next};
use super::{Action, Controller, PROXY_LEASE, Probe, QUICK_DEATH};

/// A probe's answer may come this much later than its own time limit before it is given up.
const PROBE_SLACK: Duration = Duration::from_secs(2);
/// News from a proxy brings the next probe forward, but not closer than this to the last.
const PROBE_LEAST: Duration = Duration::from_millis(500);
/// The longest piece of a failed probe's words that is kept.
const WORDS: usize = 300;

impl Controller {
    /// An instance's timer has come: looks at whatever it may be about.
    pub(super) fn instance_due(&mut self, now: Timestamp, slot: Slot) {
        let Some(instance) = self.fleet.in_slot(slot) else { return };
        self.touched.push(slot);
        let id = || instance.record.id.clone();
        match instance.state() {
            InstanceState::Pending => self.launch_due(now, &id()),
            InstanceState::Starting => {
                if !self.give_up_starting(now, &id()) {
                    self.probe_due(now, slot);
                }
            }
            InstanceState::InService => self.probe_due(now, slot),
            InstanceState::Draining => self.check_drain(now, &id()),
            InstanceState::Stopping => self.stop_due(now, &id()),
        }
    }

    fn give_up_starting(&mut self, now: Timestamp, id: &InstanceId) -> bool {
        let Some(instance) = self.fleet.get(id) else { return false };
        let Some(spec) = &instance.spec else { return false };
        let granted = instance.record.granted_at.unwrap_or(now);
        if now < granted + instance.startup_allowance() {
            return false;
        }
        let (startup, download) = (Span(spec.startup_timeout), Span(spec.model_download_timeout));
        let record = instance.record.clone();
        let (kind, took) = (&record.instance_type, Span(now.since(granted)));
        let set = !spec.model_download_timeout.is_zero();
        let (event, reason) = if instance.runs() {
            let last = instance.complaint.as_deref().unwrap_or("no answer yet");
            let clocks = if set {
                format!("model_download_timeout {download} + startup_timeout {startup}")
            } else {
                format!("startup_timeout {startup}")
            };
            let reason =
                format!("{kind} ran but was not healthy {took} after its grant ({clocks}): {last}");
            (EventKind::StartupTimeout, reason)
        } else {
            let clock = if set {
                format!("model_download_timeout {download}")
            } else {
                format!("startup_timeout {startup}")
            };
            let reason = format!("{kind} did not run {took} after its grant ({clock})");
            (EventKind::DownloadTimeout, reason)
        };
        let leave = Leave::new(event, reason.clone());
        self.apply(now, id, Trigger::TimedOut, Some(&leave));
        self.fail_pool(now, event, &record, &reason);
        true
    }

    /// One that is asked by itself is due, or what it was asked has no answer.
    fn probe_due(&mut self, now: Timestamp, slot: Slot) {
        self.give_up_probe(now, slot);
        let Some(instance) = self.fleet.in_slot(slot) else { return };
        let due = instance.probe.next_at.is_some_and(|at| at <= now);
        let Some(probe) = self.question(instance).filter(|_| due) else { return };
        let Some(instance) = self.fleet.in_slot_mut(slot) else { return };
        instance.probe.next_at = None;
        if instance.probe.asked(now) {
            self.after.push(Action::Probe([probe].into()));
        }
    }

    /// What an instance is asked for its health, once it is known where.
    pub(super) fn question(&self, instance: &Instance) -> Option<Probe> {
        let record = &instance.record;
        let health = &instance.spec.as_ref()?.health;
        let (protocol, tls) =
            self.protocols.get(&record.instance_type).cloned().unwrap_or_default();
        Some(Probe {
            instance: record.id.clone(),
            generation: record.generation,
            address: record.address.clone()?,
            protocol,
            tls,
            check: health.check.clone(),
            timeout: health.timeout,
            slot: instance.slot,
        })
    }

    /// What was asked for so long ago that no answer will come counts as failed.
    pub(super) fn give_up_probe(&mut self, now: Timestamp, slot: Slot) {
        let instance = self.fleet.in_slot_mut(slot);
        let is_late = |instance: &Instance| instance.unanswered_at().is_some_and(|at| at <= now);
        if let Some(instance) = instance.filter(|instance| is_late(instance)) {
            instance.probe.in_flight = false;
            self.judge_probe(now, slot, &Err("the probe was never answered".to_owned()));
        }
    }

    /// Takes in an answer. Nearly all are good news of instances of which nothing else was known.
    pub(super) fn probed(&mut self, now: Timestamp, probes: &[Probe], result: &Result<(), String>) {
        for probe in probes {
            let Some(instance) = self.fleet.in_slot_mut(probe.slot) else { continue };
            let asked = instance.generation() == probe.generation
                && std::mem::take(&mut instance.probe.in_flight);
            let known =
                instance.state() == InstanceState::InService && instance.probe.failures == 0;
            if asked && !(known && result.is_ok()) {
                self.judge_probe(now, probe.slot, result);
            }
        }
    }

    /// What a probe has found of an instance.
    fn judge_probe(&mut self, now: Timestamp, slot: Slot, result: &Result<(), String>) {
        let Some(instance) = self.fleet.in_slot_mut(slot) else { return };
        self.touched.push(slot);
        let healthy = result.is_ok();
        let before = instance.probe.failures;
        match result {
            Ok(()) => {
                instance.probe.failures = 0;
                instance.complaint = None;
            }
            Err(words) => {
                instance.probe.failures = before.saturating_add(1);
                instance.complaint = Some(words.chars().take(WORDS).collect());
            }
        }
        let serves = instance.state() == InstanceState::InService;
        if healthy && before > 0 && serves {
            instance.probe.recoveries = instance.probe.recoveries.saturating_add(1);
            self.stale_routes.insert(instance.record.variant.endpoint.clone());
        }
        let news = !healthy || next(instance.state(), Trigger::Healthy) != Next::Stay;
        if let Some(id) = news.then(|| instance.record.id.clone()) {
            if healthy {
                self.apply(now, &id, Trigger::Healthy, None);
            } else {
                self.judge_failure(now, &id);
            }
        }
        self.schedule_probe(now, slot);
    }

    fn judge_failure(&mut self, now: Timestamp, id: &InstanceId) {
        let Some(instance) = self.fleet.get(id) else { return };
        let Some(spec) = &instance.spec else { return };
        let failures = instance.probe.failures;
        if instance.state() != InstanceState::InService
            || failures < spec.health.unhealthy_threshold
        {
            return;
        }
        let spell = (spec.health.interval + spec.health.timeout) * spec.health.unhealthy_threshold;
        if instance.worked_at.is_some_and(|at| now.since(at) < spell) {
            // Busy, not dead: too busy for probes, but requests go on.
            return;
        }
        let last = instance.complaint.clone().unwrap_or_default();
        self.replace_unhealthy(
            now,
            id,
            &format!("{failures} probes failed in a row, the last: {last}"),
        );
    }

    fn replace_unhealthy(&mut self, now: Timestamp, id: &InstanceId, because: &str) {
        let Some(instance) = self.fleet.get(id) else { return };
        let record = instance.record.clone();
        let leave = Leave::new(EventKind::Unhealthy, because).within(FORCED_DRAIN);
        self.apply(now, id, Trigger::Unhealthy, Some(&leave));
        if now.since(record.in_service_at.unwrap_or(now)) < QUICK_DEATH {
            self.fail_pool(now, EventKind::Unhealthy, &record, because);
        }
    }

    /// Takes in which instances a proxy sees at work, and which hang: those hold requests and send
    /// nothing, whatever their probes say.
    pub(super) fn note_work(
        &mut self,
        now: Timestamp,
        proxy: &ProxyId,
        known: &[(Slot, &BackendReport)],
    ) {
        for (slot, backend) in known.iter().filter(|(_, b)| b.progressed || b.stalled) {
            let Some(instance) = self.fleet.in_slot_mut(*slot) else { continue };
            if backend.progressed {
                instance.worked_at = Some(now);
            }
            // Another proxy may see it work.
            let idle = instance.worked_at.is_none_or(|at| now.since(at) >= PROXY_LEASE);
            if backend.stalled && idle && instance.state() == InstanceState::InService {
                let because = format!(
                    "it hangs: {} requests of proxy {} wait and it has sent nothing for stall_timeout",
                    backend.outstanding, proxy
                );
                self.replace_unhealthy(now, &backend.instance, &because);
            }
        }
    }

    fn schedule_probe(&mut self, now: Timestamp, slot: Slot) {
        let Some(instance) = self.fleet.in_slot_mut(slot) else { return };
        let Some(spec) = &instance.spec else { return };
        // One in service has its turn with its sweep.
        instance.probe.next_at = (instance.state() == InstanceState::Starting).then(|| {
            let interval = self.jitter.around(spec.health.startup_interval);
            now + interval.max(Duration::from_millis(1))
        });
    }

    /// A proxy could not reach it: probes and lists soon instead of when they are due.
    pub(super) fn suspect(&mut self, now: Timestamp, id: &InstanceId) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        // What is asked just now tells as much.
        if !instance.probe.in_flight {
            let soon = (instance.probe.sent_at + PROBE_LEAST).max(now);
            instance.probe.next_at = Some(instance.probe.next_at.map_or(soon, |at| at.min(soon)));
        }
        let provider = instance.record.provider.clone();
        self.touched.push(instance.slot);
        self.hasten_list(now, &provider);
    }
}

impl Instance {
    /// When a probe of it is due that is not one of its sweep.
    pub(super) fn probe_due(&self) -> Option<Timestamp> {
        // It can be asked where it is known to be.
        let next_at = self.probe.next_at.filter(|_| self.record.address.is_some());
        match self.state() {
            InstanceState::Starting => self.unanswered_at().or(next_at),
            _ => next_at,
        }
    }

    /// When the probe that is out, if one is, counts as one that is never answered.
    pub(super) fn unanswered_at(&self) -> Option<Timestamp> {
        let spec = self.spec.as_ref().filter(|_| self.probe.in_flight)?;
        Some(self.probe.sent_at + spec.health.timeout + PROBE_SLACK)
    }
}

impl Probing {
    /// A probe is sent, unless one is out. Returns whether it is.
    pub(super) fn asked(&mut self, now: Timestamp) -> bool {
        let free = !std::mem::replace(&mut self.in_flight, true);
        if free {
            self.sent_at = now;
        }
        free
    }
}
