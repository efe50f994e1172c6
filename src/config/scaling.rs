//! `[[endpoint.variant.scaling]]`: the policies that change a variant's size by themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use super::instance_type::InstanceTypes;
use super::limits::{self, Span};
use super::reader::{Located, Table};
use super::values::Word;
use crate::decision::engine;
use crate::decision::scale::expr::Expr;
use crate::decision::scale::policy;
use crate::decision::scale::signal::{self, Limits, TypeFacts};
use crate::types::InstanceTypeName;
use crate::types::scaling::{
    Adjustment, BuiltIn, Metric, MetricQuery, Rule, ScalingPolicy, Signal, Statistic, Step,
};
use crate::types::spec::{Engine, PoolSpec};

/// Policies of one variant.
const MOST_POLICIES: usize = 16;
/// Periods in a row.
const PERIODS: std::ops::RangeInclusive<u32> = 1..=1_000;
/// A period.
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(86_400);
/// For how long what is measured is kept, and for how long percentiles of it are known
/// ([`crate::decision::scale::series`]).
const KEPT: Duration = Duration::from_secs(15 * 86_400);
const PERCENTILES_KEPT: Duration = Duration::from_secs(3 * 3_600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PolicyKind {
    TargetTracking,
    Step,
}

impl Word for PolicyKind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("target_tracking", Self::TargetTracking), ("step", Self::Step)];
}

impl Word for BuiltIn {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("utilization", Self::Utilization),
        ("utilization_by_type", Self::UtilizationByType),
        ("concurrency_per_copy", Self::ConcurrencyPerCopy),
        ("queue_depth", Self::QueueDepth),
        ("invocations_per_instance", Self::InvocationsPerInstance),
        ("model_latency_p99", Self::ModelLatencyP99),
        ("first_chunk_p99", Self::FirstChunkP99),
    ];
}

impl Word for Metric {
    const WORDS: &'static [(&'static str, Self)] = &Self::ALL;
}

impl Word for Adjustment {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("change_in_capacity", Self::ChangeInCapacity),
        ("percent_change_in_capacity", Self::PercentChangeInCapacity),
        ("exact_capacity", Self::ExactCapacity),
    ];
}

/// Which side of its threshold a step policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Above,
    Below,
}

impl Word for Side {
    const WORDS: &'static [(&'static str, Self)] =
        &[("above", Self::Above), ("below", Self::Below)];
}

/// What a variant's pools are of.
struct Pools<'a> {
    facts: Vec<TypeFacts>,
    types: &'a InstanceTypes,
    /// What its workers run, where their type does not say.
    engine: Option<Engine>,
}

/// Reads the policies of a variant with these pools, whose workers run `engine`.
pub(super) fn read(
    variant: &Table<'_>,
    pools: &[PoolSpec],
    types: &InstanceTypes,
    engine: Option<Engine>,
    queue: u32,
) -> Vec<ScalingPolicy> {
    let pools = Pools { facts: facts(pools, types), types, engine };
    let limits = Limits { types: &pools.facts, queue };
    let tables = variant.tables("scaling", "[[endpoint.variant.scaling]]");
    if tables.len() > MOST_POLICIES {
        let rule =
            format!("a variant may have {MOST_POLICIES} scaling policies, not {}", tables.len());
        variant.sink().error(tables[MOST_POLICIES].at, rule);
    }
    let mut policies: Vec<ScalingPolicy> = Vec::new();
    for table in &tables {
        let Some(policy) = read_policy(table, &pools, &limits) else { continue };
        if policies.iter().any(|other| other.name == policy.name) {
            let rule = format!("there are two scaling policies called \"{}\"", policy.name);
            table.sink().error(table.at, rule);
        }
        policies.push(policy);
    }
    policies
}

fn facts(pools: &[PoolSpec], types: &InstanceTypes) -> Vec<TypeFacts> {
    let facts = pools.iter().filter_map(|pool| {
        let kind = types.specs.get(&pool.instance_type)?;
        let name = pool.instance_type.clone();
        Some(TypeFacts { name, copies: kind.copies, slots: kind.copies * kind.max_concurrency })
    });
    facts.collect()
}

