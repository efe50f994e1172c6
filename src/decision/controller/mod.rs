//! The manager's brain without its hands: events in, actions out.
//!
//! A driver (the tokio task in `control`, or the simulator) feeds [`Controller::handle_event`], carries
//! out what [`Controller::poll_action`] returns **in that order**, and calls
//! [`Controller::handle_timeout`] when [`Controller::poll_timeout`] is due. [`Action::Persist`] must be
//! durable before any later action is begun; other actions may run side by side and answer by an event
//! when they are done. An action that never answers delays nothing but itself.

use std::sync::Arc;

use crate::types::launch::{LaunchBatch, LaunchOutcome, ProviderInstance};
use crate::types::record::Change;
use crate::types::report::ProxyReport;
use crate::types::spec::FleetSpec;
use crate::types::table::RoutingTable;
use crate::types::{Address, Generation, InstanceId, ProviderError, ProviderName};

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
