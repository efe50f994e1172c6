//! The hand-off in every order of a few threads ([`crate::runtime::interleave`]): a freed slot wakes one
//! who waits, none is granted twice, nobody waits beside a free slot. Most scenes are played with a fleet that
//! is scanned and with one that is ranked.
//!
//! What was put in to see whether it is found (each fails at least one scene): not looking again after
//! entering the queue, or the line of an instance; looking for waiters before the slot is given back;
//! choosing outside the queue's lock; taking a slot that has changed since it was seen; a grant that is
//! lost with the waiter that has left; a new table that serves, or turns away, nobody who waits.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use super::tests::{ANYBODY, backend, router, table, variant};
use super::{Affinity, Refusal, Reservation, Variant};
use crate::proxy::router::Router;
use crate::runtime::interleave::{Part, Scene, explore};
use crate::types::Generation;
use crate::types::table::RoutingTable;

/// Switches away from a thread that could go on, per play.
const PREEMPTIONS: u32 = 2;

/// A session that lives at the one instance.
const HOME: Affinity = Affinity::Home(Generation(1), 7);

type Admission = BoxFuture<'static, Result<Reservation, Refusal>>;

/// What is shared by the threads of a scene.
#[derive(Clone)]
struct World {
    router: Arc<Router>,
    /// Of all instances together, once the scene has been played.
    slots: u32,
    held: Arc<Mutex<Vec<Reservation>>>,
    waiting: Arc<Mutex<Vec<Admission>>>,
    refused: Arc<Mutex<Vec<Refusal>>>,
    timers: Handle,
}

impl World {
    /// One instance with `slots`, a queue for `queue_limit`, and `asked` requests that came before.
    fn new(slots: u32, queue_limit: u32, asked: usize) -> Self {
        let world = Self {
            router: router(queue_limit, vec![backend(1, 1, slots)]),
            slots,
            held: Arc::default(),
            waiting: Arc::default(),
            refused: Arc::default(),
            timers: Handle::current(),
        };
        (0..asked).for_each(|_| world.ask(Affinity::None));
        world
    }

    /// The same amid so many instances that take nothing that the choice is by a roster.
    fn amid_many(slots: u32, queue_limit: u32, asked: usize) -> Self {
        let backends = (1..=32).map(|number| backend(number, 1, slots)).collect();
        let world = Self { router: router(queue_limit, backends), ..Self::new(slots, 0, 0) };
        variant(&world.router).backends.iter().skip(1).for_each(|other| other.slot.eject());
        (0..asked).for_each(|_| world.ask(Affinity::None));
        world
    }

    fn part(&self, does: impl FnOnce(&Self) + Send + 'static) -> Part {
        let world = self.clone();
        Box::new(move || {
            let _timers = world.timers.enter();
            does(&world);
        })
    }

    /// A request that takes a slot, waits or is refused.
    fn ask(&self, affinity: Affinity) {
        self.ask_by(variant(&self.router), affinity);
    }

    /// One that is routed by a table that may have been replaced.
    fn ask_by(&self, variant: Arc<Variant>, affinity: Affinity) {
        let admission = async move { variant.admit(ANYBODY, &[], affinity).await };
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
        self.part(|world| world.ask(Affinity::None))
    }

    /// A request whose session lives at the instance.
    fn at_home(&self) -> Part {
        self.part(|world| world.ask(HOME))
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

    /// Settles, lets one after the other finish, and counts: so many served, so many refused.
    fn check(&self, (served, refused): (usize, usize)) {
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
    }
}

/// Plays `parts` of `world` in every order; `ends`: how many are served and refused then, those that
/// came before included.
fn play(world: impl Fn() -> World, parts: impl Fn(&World) -> Vec<Part>, ends: (usize, usize)) {
    let timers =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _timers = timers.enter();
    let played = explore(PREEMPTIONS, || {
        let world = world();
        Scene { parts: parts(&world), check: Box::new(move || world.check(ends)) }
    });
    assert!(played > 20, "only {played} orders");
}

/// Plays `parts` with `asked` requests that came before, with few instances and amid many.
fn play_both(
    (slots, queue_limit, asked): (u32, u32, usize),
    parts: impl Fn(&World) -> Vec<Part>,
    ends: (usize, usize),
) {
    play(|| World::new(slots, queue_limit, asked), &parts, ends);
    play(|| World::amid_many(slots, queue_limit, asked), &parts, ends);
}

#[test]
fn a_slot_freed_while_a_request_enters_the_queue_is_not_overlooked() {
    play_both((1, 8, 1), |w| vec![w.finish_one(), w.request()], (1, 0));
}

#[test]
fn two_who_enter_share_one_freed_slot_in_turn() {
    let parts = |w: &World| vec![w.finish_one(), w.request(), w.request()];
    play_both((1, 8, 1), parts, (2, 0));
}

#[test]
fn two_freed_slots_serve_two_who_wait() {
    play_both((2, 8, 4), |w| vec![w.finish_one(), w.finish_one()], (2, 0));
}

#[test]
fn one_who_leaves_passes_its_turn_on() {
    let parts = |w: &World| vec![w.finish_one(), w.leave_one(), w.request()];
    play_both((1, 8, 3), parts, (2, 0));
}

#[test]
fn the_only_one_who_waits_leaves_no_slot_taken() {
    let parts = |w: &World| vec![w.finish_one(), w.leave_one(), w.request()];
    play_both((1, 8, 2), parts, (1, 0));
}

#[test]
fn the_last_free_slot_goes_to_one() {
    let parts = |w: &World| vec![w.request(), w.request(), w.request()];
    play_both((1, 8, 0), parts, (3, 0));
}

#[test]
fn a_full_queue_takes_no_more_however_many_come() {
    let parts = |w: &World| vec![w.request(), w.request(), w.request()];
    play_both((1, 1, 1), parts, (2, 2));
}

#[test]
fn a_slot_freed_while_a_request_goes_home_is_not_overlooked() {
    play_both((1, 8, 1), |w| vec![w.finish_one(), w.at_home()], (1, 0));
}

#[test]
fn those_at_home_and_those_from_the_queue_share_the_slots() {
    let parts = |w: &World| vec![w.finish_one(), w.at_home(), w.request()];
    play_both((1, 8, 1), parts, (2, 0));
}

#[test]
fn one_who_leaves_its_home_passes_its_turn_on() {
    let world = || {
        let world = World::new(1, 8, 1);
        world.ask(HOME);
        world
    };
    play(world, |w| vec![w.finish_one(), w.leave_one(), w.request()], (1, 0));
}

#[test]
fn a_new_instance_serves_whoever_waits() {
    let world = || World { slots: 2, ..World::new(1, 8, 1) };
    let both = || table(2, 8, vec![backend(1, 1, 1), backend(2, 1, 1)]);
    let parts = |w: &World| vec![w.request(), w.part(move |w| w.router.apply(&both()))];
    play(world, parts, (2, 0));
}

#[test]
fn nobody_waits_for_a_variant_that_is_gone() {
    let gone = || RoutingTable { endpoints: Vec::new(), ..table(2, 8, Vec::new()) };
    let parts = |w: &World| {
        let old = variant(&w.router);
        let late = w.part(move |w| w.ask_by(old, Affinity::None));
        vec![w.part(move |w| w.router.apply(&gone())), late]
    };
    play(|| World::new(1, 8, 1), parts, (1, 1));
}
