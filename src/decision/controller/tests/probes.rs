//! When instances are probed: played event by event, over many intervals, with answers that take their time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::super::jitter::Jitter;
use super::specs::*;
use crate::decision::controller::{Action, Controller, Event};
use crate::types::launch::{Grant, LaunchOutcome, ProviderInstance, ProviderStatus};
use crate::types::record::StoredState;
use crate::types::report::{BackendReport, ProxyReport};
use crate::types::spec::FleetSpec;
use crate::types::{Generation, InstanceId, InstanceState, ProxyId, Timestamp};

const NOW: Timestamp = Timestamp(1_700_000_000_123);
/// The first probe comes this soon after the grant.
const AT_ONCE: Duration = Duration::from_millis(100);

/// One provider without limits, and instances that are healthy when they are asked.
struct Played {
    controller: Controller,
    now: Timestamp,
    running: Vec<ProviderInstance>,
    granted_at: BTreeMap<InstanceId, Timestamp>,
    /// When each was asked.
    asked: BTreeMap<InstanceId, Vec<Timestamp>>,
    /// Those who have not answered yet, and when they came into service.
    open: BTreeMap<InstanceId, Timestamp>,
    answered: BTreeMap<InstanceId, Vec<Timestamp>>,
    later: Vec<(Timestamp, Event)>,
    chance: Jitter,
    slowest: Duration,
}

fn spec(count: u32, interval: Duration) -> Arc<FleetSpec> {
    let mut spec = variant(&[(G6, 1)], count);
    spec.max_instance_count = 1_000;
    spec.min_instance_count = 0;
    spec.health.interval = interval;
    spec.health.timeout = secs(30);
    fleet(&[("e", spec)])
}

impl Played {
    fn new(seed: u64, count: u32, interval: Duration, slowest: Duration) -> Self {
        let controller =
            Controller::new(1, NOW, spec(count, interval), StoredState::default(), seed);
        Self {
            controller,
            now: NOW,
            running: Vec::new(),
            granted_at: BTreeMap::new(),
            asked: BTreeMap::new(),
            open: BTreeMap::new(),
            answered: BTreeMap::new(),
            later: Vec::new(),
            chance: Jitter::new(seed),
            slowest,
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            while let Some(action) = self.controller.poll_action() {
                self.carry_out(action);
            }
            let answer = (0..self.later.len()).min_by_key(|at| self.later[*at].0);
            let answer_at = answer.map(|at| self.later[at].0);
            let timeout = self.controller.poll_timeout();
            let Some(next) = timeout.into_iter().chain(answer_at).min().filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            match answer.filter(|_| answer_at == Some(next)) {
                Some(at) => {
                    let (_, event) = self.later.swap_remove(at);
                    self.note(&event);
                    self.controller.handle_event(self.now, event);
                }
                None => self.controller.handle_timeout(self.now),
            }
        }
        self.now = end;
    }

    fn note(&mut self, event: &Event) {
        let Event::Probed { probes, .. } = event else { return };
        for probe in probes.iter() {
            self.open.remove(&probe.instance);
            self.answered.entry(probe.instance.clone()).or_default().push(self.now);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::List(provider) => {
                let result = Ok(self.running.iter().cloned().collect());
                self.later.push((self.now, Event::Listed { provider, result }));
            }
            Action::Launch { provider, batch } => {
                let mut outcomes = Vec::new();
                for id in &batch.instances {
                    let port = 20_000 + u16::try_from(self.running.len()).expect("few");
                    let address = Some(format!("http://127.0.0.1:{port}").parse().expect("valid"));
                    self.granted_at.insert(id.clone(), self.now);
                    self.running.push(ProviderInstance {
                        id: id.clone(),
                        instance_type: batch.instance_type.clone(),
                        variant: Some(batch.variant.clone()),
                        address: address.clone(),
                        status: ProviderStatus::Running,
                        interruption_at: None,
                    });
                    outcomes.push(LaunchOutcome {
                        instance: id.clone(),
                        result: Ok(Grant { address }),
                    });
                }
                self.later.push((self.now, Event::Launched { provider, outcomes }));
            }
            Action::Probe(probes) => {
                for probe in probes.iter() {
                    let id = &probe.instance;
                    assert_eq!(self.open.insert(id.clone(), self.now), None, "{id} is asked twice");
                    self.asked.entry(id.clone()).or_default().push(self.now);
                    let at = self.now + self.chance.within(self.slowest);
                    let event = Event::Probed { probes: [probe.clone()].into(), result: Ok(()) };
                    self.later.push((at, event));
                }
            }
            Action::Terminate { .. } | Action::Persist(_) | Action::Publish(_) => {}
        }
    }

