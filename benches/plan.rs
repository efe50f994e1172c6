//! The manager's rounds at 100 endpoints with 100 instances each: the planner alone for every variant, and the
//! controller with all that a round is: taking the event in, planning, writing down, publishing the table.
//! Figures are in `README.md` beside this file.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay::config;
use forebay::decision::controller::{Controller, Event};
use forebay::decision::plan::{Member, Observed, PoolView, plan};
use forebay::types::launch::{ProviderInstance, ProviderStatus};
use forebay::types::record::{InstanceRecord, StoredState};
use forebay::types::report::{BackendReport, DemandReport, ProxyReport};
use forebay::types::spec::FleetSpec;
use forebay::types::{Generation, InstanceState, Timestamp, VariantKey};

const ENDPOINTS: usize = 100;
const INSTANCES: usize = 100;
const NOW: Timestamp = Timestamp(1_735_689_600_000);

/// Two pools each; what the drain timeout is makes one config differ from another.
fn fleet(drain_timeout: &str) -> Arc<FleetSpec> {
    let mut text = String::from("[provider.cloud]\nkind = \"process\"\ncommand = [\"true\"]\n");
    for kind in ["first", "second"] {
        let _ = writeln!(text, "[instance_type.{kind}]\nprovider = \"cloud\"\nmax_concurrency = 8");
    }
    for endpoint in 0..ENDPOINTS {
        let _ = writeln!(
            text,
            "[[endpoint]]\nname = \"endpoint-{endpoint}\"\n\
             [[endpoint.variant]]\nname = \"primary\"\nmodel = \"model-{endpoint}\"\n\
             initial_instance_count = {INSTANCES}\nmax_instance_count = {}\n\
             drain_timeout = \"{drain_timeout}\"\n\
             [[endpoint.variant.pool]]\ninstance_type = \"first\"\npriority = 1\n\
             [[endpoint.variant.pool]]\ninstance_type = \"second\"\npriority = 2",
            2 * INSTANCES
        );
    }
    config::load_str(&text, "bench.toml").expect("a config").0.fleet
}

fn variants(fleet: &FleetSpec) -> Vec<VariantKey> {
    let names = fleet.variants();
    names.map(|(e, v)| VariantKey { endpoint: e.name.clone(), variant: v.name.clone() }).collect()
}

/// All in service, every fifth of them fallback.
fn records(fleet: &FleetSpec) -> Vec<InstanceRecord> {
    let valid = "a valid name";
    let mut records = Vec::new();
    for (number, variant) in variants(fleet).into_iter().enumerate() {
        for place in 0..INSTANCES {
            let count = number * INSTANCES + place;
            let fallback = place % 5 == 0;
            let address = format!("http://10.0.{}.{}:9000", count / 250, count % 250 + 1);
            records.push(InstanceRecord {
                id: format!("{}-{place}-abcdef", variant.endpoint).parse().expect(valid),
                generation: Generation(count as u64 + 1),
                variant: variant.clone(),
                instance_type: if fallback { "second" } else { "first" }.parse().expect(valid),
                provider: "cloud".parse().expect(valid),
                priority: if fallback { 2 } else { 1 },
                model: format!("model-{number}").parse().expect(valid),
                copies: 1,
                max_concurrency: 8,
                state: InstanceState::InService,
                address: Some(address.parse().expect(valid)),
                asked_at: NOW - Duration::from_secs(9_000),
                granted_at: Some(NOW - Duration::from_secs(8_990)),
                in_service_at: Some(NOW - Duration::from_secs(8_900)),
                draining_since: None,
                drain_deadline: None,
                leaving_because: None,
            });
        }
    }
    records
}

/// What the provider runs: everything.
fn list(records: &[InstanceRecord]) -> Event {
    let running = |record: &InstanceRecord| ProviderInstance {
        id: record.id.clone(),
        instance_type: record.instance_type.clone(),
        variant: Some(record.variant.clone()),
        address: record.address.clone(),
        status: ProviderStatus::Running,
        interruption_at: None,
    };
    let result = Ok(records.iter().map(running).collect());
    Event::Listed { provider: "cloud".parse().expect("a valid name"), result }
}

