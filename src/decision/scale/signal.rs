//! A policy's signal: the value of each period, from a built-in metric or an expression.

use std::collections::BTreeMap;
use std::time::Duration;

use super::expr::{Expr, Metrics};
use super::series::{Measured, Periods};
use crate::types::InstanceTypeName;
use crate::types::scaling::{BuiltIn, Metric, MetricQuery, Signal, Statistic};

/// What one instance of a type is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeFacts {
    /// Which type.
    pub name: InstanceTypeName,
    /// Model copies on an instance.
    pub copies: u32,
    /// Requests that an instance takes at once: copies × `max_concurrency`.
    pub slots: u32,
}

/// With so much of its slots taken a fleet is full: what it works on does not tell what is asked of it.
const FULL: f64 = 0.9;
/// Over so many full periods in a row what is asked of it is averaged, so that chance is no demand.
const AVERAGED: usize = 5;

/// With so much of what instances in service could have told of themselves in a period, enough of it is known to scale
/// in by. Whoever has just come has not told for a moment.
const ENOUGH: f64 = 0.9;

/// An expression of more metrics and types is not looked into for the most that it can show.
const MOST_BOUNDED: usize = 8;

/// One type in one period.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// Instances in service, averaged over the period.
    instances: f64,
    /// Requests at an instance, averaged over instances and the period.
    requests: f64,
    copies: f64,
    slots: f64,
}

/// The value of each period, the oldest first; `None` is a gap.
#[must_use]
pub fn values(
    signal: &Signal,
    measured: &Measured,
    types: &[TypeFacts],
    periods: Periods,
) -> Vec<Option<f64>> {
    match signal {
        Signal::BuiltIn(built_in) => built_in_values(*built_in, measured, types, periods),
        Signal::Expression { text, metrics } => {
            let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
            let series = metrics.iter().map(|(name, query)| {
                let kind = query.instance_type.as_ref();
                let mut values = measured.query(query.metric, kind, query.statistic, periods);
                if counts_what_is_there(query.metric) {
                    for (value, is_known) in values.iter_mut().zip(sampled(measured, periods)) {
                        *value = value.or(is_known.then_some(0.0));
                    }
                }
                (name.clone(), values)
            });
            let known = Metrics::new(periods.count as usize, series.collect());
            // The config has checked it; a text that no longer parses has no value.
            match Expr::parse(text, &names) {
                Ok(expr) => expr.evaluate(&known),
                Err(_) => vec![None; periods.count as usize],
            }
        }
    }
}

/// Whether a type that is not there has none of it, which is something else than not to be known.
fn counts_what_is_there(metric: Metric) -> bool {
    matches!(
        metric,
        Metric::ConcurrentRequestsPerModel | Metric::InstanceCount | Metric::Invocations
    )
}

/// In which periods the variant was measured at all: its queue always is then.
fn sampled(measured: &Measured, periods: Periods) -> Vec<bool> {
    let queue = measured.query(Metric::QueueDepth, None, Statistic::SampleCount, periods);
    queue.iter().map(Option::is_some).collect()
}

/// Whether these periods allow to scale in: the fleet is not full in the last one, something of what the signal is made
/// of is known in it, and in each of them nearly all in service tell what the signal is made of: one that does not tell
/// may be busy.
pub(super) fn allows_fewer(
    signal: &Signal,
    measured: &Measured,
    types: &[TypeFacts],
    periods: Periods,
) -> bool {
    let latest = Periods { count: 1, ..periods };
    let Signal::Expression { metrics, .. } = signal else {
        return when_full(signal, types).is_none() || !is_full(&shares(measured, types, latest)[0]);
    };
    let is_known = |query: &MetricQuery| {
        let kind = query.instance_type.as_ref();
        let value = || measured.query(query.metric, kind, query.statistic, latest)[0].is_some();
        value() || (counts_what_is_there(query.metric) && sampled(measured, latest)[0])
    };
    metrics.values().any(is_known)
        && metrics.values().filter(|query| query.metric.is_told()).all(|query| {
            let of = |metric, statistic| {
                let values =
                    measured.query(metric, query.instance_type.as_ref(), statistic, periods);
                values.into_iter().map(|value| value.unwrap_or(0.0))
            };
            let told = of(query.metric, Statistic::SampleCount);
            let there = of(Metric::InstanceCount, Statistic::Sum);
            told.zip(there).all(|(told, there)| told >= there * ENOUGH)
        })
}

