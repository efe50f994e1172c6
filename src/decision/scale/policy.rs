//! From a signal to a size: target tracking and step scaling as Application Auto Scaling has them
//! (<https://docs.aws.amazon.com/autoscaling/application/userguide/>), and what several policies agree on.
//!
//! * **Target tracking** scales out after `scale_out_periods` periods in a row above target × (1 +
//!   tolerance), and in after `scale_in_periods` in a row below nine tenths of target × (1 - tolerance). The size is
//!   ceil(n × value / target), n being the instances that were in service in that period: those that are
//!   still coming have none of the load yet, and count as what they will take. Only where the value would be
//!   above with them as well there are to be more. So a step of load is one decision, however long the new
//!   instances take.
//! * **Scaling in** goes no further than to what the busiest of those periods needed: one quiet period empties nothing.
//! * **Step scaling** looks at as many periods, and changes the size by the step that the latest value's
//!   distance from the threshold falls into. A step that adds is taken from the instances that were in service, and
//!   within the cooldown of the last one from the size before that: those that are coming count, so the same step
//!   is not taken again.
//! * **A gap** is no period above or below: what is not known scales nothing. Nor does what an expression makes of
//!   nothing (`FILL`) scale in, nor one that counts as 0 what instances in service do not tell.
//! * **A full fleet** serves as much as it can, whatever is asked of it: the built-ins of concurrency show then what
//!   is asked, and do not scale in.
//! * **Periods** of different policies end at different moments: each may change the size at the end of its own,
//!   and what the others said of their latest periods counts then too.
//! * **Several policies**: the largest size wins; a smaller one than there is needs the consent of all that
//!   ever scale in. Steps that only add have no say in it, on whichever side of their threshold they are.
//! * **Cooldowns**: after scaling out only a larger size than was decided is taken for a while; after
//!   scaling in no smaller one, unless it was scaled out since. Scaling out waits for neither.
//! * Never more than the maximum nor fewer than the minimum, whatever a policy wants.
//!
//! Each rule is a test below.

use std::time::Duration;

use super::series::{Measured, Periods};
use super::signal::{self, Limits, TypeFacts};
use crate::types::Timestamp;
use crate::types::record::LastChanges;
use crate::types::scaling::{Adjustment, Rule, ScalingPolicy, Signal, Step};

/// Below this share of the target, and of that what its tolerance leaves, it scales in.
const LOW: f64 = 0.9;

/// What is known when a policy is asked.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// What was measured.
    pub measured: &'a Measured,
    /// The types of the variant's pools.
    pub types: &'a [TypeFacts],
    /// How many instances there should be until now.
    pub desired: u32,
    /// What policies did last.
    pub last: LastChanges,
}

/// What one policy has to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The signal in the latest period.
    pub value: Option<f64>,
    /// The size that it wants; `None`: the one that there is.
    pub wants: Option<u32>,
    /// Why, with the figures.
    pub because: String,
}

/// Asks `policy` at `now`.
#[must_use]
pub fn ask(policy: &ScalingPolicy, known: &Known<'_>, now: Timestamp) -> Verdict {
    let periods = Periods::complete(now, policy.period, policy.looks_back());
    let values = signal::values(&policy.signal, known.measured, known.types, periods);
    let Some(value) = values.last().copied().flatten() else {
        let because = "there is no value for the latest period".to_owned();
        return Verdict { value: None, wants: None, because };
    };
    let in_a_row = |wanted: u32, holds: &dyn Fn(f64) -> bool| {
        let latest = values.iter().rev().take(wanted.max(1) as usize);
        latest.clone().count() >= wanted as usize
            && latest.copied().all(|value| value.is_some_and(holds))
    };
    let (mut wants, mut because) = match &policy.rule {
        Rule::TargetTracking { target, tolerance } => {
            let (high, low) = (target * (1.0 + tolerance), target * LOW * (1.0 - tolerance));
            let all_served = signal::instances(known.measured, known.types, periods);
            let served = all_served.last().copied().unwrap_or(0.0);
            let coming = (served / f64::from(known.desired.max(1))).min(1.0);
            if in_a_row(policy.scale_out_periods, &|value| value > high) {
                let because = format!(
                    "{value:.2} is above {high:.2} for {} periods",
                    policy.scale_out_periods
                );
                let stays_above = value * coming > high;
                let size = proportional(served, value, *target);
                (size.filter(|size| *size > known.desired && stays_above), because)
            } else if in_a_row(policy.scale_in_periods, &|value| value < low) {
                let count = policy.scale_in_periods;
                let latest = all_served.iter().zip(&values).rev().take(count as usize);
                let latest = latest.filter_map(|(served, value)| Some((*served, (*value)?)));
                let most = latest.clone().map(|(_, value)| value).fold(value, f64::max);
                let sizes = latest.filter_map(|(served, v)| proportional(served, v, *target));
                let because = format!(
                    "{value:.2} is below {low:.2} for {count} periods, {most:.2} the most in them"
                );
                (sizes.max().filter(|size| *size < known.desired), because)
            } else {
                (None, format!("{value:.2} is near {target} or not long enough away from it"))
            }
        }
        Rule::Step { threshold, above, adjustment, least, steps } => {
            let breaches =
                |value: f64| if *above { value >= *threshold } else { value <= *threshold };
            let wanted = inward_periods(policy);
            if in_a_row(wanted, &breaches) {
                let base = step_base(policy, known, periods, now);
                let because = format!(
                    "{value:.2} is {} {threshold} for {wanted} periods",
                    if *above { "at or above" } else { "at or below" }
                );
                let step = steps.iter().find(|step| step.holds(value - threshold, *above));
                let from = |base: u32| step.map(|s| adjusted(base, *adjustment, s.change, *least));
                let out = from(base).filter(|size| *size > known.desired);
                let inward = || from(known.desired).filter(|size| *size < known.desired);
                (out.or_else(inward), because)
            } else {
                (None, format!("{value:.2} is within {threshold}"))
            }
        }
    };
    let latest = Periods { count: inward_periods(policy).max(1), ..periods };
    let fewer = || signal::allows_fewer(&policy.signal, known.measured, known.types, latest);
    if wants.is_some_and(|size| size < known.desired) && !(policy.scale_in && fewer()) {
        wants = None;
        if policy.scale_in {
            because += match policy.signal {
                Signal::BuiltIn(_) => ", but its slots are taken",
                Signal::Expression { .. } => ", but not all that are in service tell it",
            };
        }
    }
    Verdict { value: Some(value), wants, because }
}

