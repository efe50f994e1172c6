//! The slots of a variant with many copies, kept in order of their load ([`crate::decision::ranking`]).
//!
//! A slot's word says what it holds; the roster only follows it. Whoever changes a word brings the roster up
//! to date **then** ([`Slot`] does so by itself), under a lock of the roster and by what the word says by then,
//! so that after the last change of all they agree. Before a slot is taken it is looked at once more: one that
//! has changed meanwhile is ranked anew, and the choice made again.
//!
//! Positions are dealt to *shards*, each with a lock and an order of its own, so that threads that choose at
//! the same time find what they touch in their own core's cache (`benches/choice.rs`). Beside its lock a shard
//! tells the load of its least. A choice is made in a shard that has the least of all: of several, in the one
//! where the thread is at home. Homes are drawn anew now and then, every position being as likely to be in
//! one as any other, so that equals are chosen equally often; and whenever somebody else is met at home.
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

/// As many as one cache line tells the least loads of.
const MOST_SHARDS: usize = if cfg!(test) { 2 } else { 8 };
/// Fewer positions are not worth another shard.
const SHARD: usize = if cfg!(test) { 10 } else { 32 };
/// A thread stays at home for so many choices on average: for each copy of a large shard once or twice, so
/// that not every one of them is still in another core's cache.
const STAY: u64 = 128;

/// The order of one snapshot's copies of a variant.
#[derive(Debug)]
pub(super) struct Roster {
    strategy: RoutingStrategy,
    positions: usize,
    /// As many as a power of two.
    shards: Box<[CachePadded<Shard>]>,
    /// What each shard tells: a load, as bits. Read for every choice and rarely changed.
    least: CachePadded<[AtomicU64; MOST_SHARDS]>,
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
    static HOME: Cell<u64> = const { Cell::new(0) };
}

impl Roster {
    /// One for `positions` slots, which then take their seats ([`Slot::sit`]).
    pub(super) fn new(strategy: RoutingStrategy, positions: usize) -> Self {
        let shards = 1 << (positions / SHARD).clamp(1, MOST_SHARDS).ilog2();
        let shard = || CachePadded::new(Mutex::new(Some(Ranking::new(positions.div_ceil(shards)))));
        let full = || AtomicU64::new(Load::FULL.to_bits());
        Self {
            strategy,
            positions,
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            least: CachePadded::new(std::array::from_fn(|_| full())),
        }
    }

    /// No more choices by it.
    pub(super) fn retire(&self) {
        for (shard, least) in self.shards.iter().zip(&*self.least) {
            *shard.lock() = None;
            // Whoever chooses comes here, to find that out.
            least.store(Load::IDLE.to_bits());
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
            if drawn.is_multiple_of(STAY) {
                HOME.set(draw());
            }
            let Some((shard, told)) = self.least() else { return Ok(None) };
            let order = &self.shards[shard];
            let Some(mut order) = (if met { Some(order.lock()) } else { order.try_lock() }) else {
                met = true;
                HOME.set(draw());
                continue;
            };
            let ranking = order.as_mut().ok_or(Retired)?;
            // What was told may be over by now.
            if ranking.lowest().is_none_or(|lowest| lowest > told) {
                continue;
            }
            let Some(at) = ranking.least(drawn) else { continue };
            let position = at << self.shards.len().ilog2() | shard;
            let (slot, copies) = slot(position);
            let seen = slot.observe();
            let load = self.load(seen, copies);
            if let Some(Seen { outstanding, limit }) = seen
                && ranking.load(at) == load
                && slot.take_untold(Seen { outstanding, limit })
            {
                let taken = Seen { outstanding: outstanding + 1, limit };
                self.place(ranking, (shard, at), self.load(Some(taken), copies));
                return Ok(Some(position));
            }
            self.place(ranking, (shard, at), load);
        }
    }

    /// A shard that has the least load of all, and that load; `None`: no slot is free.
    fn least(&self) -> Option<(usize, Load)> {
        let (home, _) = self.seat(route::below(self.positions, HOME.get()));
        let mut least = (home, self.least[home].load());
        // All of them, so that the compiler unrolls it: those that there are not are full.
        for away in 1..MOST_SHARDS {
            let shard = (home + away) % MOST_SHARDS;
            let told = self.least[shard].load();
            // As a rule they are the same.
            if told != least.1 && Load::from_bits(told) < Load::from_bits(least.1) {
                least = (shard, told);
            }
        }
        let (shard, load) = (least.0, Load::from_bits(least.1));
        (load != Load::FULL).then_some((shard, load))
    }

    /// Ranks the one at this seat by `load` from now on, in the `ranking` of the shard.
    fn place(&self, ranking: &mut Ranking, (shard, at): (usize, usize), load: Option<Load>) {
        let before = ranking.lowest();
        ranking.place(at, load);
        let now = ranking.lowest();
        if now != before {
            self.least[shard].store(now.unwrap_or(Load::FULL).to_bits());
        }
    }

    /// In which shard a position is, and where in it.
    fn seat(&self, position: usize) -> (usize, usize) {
        (position & (self.shards.len() - 1), position >> self.shards.len().ilog2())
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
    /// Whether `position` is ranked by `load`, and no less is told of its shard than there is.
    pub(super) fn ranks(&self, position: usize, load: Option<Load>) -> bool {
        let (shard, at) = self.seat(position);
        let order = self.shards[shard].lock();
        let told = Load::from_bits(self.least[shard].load());
        order.as_ref().is_some_and(|ranking| {
            ranking.load(at) == load && ranking.lowest().unwrap_or(Load::FULL) == told
        })
    }
}
