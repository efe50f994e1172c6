//! Requests that must go to one instance, because their session lives there, and wait for a slot of it.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::admission::Reservation;
use super::slot::Slot;
use crate::runtime::sync::{self, AtomicU32, Mutex};

/// Those who wait for one start of an instance, first come first served. The hand-off is that of
/// [`super::admission`]: enter, then look for a slot; give back, then look who waits.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    waiting: AtomicU32,
    queue: Mutex<VecDeque<oneshot::Sender<Turn>>>,
}

/// What becomes of one who waits.
#[derive(Debug)]
pub(super) enum Turn {
    /// A slot has been taken for it; it is given back with this, should nobody be there to take it.
    Taken(Reservation),
    /// The instance takes nothing any more: the session moves.
    Gone,
}

impl Pinned {
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load()
    }

    /// A place at the end, unless `limit` wait already.
    pub(super) fn enter(&self, limit: u32) -> Option<oneshot::Receiver<Turn>> {
        let (sender, turn) = oneshot::channel();
        let mut queue = self.queue.lock();
        // Those who left are forgotten before anybody is refused for them.
        if queue.len() >= limit as usize {
            queue.retain(|waiter| !waiter.is_closed());
        }
        if queue.len() >= limit as usize {
            return None;
        }
        queue.push_back(sender);
        self.note(&queue);
        Some(turn)
    }

    fn note(&self, queue: &VecDeque<oneshot::Sender<Turn>>) {
        self.waiting.store(u32::try_from(queue.len()).unwrap_or(u32::MAX));
    }

    /// Gives free slots of `slot` to those who wait; `reserve` makes the guard of one that was taken.
    pub(super) fn hand_out(&self, slot: &Slot, reserve: impl Fn() -> Reservation) {
        while self.waiting() > 0 {
            let granted = {
                let mut queue = self.queue.lock();
                let granted = take(&mut queue, slot);
                self.note(&queue);
                granted
            };
            // Outside the lock: a waiter that has left hands the guard back, whose drop comes here again.
            match granted {
                Some(waiter) => {
                    sync::step();
                    drop(waiter.send(Turn::Taken(reserve())));
                }
                None => return,
            }
        }
    }

    /// Tells everybody that the instance takes nothing any more.
    pub(super) fn turn_away(&self) {
        let mut queue = self.queue.lock();
        for waiter in queue.drain(..) {
            // One that has left needs no word.
            let _ = waiter.send(Turn::Gone);
        }
        self.note(&queue);
    }
}

/// The first who waits, if a slot could be taken for it.
fn take(queue: &mut VecDeque<oneshot::Sender<Turn>>, slot: &Slot) -> Option<oneshot::Sender<Turn>> {
    queue.front()?;
    loop {
        let seen = slot.observe().filter(|seen| seen.outstanding < seen.limit)?;
        if slot.try_take(seen) {
            return queue.pop_front();
        }
    }
}
