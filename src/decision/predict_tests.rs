//! What is learned from noise, and how well the choice does with it: a small simulation of a mixed fleet
//! behind one queue, driven by fixed seeds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::decision::route::{Candidate, choose};
use crate::types::spec::RoutingStrategy;

/// splitmix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
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
    let service = ServiceTimes::default();
    for _ in 1..LEAST_SAMPLES {
        service.learn(1.0, 1.0);
        assert!(service.predict(1.0).is_nan() && !service.is_known());
    }
    service.learn(1.0, 1.0);
    assert!(service.is_known());
    assert!((service.predict(1.0) - 1.0).abs() < 1e-6);
}

/// t = 0.5 + 0.1·m under log-normal noise, by twenty seeds.
#[test]
fn a_line_is_found_through_noise() {
    let off = |seed| {
        let mut random = Random(seed);
        let service = ServiceTimes::default();
        let (mut low, mut high) = (0.0, 0.0);
        for n in 0..6_000 {
            let load = 1.0 + random.unit() * 19.0;
            service.learn((0.5 + 0.1 * load) * random.size(), load);
            if n >= 1_000 {
                low += f64::from(service.predict(2.0));
                high += f64::from(service.predict(18.0));
            }
        }
        // What the ceiling takes off is the same share of both: their ratio is the truth's.
        let truth = (0.5 + 1.8) / (0.5 + 0.2);
        high / low / truth - 1.0
    };
    let offs: Vec<f64> = (0..20).map(off).collect();
    let bias = offs.iter().sum::<f64>() / offs.len() as f64;
    assert!(bias.abs() < 0.06, "{bias}");
    assert!(offs.iter().all(|off| off.abs() < 0.2), "{offs:?}");
}

#[test]
fn one_mad_sample_moves_little_even_if_it_is_the_first() {
    for mad_at in [0, 100] {
        let service = ServiceTimes::default();
        for n in 0..200 {
            let t = if n == mad_at { 80_000.0 } else { 1.0 };
            service.learn(t, 1.0);
        }
        let predicted = service.predict(1.0);
        assert!((1.0..1.1).contains(&predicted), "{mad_at}: {predicted}");
    }
}

#[test]
fn a_type_that_became_ten_times_slower_or_faster_is_believed_within_the_horizon() {
    for (before, after) in [(1.0, 10.0), (10.0, 1.0)] {
        let service = ServiceTimes::default();
        for _ in 0..1_000 {
            service.learn(before, 3.0);
        }
        for _ in 0..1_200 {
            service.learn(after, 3.0);
        }
        let predicted = f64::from(service.predict(3.0));
        assert!(
            (after * 0.9..after * 1.5).contains(&predicted),
            "{before} to {after}: {predicted}"
        );
    }
}

proptest! {
    #[test]
    fn predictions_are_sane_whatever_was_learned(
        samples in proptest::collection::vec((proptest::num::f64::ANY, proptest::num::f64::ANY), 0..200),
        a in 1.0_f32..1e6, b in 1.0_f32..1e6,
    ) {
        let service = ServiceTimes::default();
        for (seconds, in_flight) in &samples {
            service.learn(*seconds, *in_flight);
        }
        let (few, many) = (service.predict(a.min(b)), service.predict(a.max(b)));
        if samples.len() < LEAST_SAMPLES {
            prop_assert!(few.is_nan());
        } else {
            prop_assert!(few > 0.0 && few <= many && many.is_finite(), "{} {}", few, many);
        }
    }
}

/// A type of the pretended fleet: `copies` instances of one copy each.
#[derive(Clone, Copy)]
struct Kind {
    copies: u32,
    slots: u32,
    /// Seconds that a request of size 1 takes alone, and more for each other in flight as it is sent.
    base: f64,
    slope: f64,
}

/// 2 copies of 20 slots at speed 1, and 4 of 8 slots at speed ½.
const FLEET_A: [Kind; 2] = [
    Kind { copies: 2, slots: 20, base: 1.0, slope: 0.0 },
    Kind { copies: 4, slots: 8, base: 2.0, slope: 0.0 },
];

/// A fast type that slows down with company until the slow one is the better choice.
const FLEET_CURVED: [Kind; 2] = [
    Kind { copies: 2, slots: 20, base: 0.5, slope: 0.1 },
    Kind { copies: 4, slots: 8, base: 1.0, slope: 0.05 },
];

#[derive(Clone, Copy, PartialEq)]
enum Knows {
    Nothing,
    Learns,
    Truth,
}

struct Copy {
    kind: usize,
    outstanding: u32,
}

/// A request under way, by when it ends (in whole nanoseconds).
type Ending = Reverse<(u64, usize, u64, u32, u64)>;

