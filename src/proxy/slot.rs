//! The count of outstanding requests of one backend, its limit, and whether it takes more: one atomic
//! word, so that "is open", "has room" and "is now taken" are a single step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use crossbeam_utils::CachePadded;

use super::roster::Seat;
use crate::runtime::sync;

const CLOSED: u64 = 1 << 63;
const EJECTED: u64 = 1 << 62;
const SEATED: u64 = 1 << 61;
const LIMIT_SHIFT: u32 = 32;
/// The largest limit: 29 bits of the word.
const LARGEST_LIMIT: u32 = (1 << 29) - 1;
const LIMIT_MASK: u64 = (LARGEST_LIMIT as u64) << LIMIT_SHIFT;

/// Low 32 bits: outstanding requests. The next 29: how many it takes at once. Then: seated, a roster follows
/// what it holds; ejected, left alone for a while. Highest: closed, out of the table.
///
/// Sequentially consistent throughout: together with the queue's own counter it forms the hand-off
/// that must not lose a wake-up (see [`super::admission`]).
#[derive(Debug, Default)]
pub(super) struct Slot {
    word: CachePadded<sync::AtomicU64>,
    /// Set before the word says that it is: whoever changes the word after that finds the seat.
    seat: ArcSwapOption<Seat>,
    /// Connections that it refused or broke before an answer.
    connect_failures: AtomicU64,
    /// When it last went from idle to busy, in milliseconds of [`crate::runtime::clock::uptime_ms`].
    busy_since_ms: AtomicU64,
    /// When it last sent a byte or finished a request; 0: never.
    worked_at_ms: AtomicU64,
}

/// What was seen of a slot that takes requests: the basis of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) outstanding: u32,
    pub(super) limit: u32,
}

impl Slot {
    /// What a choice may be based on; `None` when nothing is taken.
    pub(super) fn observe(&self) -> Option<Seen> {
        let word = self.word.load();
        let seen = Seen { outstanding: count(word), limit: limit(word) };
        (word & (CLOSED | EJECTED) == 0).then_some(seen)
    }

    /// Takes one, if all is still as it was seen.
    pub(super) fn try_take(&self, seen: Seen) -> bool {
        let taken = self.take_untold(seen);
        if taken {
            self.tell(self.word.load());
        }
        taken
    }

    /// As [`Slot::try_take`], for the roster itself: it need not be told.
    pub(super) fn take_untold(&self, seen: Seen) -> bool {
        let seated = self.word.load() & SEATED;
        let word = seated | u64::from(seen.limit) << LIMIT_SHIFT | u64::from(seen.outstanding);
        self.word.replace(word, word + 1).is_ok()
    }

    /// Gives one back. Only a guard's drop calls it, once for each successful [`Slot::try_take`].
    pub(super) fn give_back(&self) {
        let before = self.word.subtract(1);
        debug_assert!(count(before) > 0, "one guard, one release");
        self.tell(before);
    }

    /// Nothing more is taken from now on, by nobody, whichever table it routes by.
    pub(super) fn close(&self) {
        self.tell(self.word.set(CLOSED));
    }

    /// Is in the table again.
    pub(super) fn open(&self) {
        self.tell(self.word.clear(CLOSED));
    }

    /// Nothing is taken until it is readmitted.
    pub(super) fn eject(&self) {
        self.tell(self.word.set(EJECTED));
    }

    /// Takes requests again.
    pub(super) fn readmit(&self) {
        self.tell(self.word.clear(EJECTED));
    }

    /// Sits down at `seat`, where it is ranked by what it holds from now on; `None`: nowhere.
    pub(super) fn sit(&self, seat: Option<Seat>) {
        let is_seated = seat.is_some();
        if !is_seated {
            self.word.clear(SEATED);
        }
        self.seat.store(seat.map(Arc::new));
        if is_seated {
            // Changes before this step are in what is told now, those after it find the seat.
            self.word.set(SEATED);
            self.tell(SEATED);
        }
    }

