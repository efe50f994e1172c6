//! Answers that cross each other: old lists and new grants, late launches, late probes. Played by hand,
//! event by event.

use std::sync::Arc;

use super::specs::*;
use crate::decision::controller::{Action, Controller, Event, Probe};
use crate::types::launch::{Grant, LaunchOutcome, Listing, ProviderInstance, ProviderStatus};
use crate::types::record::{Change, StoredState};
use crate::types::report::{BackendReport, ProxyReport};
use crate::types::{
    Address, Generation, InstanceId, InstanceState, ProviderError, ProviderName, Timestamp,
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn local() -> ProviderName {
    ProviderName::new("local").expect("a valid name")
}

struct Hand {
    controller: Controller,
    now: Timestamp,
}

impl Hand {
    fn new(initial: u32) -> Self {
        let mut spec = variant(&[(G6, 1)], initial);
        spec.min_instance_count = 0;
        let spec = fleet(&[("e", spec)]);
        let controller = Controller::new(1, NOW, spec, StoredState::default(), 7);
        Self { controller, now: NOW }
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.controller.poll_action()).collect()
    }

    fn feed(&mut self, event: Event) -> Vec<Action> {
        self.controller.handle_event(self.now, event);
        self.actions()
    }

    fn listed(&mut self, ids: &[&InstanceId]) -> Vec<Action> {
        let result = Ok(ids.iter().map(|id| running(id)).collect());
        self.feed(Event::Listed { provider: local(), result })
    }

    fn launched(&mut self, id: &InstanceId, result: Result<(), ProviderError>) -> Vec<Action> {
        let address = Some("http://127.0.0.1:9001".parse().expect("an address"));
        let result = result.map(|()| Grant { address });
        let outcomes = vec![LaunchOutcome { instance: id.clone(), result }];
        self.feed(Event::Launched { provider: local(), outcomes })
    }

    /// Lets time pass until a list is asked for; everything else is dropped.
    fn until_list(&mut self) {
        for _ in 0..1_000 {
            self.now = self.controller.poll_timeout().expect("something is due").max(self.now);
            self.controller.handle_timeout(self.now);
            if self.actions().iter().any(|a| matches!(a, Action::List(_))) {
                return;
            }
        }
        panic!("no list was asked for");
    }

    fn states(&self) -> Vec<InstanceState> {
        let status = self.controller.status(self.now);
        status.endpoints[0].variants[0].instances.iter().map(|i| i.state).collect()
    }
}

fn running(id: &InstanceId) -> ProviderInstance {
    ProviderInstance {
        id: id.clone(),
        instance_type: kind(G6),
        variant: Some(key("e")),
        address: Some("http://127.0.0.1:9001".parse().expect("an address")),
        status: ProviderStatus::Running,
        interruption_at: None,
    }
}

fn launch_of(actions: &[Action]) -> Vec<InstanceId> {
    let batches = actions.iter().filter_map(|a| match a {
        Action::Launch { batch, .. } => Some(batch.instances.clone()),
        _ => None,
    });
    batches.flatten().collect()
}

fn terminates(actions: &[Action], id: &InstanceId) -> bool {
    actions.iter().any(|a| matches!(a, Action::Terminate { instance, .. } if instance == id))
}

fn deletes(actions: &[Action], id: &InstanceId) -> bool {
    let changes = actions.iter().filter_map(|a| match a {
        Action::Persist(changes) => Some(changes),
        _ => None,
    });
    changes.flatten().any(|c| *c == Change::DeleteInstance(id.clone()))
}

#[test]
fn nothing_is_launched_before_the_first_list_and_a_record_comes_before_its_launch() {
    let mut hand = Hand::new(1);
    let first = hand.actions();
    assert!(launch_of(&first).is_empty());
    assert!(matches!(first[..], [Action::Persist(_), Action::Publish(_), Action::List(_)]));
    let then = hand.listed(&[]);
    assert!(matches!(then[..], [Action::Persist(_), Action::Launch { .. }]), "{then:?}");
}

#[test]
fn a_list_begun_before_the_grant_does_not_prove_absence() {
    let mut hand = Hand::new(1);
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    hand.until_list();
    hand.launched(&id, Ok(()));
    assert_eq!(hand.states(), [InstanceState::Starting]);
    hand.listed(&[]);
    assert_eq!(hand.states(), [InstanceState::Starting], "that list was older than the grant");
    hand.until_list();
    assert!(deletes(&hand.listed(&[]), &id), "this one is younger");
}

