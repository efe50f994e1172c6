//! Specs for the tests: short words for types, spans, variants and fleets.

use std::sync::Arc;
use std::time::Duration;

use super::world::World;
use crate::types::spec::{
    EndpointSpec, Fallback, FleetSpec, HealthCheck, HealthSpec, InstanceTypeSpec, OnClientAbort,
    PoolSpec, QueueSpec, Rebalance, RebalanceSpec, RequestPolicy, RoutingStrategy, VariantSpec,
};
use crate::types::{
    EndpointName, InstanceTypeName, ModelName, Protocol, ProviderName, VariantKey, VariantName,
};

pub(crate) const P5: &str = "ml.p5.48xlarge";
pub(crate) const G6: &str = "ml.g6.48xlarge";

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn kind(name: &str) -> InstanceTypeName {
    InstanceTypeName::new(name).expect("a valid type")
}

pub(crate) fn key(endpoint: &str) -> VariantKey {
    VariantKey {
        endpoint: EndpointName::new(endpoint).expect("a valid name"),
        variant: VariantName::new("primary").expect("a valid name"),
    }
}

pub(crate) fn variant(pools: &[(&str, u32)], initial: u32) -> VariantSpec {
    VariantSpec {
        name: VariantName::new("primary").expect("a valid name"),
        model: ModelName::new("my-llm").expect("a valid name"),
        weight: 1.0,
        initial_instance_count: initial,
        min_instance_count: 1,
        max_instance_count: 20,
        routing: RoutingStrategy::LeastOutstandingRequests,
        requests: RequestPolicy::default(),
        queue: QueueSpec { limit: 100, timeout: secs(60) },
        scaling: Vec::new(),
        schedule: Vec::new(),
        provision_timeout: secs(20),
        fallback: Fallback::AfterWindow,
        startup_timeout: secs(60),
        model_download_timeout: Duration::ZERO,
        health: HealthSpec {
            check: HealthCheck::Get("/ping".to_owned()),
            interval: secs(5),
            startup_interval: secs(1),
            timeout: secs(2),
            unhealthy_threshold: 3,
        },
        drain_timeout: secs(600),
        rebalance: RebalanceSpec {
            mode: Rebalance::OnScaleOut,
            max_share: 0.2,
            min_interval: secs(10),
        },
        engine: None,
        scale_to_zero_after: None,
        pools: pools
            .iter()
            .map(|(name, priority)| PoolSpec {
                instance_type: kind(name),
                priority: *priority,
                model: None,
            })
            .collect(),
    }
}

/// Endpoints by name, all of whose types come from the provider `local` unless they start with `far.`.
pub(crate) fn fleet(endpoints: &[(&str, VariantSpec)]) -> Arc<FleetSpec> {
    let mut spec = FleetSpec::default();
    for (name, variant) in endpoints {
        for pool in &variant.pools {
            let far = pool.instance_type.as_str().starts_with("far.");
            let kind = InstanceTypeSpec {
                provider: ProviderName::new(if far { "far" } else { "local" }).expect("a name"),
                capacity: None,
                max_concurrency: 8,
                copies: 1,
                protocol: Protocol::Http1,
                tls: None,
                engine: None,
                on_client_abort: OnClientAbort::default(),
                addresses: Vec::new(),
                price_per_hour: Some(2.5),
                watts: None,
                signals: Default::default(),
            };
            spec.instance_types.insert(pool.instance_type.clone(), kind);
        }
        spec.endpoints.push(EndpointSpec {
            name: EndpointName::new(name).expect("a valid name"),
            variants: vec![variant.clone()],
        });
    }
    Arc::new(spec)
}

/// The quickstart's endpoint: one preferred at most, a fallback without limit.
pub(crate) fn quickstart() -> World {
    let mut world = World::new(fleet(&[("e", variant(&[(P5, 1), (G6, 2)], 3))]));
    world.capacity.insert(kind(P5), 1);
    world
}
