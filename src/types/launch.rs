//! What passes between the manager and a provider: launch requests, their outcomes, and instances as
//! the provider sees them. The rules for each are in [`crate::provider`].

use super::{
    Address, InstanceId, InstanceTypeName, ModelName, ProviderError, Timestamp, VariantKey,
};

/// A request for one or more equal instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchBatch {
    /// One id for each instance wanted; each is the idempotency token of its instance.
    pub instances: Vec<InstanceId>,
    /// Of which type.
    pub instance_type: InstanceTypeName,
    /// Whom they will serve.
    pub variant: VariantKey,
    /// The model to load.
    pub model: ModelName,
    /// Copies of it to load in each.
    pub copies: u32,
    /// Requests one copy is to take at once.
    pub max_concurrency: u32,
}

/// What became of one id of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchOutcome {
    /// Which.
    pub instance: InstanceId,
    /// Granted, or why not.
    pub result: Result<Grant, ProviderError>,
}

/// An instance that the provider agreed to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Where it will listen, if that is known already; otherwise `Provider::list` shows it later.
    pub address: Option<Address>,
}

/// An instance as its provider sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderInstance {
    /// The id it was launched with.
    pub id: InstanceId,
    /// Its type.
    pub instance_type: InstanceTypeName,
    /// Whom it serves; `None` if the provider cannot tell (then it is not ours to adopt, only to end).
    pub variant: Option<VariantKey>,
    /// Where it listens, once known.
    pub address: Option<Address>,
    /// How it is.
    pub status: ProviderStatus,
    /// The provider has announced that it will take the instance away at this moment.
    pub interruption_at: Option<Timestamp>,
}

/// How an instance is at its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderStatus {
    /// Accepted, not running yet.
    Pending,
    /// Runs.
    Running,
    /// Is being ended.
    Stopping,
    /// Runs no more.
    Ended {
        /// Why, as far as the provider knows: an exit code, a signal, a state reason.
        reason: String,
    },
}
