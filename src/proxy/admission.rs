//! Admission: a request gets a slot at once, or waits its turn in its variant's queue.
//!
//! While a slot is free and nobody waits the queue's lock is not taken: the choice
//! ([`super::choice::Choice::take`]) ends in one compare-and-swap. The queue is one per variant, whatever the
//! number of threads, and exact in its limit.
//!
//! # The hand-off
//!
//! Whoever finds no slot enters the queue (`waiting` grows), **then** looks for a slot once more; whoever
//! gives a slot back does so, **then** looks at `waiting`. All four steps are sequentially consistent, so
//! at least one of the two sees the other: no slot stays free while somebody waits. Either way the slot
//! goes to the head of the queue, under the queue's lock, so each freed slot wakes exactly one. The
//! `handoff_model` tests play that in every order of a few threads.
//!
//! A [`Reservation`] is the only thing that holds a slot; its drop is the only release. One that is
//! handed to a waiter who has just left is dropped on the way and so passed on to the next.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::pinned::Turn;
use super::refusal::Refusal;
use super::router::Router;
use super::snapshot::{Backend, Variant};
use crate::decision::admit::{Caller, Ticket, WaitQueue};
use crate::decision::outcome::Outcome;
use crate::runtime::sync::{self, AtomicU32, Mutex};
use crate::runtime::{clock, rng};
use crate::telemetry::traffic::QueueTraffic;
use crate::types::{Generation, VariantKey};

type Grant = Result<Reservation, Refusal>;

/// Where a variant's requests wait for a slot.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    key: VariantKey,
    router: Weak<Router>,
    waiting: AtomicU32,
    queue: Mutex<WaitQueue<oneshot::Sender<Grant>>>,
    /// All requests that ever asked for the variant.
    arrivals: CountedArrivals,
    pub(super) traffic: QueueTraffic,
    drain_rate: super::drain_rate::DrainRate,
}

/// A slot of a backend, held. Its drop gives the slot back and wakes the next who waits.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) backend: Arc<Backend>,
}

impl Reservation {
    /// How a request at it has ended, for the backend's vitals.
    pub(super) fn note_outcome(&self, outcome: Outcome) {
        if self.backend.vitals.minds(outcome)
            && let Some(router) = self.backend.room.router.upgrade()
        {
            router.judge(&self.backend.room.key, &self.backend, outcome);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.backend.slot.give_back();
        self.backend.serve_pinned();
        self.backend.room.slot_freed();
    }
}

impl WaitingRoom {
    pub(super) fn new(key: VariantKey, router: Weak<Router>, traffic: QueueTraffic) -> Self {
        Self {
            key,
            router,
            waiting: AtomicU32::default(),
            queue: Mutex::default(),
            arrivals: CountedArrivals::default(),
            traffic,
            drain_rate: super::drain_rate::DrainRate::default(),
        }
    }

    /// How many wait now.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load()
    }

    /// How many requests ever asked for the variant.
    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals.get()
    }

    /// One more request asks for the variant, served or not.
    pub(super) fn arrived(&self) {
        self.arrivals.add();
    }

    /// Seconds after which one more request would probably find room: the queue's length over the rate
    /// at which slots have been freed lately, 1 to 60.
    pub(super) fn retry_after(&self) -> u32 {
        self.drain_rate.seconds_to_drain(self.waiting())
    }

    /// Takes in what was freed in the `seconds` since the last call.
    pub(super) fn tick(&self, seconds: f64) {
        self.drain_rate.tick(seconds);
    }

    fn slot_freed(self: &Arc<Self>) {
        self.drain_rate.freed();
        if self.waiting() > 0 {
            self.hand_out();
        }
    }

    /// Gives free slots to those who wait, in turn, until one of both runs out.
    pub(super) fn hand_out(self: &Arc<Self>) {
        let Some(router) = self.router.upgrade() else { return };
        while self.waiting() > 0 {
            let snapshot = router.current();
            let Some(variant) = snapshot.variant(&self.key) else {
                return self.turn_everybody_away();
            };
            // The lock covers choosing as well: turns are given in the order of the queue.
            let granted = {
                let mut queue = self.queue.lock();
                if queue.is_empty() {
                    return;
                }
                let Some(backend) = variant.take_slot(&[], rng::draw) else { return };
                let waiter = queue.pop(clock::uptime_ms());
                self.waiting.store(queue.len());
                waiter.map(|waiter| (waiter, Reservation { backend }))
            };
            // Outside the lock: if the waiter has left, the reservation comes back and its drop comes
            // here again.
            if let Some((waiter, reservation)) = granted {
                sync::step();
                drop(waiter.send(Ok(reservation)));
            }
        }
    }

    /// The variant is gone from the table.
    fn turn_everybody_away(&self) {
        let mut queue = self.queue.lock();
        while let Some(waiter) = queue.pop(clock::uptime_ms()) {
            drop(waiter.send(Err(Refusal::VariantRemoved)));
        }
        self.waiting.store(0);
    }
}

impl Backend {
    /// Its slots for those whose session lives here: they have nowhere else to go.
    fn serve_pinned(self: &Arc<Self>) {
        if self.pinned.waiting() > 0 {
            let reserve = || Reservation { backend: Arc::clone(self) };
            self.pinned.hand_out(&self.slot, reserve);
        }
    }
}

