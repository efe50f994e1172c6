//! The control plane's shell: it gives the pure [`crate::decision::controller::Controller`] its hands.
//!
//! [`Manager::run`] takes the store's lease (waiting while another manager holds it), loads the records
//! and drives the controller: events from providers, probes and proxies go in, actions come out and are
//! carried out in order. Whoever needs the manager (the management API, an embedded proxy) talks to it
//! through a [`ManagerHandle`].
//!
//! * [`manager`] is the life from lease to end; `driver` the loop in its middle.
//! * `calls` asks providers, `probe` asks instances, `durable` the store; each with its time limit, so an
//!   action that never answers delays nothing but itself.
//! * `scrape` asks instances for their own view of their load, beside all of that. `over_tls` is how it and
//!   `probe` reach those that speak TLS.
//! * `lease` says whether this manager may act: one that was overtaken stops at once, with an error.
//! * `stop` ends every instance where the operator wants that on exit.
//! * [`crash`] holds the numbered points at which a test can make the process die.
//!
//! A store that fails for a while (a full disk) pauses the manager, and only it: nothing is begun that
//! could not be recorded, the proxies go on with the table they have.

mod calls;
pub mod crash;
mod driver;
mod durable;
mod handle;
mod lease;
pub mod manager;
mod over_tls;
mod probe;
mod scrape;
mod stop;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;

pub use handle::{HandleError, ManagerHandle};
pub use manager::Manager;

use crate::provider::Provider;
use crate::runtime::{clock, rng};
use crate::store::StoreError;
use crate::tls::Connectors;
use crate::types::spec::FleetSpec;
use crate::types::{ProviderName, Timestamp};

/// What a manager is made with.
#[derive(Debug)]
pub struct ManagerOptions {
    /// This process towards the store; never used by another one.
    pub owner: String,
    /// The fleet as it should be.
    pub spec: Arc<FleetSpec>,
    /// Who can launch instances; every provider that the spec names is in it.
    pub providers: BTreeMap<ProviderName, ManagedProvider>,
    /// The origin of all jitter.
    pub seed: u64,
    /// How long things may take.
    pub limits: Limits,
    /// Where the time comes from.
    pub clock: Clock,
    /// Where the process is to die, for tests.
    pub crash: crash::CrashPoints,
    /// How instances are reached over TLS.
    pub worker_tls: Connectors,
}

impl ManagerOptions {
    /// The usual options: an owner of its own, a drawn seed, the process's clock, default limits.
    #[must_use]
    pub fn new(spec: Arc<FleetSpec>, providers: BTreeMap<ProviderName, ManagedProvider>) -> Self {
        Self {
            owner: format!("{}-{}", std::process::id(), rng::unique_suffix()),
            spec,
            providers,
            seed: rng::draw(),
            limits: Limits::default(),
            clock: Clock::default(),
            crash: crash::CrashPoints::default(),
            worker_tls: Connectors::default(),
        }
    }
}

/// A provider and its bell.
#[derive(Clone)]
pub struct ManagedProvider {
    /// Who is asked.
    pub provider: Arc<dyn Provider>,
    /// Rung by the provider when it has news (an instance ended, an address is known): it is listed
    /// soon. One that never rings is listed as often as the controller wants.
    pub nudge: Arc<Notify>,
}

impl ManagedProvider {
    /// A provider that rings `nudge`.
    #[must_use]
    pub fn new(provider: Arc<dyn Provider>, nudge: Arc<Notify>) -> Self {
        Self { provider, nudge }
    }
}

impl fmt::Debug for ManagedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagedProvider").finish_non_exhaustive()
    }
}

/// How long things may take. The defaults suit providers from processes to clouds.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long the lease lasts without a renewal; it is renewed at a third of it.
    pub lease: Duration,
    /// A provider's list.
    pub list: Duration,
    /// A provider's answer to a launch.
    pub launch: Duration,
    /// A provider's answer to a terminate.
    pub terminate: Duration,
    /// From the signal to finish to force; requests have been drained before.
    pub grace: Duration,
    /// With [`OnExit::Stop`]: how long proxies may finish their requests.
    pub exit_drain: Duration,
    /// With [`OnExit::Stop`]: how long the instances may take to end after that.
    pub exit_terminate: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            list: Duration::from_secs(30),
            launch: Duration::from_secs(120),
            terminate: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            exit_drain: Duration::from_secs(30),
            exit_terminate: Duration::from_secs(30),
        }
    }
}

/// Where the controller's time comes from: the process's clock, or a test's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that reads `now`.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(clock::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// What becomes of the instances when the manager ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They go on running; the next manager adopts them.
    Keep,
    /// They are drained and ended.
    Stop,
}

/// Why a manager ended though nobody asked it to.
#[derive(Debug, Error)]
pub enum ManagerError {
    /// Another manager acts now.
    #[error("this manager may not act any more (lease epoch {epoch}): {reason}")]
    LeaseLost {
        /// The lease's epoch.
        epoch: u64,
        /// How that is known.
        reason: String,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(StoreError),
    /// A mistake of ours: it came upon what it has no answer to.
    #[error(
        "it panicked: {0}; this is a bug of forebay, and a restart goes on from what is recorded"
    )]
    Panicked(String),
}
