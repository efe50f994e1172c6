//! What is still to happen: a heap by time, and in the order of entry among equals.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::types::Timestamp;

/// Future happenings of type `T`.
#[derive(Debug)]
pub(super) struct Agenda<T> {
    heap: BinaryHeap<Entry<T>>,
    entered: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Timestamp,
    order: u64,
    what: T,
}

impl<T> Agenda<T> {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), entered: 0 }
    }

    /// Enters `what` for `at`.
    pub(super) fn enter(&mut self, at: Timestamp, what: T) {
        self.entered += 1;
        self.heap.push(Entry { at, order: self.entered, what });
    }

    /// When the next one is due.
    pub(super) fn next_at(&self) -> Option<Timestamp> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// Takes the next one.
    pub(super) fn take(&mut self) -> Option<T> {
        self.heap.pop().map(|entry| entry.what)
    }
}

// The heap is a max-heap: the earliest must be the greatest.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_first_and_in_order_among_equals() {
        let mut agenda = Agenda::new();
        for (at, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            agenda.enter(Timestamp(at), what);
        }
        let order: String = std::iter::from_fn(|| agenda.take()).collect();
        assert_eq!(order, "abcd");
        assert_eq!(agenda.next_at(), None);
    }
}