impl Variant {
    /// A slot for one request: at once, or when its turn has come.
    ///
    /// `tried` are starts of instances that this request must not go to again; with any, it has waited
    /// its turn before and goes ahead of the queue, or waits for an instance that is not among them.
    ///
    /// Cancel-safe: dropping the future leaves the queue, or gives back the slot that was just granted.
    ///
    /// # Errors
    /// [`Refusal`] when the queue is full, the wait is over its limit, or there is nothing to wait for.
    pub(super) async fn admit(
        &self,
        caller: Caller,
        tried: &[Generation],
        affinity: Affinity,
    ) -> Result<Reservation, Refusal> {
        // A second try has lost its home anyway.
        if tried.is_empty()
            && let Some(outcome) = self.admit_at_home(affinity).await
        {
            return outcome;
        }
        if (self.room.waiting() == 0 || !tried.is_empty())
            && let Some(backend) = self.take_slot(tried, rng::draw)
        {
            return Ok(Reservation { backend });
        }
        if !tried.is_empty() && !self.backends.is_empty() {
            return self.wait_elsewhere(tried).await;
        }
        let entered = clock::monotonic();
        let place = Place::enter(&self.room, self.queue_limit, caller)?;
        self.room.hand_out();
        let reservation = place.granted(self.queue_timeout).await?;
        self.room.traffic.waited(entered.elapsed());
        Ok(reservation)
    }

    /// Slots have come free: for those who wait at one instance, and for those who wait for any.
    pub(super) fn serve_waiters(&self) {
        for backend in &self.backends {
            backend.serve_pinned();
        }
        self.room.hand_out();
    }

    /// A slot of an instance that a request has not been tried at, all of which are full. It waits at the
    /// least loaded one: the common queue might hand it a free slot of the instance that has just died.
    async fn wait_elsewhere(&self, tried: &[Generation]) -> Result<Reservation, Refusal> {
        let mut left: SmallVec<[&Arc<Backend>; 4]> = self
            .backends
            .iter()
            .filter(|b| !tried.contains(&b.route.generation) && !b.slot.is_ejected())
            .collect();
        left.sort_by_key(|b| b.slot.outstanding() / b.route.copies);
        for other in left {
            if let Some(outcome) = self.wait_at(other).await {
                return outcome;
            }
        }
        Err(Refusal::NoOtherInstance)
    }
}

impl Variant {
    /// A slot of the backend that a request belongs to; `None` where it belongs to none that is there.
    async fn admit_at_home(&self, affinity: Affinity) -> Option<Result<Reservation, Refusal>> {
        match affinity {
            Affinity::None => None,
            Affinity::Key(key) => {
                let backend = (self.room.waiting() == 0).then(|| self.take_slot_by_key(key))??;
                Some(Ok(Reservation { backend }))
            }
            Affinity::Home(generation, key) => {
                let home = self.backends.iter().find(|b| b.route.generation == generation);
                match home.filter(|home| !home.slot.is_ejected()) {
                    Some(home) => self.wait_at(home).await,
                    None => Box::pin(self.admit_at_home(Affinity::Key(key))).await,
                }
            }
        }
    }

    async fn wait_at(&self, home: &Arc<Backend>) -> Option<Result<Reservation, Refusal>> {
        let full = || Refusal::QueueFull {
            waiting: self.queue_limit,
            retry_after: self.room.retry_after(),
        };
        let Some(turn) = home.pinned.enter(self.queue_limit) else { return Some(Err(full())) };
        home.serve_pinned();
        match tokio::time::timeout(self.queue_timeout, turn).await {
            Ok(Ok(Turn::Taken(reservation))) => Some(Ok(reservation)),
            // The session moves.
            Ok(Ok(Turn::Gone) | Err(_)) => None,
            Err(_) => Some(Err(Refusal::QueueTimeout {
                waited: self.queue_timeout,
                retry_after: self.room.retry_after(),
            })),
        }
    }
}

/// Where a request belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Affinity {
    /// Anywhere.
    None,
    /// At whichever backend this key belongs to, while there is room.
    Key(u64),
    /// At this start of an instance, waiting for a slot of it; where that is gone, by the key.
    Home(Generation, u64),
}

/// A place in the queue; dropping it leaves the queue.
struct Place {
    room: Arc<WaitingRoom>,
    ticket: Ticket,
    grant: oneshot::Receiver<Grant>,
}

impl Place {
    fn enter(room: &Arc<WaitingRoom>, limit: u32, caller: Caller) -> Result<Self, Refusal> {
        let (sender, grant) = oneshot::channel();
        let mut queue = room.queue.lock();
        let full = || Refusal::QueueFull { waiting: limit, retry_after: room.retry_after() };
        let crowded_out = if queue.len() < limit { None } else { queue.crowd_out(caller) };
        let ticket = queue.push(limit, caller, sender).map_err(|_| full())?;
        room.waiting.store(queue.len());
        drop(queue);
        if let Some(other) = crowded_out {
            // One that has just left needs no answer.
            drop(other.send(Err(full())));
        }
        Ok(Self { room: Arc::clone(room), ticket, grant })
    }

    async fn granted(mut self, limit: std::time::Duration) -> Grant {
        match tokio::time::timeout(limit, &mut self.grant).await {
            Ok(Ok(grant)) => grant,
            // The room was dropped with its router: the process ends.
            Ok(Err(_)) => Err(Refusal::VariantRemoved),
            Err(_) => {
                Err(Refusal::QueueTimeout { waited: limit, retry_after: self.room.retry_after() })
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.room.queue.lock();
        let left = queue.remove(self.ticket);
        self.room.waiting.store(queue.len());
        drop(queue);
        // Dropped outside the lock: the sender's drop wakes nobody, but may run foreign code one day.
        drop(left);
    }
}

/// Arrivals are counted by every thread for every request: a line of its own.
#[derive(Debug, Default)]
struct CountedArrivals(crossbeam_utils::CachePadded<std::sync::atomic::AtomicU64>);

impl CountedArrivals {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "handoff_model.rs"]
mod handoff_model;
