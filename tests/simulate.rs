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

/// Seeds that once found a bug, each with what it was.
const REGRESSIONS: &[(u64, Profile)] = &[];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Plays `count` seeds from `start` on all cores; panics with the first few failures.
fn play(start: u64, count: u64) {
    let next = AtomicU64::new(start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());
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
                    if outcome.failure.is_some() {
                        failures.lock().expect("failures").push(outcome);
                    }
                }
            });
        }
    });
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