/// Over how many periods it is decided that there are to be fewer; for steps, whatever they change.
fn inward_periods(policy: &ScalingPolicy) -> u32 {
    match policy.rule {
        Rule::Step { above: true, .. } => policy.scale_out_periods,
        _ => policy.scale_in_periods,
    }
}

/// What a step out is added to: those that are coming are no part of it.
fn step_base(policy: &ScalingPolicy, known: &Known<'_>, periods: Periods, now: Timestamp) -> u32 {
    let served = signal::instances(known.measured, known.types, periods);
    let served = served.last().and_then(|served| whole(served.ceil())).unwrap_or(0);
    let recent = known.last.out.filter(|(at, _)| cools(*at, policy.scale_out_cooldown, now));
    let before = recent.and(known.last.out_from).unwrap_or(u32::MAX);
    known.desired.min(served).min(before)
}

/// Why `policy` may never scale out: its metric may show little though all there is is full, for one because a type
/// without instances counts as 0 in an expression. `None` where it grows whatever its fleet is made of.
#[must_use]
pub fn out_of_reach(policy: &ScalingPolicy, limits: &Limits<'_>) -> Option<String> {
    let high = match policy.rule {
        Rule::TargetTracking { target, tolerance } => target * (1.0 + tolerance),
        // A step is taken where it begins already.
        Rule::Step { above: true, threshold, adjustment, ref steps, .. } => {
            (threshold + nearest_growth(adjustment, steps)?).next_down()
        }
        Rule::Step { .. } => return None,
    };
    let of = &policy.signal;
    let late = |full: f64| {
        format!(
            "shows {full:.2} when every slot is taken, and passes {high:.2} only while still more is asked for: the \
             fleet grows late, or never"
        )
    };
    let full_of = |types: &[TypeFacts]| signal::when_full(of, types).filter(|full| *full <= high);
    let most_of = |limits: &Limits<'_>| signal::most(of, limits).filter(|most| *most <= high);
    if let Some(full) = full_of(limits.types) {
        return Some(format!("this metric {}", late(full)));
    }
    if let Some(most) = most_of(limits) {
        let queue = if signal::waits(of) {
            format!(", with `queue_limit` = {} and one proxy", limits.queue)
        } else {
            String::new()
        };
        return Some(format!(
            "this metric shows {most:.2} at most and never passes {high:.2}{queue}, so the fleet does not grow"
        ));
    }
    limits.types.iter().find_map(|only| {
        let (name, types) = (&only.name, std::slice::from_ref(only));
        if let Some(full) = full_of(types) {
            return Some(format!("while only {name} is in service this metric {}", late(full)));
        }
        let most = most_of(&Limits { types, ..*limits })?;
        Some(format!(
            "while only {name} is in service this `expression` shows {most:.2} at its limit and never passes {high:.2}, \
             so the fleet does not grow: a type without instances counts as 0 in it; `metric = \"utilization\"` \
             leaves such types out"
        ))
    })
}

impl Step {
    /// The bound that is nearer to the threshold belongs to a step, the other to the next one.
    fn holds(&self, distance: f64, above: bool) -> bool {
        if above {
            self.from.is_none_or(|from| distance >= from) && self.to.is_none_or(|to| distance < to)
        } else {
            self.from.is_none_or(|from| distance > from) && self.to.is_none_or(|to| distance <= to)
        }
    }
}

