//! Plays a scenario and tells of it: what happened, what was decided and why, who served, how long clients
//! waited, what it cost. [`text`] is for people, [`compare()`] sets two policies side by side, [`picture()`]
//! draws the fleet over time; a [`Report`] is also JSON.

mod compare;
mod picture;
mod text;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::scenario::{Scenario, ScenarioError};
use super::setup::Setup;
use super::trace::Trace;
use super::traffic::tally::{RequestCounts, Waits};
use super::usage::Usage;
use super::world::{START, World};
use crate::types::{InstanceState, InstanceTypeName};

pub use compare::compare;
pub use picture::picture;
pub use text::Summary;

/// Moments that a timeline has, at most.
const MOMENTS: u32 = 600;
/// No two of them are closer.
const LEAST_STEP: Duration = Duration::from_secs(1);
/// No two lines on the composition are.
const LEAST_SAMPLE: Duration = Duration::from_secs(10);

/// What a scenario came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The seed that was played.
    pub seed: u64,
    /// How long was played, in seconds.
    pub length_s: f64,
    /// What happened, in order, with the time since the start.
    pub story: Vec<String>,
    /// Decisions by kind; the story has each with its reason.
    pub decisions: BTreeMap<String, u64>,
    /// Of the requests that have ended, the share that was answered.
    pub availability: f64,
    /// What became of the requests.
    pub requests: RequestCounts,
    /// Requests that wait or run at the end.
    pub open: u64,
    /// How long those that got a slot waited for it.
    pub waits: Waits,
    /// By variant, as `endpoint/variant`.
    pub variants: BTreeMap<String, VariantFigures>,
    /// By instance type.
    pub types: BTreeMap<InstanceTypeName, TypeFigures>,
    /// The share of the time in which every variant had its desired count in service.
    pub full_share: f64,
    /// The share of the instance time in service that was of a lower priority than the first.
    pub fallback_share: f64,
    /// What the instances cost from their grants to their ends, where types have a price.
    pub cost: f64,
    /// Managers that died.
    pub crashes: u64,
    /// The fleet and its load at even intervals.
    pub timeline: Vec<Moment>,
    /// What broke a rule that must always hold; the play ends there.
    pub failure: Option<String>,
}

/// What became of one instance type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct TypeFigures {
    /// The best that it has in any pool; 0 if it is in none.
    pub priority: u32,
    /// Launches granted.
    pub launches: u64,
    /// Launches refused for lack of capacity.
    pub refusals: u64,
    /// Instance hours in service.
    pub hours_served: f64,
    /// Instance hours from grant to end.
    pub hours_paid: f64,
    /// What those cost.
    pub cost: f64,
}

/// What became of one variant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct VariantFigures {
    /// What became of its requests.
    pub requests: RequestCounts,
    /// How long they waited.
    pub waits: Waits,
    /// The share of the time in which it had its desired count in service.
    pub full_share: f64,
}

/// The whole fleet at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds since the start.
    pub at_s: f64,
    /// Instances desired, over all variants.
    pub desired: u32,
    /// Instances in service, in the order of the report's types.
    pub serving: Vec<u32>,
    /// Instances that are paid for and not in service: they start or leave.
    pub idle: u32,
    /// Requests that wait at the proxies.
    pub waiting: u32,
    /// Requests that have come since the moment before.
    pub asked: u64,
    /// Requests refused or lost since then.
    pub failed: u64,
}

/// Plays the scenario in `text` (mistakes name `file_name`; `read` gives the text of a trace). The same text
/// and seed give the same report.
///
/// # Errors
/// When the text is no scenario.
pub fn simulate(
    text: &str,
    file_name: &str,
    seed: u64,
    read: &dyn Fn(&Path) -> Result<String, String>,
) -> Result<Report, ScenarioError> {
    Ok(play(&Scenario::parse(text, file_name, read)?, seed))
}

/// Plays `scenario`.
#[must_use]
pub fn play(scenario: &Scenario, seed: u64) -> Report {
    play_setup(scenario, scenario.setup(seed), seed)
}

/// As [`play`], and asks the checker of every action, which takes several times as long in a large fleet.
#[must_use]
pub fn play_checked(scenario: &Scenario, seed: u64) -> Report {
    play_setup(scenario, Setup { checked: true, ..scenario.setup(seed) }, seed)
}

