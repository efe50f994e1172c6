//! The learner against made-up types, and the choice that it feeds against one that knows the speeds.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times of the simulation fit"
)]

use std::collections::{BinaryHeap, VecDeque};

use super::*;
use crate::decision::route::{Candidate, choose};
use crate::types::spec::RoutingStrategy;

/// Uniform draws (splitmix64).
struct Draws(u64);

impl Draws {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }
    fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }
    /// Log-normal with σ = 1 and mean 1.
    fn size(&mut self) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        (normal - 0.5).exp()
    }
}

#[test]
fn nothing_is_predicted_from_too_little() {
    let times = ServiceTimes::default();
    for _ in 0..19 {
        assert!(times.predict(1.0).is_nan() && !times.is_known());
        times.learn(1.0, 1.0);
    }
    for _ in 0..5 {
        times.learn(1.0, 1.0);
    }
    assert!(times.predict(1.0).abs() < 1e-6, "ln 1");
}

#[test]
fn learns_a_speed_and_a_slowdown_and_forgets() {
    let mut draws = Draws(3);
    let (steady, crowded) = (ServiceTimes::default(), ServiceTimes::default());
    for _ in 0..2_000 {
        let in_flight = 1.0 + draws.unit() * 19.0;
        steady.learn(0.5 * draws.size(), in_flight);
        crowded.learn(0.5 * draws.size() * (0.1 * in_flight).exp(), in_flight);
    }
    let ratio = |times: &ServiceTimes| (times.predict(20.0) - times.predict(1.0)).exp();
    assert!((ratio(&steady) - 1.0).abs() < 0.35, "{}", ratio(&steady));
    assert!((4.5..10.0).contains(&ratio(&crowded)), "{}, e^1.9 is 6.7", ratio(&crowded));
    // Twice as slow from now on: noticed within the horizon.
    let before = steady.predict(10.0);
    for _ in 0..1_500 {
        steady.learn(1.0 * draws.size(), 1.0 + draws.unit() * 19.0);
    }
    let grown = (steady.predict(10.0) - before).exp();
    assert!((1.6..2.5).contains(&grown), "{grown}");
}

#[test]
fn nonsense_is_survived() {
    let times = ServiceTimes::default();
    for seconds in [0.0, -1.0, f64::MAX, f64::INFINITY, 1e-300].repeat(20) {
        times.learn(seconds, 5.0);
    }
    assert!(times.predict(5.0).is_finite());
}

/// What chooses in the simulation.
#[derive(Clone, Copy, PartialEq)]
enum Policy {
    Utilization,
    /// Predicted from what was learned on the way.
    Learned,
    /// Predicted from the true speeds.
    Oracle,
}

/// Fleet A of the field notes: 2 copies × 20 slots at speed 1, 4 × 8 slots at half of it; Poisson arrivals,
/// log-normal sizes, a central queue. The mean and the 99th percentile of total time.
fn simulate(policy: Policy, load: f64, seed: u64) -> (f64, f64) {
    let copies: Vec<(u32, f64, usize)> =
        [(20, 1.0, 0); 2].into_iter().chain([(8, 0.5, 1); 4]).collect();
    let learned = [ServiceTimes::default(), ServiceTimes::default()];
    let capacity: f64 = copies.iter().map(|(slots, speed, _)| f64::from(*slots) * speed).sum();
    let mut draws = Draws(seed);
    let mut outstanding = vec![0_u32; copies.len()];
    let mut leaves = BinaryHeap::new();
    let mut waiting: VecDeque<(f64, f64)> = VecDeque::new();
    let mut totals = Vec::new();
    let mut next_arrival = 0.0;
    let key = |time: f64| std::cmp::Reverse((time * 1e9) as u64);
    while totals.len() < 60_000 {
        let leaves_first =
            leaves.peek().is_some_and(|&(at, _, _): &(std::cmp::Reverse<u64>, usize, u64)| {
                at.0 <= key(next_arrival).0
            });
        let now = if leaves_first {
            let (at, copy, started) = leaves.pop().expect("peeked");
            let spent = (at.0 - started) as f64 / 1e9;
            learned[copies[copy].2].learn(spent, f64::from(outstanding[copy]));
            outstanding[copy] -= 1;
            at.0 as f64 / 1e9
        } else {
            let arrived = next_arrival;
            next_arrival += draws.exponential() / (load * capacity);
            waiting.push_back((arrived, draws.size()));
            arrived
        };
        while let Some((arrived, size)) = waiting.front().copied() {
            let known = learned.iter().all(ServiceTimes::is_known);
            let candidates = copies.iter().zip(&outstanding).map(|((slots, speed, kind), n)| {
                let predicted = match policy {
                    Policy::Oracle => (1.0 / speed).ln() as f32,
                    Policy::Learned if known => learned[*kind].predict((n + 1) as f32),
                    _ => f32::NAN,
                };
                Some(Candidate { outstanding: *n, copies: 1, slots: *slots, predicted })
            });
            let draw = draws.bits();
            let strategy = RoutingStrategy::PredictedLatency;
            let Some(chosen) = choose(strategy, candidates, draw) else { break };
            waiting.pop_front();
            outstanding[chosen.position] += 1;
            let done = now + size / copies[chosen.position].1;
            leaves.push((key(done), chosen.position, key(now).0));
            totals.push(done - arrived);
        }
    }
    totals.drain(..5_000);
    let mean = totals.iter().sum::<f64>() / totals.len() as f64;
    totals.sort_by(f64::total_cmp);
    (mean, totals[totals.len() * 99 / 100])
}

#[test]
fn what_is_learned_is_nearly_worth_knowing_the_speeds() {
    for load in [0.5, 0.7, 0.85] {
        let average = |policy| {
            let runs: Vec<_> = (0..3).map(|seed| simulate(policy, load, 11 + seed)).collect();
            let mean = |of: fn(&(f64, f64)) -> f64| runs.iter().map(of).sum::<f64>() / 3.0;
            (mean(|run| run.0), mean(|run| run.1))
        };
        let (oracle, learned, utilization) =
            (average(Policy::Oracle), average(Policy::Learned), average(Policy::Utilization));
        assert!(learned.0 <= oracle.0 * 1.03, "mean at {load}: {learned:?} {oracle:?}");
        assert!(learned.1 <= oracle.1 * 1.05, "p99 at {load}: {learned:?} {oracle:?}");
        assert!(learned.0 <= utilization.0 * 1.01, "{load}: {learned:?} {utilization:?}");
        if load < 0.6 {
            assert!(learned.1 < utilization.1 * 0.9, "{load}: {learned:?} {utilization:?}");
        }
    }
}
