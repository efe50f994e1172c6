//! Choosing a copy: one exact scan over every candidate, for each strategy. Where there are many,
//! [`super::ranking`] keeps them in the same order.
//!
//! n is `outstanding` (from the choice to the last byte), k `copies`, L `max_concurrency` of one copy.
//! A candidate with n ≥ k·L has no free slot and is never chosen: its excess waits in the proxy
//! ([`super::admit`]), where it can still go to whichever copy frees up first.
//!
//! | strategy | chooses the least |
//! |---|---|
//! | `LEAST_OUTSTANDING_REQUESTS` | n / k |
//! | `LEAST_UTILIZATION` | (n + 1) / (k·L) |
//! | `PREDICTED_LATENCY` | predicted service time at n + 1 in flight, ties by utilization |
//! | `RANDOM` | any, all equally likely |
//!
//! Ratios are compared by cross-multiplication, so the choice is exact. Among equals each is equally
//! likely (reservoir sampling from one random draw): a fixed order would send every lone request to the
//! same copy.
//!
//! Properties, each with its test: P1 the choice is a least one by the formula; P2 it has a free slot;
//! P3 equals are chosen equally often; P4 none is chosen only if none has a free slot.

use crate::types::spec::RoutingStrategy;

/// What the choice needs to know of one candidate: an instance's copies of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Requests at it now.
    pub outstanding: u32,
    /// Model copies, at least 1.
    pub copies: u32,
    /// Requests that all its copies together take at once.
    pub slots: u32,
    /// Predicted service time of one more request, on any scale that keeps the order; `NaN` where too
    /// little is known. Only `PREDICTED_LATENCY` looks at it.
    pub predicted: f32,
}

/// What the choice goes by, the less the better: a ratio, compared without rounding.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    numerator: u32,
    denominator: u32,
}

impl Load {
    /// Less than any, or as little.
    pub const IDLE: Self = Self { numerator: 0, denominator: 1 };
    /// More than any that can be chosen.
    pub const FULL: Self = Self { numerator: 1, denominator: 0 };

    /// That of a candidate with a free slot. For `PREDICTED_LATENCY` it only parts those whose prediction
    /// is the same.
    #[must_use]
    #[inline]
    pub fn of(strategy: RoutingStrategy, candidate: &Candidate) -> Self {
        let (numerator, denominator) = match strategy {
            RoutingStrategy::Random => (0, 1),
            RoutingStrategy::LeastOutstandingRequests => (candidate.outstanding, candidate.copies),
            RoutingStrategy::LeastUtilization | RoutingStrategy::PredictedLatency => {
                (candidate.outstanding + 1, candidate.slots)
            }
        };
        Self { numerator, denominator }
    }

    /// As one word, for other threads to read.
    #[must_use]
    #[inline]
    pub fn to_bits(self) -> u64 {
        u64::from(self.numerator) << 32 | u64::from(self.denominator)
    }

    /// The load that [`Load::to_bits`] made `bits` of.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "it is two halves of a word")]
    pub fn from_bits(bits: u64) -> Self {
        Self { numerator: (bits >> 32) as u32, denominator: bits as u32 }
    }
}

impl Ord for Load {
    #[inline]
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let product = |a: u32, b: u32| u64::from(a) * u64::from(b);
        product(self.numerator, other.denominator).cmp(&product(other.numerator, self.denominator))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Load {}

fn compare(strategy: RoutingStrategy, a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let by_load = || Load::of(strategy, a).cmp(&Load::of(strategy, b));
    if strategy == RoutingStrategy::PredictedLatency {
        // `NaN` compares as equal: what is not known yet does not decide.
        let predicted = a.predicted.partial_cmp(&b.predicted);
        predicted.unwrap_or(std::cmp::Ordering::Equal).then_with(by_load)
    } else {
        by_load()
    }
}

/// Who gets the next request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Its position among the candidates.
    pub position: usize,
    /// The candidate as the choice saw it: whoever takes the slot does so only if this still holds.
    pub candidate: Candidate,
}

/// The candidate that gets the next request; `None` when none has a free slot. Positions that hold
/// `None` are passed over. `draw` is uniform over all of `u64`.
pub fn choose(
    strategy: RoutingStrategy,
    candidates: impl Iterator<Item = Option<Candidate>>,
    draw: u64,
) -> Option<Chosen> {
    let mut best: Option<(usize, Candidate)> = None;
    let mut ties = 1;
    let mut draws = Draws(draw);
    for (position, candidate) in candidates.enumerate() {
        let Some(candidate) = candidate.filter(|c| c.outstanding < c.slots) else { continue };
        let order = match &best {
            None => std::cmp::Ordering::Less,
            Some((_, held)) => compare(strategy, &candidate, held),
        };
        match order {
            std::cmp::Ordering::Less => {
                best = Some((position, candidate));
                ties = 1;
            }
            std::cmp::Ordering::Equal => {
                ties += 1;
                if below(ties, draws.next()) == 0 {
                    best = Some((position, candidate));
                }
            }
            std::cmp::Ordering::Greater => {}
        }
    }
    best.map(|(position, candidate)| Chosen { position, candidate })
}

/// As many draws as ties need out of the one that was handed in (splitmix64).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What a draw that is uniform over all of `u64` comes to below `bound`, up to a bias of `bound`/2⁶⁴.
#[must_use]
#[inline]
pub fn below(bound: usize, draw: u64) -> usize {
    usize::try_from((u128::from(draw) * bound as u128) >> 64).unwrap_or(0)
}

