//! Why the size stays what it is though a policy wants another one: for people, beside what the policy says of its
//! signal. It follows the rules of [`super::policy::decide`] and decides nothing itself.

use super::policy::{Verdict, cooling_inward, cools, is_outward_only};
use crate::types::Timestamp;
use crate::types::record::LastChanges;
use crate::types::scaling::{Bounds, ScalingPolicy};

/// What stands when it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// The policies of a variant,
    pub policies: &'a [ScalingPolicy],
    /// and what each said last.
    pub verdicts: &'a [Verdict],
    /// How many instances there should be.
    pub desired: u32,
    /// Between how many policies keep it ([`followed`]).
    pub bounds: Bounds,
    /// What policies did last.
    pub last: LastChanges,
    /// Whether all proxies are heard.
    pub all_heard: bool,
}

/// The bounds within which policies change the size of a variant that has these: to none only the absence of
/// requests leads.
#[must_use]
pub fn followed(bounds: Bounds) -> Bounds {
    Bounds { min: bounds.min.max(1), max: bounds.max }
}

impl Standing<'_> {
    /// Why the policy of this number does not have what it wants; `None` where it wants nothing else than there is,
    /// or nothing is known to be in its way.
    #[must_use]
    pub fn held_back(&self, number: usize, now: Timestamp) -> Option<String> {
        let policy = self.policies.get(number)?;
        let wants = self.verdicts.get(number)?.wants.filter(|size| *size != self.desired)?;
        let size = self.bounds.clamp(wants);
        let why = if self.desired == 0 {
            Some("from zero it is a request that wakes it".to_owned())
        } else if wants > self.desired {
            self.not_out(policy, size, now)
        } else {
            self.not_in(policy, number, size, now)
        };
        why.map(|why| format!("it wants {wants}, but {why}"))
    }

    fn not_out(&self, policy: &ScalingPolicy, size: u32, now: Timestamp) -> Option<String> {
        if size <= self.desired {
            return Some(format!("{} is the maximum", self.bounds.max));
        }
        let (at, before) = self.last.out?;
        (cools(at, policy.scale_out_cooldown, now) && size <= before).then(|| {
            let until = at + policy.scale_out_cooldown;
            format!(
                "it was scaled out to {before} at {at}, and until {until} (scale_out_cooldown) only more than that \
                 is taken"
            )
        })
    }

    fn not_in(
        &self,
        policy: &ScalingPolicy,
        number: usize,
        size: u32,
        now: Timestamp,
    ) -> Option<String> {
        if size >= self.desired {
            return Some(match self.bounds.min {
                1 => "policies leave one at least".to_owned(),
                min => format!("{min} is the minimum"),
            });
        }
        let others = self.policies.iter().zip(self.verdicts).enumerate();
        let objects = |(of, (policy, verdict)): &(usize, (&ScalingPolicy, &Verdict))| {
            let fewer = verdict.wants.is_some_and(|size| self.bounds.clamp(size) < self.desired);
            let more = verdict.wants.is_some_and(|size| size > self.desired);
            let has_a_say = policy.scale_in && !is_outward_only(policy);
            *of != number && (more || (has_a_say && !fewer))
        };
        if let Some((_, (other, _))) = others.clone().find(objects) {
            return Some(format!("policy {} does not agree to fewer", other.name));
        }
        if let Some(at) = cooling_inward(self.last, policy, now) {
            let until = at + policy.scale_in_cooldown;
            return Some(format!(
                "it was scaled in at {at}, and until {until} (scale_in_cooldown) nothing less is taken"
            ));
        }
        (!self.all_heard).then(|| "a proxy is silent, and may be busy".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::scaling::{BuiltIn, Rule, Signal, Step};

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn policy(name: &str) -> ScalingPolicy {
        ScalingPolicy {
            name: name.into(),
            signal: Signal::BuiltIn(BuiltIn::Utilization),
            period: Duration::from_secs(60),
            scale_out_periods: 3,
            scale_in_periods: 15,
            scale_out_cooldown: Duration::from_secs(300),
            scale_in_cooldown: Duration::from_secs(300),
            scale_in: true,
            rule: Rule::TargetTracking { target: 0.7, tolerance: 0.1 },
        }
    }

    fn verdict(wants: Option<u32>) -> Verdict {
        Verdict { value: Some(1.0), wants, because: String::new() }
    }

    #[test]
    fn whatever_holds_a_policy_back_is_told() {
        let mut outward = policy("outward");
        let steps = vec![Step { from: Some(0.0), to: None, change: 1.0 }];
        outward.rule = Rule::Step {
            threshold: 1.0,
            above: true,
            adjustment: crate::types::scaling::Adjustment::ChangeInCapacity,
            least: 0,
            steps,
        };
        let policies = [policy("first"), policy("second"), outward];
        let ago = |seconds| NOW - Duration::from_secs(seconds);
        let none = LastChanges::default();
        let out = LastChanges { out: Some((ago(60), 3)), ..none };
        let inward = LastChanges { inward: Some(ago(60)), ..none };
        let told = |wants: [Option<u32>; 3], desired, bounds: (u32, u32), last, all_heard| {
            let verdicts = wants.map(verdict);
            let bounds = followed(Bounds { min: bounds.0, max: bounds.1 });
            let policies = &policies;
            let standing =
                Standing { policies, verdicts: &verdicts, desired, bounds, last, all_heard };
            standing.held_back(0, NOW)
        };
        let fewer = [Some(2), Some(2), None];
        for (wants, desired, bounds, last, all_heard, expected) in [
            ([None, None, None], 2, (1, 9), out, true, None),
            ([Some(3), None, None], 2, (1, 9), none, true, None),
            // As it was scaled by hand within the cooldown.
            (
                [Some(3), None, None],
                2,
                (1, 9),
                out,
                true,
                Some(
                    "it was scaled out to 3 at 2023-11-14T22:12:20.000Z, and until 2023-11-14T22:17:20.000Z",
                ),
            ),
            ([Some(4), None, None], 2, (1, 9), out, true, None),
            (
                [Some(3), None, None],
                2,
                (1, 9),
                LastChanges { out: Some((ago(300), 3)), ..none },
                true,
                None,
            ),
            (
                [Some(9), None, None],
                6,
                (1, 6),
                none,
                true,
                Some("it wants 9, but 6 is the maximum"),
            ),
            ([Some(1), Some(1), None], 2, (2, 6), none, true, Some("2 is the minimum")),
            ([Some(0), Some(0), None], 1, (0, 6), none, true, Some("leave one at least")),
            (fewer, 4, (1, 9), none, true, None),
            (fewer, 4, (1, 9), inward, true, Some("(scale_in_cooldown) nothing less is taken")),
            (fewer, 4, (1, 9), none, false, Some("a proxy is silent")),
            ([Some(2), None, None], 4, (1, 9), none, true, Some("policy second does not agree")),
            ([Some(2), Some(2), Some(5)], 4, (1, 9), none, true, Some("policy outward does not")),
            ([Some(2), None, None], 0, (0, 9), none, true, Some("a request that wakes")),
        ] {
            let found = told(wants, desired, bounds, last, all_heard);
            let case = format!("{wants:?} at {desired}: {found:?}");
            match expected {
                None => assert_eq!(found, None, "{case}"),
                Some(text) => assert!(found.is_some_and(|found| found.contains(text)), "{case}"),
            }
        }
    }
}
