//! A scenario file: a config, then what happens to it. Everything up to the first line that begins with
//! `[simulation` or `[[simulation` is an ordinary config (its listeners, store and provider commands play
//! no part); the rest is [`WorldSpec`]. `config/scenarios/` has examples.
//!
//! [`mod@file`] is what it may say, [`clients`] reads its arrivals, [`world`] makes the world of it.

mod clients;
mod file;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::setup::Span;
use super::traffic::arrivals::Source;
use crate::config::{Mistake, Position};
use crate::decision::scale::schedule;
use crate::types::VariantKey;
use crate::types::scaling::{Bounds, BuiltIn, Metric, Signal};
use crate::types::spec::FleetSpec;

pub use file::WorldSpec;

use file::{ActionLine, Simulation};

const SECOND: Duration = Duration::from_secs(1);
/// Between two lines on the composition.
const SHORTEST_SAMPLE: Duration = Duration::from_secs(10);
/// Between two reports of a proxy.
const REPORTS: Span = (Duration::from_millis(100), Duration::from_secs(9));
const MOST_PROXIES: u32 = 100;
/// What is played at most.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3_600);
/// How often capacity may change in it, over all types.
const MOST_CHANGES: u128 = 200_000;
/// Lines on the composition.
const MOST_SAMPLES: u128 = 200_000;

/// A fleet and the world that it is played in.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What should run.
    pub fleet: Arc<FleetSpec>,
    /// What happens.
    pub world: WorldSpec,
    /// What the config warns of, and what of it is not played: a line each.
    pub warnings: Vec<String>,
    /// Who asks.
    sources: Vec<Source>,
}

/// Why a text is no scenario.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// Its config part has mistakes.
    #[error("{}", lines(.0))]
    Config(Vec<Mistake>),
    /// Its simulation part does.
    #[error("{file}{}: error: {message}", place(.position.as_ref()))]
    Simulation {
        /// The file, as it was named.
        file: String,
        /// Where in it; `None` where it is about more than one place.
        position: Option<Position>,
        /// What is wrong.
        message: String,
    },
}

fn place(position: Option<&Position>) -> String {
    position.map_or_else(String::new, |at| format!(":{}:{}", at.line, at.column))
}

impl ScenarioError {
    fn of_file(file: &str, message: String) -> Self {
        Self::Simulation { file: file.to_owned(), position: None, message }
    }

    /// What the parser says of `text`, in one line.
    fn of_toml(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let position = error.span().and_then(|span| text.get(..span.start)).map(|before| {
            let start = before.rfind('\n').map_or(0, |newline| newline + 1);
            Position {
                line: before.matches('\n').count() + 1,
                column: before[start..].chars().count() + 1,
            }
        });
        let mut message = String::new();
        for one in error.message().chars() {
            // What a file says is in messages as it stands there.
            if one.is_control() { message.extend(one.escape_debug()) } else { message.push(one) }
        }
        Self::Simulation { file: file.to_owned(), position, message }
    }
}

impl Scenario {
    /// Reads a scenario; mistakes name `file_name`. `read` gives the text of a trace that it names.
    ///
    /// # Errors
    /// Every mistake of the config part, or the first of the simulation part.
    pub fn parse(
        text: &str,
        file_name: &str,
        read: &dyn Fn(&Path) -> Result<String, String>,
    ) -> Result<Self, ScenarioError> {
        let wrong = |message: String| ScenarioError::of_file(file_name, message);
        let (config, simulation) = split(text);
        let (config, mistakes) =
            crate::config::load_str(config, file_name).map_err(ScenarioError::Config)?;
        let file: Simulation = toml::from_str(&simulation)
            .map_err(|error| ScenarioError::of_toml(file_name, &simulation, &error))?;
        let (fleet, world) = (config.fleet, file.simulation);
        check(&fleet, &world).map_err(wrong)?;
        world.action.iter().try_for_each(|line| check_scale(&fleet, line)).map_err(wrong)?;
        let sources = clients::sources(&fleet, &world, read).map_err(wrong)?;
        let warnings = warnings(&mistakes, &fleet, file_name);
        Ok(Self { fleet, world, warnings, sources })
    }