/// Which of several weighted alternatives a draw falls on; `None` when all weights are 0.
#[must_use]
pub fn choose_weighted(weights: impl Iterator<Item = f64> + Clone, draw: u64) -> Option<usize> {
    let total: f64 = weights.clone().sum();
    if total <= 0.0 {
        return None;
    }
    // 53 bits fill a double's mantissa: uniform in [0, total).
    let mut left = (draw >> 11) as f64 / (1_u64 << 53) as f64 * total;
    let mut last = None;
    for (position, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = Some(position);
            if left < weight {
                return last;
            }
            left -= weight;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STRATEGIES: [RoutingStrategy; 4] = [
        RoutingStrategy::LeastOutstandingRequests,
        RoutingStrategy::Random,
        RoutingStrategy::LeastUtilization,
        RoutingStrategy::PredictedLatency,
    ];

    fn candidate(outstanding: u32, copies: u32, per_copy: u32) -> Candidate {
        Candidate { outstanding, copies, slots: copies * per_copy, predicted: f32::NAN }
    }

    /// The formula, written down naively in floating point over small exact numbers.
    fn naive_key(strategy: RoutingStrategy, c: &Candidate) -> (f64, f64) {
        let utilization = f64::from(c.outstanding + 1) / f64::from(c.slots);
        match strategy {
            RoutingStrategy::Random => (0.0, 0.0),
            RoutingStrategy::LeastOutstandingRequests => {
                (f64::from(c.outstanding) / f64::from(c.copies), 0.0)
            }
            RoutingStrategy::LeastUtilization => (utilization, 0.0),
            RoutingStrategy::PredictedLatency => (f64::from(c.predicted), utilization),
        }
    }

    fn any_candidate() -> impl Strategy<Value = Option<Candidate>> {
        proptest::option::weighted(
            0.9,
            (0_u32..40, 1_u32..5, 1_u32..21, 1_u16..4).prop_map(|(n, k, l, p)| Candidate {
                predicted: f32::from(p),
                ..candidate(n, k, l)
            }),
        )
    }

    fn check(strategy: RoutingStrategy, candidates: &[Option<Candidate>], draw: u64) {
        let free: Vec<_> =
            candidates.iter().flatten().filter(|c| c.outstanding < c.slots).collect();
        match choose(strategy, candidates.iter().copied(), draw) {
            None => assert!(free.is_empty(), "P4"),
            Some(Chosen { position, candidate: chosen }) => {
                let there = candidates[position].expect("only what is there is chosen");
                assert_eq!((there.outstanding, there.slots), (chosen.outstanding, chosen.slots));
                assert!(chosen.outstanding < chosen.slots, "P2");
                let key = naive_key(strategy, &chosen);
                assert!(free.iter().all(|c| naive_key(strategy, c) >= key), "P1: {candidates:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn the_choice_is_a_least_free_one(
            candidates in proptest::collection::vec(any_candidate(), 0..20),
            draw in any::<u64>(),
        ) {
            for strategy in STRATEGIES {
                check(strategy, &candidates, draw);
            }
        }
    }

    /// A million random states for each of four strategies against the naive argmin, without proptest's
    /// overhead.
    #[test]
    fn a_million_states_agree_with_the_naive_argmin() {
        let mut draws = Draws(7);
        let mut states = Vec::with_capacity(8);
        for round in 0..4_000_000_u64 {
            let strategy = STRATEGIES[usize::try_from(round % 4).expect("small")];
            states.clear();
            for _ in 0..=below(7, draws.next()) {
                let mut below = |bound| u32::try_from(below(bound, draws.next())).expect("small");
                let mut c = candidate(below(30), 1 + below(3), 1 + below(12));
                c.predicted = [1.0, 2.0, 3.0][below(3) as usize];
                states.push((below(10) > 0).then_some(c));
            }
            check(strategy, &states, draws.next());
        }
    }

    /// P3 by a χ² test: 5 equals among 8, 100,000 draws, 4 degrees of freedom; 18.5 is passed by chance
    /// once in a thousand seeds, and the seed is fixed.
    #[test]
    fn equals_are_chosen_equally_often() {
        for strategy in STRATEGIES {
            let mut candidates = [Some(candidate(2, 1, 8)); 8];
            candidates[0] = Some(candidate(8, 1, 8));
            candidates[3] = None;
            candidates[7] = Some(candidate(8, 1, 8));
            let mut counts = [0_u32; 8];
            let mut draws = Draws(42);
            for _ in 0..100_000 {
                let draw = draws.next();
                let chosen = choose(strategy, candidates.iter().copied(), draw).expect("free");
                counts[chosen.position] += 1;
            }
            assert_eq!(counts[0] + counts[3] + counts[7], 0);
            let expected = 20_000.0;
            let chi_square: f64 = [1, 2, 4, 5, 6]
                .iter()
                .map(|&i: &usize| (f64::from(counts[i]) - expected).powi(2) / expected)
                .sum();
            assert!(chi_square < 18.5, "{strategy:?}: χ² = {chi_square}, {counts:?}");
        }
    }

    #[test]
    fn weights_share_the_draws() {
        let weights = [0.0, 1.0, 3.0, 0.0];
        let mut counts = [0_u32; 4];
        let mut draws = Draws(1);
        for _ in 0..40_000 {
            let draw = draws.next();
            counts[choose_weighted(weights.iter().copied(), draw).expect("some weight")] += 1;
        }
        assert_eq!(counts[0] + counts[3], 0);
        assert!((9_500..10_500).contains(&counts[1]), "{counts:?}");
        assert_eq!(choose_weighted([0.0, 0.0].iter().copied(), 5), None);
        assert_eq!(choose_weighted([1.0].iter().copied(), u64::MAX), Some(0));
    }
}
