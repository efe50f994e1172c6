//! The manager's brain without its hands: events in, actions out.
//!
//! A driver (the tokio task in `control`, or the simulator) feeds [`Controller::handle_event`], carries
//! out what [`Controller::poll_action`] returns **in that order**, and calls
//! [`Controller::handle_timeout`] when [`Controller::poll_timeout`] is due. [`Action::Persist`] must be
//! durable before any later action is begun; other actions may run side by side and answer by an event
//! when they are done. An action that never answers delays nothing but itself.

use std::sync::Arc;

use thiserror::Error;

use crate::types::launch::{LaunchBatch, LaunchOutcome, ProviderInstance};
use crate::types::record::{Change, StoredState};
use crate::types::report::ProxyReport;
use crate::types::spec::FleetSpec;
use crate::types::status::{Explanation, FleetStatus};
use crate::types::table::RoutingTable;
use crate::types::{
    Address, EndpointName, Generation, InstanceId, ProviderError, ProviderName, Timestamp,
    VariantKey,
};

/// What has happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A provider's complete answer to [`Action::List`], or why it gave none.
    Listed {
        /// Who was asked.
        provider: ProviderName,
        /// Everything that runs there for us.
        result: Result<Vec<ProviderInstance>, ProviderError>,
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
    /// The answer to [`Action::Probe`].
    Probed {
        /// Which instance.
        instance: InstanceId,
        /// Which start of it.
        generation: Generation,
        /// Healthy, or what was wrong.
        result: Result<(), String>,
    },
    /// A proxy's picture.
    Reported(ProxyReport),
    /// The operator wants another fleet from now on.
    Reconfigured(Arc<FleetSpec>),
    /// A provider has news (an instance ended, an address is known): list it soon.
    ProviderNudged(ProviderName),
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
    /// Ask an instance for its health: GET `path`, any 2xx within `timeout` is healthy.
    Probe {
        /// Which instance.
        instance: InstanceId,
        /// Which start of it.
        generation: Generation,
        /// Where it listens.
        address: Address,
        /// The path of the GET.
        path: String,
        /// How long the answer may take.
        timeout: std::time::Duration,
    },
    /// Hand this table to every proxy.
    Publish(Arc<RoutingTable>),
}

/// The state of the whole fleet and what is under way.
#[derive(Debug)]
pub struct Controller {
    actions: std::collections::VecDeque<Action>,
}

/// Why a command was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// No such endpoint.
    #[error("no endpoint is called \"{0}\"")]
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
    #[error("no instance is called \"{0}\"")]
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

#[allow(unused_variables, clippy::needless_pass_by_value, clippy::unused_self, reason = "to come")]
impl Controller {
    /// A controller that goes on from `stored`. `epoch` is the lease's and becomes the table's;
    /// `seed` is the origin of all its jitter.
    #[must_use]
    pub fn new(
        epoch: u64,
        now: Timestamp,
        spec: Arc<FleetSpec>,
        stored: StoredState,
        seed: u64,
    ) -> Self {
        Self { actions: std::collections::VecDeque::new() }
    }

    /// Takes in what has happened.
    pub fn handle_event(&mut self, now: Timestamp, event: Event) {}

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Timestamp) {}

    /// The next thing to do, in order; `None` when there is nothing for now.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Controller::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        None
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
        Err(CommandError::UnknownEndpoint(endpoint.to_owned()))
    }

    /// Drains one instance and lets it go; the fleet replaces it if it is then below its size.
    ///
    /// # Errors
    /// [`CommandError::UnknownInstance`].
    pub fn drain(&mut self, now: Timestamp, instance: &str) -> Result<(), CommandError> {
        Err(CommandError::UnknownInstance(instance.to_owned()))
    }

    /// The fleet as it is.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> FleetStatus {
        FleetStatus::default()
    }

    /// Why an endpoint's fleet is what it is.
    ///
    /// # Errors
    /// [`CommandError::UnknownEndpoint`].
    pub fn explain(&self, now: Timestamp, endpoint: &str) -> Result<Explanation, CommandError> {
        Err(CommandError::UnknownEndpoint(endpoint.to_owned()))
    }
}