fn built_in_values(
    built_in: BuiltIn,
    measured: &Measured,
    types: &[TypeFacts],
    periods: Periods,
) -> Vec<Option<f64>> {
    let all = |metric, statistic| measured.query(metric, None, statistic, periods);
    match built_in {
        BuiltIn::QueueDepth => all(Metric::QueueDepth, Statistic::Average),
        BuiltIn::ModelLatencyP99 => all(Metric::ModelLatency, Statistic::Percentile(0.99)),
        BuiltIn::FirstChunkP99 => all(Metric::FirstChunkLatency, Statistic::Percentile(0.99)),
        BuiltIn::InvocationsPerInstance => {
            let counts = all(Metric::Invocations, Statistic::Sum);
            let shares = shares(measured, types, periods);
            let per_instance = counts.into_iter().zip(shares).map(|(count, shares)| {
                let instances: f64 = shares.iter().map(|share| share.instances).sum();
                // A period without an answer has no count, which is none where there was somebody to answer.
                (instances > 0.0).then(|| count.unwrap_or(0.0) / instances)
            });
            per_instance.collect()
        }
        BuiltIn::Utilization => each(measured, types, periods, |shares| {
            let used = shares.iter().map(|s| s.instances * s.requests / s.slots).sum::<f64>();
            used / shares.iter().map(|s| s.instances).sum::<f64>()
        }),
        BuiltIn::UtilizationByType => each(measured, types, periods, |shares| {
            shares.iter().map(|s| s.requests / s.slots).sum::<f64>() / shares.len() as f64
        }),
        BuiltIn::ConcurrencyPerCopy => each(measured, types, periods, |shares| {
            let requests = shares.iter().map(|s| s.instances * s.requests).sum::<f64>();
            requests / shares.iter().map(|s| s.instances * s.copies).sum::<f64>()
        }),
    }
}

/// A value of each period in which some type has an instance in service and is measured, for what is asked of it.
fn each(
    measured: &Measured,
    types: &[TypeFacts],
    periods: Periods,
    value: impl Fn(&[Share]) -> f64,
) -> Vec<Option<f64>> {
    let traffic = traffic(measured, periods);
    let seconds = periods.length.as_secs_f64();
    let mut full = 0;
    let all = shares(measured, types, periods).into_iter().enumerate().map(|(at, shares)| {
        full = if is_full(&shares) { (full + 1).min(AVERAGED) } else { 0 };
        let served = shares.iter().map(|s| s.instances * s.requests).sum();
        let times = asked_over_served(&traffic[at + 1 - full..=at], seconds, served);
        (!shares.is_empty()).then(|| value(&shares) * times)
    });
    all.collect()
}

fn is_full(shares: &[Share]) -> bool {
    let sum = |each: fn(&Share) -> f64| shares.iter().map(each).sum::<f64>();
    !shares.is_empty() && sum(|s| s.instances * s.requests) >= FULL * sum(|s| s.instances * s.slots)
}

/// What came and what was answered in one period.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    arrivals: f64,
    answered: f64,
    /// That the answered ones took, all together.
    seconds: f64,
}

