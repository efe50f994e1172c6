//! Step scaling, with the fleets of the tests beside it.

use super::*;

#[test]
fn steps_are_chosen_by_the_distance_from_the_threshold() {
    let step = |from, to, change| Step { from, to, change };
    let policy = |above, adjustment, least, steps: &[Step]| ScalingPolicy {
        rule: Rule::Step { threshold: 10.0, above, adjustment, least, steps: steps.to_vec() },
        scale_out_periods: 1,
        scale_in_periods: 1,
        ..tracking(Signal::BuiltIn(BuiltIn::ConcurrencyPerCopy))
    };
    let up = [step(Some(0.0), Some(5.0), 1.0), step(Some(5.0), None, 3.0)];
    let wants = |policy: &ScalingPolicy, requests, desired| {
        Fleet::new().minutes(1, (4, requests), (0, 0.0)).ask(policy, desired).wants
    };
    let more = policy(true, Adjustment::ChangeInCapacity, 0, &up);
    assert_eq!(wants(&more, 9.0, 4), None);
    assert_eq!(wants(&more, 10.0, 4), Some(5));
    assert_eq!(wants(&more, 15.0, 4), Some(7));
    // Those that are coming count: the same step is not taken again, a larger one adds what it has more.
    assert_eq!(wants(&more, 10.0, 5), None);
    assert_eq!(wants(&more, 15.0, 5), Some(7));
    assert_eq!(wants(&more, 15.0, 9), None);
    // The same within the cooldown, though they have come.
    let mut fleet = Fleet::new().minutes(1, (4, 12.0), (0, 0.0));
    fleet.last.out = Some((Timestamp(START), 4));
    fleet.last.out_from = Some(3);
    assert_eq!(fleet.ask(&more, 4).wants, None);
    let mut later = more.clone();
    later.scale_out_cooldown = Duration::from_secs(60);
    assert_eq!(fleet.ask(&later, 4).wants, Some(5));
    // A change that is to come, since the clock was set back, holds up nothing.
    fleet.last.out = Some((Timestamp(START + 86_400_000), 4));
    assert_eq!(fleet.ask(&more, 4).wants, Some(5));
    // A step that adds may be below its threshold too: where free slots are few, say.
    let free = policy(false, Adjustment::ChangeInCapacity, 0, &[step(None, Some(0.0), 1.0)]);
    assert_eq!([4, 5].map(|desired| wants(&free, 9.0, desired)), [Some(5), None]);
    fleet.last.out = Some((Timestamp(START), 4));
    assert_eq!(
        fleet
            .ask(&policy(false, Adjustment::ChangeInCapacity, 0, &[step(None, None, 1.0)]), 4)
            .wants,
        None
    );
    let fewer = policy(false, Adjustment::ChangeInCapacity, 0, &[step(None, Some(0.1), -6.0)]);
    assert_eq!(wants(&fewer, 3.0, 4), Some(0), "never fewer than none");
    assert_eq!(wants(&fewer, 11.0, 4), None);
    // Below the threshold the bounds are the other way round: each step has its upper one.
    let down = [
        step(None, Some(-4.0), -5.0),
        step(Some(-4.0), Some(-2.0), -3.0),
        step(Some(-2.0), Some(0.0), -1.0),
    ];
    let fewer = policy(false, Adjustment::ChangeInCapacity, 0, &down);
    for (requests, size) in [
        (10.5, None),
        (10.0, Some(8)),
        (8.5, Some(8)),
        (8.0, Some(6)),
        (6.5, Some(6)),
        (6.0, Some(4)),
        (0.0, Some(4)),
    ] {
        assert_eq!(wants(&fewer, requests, 9), size, "{requests}");
    }
    let exact = policy(true, Adjustment::ExactCapacity, 0, &[step(Some(0.0), None, 9.0)]);
    assert_eq!(wants(&exact, 12.0, 4), Some(9));
    for (desired, percent, least, size) in [
        (10, 25.0, 0, 12),
        (10, 5.0, 0, 11),
        (10, 5.0, 3, 13),
        (10, -25.0, 0, 8),
        (10, -5.0, 0, 9),
        (10, -5.0, 2, 8),
    ] {
        assert_eq!(
            adjusted(desired, Adjustment::PercentChangeInCapacity, percent, least),
            size,
            "{percent} % of {desired}, at least {least}"
        );
    }
}
