//! One round of planning for one variant, as a pure function: [`plan`] looks at what there is and says
//! what to launch, what to let go and when to look again. It draws nothing, remembers nothing and asks
//! nobody; the controller carries the plan out and keeps its [`ProvisionRound`].
//!
//! # Words
//! *Counted* instances are those that are asked for, starting or in service and not condemned;
//! *condemned* ones are in a pool that left the config, or their provider has announced their end: they
//! serve on, but the fleet is filled up as if they were gone. *Granted* ones are counted and not
//! `Pending`. A pool is *held* while its capacity memory says not to ask it first, and *blocked* while
//! its launches fail for a reason that is not capacity.
//!
//! # The provisioning rules
//! * A round lasts from the first missing instance until as many are granted as are desired. In it the
//!   pools (those of equal priority together) have their turns.
//! * `after_window`: a pool that refuses is asked again until its window closes, then the next has its
//!   turn. A pool that was refusing already when its turn came has used its window up: it gets one try.
//!   So the second pass over the pools goes quickly, and a fleet in a drought comes up as soon as
//!   anything anywhere is free.
//! * `at_once`: as if every window were used up.
//! * `parallel`: every pool that refuses is asked on, beside the next one, until the window closes, for
//!   what is missing and for what the round itself has put elsewhere; what is then too many leaves by the
//!   rules below. Instances that served before the round are not contested.
//! * A turn only ever begins at a pool that may be asked now. A pool that is held is passed over.
//! * A pool with a capacity memory is asked for one instance, one request at a time over all variants;
//!   a grant wipes the memory, and the rest is asked for at once.
//! * Only missing capacity moves the turn on. A blocked pool keeps it, except that a more preferred pool
//!   that may be asked again is asked.
//!
//! # Properties (each has its test in `tests.rs`)
//! * **P1 idempotence**: planning again on a plan's result plans nothing more (but a move, which waits
//!   until nobody else leaves).
//! * **P2 conservation**: launches never take the counted above the desired number, but for one move
//!   (`active`), or for preferred ones in a `parallel` round: there no pool is asked beyond what it and
//!   more preferred ones lack.
//! * **P3 bounded change**: one plan launches at most the desired number, and lets go at most those there
//!   are.
//! * **P4 fallback first**: a surplus instance leaves only if none of a lower priority stays, not even one
//!   that waits for its replacement.
//! * **P5 no dip**: after a surplus or replaced instance has left, at least the desired number is at
//!   least as far as it was; only an announced interruption may break this.
//! * **P6 holds**: no held or blocked pool is asked outside its own open window, a pool with a memory is
//!   asked for one, and none while another request is out.
//! * **P7 no march**: the turn moves only from a pool that lacks capacity.
//! * **P8 progress**: with a deficit, the plan asks, waits for an answer, or names the time when it will
//!   look again.
//! * **P9 preferred first**: of the pools that were never refused, the most preferred is asked.

pub mod backoff;
mod provision;
mod rebalance;
mod shrink;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::types::record::ProvisionRound;
use crate::types::spec::VariantSpec;
use crate::types::{Generation, InstanceId, InstanceState, Timestamp};

/// What a variant has, as the planner needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// How many there should be.
    pub desired: u32,
    /// Every instance that is not on its way out.
    pub members: Vec<Member>,
    /// One for each pool of the spec, in its order.
    pub pools: Vec<PoolView>,
    /// When the last move to a preferred pool began.
    pub last_move_at: Timestamp,
}

/// An instance, as the planner needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub id: InstanceId,
    /// Its start; the larger, the younger.
    pub generation: Generation,
    /// The index of its pool; `None` when the config no longer has it.
    pub pool: Option<usize>,
    /// Its pool's priority, or what it was.
    pub priority: u32,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// `Pending`, `Starting` or `InService`.
    pub state: InstanceState,
    /// Requests at it, over all proxies.
    pub outstanding: u64,
    /// Its last probe failed.
    pub unhealthy: bool,
    /// It is to be replaced.
    pub condemned: Option<Condemned>,
}

/// Why an instance is replaced while it still serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condemned {
    /// Its pool left the config.
    PoolRemoved,
    /// Its provider will take it away.
    Interrupted {
        /// When it drains at the latest, replaced or not.
        drain_at: Timestamp,
    },
}

