//! The simulator's seeds: a few hundred fixed ones, a fresh one, and those that once failed.
//!
//! `FOREBAY_SEEDS=100000 cargo test --release --test simulate many` plays a long run,
//! `FOREBAY_SEED=17` says where it starts, `FOREBAY_TRACE=1` prints the transcript of that one seed.

#![allow(
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "tests run in real time, compare exact counts and print their seeds"
)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay::sim::{Outcome, Profile, run, run_traced};

/// Failures after which no more seeds are played.
const ENOUGH: usize = 20;

/// Seeds that found a bug, or find one that was put in to see whether it is found; each with what it was.
const REGRESSIONS: &[(u64, Profile)] = &[
    // An idle variant kept its instances for ever: its timer was not set while the last request ran.
    (42, Profile::Zero),
    // Variants fell asleep although they had been asked for, because the clock of idleness did not count.
    (35, Profile::Everything),
    // A request that came and went woke nobody.
    (6, Profile::Zero),
    // A manager that had just started took proxies that had not reported yet for gone.
    (26, Profile::Everything),
    // Instances were stopped before every proxy had applied the table without them.
    (0, Profile::Calm),
    // A drain went on past its deadline.
    (9, Profile::Calm),
    // A list that was begun before an instance was granted was taken for proof of its absence.
    (2, Profile::Faults),
    // A termination without an answer was never repeated.
    (20, Profile::Faults),
    // What a dead manager had asked for was neither found nor asked for again.
    (12, Profile::Crashes),
    // A late launch left an instance that nobody knew, and nobody ended it.
    (134, Profile::Everything),
    // Preferred instances left while fallback stayed.
    (1, Profile::Scarcity),
    // A launch that ended late was ignored, and an older list taken for proof of absence.
    (4553, Profile::Everything),
    // One that its provider took away at that moment made up for one whose pool was removed.
    (3626, Profile::Everything),
    // Requests at a proxy that a new manager had not heard yet did not count.
    (3554, Profile::Everything),
    // What a proxy was asked for just before it died nobody can know,
    (10916, Profile::Everything),
    // nor what one was asked for that was cut off until just now.
    (78470, Profile::Everything),
    // A scaling policy that was due at the moment of another event spoke after the round, and took away what
    // that had just launched;
    (24175, Profile::Scarcity),
    (22706, Profile::Everything),
    // and what a timer asked for was about an instance that the event then removed;
    (67106, Profile::Faults),
    (76813, Profile::Interruptions),
    // or spoke over what an operator asked for at that moment.
    (87997, Profile::Operators),
    // A proxy that is forgotten disturbs no fleet.
    (71621, Profile::Everything),
    // Instances of a removed pool left before they were replaced.
    (4, Profile::Operators),
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Plays `count` seeds from `start` on all cores; panics with the first few failures.
fn play(start: u64, count: u64) {
    let next = AtomicU64::new(start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());
    let sums = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let enough = failures.lock().expect("failures").len() >= ENOUGH;
                    if enough || seed >= start.saturating_add(count) {
                        return;
                    }
                    let outcome = run(seed, Profile::of_seed(seed));
                    let figures =
                        [outcome.steps, outcome.actions, outcome.crashes, outcome.simulated_ms];
                    for (sum, figure) in sums.iter().zip(figures) {
                        sum.fetch_add(figure, Ordering::Relaxed);
                    }
                    if outcome.failure.is_some() {
                        failures.lock().expect("failures").push(outcome);
                    }
                }
            });
        }
    });
    let [steps, actions, crashes, ms] = sums.map(AtomicU64::into_inner);
    let hours = ms / 3_600_000;
    println!("{steps} steps, {actions} actions, {crashes} crashes, {hours} simulated hours");
    let mut failures = failures.into_inner().expect("failures");
    failures.sort_by_key(|outcome| outcome.seed);
    if let Some(first) = failures.first() {
        for other in &failures {
            println!(
                "seed {} ({:?}): {}",
                other.seed,
                other.profile,
                other.failure.as_deref().unwrap_or_default()
            );
        }
        panic!(
            "{} of {count} seeds fail (no more are played); the first:\n{first}",
            failures.len()
        );
    }
}

#[test]
fn many_seeds_hold_what_is_always_true() {
    let start = number("FOREBAY_SEED").unwrap_or(0);
    if number("FOREBAY_TRACE").is_some() {
        let outcome = run_traced(start, Profile::of_seed(start), 100_000);
        println!("{}\n{outcome}", outcome.transcript.join("\n"));
    }
    play(start, number("FOREBAY_SEEDS").unwrap_or(300));
}

#[test]
fn a_fresh_seed_holds() {
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970");
    let seed = u64::try_from(now.as_nanos() >> 10).unwrap_or(0);
    println!("fresh seed: FOREBAY_SEED={seed}");
    play(seed, Profile::ALL.len() as u64);
}

#[test]
fn seeds_that_once_failed_hold() {
    for (seed, profile) in REGRESSIONS {
        let outcome = run(*seed, *profile);
        assert!(outcome.failure.is_none(), "{outcome}");
    }
}

#[test]
fn one_seed_is_one_world() {
    for seed in 0..9 {
        let profile = Profile::of_seed(seed);
        assert_eq!(run_traced(seed, profile, 1000), run_traced(seed, profile, 1000));
    }
}
