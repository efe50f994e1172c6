//! Sticky routing for workers that keep state.
//!
//! **Sessions** of the SageMaker runtime: a client asks for one with `X-Amzn-SageMaker-Session-Id:
//! NEW_SESSION`, the worker names it in its answer, and later requests with that name go to the same
//! instance. Instead of keeping a map (which would have to be bounded, shared between proxies and survive
//! restarts), the name that the client is given carries the start of the instance: `NAME` becomes
//! `NAME-fbGENERATION`, and is turned back for the worker. A session whose instance is gone moves.
//!
//! **Keys**: where there is only a key (a moved session, a configured header), the backend is chosen by
//! rendezvous hashing: the highest score of key and backend wins, so that one backend's going moves only its
//! own keys. Scores are weighted by slots (Schindelhauer and Schomaker, "Weighted distributed hash tables",
//! 2005): a backend of 20 slots is home to two and a half times the keys of one of 8. With a bound
//! (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2018): none is given more
//! than [`BOUND`] times its share by slots of all that is outstanding, and then the next highest is.
//!
//! A ring as pingora-ketama builds it was looked at: it knows backends by address, has to be built anew for
//! every table, and moves no fewer keys. The scan costs what every other choice costs.

use crate::types::Generation;

/// What a request for a new session says instead of a name.
pub const NEW_SESSION: &str = "NEW_SESSION";
/// How far above its share a backend may be loaded by keys.
const BOUND: (u64, u64) = (5, 4);

/// What a session is called by clients whom the worker that is meant by `generation` calls `name`.
#[must_use]
pub fn tag(name: &str, generation: Generation) -> String {
    format!("{name}-fb{generation}")
}

/// The worker's name of a session, and which start of an instance has it, if its name says so.
#[must_use]
pub fn untag(name: &str) -> (&str, Option<Generation>) {
    let parts = name.rsplit_once("-fb");
    let parsed = parts.and_then(|(own, digits)| {
        // Exactly as `tag` writes it: no sign, no leading zero.
        let generation: u64 = digits.parse().ok()?;
        (digits == generation.to_string()).then_some((own, Generation(generation)))
    });
    parsed.map_or((name, None), |(own, generation)| (own, Some(generation)))
}

/// A hash of `key` and a backend, uniform over all of `u64`.
#[must_use]
pub fn affinity(key: u64, generation: Generation) -> u64 {
    // Two rounds of splitmix64's finaliser over both.
    let mut z = key ^ generation.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    z
}

/// A backend that a key may be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Which start of an instance.
    pub generation: Generation,
    /// Requests at it now.
    pub outstanding: u32,
    /// How many it takes at once.
    pub slots: u32,
}

/// The backend for `key`, by its position: the one it wants most among those with a free slot that are not
/// loaded beyond the bound. `None` when none has a free slot. Positions that hold `None` are passed over.
pub fn choose_by_key(
    key: u64,
    homes: impl Iterator<Item = Option<Home>> + Clone,
) -> Option<(usize, Home)> {
    let (mut outstanding, mut slots) = (0_u64, 0_u64);
    for home in homes.clone().flatten() {
        outstanding += u64::from(home.outstanding);
        slots += u64::from(home.slots);
    }
    let free = homes.enumerate().filter_map(|(at, home)| {
        home.filter(|home| home.outstanding < home.slots).map(|home| (at, home))
    });
    let within = |(_, home): &(usize, Home)| {
        let share = u128::from(outstanding + 1) * u128::from(home.slots) * u128::from(BOUND.0);
        u128::from(home.outstanding) < share.div_ceil(u128::from(slots.max(1) * BOUND.1))
    };
    let by_score =
        |(_, a): &(usize, Home), (_, b): &(usize, Home)| score(key, a).total_cmp(&score(key, b));
    let best = free.clone().filter(within).max_by(by_score);
    // Where some hold more than their slots, the others may be within the bound and full.
    best.or_else(|| free.max_by(by_score))
}

