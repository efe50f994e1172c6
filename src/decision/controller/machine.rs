//! The life of an instance as one table: every state, every trigger, what follows. Nothing else in the
//! controller sets a state. The whole table is a snapshot (`tests/`), so a changed edge is a visible diff.

use crate::types::InstanceState;

/// What can happen to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The provider agreed to run it.
    Granted,
    /// The provider will not run it; nothing was started.
    Refused,
    /// The provider's list shows it alive.
    Found,
    /// A list that would have to show it does not.
    Absent,
    /// The provider's list shows that it has ended.
    Ended,
    /// The provider's list shows that it is being ended, not by us.
    EndedByProvider,
    /// Its health probe succeeded.
    Healthy,
    /// Too many probes failed in a row.
    Unhealthy,
    /// It did not become healthy in time.
    TimedOut,
    /// It is no longer wanted.
    Released,
    /// No proxy has it in its table or holds a request at it.
    Drained,
    /// Its drain deadline has passed.
    DrainExpired,
}

impl Trigger {
    /// Every trigger.
    pub const ALL: [Self; 12] = [
        Self::Granted,
        Self::Refused,
        Self::Found,
        Self::Absent,
        Self::Ended,
        Self::EndedByProvider,
        Self::Healthy,
        Self::Unhealthy,
        Self::TimedOut,
        Self::Released,
        Self::Drained,
        Self::DrainExpired,
    ];
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Stay,
    /// Another state.
    To(InstanceState),
    /// It is gone: its record is deleted.
    Gone,
}

/// The transition table.
#[must_use]
#[allow(
    clippy::match_same_arms,
    clippy::unnested_or_patterns,
    reason = "the arms are grouped by what they mean, not by what follows"
)]
pub fn next(state: InstanceState, trigger: Trigger) -> Next {
    use InstanceState::{Draining, InService, Pending, Starting, Stopping};
    use Next::{Gone, Stay, To};
    use Trigger as T;
    match (state, trigger) {
        (Pending, T::Granted | T::Found) => To(Starting),
        (Starting, T::Healthy) => To(InService),

        // Not in the table yet: nothing to drain. Pending may run all the same (an unknown outcome).
        (Pending | Starting, T::Released | T::EndedByProvider) | (Starting, T::TimedOut) => {
            To(Stopping)
        }
        (InService, T::Released | T::EndedByProvider | T::Unhealthy) => To(Draining),
        (Draining, T::Drained | T::DrainExpired) => To(Stopping),

        // A refusal starts nothing, so nothing is left to stop.
        (Pending | Stopping, T::Refused) => Gone,
        // One that was asked for and is not there yet is asked for again.
        (Pending, T::Absent) => Stay,
        (Starting | InService | Draining | Stopping, T::Absent) => Gone,
        (Pending | Starting | InService | Draining | Stopping, T::Ended) => Gone,

        // Late or repeated news.
        (Starting | InService | Draining | Stopping, T::Granted | T::Found)
        | (Starting | InService | Draining, T::Refused)
        | (Pending | InService | Draining | Stopping, T::Healthy)
        | (Pending | Starting | Draining | Stopping, T::Unhealthy)
        | (Pending | InService | Draining | Stopping, T::TimedOut)
        | (Draining | Stopping, T::Released | T::EndedByProvider)
        | (Pending | Starting | InService | Stopping, T::Drained | T::DrainExpired) => Stay,
    }
}
