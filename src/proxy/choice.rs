//! The choice of a copy within a variant: the rules of [`crate::decision::route`] and
//! [`crate::decision::session`] over slots that other threads take and give back meanwhile.
//!
//! Up to [`FEW`] copies are looked at one by one, without a lock. More have a [`Roster`], which is asked
//! instead. By the scan go, however many there are: `PREDICTED_LATENCY`, where every end of a request changes
//! what is predicted of all copies of a type; keys, each of which has an order of its own; a second try,
//! which must leave instances out; and whoever still has a snapshot that has just been replaced. `RANDOM`
//! needs neither, as long as one of a few that were drawn is free.

use std::sync::Arc;

use super::roster::{Roster, Seat};
use super::slot::{Seen, Slot};
use super::snapshot::Backend;
use crate::decision::predict::ServiceTimes;
use crate::decision::route::{self, Candidate, Chosen};
use crate::decision::session::{self, Home};
use crate::types::Generation;
use crate::types::spec::RoutingStrategy;

/// As many as are sooner looked at than looked up (`benches/choice.rs`).
const FEW: usize = 16;

/// What the choice reads of a variant's backends, in their order.
#[derive(Debug)]
pub(super) struct Choice {
    strategy: RoutingStrategy,
    lanes: Box<[Lane]>,
    roster: Option<Arc<Roster>>,
}

/// What the choice reads of one backend, close together.
#[derive(Debug)]
struct Lane {
    slot: Arc<Slot>,
    times: Arc<ServiceTimes>,
    generation: Generation,
    copies: u32,
}

impl Lane {
    fn new(backend: &Arc<Backend>) -> Self {
        Self {
            slot: Arc::clone(&backend.slot),
            times: Arc::clone(&backend.times),
            generation: backend.route.generation,
            copies: backend.route.copies,
        }
    }

    fn candidate(&self, seen: Seen, strategy: RoutingStrategy) -> Candidate {
        let predicted = if strategy == RoutingStrategy::PredictedLatency {
            self.times.predict((seen.outstanding + 1) as f32 / self.copies as f32)
        } else {
            f32::NAN
        };
        let Seen { outstanding, limit } = seen;
        Candidate { outstanding, copies: self.copies, slots: limit, predicted }
    }
}

impl Choice {
    /// The choice among `backends`, which have their seats once [`Choice::seat`] was called.
    pub(super) fn new(strategy: RoutingStrategy, backends: &[Arc<Backend>]) -> Self {
        Self::among(strategy, backends.iter().map(Lane::new).collect())
    }

    fn among(strategy: RoutingStrategy, lanes: Box<[Lane]>) -> Self {
        let by_load = match strategy {
            RoutingStrategy::LeastOutstandingRequests | RoutingStrategy::LeastUtilization => true,
            RoutingStrategy::Random | RoutingStrategy::PredictedLatency => false,
        };
        let ranked = by_load && lanes.len() > FEW;
        let roster = ranked.then(|| Arc::new(Roster::new(strategy, lanes.len())));
        Self { strategy, lanes, roster }
    }

    /// From now on this is the snapshot that slots are taken by.
    pub(super) fn seat(&self) {
        for (position, lane) in self.lanes.iter().enumerate() {
            let roster = self.roster.clone();
            lane.slot.sit(roster.map(|roster| Seat { roster, position, copies: lane.copies }));
        }
    }

    /// From now on slots are taken by another snapshot.
    pub(super) fn retire(&self) {
        if let Some(roster) = &self.roster {
            roster.retire();
        }
    }

    /// Chooses a copy and takes a slot of it, in one step: the slot is taken only if its count is still
    /// the one that the choice was made by, otherwise the choice is made anew. Says at which position;
    /// `None`: no slot is free outside the instances in `except`.
    pub(super) fn take(
        &self,
        except: &[Generation],
        mut draw: impl FnMut() -> u64,
    ) -> Option<usize> {
        if let Some(roster) = self.roster.as_ref().filter(|_| except.is_empty()) {
            let slot = |position: usize| {
                let lane = &self.lanes[position];
                (&*lane.slot, lane.copies)
            };
            if let Ok(taken) = roster.take(slot, &mut draw) {
                return taken;
            }
        }
        if self.strategy == RoutingStrategy::Random
            && self.lanes.len() > FEW
            && let Some(position) = self.take_any(except, &mut draw)
        {
            return Some(position);
        }
        self.take_by_scan(except, draw)
    }

    /// Takes a slot of whichever copy is drawn, each as likely as any other; `None`: none of a few that were
    /// drawn has one.
    fn take_any(&self, except: &[Generation], mut draw: impl FnMut() -> u64) -> Option<usize> {
        (0..FEW).find_map(|_| {
            let position = route::below(self.lanes.len(), draw());
            let lane = &self.lanes[position];
            let seen = lane.slot.observe().filter(|seen| seen.outstanding < seen.limit)?;
            let is_taken = !except.contains(&lane.generation) && lane.slot.try_take(seen);
            is_taken.then_some(position)
        })
    }

    fn take_by_scan(&self, except: &[Generation], mut draw: impl FnMut() -> u64) -> Option<usize> {
        let strategy = self.strategy_now();
        loop {
            let candidates = self.lanes.iter().map(|lane| {
                let seen = lane.slot.observe()?;
                (!except.contains(&lane.generation)).then(|| lane.candidate(seen, strategy))
            });
            let Chosen { position, candidate } = route::choose(strategy, candidates, draw())?;
            let seen = Seen { outstanding: candidate.outstanding, limit: candidate.slots };
            if self.lanes[position].slot.try_take(seen) {
                return Some(position);
            }
        }
    }

    /// Takes a slot of the copy that `key` belongs to, or of the next one that it would like, as
    /// [`Choice::take`] does.
    pub(super) fn take_by_key(&self, key: u64) -> Option<usize> {
        loop {
            let homes = self.lanes.iter().map(|lane| {
                lane.slot.observe().map(|seen| Home {
                    generation: lane.generation,
                    outstanding: seen.outstanding,
                    slots: seen.limit,
                })
            });
            let (position, home) = session::choose_by_key(key, homes)?;
            let seen = Seen { outstanding: home.outstanding, limit: home.slots };
            if self.lanes[position].slot.try_take(seen) {
                return Some(position);
            }
        }
    }

    /// The strategy, or what stands in for it while it knows too little: what is not known of one type
    /// must not decide between the others either.
    fn strategy_now(&self) -> RoutingStrategy {
        match self.strategy {
            RoutingStrategy::PredictedLatency
                if !self.lanes.iter().all(|lane| lane.times.is_known()) =>
            {
                RoutingStrategy::LeastUtilization
            }
            strategy => strategy,
        }
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
