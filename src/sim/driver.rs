//! The manager's side of the world: starts a controller, feeds it, carries out its actions in their
//! order and lets it die between any two of them. The ledger sees everything first.

use std::sync::Arc;
use std::time::Duration;

use super::setup::Faults;
use super::world::{Due, World};
use crate::decision::check::Ledger;
use crate::decision::controller::{Action, Controller, Event, PROXY_LEASE, Probe};
use crate::types::launch::{LaunchBatch, LaunchOutcome};
use crate::types::record::Change;
use crate::types::{
    InstanceId, InstanceState, InstanceTypeName, ProviderError, ProviderName, Timestamp,
};

/// Actions in one turn for each instance that there may be, and some more, before the manager is said to have no
/// limit.
const TURN_SHARE: u32 = 20;
const TURN_LEAST: u32 = 5_000;
/// After which a provider's own time limit ends a call.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// A manager that runs.
pub(super) struct Manager {
    pub(super) life: u64,
    pub(super) started_at: Timestamp,
    pub(super) controller: Controller,
    /// The checker's books, where it is asked.
    ledger: Option<Ledger>,
}

/// A call on its way.
#[derive(Debug)]
pub(super) struct Call {
    life: u64,
    what: CallKind,
    /// When its true answer arrives; `None` if another answer was sent already.
    answer_at: Option<Timestamp>,
}

#[derive(Debug)]
enum CallKind {
    List(ProviderName),
    Launch(ProviderName, LaunchBatch),
    Terminate(InstanceId),
}

impl World {
    /// Starts a manager from what is durable and from the config as it is now.
    pub(super) fn boot(&mut self) {
        if self.manager.is_some() {
            return;
        }
        self.lives += 1;
        let stored = self.store.load();
        let ledger = self
            .setup
            .checked
            .then(|| Ledger::new(self.now, Arc::clone(&self.fleet), &stored, PROXY_LEASE));
        let fleet = Arc::clone(&self.fleet);
        let (life, seed) = (self.lives, self.rng.next());
        let controller = Controller::new(life, self.now, fleet, stored, seed);
        self.tell_story(|| format!("manager {life} starts"));
        self.manager = Some(Manager { life, started_at: self.now, controller, ledger });
        // It may find another config than the one before it had.
        self.commanding = true;
        self.turn();
        self.commanding = false;
    }

    /// Kills the manager; another starts after `down`.
    pub(super) fn crash_now(&mut self, down: Duration) {
        self.crash = None;
        if self.manager.take().is_some() {
            self.published = None;
            self.tally.crashes += 1;
            self.tell_story(|| format!("the manager dies, back in {down:?}"));
            self.agenda.enter(self.now + down, Due::Boot);
        }
    }

    /// Tells the manager, if there is one, what has happened.
    pub(super) fn tell(&mut self, event: Event) {
        let now = self.now;
        if self.manager.is_none() {
            return;
        }
        self.note(|| format!("  event {}", show_event(&event)));
        if let Some(manager) = &mut self.manager {
            if let Some(ledger) = &mut manager.ledger {
                ledger.note_event(now, &event);
            }
            manager.controller.handle_event(now, event);
            self.turn();
        }
    }

    /// Lets the manager do what is due.
    pub(super) fn manager_timeout(&mut self) {
        if let Some(manager) = &mut self.manager {
            manager.controller.handle_timeout(self.now);
            self.turn();
        }
    }

    /// The operator asks for a drain.
    pub(super) fn drain_instance(&mut self, instance: &InstanceId) {
        if let Some(manager) = &mut self.manager {
            if let Some(ledger) = &mut manager.ledger {
                ledger.note_drain(instance.as_str());
            }
            let taken = manager.controller.drain(self.now, instance.as_str());
            if let Err(error) = taken {
                self.blame(format!("drain of the recorded {instance} is refused: {error}"));
            }
            self.turn();
        }
    }

