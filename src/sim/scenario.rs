//! A scenario file: a config, then what happens to it. Everything up to the first line that begins with
//! `[simulation` or `[[simulation` is an ordinary config (its listeners, store and provider commands play
//! no part); the rest is [`WorldSpec`]. `config/scenarios/` has examples.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::setup::{CloudSetup, Faults, Happening, Load, Setup, Span};
use crate::config::Mistake;
use crate::types::spec::FleetSpec;
use crate::types::{EndpointName, InstanceTypeName, VariantKey, VariantName};

/// A fleet and the world that it is played in.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What should run.
    pub fleet: Arc<FleetSpec>,
    /// What happens.
    pub world: WorldSpec,
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

/// The `[simulation]` part: the cloud, the load, and what happens when. Durations have a unit; a pair of
/// them is a range from which each is drawn.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldSpec {
    /// How long is played.
    duration: Length,
    /// Between two lines on the fleet's composition.
    #[serde(default = "ten_minutes")]
    sample_every: Length,
    /// Proxies in front.
    #[serde(default = "one")]
    proxies: u32,
    /// How long a call to a provider takes.
    #[serde(default = "one_second")]
    provider_latency: Range,
    /// From granted to healthy.
    #[serde(default = "one_minute")]
    startup_delay: Range,
    /// The same for single instance types.
    #[serde(default)]
    startup_delay_of: BTreeMap<InstanceTypeName, Range>,
    /// From told to stop to ended.
    #[serde(default = "one_second")]
    stop_delay: Range,
    /// Calls that fail, as shares of 1.
    #[serde(default)]
    faults: FaultShares,
    /// How many instances of a type may run, from when on.
    #[serde(default)]
    capacity: Vec<CapacityLine>,
    /// What operators do.
    #[serde(default)]
    action: Vec<ActionLine>,
    /// What clients send; none at first.
    #[serde(default)]
    load: Vec<LoadLine>,
    /// When the manager dies.
    #[serde(default)]
    crash: Vec<CrashLine>,
    /// When workers die.
    #[serde(default)]
    kill: Vec<KillLine>,
    /// When providers take instances away.
    #[serde(default)]
    interrupt: Vec<InterruptLine>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FaultShares {
    lost_before: f64,
    lost_after: f64,
    hangs: f64,
    late: f64,
    slow: f64,
    never_healthy: f64,
    dies_young: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CapacityLine {
    at: Length,
    instance_type: InstanceTypeName,
    available: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionLine {
    at: Length,
    endpoint: EndpointName,
    variant: Option<VariantName>,
    scale: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadLine {
    at: Length,
    every: Range,
    burst: u32,
    service: Range,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CrashLine {
    at: Length,
    #[serde(default = "one_second_length")]
    down: Length,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct KillLine {
    at: Length,
    #[serde(default = "yes")]
    noticed: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterruptLine {
    at: Length,
    notice: Length,
}

/// A duration with a unit.
#[derive(Debug, Clone, Copy)]
struct Length(Duration);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            serde::de::Error::custom(format!("\"{text}\" is no duration such as \"90s\": {error}"))
        })
    }
}

/// One duration, or two as a range.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected a duration such as \"90s\", or two of them as a range")]
enum Range {
    One(Length),
    Two(Length, Length),
}

impl From<Range> for Span {
    fn from(range: Range) -> Self {
        match range {
            Range::One(Length(one)) => (one, one),
            Range::Two(Length(one), Length(other)) => (one.min(other), one.max(other)),
        }
    }
}

impl Scenario {
    /// Reads a scenario; mistakes name `file_name`.
    ///
    /// # Errors
    /// Every mistake of the config part, or the first of the simulation part.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ScenarioError> {
        let wrong =
            |message: String| ScenarioError::Simulation { file: file_name.to_owned(), message };
        let (config, simulation) = split(text);
        let (config, _) =
            crate::config::load_str(config, file_name).map_err(ScenarioError::Config)?;
        let file: Simulation =
            toml::from_str(&simulation).map_err(|error| wrong(error.to_string()))?;
        let scenario = Self { fleet: config.fleet, world: file.simulation };
        scenario.check().map_err(wrong)?;
        Ok(scenario)
    }

    /// How long is played.
    pub(super) fn length(&self) -> Duration {
        self.world.duration.0
    }

    /// Between two lines on the composition.
    pub(super) fn sample_every(&self) -> Duration {
        self.world.sample_every.0.max(Duration::from_secs(10))
    }

    /// Names must exist, shares be shares.
    fn check(&self) -> Result<(), String> {
        let kinds = self.world.capacity.iter().map(|line| &line.instance_type);
        for kind in kinds.chain(self.world.startup_delay_of.keys()) {
            if !self.fleet.instance_types.contains_key(kind) {
                return Err(format!("simulation: there is no [instance_type.\"{kind}\"]"));
            }
        }
        let shares = self.world.faults;
        for (name, share) in shares.named() {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("simulation.faults.{name} is {share}, a share is 0 to 1"));
            }
        }
        self.world.action.iter().try_for_each(|line| self.variant(line).map(drop))
    }

    fn variant(&self, line: &ActionLine) -> Result<VariantKey, String> {
        let endpoint = self
            .fleet
            .endpoints
            .iter()
            .find(|endpoint| endpoint.name == line.endpoint)
            .ok_or(format!("simulation.action: no endpoint is called \"{}\"", line.endpoint))?;
        let variant = match (&line.variant, endpoint.variants.as_slice()) {
            (None, [only]) => &only.name,
            (None, _) => {
                return Err(format!(
                    "simulation.action: \"{}\" has several variants",
                    endpoint.name
                ));
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

    /// The world that the file describes.
    pub(super) fn setup(&self) -> Setup {
        let world = &self.world;
        let capacities = self.fleet.instance_types.iter();
        Setup {
            fleet: Arc::clone(&self.fleet),
            cloud: CloudSetup {
                available: capacities
                    .filter_map(|(name, kind)| Some((name.clone(), kind.capacity?)))
                    .collect(),
                latency: halved(world.provider_latency.into()),
                startup_by_type: world
                    .startup_delay_of
                    .iter()
                    .map(|(kind, range)| (kind.clone(), (*range).into()))
                    .collect(),
                startup: world.startup_delay.into(),
                stop: world.stop_delay.into(),
                remembered: (Duration::ZERO, Duration::from_secs(60)),
                address_at_grant: false,
                quota_share: 0,
            },
            faults: world.faults.per_mille(),
            troubled: true,
            proxies: world.proxies,
            report_every: Duration::from_secs(1),
            message: (Duration::from_millis(1), Duration::from_millis(20)),
            load: Load { every: (TEN_SECONDS, TEN_SECONDS), burst: 0, service: (SECOND, SECOND) },
            script: self.script(),
            length: world.duration.0,
        }
    }

    fn script(&self) -> Vec<(Duration, Happening)> {
        let world = &self.world;
        let capacity = world.capacity.iter().map(|line| {
            (line.at.0, Happening::Capacity(line.instance_type.clone(), line.available))
        });
        let actions = world.action.iter().filter_map(|line| {
            Some((line.at.0, Happening::Desired(self.variant(line).ok()?, line.scale)))
        });
        let load = world.load.iter().map(|line| {
            let (every, service) = (line.every.into(), line.service.into());
            (line.at.0, Happening::Load(Load { every, burst: line.burst, service }))
        });
        let crashes = world
            .crash
            .iter()
            .map(|line| (line.at.0, Happening::Crash { after: 0, down: line.down.0 }));
        // Which worker it hits follows from the time, so that a seed is not needed to say which.
        let kills = world.kill.iter().map(|line| {
            (line.at.0, Happening::Kill { pick: line.at.0.as_secs(), noticed: line.noticed })
        });
        let interruptions = world.interrupt.iter().map(|line| {
            let (pick, notice) = (line.at.0.as_secs(), line.notice.0);
            (line.at.0, Happening::Interrupt { pick, notice })
        });
        let mut script: Vec<_> = capacity
            .chain(actions)
            .chain(load)
            .chain(crashes)
            .chain(kills)
            .chain(interruptions)
            .collect();
        script.sort_by_key(|(at, _)| *at);
        script
    }
}

impl FaultShares {
    fn named(self) -> [(&'static str, f64); 7] {
        [
            ("lost_before", self.lost_before),
            ("lost_after", self.lost_after),
            ("hangs", self.hangs),
            ("late", self.late),
            ("slow", self.slow),
            ("never_healthy", self.never_healthy),
            ("dies_young", self.dies_young),
        ]
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shares are checked to be 0 to 1"
    )]
    fn per_mille(self) -> Faults {
        let [lost_before, lost_after, hangs, late, slow, never_healthy, dies_young] =
            self.named().map(|(_, share)| (share * 1000.0).round() as u32);
        Faults { lost_before, lost_after, hangs, late, slow, never_healthy, dies_young }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Simulation {
    simulation: WorldSpec,
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

fn halved((low, high): Span) -> Span {
    (low / 2, high / 2)
}

const SECOND: Duration = Duration::from_secs(1);
const TEN_SECONDS: Duration = Duration::from_secs(10);

fn ten_minutes() -> Length {
    Length(Duration::from_secs(600))
}

fn one_second_length() -> Length {
    Length(SECOND)
}

fn one_second() -> Range {
    Range::One(Length(SECOND))
}

fn one_minute() -> Range {
    Range::One(Length(Duration::from_secs(60)))
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
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
        let good = include_str!("../../config/scenarios/drought.toml");
        assert!(Scenario::parse(good, "x.toml").is_ok());
        for (from, to, expected) in [
            ("[simulation]", "[simulation]\nspeed = 3", "unknown field `speed`"),
            ("available = 0", "available = -1", "invalid value: integer `-1`"),
            ("at = \"30m\"", "at = \"half an hour\"", "is no duration"),
            ("endpoint = \"chat\"", "endpoint = \"chess\"", "no endpoint is called \"chess\""),
            ("priority = 2", "priority = \"second\"", "x.toml:"),
        ] {
            assert!(good.contains(from), "{from}");
            let bad = good.replacen(from, to, 1);
            let error = Scenario::parse(&bad, "x.toml").expect_err(to).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.starts_with("x.toml"), "{error}");
        }
    }
}
