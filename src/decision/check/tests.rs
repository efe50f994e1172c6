//! Every violation is found where it is and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use super::{Ledger, Violation, check_table};
use crate::decision::controller::{Action, Event};
use crate::types::launch::{Grant, LaunchBatch, LaunchOutcome, ProviderInstance, ProviderStatus};
use crate::types::record::{Change, InstanceRecord, StoredState, VariantRecord};
use crate::types::report::{BackendReport, ProxyReport};
use crate::types::spec::{Fallback, FleetSpec, Rebalance};
use crate::types::table::{BackendRoute, EndpointRoute, RoutingTable, TableVersion, VariantRoute};
use crate::types::{
    Generation, InstanceId, InstanceState, ProviderError, ProviderName, ProxyId, Timestamp,
    VariantKey,
};

const CONFIG: &str = r#"
    [provider.cloud]
    kind = "process"
    command = ["true"]
    [instance_type.best]
    provider = "cloud"
    max_concurrency = 4
    [instance_type.next]
    provider = "cloud"
    max_concurrency = 4
    [[endpoint]]
    name = "e"
      [[endpoint.variant]]
      name = "v"
      model = "m"
      initial_instance_count = 1
      min_instance_count = 0
      max_instance_count = 4
      drain_timeout = "60s"
        [[endpoint.variant.pool]]
        instance_type = "best"
        priority = 1
        [[endpoint.variant.pool]]
        instance_type = "next"
        priority = 2
"#;

const NOW: Timestamp = Timestamp(1_000_000);

fn spec() -> FleetSpec {
    let (config, _) = crate::config::load_str(CONFIG, "test.toml").expect("a config");
    Arc::unwrap_or_clone(config.fleet)
}

fn id(text: &str) -> InstanceId {
    InstanceId::new(text).expect("an id")
}

fn key() -> VariantKey {
    VariantKey { endpoint: "e".parse().expect("a name"), variant: "v".parse().expect("a name") }
}

fn cloud() -> ProviderName {
    "cloud".parse().expect("a name")
}

/// An instance called like its pool and generation, for example `best-3`.
fn record(name: &str, state: InstanceState) -> InstanceRecord {
    let (kind, generation) = name.split_once('-').expect("type-generation");
    let was = |from: InstanceState| (state >= from).then_some(NOW);
    InstanceRecord {
        id: id(name),
        generation: Generation(generation.parse().expect("a number")),
        variant: key(),
        instance_type: kind.parse().expect("a name"),
        provider: cloud(),
        priority: if kind == "best" { 1 } else { 2 },
        model: "m".parse().expect("a name"),
        copies: 1,
        max_concurrency: 4,
        state,
        address: was(InstanceState::Starting)
            .map(|_| format!("http://127.0.0.1:{}", 9000 + generation.len()).parse().expect("one")),
        asked_at: NOW,
        granted_at: was(InstanceState::Starting),
        in_service_at: was(InstanceState::InService),
        draining_since: was(InstanceState::Draining),
        drain_deadline: was(InstanceState::Draining).map(|now| now + Duration::from_secs(60)),
        leaving_because: None,
    }
}

fn variant(desired: u32) -> VariantRecord {
    VariantRecord {
        variant: key(),
        desired,
        configured_initial: 1,
        was_in_service: true,
        round: None,
    }
}

/// Books of a fleet of these instances and this desired count.
fn ledger(spec: FleetSpec, desired: u32, instances: &[(&str, InstanceState)]) -> Ledger {
    let stored = StoredState {
        next_generation: 100,
        instances: instances.iter().map(|(name, state)| record(name, *state)).collect(),
        variants: vec![variant(desired)],
        ..StoredState::default()
    };
    Ledger::new(Arc::new(spec), &stored, Duration::from_secs(30))
}

fn put(ledger: &mut Ledger, name: &str, state: InstanceState) -> Vec<Violation> {
    persist(ledger, vec![Change::PutInstance(record(name, state))])
}

