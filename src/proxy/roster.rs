//! The slots of a variant with many copies, kept in order of their load ([`crate::decision::ranking`]).
//!
//! A slot's word says what it holds; the roster only follows it. Whoever changes a word brings the roster up
//! to date **then** ([`Slot`] does so by itself), under the roster's lock and by what the word says by then, so
//! that after the last change of all they agree. Before a slot is taken it is looked at once more: one that
//! has changed meanwhile is ranked anew, and the choice made again.
//!
//! A slot has a seat in one roster, that of the newest snapshot. The one before is *retired*: its followers
//! have gone, and whoever still chooses by that snapshot does so by the scan.

use std::sync::Arc;

use super::slot::{Seen, Slot};
use crate::decision::ranking::Ranking;
use crate::decision::route::{Candidate, Load};
use crate::runtime::sync::Mutex;
use crate::types::spec::RoutingStrategy;

/// The order of one snapshot's copies of a variant.
#[derive(Debug)]
pub(super) struct Roster {
    strategy: RoutingStrategy,
    /// `None`: retired.
    ranking: Mutex<Option<Ranking>>,
}

/// A slot's place in a roster.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) roster: Arc<Roster>,
    pub(super) position: usize,
    /// Model copies behind the slot.
    pub(super) copies: u32,
}

/// The slots of this roster have seats in another one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Retired;

impl Roster {
    /// One for `positions` slots, which then take their seats ([`Slot::sit`]).
    pub(super) fn new(strategy: RoutingStrategy, positions: usize) -> Self {
        Self { strategy, ranking: Mutex::new(Some(Ranking::new(positions))) }
    }

    /// No more choices by it.
    pub(super) fn retire(&self) {
        *self.ranking.lock() = None;
    }

    /// Takes a slot of the least loaded, and says at which position. `slot` tells the slot of a position
    /// and how many copies are behind it.
    pub(super) fn take<'a>(
        &self,
        slot: impl Fn(usize) -> (&'a Slot, u32),
        mut draw: impl FnMut() -> u64,
    ) -> Result<Option<usize>, Retired> {
        let mut ranking = self.ranking.lock();
        let ranking = ranking.as_mut().ok_or(Retired)?;
        while let Some(position) = ranking.least(draw()) {
            let (slot, copies) = slot(position);
            let seen = slot.observe();
            let load = self.load(seen, copies);
            if let Some(Seen { outstanding, limit }) = seen
                && ranking.load(position) == load
                && slot.take_untold(Seen { outstanding, limit })
            {
                let taken = Seen { outstanding: outstanding + 1, limit };
                ranking.place(position, self.load(Some(taken), copies));
                return Ok(Some(position));
            }
            ranking.place(position, load);
        }
        Ok(None)
    }

    /// What a slot with these copies is ranked by; `None`: it takes nothing.
    fn load(&self, seen: Option<Seen>, copies: u32) -> Option<Load> {
        let Seen { outstanding, limit } = seen.filter(|seen| seen.outstanding < seen.limit)?;
        let candidate = Candidate { outstanding, copies, slots: limit, predicted: f32::NAN };
        Some(Load::of(self.strategy, &candidate))
    }
}

impl Seat {
    /// Ranks `slot`, whose seat this is, by what it holds now.
    pub(super) fn follow(&self, slot: &Slot) {
        let mut ranking = self.roster.ranking.lock();
        if let Some(ranking) = ranking.as_mut() {
            ranking.place(self.position, self.roster.load(slot.observe(), self.copies));
        }
    }
}

#[cfg(test)]
impl Roster {
    /// Whether `position` is ranked by `load`.
    pub(super) fn ranks(&self, position: usize, load: Option<Load>) -> bool {
        self.ranking.lock().as_ref().is_some_and(|ranking| ranking.load(position) == load)
    }
}
