//! When a backend is left alone because its answers are bad: a breaker for each backend, and a bound on
//! how many may be left alone at once.
//!
//! ```text
//!            threshold bad in a row, share allows          time is up
//!   Closed ───────────────────────────────────► Ejected ──────────────► HalfOpen
//!     ▲                                            ▲                       │ │
//!     └────────────────── good ────────────────────┼───────────────────────┘ │
//!                                                  └────────── bad ──────────┘
//! ```
//!
//! While half open the backend takes one request at a time. The time away doubles with each ejection in a
//! row, up to a cap, and starts anew after a good answer in the closed state has followed a quiet period
//! as long as the last ejection.
//!
//! A fleet that shrinks meanwhile calls those back that the share no longer allows to be away.
//!
//! Properties, each with its test: P1 neutral outcomes change nothing; P2 never more than
//! `max_share` of the backends, and never the only one, are away at once; P3 times away never shrink in a
//! row of ejections and never pass the cap; P4 one good answer while half open closes; P5
//! one whose health checks recover is no longer away, and leaves for longer with its next bad outcome.

use std::time::Duration;

use super::outcome::Outcome;
use crate::types::spec::EjectionPolicy;

/// Where a breaker is. Times are milliseconds of a monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Breaker {
    /// What it does now.
    pub state: State,
    /// Ejections in a row.
    pub times: u32,
    /// When the last ejection ended; the memory of it lasts as long as it did.
    pub readmitted_at_ms: u64,
}

/// What a breaker does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything may be sent.
    Closed {
        /// Bad outcomes since the last good one.
        bad_in_a_row: u32,
    },
    /// Nothing is sent before `until_ms`.
    Ejected {
        /// The end of it.
        until_ms: u64,
    },
    /// One request at a time tries whether it is well again.
    HalfOpen,
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { bad_in_a_row: 0 }
    }
}

/// The other backends of the variant, for the bound on how many are away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// All backends, this one included.
    pub backends: u32,
    /// Those that are ejected or half open, this one not included.
    pub away: u32,
}

impl Breaker {
    /// The breaker after a request has ended with `outcome`.
    #[must_use]
    pub fn after(
        self,
        policy: &EjectionPolicy,
        outcome: Outcome,
        share: Share,
        now_ms: u64,
    ) -> Self {
        match (self.state, outcome) {
            // An answer to what was sent before the ejection says nothing new.
            (_, Outcome::Neutral | Outcome::Full)
            | (State::Ejected { .. }, Outcome::Good | Outcome::Bad) => self,
            (State::Closed { .. }, Outcome::Good) => {
                let remembered = self.time_away(policy);
                let quiet = now_ms.saturating_sub(self.readmitted_at_ms);
                let times = if quiet >= remembered { 0 } else { self.times };
                Self { state: State::default(), times, ..self }
            }
            (State::HalfOpen, Outcome::Good) => {
                Self { state: State::default(), readmitted_at_ms: now_ms, ..self }
            }
            (State::Closed { bad_in_a_row }, Outcome::Bad) => {
                let bad_in_a_row = bad_in_a_row.saturating_add(1);
                let sick = policy.threshold > 0 && bad_in_a_row >= policy.threshold;
                if sick && may_leave(policy, share) {
                    self.ejected(policy, now_ms)
                } else {
                    Self { state: State::Closed { bad_in_a_row }, ..self }
                }
            }
            (State::HalfOpen, Outcome::Bad) if may_leave(policy, share) => {
                self.ejected(policy, now_ms)
            }
            (State::HalfOpen, Outcome::Bad) => self.on_its_last_chance(policy),
        }
    }

    /// The breaker at `now_ms`: an ejection whose time is up is half open.
    #[must_use]
    pub fn at(self, now_ms: u64) -> Self {
        match self.state {
            State::Ejected { until_ms } if until_ms <= now_ms => {
                Self { state: State::HalfOpen, ..self }
            }
            _ => self,
        }
    }

    /// The breaker in a fleet that may have shrunk since: one that may not be away any more, the only one
    /// above all, is closed again.
    #[must_use]
    pub fn recalled(self, policy: &EjectionPolicy, share: Share) -> Self {
        match self.state {
            State::Ejected { .. } | State::HalfOpen if !may_leave(policy, share) => {
                self.on_its_last_chance(policy)
            }
            _ => self,
        }
    }

    /// The breaker of a backend whose health checks pass again after they failed. Most likely it was restarted,
    /// and what it did before says nothing; if not, its next bad outcome takes it away for longer. Health checks
    /// that never failed end no ejection: they pass where traffic does not.
    #[must_use]
    pub fn recovered(self, policy: &EjectionPolicy) -> Self {
        if self.is_away() { self.on_its_last_chance(policy) } else { self }
    }

    /// Closed, because the others are too few or it may be another by now: it leaves again with the next bad outcome that finds them
    /// enough.
    fn on_its_last_chance(self, policy: &EjectionPolicy) -> Self {
        let bad_in_a_row = policy.threshold.saturating_sub(1);
        Self { state: State::Closed { bad_in_a_row }, ..self }
    }