/// One proxy, with a request or two at every instance.
fn report(fleet: &FleetSpec, records: &[InstanceRecord], controller: &Controller) -> Event {
    let backends = records.iter().map(|record| BackendReport {
        instance: record.id.clone(),
        generation: record.generation,
        outstanding: 1,
        connect_failures: 0,
        progressed: true,
        stalled: false,
        load: None,
    });
    let demand = variants(fleet).into_iter().map(|variant| DemandReport {
        variant,
        queued: 0,
        outstanding: 100,
        arrivals: 1_000,
        types: Vec::new(),
    });
    Event::Reported(ProxyReport {
        proxy: "proxy-0".parse().expect("a valid name"),
        run: 1,
        applied: controller.table().version,
        backends: backends.collect(),
        variants: demand.collect(),
        leaving: false,
        draining_until: None,
    })
}

/// A manager that has found everything as it left it, and heard its proxy.
fn controller(fleet: &Arc<FleetSpec>, records: &[InstanceRecord]) -> Controller {
    let stored = StoredState {
        next_generation: records.len() as u64 + 1,
        instances: records.to_vec(),
        ..StoredState::default()
    };
    let mut controller = Controller::new(1, NOW, Arc::clone(fleet), stored, 7);
    controller.handle_timeout(NOW);
    carry_out(&mut controller);
    controller.handle_event(NOW + Duration::from_millis(500), list(records));
    carry_out(&mut controller);
    let heard = report(fleet, records, &controller);
    controller.handle_event(NOW + Duration::from_millis(600), heard);
    carry_out(&mut controller);
    controller
}

/// Takes every action; how many there were.
fn carry_out(controller: &mut Controller) -> usize {
    std::iter::from_fn(|| controller.poll_action().map(black_box)).count()
}

fn planner(c: &mut Criterion) {
    let fleet = fleet("60s");
    let records = records(&fleet);
    // One is missing in each variant, so that there is something to plan.
    let seen: Vec<Observed> = records
        .chunks(INSTANCES)
        .map(|records| Observed {
            desired: 100,
            members: records[1..].iter().map(member).collect(),
            pools: vec![PoolView::default(); 2],
            last_move_at: Timestamp(0),
        })
        .collect();
    c.bench_function("planner/100_variants_of_100_with_one_missing", |b| {
        b.iter(|| {
            let specs = fleet.variants().map(|(_, spec)| spec);
            let plans = specs.zip(&seen).map(|(spec, seen)| plan(spec, seen, None, NOW));
            let launches: usize = plans.map(|plan| black_box(plan).launches.len()).sum();
            assert_eq!(launches, ENDPOINTS);
        });
    });
}

fn member(record: &InstanceRecord) -> Member {
    Member {
        id: record.id.clone(),
        generation: record.generation,
        pool: Some(usize::from(record.priority == 2)),
        priority: record.priority,
        asked_at: record.asked_at,
        state: record.state,
        outstanding: 1,
        unhealthy: false,
        condemned: None,
    }
}

fn rounds(c: &mut Criterion) {
    let specs = [fleet("60s"), fleet("90s")];
    let records = records(&specs[0]);
    let later = NOW + Duration::from_secs(1);
    let mut group = c.benchmark_group("controller");
    group.sample_size(20);

    let mut running = controller(&specs[0], &records);
    let heard = report(&specs[0], &records, &running);
    group.bench_function("report_of_10000_instances", |b| {
        b.iter(|| {
            running.handle_event(later, heard.clone());
            carry_out(&mut running)
        });
    });
    let mut other = false;
    group.bench_function("round_for_100_variants_after_a_reload", |b| {
        b.iter(|| {
            other = !other;
            let spec = Arc::clone(&specs[usize::from(other)]);
            running.handle_event(later, Event::Reconfigured(spec));
            carry_out(&mut running)
        });
    });
    group.finish();
}

criterion_group!(benches, planner, rounds);
criterion_main!(benches);
