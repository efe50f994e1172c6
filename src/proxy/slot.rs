//! The count of outstanding requests of one backend, and whether it takes more: one atomic word, so that
//! "is open", "has room" and "is now taken" are a single step.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

const CLOSED: u64 = 1 << 63;

/// Low 32 bits: outstanding requests. Highest bit: closed, nothing more is taken.
///
/// Sequentially consistent throughout: together with the queue's own counter it forms the hand-off
/// that must not lose a wake-up (see [`super::admission`]).
#[derive(Debug, Default)]
pub(super) struct Slot {
    word: CachePadded<AtomicU64>,
    /// Connections that it refused or broke before an answer.
    connect_failures: AtomicU64,
}

impl Slot {
    /// The count as a basis for [`Slot::try_take`]; `None` when closed.
    pub(super) fn observe(&self) -> Option<u32> {
        let word = self.word.load(Ordering::SeqCst);
        (word & CLOSED == 0).then_some(count(word))
    }

    /// Takes one, if the count is still `seen` and it is still open.
    pub(super) fn try_take(&self, seen: u32) -> bool {
        let seen = u64::from(seen);
        self.word.compare_exchange(seen, seen + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Gives one back. Only a guard's drop calls it, once for each successful [`Slot::try_take`].
    pub(super) fn give_back(&self) {
        let before = self.word.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(count(before) > 0, "one guard, one release");
    }

    /// Nothing more is taken from now on, by nobody, whichever table it routes by.
    pub(super) fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// Takes requests again.
    pub(super) fn open(&self) {
        self.word.fetch_and(!CLOSED, Ordering::SeqCst);
    }

    /// Notes a connection that was refused or broke before an answer.
    pub(super) fn note_connect_failure(&self) {
        self.connect_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How often [`Slot::note_connect_failure`] was called.
    pub(super) fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Ordering::Relaxed)
    }

    /// Outstanding requests, closed or not.
    pub(super) fn outstanding(&self) -> u32 {
        count(self.word.load(Ordering::SeqCst))
    }
}

fn count(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_slot_takes_nothing_and_still_counts_down() {
        let slot = Slot::default();
        assert!(slot.try_take(0));
        assert!(!slot.try_take(0), "the count has moved on");
        slot.close();
        assert_eq!(slot.observe(), None);
        assert!(!slot.try_take(1));
        assert_eq!(slot.outstanding(), 1);
        slot.give_back();
        assert_eq!(slot.outstanding(), 0);
        slot.open();
        assert_eq!(slot.observe(), Some(0));
    }

    #[test]
    fn threads_never_take_the_same_place() {
        let slot = Slot::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        while !slot.observe().is_some_and(|seen| slot.try_take(seen)) {}
                        slot.give_back();
                    }
                });
            }
        });
        assert_eq!(slot.outstanding(), 0);
    }
}
