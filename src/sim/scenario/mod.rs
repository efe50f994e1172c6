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
use crate::config::Mistake;
use crate::types::VariantKey;
use crate::types::scaling::{BuiltIn, Metric, Signal};
use crate::types::spec::FleetSpec;

pub use file::WorldSpec;

use file::{ActionLine, Simulation};

const SECOND: Duration = Duration::from_secs(1);
/// Between two reports of a proxy.
const REPORTS: Span = (Duration::from_millis(100), Duration::from_secs(9));
const MOST_PROXIES: u32 = 100;

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
    #[error("{file}: error: {message}")]
    Simulation {
        /// The file, as it was named.
        file: String,
        /// What is wrong and where.
        message: String,
    },
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
        let wrong =
            |message: String| ScenarioError::Simulation { file: file_name.to_owned(), message };
        let (config, simulation) = split(text);
        let (config, mistakes) =
            crate::config::load_str(config, file_name).map_err(ScenarioError::Config)?;
        let file: Simulation =
            toml::from_str(&simulation).map_err(|error| wrong(error.to_string()))?;
        let (fleet, world) = (config.fleet, file.simulation);
        check(&fleet, &world).map_err(wrong)?;
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
            ScenarioError::Simulation { file: file_name.to_owned(), message }
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
        self.world.sample_every.0.max(Duration::from_secs(10))
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
    world.action.iter().try_for_each(|line| variant_of(fleet, line).map(drop))
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
            ("available = 0", "available = -1", "invalid value: integer `-1`"),
            ("at = \"30m\"", "at = \"half an hour\"", "is no duration"),
            ("endpoint = \"chat\"", "endpoint = \"chess\"", "no endpoint is called \"chess\""),
            ("priority = 2", "priority = \"second\"", "x.toml:"),
        ] {
            assert!(good.contains(from), "{from}");
            let bad = good.replacen(from, to, 1);
            let error = parse(&bad).expect_err(to).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.starts_with("x.toml"), "{error}");
        }
    }
}
