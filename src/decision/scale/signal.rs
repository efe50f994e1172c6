//! A policy's signal: the value of each period, from a built-in metric or an expression.

use std::time::Duration;

use super::expr::{Expr, Metrics};
use super::series::{Measured, Periods};
use crate::types::InstanceTypeName;
use crate::types::scaling::{BuiltIn, Metric, Signal, Statistic};

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

/// Whether anything that the signal is made of is known in any of these periods.
pub(super) fn has_data(signal: &Signal, measured: &Measured, periods: Periods) -> bool {
    let Signal::Expression { metrics, .. } = signal else { return true };
    metrics.values().any(|query| {
        let kind = query.instance_type.as_ref();
        let found = measured.query(query.metric, kind, query.statistic, periods);
        found.iter().any(Option::is_some)
            || (counts_what_is_there(query.metric) && sampled(measured, periods).contains(&true))
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

/// A value of each period in which some type has an instance in service and is measured.
fn each(
    measured: &Measured,
    types: &[TypeFacts],
    periods: Periods,
    value: impl Fn(&[Share]) -> f64,
) -> Vec<Option<f64>> {
    let all = shares(measured, types, periods).into_iter();
    all.map(|shares| (!shares.is_empty()).then(|| value(&shares))).collect()
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

/// The most that a built-in metric can show with these types; `None`: as much as there is.
#[must_use]
pub fn most(signal: &Signal, types: &[TypeFacts]) -> Option<f64> {
    match signal {
        Signal::BuiltIn(BuiltIn::Utilization | BuiltIn::UtilizationByType) => Some(1.0),
        Signal::BuiltIn(BuiltIn::ConcurrencyPerCopy) => {
            let each = types.iter().map(|of| f64::from(of.slots) / f64::from(of.copies.max(1)));
            each.reduce(f64::max)
        }
        _ => None,
    }
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

/// What an expression shows when a fleet of one type alone is at its limit; `None` for what it does not tell
/// (other metrics than concurrency).
#[must_use]
pub fn at_the_limit(signal: &Signal, only: &TypeFacts) -> Option<f64> {
    let Signal::Expression { metrics, .. } = signal else { return None };
    let all = metrics.values().all(|query| {
        let adds_up = matches!(query.statistic, Statistic::Sum | Statistic::SampleCount);
        query.metric == Metric::ConcurrentRequestsPerModel && !adds_up
    });
    if !all {
        return None;
    }
    let mut measured = Measured::default();
    let at = crate::types::Timestamp(0);
    let metric = Metric::ConcurrentRequestsPerModel;
    measured.record(at, metric, Some(&only.name), f64::from(only.slots));
    let length = Duration::from_secs(60);
    let periods = Periods { end: crate::types::Timestamp(60_000), length, count: 1 };
    // Without a value it does not grow either.
    Some(values(signal, &measured, &[], periods)[0].unwrap_or(0.0))
}
