//! The planner's properties P1 to P9 over random variants, and tables of its rules by example.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::decision::controller::tests::specs::{kind, secs, variant};
use crate::types::spec::{Fallback, PoolSpec, Rebalance};

const NOW: Timestamp = Timestamp(1_000_000_000);
const WINDOW: u64 = 20;

fn member(n: u64, pool: Option<usize>, priority: u32, state: InstanceState) -> Member {
    Member {
        id: InstanceId::new(format!("i-{n}")).expect("a valid id"),
        generation: Generation(n),
        pool,
        priority,
        asked_at: Timestamp(NOW.0 - n * 5_000),
        state,
        outstanding: 0,
        unhealthy: false,
        condemned: None,
    }
}

fn states() -> impl Strategy<Value = InstanceState> {
    prop_oneof![
        1 => Just(InstanceState::Pending),
        1 => Just(InstanceState::Starting),
        3 => Just(InstanceState::InService),
    ]
}

fn around_now() -> impl Strategy<Value = Timestamp> {
    (0_u64..80_000).prop_map(|ms| Timestamp(NOW.0 - 40_000 + ms))
}

fn condemned() -> impl Strategy<Value = Option<Condemned>> {
    prop_oneof![
        8 => Just(None),
        1 => Just(Some(Condemned::PoolRemoved)),
        1 => around_now().prop_map(|drain_at| Some(Condemned::Interrupted { drain_at })),
    ]
}

fn views() -> impl Strategy<Value = PoolView> {
    let refused = (0_u64..60_000, 0_u64..90_000).prop_map(|(ago, hold)| {
        let at = Timestamp(NOW.0 - ago);
        Refused { at, hold_until: at + Duration::from_millis(hold) }
    });
    let blocked = prop::option::weighted(0.15, around_now());
    (prop::option::weighted(0.5, refused), any::<bool>(), blocked)
        .prop_map(|(refused, asking, blocked_until)| PoolView { refused, asking, blocked_until })
}

/// A random variant with what it has and the round that it is in.
#[derive(Debug, Clone)]
struct Case {
    spec: VariantSpec,
    seen: Observed,
    round: Option<ProvisionRound>,
}

impl Case {
    fn plan(&self) -> Plan {
        plan(&self.spec, &self.seen, self.round, NOW)
    }

    /// What there is once the plan has been carried out and nobody has answered yet.
    fn after(&self, plan: &Plan) -> Self {
        let mut next = self.clone();
        next.round = plan.round;
        next.seen.members.retain(|m| plan.leave.iter().all(|l| l.instance != m.id));
        for launch in &plan.launches {
            let priority = self.spec.pools[launch.pool].priority;
            for n in 0..launch.count {
                let n = 1_000 + launch.pool as u64 * 100 + u64::from(n);
                let new = member(n, Some(launch.pool), priority, InstanceState::Pending);
                next.seen.members.push(new);
            }
            next.seen.pools[launch.pool].asking = true;
            if launch.why == WhyLaunch::Move {
                next.seen.last_move_at = NOW;
            }
        }
        next
    }