    /// Carries out the actions of one turn.
    pub(super) fn turn(&mut self) {
        let mut limit = TURN_LEAST;
        for done in 0.. {
            if done == limit {
                // Rarely: what there may be is worked out only where it matters.
                let most = self.fleet.variants().map(|(_, v)| v.max_instance_count).sum::<u32>();
                limit = most.saturating_mul(TURN_SHARE).max(TURN_LEAST);
                if done == limit {
                    break;
                }
            }
            if let Some((0, down)) = self.crash {
                return self.crash_now(down);
            }
            let Some(manager) = &mut self.manager else { return };
            let Some(action) = manager.controller.poll_action() else { return };
            let ledger = manager.ledger.as_mut();
            let violations = ledger.map(|ledger| ledger.check_action(self.now, &action));
            self.note(|| format!("  action {}", show_action(&action)));
            for violation in violations.into_iter().flatten() {
                self.blame(violation.to_string());
            }
            if self.fault.is_some() {
                return;
            }
            self.tally.actions += 1;
            if let Some((left, _)) = &mut self.crash {
                *left -= 1;
            }
            self.check_truth(&action);
            self.execute(action);
        }
        self.blame(format!("more than {limit} actions in one turn"));
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::Persist(changes) => {
                for change in &changes {
                    self.follow(change);
                }
                if let Some(usage) = &mut self.usage {
                    usage.commit(self.now, &changes, &self.fleet);
                }
                self.store.commit(&changes);
            }
            Action::List(provider) => self.call(CallKind::List(provider)),
            Action::Launch { provider, batch } => self.call(CallKind::Launch(provider, batch)),
            Action::Terminate { instance, .. } => self.call(CallKind::Terminate(instance)),
            Action::Probe(probes) => self.probe(probes),
            Action::Publish(table) => {
                self.published = Some(Arc::clone(&table));
                for proxy in 0..self.proxies.len() {
                    self.connect(proxy);
                }
            }
        }
    }

    /// Notes what a change tells.
    fn follow(&mut self, change: &Change) {
        match change {
            Change::Log(event) => {
                let several = self.fleet.variants().nth(1).is_some();
                self.tell_story(|| match (&event.endpoint, &event.variant) {
                    (Some(endpoint), Some(variant)) if several => {
                        format!("{endpoint}/{variant} {}: {}", event.kind, event.message)
                    }
                    _ => format!("{}: {}", event.kind, event.message),
                });
            }
            Change::PutInstance(record) if record.state == InstanceState::InService => {
                self.served.insert(record.variant.clone());
            }
            _ => {}
        }
    }

    /// Sends a call on its way, and draws what goes wrong with it.
    fn call(&mut self, what: CallKind) {
        let life = self.manager.as_ref().map_or(0, |manager| manager.life);
        let latency = self.setup.cloud.latency;
        let (there, back) = (self.rng.span(latency), self.rng.span(latency));
        let plain = (Some(self.now + there), Some(self.now + there + back), None);
        let faults = self.setup.faults;
        let (carry_at, answer_at, excuse_at) =
            self.draw_fault(faults, there, back).unwrap_or(plain);
        if let Some(at) = excuse_at {
            let event = Box::new(what.unavailable());
            self.agenda.enter(at, Due::Answer { life, event });
        }
        if let Some(at) = carry_at {
            self.agenda.enter(at, Due::Carry(Box::new(Call { life, what, answer_at })));
        }
    }

    /// When a faulty call is carried out, truly answered, and answered with `Unavailable`.
    #[allow(clippy::type_complexity, reason = "three optional moments, taken apart at once")]
    fn draw_fault(
        &mut self,
        faults: Faults,
        there: Duration,
        back: Duration,
    ) -> Option<(Option<Timestamp>, Option<Timestamp>, Option<Timestamp>)> {
        let (now, soon) = (self.now, self.now + there + back);
        if self.rng.chance(faults.lost_before) {
            Some((None, None, Some(soon)))
        } else if self.rng.chance(faults.lost_after) {
            Some((Some(now + there), None, Some(soon)))
        } else if self.rng.chance(faults.hangs) {
            let done = self.rng.chance(500).then_some(now + there);
            Some((done, None, Some(now + CALL_LIMIT)))
        } else if self.rng.chance(faults.late) {
            let later = self.rng.span((Duration::ZERO, Duration::from_secs(30)));
            Some((Some(soon + later), None, Some(soon)))
        } else if self.rng.chance(faults.slow) {
            let span = (Duration::from_secs(1), Duration::from_secs(15));
            let at = now + self.rng.span(span);
            Some((Some(at), Some(at + self.rng.span(span)), None))
        } else {
            None
        }
    }

    /// Whether the manager is still that one.
    pub(super) fn lives(&self, life: u64) -> bool {
        self.manager.as_ref().is_some_and(|manager| manager.life == life)
    }

    /// What a manager that has died since was about to send may never have been sent.
    pub(super) fn was_never_sent(&mut self, life: u64) -> bool {
        !self.lives(life) && self.rng.chance(500)
    }

    /// A call reaches whom it is for.
    pub(super) fn carry_out(&mut self, call: Call) {
        if self.was_never_sent(call.life) {
            return;
        }
        let event = match call.what {
            CallKind::List(provider) => {
                self.cloud.forget(self.now);
                let result = Ok(self.cloud.list(self.now, &provider));
                Event::Listed { provider, result }
            }
            CallKind::Launch(provider, batch) => {
                let outcomes = self.launch(&provider, &batch);
                Event::Launched { provider, outcomes }
            }
            CallKind::Terminate(instance) => {
                let result = self.terminate(&instance);
                Event::Terminated { instance, result }
            }
        };
        if let Some(at) = call.answer_at {
            self.agenda.enter(at, Due::Answer { life: call.life, event: Box::new(event) });
        }
    }

    fn launch(&mut self, provider: &ProviderName, batch: &LaunchBatch) -> Vec<LaunchOutcome> {
        let faults = self.setup.faults;
        let new = |id: &&InstanceId| !self.cloud.machines().knows(id);
        let new: Vec<InstanceId> = batch.instances.iter().filter(new).cloned().collect();
        let outcomes = self.cloud.launch(self.now, provider, batch, faults, &mut self.rng);
        self.lend(&batch.instance_type, new);
        for id in &batch.instances {
            if let Some(at) = self.cloud.machines().get(id).and_then(|machine| machine.dies_at) {
                let (instance, reason) = (id.clone(), "exit code 1");
                self.agenda.enter(at, Due::MachineEnds { instance, reason });
            }
        }
        self.note(|| format!("cloud {}", show_outcomes(&outcomes)));
        outcomes
    }

    /// Draws when lent instances will be taken back.
    fn lend(&mut self, kind: &InstanceTypeName, instances: Vec<InstanceId>) {
        let Some(life) = self.setup.spot.get(kind).and_then(|spot| spot.mean_life) else { return };
        for instance in instances.into_iter().filter(|id| self.cloud.machines().knows(id)) {
            // Exponential: an instance that has run for long is as safe as a new one.
            let factor = -(1.0 - self.spot_rng.unit()).ln();
            self.agenda.enter(self.now + life.mul_f64(factor), Due::Reclaimed { instance });
        }
    }

    fn terminate(&mut self, instance: &InstanceId) -> Result<(), ProviderError> {
        let ends_at = self.cloud.terminate(self.now, instance, &mut self.rng)?;
        if let Some(at) = ends_at {
            self.fail_requests(instance);
            let (instance, reason) = (instance.clone(), "terminated");
            self.agenda.enter(at, Due::MachineEnds { instance, reason });
        }
        Ok(())
    }
}