fn read_policy(table: &Table<'_>, pools: &Pools<'_>, limits: &Limits<'_>) -> Option<ScalingPolicy> {
    let name = table.need::<String>("name", "which must be unique within the variant");
    let kind = table.or("kind", PolicyKind::TargetTracking);
    let span =
        |key, seconds| limits::duration_or(table, key, Span::Any, Duration::from_secs(seconds));
    let period = period(table);
    let out = table.number_or("scale_out_periods", PERIODS, 3);
    let inward = table.number_or("scale_in_periods", PERIODS, 15);
    let (scale_out_cooldown, scale_in_cooldown) =
        (span("scale_out_cooldown", 300), span("scale_in_cooldown", 300));
    let scale_in = table.or("scale_in", true);
    let signal = read_signal(table, pools);
    let rule = match kind {
        PolicyKind::TargetTracking => target_tracking(table),
        PolicyKind::Step => step_scaling(table),
    };
    let policy = ScalingPolicy {
        name: name?.value,
        signal: signal?,
        period,
        scale_out_periods: out,
        scale_in_periods: inward,
        scale_out_cooldown,
        scale_in_cooldown,
        scale_in,
        rule: rule?,
    };
    if let Some(rule) = policy::out_of_reach(&policy, limits) {
        table.warn_at("expression", rule.clone());
        table.warn_at("metric", rule);
    }
    check_memory(table, &policy);
    Some(policy)
}

/// What it looks back at must be kept for so long.
fn check_memory(table: &Table<'_>, policy: &ScalingPolicy) {
    let periods = policy.scale_out_periods.max(policy.scale_in_periods);
    let reach = policy.period.saturating_mul(periods);
    let (kept, of) = if signal::has_percentiles(&policy.signal) {
        (PERCENTILES_KEPT, "percentiles are")
    } else {
        (KEPT, "metrics are")
    };
    if reach > kept {
        let (reach, kept) = (humantime::format_duration(reach), humantime::format_duration(kept));
        let rule =
            format!("{periods} periods of this policy take {reach}, and {of} known for {kept}");
        table.sink().error(table.at, rule);
    }
}

fn period(table: &Table<'_>) -> Duration {
    let default = Duration::from_secs(60);
    let Some(found) = limits::duration_at(table, "period", Span::Positive) else { return default };
    if (SHORTEST..=LONGEST).contains(&found.value) {
        return found.value;
    }
    let rule = format!("`period` must be {SHORTEST:?} to one day, not {:?}", found.value);
    table.sink().error(found.at, rule);
    default
}

fn read_signal(table: &Table<'_>, pools: &Pools<'_>) -> Option<Signal> {
    let built_in = table.get::<BuiltIn>("metric");
    let expression = table.get::<String>("expression");
    let queries = table.table("metrics");
    let queries = queries.map(|metrics| {
        let named = metrics.each_table();
        let read = named.into_iter().map(|(name, query)| (name, read_query(&query, pools)));
        read.collect::<Vec<_>>()
    });
    match (built_in, expression) {
        (Some(_), Some(expression)) => {
            let rule = "`metric` and `expression` are two ways to say what is looked at; write one";
            table.sink().error(expression.at, rule);
            None
        }
        (None, None) => {
            let why = "such as \"utilization\", or an `expression` with its `metrics`";
            table.must_have("metric", why);
            None
        }
        (Some(built_in), None) => {
            if queries.is_some() {
                table.refuse("metrics", "are for an `expression`");
            }
            Some(Signal::BuiltIn(built_in.value))
        }
        (None, Some(text)) => read_expression(table, &text, queries.unwrap_or_default()),
    }
}

fn read_expression(
    table: &Table<'_>,
    text: &Located<String>,
    queries: Vec<(Located<String>, Option<MetricQuery>)>,
) -> Option<Signal> {
    let names: Vec<&str> = queries.iter().map(|(name, _)| name.value.as_str()).collect();
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    for (name, _) in &queries {
        if !is_name(name) {
            let rule =
                "a metric's name must be letters, digits and underscores, beginning with no digit";
            table.sink().error(name.at, rule);
        }
    }
    let expr = match Expr::parse(text, &names) {
        Ok(expr) => expr,
        Err(error) => {
            let at = table.sink().inside(text.at, error.start);
            table.sink().error(at, format!("`expression`: {error}"));
            return None;
        }
    };
    let all = text.value.contains("METRICS");
    for (name, _) in &queries {
        if !all && !expr.names().contains(&name.value.as_str()) {
            table.sink().warning(name.at, format!("`{}` is not in the expression", name.value));
        }
    }
    let metrics: Option<BTreeMap<_, _>> =
        queries.into_iter().map(|(name, query)| Some((name.value, query?))).collect();
    Some(Signal::Expression { text: text.value.clone(), metrics: metrics? })
}

