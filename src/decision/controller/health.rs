//! Health probes: when they are sent, what their answers mean, and the clocks of an instance that starts.

use std::sync::Arc;
use std::time::Duration;

use crate::types::report::ProxyReport;
use crate::types::tls::WorkerTls;
use crate::types::{Generation, InstanceId, InstanceState, Protocol, Timestamp};

use super::events::{EventKind, Leave, Span};
use super::fleet::{Instance, Slot};
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
            let last = instance.probe.last.as_deref().unwrap_or("no answer yet");
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

    fn probe_due(&mut self, now: Timestamp, slot: Slot) {
        let Some(instance) = self.fleet.in_slot(slot) else { return };
        if instance.probe.in_flight.is_some_and(|give_up| give_up <= now) {
            let generation = instance.generation();
            self.probed(now, slot, generation, Err("the probe was never answered".to_owned()));
        }
        self.send_probe(now, slot);
    }

    fn send_probe(&mut self, now: Timestamp, slot: Slot) {
        let Some(instance) = self.fleet.in_slot_mut(slot) else { return };
        let probes = matches!(instance.state(), InstanceState::Starting | InstanceState::InService);
        if !probes || instance.probe.in_flight.is_some() || instance.probe.next_at > now {
            return;
        }
        if instance.probe.probe.is_none() {
            let protocol = self.protocols.get(&instance.record.instance_type);
            instance.probe.probe = instance.question(protocol.cloned().unwrap_or_default());
        }
        let Some(probe) = instance.probe.probe.clone() else { return };
        instance.probe.in_flight = Some(now + probe.timeout + PROBE_SLACK);
        instance.probe.sent_at = now;
        self.touched.push(slot);
        self.after.push(Action::Probe(probe));
    }

    pub(super) fn probed(
        &mut self,
        now: Timestamp,
        slot: Slot,
        generation: Generation,
        result: Result<(), String>,
    ) {
        let Some(instance) = self.fleet.in_slot_mut(slot) else { return };
        if instance.generation() != generation || instance.probe.in_flight.take().is_none() {
            return;
        }
        self.touched.push(slot);
        let healthy = result.is_ok();
        let before = instance.probe.failures;
        match result {
            Ok(()) => {
                instance.probe.failures = 0;
                instance.probe.last = None;
            }
            Err(words) => {
                instance.probe.failures = before.saturating_add(1);
                instance.probe.last = Some(words.chars().take(WORDS).collect());
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
        let last = instance.probe.last.clone().unwrap_or_default();
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
    pub(super) fn note_work(&mut self, now: Timestamp, report: &ProxyReport) {
        let news = report.backends.iter().filter(|b| b.progressed || b.stalled);
        for backend in news {
            let Some(instance) = self.fleet.get_mut(&backend.instance) else { continue };
            if instance.record.generation != backend.generation {
                continue;
            }
            if backend.progressed {
                instance.worked_at = Some(now);
            }
            // Another proxy may see it work.
            let idle = instance.worked_at.is_none_or(|at| now.since(at) >= PROXY_LEASE);
            if backend.stalled && idle && instance.state() == InstanceState::InService {
                let because = format!(
                    "it hangs: {} requests of proxy {} wait and it has sent nothing for stall_timeout",
                    backend.outstanding, report.proxy
                );
                self.replace_unhealthy(now, &backend.instance, &because);
            }
        }
    }

    fn schedule_probe(&mut self, now: Timestamp, slot: Slot) {
        let Some(instance) = self.fleet.in_slot_mut(slot) else { return };
        let Some(spec) = &instance.spec else { return };
        let interval = match instance.state() {
            InstanceState::Starting => spec.health.startup_interval,
            _ => spec.health.interval,
        };
        instance.probe.next_at = now + self.jitter.around(interval).max(Duration::from_millis(1));
    }

    /// A proxy could not reach it: probes and lists soon instead of when they are due.
    pub(super) fn suspect(&mut self, now: Timestamp, id: &InstanceId) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        let soon = (instance.probe.sent_at + PROBE_LEAST).max(now);
        instance.probe.next_at = instance.probe.next_at.min(soon);
        let provider = instance.record.provider.clone();
        self.touched.push(instance.slot);
        self.hasten_list(now, &provider);
    }
}

impl Instance {
    /// What it is asked for its health, once it is known where.
    fn question(&self, (protocol, tls): (Protocol, Option<Arc<WorkerTls>>)) -> Option<Arc<Probe>> {
        let health = &self.spec.as_ref()?.health;
        Some(Arc::new(Probe {
            instance: self.record.id.clone(),
            generation: self.record.generation,
            address: self.record.address.clone()?,
            protocol,
            tls,
            check: health.check.clone(),
            timeout: health.timeout,
            slot: self.slot,
        }))
    }
}
