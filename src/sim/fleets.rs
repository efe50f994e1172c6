//! Fleets out of randomness: what an operator may ask for, and how one config becomes the next.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::generate::seconds;
use super::rng::Rng;
use crate::types::ids::InvalidName;
use crate::types::scaling::{BuiltIn, Rule, ScalingPolicy, Signal};
use crate::types::spec::{
    EndpointSpec, Fallback, FleetSpec, HealthCheck, HealthSpec, InstanceTypeSpec, OnClientAbort,
    PoolSpec, QueueSpec, Rebalance, RebalanceSpec, RequestPolicy, RoutingStrategy, VariantSpec,
};
use crate::types::{InstanceTypeName, Protocol};

/// A fleet; with `zero`, of variants that may sleep.
pub(super) fn draw(rng: &mut Rng, zero: bool) -> FleetSpec {
    let providers = rng.between(1, 2);
    let instance_types: BTreeMap<InstanceTypeName, InstanceTypeSpec> = (1..=rng.between(1, 5))
        .map(|n| {
            let provider = format!("cloud-{}", rng.between(1, providers));
            (name(&format!("type-{n}")), draw_type(rng, &provider))
        })
        .collect();
    let kinds: Vec<InstanceTypeName> = instance_types.keys().cloned().collect();
    let endpoints = (1..=rng.between(1, 2))
        .map(|n| EndpointSpec {
            name: name(&format!("endpoint-{n}")),
            variants: (1..=if rng.chance(250) { 2 } else { 1 })
                .map(|n| draw_variant(rng, n, &kinds, zero))
                .collect(),
        })
        .collect();
    FleetSpec { instance_types, endpoints }
}

/// Changes a fleet as an operator might; `original` is where a removed part comes back from.
pub(super) fn change(fleet: &mut FleetSpec, original: &FleetSpec, rng: &mut Rng) {
    let kinds: Vec<InstanceTypeName> = fleet.instance_types.keys().cloned().collect();
    let at = usize::try_from(rng.below(fleet.endpoints.len() as u64)).unwrap_or(0);
    match rng.below(10) {
        0 => *fleet = original.clone(),
        1 if fleet.endpoints.len() > 1 => drop(fleet.endpoints.remove(at)),
        2 => {
            let kind = rng.pick(&kinds).unwrap_or(&kinds[0]);
            if let Some(spec) = fleet.instance_types.get_mut(kind) {
                spec.max_concurrency = rng.between(1, 16);
            }
        }
        _ => {
            let variants = fleet.endpoints.get_mut(at).map(|e| &mut e.variants);
            if let Some(variant) = variants.and_then(|v| v.first_mut()) {
                change_variant(variant, &kinds, rng);
            }
        }
    }
}

fn change_variant(variant: &mut VariantSpec, kinds: &[InstanceTypeName], rng: &mut Rng) {
    match rng.below(7) {
        0 | 1 if variant.pools.len() > 1 => drop(variant.pools.remove(0)),
        2 => variant.pools = draw_pools(rng, kinds),
        3 => {
            for pool in &mut variant.pools {
                pool.priority = rng.between(1, 3);
            }
            variant.pools.sort_by_key(|pool| pool.priority);
        }
        4 => {
            variant.max_instance_count = rng.between(variant.min_instance_count.max(1), 8);
            variant.initial_instance_count =
                rng.between(variant.min_instance_count, variant.max_instance_count);
        }
        5 => variant.model = name(&format!("model-{}", rng.below(3))),
        _ => {
            variant.fallback = draw_fallback(rng);
            variant.rebalance = draw_rebalance(rng);
            variant.drain_timeout = seconds(rng, 5, 90);
        }
    }
}