fn read_query(table: &Table<'_>, pools: &Pools<'_>) -> Option<MetricQuery> {
    let metric = table.need::<Metric>("metric", "such as \"ConcurrentRequestsPerModel\"");
    let kind = table.get::<InstanceTypeName>("instance_type");
    if let Some(kind) = &kind
        && !pools.facts.iter().any(|facts| facts.name == kind.value)
    {
        let rule = format!("no pool of this variant is of type \"{}\"", kind.value);
        table.sink().error(kind.at, rule);
    }
    let stat = table.get::<String>("stat");
    let statistic = match &stat {
        None => Some(Statistic::Average),
        Some(stat) => statistic(stat),
    };
    match (statistic, &stat, &metric) {
        (None, Some(stat), _) => {
            let rule = "`stat` must be Average, Sum, Minimum, Maximum, SampleCount or a percentile such as p99";
            table.sink().error(stat.at, rule);
        }
        (Some(Statistic::Percentile(_)), Some(stat), Some(metric)) if !metric.has_percentiles() => {
            let rule = format!("there are no percentiles of {}", metric.name());
            table.sink().error(stat.at, rule);
        }
        _ => {}
    }
    let instance_type = kind.map(|found| found.value);
    if let Some(metric) = metric.as_ref().filter(|metric| metric.is_told()) {
        check_source(table, metric.value, instance_type.as_ref(), pools);
    }
    Some(MetricQuery { metric: metric?.value, instance_type, statistic: statistic? })
}

/// Warns of types that do not tell `metric`.
fn check_source(
    table: &Table<'_>,
    metric: Metric,
    kind: Option<&InstanceTypeName>,
    pools: &Pools<'_>,
) {
    let asked = pools.facts.iter().map(|facts| &facts.name);
    let asked = asked.filter(|name| kind.is_none_or(|kind| kind == *name));
    let silent: Vec<_> = asked.filter(|name| !pools.tells(metric, name)).collect();
    if silent.is_empty() {
        return;
    }
    let silent: Vec<_> = silent.into_iter().map(ToString::to_string).collect();
    let source = match metric {
        Metric::GpuUtilization | Metric::GpuMemoryUtilization => "`gpu_metrics`",
        _ => "an `engine` that tells it, with a `scrape_interval`",
    };
    table.warn_at(
        "metric",
        format!(
            "instances of {} do not tell {}: it counts as 0, and nothing is scaled in while one of them is in service. \
             Such a type needs {source}, or `load_metrics_format`",
            silent.join(" and "),
            metric.name()
        ),
    );
}

impl Pools<'_> {
    /// Whether instances of a type may tell `metric`.
    fn tells(&self, metric: Metric, name: &InstanceTypeName) -> bool {
        let Some(kind) = self.types.specs.get(name) else { return true };
        let signals = &kind.signals;
        let engine = kind.engine.or(self.engine);
        let own = engine.map(|engine| &engine::profile(engine).metrics);
        let own = own.filter(|metrics| metrics.path.is_some());
        let scraped = match metric {
            // What a page has of it that is no engine's own is not known.
            Metric::GpuUtilization | Metric::GpuMemoryUtilization => {
                signals.gpu.is_some() || signals.path.is_some() || engine == Some(Engine::Triton)
            }
            Metric::KvCacheUtilization => {
                own.map_or(signals.path.is_some(), |own| !own.kv_use.is_empty())
            }
            _ => own.is_some() || signals.path.is_some(),
        };
        signals.load_metrics.is_some() || (scraped && !signals.interval.is_zero())
    }
}

