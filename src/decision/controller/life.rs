//! Applies the transition table to an instance and does what each edge entails: its times, what is
//! durable, who has to look again, what the log says.

use std::time::Duration;

use crate::types::record::{CapacityKey, EventRecord};
use crate::types::{InstanceId, InstanceState, Timestamp, VariantKey};

use super::Controller;
use super::events::{EventKind, Leave};
use super::fleet::{Launch, NEVER};
use super::machine::{Next, Trigger, next};
use super::timers::Waiter;

/// The first probe comes this soon after the grant.
const FIRST_PROBE_WITHIN: Duration = Duration::from_millis(100);

impl Controller {
    /// Feeds a trigger to an instance. `leave` says why, where it may lead out of service. Returns whether
    /// anything changed.
    pub(super) fn apply(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        trigger: Trigger,
        leave: Option<&Leave>,
    ) -> bool {
        let Some(instance) = self.fleet.get(id) else { return false };
        let from = instance.state();
        let next = next(from, trigger);
        if next == Next::Stay {
            return false;
        }
        let slot = instance.slot;
        let key = instance.record.variant.clone();
        let capacity = instance.capacity_key();
        match next {
            Next::Stay => {}
            Next::Gone => self.forget(now, id, from),
            Next::To(state) => {
                self.fleet.set_state(id, state);
                self.enter(now, id, from, state, leave);
                self.journal.instances.insert(id.clone());
                self.touched.push(slot);
            }
        }
        if from == InstanceState::Pending && self.capacities.contains_key(&capacity) {
            // The one request for this capacity is decided: whoever waited for that may ask.
            self.dirty_users_of_type(&capacity.instance_type);
        }
        if from == InstanceState::InService {
            self.stale_routes.insert(key.endpoint.clone());
        }
        self.dirty.insert(key);
        true
    }

    fn enter(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        from: InstanceState,
        to: InstanceState,
        leave: Option<&Leave>,
    ) {
        match to {
            InstanceState::Pending => {}
            InstanceState::Starting => self.enter_starting(now, id),
            InstanceState::InService => self.enter_in_service(now, id),
            InstanceState::Draining => self.enter_draining(now, id, leave),
            InstanceState::Stopping => self.enter_stopping(now, id, from, leave),
        }
    }

    fn enter_starting(&mut self, now: Timestamp, id: &InstanceId) {
        let first_probe = now + self.jitter.within(FIRST_PROBE_WITHIN);
        let Some(instance) = self.fleet.get_mut(id) else { return };
        let provider = self.providers.get(&instance.record.provider);
        instance.provable_from = provider.map_or(0, |p| p.lists) + 1;
        instance.launch = Launch::Answered;
        instance.record.granted_at = Some(now);
        instance.probe.next_at = Some(first_probe);
    }