/// How much `key` wants to be at `home`: w / −ln u, the highest of which is at home i with probability
/// wᵢ / Σw.
fn score(key: u64, home: &Home) -> f64 {
    // In (0, 1), both ends left out: half a bit less than a double has room for.
    let u = ((affinity(key, home.generation) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    f64::from(home.slots) / -u.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_carries_its_instance_there_and_back() {
        let tagged = tag("abc-1", Generation(42));
        assert_eq!(tagged, "abc-1-fb42");
        assert_eq!(untag(&tagged), ("abc-1", Some(Generation(42))));
        for plain in ["abc", "abc-fb", "abc-fbx", "abc-fb-1", "abc-fb+1", "abc-fb01", ""] {
            assert_eq!(untag(plain), (plain, None), "{plain}");
        }
        assert_eq!(untag(&tag("a-fb7", Generation(8))), ("a-fb7", Some(Generation(8))));
    }

    fn homes(loads: &[(u32, u32)]) -> Vec<Option<Home>> {
        let home = |(at, (outstanding, slots)): (usize, &(u32, u32))| {
            let generation = Generation(at as u64 + 1);
            Some(Home { generation, outstanding: *outstanding, slots: *slots })
        };
        loads.iter().enumerate().map(home).collect()
    }

    #[test]
    fn keys_spread_evenly_and_few_move() {
        let all = homes(&[(0, 9); 8]);
        let mut without = all.clone();
        without[3] = None;
        let mut counts = [0; 8];
        let mut moved = 0;
        for key in 0..8_000 {
            let key = affinity(key, Generation(0));
            let (before, _) = choose_by_key(key, all.iter().copied()).expect("free");
            let (after, _) = choose_by_key(key, without.iter().copied()).expect("free");
            counts[before] += 1;
            moved += u32::from(before != after);
            assert!(before == after || before == 3, "only the lost one's keys move");
        }
        assert!(counts.iter().all(|n| (850..1_150).contains(n)), "{counts:?}");
        assert_eq!(moved, counts[3]);
    }

    #[test]
    fn keys_spread_by_slots_and_follow_them() {
        let (mixed, grown) =
            (homes(&[(0, 20), (0, 8), (0, 8)]), homes(&[(0, 20), (0, 8), (0, 12)]));
        let mut counts = [0; 3];
        for key in 0..9_000 {
            let key = affinity(key, Generation(0));
            let (before, _) = choose_by_key(key, mixed.iter().copied()).expect("free");
            let (after, _) = choose_by_key(key, grown.iter().copied()).expect("free");
            counts[before] += 1;
            assert!(before == after || after == 2, "keys move only to the one that grew");
        }
        assert!((4_800..5_200).contains(&counts[0]), "{counts:?}, 5,000 expected");
        assert!((1_850..2_150).contains(&counts[1]), "{counts:?}, 2,000 expected");
    }

    proptest! {
        #[test]
        fn never_beyond_the_bound_while_another_has_room(
            key in any::<u64>(),
            loads in proptest::collection::vec((0_u32..12, 1_u32..12), 1..8),
        ) {
            let all = homes(&loads);
            let free = loads.iter().any(|(n, slots)| n < slots);
            let chosen = choose_by_key(key, all.iter().copied());
            prop_assert_eq!(chosen.is_some(), free);
            if let Some((at, home)) = chosen {
                prop_assert!(home.outstanding < home.slots);
                let total: u32 = loads.iter().map(|(n, _)| n).sum();
                let all_slots: u32 = loads.iter().map(|(_, slots)| slots).sum();
                // In whole numbers: n below the next whole number above 5/4 of its share.
                let within = |(n, slots): (u32, u32)| {
                    n < ((total + 1) * slots * 5).div_ceil(all_slots * 4)
                };
                let room = loads.iter().any(|(n, slots)| n < slots && within((*n, *slots)));
                prop_assert!(!room || within(loads[at]), "{:?} {}", loads, at);
                // Nobody over their slots: then there is always room within the bound.
                if loads.iter().all(|(n, slots)| n <= slots) {
                    prop_assert!(within(loads[at]), "{:?} {}", loads, at);
                }
            }
        }
    }
}
