//! One round for one variant: shows the planner what there is and carries out what it says.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::decision::plan::{
    Condemned, Member, Observed, Plan, PlannedLaunch, PoolView, Refused, Turn, Waiting, WhyLaunch,
    WhyLeave, plan,
};
use crate::types::launch::LaunchBatch;
use crate::types::record::{CapacityKey, InstanceRecord};
use crate::types::spec::{PoolSpec, VariantSpec};
use crate::types::{Generation, InstanceId, InstanceState, ProviderName, Timestamp, VariantKey};

use super::events::{At, EventKind, Leave};
use super::fleet::{Instance, Launch};
use super::machine::Trigger;
use super::timers::Waiter;
use super::{Action, Controller};

/// A launch that was never answered is asked for again, with the same id, after this long.
const LAUNCH_PATIENCE: Duration = Duration::from_secs(120);
/// A refusal is forgotten this long after its hold: then the pool has its whole window again.
const MEMORY: Duration = Duration::from_secs(900);

impl Controller {
    pub(super) fn round(&mut self, now: Timestamp, key: &VariantKey) {
        let Some(variant) = self.variants.get_mut(key) else { return };
        let spec = variant.spec.clone().filter(|_| variant.configured);
        let Some(spec) = spec else { return self.bury(now, key) };
        if let Some(provider) = self.unheard_provider(key) {
            let error = self.providers.get(provider).and_then(|p| p.last_error.as_deref());
            let waiting = format!(
                "waits for provider {provider} to list what runs there ({})",
                error.unwrap_or("asked, no answer yet")
            );
            self.set_waiting(key, Some(waiting));
            return;
        }
        let zero_at = self.follow_demand(now, key, &spec);
        self.forget_stale_refusals(now, &spec);
        let Some(variant) = self.variants.get(key) else { return };
        let seen = self.observe(key, &spec);
        let plan = plan(&spec, &seen, variant.record.round, now);
        let wake_at = plan.wake_at.into_iter().chain(zero_at).min();
        self.carry_out(now, key, &spec, &seen, plan);
        self.ask_again(now, key);
        self.timers.set(Waiter::Variant(key.clone()), wake_at);
    }

    fn set_waiting(&mut self, key: &VariantKey, waiting: Option<String>) {
        if let Some(variant) = self.variants.get_mut(key) {
            variant.waiting = waiting;
        }
    }

    /// A variant that the config no longer has: deleted once its last instance is gone.
    fn bury(&mut self, now: Timestamp, key: &VariantKey) {
        let left = self.fleet.of(key).count();
        self.set_waiting(key, Some(format!("waits for its last {left} instances to leave")));
        if left == 0 {
            self.variants.remove(key);
            self.timers.set(Waiter::Variant(key.clone()), None);
            self.journal.variants.insert(key.clone());
            let message = format!("{key} left the config and its last instance is gone");
            self.log(now, EventKind::VariantDeleted, key, None, message);
        }
    }

    pub(super) fn capacity_key(&self, pool: &PoolSpec) -> Option<CapacityKey> {
        let kind = self.spec.instance_types.get(&pool.instance_type)?;
        Some(CapacityKey {
            provider: kind.provider.clone(),
            instance_type: pool.instance_type.clone(),
            zone: None,
        })
    }

    fn forget_stale_refusals(&mut self, now: Timestamp, spec: &VariantSpec) {
        for key in spec.pools.iter().filter_map(|p| self.capacity_key(p)).collect::<Vec<_>>() {
            if self.capacities.get(&key).is_some_and(|c| c.hold_until + MEMORY <= now) {
                self.capacities.remove(&key);
                self.journal.capacities.insert(key);
            }
        }
    }

    /// What the planner needs to know of a variant.
    pub(super) fn observe(&self, key: &VariantKey, spec: &VariantSpec) -> Observed {
        let variant = self.variants.get(key);
        let members = self
            .fleet
            .of(key)
            .filter(|i| !i.state().is_leaving())
            .map(|i| self.member(spec, i))
            .collect();
        let pools = spec.pools.iter().map(|pool| {
            let capacity = self.capacity_key(pool);
            let memory = capacity.as_ref().and_then(|c| self.capacities.get(c));
            let asking = capacity.as_ref().is_some_and(|c| self.fleet.asks_for(c));
            let failing = variant.and_then(|v| v.failing.get(&pool.instance_type));
            PoolView {
                refused: memory.map(|c| Refused { at: c.refused_at, hold_until: c.hold_until }),
                asking,
                blocked_until: failing.map(|f| f.until),
            }
        });
        Observed {
            desired: variant.map_or(0, |v| v.record.desired),
            members,
            pools: pools.collect(),
            last_move_at: variant.map_or(Timestamp(0), |v| v.last_move_at),
        }
    }

