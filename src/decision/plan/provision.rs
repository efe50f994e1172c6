//! Whose turn it is and what it is asked for: the provisioning part of [`super::plan`]. The rules are in
//! the parent's docs.

use std::time::Duration;

use crate::types::record::ProvisionRound;
use crate::types::spec::{Fallback, VariantSpec};
use crate::types::{InstanceState, Timestamp};

use super::{Member, Observed, Plan, PlannedLaunch, PoolView, Turn, Waiting, WhyLaunch};

/// In an open window a refusing pool is asked at least this often, however long others hold off.
pub(super) const RETRY_CAP: Duration = Duration::from_secs(30);

/// A variant's pools under the round's clock.
struct Market<'a> {
    spec: &'a VariantSpec,
    seen: &'a Observed,
    now: Timestamp,
    /// Distinct priorities, the most preferred first.
    groups: Vec<u32>,
}

pub(super) fn provision(
    spec: &VariantSpec,
    seen: &Observed,
    previous: Option<ProvisionRound>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let mut groups: Vec<u32> = spec.pools.iter().map(|p| p.priority).collect();
    groups.dedup();
    let market = Market { spec, seen, now, groups };
    let previous = previous.filter(|r| market.groups.contains(&r.priority));
    let unmet = seen.desired.saturating_sub(seen.granted());
    let goes_on = spec.fallback == Fallback::Parallel
        && previous.is_some_and(|r| market.prefers_on(r))
        && seen.desired > 0;
    if unmet == 0 && !goes_on {
        plan.turn = previous.map(|_| Turn::Closed);
        return;
    }
    let round = previous.unwrap_or_else(|| market.open());
    plan.turn = previous.is_none().then_some(Turn::Opened);
    plan.round = Some(market.reopen(round, plan));
    if spec.fallback == Fallback::Parallel {
        market.ask_all(plan);
    } else {
        market.ask_in_turn(plan);
    }
    let pending = seen.count(|m| m.is_counted() && m.state == InstanceState::Pending)
        + plan.launches.iter().map(|l| l.count).sum::<u32>();
    if plan.waiting.is_none() && pending > 0 {
        plan.waiting = Some(Waiting::Answer { count: pending });
    }
}