fn traffic(measured: &Measured, periods: Periods) -> Vec<Traffic> {
    let of = |metric, statistic| measured.query(metric, None, statistic, periods).into_iter();
    let arrivals = of(Metric::Arrivals, Statistic::Sum);
    let answered = of(Metric::ModelLatency, Statistic::SampleCount);
    let all = arrivals.zip(answered).zip(of(Metric::ModelLatency, Statistic::Sum));
    let all = all.map(|((arrivals, answered), seconds)| {
        let [arrivals, answered, seconds] = [arrivals, answered, seconds].map(|n| n.unwrap_or(0.0));
        Traffic { arrivals, answered, seconds }
    });
    all.collect()
}

/// How much more, or less, is asked of a fleet that has been full for these periods than it serves at once. By
/// Little's law slots for all would hold the arrivals of a second times the seconds that one takes: that does not
/// grow with what waits already. Less is believed only while more is answered than comes: what waits is then being
/// cleared.
fn asked_over_served(full: &[Traffic], seconds: f64, served: f64) -> f64 {
    let sum = |each: fn(&Traffic) -> f64| full.iter().map(each).sum::<f64>();
    let (arrivals, answered) = (sum(|t| t.arrivals), sum(|t| t.answered));
    if arrivals <= 0.0 || answered <= 0.0 {
        return 1.0;
    }
    let asked = arrivals / (full.len() as f64 * seconds) * sum(|t| t.seconds) / answered;
    let clears = full.last().is_some_and(|latest| latest.answered > latest.arrivals);
    (asked / served).max(if clears { 0.0 } else { 1.0 })
}

/// The types that have an instance in service, for each period.
fn shares(measured: &Measured, types: &[TypeFacts], periods: Periods) -> Vec<Vec<Share>> {
    let mut all = vec![Vec::new(); periods.count as usize];
    for facts in types {
        let of = |metric| measured.query(metric, Some(&facts.name), Statistic::Average, periods);
        let instances = of(Metric::InstanceCount);
        let requests = of(Metric::ConcurrentRequestsPerModel);
        for ((shares, instances), requests) in all.iter_mut().zip(instances).zip(requests) {
            if let (Some(instances @ 0.001..), Some(requests)) = (instances, requests) {
                shares.push(Share {
                    instances,
                    requests,
                    copies: f64::from(facts.copies.max(1)),
                    slots: f64::from(facts.slots.max(1)),
                });
            }
        }
    }
    all
}

/// Instances in service of all types, averaged over each period.
pub(super) fn instances(measured: &Measured, types: &[TypeFacts], periods: Periods) -> Vec<f64> {
    let mut all = vec![0.0; periods.count as usize];
    for facts in types {
        let kind = Some(&facts.name);
        let counts = measured.query(Metric::InstanceCount, kind, Statistic::Average, periods);
        for (sum, count) in all.iter_mut().zip(counts) {
            *sum += count.unwrap_or(0.0);
        }
    }
    all
}

/// What a built-in metric shows of a full fleet of these types, for as long as no more is asked of it than it
/// has slots for; `None`: as much as there is.
#[must_use]
pub fn when_full(signal: &Signal, types: &[TypeFacts]) -> Option<f64> {
    match signal {
        Signal::BuiltIn(BuiltIn::Utilization | BuiltIn::UtilizationByType) => Some(1.0),
        Signal::BuiltIn(BuiltIn::ConcurrencyPerCopy) => {
            let each = types.iter().map(|of| f64::from(of.slots) / f64::from(of.copies.max(1)));
            each.reduce(f64::max)
        }
        _ => None,
    }
}

/// What bounds the metrics of a variant.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// The types of its pools.
    pub types: &'a [TypeFacts],
    /// Requests that wait at a proxy at most.
    pub queue: u32,
}