/// What is known of a pool beyond its members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolView {
    /// The memory of its last refusal for lack of capacity.
    pub refused: Option<Refused>,
    /// A launch of this type is out, from whichever variant.
    pub asking: bool,
    /// Its launches fail for another reason; not asked before this moment.
    pub blocked_until: Option<Timestamp>,
}

/// A remembered refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// When.
    pub at: Timestamp,
    /// Not asked first before this moment.
    pub hold_until: Timestamp,
}

/// What to do now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to ask for, at most one entry for each pool.
    pub launches: Vec<PlannedLaunch>,
    /// Who leaves, in order.
    pub leave: Vec<PlannedLeave>,
    /// The round as it stands after this plan.
    pub round: Option<ProvisionRound>,
    /// What has changed about the round, for the log.
    pub turn: Option<Turn>,
    /// What the variant waits for.
    pub waiting: Option<Waiting>,
    /// When to plan again, if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Wakes at `at` or earlier.
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// A launch to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedLaunch {
    /// The index of the pool.
    pub pool: usize,
    /// How many.
    pub count: u32,
    /// What for.
    pub why: WhyLaunch,
}

/// What a launch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyLaunch {
    /// There are fewer than desired.
    Deficit,
    /// A fallback covers for this pool, which is asked on (`parallel`).
    Preferred,
    /// A fallback is to be exchanged (`active`).
    Move,
}

/// An instance that is to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLeave {
    /// Which.
    pub instance: InstanceId,
    /// Why.
    pub why: WhyLeave,
}

/// Why the planner lets an instance go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyLeave {
    /// There are more than desired and it is first to leave.
    Surplus,
    /// Its pool left the config and it is replaced.
    PoolRemoved,
    /// Its provider takes it away.
    Interrupted,
}

/// A change of the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It began.
    Opened,
    /// Another priority has its turn.
    Moved {
        /// Whose turn it was.
        from: u32,
    },
    /// The window for all pools closed (`at_once`, `parallel`); another began.
    Reopened,
    /// As many are granted as are desired, or no more are wanted.
    Closed,
}

/// What a variant waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Answers to launches.
    Answer {
        /// How many instances are asked for.
        count: u32,
    },
    /// Capacity.
    Capacity {
        /// The index of the pool that is asked next.
        pool: usize,
        /// When.
        until: Timestamp,
    },
    /// The end of a pool's block.
    Blocked {
        /// The index of the pool.
        pool: usize,
        /// When it is asked again.
        until: Timestamp,
    },
    /// Granted instances to become healthy.
    Health {
        /// How many.
        count: u32,
    },
}

/// Plans one round. `previous` is the round that the last plan left.
#[must_use]
pub fn plan(
    spec: &VariantSpec,
    seen: &Observed,
    previous: Option<ProvisionRound>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    shrink::release_condemned(seen, now, &mut plan);
    shrink::release_surplus(seen, &mut plan);
    let stays = seen.without(&plan.leave);
    let seen = stays.as_ref().unwrap_or(seen);
    provision::provision(spec, seen, previous, now, &mut plan);
    rebalance::rebalance(spec, seen, now, &mut plan);
    if plan.waiting.is_none() {
        let count = seen.count(|m| m.is_counted() && m.state == InstanceState::Starting);
        plan.waiting = (count > 0).then_some(Waiting::Health { count });
    }
    plan
}

impl Member {
    /// Whether it counts towards the desired number.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.condemned.is_none()
    }

    fn is_granted(&self) -> bool {
        self.is_counted() && self.state != InstanceState::Pending
    }
}

impl Observed {
    /// What stays when those have left; `None` if nobody leaves.
    fn without(&self, leave: &[PlannedLeave]) -> Option<Self> {
        let leaving: BTreeSet<_> = leave.iter().map(|l| &l.instance).collect();
        let stays = |m: &&Member| !leaving.contains(&m.id);
        (!leaving.is_empty()).then(|| Self {
            members: self.members.iter().filter(stays).cloned().collect(),
            pools: self.pools.clone(),
            ..*self
        })
    }

    /// How many members `which` holds for.
    fn count(&self, which: impl Fn(&Member) -> bool) -> u32 {
        u32::try_from(self.members.iter().filter(|m| which(m)).count()).unwrap_or(u32::MAX)
    }

    fn counted(&self) -> u32 {
        self.count(Member::is_counted)
    }

    fn granted(&self) -> u32 {
        self.count(Member::is_granted)
    }
}
