//! The manager's brain without its hands: events in, actions out.
//!
//! A driver (the tokio task in `control`, or the simulator) feeds [`Controller::handle_event`], carries
//! out what [`Controller::poll_action`] returns **in that order**, and calls
//! [`Controller::handle_timeout`] when [`Controller::poll_timeout`] is due. [`Action::Persist`] must be
//! durable before any later action is begun; other actions may run side by side and answer by an event
//! when they are done. An action that never answers delays nothing but itself.
//!
//! # Where to read
//! * `machine`: the life of an instance, one table. `life` applies it and does what each edge entails.
//! * `start`: what is restored, and how a new spec is taken over.
//! * `listed`, `launched`, `health`, `drain`, `demand`, `signals`: what each kind of event means.
//! * `sweeps`: when instances in service are probed.
//! * `round`: carries out a [`crate::decision::plan::Plan`] for one variant. All sizes, turns and orders
//!   of leaving are decided in the planner.
//! * `commit`: one handled event becomes one `Persist`, one `Publish` if the table changed, and then the
//!   other actions, in this order.
//! * `view`, [`preview()`]: what people see.
//!
//! # Rules
//! * **Nothing on a partial picture.** A variant is planned for only after every provider that its pools
//!   or its instances use has answered one `List`. A provider that hangs delays only those. Instances
//!   restored as `InService` are published at once, so that traffic goes on.
//! * **Recorded first.** A launch's record (`Pending`) is durable before the launch, whose id is its
//!   token. After a crash, or an answer `Unavailable`, the same id is asked for again, or terminated, and
//!   a record is deleted only when a later list proves that the instance is not there. What a list shows
//!   and no record knows is an orphan and is terminated.
//! * **Silence must be certain.** A list proves an instance's absence only if the list was begun after
//!   the provider last answered about it.
//! * **Drain.** A leaving instance is out of the table first; it is stopped when every proxy has
//!   applied that table or a later one and has nothing outstanding at it, or its deadline has passed.
//!   Every proxy that was ever heard counts (also across restarts: they are recorded) until it says that
//!   it leaves; one that is cut off may serve on by an old table, so it holds up drains to their
//!   deadlines, for [`PROXY_MEMORY`] at most. For [`RECONNECT_GRACE`] after a start nobody is believed to
//!   be missing. What a proxy says of demand counts for [`PROXY_LEASE`].
//! * **Failures are not shortage.** A launch that is rejected, or an instance that ends or stays
//!   unhealthy while it starts (or within [`QUICK_DEATH`] of being in service), blocks its pool for that
//!   variant, for a time that doubles; other pools are not asked in its place. Blocks and the pace of
//!   moves are in memory only: a restart tries once more.
//! * **Dead, busy, hung.** An instance that fails `unhealthy_threshold` probes in a row is replaced, unless
//!   a proxy has seen it send bytes meanwhile; one that holds requests and sends nothing for the
//!   variant's `stall_timeout` is replaced whatever its probes say. Both have half a minute for what they
//!   still hold, not the whole `drain_timeout`: little of it would be answered.
//! * **What a reload changes.** Counts, pools, priorities, limits and policies apply at once;
//!   `max_concurrency` also to running instances. Models and copies of running instances stay as they
//!   were launched (changing those is a deployment). Instances of a removed pool leave once they are
//!   replaced, those of a removed variant at once.
//! * **Signals advise.** What instances tell of their own load is measured and shown; none is replaced for it.
//! * **Scaling policies** change the desired number at the end of their periods, never to zero: `scaling`.
//! * **Demand is latched.** A request at a variant at zero wakes it once, sized to the need; it goes back
//!   to zero only after it has served, and then only without a request for `scale_to_zero_after`.

mod commands;
mod commit;
mod crews;
mod demand;
mod drain;
mod events;
mod fleet;
mod health;
mod jitter;
mod journal;
mod launched;
mod life;
mod listed;
mod machine;
mod preview;
mod providers;
mod round;
mod scaling;
mod schedule;
mod signals;
mod start;
mod sweeps;
#[cfg(test)]
pub(crate) mod tests;
mod timers;
mod variant;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::types::launch::{LaunchBatch, LaunchOutcome, Listing};
use crate::types::record::{CapacityKey, CapacityRecord, Change, StoredState};
use crate::types::report::ProxyReport;
use crate::types::signals::Signals;
use crate::types::spec::{FleetSpec, HealthCheck};
use crate::types::status::{Explanation, FleetStatus};
use crate::types::table::RoutingTable;
use crate::types::tls::WorkerTls;
use crate::types::{
    Address, EndpointName, Generation, InstanceId, InstanceTypeName, Protocol, ProviderError,
    ProviderName, ProxyId, Timestamp, VariantKey,
};

pub use events::EventKind;
pub use machine::{Next, Trigger, next};
pub use preview::preview;