impl Market<'_> {
    /// The indices of a group's pools.
    fn pools(&self, priority: u32) -> impl Iterator<Item = usize> + '_ {
        let pools = self.spec.pools.iter().enumerate();
        pools.filter(move |(_, p)| p.priority == priority).map(|(i, _)| i)
    }

    fn view(&self, pool: usize) -> PoolView {
        self.seen.pools.get(pool).copied().unwrap_or_default()
    }

    fn is_blocked(&self, pool: usize) -> bool {
        self.view(pool).blocked_until.is_some_and(|until| until > self.now)
    }

    fn is_held(&self, pool: usize) -> bool {
        self.view(pool).refused.is_some_and(|r| r.hold_until > self.now)
    }

    fn window_end(&self, round: ProvisionRound) -> Timestamp {
        round.window_opened_at + self.spec.provision_timeout
    }

    /// When `pool` may be asked again, seen from the round whose turn it has (`None`: from elsewhere).
    fn ask_at(&self, pool: usize, round: Option<ProvisionRound>) -> Timestamp {
        let Some(refused) = self.view(pool).refused else { return self.now };
        let Some(round) = round.filter(|_| self.spec.fallback != Fallback::AtOnce) else {
            return refused.hold_until;
        };
        let end = self.window_end(round);
        if refused.at < end {
            // Inside the window; the last try falls on its end.
            refused.hold_until.min(refused.at + RETRY_CAP).min(end)
        } else {
            refused.hold_until
        }
    }

    fn can_ask(&self, pool: usize, round: Option<ProvisionRound>) -> bool {
        let view = self.view(pool);
        !self.is_blocked(pool)
            && (view.refused.is_none() || (!view.asking && self.ask_at(pool, round) <= self.now))
    }

    fn group_can_ask(&self, priority: u32, round: Option<ProvisionRound>) -> bool {
        self.pools(priority).any(|p| self.can_ask(p, round))
    }

    /// A fresh round: the first group that is not held wholly, else the first.
    fn open(&self) -> ProvisionRound {
        let fresh = |g: &&u32| self.pools(**g).any(|p| !self.is_held(p));
        let priority = *self.groups.iter().find(fresh).unwrap_or(&self.groups[0]);
        ProvisionRound { priority, window_opened_at: self.window_opening(priority), pass: 0 }
    }

    /// When the window of a group whose turn begins now opened: for one that refuses already it has
    /// closed with the last refusal.
    fn window_opening(&self, priority: u32) -> Timestamp {
        let refused: Option<Vec<_>> =
            self.pools(priority).map(|p| self.view(p).refused.map(|r| r.at)).collect();
        match refused.and_then(|all| all.into_iter().max()) {
            Some(last) if self.spec.fallback == Fallback::AfterWindow => {
                last - self.spec.provision_timeout
            }
            _ => self.now,
        }
    }

    /// Begins the next window where one window is for all pools together.
    fn reopen(&self, round: ProvisionRound, plan: &mut Plan) -> ProvisionRound {
        let shared = self.spec.fallback != Fallback::AfterWindow;
        if !shared || self.now < self.window_end(round) || plan.turn == Some(Turn::Opened) {
            return round;
        }
        plan.turn = Some(Turn::Reopened);
        ProvisionRound { window_opened_at: self.now, ..round }
    }

    fn ask_in_turn(&self, plan: &mut Plan) {
        let Some(round) = plan.round else { return };
        let deficit = self.seen.desired.saturating_sub(self.seen.counted());
        if deficit == 0 {
            return;
        }
        let own_turn = Some(round);
        if self.group_can_ask(round.priority, own_turn) {
            return self.fill(round.priority, deficit, own_turn, WhyLaunch::Deficit, plan);
        }
        if self.expects_answer(round.priority) {
            return;
        }
        if self.spec.fallback == Fallback::AfterWindow && self.now < self.window_end(round) {
            plan.wake(self.window_end(round));
            return self.wait_for(self.pools(round.priority), own_turn, plan);
        }
        match self.next_turn(round) {
            Some(next) => {
                plan.turn = Some(Turn::Moved { from: round.priority });
                plan.round = Some(next);
                self.fill(next.priority, deficit, Some(next), WhyLaunch::Deficit, plan);
            }
            None => self.wait_for(self.reachable(round.priority), None, plan),
        }
    }

    /// The group that has its turn after this one: the next that can be asked now, from the first again
    /// after the last. From a blocked group only up.
    fn next_turn(&self, round: ProvisionRound) -> Option<ProvisionRound> {
        let at = self.groups.iter().position(|g| *g == round.priority)?;
        let (before, after) = (&self.groups[..at], &self.groups[at + 1..]);
        let blocked = self.pools(round.priority).any(|p| self.is_blocked(p));
        let down = if blocked { &[][..] } else { after };
        // Nobody is passed over because of a failure that is not one of capacity.
        let first_of = |groups: &[u32]| {
            let open = groups.iter().take_while(|g| !self.pools(**g).any(|p| self.is_blocked(p)));
            open.copied().find(|g| self.group_can_ask(*g, None))
        };
        let (priority, wrapped) = match first_of(down) {
            Some(priority) => (priority, 0),
            None => (first_of(before)?, 1),
        };
        let window_opened_at = match self.spec.fallback {
            Fallback::AfterWindow => self.window_opening(priority),
            Fallback::AtOnce | Fallback::Parallel => round.window_opened_at,
        };
        let pass = round.pass.saturating_add(wrapped);
        Some(ProvisionRound { priority, window_opened_at, pass })
    }

    /// The pools that may have the next turn.
    fn reachable(&self, priority: u32) -> impl Iterator<Item = usize> + '_ {
        let blocked = self.pools(priority).any(|p| self.is_blocked(p));
        let pools = self.spec.pools.iter().enumerate();
        pools.filter(move |(_, p)| !blocked || p.priority <= priority).map(|(i, _)| i)
    }

    /// Whether a launch of this variant is out in the group.
    fn expects_answer(&self, priority: u32) -> bool {
        self.seen
            .members
            .iter()
            .any(|m| m.is_counted() && m.state == InstanceState::Pending && m.priority == priority)
    }

    /// `parallel`: every refusing group is asked on, beside the first that does not refuse.
    fn ask_all(&self, plan: &mut Plan) {
        let round = plan.round;
        let missing = self.seen.desired.saturating_sub(self.seen.counted());
        let why = if missing > 0 { WhyLaunch::Deficit } else { WhyLaunch::Preferred };
        let mut asked = 0;
        for priority in self.groups.iter().copied() {
            let settled = self
                .seen
                .count(|m| m.is_counted() && (m.priority <= priority || is_established(m, round)));
            let gap = self.seen.desired.saturating_sub(settled.saturating_add(asked));
            if gap == 0 {
                break;
            }
            let before: u32 = plan.launches.iter().map(|l| l.count).sum();
            self.fill(priority, gap, round, why, plan);
            asked += plan.launches.iter().map(|l| l.count).sum::<u32>() - before;
            let refuses = self.pools(priority).all(|p| self.view(p).refused.is_some());
            let blocked = self.pools(priority).any(|p| self.is_blocked(p));
            self.wait_for(self.pools(priority), round, plan);
            if !refuses || blocked {
                break;
            }
        }
        if let Some(round) = round {
            plan.wake(self.window_end(round));
        }
    }

    /// `parallel`: whether preferred capacity is still being asked for although the count is met.
    fn prefers_on(&self, round: ProvisionRound) -> bool {
        let first = self.groups[0];
        let settled = self
            .seen
            .count(|m| m.is_granted() && (m.priority == first || is_established(m, Some(round))));
        self.now < self.window_end(round) && settled < self.seen.desired
    }

    /// Spreads `amount` evenly over the group's pools: each next one goes where the fewest are. A pool
    /// with a memory takes one; a blocked pool's share waits for it; a refusing pool's share goes to
    /// its equals.
    fn fill(
        &self,
        priority: u32,
        amount: u32,
        round: Option<ProvisionRound>,
        why: WhyLaunch,
        plan: &mut Plan,
    ) {
        let open = |p: &usize| self.can_ask(*p, round) || self.is_blocked(*p);
        let mut shares: Vec<(usize, u32, u32)> = self
            .pools(priority)
            .filter(open)
            .map(|p| (p, self.seen.count(|m| m.is_counted() && m.pool == Some(p)), 0))
            .collect();
        for _ in 0..amount {
            let takes = |&(pool, _, share): &(usize, u32, u32)| {
                share == 0 || self.view(pool).refused.is_none()
            };
            let fewest = shares
                .iter_mut()
                .filter(|s| takes(s))
                .min_by_key(|(_, have, share)| have.saturating_add(*share));
            let Some((_, _, share)) = fewest else { break };
            *share += 1;
        }
        for (pool, _, count) in shares {
            if count == 0 {
            } else if self.is_blocked(pool) {
                self.wait_for(std::iter::once(pool), round, plan);
            } else {
                plan.launches.push(PlannedLaunch { pool, count, why });
            }
        }
    }

    /// Wakes when the first of `pools` may be asked, and says so.
    fn wait_for(
        &self,
        pools: impl Iterator<Item = usize>,
        round: Option<ProvisionRound>,
        plan: &mut Plan,
    ) {
        let asked_at = |pool: usize| {
            let block = self.view(pool).blocked_until.filter(|until| *until > self.now);
            let turn = round.filter(|r| {
                self.spec.pools[pool].priority == r.priority
                    || self.spec.fallback == Fallback::Parallel
            });
            block.unwrap_or(Timestamp(0)).max(self.ask_at(pool, turn))
        };
        let later = pools.map(|p| (asked_at(p), p)).filter(|(at, _)| *at > self.now);
        let Some((until, pool)) = later.min() else { return };
        plan.wake(until);
        plan.waiting = Some(if self.is_blocked(pool) {
            Waiting::Blocked { pool, until }
        } else {
            Waiting::Capacity { pool, until }
        });
    }
}

/// `parallel`: a member that served before the round began; preferred capacity does not contest it.
fn is_established(member: &Member, round: Option<ProvisionRound>) -> bool {
    let before = round.is_none_or(|r| member.asked_at < r.window_opened_at);
    before && member.state == InstanceState::InService
}

/// Whether a move to `pool` may be asked for now: not held, not blocked, nobody asking.
pub(super) fn is_free(view: PoolView, now: Timestamp) -> bool {
    view.blocked_until.is_none_or(|until| until <= now)
        && view.refused.is_none_or(|r| r.hold_until <= now && !view.asking)
}
