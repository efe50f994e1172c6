//! The right to act. One manager holds the store's lease and renews it at a third of its time; whoever
//! comes second waits. A holder that learns of a successor is finished; one that cannot reach the store
//! pauses at the end of its lease, before a successor could have begun, and goes on if it still holds it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::durable::Durable;
use super::{Clock, ManagerError};
use crate::runtime::tasks::Tasks;
use crate::store::StoreError;

/// How often one that waits looks again, at the latest.
const WAIT_STEP: Duration = Duration::from_millis(500);

/// A lease that is held and being renewed.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    epoch: u64,
    state: watch::Receiver<State>,
}

#[derive(Debug, Clone)]
enum State {
    ValidUntil(Instant),
    Lost(String),
}

/// What a lease is taken with.
pub(super) struct Terms {
    pub(super) owner: String,
    pub(super) ttl: Duration,
    pub(super) clock: Clock,
}

impl Terms {
    /// Waits until the lease is ours. `waiting` hears why it is not, each time that the reason changes.
    pub(super) async fn acquire(
        &self,
        store: &Durable,
        mut waiting: impl FnMut(&str),
    ) -> Result<(u64, Instant), ManagerError> {
        let mut told = String::new();
        loop {
            let asked_at = Instant::now();
            let (reason, pause) =
                match store.acquire_lease(&self.owner, self.clock.now(), self.ttl).await {
                    Ok(epoch) => return Ok((epoch, asked_at + self.ttl)),
                    Err(StoreError::LeaseHeld { owner, remaining }) => {
                        let reason = format!("another manager, {owner}, holds the lease");
                        (reason, remaining.clamp(Duration::from_millis(50), WAIT_STEP))
                    }
                    Err(StoreError::Io(reason)) => {
                        (format!("the store cannot be used: {reason}"), WAIT_STEP)
                    }
                    Err(error) => return Err(ManagerError::Store(error)),
                };
            if reason != told {
                tracing::info!(reason, "waiting for the lease");
                waiting(&reason);
                told = reason;
            }
            sleep(pause).await;
        }
    }

    /// Renews the lease from now on, in a task of `tasks`.
    pub(super) fn keep(self, store: Durable, held: (u64, Instant), tasks: &Tasks) -> Lease {
        let (epoch, valid_until) = held;
        let (sender, state) = watch::channel(State::ValidUntil(valid_until));
        tasks.spawn_until_stopped("lease", async move {
            while !matches!(*sender.borrow(), State::Lost(_)) {
                sleep(self.ttl / 3).await;
                if let Some(next) = self.renew(&store, epoch).await {
                    sender.send_replace(next);
                }
            }
        });
        Lease { epoch, state }
    }

    async fn renew(&self, store: &Durable, epoch: u64) -> Option<State> {
        let asked_at = Instant::now();
        match store.acquire_lease(&self.owner, self.clock.now(), self.ttl).await {
            Ok(same) if same == epoch => Some(State::ValidUntil(asked_at + self.ttl)),
            Ok(other) => {
                // Somebody had it in between, so what this manager knows is out of date.
                if let Err(error) = store.release_lease(other).await {
                    tracing::warn!(%error, "could not give a lease back");
                }
                Some(State::Lost("it was lost for a while".into()))
            }
            Err(StoreError::LeaseHeld { owner, .. }) => {
                Some(State::Lost(format!("{owner} has taken it over")))
            }
            Err(error) => {
                tracing::warn!(%error, "could not renew the lease, trying again");
                None
            }
        }
    }
}

impl Lease {
    /// What writes are fenced with.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Resolves when another manager has taken over.
    pub(super) async fn lost(&self) -> ManagerError {
        let mut state = self.state.clone();
        let lost = match state.wait_for(|state| matches!(state, State::Lost(_))).await {
            Ok(state) => Some(state.clone()),
            Err(_closed) => None,
        };
        match lost {
            Some(State::Lost(reason)) => self.error(&reason),
            // The renewing task only ends without a word when everything ends.
            _ => std::future::pending().await,
        }
    }

    /// Whether this manager may act at this moment.
    pub(super) fn is_valid(&self) -> bool {
        matches!(*self.state.borrow(), State::ValidUntil(end) if Instant::now() < end)
    }

    /// Waits until this manager may act.
    pub(super) async fn valid(&self) -> Result<(), ManagerError> {
        let mut state = self.state.clone();
        while !self.is_valid() {
            if let State::Lost(reason) = &*state.borrow_and_update() {
                return Err(self.error(reason));
            }
            if state.changed().await.is_err() {
                return Err(self.error("it is no longer renewed"));
            }
        }
        Ok(())
    }

    fn error(&self, reason: &str) -> ManagerError {
        ManagerError::LeaseLost { epoch: self.epoch, reason: reason.to_owned() }
    }
}