fn draw_type(rng: &mut Rng, provider: &str) -> InstanceTypeSpec {
    InstanceTypeSpec {
        provider: name(provider),
        capacity: None,
        max_concurrency: rng.between(1, 16),
        copies: rng.between(1, 2),
        protocol: Protocol::Http1,
        tls: None,
        addresses: Vec::new(),
        price_per_hour: None,
        watts: None,
        engine: None,
        on_client_abort: OnClientAbort::default(),
        signals: Default::default(),
    }
}

fn draw_variant(rng: &mut Rng, n: u32, kinds: &[InstanceTypeName], zero: bool) -> VariantSpec {
    let zero = zero && rng.chance(700);
    let max = rng.between(1, 8);
    let min = if zero { 0 } else { rng.between(0, max.min(2)) };
    VariantSpec {
        name: name(&format!("v{n}")),
        model: name("model"),
        weight: 1.0,
        initial_instance_count: rng.between(min, max),
        min_instance_count: min,
        max_instance_count: max,
        routing: RoutingStrategy::LeastOutstandingRequests,
        requests: RequestPolicy::default(),
        queue: QueueSpec { limit: 1000, timeout: Duration::from_secs(60) },
        scaling: follows_load(n),
        schedule: Vec::new(),
        provision_timeout: seconds(rng, 5, 120),
        fallback: draw_fallback(rng),
        startup_timeout: seconds(rng, 25, 90),
        model_download_timeout: Duration::ZERO,
        health: HealthSpec {
            check: HealthCheck::Get("/ping".into()),
            interval: seconds(rng, 5, 20),
            startup_interval: seconds(rng, 1, 4),
            timeout: seconds(rng, 1, 5),
            unhealthy_threshold: rng.between(1, 3),
        },
        drain_timeout: seconds(rng, 5, 90),
        rebalance: draw_rebalance(rng),
        engine: None,
        scale_to_zero_after: zero.then(|| seconds(rng, 20, 120)),
        pools: draw_pools(rng, kinds),
    }
}

/// Every other variant follows its load, in periods that a world has many of.
fn follows_load(n: u32) -> Vec<ScalingPolicy> {
    if n.is_multiple_of(2) {
        return Vec::new();
    }
    vec![ScalingPolicy {
        name: "busy".into(),
        signal: Signal::BuiltIn(BuiltIn::Utilization),
        period: Duration::from_secs(10),
        scale_out_periods: 2,
        scale_in_periods: 4,
        scale_out_cooldown: Duration::from_secs(30),
        scale_in_cooldown: Duration::from_secs(30),
        scale_in: true,
        rule: Rule::TargetTracking { target: 0.7, tolerance: 0.1 },
    }]
}

fn draw_fallback(rng: &mut Rng) -> Fallback {
    let all = [Fallback::AfterWindow, Fallback::AtOnce, Fallback::Parallel];
    rng.pick(&all).copied().unwrap_or_default()
}

fn draw_rebalance(rng: &mut Rng) -> RebalanceSpec {
    RebalanceSpec {
        mode: if rng.chance(500) { Rebalance::Active } else { Rebalance::OnScaleOut },
        max_share: f64::from(rng.between(1, 10)) / 10.0,
        min_interval: seconds(rng, 0, 60),
    }
}

fn draw_pools(rng: &mut Rng, kinds: &[InstanceTypeName]) -> Vec<PoolSpec> {
    let mut kinds = kinds.to_vec();
    let mut priority = 1;
    let mut pools = Vec::new();
    for _ in 0..rng.between(1, 4) {
        if kinds.is_empty() {
            break;
        }
        let at = usize::try_from(rng.below(kinds.len() as u64)).unwrap_or(0);
        let model = rng.chance(200).then(|| name("model-small"));
        pools.push(PoolSpec { instance_type: kinds.remove(at), priority, model });
        if rng.chance(750) {
            priority += 1;
        }
    }
    pools
}

/// A name that is right by its making.
fn name<T: FromStr<Err = InvalidName>>(text: &str) -> T {
    match text.parse() {
        Ok(name) => name,
        Err(error) => unreachable!("{error}"),
    }
}