fn persist(ledger: &mut Ledger, changes: Vec<Change>) -> Vec<Violation> {
    ledger.check_action(NOW, &Action::Persist(changes))
}

fn batch(names: &[&str]) -> LaunchBatch {
    LaunchBatch {
        instances: names.iter().map(|name| id(name)).collect(),
        instance_type: "best".parse().expect("a name"),
        variant: key(),
        model: "m".parse().expect("a name"),
        copies: 1,
        max_concurrency: 4,
    }
}

fn launch(ledger: &mut Ledger, names: &[&str]) -> Vec<Violation> {
    ledger.check_action(NOW, &Action::Launch { provider: cloud(), batch: batch(names) })
}

fn launched(ledger: &mut Ledger, name: &str, result: Result<Grant, ProviderError>) {
    let outcomes = vec![LaunchOutcome { instance: id(name), result }];
    ledger.note_event(NOW, &Event::Launched { provider: cloud(), outcomes });
}

fn listed(ledger: &mut Ledger, names: &[&str]) {
    assert_eq!(ledger.check_action(NOW, &Action::List(cloud())), []);
    answer_list(ledger, names);
}

fn answer_list(ledger: &mut Ledger, names: &[&str]) {
    let instances = names
        .iter()
        .map(|name| ProviderInstance {
            id: id(name),
            instance_type: "best".parse().expect("a name"),
            variant: Some(key()),
            address: None,
            status: ProviderStatus::Running,
            interruption_at: None,
        })
        .collect();
    ledger.note_event(NOW, &Event::Listed { provider: cloud(), result: Ok(instances) });
}

fn probed(ledger: &mut Ledger, name: &str, result: Result<(), String>) {
    let generation = record(name, InstanceState::Starting).generation;
    ledger.note_event(NOW, &Event::Probed { instance: id(name), generation, result });
}

fn table(revision: u64, names: &[&str]) -> RoutingTable {
    let backends = names
        .iter()
        .map(|name| {
            let record = record(name, InstanceState::InService);
            BackendRoute {
                instance: record.id,
                generation: record.generation,
                instance_type: record.instance_type,
                address: record.address.expect("in service"),
                model: record.model,
                copies: 1,
                max_concurrency: 4,
                protocol: crate::types::Protocol::Http1,
            }
        })
        .collect();
    let variant = VariantRoute {
        name: key().variant,
        model: "m".parse().expect("a name"),
        weight: 1.0,
        strategy: crate::types::spec::RoutingStrategy::Random,
        queue_limit: 1,
        queue_timeout_ms: 1,
        hold_when_empty: false,
        backends,
    };
    RoutingTable {
        format: RoutingTable::FORMAT,
        version: TableVersion { epoch: 1, revision },
        endpoints: vec![EndpointRoute { name: key().endpoint, variants: vec![variant] }],
    }
}

fn publish(ledger: &mut Ledger, revision: u64, names: &[&str]) -> Vec<Violation> {
    ledger.check_action(NOW, &Action::Publish(Arc::new(table(revision, names))))
}

fn reported(ledger: &mut Ledger, revision: u64, name: &str, outstanding: u32) {
    let report = ProxyReport {
        proxy: ProxyId::new("p").expect("an id"),
        applied: TableVersion { epoch: 1, revision },
        backends: vec![BackendReport {
            instance: id(name),
            generation: record(name, InstanceState::InService).generation,
            outstanding,
            connect_failures: 0,
        }],
        variants: Vec::new(),
        leaving: false,
    };
    ledger.note_event(NOW, &Event::Reported(report));
}

fn one(found: &[Violation]) -> String {
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].to_string()
}

use InstanceState::{Draining, InService, Pending, Starting, Stopping};