    /// The same world with another fleet in it: that of the config in `text` (mistakes name `file_name`). What
    /// else the text says, also if it is a scenario itself, plays no part.
    ///
    /// # Errors
    /// Mistakes of that config, or what this world speaks of and that config lacks.
    pub fn with_policy(&self, text: &str, file_name: &str) -> Result<Self, ScenarioError> {
        let (config, mistakes) =
            crate::config::load_str(split(text).0, file_name).map_err(ScenarioError::Config)?;
        let fleet = config.fleet;
        let wrong = |message: String| {
            let message = format!("it cannot be played in the scenario's world: {message}");
            ScenarioError::of_file(file_name, message)
        };
        check(&fleet, &self.world).map_err(wrong)?;
        let known = |source: &Source| fleet.endpoints.iter().any(|e| e.name == source.endpoint);
        if let Some(missing) = self.sources.iter().find(|source| !known(source)) {
            return Err(wrong(format!("no endpoint is called \"{}\"", missing.endpoint)));
        }
        let warnings = warnings(&mistakes, &fleet, file_name);
        Ok(Self { fleet, warnings, ..self.clone() })
    }

    /// How long is played.
    pub(super) fn length(&self) -> Duration {
        self.world.duration.0
    }

    /// Between two lines on the composition.
    pub(super) fn sample_every(&self) -> Duration {
        self.world.sample_every.0.max(SHORTEST_SAMPLE)
    }
}

fn warnings(mistakes: &[Mistake], fleet: &FleetSpec, file_name: &str) -> Vec<String> {
    // No command is run here.
    let told = mistakes.iter().map(ToString::to_string).filter(|told| !told.contains("`command`"));
    let unseen = fleet.variants().flat_map(|(endpoint, variant)| {
        let blind = variant.scaling.iter().filter(|policy| !is_played(&policy.signal));
        blind.map(move |policy| {
            format!(
                "{file_name}: warning: policy \"{}\" of {}/{} does nothing here: what it looks at is not played",
                policy.name, endpoint.name, variant.name
            )
        })
    });
    told.chain(unseen).collect()
}

/// Whether what the signal is made of is measured in the simulated world: first chunks and what workers tell of
/// themselves are not.
fn is_played(signal: &Signal) -> bool {
    let is_metric_played = |metric: Metric| {
        !matches!(
            metric,
            Metric::FirstChunkLatency
                | Metric::GpuUtilization
                | Metric::GpuMemoryUtilization
                | Metric::KvCacheUtilization
                | Metric::RunningRequests
                | Metric::WaitingRequests
        )
    };
    match signal {
        Signal::BuiltIn(built_in) => *built_in != BuiltIn::FirstChunkP99,
        Signal::Expression { metrics, .. } => {
            metrics.values().all(|query| is_metric_played(query.metric))
        }
    }
}

/// Names must exist, shares be shares, and numbers within reason.
fn check(fleet: &FleetSpec, world: &WorldSpec) -> Result<(), String> {
    let capacity = world.capacity.iter().map(|line| &line.instance_type);
    let spot = world.spot.iter().map(|line| &line.instance_type);
    let interrupted = world.interrupt.iter().filter_map(|line| line.instance_type.as_ref());
    let of = world.startup_delay_of.keys().chain(world.service_of.keys());
    for kind in capacity.chain(spot).chain(interrupted).chain(of) {
        if !fleet.instance_types.contains_key(kind) {
            return Err(format!("simulation: there is no [instance_type.\"{kind}\"]"));
        }
    }
    for line in &world.outage {
        if !fleet.instance_types.values().any(|kind| kind.provider == line.provider) {
            return Err(format!("simulation.outage: nothing comes from \"{}\"", line.provider));
        }
    }
    for (name, share) in world.faults.named() {
        if !(0.0..=1.0).contains(&share) {
            return Err(format!("simulation.faults.{name} is {share}, a share is 0 to 1"));
        }
    }
    let services = world.service_of.values().chain([&world.service]);
    if let Some(line) = services.into_iter().find(|line| !(0.0..=3.0).contains(&line.sigma)) {
        return Err(format!(
            "simulation: a service time's sigma is {}, 0 to 3 are played",
            line.sigma
        ));
    }
    if !(1..=MOST_PROXIES).contains(&world.proxies) {
        return Err(format!(
            "simulation.proxies is {}, 1 to {MOST_PROXIES} are played",
            world.proxies
        ));
    }
    let span = |range: Span, length: Duration| range.0 <= length && length <= range.1;
    if !span(REPORTS, world.report_every.0) {
        return Err(
            "simulation.report_every must be 100ms to 9s: silence of 10 s is an alarm".into()
        );
    }
    let repeated = world.capacity.iter().filter_map(|line| line.every);
    let walked = world.spot.iter().filter(|line| line.available.is_some());
    if repeated.chain(walked.map(|line| line.changes_every)).any(|every| every.0 < SECOND) {
        return Err("simulation: capacity changes at most once in a second".into());
    }
    check_length(world)?;
    world.action.iter().try_for_each(|line| variant_of(fleet, line).map(drop))
}

