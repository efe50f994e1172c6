//! The arrivals of a scenario file: checked, and with their traces read.

use std::path::Path;
use std::time::Duration;

use super::file::{ArrivalsLine, BurstsLine, DiurnalLine, WorldSpec};
use crate::sim::traffic::arrivals::{Shape, Source, read_trace};
use crate::types::EndpointName;
use crate::types::spec::FleetSpec;

/// Requests that are played at most: each is simulated by itself, and its wait is kept.
const MOST_REQUESTS: f64 = 20_000_000.0;
/// Moments that are tried for them at most.
const MOST_TRIED: f64 = 100.0 * MOST_REQUESTS;

/// The sources of a scenario; `read` gives the text of a file that it names.
pub(super) fn sources(
    fleet: &FleetSpec,
    world: &WorldSpec,
    read: &dyn Fn(&Path) -> Result<String, String>,
) -> Result<Vec<Source>, String> {
    let sources: Vec<Source> = (1..)
        .zip(&world.arrivals)
        .map(|(number, line)| {
            source(fleet, world, line, read)
                .map_err(|wrong| format!("simulation.arrivals, number {number}: {wrong}"))
        })
        .collect::<Result<_, _>>()?;
    let expected: f64 = sources.iter().map(|source| source.expected(world.duration.0)).sum();
    if expected > MOST_REQUESTS {
        return Err(format!(
            "simulation.arrivals: about {expected:.0} requests, and no more than \
             {MOST_REQUESTS:.0} are played; lower the rates and the fleet, or play less time"
        ));
    }
    let tried: f64 = sources.iter().map(|source| source.tried(world.duration.0)).sum();
    if tried > MOST_TRIED {
        return Err(format!(
            "simulation.arrivals: about {tried:.0} moments would be tried for {expected:.0} requests, and no more \
             than {MOST_TRIED:.0} are: those of a line with steps come at its highest rate; give that one a line of \
             its own"
        ));
    }
    Ok(sources)
}

fn source(
    fleet: &FleetSpec,
    world: &WorldSpec,
    line: &ArrivalsLine,
    read: &dyn Fn(&Path) -> Result<String, String>,
) -> Result<Source, String> {
    let endpoint = endpoint(fleet, line.endpoint.as_ref())?;
    let mut shapes = [
        line.rate.map(|rate| Ok(Shape::Constant(rate))),
        line.steps
            .as_ref()
            .map(|steps| Ok(Shape::Steps(steps.iter().map(|(at, rate)| (at.0, *rate)).collect()))),
        line.diurnal.as_ref().map(|diurnal| {
            let DiurnalLine { low, high, peak_at, period } = diurnal.clone();
            Ok(Shape::Diurnal { low, high, peak_at: peak_at.0, period: period.0 })
        }),
        line.bursts.as_ref().map(|bursts| {
            let BurstsLine { rate, lasts, every } = bursts.clone();
            let first = line.from.0;
            Ok(Shape::Bursts { rate, lasts: lasts.0, first, period: every.0 })
        }),
        line.trace.as_ref().map(|path| {
            let trace = read(path).and_then(|text| read_trace(&text)).map(Shape::Trace);
            trace.map_err(|wrong| format!("{}: {wrong}", path.display()))
        }),
    ]
    .into_iter()
    .flatten();
    let (Some(shape), None) = (shapes.next(), shapes.next()) else {
        return Err("say one of rate, steps, diurnal, bursts and trace".into());
    };
    let shape = shape?;
    check(&shape)?;
    let until = line.until.unwrap_or(world.duration).0.min(world.duration.0);
    Ok(Source { endpoint, from: line.from.0, until, shape })
}

fn endpoint(fleet: &FleetSpec, name: Option<&EndpointName>) -> Result<EndpointName, String> {
    match (name, fleet.endpoints.as_slice()) {
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => Err("there are several endpoints; name one".into()),
        (Some(name), endpoints) if endpoints.iter().any(|e| e.name == *name) => Ok(name.clone()),
        (Some(name), _) => Err(format!("no endpoint is called \"{name}\"")),
    }
}

/// Rates must be rates, and times go forward.
fn check(shape: &Shape) -> Result<(), String> {
    let rates: Vec<f64> = match shape {
        Shape::Constant(rate) | Shape::Bursts { rate, .. } => vec![*rate],
        Shape::Steps(steps) => steps.iter().map(|(_, rate)| *rate).collect(),
        Shape::Diurnal { low, high, .. } => vec![*low, *high],
        Shape::Trace(_) => Vec::new(),
    };
    if let Some(rate) = rates.into_iter().find(|rate| !rate.is_finite() || *rate < 0.0) {
        return Err(format!("{rate} is no rate: requests per second, 0 or more"));
    }
    match shape {
        Shape::Steps(steps) if !steps.is_sorted_by_key(|(at, _)| *at) => {
            Err("the steps are not in the order of their times".into())
        }
        Shape::Bursts { period, .. } | Shape::Diurnal { period, .. }
            if *period < Duration::from_secs(1) =>
        {
            Err("its period is shorter than a second".into())
        }
        _ => Ok(()),
    }
}