/// ceil(served × value / target), forgiving what arithmetic adds to a whole number.
fn proportional(served: f64, value: f64, target: f64) -> Option<u32> {
    let size = (served * value / target - 1e-6).ceil();
    whole(size).filter(|_| served > 0.0)
}

/// The size after a step. Percentages are rounded as AWS does: away from no change below one instance,
/// towards it beyond.
fn adjusted(desired: u32, adjustment: Adjustment, change: f64, least: u32) -> u32 {
    let now = f64::from(desired);
    let size = match adjustment {
        Adjustment::ExactCapacity => change,
        Adjustment::ChangeInCapacity => now + change,
        Adjustment::PercentChangeInCapacity => {
            let exact = now * change / 100.0;
            let rounded = if exact.abs() < 1.0 { exact.signum() } else { exact.trunc() };
            let at_least = rounded.abs().max(f64::from(least)) * rounded.signum();
            if change == 0.0 { now } else { now + at_least }
        }
    };
    whole(size).unwrap_or(0)
}

fn whole(number: f64) -> Option<u32> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
    number.is_finite().then(|| number.clamp(0.0, f64::from(u32::MAX)) as u32)
}

/// What is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The new size.
    pub size: u32,
    /// The policy that it follows.
    pub policy: usize,
}

/// What the verdicts of all policies come to, at a size of `desired` within `bounds`; `due` are those whose periods
/// have just ended. In the order of the policies. One that is due has to want a change; what it then comes to is
/// up to all of them.
#[must_use]
pub fn decide(
    policies: &[ScalingPolicy],
    verdicts: &[Verdict],
    due: &[bool],
    desired: u32,
    bounds: (u32, u32),
    last: LastChanges,
    now: Timestamp,
) -> Option<Decision> {
    let within = |size: u32| size.clamp(bounds.0, bounds.1.max(bounds.0));
    let is_due = |one: &Decision| due.get(one.policy).copied().unwrap_or(true);
    let all = policies.iter().zip(verdicts).enumerate();
    let wanted = all.filter_map(|(policy, (_, verdict))| {
        verdict.wants.map(|size| Decision { size: within(size), policy })
    });
    let (out, rest): (Vec<_>, Vec<_>) = wanted.partition(|one| one.size > desired);
    let warm = out.iter().filter(|one| {
        let cooldown = policies[one.policy].scale_out_cooldown;
        !last.out.is_some_and(|(at, size)| cools(at, cooldown, now) && one.size <= size)
    });
    if warm.clone().any(is_due) {
        return warm.max_by_key(|one| one.size).cloned();
    }
    // All that ever scale in must want less; what is largest of that is taken.
    let consents = policies.iter().zip(verdicts).all(|(policy, verdict)| {
        !policy.scale_in
            || is_outward_only(policy)
            || verdict.wants.is_some_and(|size| within(size) < desired)
    });
    let (mut inward, largest) = (rest.iter().filter(|one| one.size < desired), rest.iter());
    let largest = largest.max_by_key(|one| one.size)?;
    let waits = cooling_inward(last, &policies[largest.policy], now).is_some();
    let decided = out.is_empty() && inward.any(is_due) && consents && !waits;
    (decided && largest.size < desired).then(|| largest.clone())
}

/// When it was last scaled in, as long as that holds up `policy`; scaling out ends it.
pub(super) fn cooling_inward(
    last: LastChanges,
    policy: &ScalingPolicy,
    now: Timestamp,
) -> Option<Timestamp> {
    let at = last.inward.filter(|at| cools(*at, policy.scale_in_cooldown, now))?;
    let grew_since = last.out.is_some_and(|(out, _)| at < out && out <= now);
    (!grew_since).then_some(at)
}

/// Whether a change at `at` is a cooldown ago at most. After a restart with a clock that was set back it may be to
/// come: that holds up nothing.
pub(super) fn cools(at: Timestamp, cooldown: Duration, now: Timestamp) -> bool {
    at <= now && now < at + cooldown
}

/// Whether a policy can only ever add: it has no say in what is taken away.
pub(super) fn is_outward_only(policy: &ScalingPolicy) -> bool {
    match &policy.rule {
        Rule::TargetTracking { .. } => false,
        // A size of its own is for one side of the threshold, and what that is for is not known.
        Rule::Step { above, adjustment: Adjustment::ExactCapacity, .. } => *above,
        Rule::Step { steps, .. } => steps.iter().all(|step| step.change >= 0.0),
    }
}

/// The least distance above its threshold at which a step is taken that may add instances.
fn nearest_growth(adjustment: Adjustment, steps: &[Step]) -> Option<f64> {
    let grows = |step: &&Step| adjustment == Adjustment::ExactCapacity || step.change > 0.0;
    let from = |step: &Step| step.from.unwrap_or(0.0).max(0.0);
    steps.iter().filter(grows).map(from).reduce(f64::min)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