    fn deficit(&self) -> u32 {
        self.seen.desired.saturating_sub(self.seen.counted())
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let pools = prop::collection::vec(1_u32..=3, 1..=4);
    let fallback =
        prop_oneof![Just(Fallback::AfterWindow), Just(Fallback::AtOnce), Just(Fallback::Parallel)];
    let member = (any::<prop::sample::Index>(), 0..10_u8, states(), 0_u64..3, any::<bool>());
    let members = prop::collection::vec((member, condemned()), 0..9);
    let round = prop::option::of((any::<prop::sample::Index>(), around_now(), 0_u32..3));
    let rest = (fallback, any::<bool>(), 0_u32..6, around_now());
    (pools, members, prop::collection::vec(views(), 4), round, rest).prop_map(
        |(mut priorities, members, views, round, (fallback, active, desired, moved))| {
            priorities.sort_unstable();
            let spec = random_spec(&priorities, fallback, active);
            let members: Vec<_> = members
                .into_iter()
                .enumerate()
                .map(|(n, ((index, gone, state, outstanding, sick), condemned))| {
                    let pool = index.index(priorities.len());
                    let mut new = member_of(n as u64, pool, priorities[pool], state, gone == 0);
                    new.outstanding = outstanding;
                    new.unhealthy = sick && state == InstanceState::InService;
                    new.condemned = new.condemned.or(condemned);
                    new
                })
                .collect();
            let mut pools = views[..priorities.len()].to_vec();
            for (i, view) in pools.iter_mut().enumerate() {
                let pending = |m: &Member| m.pool == Some(i) && m.state == InstanceState::Pending;
                view.asking |= members.iter().any(pending);
            }
            let round = round.map(|(index, window_opened_at, pass)| ProvisionRound {
                priority: priorities[index.index(priorities.len())],
                window_opened_at,
                pass,
            });
            Case { spec, seen: Observed { desired, members, pools, last_move_at: moved }, round }
        },
    )
}

fn member_of(n: u64, pool: usize, priority: u32, state: InstanceState, gone: bool) -> Member {
    let mut new = member(n, Some(pool), priority, state);
    if gone {
        new.pool = None;
        new.condemned = Some(Condemned::PoolRemoved);
    }
    new
}

fn random_spec(priorities: &[u32], fallback: Fallback, active: bool) -> VariantSpec {
    let mut spec = variant(&[], 1);
    spec.pools = priorities
        .iter()
        .enumerate()
        .map(|(i, priority)| PoolSpec {
            instance_type: kind(&format!("type-{i}")),
            priority: *priority,
            model: None,
        })
        .collect();
    spec.fallback = fallback;
    spec.provision_timeout = secs(WINDOW);
    spec.rebalance.max_share = 0.5;
    spec.rebalance.mode = if active { Rebalance::Active } else { Rebalance::OnScaleOut };
    spec
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn p1_planning_again_plans_nothing_more(case in cases()) {
        let first = case.plan();
        let second = case.after(&first).plan();
        let moves = |l: &PlannedLaunch| l.why == WhyLaunch::Move && !first.leave.is_empty();
        let again: Vec<_> = second.launches.iter().filter(|l| !moves(l)).collect();
        prop_assert_eq!((again, &second.leave), (vec![], &vec![]), "{:?}", first);
    }

    #[test]
    fn p2_launches_fill_up_to_the_desired_number(case in cases()) {
        let plan = case.plan();
        let counted = |case: &Case, upto: u32| {
            case.seen.count(|m| m.is_counted() && m.priority <= upto)
        };
        let next = case.after(&plan);
        let launched = |why| plan.launches.iter().filter(|l| l.why == why).map(|l| l.count).sum();
        let (moved, filled): (u32, u32) =
            (launched(WhyLaunch::Move), launched(WhyLaunch::Deficit));
        prop_assert!(moved <= 1);
        if case.spec.fallback == Fallback::Parallel {
            for launch in plan.launches.iter().filter(|l| l.why != WhyLaunch::Move) {
                let upto = case.spec.pools[launch.pool].priority;
                prop_assert!(counted(&next, upto) <= case.seen.desired);
            }
        } else {
            prop_assert!(filled <= case.deficit());
            prop_assert_eq!(launched(WhyLaunch::Preferred), 0);
        }
    }

    #[test]
    fn p3_a_plan_is_bounded(case in cases()) {
        let plan = case.plan();
        let launched: u32 = plan.launches.iter().map(|l| l.count).sum();
        prop_assert!(launched <= case.seen.desired.max(1));
        let mut pools: Vec<_> = plan.launches.iter().map(|l| l.pool).collect();
        pools.dedup();
        prop_assert_eq!(pools.len(), plan.launches.len(), "one launch for each pool");
        let mut leaving: Vec<_> = plan.leave.iter().map(|l| &l.instance).collect();
        leaving.sort();
        leaving.dedup();
        prop_assert_eq!(leaving.len(), plan.leave.len(), "nobody leaves twice");
        prop_assert!(leaving.len() <= case.seen.members.len());
    }

    #[test]
    fn p4_fallback_leaves_first(case in cases()) {
        let plan = case.plan();
        let stays = case.after(&plan).seen.members;
        for leave in plan.leave.iter().filter(|l| l.why == WhyLeave::Surplus) {
            let gone = case.seen.members.iter().find(|m| m.id == leave.instance);
            let gone = gone.expect("was there");
            prop_assert!(stays.iter().all(|m| m.priority <= gone.priority));
        }
    }

    #[test]
    fn p5_nobody_leaves_before_enough_are_as_far(case in cases()) {
        let plan = case.plan();
        let stays = case.after(&plan).seen;
        for leave in &plan.leave {
            let gone = case.seen.members.iter().find(|m| m.id == leave.instance);
            let gone = gone.expect("was there");
            let as_far = match leave.why {
                WhyLeave::Surplus => stays.count(|m| m.is_counted() && m.state >= gone.state),
                WhyLeave::PoolRemoved if gone.state == InstanceState::InService => {
                    // Interruptions that are due leave whatever that means for others.
                    let forced = |m: &Member| matches!(m.condemned,
                        Some(Condemned::Interrupted { .. }) if m.state == InstanceState::InService);
                    let served = |m: &Member| m.state == InstanceState::InService;
                    stays.count(served)
                        + case.seen.count(|m| forced(m) && plan.leave.iter().any(|l| l.instance == m.id))
                }
                WhyLeave::PoolRemoved | WhyLeave::Interrupted => continue,
            };
            prop_assert!(as_far >= case.seen.desired, "{:?}", plan);
        }
    }

    #[test]
    fn p6_holds_and_blocks_are_kept(case in cases()) {
        let plan = case.plan();
        for launch in &plan.launches {
            let view = case.seen.pools[launch.pool];
            prop_assert!(view.blocked_until.is_none_or(|until| until <= NOW));
            let Some(refused) = view.refused else { continue };
            prop_assert_eq!(launch.count, 1);
            prop_assert!(!view.asking);
            let priority = case.spec.pools[launch.pool].priority;
            let own_window = plan.round.is_some_and(|r| {
                let own = r.priority == priority || case.spec.fallback == Fallback::Parallel;
                own && case.spec.fallback != Fallback::AtOnce
                    && refused.at < r.window_opened_at + case.spec.provision_timeout
            });
            prop_assert!(refused.hold_until <= NOW || own_window);
        }
    }

    #[test]
    fn p7_only_a_lack_of_capacity_moves_the_turn_down(case in cases()) {
        let plan = case.plan();
        if let (Some(Turn::Moved { from }), Some(round)) = (plan.turn, plan.round) {
            for (pool, view) in case.spec.pools.iter().zip(&case.seen.pools) {
                if pool.priority == from && round.priority > from {
                    prop_assert!(view.refused.is_some());
                    prop_assert!(view.blocked_until.is_none_or(|until| until <= NOW));
                }
            }
            prop_assert!(!plan.launches.is_empty(), "a turn begins with a question");
        }
    }

    #[test]
    fn p8_a_deficit_is_acted_on_or_waited_for(case in cases()) {
        let plan = case.plan();
        let awaited = case.seen.members.iter().any(|m| m.state == InstanceState::Pending)
            || case.seen.pools.iter().any(|p| p.asking);
        if case.deficit() > 0 {
            let later = plan.wake_at.is_some_and(|at| at > NOW);
            prop_assert!(!plan.launches.is_empty() || later || awaited, "{:?}", plan);
        }
        prop_assert!(plan.wake_at.is_none_or(|at| at > NOW), "{:?}", plan);
    }

    #[test]
    fn p9_of_the_never_refused_the_most_preferred_is_asked(case in cases()) {
        let fresh = Case { round: None, ..case };
        let plan = fresh.plan();
        let asked = plan.launches.iter().filter(|l| l.why == WhyLaunch::Deficit);
        for launch in asked {
            let priority = fresh.spec.pools[launch.pool].priority;
            for (pool, view) in fresh.spec.pools.iter().zip(&fresh.seen.pools) {
                let better = pool.priority < priority && view.refused.is_none();
                prop_assert!(!better, "{:?} is passed over", pool);
            }
        }
    }
}

fn seen(desired: u32, members: Vec<Member>, pools: usize) -> Observed {
    let pools = vec![PoolView::default(); pools];
    Observed { desired, members, pools, last_move_at: Timestamp(0) }
}

#[test]
fn equal_priorities_are_filled_evenly() {
    let spec = random_spec(&[1, 1, 1], Fallback::AfterWindow, false);
    let have = vec![member(1, Some(0), 1, InstanceState::InService)];
    let plan = plan(&spec, &seen(8, have, 3), None, NOW);
    let counts: Vec<_> = plan.launches.iter().map(|l| (l.pool, l.count)).collect();
    assert_eq!(counts, [(0, 2), (1, 3), (2, 2)]);
}

#[test]
fn a_refusing_pool_leaves_its_share_to_its_equals() {
    let spec = random_spec(&[1, 1], Fallback::AfterWindow, false);
    let mut seen = seen(4, vec![], 2);
    seen.pools[0].refused = Some(Refused { at: NOW, hold_until: NOW + Duration::from_secs(9) });
    let plan = plan(&spec, &seen, None, NOW);
    let counts: Vec<_> = plan.launches.iter().map(|l| (l.pool, l.count)).collect();
    assert_eq!(counts, [(1, 4)]);
}

#[test]
fn within_a_pool_the_order_of_leaving_is_unhealthy_unfinished_idle_young() {
    let spec = random_spec(&[1], Fallback::AfterWindow, false);
    let mut members: Vec<_> =
        (1..=5).map(|n| member(n, Some(0), 1, InstanceState::InService)).collect();
    members[0].outstanding = 2;
    members[1].outstanding = 1;
    members[2].unhealthy = true;
    members[2].outstanding = 9;
    let leaving = |desired| {
        let plan = plan(&spec, &seen(desired, members.clone(), 1), None, NOW);
        plan.leave.iter().map(|l| l.instance.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(leaving(0), ["i-3", "i-5", "i-4", "i-2", "i-1"]);
    assert_eq!(leaving(3), ["i-3", "i-5"]);
}

#[test]
fn a_pending_preferred_one_drives_no_running_fallback_out() {
    let spec = random_spec(&[1, 2], Fallback::AfterWindow, false);
    let members = vec![
        member(1, Some(1), 2, InstanceState::InService),
        member(2, Some(1), 2, InstanceState::InService),
        member(3, Some(0), 1, InstanceState::Pending),
    ];
    assert_eq!(plan(&spec, &seen(2, members, 2), None, NOW).leave, []);
}

#[test]
fn an_active_variant_moves_one_at_a_time_and_at_its_pace() {
    let spec = random_spec(&[1, 2], Fallback::AfterWindow, true);
    let fallbacks = (1..=4).map(|n| member(n, Some(1), 2, InstanceState::InService)).collect();
    let mut seen = seen(4, fallbacks, 2);
    let at = |seen: &Observed, now| plan(&spec, seen, None, now);
    let expected = PlannedLaunch { pool: 0, count: 1, why: WhyLaunch::Move };
    assert_eq!(at(&seen, NOW).launches, [expected]);

    seen.last_move_at = NOW;
    let soon = NOW + Duration::from_secs(3);
    let waits = at(&seen, soon);
    assert_eq!(waits.launches, []);
    assert_eq!(waits.wake_at, Some(NOW + spec.rebalance.min_interval));

    seen.last_move_at = Timestamp(0);
    seen.pools[0].refused = Some(Refused { at: NOW, hold_until: NOW + Duration::from_secs(60) });
    let held = at(&seen, soon);
    assert_eq!((held.launches, held.wake_at), (vec![], Some(NOW + Duration::from_secs(60))));
}
