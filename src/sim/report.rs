//! Plays a scenario and tells of it: what happened, what was decided and why, who served, what it cost.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use super::scenario::{Scenario, ScenarioError};
use super::trace::Trace;
use super::world::{START, Tally, World};
use crate::types::{InstanceState, InstanceTypeName};

/// The grain of the shares in the summary.
const GRAIN: Duration = Duration::from_secs(10);

/// What a scenario came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The seed that was played.
    pub seed: u64,
    /// What happened, in order, with the time since the start.
    pub story: Vec<String>,
    /// By instance type.
    pub types: BTreeMap<InstanceTypeName, TypeFigures>,
    /// The share of the time in which every variant had its desired count in service.
    pub full_share: f64,
    /// The share of the instance time in service that was of a lower priority than the first.
    pub fallback_share: f64,
    /// What the instances cost, where types have a price.
    pub cost: f64,
    /// Requests sent, refused by the proxies, and lost with an instance.
    pub requests: [u64; 3],
    /// Managers that died.
    pub crashes: u64,
    /// What broke a rule that must always hold; the play ends there.
    pub failure: Option<String>,
}

/// What became of one instance type.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TypeFigures {
    /// Launches granted.
    pub launches: u64,
    /// Launches refused for lack of capacity.
    pub refusals: u64,
    /// Instance hours in service.
    pub hours: f64,
}

/// Plays the scenario in `text` (mistakes name `file_name`). The same text and seed give the same report.
///
/// # Errors
/// When the text is no scenario.
pub fn simulate(text: &str, file_name: &str, seed: u64) -> Result<Report, ScenarioError> {
    Ok(play(&Scenario::parse(text, file_name)?, seed))
}

/// Plays `scenario`.
#[must_use]
pub fn play(scenario: &Scenario, seed: u64) -> Report {
    let mut world = World::new(scenario.setup(), seed, Trace::story());
    let end = START + scenario.length();
    let mut sums = Sums::default();
    let mut sample_at = START;
    let mut shown = String::new();
    while world.now < end && world.fault.is_none() {
        world.advance((world.now + GRAIN).min(end));
        sums.add(&world);
        if world.now >= sample_at {
            sample_at = sample_at + scenario.sample_every();
            let line = composition(&world);
            if line != shown {
                world.tell_story(|| line.clone());
                shown = line;
            }
        }
    }
    report(world, seed, &sums)
}

/// Sums over all grains.
#[derive(Default)]
struct Sums {
    grains: u32,
    full: u32,
    in_service: u32,
    fallback: u32,
    by_type: BTreeMap<InstanceTypeName, u32>,
}

impl Sums {
    fn add(&mut self, world: &World) {
        self.grains += 1;
        let mut full = true;
        for (endpoint, variant) in world.fleet.variants() {
            let serving = world.store.instances.values().filter(|record| {
                record.state == InstanceState::InService
                    && record.variant.endpoint == endpoint.name
                    && record.variant.variant == variant.name
            });
            let first = variant.pools.iter().map(|pool| pool.priority).min().unwrap_or(1);
            let mut count = 0;
            for record in serving {
                count += 1;
                self.in_service += 1;
                self.fallback += u32::from(record.priority > first);
                *self.by_type.entry(record.instance_type.clone()).or_default() += 1;
            }
            let desired = world.store.variants.values().find(|record| {
                record.variant.endpoint == endpoint.name && record.variant.variant == variant.name
            });
            full &= desired.is_some_and(|record| count >= record.desired);
        }
        self.full += u32::from(full);
    }
}

fn report(world: World, seed: u64, sums: &Sums) -> Report {
    let hours = |grains: u32| f64::from(grains) * GRAIN.as_secs_f64() / 3600.0;
    let share = |part: u32, whole: u32| f64::from(part) / f64::from(whole.max(1));
    let types: BTreeMap<_, _> = world
        .fleet
        .instance_types
        .keys()
        .map(|kind| {
            let figures = TypeFigures {
                launches: world.cloud.launches.get(kind).copied().unwrap_or(0),
                refusals: world.cloud.refusals.get(kind).copied().unwrap_or(0),
                hours: hours(sums.by_type.get(kind).copied().unwrap_or(0)),
            };
            (kind.clone(), figures)
        })
        .collect();
    let price = |kind| world.fleet.instance_types.get(kind).and_then(|t| t.price_per_hour);
    let cost = types.iter().map(|(kind, f)| f.hours * price(kind).unwrap_or(0.0)).sum();
    let Tally { requests, refused, lost, crashes, .. } = world.tally;
    Report {
        seed,
        types,
        full_share: share(sums.full, sums.grains),
        fallback_share: share(sums.fallback, sums.in_service),
        cost,
        requests: [requests, refused, lost],
        crashes,
        failure: world.fault,
        story: world.trace.into_lines(),
    }
}

/// One line on what runs: by variant the desired count and by type those in service of those recorded.
fn composition(world: &World) -> String {
    let mut line = String::from("fleet:");
    for record in world.store.variants.values() {
        let mut by_type: BTreeMap<&InstanceTypeName, (u32, u32)> = BTreeMap::new();
        for instance in world.store.instances.values().filter(|i| i.variant == record.variant) {
            let (serving, all) = by_type.entry(&instance.instance_type).or_default();
            *serving += u32::from(instance.state == InstanceState::InService);
            *all += 1;
        }
        let _ = write!(line, " {} wants {}, has", record.variant, record.desired);
        if by_type.is_empty() {
            line.push_str(" none");
        }
        for (kind, (serving, all)) in by_type {
            let _ = if serving == all {
                write!(line, " {serving} x {kind}")
            } else {
                write!(line, " {serving} x {kind} (+{} not in service)", all - serving)
            };
        }
        line.push(';');
    }
    line.trim_end_matches(';').to_owned()
}

impl World {
    /// Writes a line that a reader of a scenario wants to see.
    pub(super) fn tell_story(&mut self, line: impl FnOnce() -> String) {
        self.trace.tell(self.now, line);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        for line in &self.story {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "\n{:<24} {:>8} {:>8} {:>14}", "type", "launches", "refusals", "hours served")?;
        for (kind, figures) in &self.types {
            let TypeFigures { launches, refusals, hours } = figures;
            writeln!(f, "{:<24} {launches:>8} {refusals:>8} {hours:>14.2}", kind.as_str())?;
        }
        let [sent, refused, lost] = self.requests;
        writeln!(f, "\nfull size          {:>6.1} % of the time", self.full_share * 100.0)?;
        writeln!(f, "served by fallback {:>6.1} %", self.fallback_share * 100.0)?;
        writeln!(f, "requests           {sent} sent, {refused} refused, {lost} lost")?;
        writeln!(f, "manager            {} crashes", self.crashes)?;
        if self.cost > 0.0 {
            writeln!(f, "cost               {:.2}", self.cost)?;
        }
        match &self.failure {
            None => Ok(()),
            Some(failure) => writeln!(f, "\nbroken: {failure}"),
        }
    }
}
