//! The slots of a variant with many copies, kept in order of their load ([`crate::decision::ranking`]).
//!
//! A slot's word says what it holds; the roster only follows it. Whoever changes a word brings the roster up
//! to date **then** ([`Slot`] does so by itself), under a lock of the roster and by what the word says by then,
//! so that after the last change of all they agree. Before a slot is taken it is looked at once more: one that
//! has changed meanwhile is ranked anew, and the choice made again.
//!
//! Positions are dealt to *shards*, each with a lock and an order of its own, so that threads that choose at
//! the same time find what they touch in their own core's cache (`benches/choice.rs`). Without its lock a shard
//! tells the load of its least, and a choice is made in one that tells the least of all: of several, in that
//! where the thread is at home, if it is one. Homes are drawn anew now and then, each as likely as it has
//! positions, and whenever somebody else is met there. So equals are chosen equally often where shards have
//! equally many of them. Where half of 1,000 copies take nothing, the others have, as long as they are idle,
//! mostly 0.8 to 1.2 of what each should; what is busy is not equal.
//!
//! A slot has a seat in one roster, that of the newest snapshot. The one before is *retired*: its followers
//! have gone, and whoever still chooses by that snapshot does so by the scan.

use std::cell::Cell;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::slot::{Seen, Slot};
use crate::decision::ranking::Ranking;
use crate::decision::route::{self, Candidate, Load};
use crate::runtime::sync::{AtomicU64, Mutex};
use crate::types::spec::RoutingStrategy;

/// What so many tell is in one cache line.
const MOST_SHARDS: usize = if cfg!(test) { 2 } else { 8 };
/// Fewer positions are not worth another shard.
const SHARD: usize = if cfg!(test) { 10 } else { 32 };
/// A thread stays at home for so many choices on average: often enough for the copies there to be in its own
/// core's cache.
const STAY: u64 = 128;

/// The order of one snapshot's copies of a variant.
#[derive(Debug)]
pub(super) struct Roster {
    strategy: RoutingStrategy,
    positions: usize,
    /// As many as a power of two.
    shards: Box<[CachePadded<Shard>]>,
    /// The least load of each shard, as bits. Changed under the shard's lock; rarely, and read for every choice.
    told: CachePadded<[AtomicU64; MOST_SHARDS]>,
}

/// `None`: retired.
type Shard = Mutex<Option<Ranking>>;

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

thread_local! {
    /// What was drawn for the thread's home.
    static HOME: Cell<Option<u64>> = const { Cell::new(None) };
}

