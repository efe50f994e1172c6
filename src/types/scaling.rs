//! Scaling policies as the operator wrote them, and the metrics that they are about.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{InstanceTypeName, Timestamp};

/// What is measured of a variant, under the names that CloudWatch has for it where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Metric {
    /// Requests at an instance, over the instances of a type in service.
    ConcurrentRequestsPerModel,
    /// Instances of a type in service.
    InstanceCount,
    /// Requests answered by a type; its sum over a period is how many.
    Invocations,
    /// Seconds from sending a request to its last byte.
    ModelLatency,
    /// Seconds from sending a request to the first byte of the answer's body.
    FirstChunkLatency,
    /// Requests that wait for a slot of the variant.
    QueueDepth,
    /// How busy the GPUs of an instance are, in percent, averaged over them.
    #[serde(rename = "GPUUtilization")]
    GpuUtilization,
    /// How much of the GPUs' memory of an instance is in use, in percent.
    #[serde(rename = "GPUMemoryUtilization")]
    GpuMemoryUtilization,
    /// How much of an engine's KV cache is in use, in percent.
    #[serde(rename = "KVCacheUtilization")]
    KvCacheUtilization,
    /// Requests that an engine works on, as it tells itself.
    RunningRequests,
    /// Requests that wait in an engine, as it tells itself.
    WaitingRequests,
    /// Requests that have asked for the variant, served or not. It has no name: policies cannot ask for it.
    Arrivals,
}

impl Metric {
    /// All that have a name, by it.
    pub const ALL: [(&'static str, Self); 11] = [
        ("ConcurrentRequestsPerModel", Self::ConcurrentRequestsPerModel),
        ("InstanceCount", Self::InstanceCount),
        ("Invocations", Self::Invocations),
        ("ModelLatency", Self::ModelLatency),
        ("FirstChunkLatency", Self::FirstChunkLatency),
        ("QueueDepth", Self::QueueDepth),
        ("GPUUtilization", Self::GpuUtilization),
        ("GPUMemoryUtilization", Self::GpuMemoryUtilization),
        ("KVCacheUtilization", Self::KvCacheUtilization),
        ("RunningRequests", Self::RunningRequests),
        ("WaitingRequests", Self::WaitingRequests),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, metric)| *metric == self).map_or("", |(name, _)| name)
    }

    /// Whether it is looked at now and then. The others are counted: none of what happens is missed.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        !matches!(
            self,
            Self::Invocations | Self::ModelLatency | Self::FirstChunkLatency | Self::Arrivals
        )
    }

    /// Whether instances tell it of themselves.
    #[must_use]
    pub fn is_told(self) -> bool {
        matches!(
            self,
            Self::GpuUtilization
                | Self::GpuMemoryUtilization
                | Self::KvCacheUtilization
                | Self::RunningRequests
                | Self::WaitingRequests
        )
    }

    /// Whether percentiles of it are known.
    #[must_use]
    pub fn has_percentiles(self) -> bool {
        matches!(self, Self::ModelLatency | Self::FirstChunkLatency)
    }
}

/// What becomes of the samples of a period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistic {
    /// Their mean.
    Average,
    /// Their sum.
    Sum,
    /// The least.
    Minimum,
    /// The most.
    Maximum,
    /// How many there are.
    SampleCount,
    /// The value that this share of them, 0 to 1, does not exceed.
    Percentile(f64),
}

/// One series of an expression.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricQuery {
    /// What.
    pub metric: Metric,
    /// Of which type, or of all together.
    pub instance_type: Option<InstanceTypeName>,
    /// How a period becomes one value.
    pub statistic: Statistic,
}

/// A metric that needs no expression. Types without an instance are left out of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuiltIn {
    /// Requests over slots of each type, averaged over the instances in service. Of a full fleet, what the arrivals
    /// ask for.
    Utilization,
    /// The same averaged over the types, each counting as much as another.
    UtilizationByType,
    /// Requests over model copies in service. Of a full fleet, what the arrivals ask for.
    ConcurrencyPerCopy,
    /// Requests that wait.
    QueueDepth,
    /// Requests answered in a period, over instances in service.
    InvocationsPerInstance,
    /// The 99th percentile in seconds.
    ModelLatencyP99,
    /// The 99th percentile in seconds.
    FirstChunkP99,
}