use drain::Proxy;
use fleet::{Fleet, Slot};
use jitter::Jitter;
use journal::Journal;
use providers::ProviderView;
use sweeps::Sweeps;
use timers::Timers;
use variant::Variant;

/// A proxy that has not reported for this long is silent: it may live, what it said of demand is stale.
pub const PROXY_LEASE: Duration = Duration::from_secs(10);
/// A proxy that has been silent for this long is taken for dead.
pub const PROXY_MEMORY: Duration = Duration::from_secs(3_600);
/// After a start, proxies have this long to report before they are believed not to exist.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(3);
/// An instance that dies this soon after coming into service counts as one that failed to start.
pub const QUICK_DEATH: Duration = Duration::from_secs(30);
/// The longest that a pool without capacity is not asked first.
pub const HOLD_CAP: Duration = Duration::from_secs(300);

/// What has happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A provider's complete answer to [`Action::List`], or why it gave none.
    Listed {
        /// Who was asked.
        provider: ProviderName,
        /// Everything that runs there for us.
        result: Result<Listing, ProviderError>,
    },
    /// The answer to [`Action::Launch`].
    Launched {
        /// Who was asked.
        provider: ProviderName,
        /// One for each id of the batch.
        outcomes: Vec<LaunchOutcome>,
    },
    /// The answer to [`Action::Terminate`].
    Terminated {
        /// Which instance.
        instance: InstanceId,
        /// Accepted, or why not.
        result: Result<(), ProviderError>,
    },
    /// An answer to some of the probes of an [`Action::Probe`]: each may be answered by itself.
    Probed {
        /// What was asked.
        probes: Arc<[Probe]>,
        /// Healthy, or what was wrong: the same for all of them.
        result: Result<(), String>,
    },
    /// A proxy's picture.
    Reported(ProxyReport),
    /// An instance was asked for its own view of its load.
    Signals {
        /// Which instance.
        instance: InstanceId,
        /// Which start of it.
        generation: Generation,
        /// What it told, as far as it did.
        signals: Signals,
        /// Why something is missing.
        problem: Option<String>,
    },
    /// The operator wants another fleet from now on.
    Reconfigured(Arc<FleetSpec>),
    /// A provider has news (an instance ended, an address is known): list it soon.
    ProviderNudged(ProviderName),
}

/// A question to an instance about its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Which instance.
    pub instance: InstanceId,
    /// Which start of it.
    pub generation: Generation,
    /// Where it listens.
    pub address: Address,
    /// What it speaks.
    pub protocol: Protocol,
    /// How, where that is over TLS.
    pub tls: Option<Arc<WorkerTls>>,
    /// What it is asked.
    pub check: HealthCheck,
    /// How long the answer may take.
    pub timeout: Duration,
    /// Where the controller keeps the instance.
    slot: Slot,
}

#[cfg(test)]
impl Probe {
    /// A question to a start of an instance, of which the controller, if there is one, knows no other.
    pub(crate) fn to(instance: InstanceId, generation: Generation, address: Address) -> Self {
        Self {
            instance,
            generation,
            address,
            protocol: Protocol::Http1,
            tls: None,
            check: HealthCheck::Get("/ping".into()),
            timeout: Duration::from_secs(1),
            slot: Slot::default(),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Action {
    /// Commit these, durably, before anything after them is begun.
    Persist(Vec<Change>),
    /// Ask a provider for everything it runs for us. At most one is under way per provider.
    List(ProviderName),
    /// Launch a batch.
    Launch {
        /// Where.
        provider: ProviderName,
        /// What.
        batch: LaunchBatch,
    },
    /// End an instance.
    Terminate {
        /// Where.
        provider: ProviderName,
        /// Which.
        instance: InstanceId,
    },
    /// Ask each of these for its health.
    Probe(Arc<[Probe]>),
    /// Hand this table to every proxy.
    Publish(Arc<RoutingTable>),
}

/// The state of the whole fleet and what is under way.
#[derive(Debug)]
pub struct Controller {
    epoch: u64,
    started_at: Timestamp,
    spec: Arc<FleetSpec>,
    jitter: Jitter,
    fleet: Fleet,
    variants: BTreeMap<VariantKey, Variant>,
    providers: BTreeMap<ProviderName, ProviderView>,
    proxies: BTreeMap<ProxyId, Proxy>,
    capacities: BTreeMap<CapacityKey, CapacityRecord>,
    capacity_errors: BTreeMap<(VariantKey, InstanceTypeName), u64>,
    /// What each type speaks, and how, also those that have left the config while instances of them run.
    protocols: BTreeMap<InstanceTypeName, (Protocol, Option<Arc<WorkerTls>>)>,
    next_generation: u64,
    journal: Journal,
    timers: Timers,
    sweeps: Sweeps,
    /// How often everything is measured.
    sample_every: Duration,
    /// Variants to be planned for before the event is done with.
    dirty: BTreeSet<VariantKey>,
    /// Instances whose timers are to be set anew.
    touched: Vec<Slot>,
    table: Arc<RoutingTable>,
    /// Endpoints whose part of the table may have to be another one.
    stale_routes: BTreeSet<EndpointName>,
    /// All of them, and which there are.
    table_dirty: bool,
    /// Actions that follow the commit of what led to them.
    after: Vec<Action>,
    actions: VecDeque<Action>,
}

/// Why a command was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// No such endpoint.
    #[error("no endpoint is called \"{0}\"; forebay status shows those there are")]
    UnknownEndpoint(String),
    /// No such variant.
    #[error("endpoint \"{endpoint}\" has no variant \"{variant}\"; it has {known}")]
    UnknownVariant {
        /// Which endpoint.
        endpoint: EndpointName,
        /// What was asked for.
        variant: String,
        /// What there is, separated by commas.
        known: String,
    },
    /// The endpoint has several variants and none was named.
    #[error(
        "endpoint \"{endpoint}\" has several variants ({known}); name one as {endpoint}/VARIANT"
    )]
    AmbiguousVariant {
        /// Which endpoint.
        endpoint: EndpointName,
        /// What there is, separated by commas.
        known: String,
    },
    /// No such instance.
    #[error("no instance is called \"{0}\"; forebay status shows those there are")]
    UnknownInstance(String),
    /// Outside `min_instance_count` and `max_instance_count`.
    #[error("{count} instances are outside the bounds {min} to {max} of {variant}")]
    OutOfBounds {
        /// Which variant.
        variant: VariantKey,
        /// What was asked for.
        count: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
}

impl Controller {
    /// A controller that goes on from `stored`. `epoch` is the lease's and becomes the table's;
    /// `seed` is the origin of all its jitter.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "the caller shares its spec with it for good")]
    pub fn new(
        epoch: u64,
        now: Timestamp,
        spec: Arc<FleetSpec>,
        stored: StoredState,
        seed: u64,
    ) -> Self {
        Self::start(epoch, now, &spec, stored, seed)
    }

