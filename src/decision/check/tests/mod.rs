//! Every violation is found where it is and nowhere else: fixtures.

mod actions;
mod changes;

use std::sync::Arc;
use std::time::Duration;

use super::{Ledger, Violation};
use crate::decision::controller::{Action, Event, Probe};
use crate::types::launch::{Grant, LaunchBatch, LaunchOutcome, ProviderInstance, ProviderStatus};
use crate::types::record::{Change, InstanceRecord, LastChanges, StoredState, VariantRecord};
use crate::types::report::{BackendReport, ProxyReport};
use crate::types::spec::{
    EndpointSpec, Fallback, FleetSpec, HealthCheck, HealthSpec, InstanceTypeSpec, OnClientAbort,
    PoolSpec, QueueSpec, Rebalance, RebalanceSpec, RequestPolicy, RoutingStrategy, VariantSpec,
};
use crate::types::table::{BackendRoute, EndpointRoute, RoutingTable, TableVersion, VariantRoute};
use crate::types::{
    Generation, InstanceId, InstanceState, Protocol, ProviderError, ProviderName, ProxyId,
    Timestamp, VariantKey,
};

const NOW: Timestamp = Timestamp(1_000_000);

/// One variant `e/v` of 0 to 4 instances: pool `best` before pool `next`, both at provider `cloud`.
fn spec() -> FleetSpec {
    let kind = InstanceTypeSpec {
        provider: cloud(),
        capacity: None,
        max_concurrency: 4,
        copies: 1,
        protocol: Protocol::Http1,
        tls: None,
        addresses: Vec::new(),
        price_per_hour: None,
        watts: None,
        engine: None,
        on_client_abort: OnClientAbort::default(),
        signals: Default::default(),
    };
    let kinds = ["best", "next"].map(|name| (name.parse().expect("a name"), kind.clone()));
    let endpoint = EndpointSpec { name: key().endpoint, variants: vec![variant_spec()] };
    FleetSpec { instance_types: kinds.into(), endpoints: vec![endpoint] }
}

fn variant_spec() -> VariantSpec {
    let pool = |name: &str, priority| PoolSpec {
        instance_type: name.parse().expect("a name"),
        priority,
        model: None,
    };
    let minute = Duration::from_secs(60);
    VariantSpec {
        name: key().variant,
        model: "m".parse().expect("a name"),
        weight: 1.0,
        initial_instance_count: 1,
        min_instance_count: 0,
        max_instance_count: 4,
        routing: RoutingStrategy::Random,
        requests: RequestPolicy::default(),
        queue: QueueSpec { limit: 1, timeout: minute },
        scaling: Vec::new(),
        schedule: Vec::new(),
        provision_timeout: minute,
        fallback: Fallback::AtOnce,
        startup_timeout: minute,
        model_download_timeout: Duration::ZERO,
        health: HealthSpec {
            check: HealthCheck::Get("/ping".into()),
            interval: minute,
            startup_interval: minute,
            timeout: minute,
            unhealthy_threshold: 1,
        },
        drain_timeout: minute,
        rebalance: RebalanceSpec {
            mode: Rebalance::OnScaleOut,
            max_share: 0.1,
            min_interval: minute,
        },
        engine: None,
        scale_to_zero_after: None,
        pools: vec![pool("best", 1), pool("next", 2)],
    }
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
        scaled: LastChanges::default(),
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
    Ledger::new(NOW, Arc::new(spec), &stored, Duration::from_secs(30))
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
    ledger.note_event(NOW, &Event::Probed { probes: probe(name, generation), result });
}

fn probe(name: &str, generation: Generation) -> Arc<[Probe]> {
    let instance = record(name, InstanceState::InService);
    [Probe::to(instance.id, generation, instance.address.expect("in service"))].into()
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
                protocol: Protocol::Http1,
                tls: None,
                engine: None,
                on_client_abort: OnClientAbort::default(),
                load_metrics: None,
                recoveries: 0,
            }
        })
        .collect();
    let variant = VariantRoute {
        name: key().variant,
        model: "m".parse().expect("a name"),
        weight: 1.0,
        strategy: RoutingStrategy::Random,
        queue_limit: 1,
        queue_timeout_ms: 1,

        requests: RequestPolicy::default(),
        backends,
    };
    RoutingTable {
        format: RoutingTable::FORMAT,
        version: TableVersion { epoch: 1, revision },
        endpoints: vec![Arc::new(EndpointRoute { name: key().endpoint, variants: vec![variant] })],
    }
}

fn publish(ledger: &mut Ledger, revision: u64, names: &[&str]) -> Vec<Violation> {
    ledger.check_action(NOW, &Action::Publish(Arc::new(table(revision, names))))
}

fn reported(ledger: &mut Ledger, revision: u64, name: &str, outstanding: u32) {
    let report = ProxyReport {
        proxy: ProxyId::new("p").expect("an id"),
        run: 0,
        applied: TableVersion { epoch: 1, revision },
        backends: vec![BackendReport {
            instance: id(name),
            generation: record(name, InstanceState::InService).generation,
            outstanding,
            connect_failures: 0,
            progressed: false,
            stalled: false,
            load: None,
        }],
        variants: Vec::new(),
        leaving: false,
        draining_until: None,
    };
    ledger.note_event(NOW, &Event::Reported(report));
}

fn one(found: &[Violation]) -> String {
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].to_string()
}
