//! A time limit around each call of any provider: one that does not answer becomes `Unavailable`, which
//! says that the call may have been carried out.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Provider;
use crate::types::launch::{LaunchBatch, LaunchOutcome, ProviderInstance};
use crate::types::record::InstanceRecord;
use crate::types::{InstanceId, ProviderError};

/// How long each call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// [`Provider::list`].
    pub list: Duration,
    /// [`Provider::launch`], a whole batch.
    pub launch: Duration,
    /// [`Provider::terminate`].
    pub terminate: Duration,
}

impl Default for CallLimits {
    /// 10, 30 and 10 seconds.
    fn default() -> Self {
        Self {
            list: Duration::from_secs(10),
            launch: Duration::from_secs(30),
            terminate: Duration::from_secs(10),
        }
    }
}

/// A provider whose calls end in time.
pub struct Limited {
    inner: Arc<dyn Provider>,
    limits: CallLimits,
}

impl Limited {
    /// Puts `limits` around `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Provider>, limits: CallLimits) -> Self {
        Self { inner, limits }
    }
}

async fn within<T>(
    limit: Duration,
    call: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, ProviderError> {
    tokio::time::timeout(limit, work).await.map_err(|_| {
        ProviderError::unavailable(format!("{call} was not answered within {limit:?}"))
    })
}

impl Provider for Limited {
    fn adopt(&self, records: &[InstanceRecord]) {
        self.inner.adopt(records);
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ProviderInstance>, ProviderError>> {
        Box::pin(async { within(self.limits.list, "list", self.inner.list()).await? })
    }

    fn launch(&self, batch: LaunchBatch) -> BoxFuture<'_, Vec<LaunchOutcome>> {
        Box::pin(async move {
            let ids = batch.instances.clone();
            within(self.limits.launch, "launch", self.inner.launch(batch))
                .await
                .unwrap_or_else(|error| super::all_failed(&ids, &error))
        })
    }

    fn terminate(
        &self,
        instance: InstanceId,
        grace: Duration,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async move {
            let call = self.inner.terminate(instance, grace);
            within(self.limits.terminate, "terminate", call).await?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::fake::{FakeProvider, Script, batch};

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_unavailable() {
        let fake = FakeProvider::new();
        let limits = CallLimits {
            list: Duration::from_secs(1),
            launch: Duration::from_secs(2),
            terminate: Duration::from_secs(3),
        };
        let limited = Limited::new(Arc::new(fake.clone()), limits);
        for _ in 0..3 {
            fake.script(Script::Hang);
        }
        let listed = limited.list().await;
        assert_eq!(listed, Err(ProviderError::unavailable("list was not answered within 1s")));
        let outcomes = limited.launch(batch("g6", &["a", "b"])).await;
        let expected = ProviderError::unavailable("launch was not answered within 2s");
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes.iter().all(|outcome| outcome.result == Err(expected.clone())));
        let id = outcomes[0].instance.clone();
        let ended = limited.terminate(id, Duration::ZERO).await;
        assert_eq!(ended, Err(ProviderError::unavailable("terminate was not answered within 3s")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_in_time_passes_unchanged() {
        let fake = FakeProvider::new();
        let limited = Limited::new(Arc::new(fake.clone()), CallLimits::default());
        fake.script(Script::Delay(Duration::from_secs(9)));
        assert_eq!(limited.list().await, Ok(vec![]));
        assert!(limited.launch(batch("g6", &["a"])).await[0].result.is_ok());
        let id = InstanceId::new("unknown").expect("valid");
        assert_eq!(limited.terminate(id, Duration::ZERO).await, Err(ProviderError::NotFound));
    }
}