#[test]
fn one_that_is_no_longer_wanted_is_terminated_only_after_its_launch_was_answered() {
    let mut hand = Hand::new(1);
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    let now = hand.now;
    hand.controller.set_desired(now, "e", None, 0).expect("within bounds");
    assert!(!terminates(&hand.actions(), &id), "it would overtake the launch");
    hand.until_list();
    assert!(!deletes(&hand.listed(&[]), &id), "the launch may still land");
    assert!(terminates(&hand.launched(&id, Ok(())), &id));
    hand.until_list();
    hand.listed(&[&id]);
    assert_eq!(hand.states(), [InstanceState::Stopping]);
    hand.feed(Event::Terminated { instance: id.clone(), result: Ok(()) });
    hand.until_list();
    assert!(deletes(&hand.listed(&[]), &id));
}

#[test]
fn one_whose_launch_had_no_answer_is_forgotten_only_after_its_termination_was_answered() {
    let mut hand = Hand::new(1);
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    hand.launched(&id, Err(ProviderError::unavailable("timeout")));
    let now = hand.now;
    hand.controller.set_desired(now, "e", None, 0).expect("within bounds");
    assert!(terminates(&hand.actions(), &id));
    hand.until_list();
    assert!(!deletes(&hand.listed(&[]), &id), "nobody has said that it does not exist");
    hand.until_list();
    let result = Err(ProviderError::NotFound);
    hand.feed(Event::Terminated { instance: id.clone(), result });
    assert!(!deletes(&hand.listed(&[]), &id), "that list was begun before the answer");
    hand.until_list();
    assert!(deletes(&hand.listed(&[]), &id));
}

#[test]
fn a_refusal_ends_even_one_that_was_to_be_stopped() {
    let mut hand = Hand::new(1);
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    let now = hand.now;
    hand.controller.set_desired(now, "e", None, 0).expect("within bounds");
    hand.actions();
    let reason = "none left".to_owned();
    let refused = Err(ProviderError::InsufficientCapacity { reason });
    assert!(deletes(&hand.launched(&id, refused), &id));
    assert_eq!(hand.states(), []);
}

#[test]
fn a_list_may_tell_of_a_launch_before_its_answer_does() {
    let mut hand = Hand::new(1);
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    hand.until_list();
    hand.listed(&[&id]);
    assert_eq!(hand.states(), [InstanceState::Starting]);
    hand.launched(&id, Err(ProviderError::unavailable("timeout")));
    assert_eq!(hand.states(), [InstanceState::Starting], "it runs, whatever the answer was");
}

/// A probe of a start of an instance has found it healthy.
fn healthy(id: &InstanceId, generation: u64) -> Event {
    let address = Address::http(([127, 0, 0, 1], 9000).into());
    let probe = Probe::to(id.clone(), Generation(generation), address);
    Event::Probed { probes: [probe].into(), result: Ok(()) }
}

#[test]
fn probes_of_another_start_or_unasked_for_change_nothing() {
    let mut hand = Hand::new(1);
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    hand.launched(&id, Ok(()));
    let probed = |generation| healthy(&id, generation);
    hand.feed(probed(1));
    assert_eq!(hand.states(), [InstanceState::Starting], "nobody has asked yet");
    hand.now = hand.now + secs(1);
    let now = hand.now;
    hand.controller.handle_timeout(now);
    assert!(hand.actions().iter().any(|a| matches!(a, Action::Probe(_))));
    hand.feed(probed(9));
    assert_eq!(hand.states(), [InstanceState::Starting]);
    hand.feed(probed(1));
    assert_eq!(hand.states(), [InstanceState::InService]);
}

#[test]
fn a_probe_that_is_never_answered_counts_as_failed() {
    let mut hand = Hand::new(1);
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    hand.launched(&id, Ok(()));
    hand.now = hand.now + secs(1);
    let now = hand.now;
    hand.controller.handle_timeout(now);
    hand.actions();
    hand.feed(healthy(&id, 1));
    assert_eq!(hand.states(), [InstanceState::InService]);
    for _ in 0..200 {
        hand.now = hand.controller.poll_timeout().expect("due").max(hand.now);
        let now = hand.now;
        hand.controller.handle_timeout(now);
        hand.actions();
        if hand.states() != [InstanceState::InService] {
            break;
        }
    }
    let late = hand.now.since(NOW);
    assert!((secs(15)..secs(60)).contains(&late), "taken out after {late:?}");
    let told = hand.controller.explain(hand.now, "e").expect("known");
    assert!(told.events.iter().any(|e| e.message.contains("the probe was never answered")));
}