/// What a policy looks at.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// A metric of ours.
    BuiltIn(BuiltIn),
    /// Metric math: the text, which was checked, and the series in it.
    Expression {
        /// As it was written.
        text: String,
        /// By their names in the text.
        metrics: BTreeMap<String, MetricQuery>,
    },
}

/// One policy.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalingPolicy {
    /// Unique within the variant.
    pub name: String,
    /// What it looks at.
    pub signal: Signal,
    /// The length of a period.
    pub period: Duration,
    /// Periods in a row that have to say so before it scales out.
    pub scale_out_periods: u32,
    /// The same for scaling in.
    pub scale_in_periods: u32,
    /// After it has scaled out, only a larger size is taken within this time.
    pub scale_out_cooldown: Duration,
    /// After it has scaled in, it does not again within this time.
    pub scale_in_cooldown: Duration,
    /// Whether it ever scales in.
    pub scale_in: bool,
    /// What it does.
    pub rule: Rule,
}

impl ScalingPolicy {
    /// How many periods it looks at.
    #[must_use]
    pub fn looks_back(&self) -> u32 {
        self.scale_out_periods.max(self.scale_in_periods).max(1)
    }
}

/// What a policy does about its signal.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// Keeps the signal near a value.
    TargetTracking {
        /// The value.
        target: f64,
        /// The share above it that still holds.
        tolerance: f64,
    },
    /// Changes the size by how far the signal is beyond a threshold.
    Step {
        /// The threshold.
        threshold: f64,
        /// Whether being above it is the breach, or being below.
        above: bool,
        /// How the changes are meant.
        adjustment: Adjustment,
        /// A percentage changes the size by at least so many.
        least: u32,
        /// Ordered, without a gap or an overlap.
        steps: Vec<Step>,
    },
}

/// How a step's change is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adjustment {
    /// So many more or fewer.
    ChangeInCapacity,
    /// So many percent more or fewer.
    PercentChangeInCapacity,
    /// Exactly so many.
    ExactCapacity,
}

/// What is done while the signal is so far from the threshold. Of its bounds the one that is nearer to the threshold
/// belongs to it: `from` where the breach is above, `to` where it is below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The lower bound; none: from any below the other one.
    pub from: Option<f64>,
    /// The upper bound; none: to any above the other one.
    pub to: Option<f64>,
    /// The change.
    pub change: f64,
}

/// How few and how many instances a variant may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The least; 0 allows going to zero.
    pub min: u32,
    /// The most, no less than the least.
    pub max: u32,
}

impl Bounds {
    /// The nearest size that is allowed.
    #[must_use]
    pub fn clamp(self, size: u32) -> u32 {
        size.clamp(self.min, self.max.max(self.min))
    }
}

/// Other bounds from certain moments on, until another action's moment has come.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduledAction {
    /// Unique within the variant.
    pub name: String,
    /// From when on.
    pub when: Schedule,
    /// The least; `None`: as the variant has it.
    pub min: Option<u32>,
    /// The most; `None`: as the variant has it.
    pub max: Option<u32>,
}

/// Moments in time.
#[derive(Clone, PartialEq)]
pub enum Schedule {
    /// One.
    At(Timestamp),
    /// Those that a pattern tells, by the clocks of a time zone.
    Cron {
        /// Seconds first, always 0.
        pattern: Box<croner::Cron>,
        /// Whose clocks.
        zone: chrono_tz::Tz,
    },
}

impl fmt::Debug for Schedule {
    /// A pattern's own shows each minute of the hour and each year there is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at) => write!(f, "at({at})"),
            Self::Cron { pattern, zone } => write!(f, "cron({}, {zone})", pattern.as_str()),
        }
    }
}
