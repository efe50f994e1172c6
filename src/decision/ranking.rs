//! Many copies kept in order of their load, so that the least loaded is looked up and not looked for: the
//! choice of [`super::route`] without its scan.
//!
//! Copies of equal load share a level, and levels lie in the order of load. The choice draws from the first
//! one; a load that changes moves its copy from level to level. However many copies there are, levels are
//! few: where the least loaded is chosen, loads lie close together.
//!
//! Properties, each with its test: P1 what is chosen has the least load of all; P2 equals are chosen equally
//! often; P3 none is chosen only if none is placed.

use super::route::{Load, below};

/// Positions in order of their load.
#[derive(Debug)]
pub struct Ranking {
    /// The least first, none empty.
    levels: Vec<Level>,
    places: Box<[Option<Place>]>,
    /// What levels that are gone have left, so that the next one allocates nothing.
    spare: Vec<Vec<u32>>,
}

#[derive(Debug)]
struct Level {
    load: Load,
    members: Vec<u32>,
}

/// Where a position is: in the level of its load, at `at` among the members.
#[derive(Debug, Clone, Copy)]
struct Place {
    load: Load,
    at: u32,
}

impl Ranking {
    /// One for `positions` positions, none of which may be chosen yet.
    #[must_use]
    pub fn new(positions: usize) -> Self {
        Self {
            levels: Vec::new(),
            places: vec![None; positions].into_boxed_slice(),
            spare: Vec::new(),
        }
    }

    /// One of those with the least load, all of them equally likely; `None` when none may be chosen.
    /// `draw` is uniform over all of `u64`.
    #[must_use]
    #[inline]
    pub fn least(&self, draw: u64) -> Option<usize> {
        let members = &self.levels.first()?.members;
        members.get(below(members.len(), draw)).map(|position| *position as usize)
    }

    /// The least load; `None` when none may be chosen.
    #[must_use]
    #[inline]
    pub fn lowest(&self) -> Option<Load> {
        self.levels.first().map(|level| level.load)
    }

    /// The load that `position` is ranked by; `None` when it may not be chosen.
    #[must_use]
    #[inline]
    pub fn load(&self, position: usize) -> Option<Load> {
        self.places[position].map(|place| place.load)
    }

    /// Ranks `position` by `load` from now on; `None`: it may not be chosen.
    pub fn place(&mut self, position: usize, load: Option<Load>) {
        if self.load(position) == load {
            return;
        }
        if let Some(place) = self.places[position].take() {
            self.leave(place);
        }
        self.places[position] = load.map(|load| self.join(position, load));
    }

    fn join(&mut self, position: usize, load: Load) -> Place {
        let level = self.find(load).unwrap_or_else(|level| {
            let members = self.spare.pop().unwrap_or_default();
            self.levels.insert(level, Level { load, members });
            level
        });
        let members = &mut self.levels[level].members;
        members.push(narrow(position));
        Place { load, at: narrow(members.len() - 1) }
    }

    fn leave(&mut self, place: Place) {
        let Ok(level) = self.find(place.load) else { return };
        let members = &mut self.levels[level].members;
        members.swap_remove(place.at as usize);
        if let Some(moved) = members.get(place.at as usize)
            && let Some(other) = &mut self.places[*moved as usize]
        {
            other.at = place.at;
        }
        if members.is_empty() {
            self.spare.push(self.levels.remove(level).members);
        }
    }

    /// The level of `load`, or where it would be.
    fn find(&self, load: Load) -> Result<usize, usize> {
        self.levels.binary_search_by(|level| level.load.cmp(&load))
    }
}

/// Positions are places in a table, which is far smaller than that.
fn narrow(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decision::route::Candidate;
    use crate::types::spec::RoutingStrategy;

    fn load(outstanding: u32, copies: u32) -> Load {
        let candidate = Candidate { outstanding, copies, slots: u32::MAX, predicted: f32::NAN };
        Load::of(RoutingStrategy::LeastOutstandingRequests, &candidate)
    }

    /// The draw that falls on the middle of member `at` of `of`.
    fn draw_of(at: usize, of: usize) -> u64 {
        u64::MAX / of as u64 * at as u64 + u64::MAX / of as u64 / 2
    }

    proptest! {
        /// P1 to P3 against a plain list, after every change: each of the least is drawn by its share of
        /// the draws, nobody else by any.
        #[test]
        fn the_first_level_is_the_least_of_all(
            changes in proptest::collection::vec(
                (0_usize..24, proptest::option::weighted(0.8, (0_u32..6, 1_u32..4))),
                1..300,
            ),
        ) {
            let mut ranking = Ranking::new(24);
            let mut list = vec![None; 24];
            for (position, change) in changes {
                let change = change.map(|(n, k)| load(n, k));
                ranking.place(position, change);
                list[position] = change;
                prop_assert!((0..24).all(|at| ranking.load(at) == list[at]));
                let least = list.iter().flatten().min();
                let expected: Vec<_> =
                    (0..24).filter(|at| list[*at].is_some() && list[*at].as_ref() == least).collect();
                let mut drawn: Vec<_> = (0..expected.len())
                    .filter_map(|at| ranking.least(draw_of(at, expected.len())))
                    .collect();
                drawn.sort_unstable();
                prop_assert_eq!(&drawn, &expected);
                prop_assert_eq!(ranking.least(u64::MAX).is_none(), expected.is_empty());
                prop_assert_eq!(ranking.least(0).is_none(), expected.is_empty());
                prop_assert!(ranking.levels.len() + ranking.spare.len() <= 24);
            }
        }
    }
}