impl CallKind {
    /// The answer of a provider that gives none.
    fn unavailable(&self) -> Event {
        let error = ProviderError::unavailable("no answer");
        match self {
            Self::List(provider) => {
                Event::Listed { provider: provider.clone(), result: Err(error) }
            }
            Self::Launch(provider, batch) => Event::Launched {
                provider: provider.clone(),
                outcomes: batch
                    .instances
                    .iter()
                    .map(|id| LaunchOutcome { instance: id.clone(), result: Err(error.clone()) })
                    .collect(),
            },
            Self::Terminate(instance) => {
                Event::Terminated { instance: instance.clone(), result: Err(error) }
            }
        }
    }
}

fn show_outcomes(outcomes: &[LaunchOutcome]) -> String {
    let shown: Vec<String> = outcomes
        .iter()
        .map(|outcome| match &outcome.result {
            Ok(_) => format!("{} granted", outcome.instance),
            Err(error) => format!("{} {}", outcome.instance, error.kind()),
        })
        .collect();
    shown.join(", ")
}

fn show_event(event: &Event) -> String {
    match event {
        Event::Listed { provider, result: Ok(list) } => {
            let shown: Vec<String> =
                list.iter().map(|i| format!("{} {:?}", i.id, i.status)).collect();
            format!("listed {provider}: {}", shown.join(", "))
        }
        Event::Launched { outcomes, .. } => format!("launched: {}", show_outcomes(outcomes)),
        Event::Reported(report) => {
            let busy: Vec<String> = report
                .backends
                .iter()
                .filter(|b| b.outstanding > 0)
                .map(|b| format!("{}={}", b.instance, b.outstanding))
                .collect();
            format!("{} reports {} {}", report.proxy, report.applied, busy.join(" "))
        }
        Event::Reconfigured(_) => "reconfigured".into(),
        Event::Probed { probes, result } => format!("probed {}: {result:?}", show_probes(probes)),
        other => format!("{other:?}"),
    }
}

