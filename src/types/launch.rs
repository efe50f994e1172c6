//! What passes between the manager and a provider: launch requests, their outcomes, and instances as
//! the provider sees them. The rules for each are in [`crate::provider`].

use std::sync::Arc;

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

/// Everything that a provider runs, in parts, each in the order of its ids. A part that is the very one of an earlier
/// list tells nothing that this did not. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Listing(Arc<[Arc<[ProviderInstance]>]>);

impl Listing {
    /// One of parts that are in order already.
    #[must_use]
    pub fn of(parts: Vec<Arc<[ProviderInstance]>>) -> Self {
        Self(parts.into())
    }

    /// Its parts.
    #[must_use]
    pub fn parts(&self) -> &[Arc<[ProviderInstance]>] {
        &self.0
    }

    /// Every instance, part by part.
    pub fn iter(&self) -> impl Iterator<Item = &ProviderInstance> {
        self.0.iter().flat_map(|part| part.iter())
    }

    /// What it shows of an instance: of one that is listed twice, the last counts.
    #[must_use]
    pub fn find(&self, id: &InstanceId) -> Option<&ProviderInstance> {
        self.0.iter().rev().find_map(|part| {
            // Most parts are of others, often all before or all after it.
            part.last().filter(|last| last.id >= *id)?;
            let end = part.partition_point(|there| there.id <= *id);
            part.get(end.checked_sub(1)?).filter(|there| there.id == *id)
        })
    }
}

impl From<Vec<ProviderInstance>> for Listing {
    fn from(mut whole: Vec<ProviderInstance>) -> Self {
        whole.sort_by(|one, other| one.id.cmp(&other.id));
        Self::of(vec![whole.into()])
    }
}

impl FromIterator<ProviderInstance> for Listing {
    fn from_iter<I: IntoIterator<Item = ProviderInstance>>(instances: I) -> Self {
        instances.into_iter().collect::<Vec<_>>().into()
    }
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
