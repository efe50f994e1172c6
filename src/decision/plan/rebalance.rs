//! The way back to preferred pools (`rebalance = "active"`): one preferred instance is asked for beyond
//! the desired number; once it is in service, the surplus rule lets the fallback go. A refusal costs
//! nothing but a longer hold.

use std::time::Duration;

use crate::types::spec::{Rebalance, VariantSpec};
use crate::types::{InstanceState, Timestamp};

use super::provision::is_free;
use super::{Observed, Plan, PlannedLaunch, WhyLaunch};

/// Two moves never begin closer together than this, whatever the config says.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn rebalance(spec: &VariantSpec, seen: &Observed, now: Timestamp, plan: &mut Plan) {
    let at_rest = plan.round.is_none() && plan.launches.is_empty() && plan.leave.is_empty();
    if spec.rebalance.mode != Rebalance::Active || !at_rest || seen.desired == 0 {
        return;
    }
    let in_service = seen.count(|m| m.is_counted() && m.state == InstanceState::InService);
    let moving = seen.counted().saturating_sub(seen.desired);
    let condemned = seen.members.iter().any(|m| !m.is_counted());
    if condemned || in_service < seen.desired || moving >= budget(spec, seen.desired) {
        return;
    }
    let Some(worst) = seen.members.iter().map(|m| m.priority).max() else { return };
    let better = || spec.pools.iter().enumerate().filter(|(_, p)| p.priority < worst);
    let view = |pool: usize| seen.pools.get(pool).copied().unwrap_or_default();
    let next_move_at = seen.last_move_at + spec.rebalance.min_interval.max(LEAST_INTERVAL);
    match better().find(|(i, _)| is_free(view(*i), now)) {
        Some(_) if now < next_move_at => plan.wake(next_move_at),
        Some((pool, _)) => {
            plan.launches.push(PlannedLaunch { pool, count: 1, why: WhyLaunch::Move });
        }
        None => {}
    }
    for (pool, _) in better() {
        let view = view(pool);
        let ends = [view.refused.map(|r| r.hold_until), view.blocked_until];
        if let Some(at) = ends.into_iter().flatten().filter(|at| *at > now).max() {
            plan.wake(at.max(next_move_at));
        }
    }
}

/// How many may be moving at once.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a u32 between 0 and 1 is a u32 again"
)]
fn budget(spec: &VariantSpec, desired: u32) -> u32 {
    let share = spec.rebalance.max_share.clamp(0.0, 1.0) * f64::from(desired);
    (share.floor() as u32).max(1)
}
