//! The hand-off in every order of a few threads ([`crate::runtime::interleave`]): a freed slot wakes one
//! who waits, none is granted twice, nobody waits beside a free slot.
//!
//! What was put in to see whether it is found (each fails at least one scene): not looking again after
//! entering the queue, or the line of an instance; looking for waiters before the slot is given back;
//! choosing outside the queue's lock; taking a slot that has changed since it was seen; a grant that is
//! lost with the waiter that has left; a new table that serves, or turns away, nobody who waits.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::tests::{ANYBODY, backend, router, table, variant};
use super::{Affinity, Refusal, Reservation};
use crate::proxy::router::Router;
use crate::runtime::interleave::{Part, Scene, explore};
use crate::types::Generation;

/// Switches away from a thread that could go on, per play.
const PREEMPTIONS: u32 = 2;

type Admission = BoxFuture<'static, Result<Reservation, Refusal>>;

/// What is shared by the threads of a scene.
#[derive(Clone)]
struct World {
    router: Arc<Router>,
    slots: u32,
    held: Arc<Mutex<Vec<Reservation>>>,
    waiting: Arc<Mutex<Vec<Admission>>>,
    refused: Arc<Mutex<Vec<Refusal>>>,
    timers: tokio::runtime::Handle,
}

impl World {
    /// One instance with `slots`, and a queue for `queue_limit`.
    fn new(timers: &tokio::runtime::Runtime, slots: u32, queue_limit: u32) -> Self {
        Self {
            router: router(queue_limit, vec![backend(1, 1, slots)]),
            slots,
            held: Arc::default(),
            waiting: Arc::default(),
            refused: Arc::default(),
            timers: timers.handle().clone(),
        }
    }

    fn part(&self, does: impl FnOnce(&Self) + Send + 'static) -> Part {
        let world = self.clone();
        Box::new(move || {
            let _timers = world.timers.enter();
            does(&world);
        })
    }

    /// A request that takes a slot, waits or is refused.
    fn ask(&self, tried: &'static [Generation], affinity: Affinity) {
        let _timers = self.timers.enter();
        let variant = variant(&self.router);
        let admission = async move { variant.admit(ANYBODY, tried, affinity).await };
        self.look(admission.boxed());
    }

    fn look(&self, mut admission: Admission) {
        match admission.as_mut().now_or_never() {
            Some(Ok(reservation)) => self.held.lock().expect("no panic").push(reservation),
            Some(Err(refusal)) => self.refused.lock().expect("no panic").push(refusal),
            None => self.waiting.lock().expect("no panic").push(admission),
        }
    }

    fn request(&self) -> Part {
        self.part(|world| world.ask(&[], Affinity::None))
    }

    /// A request whose session lives at the instance.
    fn at_home(&self) -> Part {
        self.part(|world| world.ask(&[], Affinity::Home(Generation(1), 7)))
    }

    fn finish_one(&self) -> Part {
        let reservation = self.held.lock().expect("no panic").pop().expect("one is held");
        self.part(move |_| drop(reservation))
    }

    /// The first who waits leaves.
    fn leave_one(&self) -> Part {
        let admission = self.waiting.lock().expect("no panic").remove(0);
        self.part(move |_| drop(admission))
    }

    /// All who were granted a slot take it; then as many hold one as can, and the rest wait.
    fn settle(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().expect("no panic"));
        for admission in waiting {
            self.look(admission);
        }
        let held = u32::try_from(self.held.lock().expect("no panic").len()).expect("few");
        assert_eq!(self.router.outstanding(), u64::from(held), "each slot is held by one guard");
        assert!(held <= self.slots, "{held} of {} slots", self.slots);
        let waiting = self.waiting.lock().expect("no panic").len();
        assert!(waiting == 0 || held == self.slots, "{waiting} wait, {held} of {}", self.slots);
    }

    /// Settles, lets one after the other finish, and counts.
    fn check(self, served: usize, refused: usize) -> Box<dyn FnOnce()> {
        Box::new(move || {
            let _timers = self.timers.enter();
            self.settle();
            let mut finished = 0;
            loop {
                let held = self.held.lock().expect("no panic").pop();
                if held.is_none() {
                    break;
                }
                drop(held);
                finished += 1;
                self.settle();
            }
            assert_eq!(finished, served, "requests served");
            assert_eq!(self.refused.lock().expect("no panic").len(), refused, "requests refused");
            assert_eq!(self.router.outstanding(), 0);
            assert_eq!(self.router.report().variants.iter().map(|v| v.queued).sum::<u32>(), 0);
        })
    }
}