    fn states(&self) -> BTreeMap<InstanceId, InstanceState> {
        let status = self.controller.status(self.now);
        let instances = &status.endpoints[0].variants[0].instances;
        instances.iter().map(|i| (i.id.clone(), i.state)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn each_is_asked_at_once_and_then_once_in_each_interval(
        seed: u64, count in 1_u32..30, interval in 50_u64..20_000, slowest in 0_u64..25_000,
    ) {
        let (interval, slowest) = (ms(interval), ms(slowest));
        let mut played = Played::new(seed, count, interval, slowest);
        played.run(slowest + interval * 12);
        prop_assert_eq!(played.asked.len(), count as usize);
        for (id, asked) in &played.asked {
            prop_assert!(played.granted_at[id].until(asked[0]) < AT_ONCE);
            let Some(answered) = played.answered.get(id) else { continue };
            // The first answer brings it into service: from there on it has its turns.
            for (n, at) in asked.iter().enumerate().skip(1) {
                let answered = answered[n - 1];
                prop_assert!(answered <= *at && answered.until(*at) <= interval, "{} at {}", id, at);
                let since_first = asked[1].until(*at).as_millis();
                prop_assert_eq!(since_first % interval.as_millis(), 0);
            }
            let last = asked.len().min(answered.len()) - 1;
            prop_assert!(answered.len() < asked.len() || answered[last].until(played.now) <= interval);
        }
    }

    #[test]
    fn a_new_interval_is_kept_from_then_on_and_an_old_one_keeps_its_moments(
        seed: u64, count in 1_u32..30, before in 1_u64..20, after in 1_u64..20,
    ) {
        let (before, after) = (secs(before), secs(after));
        let mut played = Played::new(seed, count, before, ms(500));
        played.run(before * 3);
        let first = std::mem::take(&mut played.asked);
        let event = Event::Reconfigured(spec(count, after));
        played.controller.handle_event(played.now, event);
        let changed_at = played.now;
        played.run(after * 3);
        for (id, asked) in &played.asked {
            // A turn that came while it had not answered an earlier one was passed over.
            prop_assert!(changed_at.until(asked[0]) <= after + ms(500));
            let even = asked.windows(2).all(|pair| pair[0].until(pair[1]) == after);
            prop_assert!(even, "{} is asked at {:?}", id, asked);
            if before == after {
                let last = first[id].last().copied().unwrap_or_default();
                prop_assert_eq!(last.until(asked[0]), after);
            }
        }
        prop_assert_eq!(played.asked.len(), count as usize);
    }
}

#[test]
fn the_turns_of_many_are_spread_over_the_interval() {
    let minute = secs(60);
    let mut played = Played::new(3, 640, minute, ms(20));
    played.run(secs(5));
    played.asked.clear();
    played.run(minute);
    let mut moments: BTreeMap<Timestamp, usize> = BTreeMap::new();
    for asked in played.asked.values() {
        assert_eq!(asked.len(), 1);
        *moments.entry(asked[0]).or_default() += 1;
    }
    let most = moments.values().max().copied().unwrap_or(0);
    assert!(moments.len() > 60 && most < 25, "{} moments, {most} at one of them", moments.len());
}

#[test]
fn what_leaves_service_is_asked_no_more() {
    let mut played = Played::new(5, 4, secs(5), ms(100));
    played.run(secs(20));
    let id = played.asked.keys().next().cloned().expect("one of four");
    played.controller.drain(played.now, id.as_str()).expect("known");
    let asked = played.asked[&id].len();
    played.run(secs(60));
    assert_eq!(played.asked[&id].len(), asked);
}

#[test]
fn one_that_a_proxy_cannot_reach_is_asked_soon_and_has_its_turn_all_the_same() {
    let mut played = Played::new(5, 1, secs(60), ms(100));
    played.run(secs(150));
    let (id, before) = played.asked.pop_first().expect("one");
    assert_eq!(played.states()[&id], InstanceState::InService);
    let backend = BackendReport {
        instance: id.clone(),
        generation: Generation(1),
        outstanding: 0,
        connect_failures: 1,
        progressed: false,
        stalled: false,
        load: None,
    };
    let mut report = ProxyReport {
        proxy: ProxyId::new("proxy-1").expect("valid"),
        run: 1,
        applied: played.controller.table().version,
        backends: Vec::new(),
        variants: Vec::new(),
        leaving: false,
        draining_until: None,
    };
    played.controller.handle_event(played.now, Event::Reported(report.clone()));
    report.backends.push(backend);
    let told_at = played.now;
    played.controller.handle_event(played.now, Event::Reported(report));
    played.run(secs(61));
    let asked = &played.asked[&id];
    assert!(told_at.until(asked[0]) < secs(1), "{asked:?}");
    assert_eq!(before[before.len() - 1].until(asked[1]), secs(60));
}