/// The most that a signal can show, however much is asked of these types all in service; `None`: as much as there is,
/// or what is not known.
#[must_use]
pub fn most(signal: &Signal, limits: &Limits<'_>) -> Option<f64> {
    match signal {
        Signal::BuiltIn(BuiltIn::QueueDepth) => Some(f64::from(limits.queue)),
        Signal::BuiltIn(_) => None,
        Signal::Expression { text, metrics } => {
            let names: Vec<&str> = metrics.keys().map(String::as_str).collect();
            let is_monotone = Expr::parse(text, &names).is_ok_and(|expr| expr.is_monotone());
            if !is_monotone || !are_apart(metrics) {
                return None;
            }
            let all = bounded(metrics, limits).filter(|all| all.len() <= MOST_BOUNDED)?;
            // It may grow the less there is of something: each is tried with none and with all that there can be.
            let corners = (0..1_u32 << all.len()).map(|full| at_corner(signal, &all, full));
            corners.reduce(f64::max)
        }
    }
}

/// Whether requests that wait are part of it.
pub(super) fn waits(signal: &Signal) -> bool {
    match signal {
        Signal::BuiltIn(built_in) => *built_in == BuiltIn::QueueDepth,
        Signal::Expression { metrics, .. } => {
            metrics.values().any(|query| query.metric == Metric::QueueDepth)
        }
    }
}

/// The most of a metric at an instance of `of`; `None` where nothing bounds it.
fn most_at(metric: Metric, of: &TypeFacts) -> Option<f64> {
    match metric {
        Metric::ConcurrentRequestsPerModel => Some(f64::from(of.slots)),
        Metric::GpuUtilization | Metric::GpuMemoryUtilization | Metric::KvCacheUtilization => {
            Some(100.0)
        }
        _ => None,
    }
}

/// A metric of a type, and the most of it.
type Bounded<'a> = (Metric, Option<&'a InstanceTypeName>, f64);

/// What an expression is made of; `None` where there is no bound of some of it.
fn bounded<'a>(
    metrics: &BTreeMap<String, MetricQuery>,
    limits: &Limits<'a>,
) -> Option<Vec<Bounded<'a>>> {
    let mut all: Vec<Bounded<'a>> = Vec::new();
    for query in metrics.values() {
        if matches!(query.statistic, Statistic::Sum | Statistic::SampleCount) {
            return None;
        }
        if all.iter().any(|(metric, ..)| *metric == query.metric) {
            continue;
        }
        if query.metric == Metric::QueueDepth {
            all.push((query.metric, None, f64::from(limits.queue)));
            continue;
        }
        for of in limits.types {
            all.push((query.metric, Some(&of.name), most_at(query.metric, of)?));
        }
    }
    Some(all)
}

/// Whether none of these says anything of another one.
fn are_apart(metrics: &BTreeMap<String, MetricQuery>) -> bool {
    metrics.values().enumerate().all(|(at, one)| {
        metrics.values().skip(at + 1).filter(|other| other.metric == one.metric).all(|other| {
            let kinds = one.instance_type.as_ref().zip(other.instance_type.as_ref());
            kinds.is_some_and(|(one, other)| one != other)
        })
    })
}

/// What an expression shows while there is the most of what has its bit in `full`, and none of the rest.
fn at_corner(signal: &Signal, all: &[Bounded<'_>], full: u32) -> f64 {
    let mut measured = Measured::default();
    for (number, (metric, kind, most)) in all.iter().enumerate() {
        let value = if full >> number & 1 == 1 { *most } else { 0.0 };
        measured.record(crate::types::Timestamp(0), *metric, *kind, value);
    }
    let length = Duration::from_secs(60);
    let periods = Periods { end: crate::types::Timestamp(60_000), length, count: 1 };
    // Without a value it does not grow either.
    values(signal, &measured, &[], periods)[0].unwrap_or(0.0)
}

/// Whether it is made of percentiles.
#[must_use]
pub fn has_percentiles(signal: &Signal) -> bool {
    match signal {
        Signal::BuiltIn(built_in) => {
            matches!(built_in, BuiltIn::ModelLatencyP99 | BuiltIn::FirstChunkP99)
        }
        Signal::Expression { metrics, .. } => {
            metrics.values().any(|query| matches!(query.statistic, Statistic::Percentile(_)))
        }
    }
}