fn play(scene: impl Fn(&tokio::runtime::Runtime) -> Scene) {
    let timers =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let played = explore(PREEMPTIONS, || scene(&timers));
    assert!(played > 20, "only {played} orders");
}

#[test]
fn a_slot_freed_while_a_request_enters_the_queue_is_not_overlooked() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        world.ask(&[], Affinity::None);
        let parts = vec![world.finish_one(), world.request()];
        Scene { parts, check: world.check(1, 0) }
    });
}

#[test]
fn two_who_enter_share_one_freed_slot_in_turn() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        world.ask(&[], Affinity::None);
        let parts = vec![world.finish_one(), world.request(), world.request()];
        Scene { parts, check: world.check(2, 0) }
    });
}

#[test]
fn two_freed_slots_serve_two_who_wait() {
    play(|timers| {
        let world = World::new(timers, 2, 8);
        (0..4).for_each(|_| world.ask(&[], Affinity::None));
        let parts = vec![world.finish_one(), world.finish_one()];
        Scene { parts, check: world.check(2, 0) }
    });
}

#[test]
fn one_who_leaves_passes_its_turn_on() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        (0..3).for_each(|_| world.ask(&[], Affinity::None));
        let parts = vec![world.finish_one(), world.leave_one(), world.request()];
        Scene { parts, check: world.check(2, 0) }
    });
}

#[test]
fn the_only_one_who_waits_leaves_no_slot_taken() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        (0..2).for_each(|_| world.ask(&[], Affinity::None));
        let parts = vec![world.finish_one(), world.leave_one(), world.request()];
        Scene { parts, check: world.check(1, 0) }
    });
}

#[test]
fn the_last_free_slot_goes_to_one() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        let parts = vec![world.request(), world.request(), world.request()];
        Scene { parts, check: world.check(3, 0) }
    });
}

#[test]
fn a_full_queue_takes_no_more_however_many_come() {
    play(|timers| {
        let world = World::new(timers, 1, 1);
        world.ask(&[], Affinity::None);
        let parts = vec![world.request(), world.request(), world.request()];
        Scene { parts, check: world.check(2, 2) }
    });
}

#[test]
fn a_slot_freed_while_a_request_goes_home_is_not_overlooked() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        world.ask(&[], Affinity::None);
        let parts = vec![world.finish_one(), world.at_home()];
        Scene { parts, check: world.check(1, 0) }
    });
}

#[test]
fn those_at_home_and_those_from_the_queue_share_the_slots() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        world.ask(&[], Affinity::None);
        let parts = vec![world.finish_one(), world.at_home(), world.request()];
        Scene { parts, check: world.check(2, 0) }
    });
}

#[test]
fn one_who_leaves_its_home_passes_its_turn_on() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        world.ask(&[], Affinity::None);
        world.ask(&[], Affinity::Home(Generation(1), 7));
        let parts = vec![world.finish_one(), world.leave_one(), world.request()];
        Scene { parts, check: world.check(1, 0) }
    });
}

#[test]
fn a_new_instance_serves_whoever_waits() {
    play(|timers| {
        let world = World { slots: 2, ..World::new(timers, 1, 8) };
        world.ask(&[], Affinity::None);
        let apply = world.part(|world| {
            world.router.apply(&table(2, 8, vec![backend(1, 1, 1), backend(2, 1, 1)]));
        });
        let parts = vec![world.request(), apply];
        Scene { parts, check: world.check(2, 0) }
    });
}

#[test]
fn nobody_waits_for_a_variant_that_is_gone() {
    play(|timers| {
        let world = World::new(timers, 1, 8);
        world.ask(&[], Affinity::None);
        let gone = table(2, 8, Vec::new());
        let gone = crate::types::table::RoutingTable { endpoints: Vec::new(), ..gone };
        let variant = variant(&world.router);
        let late = world.part(move |world| {
            let admission = async move { variant.admit(ANYBODY, &[], Affinity::None).await };
            world.look(admission.boxed());
        });
        let parts = vec![world.part(move |world| world.router.apply(&gone)), late];
        Scene { parts, check: world.check(1, 1) }
    });
}
