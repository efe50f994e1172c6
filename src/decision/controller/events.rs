//! The event log: a stable word for each kind of decision, and the reasons for which instances leave.
//! Messages are whole sentences with their figures, for whoever is on call.

use std::fmt;
use std::time::Duration;

use crate::types::Timestamp;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// What an [`crate::types::record::EventRecord`] is about. The words never change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum EventKind {
            $($(#[$doc])* $kind,)*
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The stable word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// A variant is followed from now on.
    VariantCreated = "variant_created",
    /// A variant left the config; its instances drain.
    VariantRemoved = "variant_removed",
    /// The last instance of a removed variant is gone.
    VariantDeleted = "variant_deleted",
    /// The desired number changed.
    DesiredChanged = "desired_changed",
    /// A scaling policy has changed the desired number.
    Autoscaled = "autoscaled",
    /// A bound of what is kept of what was measured is reached.
    MeasuredLimit = "measured_limit",
    /// A scheduled action brings other bounds.
    Scheduled = "scheduled",
    /// Demand woke a variant that was at zero.
    Woken = "woken",
    /// A variant without demand goes to zero.
    ToZero = "to_zero",
    /// Another pool has its turn.
    PoolTurn = "pool_turn",
    /// The window for all pools closed; another began.
    WindowReopened = "window_reopened",
    /// Instances are asked for.
    LaunchAsked = "launch_asked",
    /// The provider agreed.
    LaunchGranted = "launch_granted",
    /// No capacity, or no quota.
    LaunchRefused = "launch_refused",
    /// The provider will never take this launch as it is.
    LaunchRejected = "launch_rejected",
    /// The provider gave no answer; it is asked again with the same id.
    LaunchUnanswered = "launch_unanswered",
    /// A provider has capacity again.
    CapacityBack = "capacity_back",
    /// An instance that an earlier manager asked for was found.
    Adopted = "adopted",
    /// Something ran under our tag that nobody asked for; it is ended.
    OrphanEnded = "orphan_ended",
    /// Healthy and in the routing table.
    InService = "in_service",
    /// Did not start to run within its clocks.
    DownloadTimeout = "download_timeout",
    /// Ran but did not become healthy within its clocks.
    StartupTimeout = "startup_timeout",
    /// Ended by itself before it was healthy.
    StartFailed = "start_failed",
    /// Failed its probes and is replaced.
    Unhealthy = "unhealthy",
    /// Ended by itself, or was ended by its provider.
    InstanceLost = "instance_lost",
    /// Its provider has announced that it takes it away.
    Interruption = "interruption",
    /// A preferred instance is asked for, to take a fallback's place.
    MoveStarted = "move_started",
    /// Leaves because there are more than desired.
    ScaleIn = "scale_in",
    /// Leaves because its pool left the config.
    PoolRemoved = "pool_removed",
    /// Leaves because its provider takes it away.
    Interrupted = "interrupted",
    /// Leaves because an operator said so.
    OperatorDrain = "operator_drain",
    /// Its requests are done.
    Drained = "drained",
    /// Its drain deadline has passed.
    DrainExpired = "drain_expired",
    /// The provider did not take a termination; it is asked again.
    StopFailed = "stop_failed",
    /// It is gone for certain.
    Gone = "gone",
    /// A provider does not answer.
    ProviderUnreachable = "provider_unreachable",
    /// A provider answers again.
    ProviderBack = "provider_back",
    /// A proxy has not reported for its lease.
    ProxySilent = "proxy_silent",
    /// A proxy has been silent for so long that it is taken for dead.
    ProxyForgotten = "proxy_forgotten",
    /// More proxies report than are followed.
    TooManyProxies = "too_many_proxies",
}

/// A span as people read it: whole seconds, or milliseconds below ten.
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let shown = if millis < 10_000 { millis } else { millis - millis % 1_000 };
        humantime::format_duration(Duration::from_millis(shown)).fmt(f)
    }
}

/// A moment as people read it: the time of the day in UTC, and how far off it is.
pub(super) struct At(pub(super) Timestamp, pub(super) Timestamp);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(at, now) = *self;
        let full = at.to_string();
        let time = full.get(11..19).filter(|_| at.is_writable()).unwrap_or(&full);
        match now.until(at) {
            Duration::ZERO => write!(f, "{time} UTC"),
            span => write!(f, "{time} UTC (in {})", Span(span)),
        }
    }
}

/// Why an instance leaves; becomes its record's `leaving_because` and its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leave {
    pub(super) kind: EventKind,
    /// The end of the sentence "… leaves: ".
    pub(super) because: String,
    /// At most this long for its requests, if less than the variant's `drain_timeout`.
    pub(super) drain_within: Option<Duration>,
}

impl Leave {
    pub(super) fn new(kind: EventKind, because: impl Into<String>) -> Self {
        Self { kind, because: because.into(), drain_within: None }
    }

    pub(super) fn within(self, drain_within: Duration) -> Self {
        Self { drain_within: Some(drain_within), ..self }
    }
}