    /// Whether it counts as away.
    #[must_use]
    pub fn is_away(self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    fn ejected(self, policy: &EjectionPolicy, now_ms: u64) -> Self {
        let times = self.times.saturating_add(1);
        let away = Self { times, ..self };
        let until_ms = now_ms.saturating_add(away.time_away(policy));
        Self { state: State::Ejected { until_ms }, ..away }
    }

    /// How long the last ejection was, in milliseconds.
    fn time_away(self, policy: &EjectionPolicy) -> u64 {
        let Some(doublings) = self.times.checked_sub(1) else { return 0 };
        let factor = 2_u32.saturating_pow(doublings.min(31));
        let away = policy.base.saturating_mul(factor).min(policy.max.max(policy.base));
        millis(away)
    }
}

fn may_leave(policy: &EjectionPolicy, share: Share) -> bool {
    let away = f64::from(share.away + 1);
    share.away + 1 < share.backends && away <= policy.max_share * f64::from(share.backends)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALONE: Share = Share { backends: 1, away: 0 };
    const OF_FOUR: Share = Share { backends: 4, away: 0 };

    fn policy() -> EjectionPolicy {
        EjectionPolicy {
            threshold: 3,
            base: Duration::from_secs(10),
            max: Duration::from_secs(60),
            max_share: 0.5,
        }
    }

    fn share(fleet: &[Breaker], who: usize) -> Share {
        let count = |n: usize| u32::try_from(n).expect("few");
        let away = fleet.iter().enumerate().filter(|(at, b)| *at != who && b.is_away()).count();
        Share { backends: count(fleet.len()), away: count(away) }
    }

    fn closed(bad_in_a_row: u32) -> Breaker {
        Breaker { state: State::Closed { bad_in_a_row }, ..Breaker::default() }
    }

    #[test]
    fn one_that_recovers_is_back_at_once_and_gone_with_its_next_bad_outcome() {
        let policy = policy();
        for state in [State::Ejected { until_ms: 60_000 }, State::HalfOpen] {
            let away = Breaker { state, times: 2, readmitted_at_ms: 0 };
            let back = away.recovered(&policy);
            assert!(!back.is_away());
            let State::Ejected { until_ms } = back.after(&policy, Outcome::Bad, OF_FOUR, 0).state
            else {
                panic!("it stays");
            };
            assert_eq!(until_ms, 40_000, "for longer than before");
        }
        assert_eq!(closed(1).recovered(&policy), closed(1));
    }

    /// The whole table, so that a changed edge is a visible difference.
    #[test]
    fn the_transitions() {
        let half = Breaker { state: State::HalfOpen, times: 1, readmitted_at_ms: 0 };
        let away =
            Breaker { state: State::Ejected { until_ms: 9_000 }, times: 1, readmitted_at_ms: 0 };
        let mut lines = Vec::new();
        for (name, breaker) in [
            ("closed 0", closed(0)),
            ("closed 2", closed(2)),
            ("half open", half),
            ("ejected", away),
        ] {
            for outcome in [Outcome::Good, Outcome::Bad, Outcome::Neutral] {
                let next = breaker.after(&policy(), outcome, OF_FOUR, 5_000);
                lines.push(format!(
                    "{name:9} + {outcome:?}: {:?}, {} in a row",
                    next.state, next.times
                ));
            }
        }
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn clients_mistakes_neither_open_nor_close_it() {
        let mut breaker = closed(2);
        for _ in 0..100 {
            breaker = breaker.after(&policy(), Outcome::Neutral, OF_FOUR, 0);
        }
        assert_eq!(breaker, closed(2));
        let half = Breaker { state: State::HalfOpen, ..Breaker::default() };
        assert_eq!(half.after(&policy(), Outcome::Neutral, OF_FOUR, 0), half);
    }

    #[test]
    fn the_last_ones_stay() {
        assert_eq!(closed(2).after(&policy(), Outcome::Bad, ALONE, 0), closed(3));
        let half_away = Share { backends: 4, away: 2 };
        assert_eq!(closed(9).after(&policy(), Outcome::Bad, half_away, 0), closed(10));
        // One that could not leave leaves as soon as another one is back.
        assert!(closed(9).after(&policy(), Outcome::Bad, OF_FOUR, 0).is_away());
    }

    #[test]
    fn the_time_away_doubles_up_to_the_cap_and_is_forgotten() {
        let mut breaker = closed(2).after(&policy(), Outcome::Bad, OF_FOUR, 0);
        let mut now = 0;
        let mut spans = Vec::new();
        for _ in 0..5 {
            let State::Ejected { until_ms } = breaker.state else { panic!("{breaker:?}") };
            assert!(breaker.at(until_ms - 1).is_away());
            spans.push(until_ms - now);
            now = until_ms;
            breaker = breaker.at(now);
            assert_eq!(breaker.state, State::HalfOpen);
            breaker = breaker.after(&policy(), Outcome::Bad, OF_FOUR, now);
        }
        assert_eq!(spans, [10_000, 20_000, 40_000, 60_000, 60_000]);
        let back = Breaker { state: State::HalfOpen, ..breaker }.after(
            &policy(),
            Outcome::Good,
            OF_FOUR,
            now,
        );
        assert_eq!((back.state, back.times), (State::default(), 6));
        let soon = back.after(&policy(), Outcome::Good, OF_FOUR, now + 59_999);
        assert_eq!(soon.times, 6);
        assert_eq!(back.after(&policy(), Outcome::Good, OF_FOUR, now + 60_000).times, 0);
    }

    /// Answers of a full house between failures neither hide them nor count as a recovery.
    #[test]
    fn a_full_house_does_not_keep_it_shut() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker = breaker.after(&policy(), Outcome::Bad, OF_FOUR, 0);
            breaker = breaker.after(&policy(), Outcome::Neutral, OF_FOUR, 0);
        }
        assert!(breaker.is_away());
    }

