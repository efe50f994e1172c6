//! `forebay plan`: what a manager that started now would do first, without doing any of it.

use std::sync::Arc;

use crate::types::launch::{ProviderInstance, ProviderStatus};
use crate::types::record::{Change, StoredState};
use crate::types::spec::FleetSpec;
use crate::types::{InstanceState, Timestamp};

use super::{Action, Controller, Event};

/// What the first rounds would do, one sentence each, in order. It runs the real controller on a copy of
/// the state, taking every recorded instance that was granted as running; nothing leaves this function.
#[must_use]
pub fn preview(now: Timestamp, spec: Arc<FleetSpec>, stored: StoredState) -> Vec<String> {
    let running: Vec<_> =
        stored.instances.iter().filter(|i| i.state != InstanceState::Pending).cloned().collect();
    let mut controller = Controller::new(0, now, spec, stored, 0);
    let mut lines = Vec::new();
    let mut lists = Vec::new();
    while let Some(action) = controller.poll_action() {
        match action {
            Action::List(provider) => lists.push(provider),
            other => tell(other, &mut lines),
        }
    }
    for provider in lists {
        let there = running.iter().filter(|i| i.provider == provider);
        let list = there.map(|i| ProviderInstance {
            id: i.id.clone(),
            instance_type: i.instance_type.clone(),
            variant: Some(i.variant.clone()),
            address: i.address.clone(),
            status: ProviderStatus::Running,
            interruption_at: None,
        });
        let result = Ok(list.collect());
        controller.handle_event(now, Event::Listed { provider, result });
        while let Some(action) = controller.poll_action() {
            tell(action, &mut lines);
        }
    }
    if lines.is_empty() {
        lines.push("nothing: the fleet is as it should be, as far as the store knows".to_owned());
    }
    lines
}

fn tell(action: Action, lines: &mut Vec<String>) {
    match action {
        Action::Persist(changes) => {
            let events = changes.into_iter().filter_map(|change| match change {
                Change::Log(event) => Some(event.message),
                _ => None,
            });
            lines.extend(events);
        }
        Action::Launch { provider, batch } => lines.push(format!(
            "launch {} × {} at {provider} for {}",
            batch.instances.len(),
            batch.instance_type,
            batch.variant
        )),
        Action::Terminate { provider, instance } => {
            lines.push(format!("terminate {instance} at {provider}"));
        }
        Action::List(_) | Action::Probe(_) | Action::Publish(_) => {}
    }
}