#[test]
fn a_whole_life_is_right() {
    let books = &mut ledger(spec(), 1, &[]);
    assert_eq!(put(books, "best-100", Pending), []);
    assert_eq!(launch(books, &["best-100"]), []);
    launched(books, "best-100", Err(ProviderError::unavailable("no answer")));
    assert_eq!(launch(books, &["best-100"]), []);
    launched(books, "best-100", Ok(Grant { address: None }));
    assert_eq!(put(books, "best-100", Starting), []);
    probed(books, "best-100", Ok(()));
    assert_eq!(put(books, "best-100", InService), []);
    assert_eq!(publish(books, 1, &["best-100"]), []);
    reported(books, 1, "best-100", 3);
    assert_eq!(persist(books, vec![Change::PutVariant(variant(0))]), []);
    assert_eq!(put(books, "best-100", Draining), []);
    assert_eq!(publish(books, 2, &[]), []);
    reported(books, 2, "best-100", 0);
    assert_eq!(put(books, "best-100", Stopping), []);
    let terminate = Action::Terminate { provider: cloud(), instance: id("best-100") };
    assert_eq!(books.check_action(NOW, &terminate), []);
    listed(books, &[]);
    assert_eq!(persist(books, vec![Change::DeleteInstance(id("best-100"))]), []);
}

#[test]
fn tables_are_checked_alone_and_beside_the_last() {
    let first = table(5, &["best-1", "best-2"]);
    assert_eq!(check_table(None, &first), []);
    assert_eq!(check_table(Some(&first), &table(6, &[])), []);
    assert_eq!(one(&check_table(Some(&first), &first)), "table 1.5 does not come after 1.5");
    let twice = check_table(None, &table(1, &["best-1", "best-1"]));
    assert_eq!(one(&twice), "instance best-1 generation 1 is in the table twice");
    let mut bad = table(1, &["best-1"]);
    bad.endpoints[0].variants[0].weight = f64::NAN;
    bad.endpoints[0].variants[0].backends[0].copies = 0;
    bad.endpoints.push(bad.endpoints[0].clone());
    bad.endpoints[1].variants.clear();
    let found: Vec<String> = check_table(None, &bad).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "e/v has weight NaN",
            "backend best-1 has copies 0",
            "e is in the table twice",
            "e is in the table without a variant"
        ]
    );
}

#[test]
fn a_table_holds_what_is_in_service_and_nothing_else() {
    let states = [("best-1", InService), ("best-2", Draining), ("best-3", InService)];
    let books = &mut ledger(spec(), 3, &states);
    let found = publish(books, 1, &["best-1", "best-2", "best-4"]);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "instance best-2 is in the table and Draining",
            "instance best-4 is in the table and has no record",
            "instance best-3 is in service and missing from the table"
        ]
    );
    let mut other = table(2, &["best-1", "best-3"]);
    other.endpoints[0].variants[0].backends[0].generation = Generation(9);
    let found = books.check_action(NOW, &Action::Publish(Arc::new(other)));
    assert_eq!(one(&found), "backend best-1 has generation 9 for 1");
    let mut nameless = table(3, &["best-1", "best-3"]);
    nameless.endpoints[0].name = "f".parse().expect("a name");
    let found = books.check_action(NOW, &Action::Publish(Arc::new(nameless)));
    assert!(found.iter().any(|v| v.to_string() == "f/v is in the table and not configured"));
    assert!(found.iter().any(|v| v.to_string() == "e/v is configured and missing from the table"));
}

#[test]
fn no_edge_leads_back() {
    for (from, to) in [
        (Draining, InService),
        (Stopping, Draining),
        (Starting, Pending),
        (InService, Starting),
        (Pending, InService),
    ] {
        let books = &mut ledger(spec(), 1, &[("best-1", from)]);
        let found = put(books, "best-1", to);
        let expected = format!("instance best-1 goes from {from} to {to}");
        assert!(found.iter().any(|v| v.to_string() == expected), "{found:?}");
    }
    let books = &mut ledger(spec(), 1, &[]);
    assert_eq!(
        one(&put(books, "best-100", Starting)),
        "instance best-100 goes from nothing to Starting"
    );
    let books = &mut ledger(spec(), 1, &[("best-1", Starting)]);
    assert!(one(&put(books, "best-1", InService)).ends_with("without a healthy answer"));
}