    /// Takes in what has happened.
    pub fn handle_event(&mut self, now: Timestamp, event: Event) {
        self.catch_up(now);
        match event {
            Event::Listed { provider, result } => self.listed(now, &provider, result),
            Event::Launched { provider, outcomes } => self.launched(now, &provider, outcomes),
            Event::Terminated { instance, result } => self.terminated(now, &instance, result),
            Event::Probed { probes, result } => self.probed(now, &probes, &result),
            Event::Reported(report) => self.reported(now, report),
            Event::Signals { instance, generation, signals, problem } => {
                self.signalled(now, &instance, generation, signals, problem);
            }
            Event::ProviderNudged(provider) => self.hasten_list(now, &provider),
            Event::Reconfigured(spec) => self.adopt_spec(now, &spec),
        }
        self.settle(now);
    }

    /// What is due at the moment of an event is done, and committed, before it: a round that launches must not
    /// be followed, before its launch is recorded, by a scaling policy that wants fewer.
    fn catch_up(&mut self, now: Timestamp) {
        if self.wake_due(now) {
            self.settle(now);
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.wake_due(now);
        self.settle(now);
    }

    /// The next thing to do, in order; `None` when there is nothing for now.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Controller::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// Sets how many instances a variant should have (`variant` may be left out where there is one).
    ///
    /// # Errors
    /// [`CommandError`] when there is no such variant or the count is out of its bounds.
    pub fn set_desired(
        &mut self,
        now: Timestamp,
        endpoint: &str,
        variant: Option<&str>,
        count: u32,
    ) -> Result<VariantKey, CommandError> {
        self.command_desired(now, endpoint, variant, count)
    }

    /// Drains one instance and lets it go; the fleet replaces it if it is then below its size.
    ///
    /// # Errors
    /// [`CommandError::UnknownInstance`].
    pub fn drain(&mut self, now: Timestamp, instance: &str) -> Result<(), CommandError> {
        self.command_drain(now, instance)
    }

    /// The fleet as it is.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> FleetStatus {
        self.view_status(now)
    }

    /// Why an endpoint's fleet is what it is.
    ///
    /// # Errors
    /// [`CommandError::UnknownEndpoint`].
    pub fn explain(&self, now: Timestamp, endpoint: &str) -> Result<Explanation, CommandError> {
        self.view_explanation(now, endpoint)
    }

    /// Launches refused for lack of capacity or quota since this controller started, one for each
    /// instance refused: what `forebay_capacity_errors_total` counts.
    #[must_use]
    pub fn capacity_errors(&self) -> &BTreeMap<(VariantKey, InstanceTypeName), u64> {
        &self.capacity_errors
    }

    /// The table that was last handed to [`Action::Publish`].
    #[must_use]
    pub fn table(&self) -> &Arc<RoutingTable> {
        &self.table
    }
}
