//! Scheduled actions: other bounds of a variant's size from certain moments on, written as Application Auto
//! Scaling has them (<https://docs.aws.amazon.com/autoscaling/application/userguide/scheduled-scaling-using-cron-expressions.html>):
//!
//! * `at(2026-12-24T18:00:00)`: once;
//! * `cron(minutes hours day-of-month month day-of-week year)`: again and again; days of the week count from 1,
//!   Sunday, or are `SUN` to `SAT`; `?` stands where the other of the two days decides; `*`, `,`, `-`, `/`, `L`,
//!   `W` and `#` as there.
//!
//! Both by the clocks of a time zone. In spring, what falls into the hour that is left out happens right behind
//! it; in autumn, what falls into the hour that comes twice happens once.
//!
//! Nothing is remembered: in force is the action whose moment was the last to pass, however long ago, and of two
//! of the same moment the later one in the config. So a restart changes nothing, and a clock that jumps ends
//! where it should. Before the first moment of all, the variant's own bounds are in force.

use chrono::{DateTime, Datelike, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};

use crate::types::Timestamp;
use crate::types::scaling::{Bounds, Schedule, ScheduledAction};
use crate::types::spec::VariantSpec;

/// How `at` is written.
const AT: &str = "%Y-%m-%dT%H:%M:%S";
/// Why a time is refused that RFC 3339 cannot write in UTC.
const BEYOND: &str = "names a time beyond the year 9999";

/// Reads `text`, whose times are those of `zone`.
///
/// # Errors
/// What is wrong with it, as the rest of a sentence that begins with "`schedule`".
pub fn parse(text: &str, zone: Tz) -> Result<Schedule, String> {
    let within = |kind: &str| text.trim().strip_prefix(kind)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(time) = within("at") {
        let wrong = |_| "must have a time such as at(2026-12-24T18:00:00)".to_owned();
        let time = NaiveDateTime::parse_from_str(time.trim(), AT).map_err(wrong)?;
        if !(1_900..=9_999).contains(&time.year()) {
            let before = "names a time before 1970";
            return Err(if time.year() < 1_970 { before } else { BEYOND }.to_owned());
        }
        let there = zone.from_local_datetime(&time).earliest();
        let there = there.ok_or_else(|| format!("names a time that {zone} leaves out: {time}"))?;
        let millis = u64::try_from(there.timestamp_millis());
        let at = Timestamp(millis.map_err(|_| "names a time before 1970".to_owned())?);
        return if at.is_writable() { Ok(Schedule::At(at)) } else { Err(BEYOND.to_owned()) };
    }
    if let Some(fields) = within("cron") {
        let count = fields.split_whitespace().count();
        if count != 6 {
            return Err(format!(
                "must have six fields (minutes hours day-of-month month day-of-week year), not {count}"
            ));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Required)
            .year(Year::Required)
            .alternative_weekdays(true)
            .sloppy_ranges(true)
            .build();
        let pattern = parser.parse(&format!("0 {fields}"));
        let pattern = Box::new(pattern.map_err(|error| format!("is no pattern: {error}"))?);
        let schedule = Schedule::Cron { pattern, zone };
        // Whoever asks for its moments would walk through all years there are each time.
        return match schedule.next(Timestamp(0)) {
            Some(_) => Ok(schedule),
            None => Err("is a moment that never comes".to_owned()),
        };
    }
    if within("rate").is_some() {
        // It has no beginning of its own, and would set the same bounds each time.
        return Err("must be at(…) or cron(…): a rate says nothing of when".to_owned());
    }
    Err("must be at(…) or cron(…)".to_owned())
}

impl Schedule {
    /// The last of its moments that has passed.
    fn last(&self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::At(at) => Some(*at).filter(|at| *at <= now),
            Self::Cron { pattern, zone } => {
                let found = pattern.find_previous_occurrence(&local(now, *zone)?, true).ok()?;
                Some(timestamp(&found)).filter(|at| *at <= now)
            }
        }
    }

    /// The first of its moments that is to come.
    fn next(&self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::At(at) => Some(*at).filter(|at| *at > now),
            Self::Cron { pattern, zone } => {
                // Its moments are whole seconds: the next one is no less than one away.
                let from = local(now, *zone)? + TimeDelta::seconds(1);
                let found = pattern.find_next_occurrence(&from, true).ok()?;
                Some(timestamp(&found)).filter(|at| *at > now)
            }
        }
    }
}

/// As clocks there show it, to the second.
fn local(at: Timestamp, zone: Tz) -> Option<DateTime<Tz>> {
    let seconds = i64::try_from(at.0 / 1_000).ok()?;
    Utc.timestamp_opt(seconds, 0).single().map(|time| time.with_timezone(&zone))
}

fn timestamp(time: &DateTime<Tz>) -> Timestamp {
    Timestamp(u64::try_from(time.timestamp_millis()).unwrap_or(0))
}