fn statistic(text: &str) -> Option<Statistic> {
    match text {
        "Average" => Some(Statistic::Average),
        "Sum" => Some(Statistic::Sum),
        "Minimum" => Some(Statistic::Minimum),
        "Maximum" => Some(Statistic::Maximum),
        "SampleCount" => Some(Statistic::SampleCount),
        other => {
            let digits = other.strip_prefix('p')?;
            let is_plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
            let percent = digits.parse::<f64>().ok().filter(|_| is_plain)?;
            (0.0..=100.0).contains(&percent).then_some(Statistic::Percentile(percent / 100.0))
        }
    }
}

fn target_tracking(table: &Table<'_>) -> Option<Rule> {
    for key in ["threshold", "breach", "adjustment", "least_adjustment", "steps"] {
        table.refuse(key, "is for policies of `kind` \"step\"");
    }
    let target = table.need::<f64>("target", "the value that is kept");
    // With all of the target nothing would ever be below it.
    let tolerance = table.number_or("tolerance", 0.0..=0.99, 0.1);
    let target = target?;
    if target.value > 0.0 && target.value.is_finite() {
        return Some(Rule::TargetTracking { target: target.value, tolerance });
    }
    table.sink().error(target.at, format!("`target` must be more than 0, not {}", target.value));
    None
}

fn step_scaling(table: &Table<'_>) -> Option<Rule> {
    for key in ["target", "tolerance"] {
        table.refuse(key, "is for policies of `kind` \"target_tracking\"");
    }
    let threshold = table.need::<f64>("threshold", "the value that the steps are counted from");
    let side = table.or("breach", Side::Above);
    let adjustment = table.or("adjustment", Adjustment::ChangeInCapacity);
    let least = table.number_or("least_adjustment", limits::INSTANCES, 0);
    let errors = table.sink().errors();
    table.must_have("steps", "such as [{ from = 0.0, change = 1.0 }]");
    let tables = table.tables("steps", "steps = [{ from = 0.0, change = 1.0 }]");
    if tables.is_empty() && table.sink().errors() == errors {
        table.sink().error(table.at, "`steps` must have one step at least");
    }
    let mut steps: Vec<Step> = Vec::new();
    for step in &tables {
        let bound = |key| step.get::<f64>(key).map(|found| found.value);
        let (from, to) = (bound("from"), bound("to"));
        let change = step.need::<f64>("change", "so many instances, or percent");
        let apart = steps.last().is_none_or(|before| before.to.is_some() && before.to == from);
        if !apart {
            let rule = "steps must follow each other: each `from` the `to` of the one before";
            table.sink().error(step.at, rule);
        } else if let (Some(from), Some(to)) = (from, to)
            && from >= to
        {
            table.sink().error(step.at, format!("`from` ({from}) must be below `to` ({to})"));
        }
        let is_beside = match side {
            Side::Above => to.is_some_and(|to| to <= 0.0),
            Side::Below => from.is_some_and(|from| from >= 0.0),
        };
        if is_beside {
            let rule = match side {
                Side::Above => {
                    "this step is never taken: it ends at or below the threshold, and the breach is above it"
                }
                Side::Below => {
                    "this step is never taken: it begins at or above the threshold, and the breach is below it"
                }
            };
            table.sink().warning(step.at, rule.to_owned());
        }
        if let Some(change) = &change {
            check_change(table, adjustment, change);
        }
        steps.push(Step { from, to, change: change.map_or(0.0, |found| found.value) });
    }
    let threshold = threshold?.value;
    Some(Rule::Step { threshold, above: side == Side::Above, adjustment, least, steps })
}

/// Whether a change is a number of instances, unless it is a percentage.
fn check_change(table: &Table<'_>, adjustment: Adjustment, change: &Located<f64>) {
    let needs = match adjustment {
        Adjustment::PercentChangeInCapacity => return,
        Adjustment::ChangeInCapacity if change.fract() == 0.0 => return,
        Adjustment::ExactCapacity if change.fract() == 0.0 && change.value >= 0.0 => return,
        Adjustment::ChangeInCapacity => "a whole number of instances, more or fewer",
        Adjustment::ExactCapacity => "a whole number of instances",
    };
    table.sink().error(change.at, format!("`change` must be {needs}, not {}", change.value));
}
