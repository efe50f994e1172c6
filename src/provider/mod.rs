//! Where instances come from. [`Provider`] is the whole contract between the manager and whatever runs
//! workers; each real one has its file: [`process`] (child processes on this machine) and [`static_servers`]
//! (servers that somebody else runs). [`fake`] records calls and plays scripted answers for tests.
//! [`limited`] and [`observed`] wrap any of them: time limits, and metrics and logs. In use a provider is
//! `Observed(Limited(real))`, so that a call that was cut off is also seen.
//!
//! What a provider must hold, and `tests/provider_conformance.rs` checks for each:
//! 1. **Idempotent launch**: a batch asked for again with the same instance ids starts nothing twice; it
//!    answers with what runs for those ids.
//! 2. **List what is ours**: [`Provider::list`] is complete for our owner tag, however instances came to
//!    be: also those of a manager that died between launching and recording.
//! 3. **The closed set of errors** ([`ProviderError`]): nothing started on `InsufficientCapacity`,
//!    `QuotaExceeded` and `Rejected`; anything may have happened on `Unavailable`.
//! 4. **Terminate is idempotent** and returns when the provider has accepted it; an instance that is
//!    unknown is `NotFound`, which callers take as success.
//! 5. **No method hangs for ever**: each has its own time limit, or gets it from [`limited`], and then
//!    answers `Unavailable`.

pub mod fake;
pub mod limited;
pub mod observed;
pub mod process;
pub mod static_servers;

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::types::launch::{LaunchBatch, LaunchOutcome, ProviderInstance};
use crate::types::record::InstanceRecord;
use crate::types::{InstanceId, ProviderError};

/// Runs instances for us. Object-safe; called from many tasks at once.
pub trait Provider: Send + Sync + 'static {
    /// Told once, before any other call, what the manager has recorded of its instances. For providers
    /// that have no memory of their own; others find out what runs by looking.
    fn adopt(&self, _records: &[InstanceRecord]) {}

    /// Everything that carries our owner tag and has not been forgotten by the provider, whatever its
    /// state. Ended instances may be listed for a while (`ProviderStatus::Ended`) or be missing: both
    /// mean that they run no more. One that was granted a moment ago must be listed.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>>;

    /// Starts instances of one type. The answer has an outcome for each id of the batch, in its order,
    /// so that a part can be granted and the rest refused.
    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>>;

    /// Ends an instance: a signal to finish, then force after `grace`. Returns when that is under way;
    /// [`Provider::list`] tells when it has ended.
    fn terminate(
        &self,
        instance: InstanceId,
        grace: Duration,
    ) -> BoxFuture<'_, Result<(), ProviderError>>;
}

/// The same failure for each instance of a batch.
pub(crate) fn all_failed(instances: &[InstanceId], error: &ProviderError) -> Vec<LaunchOutcome> {
    instances
        .iter()
        .map(|instance| LaunchOutcome { instance: instance.clone(), result: Err(error.clone()) })
        .collect()
}
