//! `[[endpoint.variant.schedule]]`: other bounds of a variant's size from certain moments on.

use super::limits;
use super::reader::Table;
use super::values::{Read, Wrong};
use crate::decision::scale::schedule;
use crate::types::scaling::ScheduledAction;

/// Actions of one variant.
const MOST_ACTIONS: usize = 64;

impl Read for chrono_tz::Tz {
    const EXPECTED: &'static str = "a time zone's name";

    fn read(value: &toml::de::DeValue<'_>) -> Result<Self, Wrong> {
        let name = value.as_str().ok_or(Wrong::Type)?;
        let wrong = |_| {
            Wrong::Value("must be a time zone's name, such as \"Europe/Berlin\" or \"UTC\"".into())
        };
        name.parse().map_err(wrong)
    }
}

/// Reads the actions of a variant with these bounds.
pub(super) fn read(variant: &Table<'_>, bounds: (u32, u32)) -> Vec<ScheduledAction> {
    let tables = variant.tables("schedule", "[[endpoint.variant.schedule]]");
    if tables.len() > MOST_ACTIONS {
        let rule =
            format!("a variant may have {MOST_ACTIONS} scheduled actions, not {}", tables.len());
        variant.sink().error(tables[MOST_ACTIONS].at, rule);
    }
    let mut actions: Vec<ScheduledAction> = Vec::new();
    for table in &tables {
        let Some(action) = read_action(table, bounds) else { continue };
        if actions.iter().any(|other| other.name == action.name) {
            let rule = format!("there are two scheduled actions called \"{}\"", action.name);
            table.sink().error(table.at, rule);
        }
        actions.push(action);
    }
    actions
}

fn read_action(table: &Table<'_>, (least, most): (u32, u32)) -> Option<ScheduledAction> {
    let name = table.need::<String>("name", "which must be unique within the variant");
    let text = table.need::<String>("schedule", "such as \"cron(0 8 ? * MON-FRI *)\"");
    let zone = table.or("timezone", chrono_tz::UTC);
    let min = table.get_in("min_instance_count", limits::INSTANCES, u32::to_string);
    let most_of_all = *limits::INSTANCES.end();
    let max = table.get_in("max_instance_count", 1..=most_of_all, u32::to_string);
    let when = text.and_then(|text| match schedule::parse(&text.value, zone) {
        Ok(when) => Some(when),
        Err(why) => {
            table.sink().error(text.at, format!("`schedule` {why}"));
            None
        }
    });
    let (low, high) = (
        min.as_ref().map_or(least, |found| found.value),
        max.as_ref().map_or(most, |found| found.value),
    );
    match min.as_ref().or(max.as_ref()) {
        None => {
            let rule =
                "a scheduled action needs `min_instance_count`, `max_instance_count` or both";
            table.sink().error(table.at, rule);
        }
        Some(found) if low > high => {
            let rule =
                format!("this action would ask for at least {low} instances and at most {high}");
            table.sink().error(found.at, rule);
        }
        Some(_) => {}
    }
    let (min, max) = (min.map(|found| found.value), max.map(|found| found.value));
    Some(ScheduledAction { name: name?.value, when: when?, min, max })
}
