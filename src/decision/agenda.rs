//! What is still to happen, by time, and in the order of entry among equals: a radix heap (Ahuja, Mehlhorn, Orlin,
//! Tarjan: "Faster Algorithms for the Shortest Path Problem", 1990). Nothing is ever due before what was taken last,
//! so entries need no full order: each lies in the bucket of the highest bit in which its time differs from that
//! last one, and moves on to a lower bucket only when it gets its turn. Equal times are always in the same bucket.

use std::collections::VecDeque;

use crate::types::Timestamp;

/// Future happenings of type `T`.
#[derive(Debug)]
pub struct Agenda<T> {
    /// When the last one taken was due.
    last: Timestamp,
    /// Those that are due at that very moment.
    present: VecDeque<T>,
    /// By the highest bit that differs.
    buckets: Vec<Bucket<T>>,
    /// Bit n: bucket n has entries.
    filled: u64,
}

/// Entries in the order in which they were made.
#[derive(Debug)]
struct Bucket<T> {
    earliest: Timestamp,
    entries: Vec<(Timestamp, T)>,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        let bucket = || Bucket { earliest: Timestamp(0), entries: Vec::new() };
        Self {
            last: Timestamp(0),
            present: VecDeque::new(),
            buckets: (0..u64::BITS).map(|_| bucket()).collect(),
            filled: 0,
        }
    }
}

impl<T> Agenda<T> {
    /// Enters `what` for `at`; what should have happened already is due at once.
    pub fn enter(&mut self, at: Timestamp, what: T) {
        let at = at.max(self.last);
        let Some(highest) = (at.0 ^ self.last.0).checked_ilog2() else {
            return self.present.push_back(what);
        };
        let bucket = &mut self.buckets[highest as usize];
        let alone = bucket.entries.is_empty();
        bucket.earliest = if alone { at } else { bucket.earliest.min(at) };
        bucket.entries.push((at, what));
        self.filled |= 1 << highest;
    }

    /// When the next one is due, wanted or not.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        if self.present.is_empty() {
            self.buckets.get(self.lowest()).map(|bucket| bucket.earliest)
        } else {
            Some(self.last)
        }
    }

    /// Takes the next one, and when it was due.
    pub fn take(&mut self) -> Option<(Timestamp, T)> {
        self.take_due(Timestamp(u64::MAX), |_, _| true)
    }

    /// Takes the next one that is due by `now`. Unwanted ones are passed over and are gone: many of them while they
    /// are moved, so that they are never next.
    pub fn take_due(
        &mut self,
        now: Timestamp,
        wanted: impl Fn(Timestamp, &T) -> bool,
    ) -> Option<(Timestamp, T)> {
        while self.next_at()? <= now {
            match self.present.pop_front() {
                Some(what) if wanted(self.last, &what) => return Some((self.last, what)),
                Some(_) => {}
                None => self.bring_down(&wanted),
            }
        }
        None
    }

    /// The first bucket with entries; past the last one if there is none.
    fn lowest(&self) -> usize {
        self.filled.trailing_zeros() as usize
    }

    /// Moves the wanted entries of the first bucket to where they belong once its earliest have their turn.
    fn bring_down(&mut self, wanted: &impl Fn(Timestamp, &T) -> bool) {
        let lowest = self.lowest();
        let Some(bucket) = self.buckets.get_mut(lowest) else { return };
        self.last = bucket.earliest;
        self.filled &= !(1 << lowest);
        let mut entries = std::mem::take(&mut bucket.entries);
        for (at, what) in entries.drain(..) {
            if wanted(at, &what) {
                self.enter(at, what);
            }
        }
        // Its room is kept for the next ones.
        self.buckets[lowest].entries = entries;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_first_and_in_order_among_equals() {
        let mut agenda = Agenda::default();
        for (at, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            agenda.enter(Timestamp(at), what);
        }
        let order: String = std::iter::from_fn(|| agenda.take()).map(|(_, what)| what).collect();
        assert_eq!(order, "abcd");
        assert_eq!(agenda.next_at(), None);
    }

    /// Beside a list that is sorted whole, with entries made between any two that are taken.
    #[test]
    fn agrees_with_a_sorted_list() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut agenda = Agenda::default();
        let mut list: Vec<(Timestamp, u32)> = Vec::new();
        let mut now = Timestamp(0);
        for number in 0..20_000 {
            if chance.u32(0..100) < 55 {
                let bits = chance.u32(0..17);
                let at = Timestamp(now.0 + chance.u64(0..1 << bits));
                agenda.enter(at, number);
                list.push((at, number));
            } else {
                list.sort_unstable();
                let next = (!list.is_empty()).then(|| list.remove(0));
                assert_eq!(agenda.next_at(), next.map(|(at, _)| at));
                assert_eq!(agenda.take(), next);
                now = next.map_or(now, |(at, _)| at);
            }
        }
        assert!(list.len() > 100, "{} are left to be taken", list.len());
    }

    #[test]
    fn what_is_not_wanted_is_passed_over() {
        let mut agenda = Agenda::default();
        (0..1_000).for_each(|n| agenda.enter(Timestamp(n % 70), n));
        let wanted = |_, n: &u64| n.is_multiple_of(7);
        let until = Timestamp(34);
        let taken = std::iter::from_fn(|| agenda.take_due(until, wanted)).count();
        assert_eq!(taken, 73);
        assert!(agenda.next_at() > Some(until));
    }
}