fn play_setup(scenario: &Scenario, setup: Setup, seed: u64) -> Report {
    let mut world = World::new(setup, seed, Trace::story());
    world.usage = Some(Usage::new());
    let length = scenario.length();
    let end = START + length;
    let sample_every = scenario.sample_every().max(LEAST_SAMPLE);
    let step = (length / MOMENTS).max(LEAST_STEP);
    // The first line on the composition comes early, the others at even times.
    let (mut sample_at, mut samples, mut step_at) = (START + LEAST_SAMPLE, 0, START);
    let mut shown = String::new();
    let mut timeline = Vec::new();
    let mut before = RequestCounts::default();
    while world.now < end && world.fault.is_none() {
        world.advance(sample_at.min(step_at).min(end));
        if world.now >= step_at {
            step_at = step_at + step;
            let counts = world.traffic.tallies.counts();
            timeline.push(moment(&world, before, counts));
            before = counts;
        }
        if world.now >= sample_at {
            samples += 1;
            sample_at = START + sample_every * samples;
            let line = composition(&world);
            if line != shown {
                world.tell_story(|| line.clone());
                shown = line;
            }
        }
    }
    report(world, seed, timeline)
}

fn moment(world: &World, before: RequestCounts, counts: RequestCounts) -> Moment {
    let usage = world.usage.as_ref();
    let kinds = world.fleet.instance_types.keys();
    let of = |kind| usage.and_then(|usage| usage.types.get(kind)).copied().unwrap_or_default();
    let uses: Vec<_> = kinds.map(of).collect();
    let paid: u32 = uses.iter().map(|kind| kind.paid).sum();
    let serving: Vec<u32> = uses.iter().map(|kind| kind.serving).collect();
    let failed = |counts: RequestCounts| counts.refused() + counts.lost;
    Moment {
        at_s: world.now.since(START).as_secs_f64(),
        desired: usage.map_or(0, |usage| usage.variants.values().map(|v| v.desired).sum()),
        idle: paid - serving.iter().sum::<u32>(),
        serving,
        waiting: world.proxies.iter().map(super::proxies::Proxy::queued).sum(),
        asked: counts.asked - before.asked,
        failed: failed(counts) - failed(before),
    }
}

fn report(mut world: World, seed: u64, timeline: Vec<Moment>) -> Report {
    let mut usage = world.usage.take().unwrap_or_else(Usage::new);
    usage.advance(world.now);
    let length_ms = world.now.since(START).as_millis() as f64;
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let types: BTreeMap<_, _> = world
        .fleet
        .instance_types
        .iter()
        .map(|(kind, spec)| {
            let hours = |ms: u64| ms as f64 / 3_600_000.0;
            let of = usage.types.get(kind).copied().unwrap_or_default();
            let pools = world.fleet.variants().flat_map(|(_, variant)| &variant.pools);
            let pools = pools.filter(|pool| pool.instance_type == *kind);
            let figures = TypeFigures {
                priority: pools.map(|pool| pool.priority).min().unwrap_or(0),
                launches: world.cloud.launches.get(kind).copied().unwrap_or(0),
                refusals: world.cloud.refusals.get(kind).copied().unwrap_or(0),
                hours_served: hours(of.served_ms),
                hours_paid: hours(of.paid_ms),
                cost: hours(of.paid_ms) * spec.price_per_hour.unwrap_or(0.0),
            };
            (kind.clone(), figures)
        })
        .collect();
    let mut variants: BTreeMap<String, VariantFigures> = BTreeMap::new();
    for (key, variant) in &usage.variants {
        let lacked = share(usage.lacked_ms(variant) as f64, length_ms);
        variants.entry(key.to_string()).or_default().full_share = 1.0 - lacked;
    }
    for (key, requests, waits) in world.traffic.tallies.figures() {
        let figures = variants.entry(key.to_string()).or_default();
        (figures.requests, figures.waits) = (requests, waits);
    }
    let (requests, waits) = world.traffic.tallies.total();
    let sum =
        |of: fn(&super::usage::TypeUse) -> u64| usage.types.values().map(of).sum::<u64>() as f64;
    Report {
        seed,
        length_s: length_ms / 1000.0,
        availability: requests.availability(),
        requests,
        open: world.traffic.open(),
        waits,
        variants,
        full_share: share(usage.full_ms as f64, length_ms),
        fallback_share: share(sum(|kind| kind.fallback_ms), sum(|kind| kind.served_ms)),
        cost: types.values().map(|figures| figures.cost).sum(),
        types,
        crashes: world.tally.crashes,
        decisions: usage.decisions,
        timeline,
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
