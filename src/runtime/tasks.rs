//! Named, tracked tasks. Whoever starts one keeps the [`Tasks`] it belongs to; ending it cancels the
//! token that every task watches and waits until all are done.

#![allow(clippy::disallowed_methods, reason = "this is the one module that spawns tasks")]

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// A group of tasks that ends together.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves when the group is told to end.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts `work`. It should end soon after [`Tasks::stopping`] resolves.
    pub fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let span = tracing::debug_span!("task", name);
        self.tracker.spawn(work.instrument(span));
    }

    /// Starts `work` and drops it, wherever it is, when the group ends.
    pub fn spawn_until_stopped<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.spawn(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Tells every task to end and waits for them, `limit` at most. Whether all ended.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}