/// What is played must be bounded.
fn check_length(world: &WorldSpec) -> Result<(), String> {
    let length = world.duration.0;
    if length > LONGEST {
        return Err(format!(
            "simulation.duration is {}, no more than a year is played",
            humantime::format_duration(length)
        ));
    }
    let times = |from: Duration, every: Duration| {
        length.saturating_sub(from).as_millis() / every.as_millis().max(1) + 1
    };
    let repeated =
        world.capacity.iter().map(|line| line.every.map_or(1, |e| times(line.at.0, e.0)));
    let walked = world.spot.iter().filter(|line| line.available.is_some());
    let walked = walked.map(|line| times(Duration::ZERO, line.changes_every.0));
    let changes: u128 = repeated.chain(walked).sum();
    if changes > MOST_CHANGES {
        return Err(format!(
            "simulation: capacity would change {changes} times, no more than {MOST_CHANGES} are played; let it \
             change less often, or play less time"
        ));
    }
    let samples = times(Duration::ZERO, world.sample_every.0.max(SHORTEST_SAMPLE));
    if samples > MOST_SAMPLES {
        return Err(format!(
            "simulation.sample_every gives {samples} lines on the composition, no more than {MOST_SAMPLES} are kept"
        ));
    }
    Ok(())
}

/// An operator is refused a size outside of the bounds, those that scheduled actions bring included.
fn check_scale(fleet: &FleetSpec, line: &ActionLine) -> Result<(), String> {
    let key = variant_of(fleet, line)?;
    let Some(spec) = fleet.variant(&key) else { return Ok(()) };
    let bounds = spec.schedule.iter().map(|action| schedule::bounds_of(action, spec));
    let own = Bounds { min: spec.min_instance_count, max: spec.max_instance_count };
    let (min, max) = bounds
        .fold((own.min, own.max), |(min, max), bounds| (min.min(bounds.min), max.max(bounds.max)));
    if (min..=max).contains(&line.scale) {
        return Ok(());
    }
    Err(format!(
        "simulation.action: {key} has {min} to {max} instances and cannot be scaled to {}",
        line.scale
    ))
}

fn variant_of(fleet: &FleetSpec, line: &ActionLine) -> Result<VariantKey, String> {
    let endpoint = fleet
        .endpoints
        .iter()
        .find(|endpoint| endpoint.name == line.endpoint)
        .ok_or(format!("simulation.action: no endpoint is called \"{}\"", line.endpoint))?;
    let variant = match (&line.variant, endpoint.variants.as_slice()) {
        (None, [only]) => &only.name,
        (None, _) => {
            return Err(format!("simulation.action: \"{}\" has several variants", endpoint.name));
        }
        (Some(name), variants) => {
            &variants
                .iter()
                .find(|variant| variant.name == *name)
                .ok_or(format!("simulation.action: no variant is called \"{name}\""))?
                .name
        }
    };
    Ok(VariantKey { endpoint: endpoint.name.clone(), variant: variant.clone() })
}