/// The action in force, and since when.
#[must_use]
pub fn in_force(
    actions: &[ScheduledAction],
    now: Timestamp,
) -> Option<(&ScheduledAction, Timestamp)> {
    let passed = actions.iter().filter_map(|action| Some((action, action.when.last(now)?)));
    // Of equal ones the last.
    passed.max_by_key(|(_, at)| *at)
}

/// The action that comes next, and when.
#[must_use]
pub fn next(actions: &[ScheduledAction], now: Timestamp) -> Option<(&ScheduledAction, Timestamp)> {
    let coming = actions.iter().filter_map(|action| Some((action, action.when.next(now)?)));
    // Of equal ones the last.
    coming.rev().min_by_key(|(_, at)| *at)
}

/// The bounds of the variant's size at `now`.
#[must_use]
pub fn bounds(spec: &VariantSpec, now: Timestamp) -> Bounds {
    match in_force(&spec.schedule, now) {
        Some((action, _)) => bounds_of(action, spec),
        None => Bounds { min: spec.min_instance_count, max: spec.max_instance_count },
    }
}

/// The bounds that `action` brings.
#[must_use]
pub fn bounds_of(action: &ScheduledAction, spec: &VariantSpec) -> Bounds {
    Bounds {
        min: action.min.unwrap_or(spec.min_instance_count),
        max: action.max.unwrap_or(spec.max_instance_count),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        let time: DateTime<Utc> = text.parse().expect("a time");
        Timestamp(u64::try_from(time.timestamp_millis()).expect("after 1970"))
    }

    fn action(name: &str, when: &str, zone: Tz) -> ScheduledAction {
        let when = parse(when, zone).expect("a schedule");
        ScheduledAction { name: name.to_owned(), when, min: None, max: None }
    }

    fn name(found: Option<(&ScheduledAction, Timestamp)>) -> Option<(&str, Timestamp)> {
        found.map(|(action, at)| (action.name.as_str(), at))
    }

    #[test]
    fn the_last_moment_that_passed_is_in_force() {
        let berlin = chrono_tz::Europe::Berlin;
        let actions = [
            action("night", "cron(0 20 * * ? *)", berlin),
            action("day", "cron(30 7 ? * MON-FRI *)", berlin),
            action("launch", "at(2026-12-02T12:00:00)", berlin),
        ];
        // A Tuesday in winter, an hour ahead of UTC.
        let expect = [
            (
                "2026-12-01T06:29:59Z",
                "night",
                "2026-11-30T19:00:00Z",
                "day",
                "2026-12-01T06:30:00Z",
            ),
            (
                "2026-12-01T06:30:00Z",
                "day",
                "2026-12-01T06:30:00Z",
                "night",
                "2026-12-01T19:00:00Z",
            ),
            (
                "2026-12-02T10:59:59Z",
                "day",
                "2026-12-02T06:30:00Z",
                "launch",
                "2026-12-02T11:00:00Z",
            ),
            (
                "2026-12-02T11:00:00Z",
                "launch",
                "2026-12-02T11:00:00Z",
                "night",
                "2026-12-02T19:00:00Z",
            ),
            // A Sunday: nothing in the morning.
            (
                "2026-12-06T12:00:00Z",
                "night",
                "2026-12-05T19:00:00Z",
                "night",
                "2026-12-06T19:00:00Z",
            ),
        ];
        for (now, force, since, coming, then) in expect {
            let now = at(now);
            assert_eq!(name(in_force(&actions, now)), Some((force, at(since))), "{now}");
            assert_eq!(name(next(&actions, now)), Some((coming, at(then))), "{now}");
        }
        let once = [action("launch", "at(2026-12-02T12:00:00)", berlin)];
        assert_eq!(name(in_force(&once, at("2026-12-02T10:59:59.999Z"))), None);
        assert_eq!(name(next(&once, at("2026-12-02T11:00:00Z"))), None);
    }

    #[test]
    fn of_the_same_moment_the_later_one_holds() {
        let utc = Tz::UTC;
        let both =
            [action("a", "cron(0 8 * * ? *)", utc), action("b", "at(2026-12-01T08:00:00)", utc)];
        let then = at("2026-12-01T08:00:00Z");
        assert_eq!(name(in_force(&both, then)), Some(("b", then)));
        assert_eq!(name(next(&both, at("2026-12-01T07:00:00Z"))), Some(("b", then)));
    }

    #[test]
    fn days_are_counted_as_aws_counts_them() {
        let (utc, now) = (Tz::UTC, at("2026-11-25T12:00:00Z"));
        for (pattern, expected) in [
            // The 25th is a Wednesday, the fourth day.
            ("cron(0 10 ? * 1 *)", "2026-11-29T10:00:00Z"),
            ("cron(0 10 ? * 4 *)", "2026-12-02T10:00:00Z"),
            ("cron(15 10 ? * 6L *)", "2026-11-27T10:15:00Z"),
            ("cron(0 18 L * ? *)", "2026-11-30T18:00:00Z"),
            ("cron(0 9 ? * 2#1 *)", "2026-12-07T09:00:00Z"),
            ("cron(0/15 * * * ? *)", "2026-11-25T12:15:00Z"),
            ("cron(0 0 1 1 ? 2028)", "2028-01-01T00:00:00Z"),
        ] {
            let actions = [action("a", pattern, utc)];
            assert_eq!(name(next(&actions, now)), Some(("a", at(expected))), "{pattern}");
        }
        let past = [action("a", "cron(0 0 1 1 ? 2020)", utc)];
        assert_eq!(name(next(&past, now)), None);
        assert_eq!(name(in_force(&past, now)), Some(("a", at("2020-01-01T00:00:00Z"))));
    }

    #[test]
    fn clocks_that_are_set_leave_nothing_out() {
        let berlin = chrono_tz::Europe::Berlin;
        let actions = [action("early", "cron(30 2 * * ? *)", berlin)];
        // From 2:00 to 3:00 on 29 March 2026.
        let spring = next(&actions, at("2026-03-28T12:00:00Z")).expect("one").1;
        assert_eq!(spring, at("2026-03-29T01:00:00Z"));
        assert_eq!(next(&actions, spring).expect("one").1, at("2026-03-30T00:30:00Z"));
        // From 3:00 back to 2:00 on 25 October 2026.
        let autumn = next(&actions, at("2026-10-24T12:00:00Z")).expect("one").1;
        assert_eq!(autumn, at("2026-10-25T00:30:00Z"));
        assert_eq!(next(&actions, autumn).expect("one").1, at("2026-10-26T01:30:00Z"));
    }

    #[test]
    fn what_is_no_schedule_is_told() {
        for (text, says) in [
            ("", "must be at(…) or cron(…)"),
            ("cron(0 8 * * ?)", "not 5"),
            ("cron(0 25 * * ? *)", "is no pattern"),
            ("at(tomorrow)", "must have a time"),
            ("at(1960-01-01T00:00:00)", "before 1970"),
            ("rate(1 day)", "a rate says nothing of when"),
            ("at(2026-03-29T02:30:00)", "leaves out"),
        ] {
            let error = parse(text, chrono_tz::Europe::Berlin).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn times_that_nobody_can_write_are_no_schedule() {
        let new_york = chrono_tz::America::New_York;
        assert!(parse("at(9999-12-31T18:59:59)", new_york).is_ok());
        for (text, zone) in [
            ("at(9999-12-31T23:59:59)", new_york),
            ("at(+12000-01-01T00:00:00)", Tz::UTC),
            ("at(+262142-12-31T23:59:59)", new_york),
        ] {
            let error = parse(text, zone).expect_err(text);
            assert_eq!(error, BEYOND, "{text}");
        }
        assert!(parse("at(-262143-01-01T00:00:00)", chrono_tz::Asia::Tokyo).is_err());
    }

    #[test]
    fn what_never_happens_is_no_schedule() {
        for text in ["cron(0 0 30 2 ? *)", "cron(0 0 29 2 ? 2027)", "cron(0 0 31 4,6,9,11 ? *)"] {
            let error = parse(text, Tz::UTC).expect_err(text);
            assert!(error.contains("never comes"), "{text}: {error}");
        }
        for text in ["cron(0 0 29 2 ? *)", "cron(0 0 31 4,5 ? *)", "cron(0 0 1 1 ? 2020)"] {
            assert!(parse(text, Tz::UTC).is_ok(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(cron|at)\\([0-9*?,/LW# TSUNMON:-]{0,40}\\)", now in 0_u64..4_000_000_000_000) {
            if let Ok(when) = parse(&text, Tz::UTC) {
                let (last, next) = (when.last(Timestamp(now)), when.next(Timestamp(now)));
                prop_assert!(last.is_none_or(|at| at.0 <= now) && next.is_none_or(|at| at.0 > now));
            }
        }

        #[test]
        fn what_comes_next_is_then_in_force(
            minutes in proptest::collection::vec((0_u32..60, 0_u32..24), 1..5),
            now in 1_700_000_000_000_u64..1_900_000_000_000,
        ) {
            let zone = chrono_tz::America::New_York;
            let actions: Vec<_> = minutes
                .iter()
                .enumerate()
                .map(|(n, (m, h))| action(&n.to_string(), &format!("cron({m} {h} * * ? *)"), zone))
                .collect();
            let (coming, then) = next(&actions, Timestamp(now)).expect("every day");
            prop_assert_eq!(name(in_force(&actions, then)), Some((coming.name.as_str(), then)));
            let before = in_force(&actions, Timestamp(then.0 - 1));
            prop_assert_eq!(name(before), name(in_force(&actions, Timestamp(now))));
        }
    }
}
