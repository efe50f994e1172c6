//! Durable state behind a small trait: what [`crate::types::record`] describes, committed in
//! transactions, fenced so that only the manager that holds the lease can write. [`sqlite`] is the real
//! one; [`memory`] serves tests and the simulator.
//!
//! Calls block for as long as the disk takes; `control` makes them from a thread that may.

#[cfg(test)]
mod conformance;
pub mod memory;
mod presence;
pub mod sqlite;

use std::time::Duration;

use thiserror::Error;

use crate::types::Timestamp;
use crate::types::record::{Change, StoredState};

/// Events that a store keeps and loads, newest first to stay.
pub const EVENT_LIMIT: usize = 10_000;

/// Keeps the manager's records.
pub trait Store: Send + 'static {
    /// Takes or renews the lease for `owner` until `now + ttl`. The first time an owner gets it, the
    /// epoch grows by one; the epoch is what later writes are fenced with.
    ///
    /// # Errors
    /// [`StoreError::LeaseHeld`] while another owner's lease runs.
    fn acquire_lease(
        &mut self,
        owner: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<u64, StoreError>;

    /// Ends the lease of `epoch`, so that the next owner need not wait for it to run out.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when it is not held any more.
    fn release_lease(&mut self, epoch: u64) -> Result<(), StoreError>;

    /// Everything committed so far.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a record cannot be read, [`StoreError::Io`] otherwise.
    fn load(&mut self) -> Result<StoredState, StoreError>;

    /// Commits all of `changes` or none. When it returns they survive a crash of the process and of
    /// the machine.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when `epoch` is not the lease's any more; nothing was written.
    fn commit(&mut self, epoch: u64, changes: &[Change]) -> Result<(), StoreError>;
}

/// What can go wrong with durable state.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another manager acts.
    #[error("the lease is held by {owner} for another {remaining:?}")]
    LeaseHeld {
        /// Who holds it.
        owner: String,
        /// For how long at most.
        remaining: Duration,
    },
    /// Another manager has taken over since.
    #[error("fenced: this manager's lease (epoch {epoch}) has been taken over")]
    Fenced {
        /// The epoch that was presented.
        epoch: u64,
    },
    /// A record that this build cannot read.
    #[error("record {key} cannot be read: {reason}")]
    Corrupt {
        /// Which record.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk or the database failed.
    #[error("store failed: {0}")]
    Io(String),
}

/// The epoch after `latest`. A new store begins at the second in which it is made, so that epochs, and
/// with them the versions of routing tables, also grow when somebody deletes a store and starts anew.
fn next_epoch(latest: u64, now: Timestamp) -> u64 {
    if latest == 0 { (now.0 / 1000).max(1) } else { latest.saturating_add(1) }
}