fn show_action(action: &Action) -> String {
    match action {
        Action::Persist(changes) => {
            let shown: Vec<String> = changes.iter().map(show_change).collect();
            format!("persist {}", shown.join("; "))
        }
        Action::Launch { provider, batch } => {
            format!("launch {:?} at {provider}", batch.instances)
        }
        Action::Probe(probes) => format!("probe {}", show_probes(probes)),
        Action::Publish(table) => {
            let backends = table.endpoints.iter().flat_map(|e| &e.variants);
            let ids: Vec<&str> =
                backends.flat_map(|v| &v.backends).map(|b| b.instance.as_str()).collect();
            format!("publish {} [{}]", table.version, ids.join(" "))
        }
        other => format!("{other:?}"),
    }
}

fn show_probes(probes: &[Probe]) -> String {
    let ids: Vec<&str> = probes.iter().map(|probe| probe.instance.as_str()).collect();
    ids.join(" ")
}

fn show_change(change: &Change) -> String {
    match change {
        Change::PutProxy(record) => format!("proxy {} is heard", record.id),
        Change::DeleteProxy(id) => format!("proxy {id} is forgotten"),
        Change::PutInstance(record) if record.state == InstanceState::Pending => {
            format!("{} Pending at priority {}", record.id, record.priority)
        }
        Change::PutInstance(record) => format!("{} {}", record.id, record.state),
        Change::DeleteInstance(id) => format!("delete {id}"),
        Change::PutVariant(v) => format!("{} desired {} {:?}", v.variant, v.desired, v.round),
        Change::DeleteVariant(key) => format!("delete {key}"),
        Change::PutCapacity(record) => {
            format!("{} refused {} times", record.key.instance_type, record.refusals)
        }
        Change::DeleteCapacity(key) => format!("{} has capacity", key.instance_type),
        Change::Log(event) => format!("log {}: {}", event.kind, event.message),
    }
}
