//! Scheduled actions at work: at each one's moment the variant's size is kept between other bounds, at once
//! where it is outside of them. Which action is in force is told by the clock alone
//! ([`crate::decision::scale::schedule`]).

use crate::decision::scale::schedule;
use crate::types::spec::VariantSpec;
use crate::types::{Timestamp, VariantKey};

use super::Controller;
use super::events::EventKind;
use super::timers::Waiter;
use super::variant::Variant;

impl Controller {
    /// Waits for the next moment of each variant's actions.
    pub(super) fn follow_schedules(&mut self, now: Timestamp) {
        for (key, variant) in &self.variants {
            let next = variant.schedule().and_then(|spec| schedule::next(&spec.schedule, now));
            self.timers.set(Waiter::Schedule(key.clone()), next.map(|(_, at)| at));
        }
    }

    /// A moment has come.
    pub(super) fn keep_schedule(&mut self, now: Timestamp, key: &VariantKey) {
        let Some(variant) = self.variants.get_mut(key) else { return };
        let Some(spec) = variant.spec.clone().filter(|_| variant.configured) else { return };
        let next = schedule::next(&spec.schedule, now);
        self.timers.set(Waiter::Schedule(key.clone()), next.map(|(_, at)| at));
        let Some((action, _)) = schedule::in_force(&spec.schedule, now) else { return };
        variant.bounds = schedule::bounds_of(action, &spec);
        let size = variant.bounds.clamp(variant.record.desired);
        let before = std::mem::replace(&mut variant.record.desired, size);
        let (min, max) = (variant.bounds.min, variant.bounds.max);
        let mut message = format!(
            "scheduled action {} keeps {key} between {min} and {max} instances",
            action.name
        );
        if size != before {
            message += &format!(", which takes it from {before} to {size}");
            self.journal.variants.insert(key.clone());
        }
        self.log(now, EventKind::Scheduled, key, None, message);
        self.dirty.insert(key.clone());
    }
}

impl Variant {
    /// The spec, where the config has the variant.
    fn schedule(&self) -> Option<&VariantSpec> {
        self.spec.as_deref().filter(|_| self.configured)
    }

    /// A line for the action in force, and one for the next.
    pub(super) fn explain_schedule(&self, now: Timestamp) -> Vec<String> {
        let Some(spec) = self.schedule() else { return Vec::new() };
        let between = |action| {
            let bounds = schedule::bounds_of(action, spec);
            format!("between {} and {} instances", bounds.min, bounds.max)
        };
        let force = schedule::in_force(&spec.schedule, now).map(|(action, at)| {
            format!("scheduled action {} since {at}: {}", action.name, between(action))
        });
        let next = schedule::next(&spec.schedule, now).map(|(action, at)| {
            format!("scheduled action {} from {at} on: {}", action.name, between(action))
        });
        force.into_iter().chain(next).collect()
    }
}