    /// Lets the roster follow a change of `word`.
    fn tell(&self, word: u64) {
        if word & SEATED != 0 {
            sync::step();
            if let Some(seat) = &*self.seat.load() {
                seat.follow(self);
            }
        }
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.word.load() & EJECTED != 0
    }

    /// How many it takes at once from now on. Those above a lowered limit finish. Whether that is more
    /// than before.
    pub(super) fn set_limit(&self, limit: u32) -> bool {
        let bits = u64::from(limit.min(LARGEST_LIMIT)) << LIMIT_SHIFT;
        let mut word = self.word.load();
        while word & LIMIT_MASK != bits {
            let new = (word & !LIMIT_MASK) | bits;
            match self.word.replace(word, new) {
                Ok(()) => {
                    self.tell(word);
                    return self::limit(word) < limit;
                }
                Err(now) => word = now,
            }
        }
        false
    }

    /// Outstanding requests, whether or not more are taken.
    pub(super) fn outstanding(&self) -> u32 {
        count(self.word.load())
    }

    /// Notes a connection that was refused or broke before an answer.
    pub(super) fn note_connect_failure(&self) {
        self.connect_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How often [`Slot::note_connect_failure`] was called.
    pub(super) fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Ordering::Relaxed)
    }

    /// A request is sent at `now_ms`.
    pub(super) fn note_sent(&self, now_ms: u64) {
        if self.outstanding() <= 1 {
            self.busy_since_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// It sent a byte or finished a request at `now_ms`.
    pub(super) fn note_work(&self, now_ms: u64) {
        self.worked_at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When it last sent a byte or finished a request; 0: never.
    pub(super) fn worked_at_ms(&self) -> u64 {
        self.worked_at_ms.load(Ordering::Relaxed)
    }

    /// For how long it has held requests without sending anything; 0 when it holds none.
    pub(super) fn silent_ms(&self, now_ms: u64) -> u64 {
        if self.outstanding() == 0 {
            return 0;
        }
        let heard = self.worked_at_ms().max(self.busy_since_ms.load(Ordering::Relaxed));
        now_ms.saturating_sub(heard)
    }
}

fn count(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

fn limit(word: u64) -> u32 {
    u32::try_from((word & LIMIT_MASK) >> LIMIT_SHIFT).unwrap_or(LARGEST_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_or_ejected_slot_takes_nothing_and_still_counts_down() {
        let slot = Slot::default();
        slot.set_limit(7);
        let seen = slot.observe().expect("open");
        assert_eq!(seen, Seen { outstanding: 0, limit: 7 });
        assert!(slot.try_take(seen));
        assert!(!slot.try_take(seen), "the count has moved on");
        let seen = slot.observe().expect("open");
        slot.close();
        slot.eject();
        assert!(slot.observe().is_none());
        assert!(!slot.try_take(seen));
        assert_eq!(slot.outstanding(), 1);
        slot.open();
        assert!(slot.observe().is_none() && slot.is_ejected());
        slot.readmit();
        slot.set_limit(3);
        assert!(!slot.try_take(seen), "the limit has changed");
        slot.give_back();
        let seen = slot.observe().expect("open");
        assert_eq!(seen, Seen { outstanding: 0, limit: 3 });
    }

    #[test]
    fn silence_is_counted_only_while_it_holds_requests() {
        let slot = Slot::default();
        slot.set_limit(2);
        slot.note_work(10);
        assert_eq!(slot.silent_ms(1_000), 0);
        assert!(slot.try_take(slot.observe().expect("open")));
        slot.note_sent(1_000);
        assert_eq!(slot.silent_ms(1_500), 500);
        assert!(slot.try_take(slot.observe().expect("open")));
        slot.note_sent(1_600);
        assert_eq!(slot.silent_ms(1_700), 700, "another request is no sign of life");
        slot.note_work(1_750);
        assert_eq!(slot.silent_ms(1_800), 50);
    }

    #[test]
    fn threads_never_take_the_same_place() {
        let slot = Slot::default();
        slot.set_limit(4);
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
        assert_eq!(slot.observe(), Some(Seen { outstanding: 0, limit: 4 }));
    }
}