/// Latencies of `count` requests, sorted; each run of the same seed has the same requests.
fn run(fleet: &[Kind; 2], rate: f64, knows: Knows, count: usize) -> Vec<f64> {
    let strategy = match knows {
        Knows::Nothing => RoutingStrategy::LeastUtilization,
        Knows::Learns | Knows::Truth => RoutingStrategy::PredictedLatency,
    };
    let learned = [ServiceTimes::default(), ServiceTimes::default()];
    let mut copies: Vec<Copy> = (0..2)
        .flat_map(|kind| (0..fleet[kind].copies).map(move |_| Copy { kind, outstanding: 0 }))
        .collect();
    let mut random = Random(11);
    let mut draws = Random(99);
    let mut endings: BinaryHeap<Ending> = BinaryHeap::new();
    let mut waiting: VecDeque<(f64, f64)> = VecDeque::new();
    let mut latencies = Vec::new();
    let mut arrival = 0.0;
    let mut arrived = 0;
    let warm_up = count / 10;
    while latencies.len() < count {
        let now = match endings.peek() {
            Some(Reverse((end, ..))) if *end as f64 / 1e9 <= arrival => {
                let Some(Reverse((end, at, sent, began, _))) = endings.pop() else { break };
                let kind = copies[at].kind;
                copies[at].outstanding -= 1;
                let in_flight =
                    f64::midpoint(f64::from(began), f64::from(copies[at].outstanding + 1));
                learned[kind].learn((end - sent) as f64 / 1e9, in_flight);
                end as f64 / 1e9
            }
            _ => {
                waiting.push_back((arrival, random.size()));
                let now = arrival;
                arrived += 1;
                arrival += random.exponential() / rate;
                now
            }
        };
        while let Some((since, size)) = waiting.front().copied() {
            let can_rank = knows == Knows::Truth || learned.iter().all(ServiceTimes::is_known);
            let candidates = copies.iter().map(|copy| {
                let kind = &fleet[copy.kind];
                let others = f64::from(copy.outstanding);
                #[allow(clippy::cast_possible_truncation, reason = "as precise as the candidate")]
                let predicted = match knows {
                    _ if !can_rank => f32::NAN,
                    Knows::Truth => (kind.base + kind.slope * others) as f32,
                    _ => learned[copy.kind].predict(others as f32 + 1.0),
                };
                Some(Candidate {
                    outstanding: copy.outstanding,
                    copies: 1,
                    slots: kind.slots,
                    predicted,
                })
            });
            let Some(chosen) = choose(strategy, candidates, draws.bits()) else { break };
            waiting.pop_front();
            let copy = &mut copies[chosen.position];
            let kind = &fleet[copy.kind];
            let service = size * (kind.base + kind.slope * f64::from(copy.outstanding));
            copy.outstanding += 1;
            let began = copy.outstanding;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let nanos = |t: f64| (t * 1e9) as u64;
            endings.push(Reverse((
                nanos(now + service),
                chosen.position,
                nanos(now),
                began,
                arrived,
            )));
            if arrived > warm_up as u64 {
                latencies.push(now + service - since);
            }
        }
    }
    latencies.sort_by(f64::total_cmp);
    latencies
}

fn mean(latencies: &[f64]) -> f64 {
    latencies.iter().sum::<f64>() / latencies.len() as f64
}

fn p99(latencies: &[f64]) -> f64 {
    latencies[latencies.len() * 99 / 100]
}

/// Fleet A at three loads: within a few percent of knowing the speeds, without any tuning.
#[test]
fn the_choice_does_as_well_as_one_that_knows_the_speeds() {
    let capacity: f64 = FLEET_A.iter().map(|k| f64::from(k.copies * k.slots) / k.base).sum();
    for share in [0.5, 0.7, 0.85] {
        let of = |knows| run(&FLEET_A, capacity * share, knows, 40_000);
        let (blind, learned, ideal) = (of(Knows::Nothing), of(Knows::Learns), of(Knows::Truth));
        let figures = [&blind, &learned, &ideal].map(|l| (mean(l), p99(l)));
        assert!(p99(&learned) < p99(&ideal) * 1.05, "{share}: {figures:?}");
        assert!(mean(&learned) < mean(&ideal) * 1.03, "{share}: {figures:?}");
        assert!(mean(&learned) < mean(&blind), "{share}: {figures:?}");
        if share < 0.6 {
            assert!(p99(&learned) < p99(&blind) * 0.9, "{share}: {figures:?}");
        }
    }
}

/// Where company slows a copy down, the slope is learned as well.
#[test]
fn the_choice_does_as_well_as_one_that_knows_the_curve() {
    for rate in [8.0, 16.0, 24.0] {
        let of = |knows| run(&FLEET_CURVED, rate, knows, 40_000);
        let (learned, ideal) = (mean(&of(Knows::Learns)), mean(&of(Knows::Truth)));
        assert!(learned < ideal * 1.05, "{rate}: {learned} and {ideal}");
    }
}