impl Roster {
    /// One for `positions` slots, which then take their seats ([`Slot::sit`]).
    pub(super) fn new(strategy: RoutingStrategy, positions: usize) -> Self {
        let shards = 1 << (positions / SHARD).clamp(1, MOST_SHARDS).ilog2();
        let shard = || CachePadded::new(Mutex::new(Some(Ranking::new(positions.div_ceil(shards)))));
        Self {
            strategy,
            positions,
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            told: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(Load::FULL.to_bits()))),
        }
    }

    /// No more choices by it.
    pub(super) fn retire(&self) {
        for (shard, told) in self.shards.iter().zip(&*self.told) {
            let mut order = shard.lock();
            *order = None;
            // Whoever chooses comes here, to find that out.
            told.store(Load::IDLE.to_bits());
        }
    }

    /// Takes a slot of the least loaded, and says at which position. `slot` tells the slot of a position
    /// and how many copies are behind it.
    pub(super) fn take<'a>(
        &self,
        slot: impl Fn(usize) -> (&'a Slot, u32),
        mut draw: impl FnMut() -> u64,
    ) -> Result<Option<usize>, Retired> {
        let mut met = false;
        loop {
            let drawn = draw();
            let (home, step) = self.home(met || drawn.is_multiple_of(STAY), &mut draw);
            let Some((shard, told)) = self.least(home, step) else { return Ok(None) };
            let lock = &self.shards[shard];
            let order = if shard == home && !met { lock.try_lock() } else { Some(lock.lock()) };
            let Some(mut order) = order else {
                met = true;
                continue;
            };
            let ranking = order.as_mut().ok_or(Retired)?;
            // What was told may be over by now.
            let least = ranking.least(drawn).filter(|at| ranking.load(*at) <= Some(told));
            let Some(at) = least else { continue };
            let (slot, copies) = slot(self.position(shard, at));
            let seen = slot.observe();
            let load = self.load(seen, copies);
            if let Some(Seen { outstanding, limit }) = seen
                && ranking.load(at) == load
                && slot.take_untold(Seen { outstanding, limit })
            {
                let taken = Seen { outstanding: outstanding + 1, limit };
                self.place(ranking, (shard, at), self.load(Some(taken), copies));
                return Ok(Some(self.position(shard, at)));
            }
            self.place(ranking, (shard, at), load);
        }
    }

    /// The shard where this thread is at home, or is from now on if it `moves`, and by what step it goes over the
    /// others. The step is odd, so that it reaches them all, and drawn with the home, so that whatever shards tell
    /// the least are found about equally often, and each time the same one.
    fn home(&self, moves: bool, draw: impl FnOnce() -> u64) -> (usize, usize) {
        let drawn = HOME.get().filter(|_| !moves).unwrap_or_else(|| {
            let drawn = draw();
            HOME.set(Some(drawn));
            drawn
        });
        let (home, _) = self.seat(route::below(self.positions, drawn));
        (home, route::below(MOST_SHARDS, drawn.rotate_left(32)) | 1)
    }

    /// The first shard that tells the least load of all, and that load; `None`: no slot is free.
    fn least(&self, home: usize, step: usize) -> Option<(usize, Load)> {
        let mut least = (home, self.told[home].load());
        // The compiler unrolls it: those that there are not tell that they are full.
        for away in 1..MOST_SHARDS {
            let shard = (home + away * step) % MOST_SHARDS;
            let told = self.told[shard].load();
            // As a rule it is the same.
            if told != least.1 && Load::from_bits(told) < Load::from_bits(least.1) {
                least = (shard, told);
            }
        }
        let (shard, told) = (least.0, Load::from_bits(least.1));
        (told != Load::FULL).then_some((shard, told))
    }

    /// Ranks the one at this seat by `load` from now on, in the `ranking` of the shard.
    fn place(&self, ranking: &mut Ranking, (shard, at): (usize, usize), load: Option<Load>) {
        let before = ranking.lowest();
        ranking.place(at, load);
        let now = ranking.lowest();
        if now != before {
            self.told[shard].store(now.unwrap_or(Load::FULL).to_bits());
        }
    }

    /// In which shard a position is, and where in it.
    fn seat(&self, position: usize) -> (usize, usize) {
        (position & (self.shards.len() - 1), position >> self.shards.len().ilog2())
    }

    /// Which position is at this seat.
    fn position(&self, shard: usize, at: usize) -> usize {
        at << self.shards.len().ilog2() | shard
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
        let seat @ (shard, _) = self.roster.seat(self.position);
        if let Some(ranking) = &mut *self.roster.shards[shard].lock() {
            self.roster.place(ranking, seat, self.roster.load(slot.observe(), self.copies));
        }
    }
}

#[cfg(test)]
impl Roster {
    /// Whether `position` is ranked by `load`, and what its shard tells is the load of its least.
    pub(super) fn ranks(&self, position: usize, load: Option<Load>) -> bool {
        let (shard, at) = self.seat(position);
        let order = self.shards[shard].lock();
        let told = Load::from_bits(self.told[shard].load());
        order.as_ref().is_some_and(|ranking| {
            ranking.load(at) == load && ranking.lowest().unwrap_or(Load::FULL) == told
        })
    }
}
