//! What makes a simulated world: the fleet asked for, the cloud it is asked of, the load, and the script
//! of what happens to it. Generated from a seed ([`super::generate`]) or read from a file
//! ([`super::scenario`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::traffic::TrafficSetup;
use crate::types::spec::FleetSpec;
use crate::types::{InstanceTypeName, ProviderName, VariantKey};

/// A range of durations, both ends included.
pub(super) type Span = (Duration, Duration);

/// Everything that a world starts from.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) fleet: Arc<FleetSpec>,
    pub(super) cloud: CloudSetup,
    pub(super) faults: Faults,
    /// Whether launches may fail for other reasons than capacity.
    pub(super) troubled: bool,
    /// Whether the checker is asked of every action, as it is not in production.
    pub(super) checked: bool,
    pub(super) proxies: u32,
    /// Time between two reports of a proxy.
    pub(super) report_every: Duration,
    /// How long a published table or a report is on its way.
    pub(super) message: Span,
    /// What the clients of generated worlds send.
    pub(super) load: Load,
    /// What those of scenarios do.
    pub(super) traffic: TrafficSetup,
    /// Types that providers only lend.
    pub(super) spot: BTreeMap<InstanceTypeName, Spot>,
    /// What happens, by time since the start.
    pub(super) script: Vec<(Duration, Happening)>,
    /// How long the script is played.
    pub(super) length: Duration,
}

impl Setup {
    /// Within which a proxy that is heard has told what it was asked for.
    pub(super) fn report_turn(&self) -> Duration {
        self.report_every + self.message.1
    }
}

/// How the providers behave when nothing fails.
#[derive(Debug, Clone)]
pub(super) struct CloudSetup {
    /// Instances of each type that the cloud runs for us at once; no entry: as many as wanted.
    pub(super) available: BTreeMap<InstanceTypeName, u32>,
    /// From a call's start to its effect, and again to its answer.
    pub(super) latency: Span,
    /// From granted to running, by type; `startup` where there is no entry.
    pub(super) startup_by_type: BTreeMap<InstanceTypeName, Span>,
    /// From running to healthy.
    pub(super) startup: Span,
    /// From told to stop to ended.
    pub(super) stop: Span,
    /// How long an ended instance stays in the lists.
    pub(super) remembered: Span,
    /// Refusals that name a quota, of a thousand.
    pub(super) quota_share: u32,
    /// Whether a grant names the address at once.
    pub(super) address_at_grant: bool,
}

/// How a type is lent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// How long an instance is left to us, on average; `None`: until capacity shrinks.
    pub(super) mean_life: Option<Duration>,
    /// From the notice to the end.
    pub(super) notice: Duration,
}

/// What goes wrong by chance, each in this many of a thousand calls (or launches).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// Answers `Unavailable` and does nothing.
    pub(super) lost_before: u32,
    /// Does it and answers `Unavailable`.
    pub(super) lost_after: u32,
    /// Answers `Unavailable` after the call's time limit, having done it or not.
    pub(super) hangs: u32,
    /// Answers `Unavailable`, and does it a while later.
    pub(super) late: u32,
    /// Takes up to half a minute.
    pub(super) slow: u32,
    /// Launched, and never becomes healthy.
    pub(super) never_healthy: u32,
    /// Launched, and ends before it is healthy.
    pub(super) dies_young: u32,
}

/// What the clients ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Time between two bursts at a proxy.
    pub(super) every: Span,
    /// Requests in a burst: from 1 to this; 0 is no load.
    pub(super) burst: u32,
    /// How long a burst runs at its instance.
    pub(super) service: Span,
}

/// One thing that happens to the world. A `pick` chooses among whatever there is at that moment.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// The cloud runs at most this many instances of a type from now on (those that run go on).
    Capacity(InstanceTypeName, u32),
    /// As that, and those that run beyond it are taken back after this notice.
    SpotCapacity(InstanceTypeName, u32, Duration),
    /// Everything that a provider runs ends, and for a while it runs no more.
    Outage(ProviderName, Duration),
    /// Launches of a type are rejected from now on, or no more.
    Rejecting(InstanceTypeName, bool),
    /// The operator sets a desired count.
    Desired(VariantKey, u32),
    /// The operator drains one instance.
    Drain {
        /// Chooses it.
        pick: u64,
    },
    /// The operator changes the config.
    Reconfigure(Arc<FleetSpec>),
    /// The manager dies before it carries out its n-th next action, and starts again later.
    Crash {
        /// Actions it still carries out.
        after: u32,
        /// How long it is down.
        down: Duration,
    },
    /// A worker dies; its provider notices at once or never.
    Kill {
        /// Chooses it.
        pick: u64,
        /// Whether the provider's list shows it.
        noticed: bool,
    },
    /// A worker answers its probes with errors for a while.
    Sicken {
        /// Chooses it.
        pick: u64,
        /// How long.
        lasts: Duration,
    },
    /// A provider announces that it takes an instance away, and does.
    Interrupt {
        /// Chooses it.
        pick: u64,
        /// Only one of this type, if there is one.
        kind: Option<InstanceTypeName>,
        /// From the notice to the end.
        notice: Duration,
    },
    /// A proxy dies with its requests and starts again from its disk.
    ProxyRestart {
        /// Chooses it.
        pick: u64,
        /// How long it is down.
        down: Duration,
        /// Whether it has another name afterwards.
        renamed: bool,
    },
    /// A proxy finishes its requests, says that it leaves, and is gone.
    ProxyLeaves {
        /// Chooses it.
        pick: u64,
    },
    /// A further proxy starts, with an empty disk.
    ProxyJoins,
    /// A proxy and the manager cannot reach each other for a while.
    ProxySilent {
        /// Chooses it.
        pick: u64,
        /// How long.
        lasts: Duration,
    },
    /// The chances of faults change.
    Faults(Faults),
}
