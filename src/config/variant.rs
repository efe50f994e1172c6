//! `[[endpoint.variant]]` and `[[endpoint.variant.pool]]`: one model, how many instances of it, from
//! which pools, and how requests reach them.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;

use super::endpoint::Names;
use super::engine::{self, Engines};
use super::instance_type::InstanceTypes;
use super::limits::{self, Span};
use super::mistake::Sink;
use super::reader::{Located, Table};
use super::{requests, scaling, schedule, suggest};
use crate::types::spec::{
    Engine, Fallback, HealthCheck, HealthSpec, PoolSpec, QueueSpec, Rebalance, RebalanceSpec,
    RoutingStrategy, VariantSpec,
};
use crate::types::{InstanceTypeName, ModelName, Protocol, VariantName};

/// A variant as it was read.
#[derive(Debug)]
pub(super) struct Variant {
    /// Its name, if that is right.
    pub(super) name: Option<Located<VariantName>>,
    /// All of it, if it is complete; it may still have mistakes.
    pub(super) spec: Option<VariantSpec>,
}

/// Reads one variant and notes the instance types that it uses.
pub(super) fn read(
    table: &Table<'_>,
    types: &InstanceTypes,
    used: &mut BTreeSet<String>,
) -> Variant {
    let name = table.need::<VariantName>("name", "which must be unique within the endpoint");
    let model =
        table.need::<ModelName>("model", "the name by which its workers know what they serve");
    let counts = counts(table);
    let span =
        |key, span, seconds| limits::duration_or(table, key, span, Duration::from_secs(seconds));
    let weight = table.number_or("weight", limits::AMOUNT, 1.0);
    let routing = table.or("routing", RoutingStrategy::default());
    let fallback = table.or("fallback", Fallback::default());
    let queue = QueueSpec {
        limit: table.number_or("queue_limit", limits::QUEUE, 1_024),
        timeout: span("queue_timeout", Span::Any, 30),
    };
    let requests = requests::read(table);
    let provision_timeout = span("provision_timeout", Span::Any, 1_200);
    let startup_timeout = span("startup_timeout", Span::Positive, 600);
    let model_download_timeout = span("model_download_timeout", Span::Any, 0);
    let drain_timeout = span("drain_timeout", Span::Any, 600);
    let engine = table.get::<Engine>("engine");
    let pools = pools(table, types, used);
    let engines = engine::of_pools(table, engine.as_ref(), &pools, types);
    engines.check_drain(table, drain_timeout);
    let health = health(table, &engines, &pools, types);
    let rebalance = rebalance(table);
    let scale_to_zero_after = scale_to_zero_after(table, counts.min);
    let engine = engine.map(|found| found.value);
    let scaling = scaling::read(table, &pools, types, engine, queue.limit);
    let schedule = schedule::read(table, (counts.min, counts.max));
    check_supply(table, &pools, types, &counts);
    let spec = name.clone().zip(model).map(|(name, model)| VariantSpec {
        name: name.value,
        model: model.value,
        engine,
        weight,
        initial_instance_count: counts.initial,
        min_instance_count: counts.min,
        max_instance_count: counts.max,
        routing,
        queue,
        requests,
        scaling,
        schedule,
        provision_timeout,
        fallback,
        startup_timeout,
        model_download_timeout,
        health,
        drain_timeout,
        rebalance,
        scale_to_zero_after,
        pools,
    });
    Variant { name, spec }
}

/// How many instances.
#[derive(Debug, Clone, Copy)]
struct Counts {
    initial: u32,
    min: u32,
    max: u32,
}

fn counts(table: &Table<'_>) -> Counts {
    let sink = table.sink();
    let errors = sink.errors();
    let count = |key, range: RangeInclusive<u32>| table.get_in(key, range, u32::to_string);
    let min = count("min_instance_count", limits::INSTANCES);
    let max = count("max_instance_count", 1..=*limits::INSTANCES.end());
    let initial = count("initial_instance_count", limits::INSTANCES);
    let least = min.as_ref().map_or(1, |found| found.value);
    let first = initial.as_ref().map_or(least, |found| found.value);
    let most = max.as_ref().map_or_else(|| first.max(least).max(1), |found| found.value);
    let counts = Counts { initial: first, min: least, max: most };
    if sink.errors() != errors {
        return counts;
    }
    if let Some(at) = max.as_ref().or(min.as_ref()).map(|found| found.at)
        && least > most
    {
        let default = if min.is_none() { ", the default" } else { "" };
        let rule = format!(
            "`max_instance_count` ({most}) must not be below `min_instance_count` ({least}{default})"
        );
        sink.error(at, rule);
    } else if let Some(initial) = &initial
        && !(least..=most).contains(&first)
    {
        let rule = format!(
            "`initial_instance_count` ({first}) must be within `min_instance_count` ({least}) and \
             `max_instance_count` ({most})"
        );
        sink.error(initial.at, rule);
    }
    counts
}