    fn member(&self, spec: &VariantSpec, instance: &Instance) -> Member {
        let record = &instance.record;
        let pool = spec.pools.iter().position(|p| {
            let kind = self.spec.instance_types.get(&p.instance_type);
            p.instance_type == record.instance_type
                && kind.is_some_and(|t| t.provider == record.provider)
        });
        let interrupted =
            instance.interruption.map(|i| Condemned::Interrupted { drain_at: i.drain_at });
        Member {
            id: record.id.clone(),
            generation: record.generation,
            pool,
            priority: pool.map_or(record.priority, |p| spec.pools[p].priority),
            asked_at: record.asked_at,
            state: record.state,
            outstanding: self.outstanding(record.generation),
            unhealthy: instance.probe.failures > 0 && record.state == InstanceState::InService,
            condemned: interrupted.or(pool.is_none().then_some(Condemned::PoolRemoved)),
        }
    }

    fn carry_out(
        &mut self,
        now: Timestamp,
        key: &VariantKey,
        spec: &VariantSpec,
        seen: &Observed,
        plan: Plan,
    ) {
        let waiting = self.waiting_for(now, key, spec, &plan);
        let Some(variant) = self.variants.get_mut(key) else { return };
        variant.waiting = waiting;
        if variant.record.round != plan.round {
            variant.record.round = plan.round;
            self.journal.variants.insert(key.clone());
        }
        self.tell_turn(now, key, spec, &plan);
        for leaving in &plan.leave {
            let leave = self.leave(now, &leaving.instance, leaving.why, seen);
            self.apply(now, &leaving.instance, Trigger::Released, Some(&leave));
        }
        for launch in plan.launches {
            self.launch(now, key, spec, seen, launch);
        }
    }

    fn leave(&self, now: Timestamp, id: &InstanceId, why: WhyLeave, seen: &Observed) -> Leave {
        let instance = self.fleet.get(id);
        let priority = instance.map_or(0, |i| i.record.priority);
        match why {
            WhyLeave::Surplus => {
                let counted = seen.members.iter().filter(|m| m.is_counted()).count();
                let because = format!(
                    "{counted} instances, {} desired; priority {priority} leaves first",
                    seen.desired
                );
                Leave::new(EventKind::ScaleIn, because)
            }
            WhyLeave::PoolRemoved => {
                Leave::new(EventKind::PoolRemoved, "its pool left the config and it is replaced")
            }
            WhyLeave::Interrupted => {
                let end = instance.and_then(|i| i.interruption).map_or(now, |i| i.at);
                let because = format!("its provider takes it away at {}", At(end, now));
                Leave::new(EventKind::Interrupted, because).within(now.until(end))
            }
        }
    }

    fn tell_turn(&mut self, now: Timestamp, key: &VariantKey, spec: &VariantSpec, plan: &Plan) {
        let Some(round) = plan.round else { return };
        let names = |priority: u32| {
            let pools = spec.pools.iter().filter(|p| p.priority == priority);
            pools.map(|p| p.instance_type.as_str()).collect::<Vec<_>>().join(", ")
        };
        let window = humantime::format_duration(spec.provision_timeout);
        let (kind, message) = match plan.turn {
            Some(Turn::Moved { from }) => (
                EventKind::PoolTurn,
                format!(
                    "{} has its turn (priority {}, pass {}): {} has no capacity now",
                    names(round.priority),
                    round.priority,
                    round.pass + 1,
                    names(from)
                ),
            ),
            Some(Turn::Reopened) => (
                EventKind::WindowReopened,
                format!("the {window} window closed before the count was met; another begins"),
            ),
            Some(Turn::Opened | Turn::Closed) | None => return,
        };
        self.log(now, kind, key, None, message);
    }

    /// Records the instances of a planned launch, then asks for them.
    fn launch(
        &mut self,
        now: Timestamp,
        key: &VariantKey,
        spec: &VariantSpec,
        seen: &Observed,
        planned: PlannedLaunch,
    ) {
        let pool = &spec.pools[planned.pool];
        let Some(kind) = self.spec.instance_types.get(&pool.instance_type).cloned() else { return };
        let mut ids = Vec::new();
        for _ in 0..planned.count {
            let generation = Generation(self.next_generation);
            let Some(id) = self.name(key, generation) else { return };
            self.next_generation += 1;
            let record = InstanceRecord {
                id: id.clone(),
                generation,
                variant: key.clone(),
                instance_type: pool.instance_type.clone(),
                provider: kind.provider.clone(),
                priority: pool.priority,
                model: pool.model.clone().unwrap_or_else(|| spec.model.clone()),
                copies: kind.copies,
                max_concurrency: kind.max_concurrency,
                state: InstanceState::Pending,
                address: None,
                asked_at: now,
                granted_at: None,
                in_service_at: None,
                draining_since: None,
                drain_deadline: None,
                leaving_because: None,
            };
            let mut instance = Instance::new(record, Launch::Due(now));
            instance.spec = self.variants.get(key).and_then(|variant| variant.spec.clone());
            self.fleet.insert(instance);
            self.journal.instances.insert(id.clone());
            ids.push(id);
        }
        let counted = seen.members.iter().filter(|m| m.is_counted()).count();
        let what = format!("{} × {}", planned.count, pool.instance_type);
        let figures = format!("{counted} counted, {} desired", seen.desired);
        let (event, message) = match planned.why {
            WhyLaunch::Deficit => {
                (EventKind::LaunchAsked, format!("asks {} for {what}: {figures}", kind.provider))
            }
            WhyLaunch::Preferred => (
                EventKind::LaunchAsked,
                format!("still asks {} for the preferred {what}: {figures}", kind.provider),
            ),
            WhyLaunch::Move => (
                EventKind::MoveStarted,
                format!("asks {} for {what} to replace a fallback: {figures}", kind.provider),
            ),
        };
        if let Some(variant) = self.variants.get_mut(key).filter(|_| planned.why == WhyLaunch::Move)
        {
            variant.last_move_at = now;
        }
        self.log(now, event, key, None, message);
    }