#[test]
fn launches_need_a_pending_record_and_one_call_at_a_time() {
    let books = &mut ledger(spec(), 4, &[("best-1", Pending), ("best-2", Stopping)]);
    assert_eq!(
        one(&launch(books, &["best-7"])),
        "instance best-7 is launched and has no durable record"
    );
    assert_eq!(one(&launch(books, &["best-2"])), "instance best-2 is launched and is Stopping");
    assert!(
        one(&launch(books, &["best-1", "best-1"])).ends_with("is in the batch twice")
            || !launch(books, &["best-1", "best-1"]).is_empty()
    );
    launched(books, "best-1", Err(ProviderError::unavailable("no answer")));
    assert_eq!(launch(books, &["best-1"]), []);
    assert!(one(&launch(books, &["best-1"])).contains("still under way"));
    assert!(one(&launch(books, &[])).contains("a launch batch has instances none"));
}

#[test]
fn nothing_grows_past_its_size_and_surge() {
    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    let found = put(books, "best-100", Pending);
    assert_eq!(one(&found), "e/v grows to 2 instances with 1 desired and a surge of 0");
    let found = put(&mut ledger(spec(), 1, &[]), "best-7", Pending);
    assert!(one(&found).contains("generation 7, which is not new"));

    let mut parallel = spec();
    parallel.endpoints[0].variants[0].fallback = Fallback::Parallel;
    let books = &mut ledger(parallel, 1, &[("best-1", Pending)]);
    assert_eq!(put(books, "next-100", Pending), []);
    assert!(!put(books, "next-101", Pending).is_empty());

    let mut active = spec();
    active.endpoints[0].variants[0].rebalance.mode = Rebalance::Active;
    let books = &mut ledger(active, 1, &[("next-1", InService)]);
    assert_eq!(put(books, "best-100", Pending), []);
    assert!(!put(books, "best-101", Pending).is_empty());

    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    probed(books, "best-1", Err("connection refused".into()));
    assert_eq!(put(books, "best-100", Pending), []);

    let found = persist(books, vec![Change::PutVariant(variant(5))]);
    assert_eq!(one(&found), "e/v is to have 5 instances, outside of 0 to 4");
}

#[test]
fn fallback_leaves_first_and_never_below_desired() {
    let fleet = [("best-1", InService), ("next-2", InService)];
    let books = &mut ledger(spec(), 1, &fleet);
    let found = put(books, "best-1", Draining);
    assert_eq!(
        one(&found),
        "instance best-1 of priority 1 leaves while next-2 of priority 2 stays"
    );
    let books = &mut ledger(spec(), 1, &fleet);
    assert_eq!(put(books, "next-2", Draining), []);
    assert_eq!(
        one(&put(books, "best-1", Draining)),
        "instance best-1 of e/v leaves by choice; 0 remain of 1 desired"
    );
    // A drain that was asked for, or a death, is nobody's choice.
    let books = &mut ledger(spec(), 2, &fleet);
    books.note_drain("best-1");
    assert_eq!(put(books, "best-1", Draining), []);
    // While nothing was scaled in, a replacement must serve before the one it replaces leaves.
    let books = &mut ledger(spec(), 1, &[("next-2", InService)]);
    persist(books, vec![Change::PutVariant(variant(2))]);
    assert_eq!(put(books, "best-100", Pending), []);
    assert!(!put(books, "next-2", Draining).is_empty());
}

#[test]
fn a_drain_has_its_time() {
    let books = &mut ledger(spec(), 0, &[("best-1", InService)]);
    let mut short = record("best-1", Draining);
    short.drain_deadline = Some(NOW + Duration::from_secs(59));
    let found = persist(books, vec![Change::PutInstance(short)]);
    assert!(one(&found).starts_with("instance best-1 drains until"));
}

