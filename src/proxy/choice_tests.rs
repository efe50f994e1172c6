//! The roster against the scan: the same choices, whatever happens to the slots meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::decision::route::Load;
use crate::runtime::interleave::{Part, Scene, explore};
use crate::runtime::rng;

const STRATEGIES: [RoutingStrategy; 3] = [
    RoutingStrategy::LeastOutstandingRequests,
    RoutingStrategy::LeastUtilization,
    RoutingStrategy::Random,
];
/// Enough for a roster of two shards.
const MANY: usize = FEW + 5;
const LARGEST_LIMIT: u32 = 5;

/// The choice by a new snapshot: these slots, with so many copies behind the one at `position`.
fn choice(strategy: RoutingStrategy, slots: &[Arc<Slot>], copies: impl Fn(usize) -> u32) -> Choice {
    let lane = |(position, slot): (usize, &Arc<Slot>)| Lane {
        slot: Arc::clone(slot),
        times: Arc::default(),
        generation: Generation(position as u64),
        copies: copies(position),
    };
    Choice::among(strategy, slots.iter().enumerate().map(lane).collect())
}

fn slots(limit: u32) -> Vec<Arc<Slot>> {
    let slots: Vec<Arc<Slot>> = (0..MANY).map(|_| Arc::default()).collect();
    for slot in &slots {
        slot.set_limit(limit);
    }
    slots
}

/// What each lane would be chosen by, read from the slots themselves.
fn loads(choice: &Choice) -> Vec<Option<Load>> {
    let load = |lane: &Lane| {
        let seen = lane.slot.observe().filter(|seen| seen.outstanding < seen.limit)?;
        Some(Load::of(choice.strategy, &lane.candidate(seen, choice.strategy)))
    };
    choice.lanes.iter().map(load).collect()
}

/// So many copies behind each slot, different from slot to slot and from `seed` to `seed`.
fn copies(position: usize, seed: usize) -> u32 {
    [1, 2, 3][(position + seed) % 3]
}

fn is_in_step(choice: &Choice) -> bool {
    let Some(roster) = &choice.roster else { return choice.strategy == RoutingStrategy::Random };
    loads(choice).iter().enumerate().all(|(position, load)| roster.ranks(position, *load))
}

