//! Who leaves, and when it may: the shrinking part of [`super::plan`].
//!
//! Surplus leaves in the order *largest priority number; unhealthy; `Pending` before `Starting` before
//! `InService`; fewest outstanding; youngest*, and the first in that order either leaves or everything
//! waits for it: nobody overtakes. It leaves only if, without it, at least the desired number is at
//! least as far as it is. So a fallback in service stays until enough preferred ones are in service, and
//! a granted one is not given up for one that is only asked for.

use std::cmp::Reverse;

use crate::types::{InstanceState, Timestamp};

use super::{Condemned, Member, Observed, Plan, PlannedLeave, WhyLeave};

pub(super) fn release_condemned(seen: &Observed, now: Timestamp, plan: &mut Plan) {
    let mut in_service = seen.count(|m| m.state == InstanceState::InService);
    // Those that leave in any case first: they make up for nobody.
    let is_due = |member: &Member| matches!(member.condemned, Some(Condemned::Interrupted { drain_at }) if drain_at <= now);
    let (due, others): (Vec<_>, Vec<_>) = seen.members.iter().partition(|member| is_due(member));
    for member in due.into_iter().chain(others) {
        let Some(condemned) = member.condemned else { continue };
        let serves = member.state == InstanceState::InService;
        let replaced = in_service > seen.desired;
        let (why, due) = match condemned {
            Condemned::PoolRemoved => (WhyLeave::PoolRemoved, None),
            Condemned::Interrupted { drain_at } => (WhyLeave::Interrupted, Some(drain_at)),
        };
        if !serves || replaced || due.is_some_and(|at| at <= now) {
            in_service -= u32::from(serves);
            plan.leave.push(PlannedLeave { instance: member.id.clone(), why });
        } else if let Some(at) = due {
            plan.wake(at);
        }
    }
}

pub(super) fn release_surplus(seen: &Observed, plan: &mut Plan) {
    let counted = seen.members.iter().filter(|m| m.is_counted()).collect();
    let desired = usize::try_from(seen.desired).unwrap_or(usize::MAX);
    let mut queue = std::collections::VecDeque::from(in_leaving_order(counted));
    // One that waits for its replacement leaves first, too, if its priority is lower.
    let waits = seen
        .members
        .iter()
        .filter(|m| !m.is_counted() && plan.leave.iter().all(|l| l.instance != m.id));
    let worst_waiting = waits.map(|m| m.priority).max().unwrap_or(0);
    while queue.len() > desired {
        let Some(first) = queue.pop_front() else { break };
        let as_far = queue.iter().filter(|m| is_as_far(m, first)).count();
        if as_far < desired || worst_waiting > first.priority {
            break;
        }
        plan.leave.push(PlannedLeave { instance: first.id.clone(), why: WhyLeave::Surplus });
    }
}

fn in_leaving_order(mut members: Vec<&Member>) -> Vec<&Member> {
    members.sort_by_key(|m| {
        (Reverse(m.priority), !m.unhealthy, m.state, m.outstanding, Reverse(m.generation))
    });
    members
}

/// Whether `other` makes up for `leaver`. A more preferred one that is itself only asked for does not:
/// it may be refused.
fn is_as_far(other: &Member, leaver: &Member) -> bool {
    let both_asked =
        other.state == InstanceState::Pending && leaver.state == InstanceState::Pending;
    other.state >= leaver.state && !(both_asked && other.priority < leaver.priority)
}