#[test]
fn nothing_is_stopped_under_running_requests() {
    let books = &mut ledger(spec(), 0, &[("best-1", InService)]);
    assert_eq!(publish(books, 1, &["best-1"]), []);
    let early = |books: &mut Ledger, why: &str| {
        let found = put(books, "best-1", Stopping);
        assert!(one(&found).contains(why), "{found:?}");
    };
    early(&mut ledger(spec(), 0, &[("best-1", Draining)]), "no table without it");
    assert_eq!(put(books, "best-1", Draining), []);
    assert_eq!(publish(books, 2, &[]), []);
    reported(books, 1, "best-1", 0);
    let copy = |reports: &[(u64, u32)]| {
        let books = &mut ledger(spec(), 0, &[("best-1", Draining)]);
        assert_eq!(publish(books, 2, &[]), []);
        for (revision, outstanding) in reports {
            reported(books, *revision, "best-1", *outstanding);
        }
        put(books, "best-1", Stopping)
    };
    assert!(one(&copy(&[(1, 0)])).contains("proxy p routes by 1.1, it left with 1.2"));
    assert!(one(&copy(&[(2, 4)])).contains("proxy p has 4 requests there"));
    assert_eq!(copy(&[(2, 4), (2, 0)]), []);
    // Its deadline has passed.
    let books = &mut ledger(spec(), 0, &[("best-1", Draining)]);
    let stop = Action::Persist(vec![Change::PutInstance(record("best-1", Stopping))]);
    assert_eq!(books.check_action(NOW + Duration::from_secs(60), &stop), []);
    // Only what is being stopped, or belongs to nobody, is terminated.
    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    let mut terminate = |name: &str| {
        books.check_action(NOW, &Action::Terminate { provider: cloud(), instance: id(name) })
    };
    assert!(one(&terminate("best-1")).contains("is InService"));
    assert!(one(&terminate("best-9")).contains("neither recorded nor listed"));
    listed(books, &["best-1", "best-9"]);
    let terminate = Action::Terminate { provider: cloud(), instance: id("best-9") };
    assert_eq!(books.check_action(NOW, &terminate), []);
}

#[test]
fn nothing_is_forgotten_while_it_may_run() {
    let delete = |books: &mut Ledger| persist(books, vec![Change::DeleteInstance(id("best-100"))]);
    let asked = || {
        let mut books = ledger(spec(), 1, &[]);
        put(&mut books, "best-100", Pending);
        books
    };
    // Never sent.
    assert_eq!(delete(&mut asked()), []);
    // Sent, and perhaps carried out.
    let books = &mut asked();
    assert_eq!(launch(books, &["best-100"]), []);
    launched(books, "best-100", Err(ProviderError::unavailable("no answer")));
    assert!(one(&delete(books)).contains("(Pending) is deleted while it may still run"));
    // Refused.
    let books = &mut asked();
    assert_eq!(launch(books, &["best-100"]), []);
    let reason = "none left".to_owned();
    launched(books, "best-100", Err(ProviderError::InsufficientCapacity { reason }));
    assert_eq!(delete(books), []);
    // A list that was begun before the grant says nothing of it.
    let books = &mut asked();
    assert_eq!(launch(books, &["best-100"]), []);
    assert_eq!(books.check_action(NOW, &Action::List(cloud())), []);
    launched(books, "best-100", Ok(Grant { address: None }));
    answer_list(books, &[]);
    assert!(!delete(books).is_empty());
}

#[test]
fn one_list_and_right_probes() {
    let books = &mut ledger(spec(), 1, &[("best-1", InService)]);
    assert_eq!(books.check_action(NOW, &Action::List(cloud())), []);
    let again = books.check_action(NOW, &Action::List(cloud()));
    assert_eq!(one(&again), "provider cloud is listed while a list of it is under way");
    let mut probe = |generation| {
        let instance = record("best-1", InService);
        books.check_action(
            NOW,
            &Action::Probe {
                instance: instance.id,
                generation: Generation(generation),
                address: instance.address.expect("in service"),
                path: "/ping".into(),
                timeout: Duration::from_secs(1),
            },
        )
    };
    assert_eq!(probe(1), []);
    assert!(one(&probe(2)).contains("has no such record"));
}