/// The config part, and the simulation part with as many empty lines before it as the config part has,
/// so that both keep their line numbers.
fn split(text: &str) -> (&str, String) {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = line.trim_start();
        if start.starts_with("[simulation") || start.starts_with("[[simulation") {
            break;
        }
        at += line.len();
    }
    let (config, simulation) = text.split_at(at);
    (config, "\n".repeat(config.lines().count()) + simulation)
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_numbers() {
        let (config, simulation) = split("a = 1\nb = 2\n[simulation]\nc = 3\n");
        assert_eq!(config, "a = 1\nb = 2\n");
        assert_eq!(simulation, "\n\n[simulation]\nc = 3\n");
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let good = include_str!("../../../config/scenarios/drought.toml");
        let parse = |text: &str| Scenario::parse(text, "x.toml", &|_| Err("no file".into()));
        assert!(parse(good).is_ok());
        for (from, to, expected) in [
            ("[simulation]", "[simulation]\nspeed = 3", "unknown field `speed`"),
            ("[simulation]", "[simulation]\nspeed 3", "expected `=`"),
            ("available = 0", "available = -1", "invalid value: integer `-1`"),
            ("at = \"30m\"", "at = \"half an\\nhour\"", "is no duration"),
            ("at = \"30m\"", "at = \"10000y\"", "is longer than ten years"),
            ("endpoint = \"chat\"", "endpoint = \"chess\"", "no endpoint is called \"chess\""),
            ("priority = 2", "priority = \"second\"", "x.toml:"),
        ] {
            assert!(good.contains(from), "{from}");
            let bad = good.replacen(from, to, 1);
            let error = parse(&bad).expect_err(to).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.lines().all(|line| line.starts_with("x.toml:")), "{error}");
        }
        let spoilt = good.replacen("[simulation]", "[simulation]\nspeed = 3", 1);
        let line = good.lines().position(|line| line == "[simulation]").expect("there") + 2;
        let error = parse(&spoilt).expect_err("unknown").to_string();
        assert!(error.starts_with(&format!("x.toml:{line}:1: error: unknown field")), "{error}");
    }

    #[test]
    fn what_is_played_is_bounded() {
        let good = include_str!("../../../config/scenarios/drought.toml");
        let played = |simulation: &str| {
            let text = format!("{}{simulation}", split(good).0);
            Scenario::parse(&text, "x.toml", &|_| Err("no file".into())).map(drop)
        };
        for (simulation, expected) in [
            ("[simulation]\nduration = \"366d\"", None),
            ("[simulation]\nduration = \"10000years\"", Some("longer than ten years")),
            ("[simulation]\nduration = \"367d\"", Some("no more than a year is played")),
            (
                "[simulation]\nduration = \"365d\"\n[[simulation.capacity]]\nat = \"0s\"\nevery = \"1s\"\n\
                 instance_type = \"ml.p5.48xlarge\"\navailable = 1",
                Some("capacity would change 31536001 times"),
            ),
            (
                "[simulation]\nduration = \"365d\"\n[[simulation.spot]]\ninstance_type = \"ml.p5.48xlarge\"\n\
                 available = [1, 2]\nchanges_every = \"1s\"",
                Some("capacity would change 31536001 times"),
            ),
            (
                "[simulation]\nduration = \"365d\"\nsample_every = \"1s\"",
                Some("3153601 lines on the composition"),
            ),
            (
                "[simulation]\nduration = \"7d\"\n[[simulation.arrivals]]\n\
                 bursts = { rate = 1e9, lasts = \"1s\", every = \"7d\" }",
                Some("about 1000000000 requests"),
            ),
            (
                "[simulation]\nduration = \"7d\"\n[[simulation.arrivals]]\nsteps = [[\"1s\", 1e8], [\"2s\", 0.0]]",
                Some("about 100000000 requests"),
            ),
            (
                "[simulation]\nduration = \"7d\"\n[[simulation.arrivals]]\nsteps = [[\"1s\", 1e6], [\"2s\", 0.01]]",
                Some("moments would be tried for"),
            ),
            (
                "[simulation]\nduration = \"1h\"\n[[simulation.action]]\nat = \"1s\"\nendpoint = \"chat\"\n\
                 scale = 4000000000",
                Some("cannot be scaled to 4000000000"),
            ),
        ] {
            match (played(simulation), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(text)) => {
                    assert!(error.to_string().contains(text), "{simulation}: {error}");
                }
                (found, _) => panic!("{simulation}: {found:?}"),
            }
        }
    }
}