/// Brings the first instance into service.
fn in_service(hand: &mut Hand) -> InstanceId {
    hand.actions();
    let id = launch_of(&hand.listed(&[])).remove(0);
    hand.launched(&id, Ok(()));
    hand.now = hand.now + secs(1);
    let now = hand.now;
    hand.controller.handle_timeout(now);
    hand.actions();
    hand.feed(healthy(&id, 1));
    assert_eq!(hand.states(), [InstanceState::InService]);
    id
}

#[test]
fn one_that_a_report_leaves_out_has_nothing_to_tell() {
    let mut hand = Hand::new(1);
    let id = in_service(&mut hand);
    let report = |hand: &Hand, outstanding, connect_failures| {
        let whole = ProxyReport {
            proxy: "p".parse().expect("a name"),
            run: 1,
            applied: hand.controller.table().version,
            backends: vec![BackendReport {
                instance: id.clone(),
                generation: Generation(1),
                outstanding,
                connect_failures,
                progressed: false,
                stalled: false,
                load: None,
            }],
            variants: Vec::new(),
            leaving: false,
            draining_until: None,
        };
        Event::Reported(whole.short())
    };
    let outstanding = |hand: &Hand| {
        let status = hand.controller.status(hand.now);
        status.endpoints[0].variants[0].instances[0].outstanding
    };
    let lists = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::List(_)));
    hand.feed(report(&hand, 3, 0));
    assert_eq!(outstanding(&hand), 3);
    hand.until_list();
    hand.listed(&[&id]);
    hand.now = hand.now + secs(1);
    let quiet = hand.feed(report(&hand, 0, 0));
    assert!(!lists(&quiet), "{quiet:?}");
    assert_eq!(outstanding(&hand), 0, "it was left out");
    let broken = hand.feed(report(&hand, 0, 1));
    assert!(lists(&broken), "a connection has broken: {broken:?}");
}

#[test]
fn the_same_list_is_news_to_a_fleet_that_has_changed() {
    let mut hand = Hand::new(1);
    let id = in_service(&mut hand);
    let list: Listing = vec![running(&id)].into();
    let shows = |hand: &mut Hand| {
        hand.until_list();
        hand.feed(Event::Listed { provider: local(), result: Ok(list.clone()) })
    };
    assert!(!terminates(&shows(&mut hand), &id));
    assert!(!terminates(&shows(&mut hand), &id));
    let now = hand.now;
    hand.controller.set_desired(now, "e", None, 0).expect("within bounds");
    hand.until_list();
    let gone = hand.feed(Event::Listed { provider: local(), result: Ok(Vec::new().into()) });
    assert!(deletes(&gone, &id));
    assert!(terminates(&shows(&mut hand), &id), "nobody knows it any more");
}

#[test]
fn what_a_part_of_a_list_no_longer_shows_is_gone() {
    let mut hand = Hand::new(2);
    hand.actions();
    let ids = launch_of(&hand.listed(&[]));
    let [one, other] = &ids[..] else { panic!("{ids:?}") };
    hand.launched(one, Ok(()));
    hand.launched(other, Ok(()));
    let parts: Vec<Arc<[ProviderInstance]>> =
        [one, other].map(|id| [running(id)].into()).into_iter().collect();
    let shows = |hand: &mut Hand, parts: &[Arc<[ProviderInstance]>]| {
        hand.until_list();
        hand.feed(Event::Listed { provider: local(), result: Ok(Listing::of(parts.to_vec())) })
    };
    for _ in 0..2 {
        let nothing = shows(&mut hand, &parts);
        assert!(!deletes(&nothing, one) && !deletes(&nothing, other), "{nothing:?}");
    }
    let less = shows(&mut hand, &parts[..1]);
    assert!(!deletes(&less, one) && deletes(&less, other), "{less:?}");
    let more = shows(&mut hand, &parts);
    assert!(terminates(&more, other), "it is nobody's: {more:?}");
}
