//! What the `[simulation]` part of a scenario file may say, as it is written there. Durations have a unit; a
//! pair of them is a range from which each is drawn.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::sim::setup::Span;
use crate::types::{EndpointName, InstanceTypeName, ProviderName, VariantName};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Simulation {
    pub(super) simulation: WorldSpec,
}

/// The `[simulation]` part: the cloud, the clients, and what happens when.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldSpec {
    /// How long is played.
    pub(super) duration: Length,
    /// Between two lines on the fleet's composition.
    #[serde(default = "ten_minutes")]
    pub(super) sample_every: Length,
    /// Proxies in front.
    #[serde(default = "one")]
    pub(super) proxies: u32,
    /// Between two reports of a proxy.
    #[serde(default = "second")]
    pub(super) report_every: Length,
    /// How long a call to a provider takes.
    #[serde(default = "one_second")]
    pub(super) provider_latency: Range,
    /// From granted to healthy.
    #[serde(default = "one_minute")]
    pub(super) startup_delay: Range,
    /// The same for single instance types.
    #[serde(default)]
    pub(super) startup_delay_of: BTreeMap<InstanceTypeName, Range>,
    /// From told to stop to ended.
    #[serde(default = "one_second")]
    pub(super) stop_delay: Range,
    /// Calls that fail, as shares of 1.
    #[serde(default)]
    pub(super) faults: FaultShares,
    /// How long requests run.
    #[serde(default)]
    pub(super) service: ServiceLine,
    /// The same for single instance types.
    #[serde(default)]
    pub(super) service_of: BTreeMap<InstanceTypeName, ServiceLine>,
    /// What clients send; several add up.
    #[serde(default)]
    pub(super) arrivals: Vec<ArrivalsLine>,
    /// How many instances of a type may run, from when on.
    #[serde(default)]
    pub(super) capacity: Vec<CapacityLine>,
    /// Types that are lent and taken back.
    #[serde(default)]
    pub(super) spot: Vec<SpotLine>,
    /// When a provider loses everything for a while.
    #[serde(default)]
    pub(super) outage: Vec<OutageLine>,
    /// What operators do.
    #[serde(default)]
    pub(super) action: Vec<ActionLine>,
    /// When the manager dies.
    #[serde(default)]
    pub(super) crash: Vec<CrashLine>,
    /// When workers die.
    #[serde(default)]
    pub(super) kill: Vec<KillLine>,
    /// When providers take single instances away.
    #[serde(default)]
    pub(super) interrupt: Vec<InterruptLine>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FaultShares {
    pub(super) lost_before: f64,
    pub(super) lost_after: f64,
    pub(super) hangs: f64,
    pub(super) late: f64,
    pub(super) slow: f64,
    pub(super) never_healthy: f64,
    pub(super) dies_young: f64,
}

/// Log-normal around a mean that grows with the instance's load.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServiceLine {
    /// Of a request that is alone at its instance.
    pub(super) mean: Length,
    /// Where every slot is taken; `mean` if left out.
    pub(super) mean_full: Option<Length>,
    /// Standard deviation of the logarithm.
    pub(super) sigma: f64,
}

/// Requests for one endpoint: exactly one of the last five says how many.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArrivalsLine {
    /// May be left out where there is one.
    pub(super) endpoint: Option<EndpointName>,
    #[serde(default)]
    pub(super) from: Length,
    pub(super) until: Option<Length>,
    /// Requests per second.
    pub(super) rate: Option<f64>,
    /// From each moment on, at that rate.
    pub(super) steps: Option<Vec<(Length, f64)>>,
    pub(super) diurnal: Option<DiurnalLine>,
    /// The first of them at `from`.
    pub(super) bursts: Option<BurstsLine>,
    /// A CSV file beside the scenario: `at_s[,duration_s]` for each request.
    pub(super) trace: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiurnalLine {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) peak_at: Length,
    #[serde(default = "day")]
    pub(super) period: Length,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BurstsLine {
    pub(super) rate: f64,
    pub(super) lasts: Length,
    pub(super) every: Length,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CapacityLine {
    pub(super) at: Length,
    /// Again and again.
    pub(super) every: Option<Length>,
    pub(super) instance_type: InstanceTypeName,
    pub(super) available: u32,
    /// Those that run beyond it are taken back after this notice; without it they may run on.
    pub(super) notice: Option<Length>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpotLine {
    pub(super) instance_type: InstanceTypeName,
    /// How long an instance is left to us on average (exponential); without it, until capacity shrinks.
    pub(super) mean_life: Option<Length>,
    #[serde(default = "two_minutes")]
    pub(super) notice: Length,
    /// How many are lent at most: drawn anew, between these two, every `changes_every`.
    pub(super) available: Option<(u32, u32)>,
    #[serde(default = "three_hours")]
    pub(super) changes_every: Length,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutageLine {
    pub(super) at: Length,
    pub(super) provider: ProviderName,
    pub(super) lasts: Length,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ActionLine {
    pub(super) at: Length,
    pub(super) endpoint: EndpointName,
    pub(super) variant: Option<VariantName>,
    pub(super) scale: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CrashLine {
    pub(super) at: Length,
    #[serde(default = "second")]
    pub(super) down: Length,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KillLine {
    pub(super) at: Length,
    #[serde(default = "yes")]
    pub(super) noticed: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InterruptLine {
    pub(super) at: Length,
    pub(super) instance_type: Option<InstanceTypeName>,
    pub(super) notice: Length,
}

/// Longer than anything that is played, and short enough to be added to any moment of it.
const LONGEST: Duration = Duration::from_secs(3_660 * 24 * 3_600);

/// A duration with a unit, ten years at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Length(pub(super) Duration);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let span = humantime::parse_duration(&text).map_err(|error| {
            serde::de::Error::custom(format!("\"{text}\" is no duration such as \"90s\": {error}"))
        })?;
        if span > LONGEST {
            let wrong = format!("\"{text}\" is longer than ten years, which nothing here may be");
            return Err(serde::de::Error::custom(wrong));
        }
        Ok(Self(span))
    }
}

/// One duration, or two as a range.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected a duration such as \"90s\", or two of them as a range")]
pub(super) enum Range {
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

impl Default for ServiceLine {
    fn default() -> Self {
        Self { mean: Length(Duration::from_secs(5)), mean_full: None, sigma: 0.5 }
    }
}

impl FaultShares {
    pub(super) fn named(self) -> [(&'static str, f64); 7] {
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
}

fn length(seconds: u64) -> Length {
    Length(Duration::from_secs(seconds))
}

fn second() -> Length {
    length(1)
}

fn two_minutes() -> Length {
    length(120)
}

fn ten_minutes() -> Length {
    length(600)
}

fn three_hours() -> Length {
    length(3 * 3600)
}

fn day() -> Length {
    length(24 * 3600)
}

fn one_second() -> Range {
    Range::One(second())
}

fn one_minute() -> Range {
    Range::One(length(60))
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}