    #[test]
    fn one_good_answer_while_half_open_closes() {
        for times in [1, 5] {
            let half = Breaker { state: State::HalfOpen, times, readmitted_at_ms: 0 };
            let back = half.after(&policy(), Outcome::Good, OF_FOUR, 7);
            assert_eq!((back.state, back.readmitted_at_ms), (State::default(), 7));
        }
    }

    #[test]
    fn a_fleet_that_shrinks_calls_back_whom_it_needs() {
        let away = closed(2).after(&policy(), Outcome::Bad, OF_FOUR, 0);
        let half = away.at(10_000);
        for breaker in [away, half] {
            assert_eq!(breaker.recalled(&policy(), OF_FOUR), breaker);
            let only = breaker.recalled(&policy(), ALONE);
            assert_eq!((only.state, only.times), (State::Closed { bad_in_a_row: 2 }, 1));
            // Alone it stays whatever comes, and leaves as soon as it may, for longer than before.
            let worse = only.after(&policy(), Outcome::Bad, ALONE, 0);
            assert!(!worse.is_away());
            let gone = worse.after(&policy(), Outcome::Bad, OF_FOUR, 0);
            assert_eq!(gone.state, State::Ejected { until_ms: 20_000 });
        }
        assert!(!half.after(&policy(), Outcome::Bad, ALONE, 0).is_away());
        assert_eq!(closed(9).recalled(&policy(), ALONE), closed(9));
    }

    proptest! {
        /// Whatever happens between them, ejections in a row never get shorter, nor longer than the cap.
        #[test]
        fn times_away_grow_up_to_the_cap(steps in proptest::collection::vec((0_u8..3, 0_u64..90_000), 0..200)) {
            let mut breaker = Breaker::default();
            let (mut now, mut last) = (0, 0);
            for (what, pause) in steps {
                now += pause;
                breaker = breaker.at(now);
                let outcome = [Outcome::Good, Outcome::Bad, Outcome::Neutral][usize::from(what)];
                let before = breaker;
                breaker = breaker.after(&policy(), outcome, OF_FOUR, now);
                if outcome == Outcome::Neutral {
                    prop_assert_eq!(breaker, before);
                }
                if breaker.times == 0 {
                    last = 0;
                }
                if let (State::Ejected { until_ms }, true) = (breaker.state, before.state != breaker.state) {
                    let away = until_ms - now;
                    prop_assert!((10_000..=60_000).contains(&away) && away >= last, "{} after {}", away, last);
                    last = away;
                }
            }
        }

        /// A fleet that shrinks now and then, under any outcomes in any order: the share that is away stays within its bound.
        #[test]
        fn never_too_many_are_away(
            count in 1_u32..9,
            steps in proptest::collection::vec((0_usize..9, 0_u8..4, 0_u64..20_000), 0..300),
        ) {
            let mut fleet = vec![Breaker::default(); count as usize];
            let mut now = 0;
            for (who, what, pause) in steps {
                now += pause;
                for breaker in &mut fleet {
                    *breaker = breaker.at(now);
                }
                if what == 3 && fleet.len() > 1 {
                    fleet.pop();
                    for who in 0..fleet.len() {
                        fleet[who] = fleet[who].recalled(&policy(), share(&fleet, who));
                    }
                }
                let what = what % 3;
                let who = who % fleet.len();
                let outcome = [Outcome::Good, Outcome::Bad, Outcome::Neutral][usize::from(what)];
                fleet[who] = fleet[who].after(&policy(), outcome, share(&fleet, who), now);
                let count = u32::try_from(fleet.len()).expect("few");
                let away = u32::try_from(fleet.iter().filter(|b| b.is_away()).count()).expect("few");
                prop_assert!(away == 0 || (away < count && away * 2 <= count), "{} of {}", away, count);
            }
        }
    }
}