fn health(
    table: &Table<'_>,
    engines: &Engines,
    pools: &[PoolSpec],
    types: &InstanceTypes,
) -> HealthSpec {
    let span = |key, seconds| {
        limits::duration_or(table, key, Span::Positive, Duration::from_secs(seconds))
    };
    let path = table.get::<String>("health_path");
    if let Some(path) = &path
        && (!path.starts_with('/')
            || PathAndQuery::try_from(path.as_str()).is_err()
            || path.contains('#'))
    {
        let rule = "`health_path` must be the path of a GET, such as \"/ping\" or \"/health\"";
        table.sink().error(path.at, rule);
    } else if let Some(path) = &path {
        engines.check_health_path(path, table.sink());
    }
    let service = table.get::<String>("health_grpc_service");
    if let Some(service) = &service {
        if path.is_some() {
            let rule =
                "`health_grpc_service` and `health_path` are two ways to ask; write one of them";
            table.sink().error(service.at, rule);
        }
        let of = |pool: &&PoolSpec| types.specs.get(&pool.instance_type).map(|spec| spec.protocol);
        if let Some(pool) = pools.iter().find(|pool| of(pool) == Some(Protocol::Http1)) {
            let rule = format!(
                "`health_grpc_service` needs HTTP/2, which workers of \"{}\" are not said to speak: write \
                 `protocol = \"h2c\"` there",
                pool.instance_type
            );
            table.sink().error(service.at, rule);
        }
    }
    let check = match (service, path) {
        (Some(service), _) => HealthCheck::Grpc(service.value),
        (None, Some(path)) => HealthCheck::Get(path.value),
        (None, None) => HealthCheck::Get(engines.health_path(table)),
    };
    HealthSpec {
        check,
        interval: span("health_interval", 5),
        startup_interval: span("startup_health_interval", 1),
        timeout: span("health_timeout", 2),
        unhealthy_threshold: table.number_or("unhealthy_threshold", 1..=1_000, 3),
    }
}

fn rebalance(table: &Table<'_>) -> RebalanceSpec {
    RebalanceSpec {
        mode: table.or("rebalance", Rebalance::default()),
        max_share: table.number_or("rebalance_max_share", 0.0..=1.0, 0.25),
        min_interval: limits::duration_or(
            table,
            "rebalance_min_interval",
            Span::Any,
            Duration::from_secs(60),
        ),
    }
}

fn scale_to_zero_after(table: &Table<'_>, min: u32) -> Option<Duration> {
    let after = limits::duration(table, "scale_to_zero_after", Span::Positive)?;
    if min > 0 {
        let rule = format!(
            "`scale_to_zero_after` has no effect while `min_instance_count` is {min}; set that to 0"
        );
        table.warn_at("scale_to_zero_after", rule);
    }
    Some(after)
}

/// The pools by priority; equal ones stay in the file's order.
fn pools(table: &Table<'_>, types: &InstanceTypes, used: &mut BTreeSet<String>) -> Vec<PoolSpec> {
    let sink = table.sink();
    let errors = sink.errors();
    let tables = table.tables("pool", "[[endpoint.variant.pool]]");
    if tables.is_empty() && sink.errors() == errors {
        let rule = "[[endpoint.variant]] needs at least one [[endpoint.variant.pool]] below it";
        sink.missing(table.at, rule);
    }
    let mut names = Names::new("a pool of instance type", "a variant has at most one of each type");
    let mut pools = Vec::new();
    for table in &tables {
        let instance_type =
            table.need::<InstanceTypeName>("instance_type", "the name of one that is defined");
        let priority = table.number_or("priority", limits::PRIORITY, 1);
        let model = table.get::<ModelName>("model").map(|found| found.value);
        let Some(name) = instance_type else { continue };
        names.note(&name, name.as_str(), sink);
        check_type(&name, types, sink);
        used.insert(name.as_str().to_owned());
        pools.push(PoolSpec { instance_type: name.value, priority, model });
    }
    pools.sort_by_key(|pool| pool.priority);
    pools
}

fn check_type(name: &Located<InstanceTypeName>, types: &InstanceTypes, sink: &Sink<'_>) {
    let text = name.as_str();
    if !types.known.contains_key(text) {
        let hint = suggest::did_you_mean(text, types.known.keys().map(String::as_str));
        let rule = format!(
            "there is no instance type \"{text}\"; define it as [instance_type.\"{text}\"]{hint}"
        );
        sink.missing(name.at, rule);
    }
}

/// Warns when all pools together can never reach the count that the variant starts with.
fn check_supply(table: &Table<'_>, pools: &[PoolSpec], types: &InstanceTypes, counts: &Counts) {
    let supply = pools.iter().map(|pool| {
        let spec = types.specs.get(&pool.instance_type)?;
        let servers = u32::try_from(spec.addresses.len()).ok().filter(|count| *count > 0);
        spec.capacity.or(servers)
    });
    if let Some(supply) = supply.sum::<Option<u32>>()
        && !pools.is_empty()
        && supply < counts.initial
    {
        let rule = format!(
            "this variant starts with {} instances, but its pools have only {supply} together",
            counts.initial
        );
        table.sink().warning(table.at, rule);
    }
}