#[derive(Debug, Clone)]
enum Step {
    Take(u64),
    TakeOutside(u64, u64),
    TakeByKey(u64),
    GiveBack(usize),
    SetLimit(usize, u32),
    Eject(usize),
    Readmit(usize),
    Close(usize),
    Open(usize),
    /// Another snapshot: the strategy, and whose copies change.
    Replace(usize, usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let at = 0..MANY;
    prop_oneof![
        12 => any::<u64>().prop_map(Step::Take),
        1 => (any::<u64>(), 0..MANY as u64).prop_map(|(draw, not)| Step::TakeOutside(draw, not)),
        1 => any::<u64>().prop_map(Step::TakeByKey),
        8 => any::<usize>().prop_map(Step::GiveBack),
        2 => (at.clone(), 0..=LARGEST_LIMIT).prop_map(|(at, limit)| Step::SetLimit(at, limit)),
        1 => at.clone().prop_map(Step::Eject),
        1 => at.clone().prop_map(Step::Readmit),
        1 => at.clone().prop_map(Step::Close),
        1 => at.prop_map(Step::Open),
        1 => (0..STRATEGIES.len(), 0_usize..3).prop_map(|(at, seed)| Step::Replace(at, seed)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_roster_chooses_as_the_scan_would(
        steps in proptest::collection::vec(any_step(), 1..400),
    ) {
        let slots = slots(2);
        let mut now = choice(STRATEGIES[0], &slots, |position| copies(position, 0));
        now.seat();
        let mut held: Vec<usize> = Vec::new();
        for step in steps {
            let before = loads(&now);
            let least = before.iter().flatten().min().copied();
            match step {
                Step::Take(draw) => {
                    let taken = now.take(&[], || draw);
                    prop_assert_eq!(taken.and_then(|at| before[at]), least);
                    held.extend(taken);
                }
                Step::TakeOutside(draw, not) => {
                    let taken = now.take(&[Generation(not)], || draw);
                    prop_assert!(taken.is_none_or(|at| at as u64 != not && before[at].is_some()));
                    held.extend(taken);
                }
                Step::TakeByKey(key) => {
                    let taken = now.take_by_key(key);
                    prop_assert!(taken.is_some() == least.is_some());
                    held.extend(taken);
                }
                Step::GiveBack(which) if !held.is_empty() => {
                    slots[held.swap_remove(which % held.len())].give_back();
                }
                Step::GiveBack(_) => {}
                Step::SetLimit(at, limit) => {
                    slots[at].set_limit(limit);
                }
                Step::Eject(at) => slots[at].eject(),
                Step::Readmit(at) => slots[at].readmit(),
                Step::Close(at) => slots[at].close(),
                Step::Open(at) => slots[at].open(),
                Step::Replace(at, seed) => {
                    let next = choice(STRATEGIES[at], &slots, |position| copies(position, seed));
                    now.retire();
                    // Between the two, and for whoever comes late, there is the scan.
                    let taken = now.take(&[], || 7);
                    prop_assert_eq!(taken.and_then(|at| before[at]), least);
                    held.extend(taken);
                    next.seat();
                    let before = loads(&now);
                    let taken = now.take(&[], || 7);
                    prop_assert_eq!(
                        taken.and_then(|at| before[at]),
                        before.iter().flatten().min().copied()
                    );
                    held.extend(taken);
                    now = next;
                }
            }
            prop_assert!(is_in_step(&now));
        }
        for at in held {
            slots[at].give_back();
        }
        prop_assert!(slots.iter().all(|slot| slot.outstanding() == 0) && is_in_step(&now));
    }
}

/// How often each copy is chosen by lone requests.
fn chosen(choice: &Choice, slots: &[Arc<Slot>], draws: &mut fastrand::Rng) -> [usize; MANY] {
    let mut chosen = [0; MANY];
    for _ in 0..10_000 * MANY {
        let at = choice.take(&[], || draws.u64(..)).expect("some are free");
        chosen[at] += 1;
        slots[at].give_back();
    }
    chosen
}

/// Though a thread chooses in one shard for a while.
#[test]
fn equals_are_chosen_equally_often() {
    let slots = slots(4);
    let choice = choice(STRATEGIES[0], &slots, |_| 1);
    choice.seat();
    let mut draws = fastrand::Rng::with_seed(3);
    for held in [0, 2 * MANY] {
        let held: Vec<_> = (0..held).filter_map(|_| choice.take(&[], || draws.u64(..))).collect();
        let chosen = chosen(&choice, &slots, &mut draws);
        assert!(chosen.iter().all(|n| (9_000..11_000).contains(n)), "{chosen:?}");
        for at in held {
            slots[at].give_back();
        }
    }
}

/// Wherever those lie that take nothing.
#[test]
fn at_random_all_that_are_free_are_equally_likely() {
    let slots = slots(1);
    let choice = choice(RoutingStrategy::Random, &slots, |_| 1);
    choice.seat();
    let is_out = |at: usize| at.is_multiple_of(2) && at > 0;
    (0..MANY).filter(|at| is_out(*at)).for_each(|at| slots[at].eject());
    let chosen = chosen(&choice, &slots, &mut fastrand::Rng::with_seed(3));
    let free = (0..MANY).filter(|at| !is_out(*at)).count();
    for (at, times) in chosen.into_iter().enumerate() {
        let fair = if is_out(at) { 0 } else { 10_000 * MANY / free };
        assert!(times.abs_diff(fair) <= fair / 20, "{at}: {times} of {fair}");
    }
}

/// Whoever comes late to a roster that nobody keeps up to date any more sees what is so.
#[test]
fn a_retired_roster_is_not_asked() {
    let slots = slots(1);
    let choice = choice(STRATEGIES[0], &slots, |_| 1);
    choice.seat();
    assert_eq!((0..2 * MANY).filter_map(|_| choice.take(&[], || 0)).count(), MANY);
    choice.retire();
    for (at, slot) in slots.iter().enumerate() {
        slot.give_back();
        assert_eq!(choice.take(&[], || 0), Some(at));
    }
}

/// Two that choose at the same time: one takes the idle copy, which is full then, and the other not the busiest,
/// though it is in the same shard.
#[test]
fn what_a_shard_told_is_looked_at_once_more() {
    let [idle, busier, busiest] = [0, 1, 2];
    explore(2, move || {
        let slots = slots(LARGEST_LIMIT);
        let choice = Arc::new(choice(STRATEGIES[0], &slots, |_| 1));
        slots[idle].set_limit(1);
        slots[busiest + 1..].iter().for_each(|slot| slot.eject());
        choice.seat();
        for at in [busier, busiest, busiest] {
            assert!(slots[at].try_take(slots[at].observe().expect("it is open")));
        }
        let take = || -> Part {
            let choice = Arc::clone(&choice);
            Box::new(move || assert!(choice.take(&[], rng::draw).is_some()))
        };
        let check = move || {
            assert_eq!([idle, busier, busiest].map(|at| slots[at].outstanding()), [1, 2, 2]);
        };
        Scene { parts: vec![take(), take()], check: Box::new(check) }
    });
}

/// A fleet that shrinks to a few is scanned again, and its slots have left their seats.
#[test]
fn few_copies_have_no_roster() {
    let slots = slots(1);
    let many = choice(STRATEGIES[0], &slots, |_| 1);
    many.seat();
    let few = choice(STRATEGIES[0], &slots[..FEW], |_| 1);
    many.retire();
    few.seat();
    assert!(few.roster.is_none());
    assert_eq!((0..MANY).filter_map(|_| few.take(&[], || 0)).count(), FEW);
    assert!(few.take(&[], || 0).is_none());
}

/// Two threads that take and give back, one that changes limits, ejects and readmits, and one that puts a
/// new snapshot in place of the last: no slot is over the largest limit, and in the end all agree.
#[test]
fn the_roster_and_the_slots_agree_after_a_storm() {
    let slots = slots(LARGEST_LIMIT);
    let published = arc_swap::ArcSwap::from_pointee(choice(STRATEGIES[0], &slots, |_| 1));
    published.load().seat();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let takers: Vec<_> = (0..2_u64)
            .map(|seed| {
                let (slots, published) = (&slots, &published);
                scope.spawn(move || {
                    let mut draws = fastrand::Rng::with_seed(seed);
                    let mut held = Vec::new();
                    for _ in 0..30_000 {
                        if let Some(at) = published.load().take(&[], || draws.u64(..)) {
                            assert!((1..=LARGEST_LIMIT).contains(&slots[at].outstanding()));
                            held.push(at);
                        }
                        if draws.usize(..60) < held.len() {
                            slots[held.swap_remove(draws.usize(..held.len()))].give_back();
                        }
                    }
                    for at in held {
                        slots[at].give_back();
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut draws = fastrand::Rng::with_seed(7);
            while !done.load(Ordering::Relaxed) {
                let slot = &slots[draws.usize(..MANY)];
                match draws.u8(..8) {
                    0..4 => {
                        slot.set_limit(draws.u32(0..=LARGEST_LIMIT));
                    }
                    4 => slot.eject(),
                    _ => slot.readmit(),
                }
            }
        });
        scope.spawn(|| {
            let mut draws = fastrand::Rng::with_seed(8);
            while !done.load(Ordering::Relaxed) {
                let strategy = STRATEGIES[draws.usize(..STRATEGIES.len())];
                let seed = draws.usize(..3);
                let next = choice(strategy, &slots, |position| copies(position, seed));
                published.load().retire();
                next.seat();
                published.store(Arc::new(next));
                std::thread::yield_now();
            }
        });
        for taker in takers {
            taker.join().expect("no panic");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(slots.iter().all(|slot| slot.outstanding() == 0));
    assert!(is_in_step(&published.load()));
}