    /// A name that no instance has had: readable, and unlikely to meet those of a lost store.
    fn name(&mut self, key: &VariantKey, generation: Generation) -> Option<InstanceId> {
        let suffix = self.jitter.draw() & 0xff_ffff;
        InstanceId::new(format!("{}-{}-{generation}-{suffix:06x}", key.endpoint, key.variant)).ok()
    }

    /// A launch's timer has come: it went unanswered, or is to be asked for again.
    pub(super) fn launch_due(&mut self, now: Timestamp, id: &InstanceId) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        if matches!(instance.launch, Launch::InFlight(give_up) if give_up <= now) {
            instance.launch_attempts = instance.launch_attempts.saturating_add(1);
            instance.launch = Launch::Due(now);
        }
        let key = instance.record.variant.clone();
        self.dirty.insert(key);
    }

    /// Sends every launch of the variant that is due, those of one kind as one batch.
    fn ask_again(&mut self, now: Timestamp, key: &VariantKey) {
        let due: Vec<_> = self
            .fleet
            .of(key)
            .filter(|i| i.state() == InstanceState::Pending)
            .filter(|i| matches!(i.launch, Launch::Due(at) if at <= now))
            .map(|i| InstanceRecord::clone(&i.record))
            .collect();
        let mut batches: BTreeMap<_, (ProviderName, LaunchBatch)> = BTreeMap::new();
        for record in due {
            if let Some(instance) = self.fleet.get_mut(&record.id) {
                instance.launch = Launch::InFlight(now + LAUNCH_PATIENCE);
                self.touched.push(instance.slot);
            }
            let alike = (
                record.priority,
                record.provider.clone(),
                record.instance_type.clone(),
                record.model.clone(),
                record.copies,
                record.max_concurrency,
            );
            let (_, batch) = batches.entry(alike).or_insert_with(|| {
                let batch = LaunchBatch {
                    instances: Vec::new(),
                    instance_type: record.instance_type,
                    variant: record.variant,
                    model: record.model,
                    copies: record.copies,
                    max_concurrency: record.max_concurrency,
                };
                (record.provider, batch)
            });
            batch.instances.push(record.id);
        }
        for (_, (provider, batch)) in batches {
            self.after.push(Action::Launch { provider, batch });
        }
    }

    /// What the variant waits for, as a sentence.
    fn waiting_for(
        &self,
        now: Timestamp,
        key: &VariantKey,
        spec: &VariantSpec,
        plan: &Plan,
    ) -> Option<String> {
        let name = |pool: usize| spec.pools[pool].instance_type.as_str();
        Some(match plan.waiting? {
            Waiting::Answer { count: 1 } => "waits for the answer to a launch".to_owned(),
            Waiting::Answer { count } => format!("waits for the answer to {count} launches"),
            Waiting::Health { count: 1 } => "waits for an instance to become healthy".to_owned(),
            Waiting::Health { count } => format!("waits for {count} instances to become healthy"),
            Waiting::Capacity { pool, until } => {
                let memory = self.capacity_key(&spec.pools[pool]);
                let memory = memory.and_then(|k| self.capacities.get(&k));
                let reason = memory.map_or("", |c| c.reason.as_str());
                format!(
                    "waits for capacity of {} ({reason}); asked again at {}",
                    name(pool),
                    At(until, now)
                )
            }
            Waiting::Blocked { pool, until } => {
                let failing = self.variants.get(key)?.failing.get(&spec.pools[pool].instance_type);
                let reason = failing.map_or("", |f| f.reason.as_str());
                format!(
                    "waits after a failure of {}: {reason}; tried again at {}",
                    name(pool),
                    At(until, now)
                )
            }
        })
    }
}