    fn enter_in_service(&mut self, now: Timestamp, id: &InstanceId) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        instance.record.in_service_at = Some(now);
        instance.probe.next_at = None;
        instance.probe.failures = 0;
        instance.complaint = None;
        let slot = instance.slot;
        let (key, kind) = (instance.record.variant.clone(), instance.record.instance_type.clone());
        let took = now.since(instance.record.granted_at.unwrap_or(now));
        self.stale_routes.insert(key.endpoint.clone());
        if let Some(variant) = self.variants.get_mut(&key) {
            variant.unblock(now, &kind);
            variant.waking = false;
            variant.latched_demand = 0;
            variant.last_busy_at = now;
            if !variant.record.was_in_service {
                variant.record.was_in_service = true;
                self.journal.variants.insert(key.clone());
            }
        }
        self.join_sweep(now, slot);
        let took = super::events::Span(took);
        let message = format!("{kind} is healthy and in the routing table, {took} after its grant");
        self.log(now, EventKind::InService, &key, Some(id), message);
    }

    fn enter_draining(&mut self, now: Timestamp, id: &InstanceId, leave: Option<&Leave>) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        let allowed = self
            .variants
            .get(&instance.record.variant)
            .map_or(Duration::ZERO, super::variant::Variant::drain_timeout);
        let within = leave.and_then(|l| l.drain_within).map_or(allowed, |w| w.min(allowed));
        let record = &mut instance.record;
        record.draining_since = Some(now);
        record.drain_deadline = Some(now + within);
        record.leaving_because = leave.map(|l| l.because.clone());
        instance.out_since = None;
        instance.probe.in_flight = false;
        let key = record.variant.clone();
        let what = format!("drains for at most {}", super::events::Span(within));
        self.log_leaving(now, &key, id, leave, &what);
    }

    fn enter_stopping(
        &mut self,
        now: Timestamp,
        id: &InstanceId,
        from: InstanceState,
        leave: Option<&Leave>,
    ) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        instance.stop.next_at = now;
        if from == InstanceState::Pending {
            // Whether it was started is unknown until the provider has answered about it again.
            instance.provable_from = NEVER;
        }
        if let Some(leave) = leave.filter(|_| from != InstanceState::Draining) {
            instance.record.leaving_because = Some(leave.because.clone());
        }
        let key = instance.record.variant.clone();
        let what = match from {
            InstanceState::Draining => "is stopped",
            InstanceState::Pending => "is not wanted any more",
            _ => "is stopped before it was in service",
        };
        self.log_leaving(now, &key, id, leave, what);
    }

    fn log_leaving(
        &mut self,
        now: Timestamp,
        key: &VariantKey,
        id: &InstanceId,
        leave: Option<&Leave>,
        what: &str,
    ) {
        let Some(leave) = leave else { return };
        if matches!(leave.kind, EventKind::StartupTimeout | EventKind::DownloadTimeout) {
            // The block of its pool is told with the same reason and says more.
            return;
        }
        let kind = self.fleet.get(id).map(|i| i.record.instance_type.to_string());
        let message = format!("{} {what}: {}", kind.unwrap_or_default(), leave.because);
        self.log(now, leave.kind, key, Some(id), message);
    }

    fn forget(&mut self, now: Timestamp, id: &InstanceId, from: InstanceState) {
        let Some(instance) = self.fleet.remove(id) else { return };
        if from != InstanceState::Pending && instance.interruption.is_none() {
            self.capacity_came_free(now, &instance.capacity_key());
        }
        self.timers.set(Waiter::Instance(instance.slot), None);
        let record = instance.record;
        self.journal.instances.insert(id.clone());
        for proxy in self.proxies.values_mut() {
            proxy.forget(record.generation);
        }
        if from == InstanceState::Stopping {
            let because = record.leaving_because.unwrap_or_default();
            let message = format!("{} is gone ({because})", record.instance_type);
            self.log(now, EventKind::Gone, &record.variant, Some(id), message);
        }
    }

    /// What an instance had is probably free again: its capacity may be asked for at once, instead of after
    /// a hold that was learned while the instance still had it. One refusal brings the hold back.
    fn capacity_came_free(&mut self, now: Timestamp, key: &CapacityKey) {
        if let Some(memory) = self.capacities.get_mut(key)
            && memory.hold_until > now
        {
            memory.hold_until = now;
            self.journal.capacities.insert(key.clone());
            self.dirty_users_of_type(&key.instance_type);
        }
    }

    /// Writes a line of the event log.
    pub(super) fn log(
        &mut self,
        now: Timestamp,
        kind: EventKind,
        key: &VariantKey,
        instance: Option<&InstanceId>,
        message: String,
    ) {
        self.journal.log(EventRecord {
            at: now,
            endpoint: Some(key.endpoint.clone()),
            variant: Some(key.variant.clone()),
            instance: instance.cloned(),
            kind: kind.as_str().to_owned(),
            message,
        });
    }

    /// Writes a line that is about no endpoint.
    pub(super) fn log_global(&mut self, now: Timestamp, kind: EventKind, message: String) {
        self.journal.log(EventRecord {
            at: now,
            endpoint: None,
            variant: None,
            instance: None,
            kind: kind.as_str().to_owned(),
            message,
        });
    }
}
