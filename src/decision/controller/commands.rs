//! What an operator may ask for: a size, or that one instance leaves.

use crate::types::scaling::Bounds;
use crate::types::{InstanceId, InstanceState, Timestamp, VariantKey};

use super::events::{EventKind, Leave};
use super::machine::Trigger;
use super::{CommandError, Controller};

impl Controller {
    pub(super) fn command_desired(
        &mut self,
        now: Timestamp,
        endpoint: &str,
        variant: Option<&str>,
        count: u32,
    ) -> Result<VariantKey, CommandError> {
        let key = self.find_variant(endpoint, variant)?;
        // A scaling policy that is due speaks first, and not over what is asked for now.
        self.catch_up(now);
        let Some(entry) = self.variants.get_mut(&key) else {
            return Err(CommandError::UnknownEndpoint(endpoint.to_owned()));
        };
        let Bounds { min, max } = entry.bounds;
        if !(min..=max).contains(&count) {
            return Err(CommandError::OutOfBounds { variant: key, count, min, max });
        }
        // What was asked for before no longer wakes it.
        entry.latched_demand = 0;
        entry.waking = false;
        entry.last_busy_at = now;
        let old = std::mem::replace(&mut entry.record.desired, count);
        if old != count {
            self.journal.variants.insert(key.clone());
            let message =
                format!("an operator changes {key} from {old} to {count} instances desired");
            self.log(now, EventKind::DesiredChanged, &key, None, message);
        }
        self.dirty.insert(key.clone());
        self.settle(now);
        Ok(key)
    }

    fn find_variant(
        &self,
        endpoint: &str,
        variant: Option<&str>,
    ) -> Result<VariantKey, CommandError> {
        let spec = self.spec.endpoints.iter().find(|e| e.name.as_str() == endpoint);
        let Some(spec) = spec else {
            return Err(CommandError::UnknownEndpoint(endpoint.to_owned()));
        };
        let known = || spec.variants.iter().map(|v| v.name.as_str()).collect::<Vec<_>>().join(", ");
        let endpoint = spec.name.clone();
        let found = match (variant, &spec.variants[..]) {
            (None, [only]) => only,
            (None, _) => return Err(CommandError::AmbiguousVariant { endpoint, known: known() }),
            (Some(name), all) => {
                let Some(found) = all.iter().find(|v| v.name.as_str() == name) else {
                    let variant = name.to_owned();
                    return Err(CommandError::UnknownVariant { endpoint, variant, known: known() });
                };
                found
            }
        };
        Ok(VariantKey { endpoint, variant: found.name.clone() })
    }

    pub(super) fn command_drain(
        &mut self,
        now: Timestamp,
        instance: &str,
    ) -> Result<(), CommandError> {
        let unknown = || CommandError::UnknownInstance(instance.to_owned());
        let id = InstanceId::new(instance).map_err(|_| unknown())?;
        let state = self.fleet.get(&id).ok_or_else(unknown)?.state();
        let because = match state {
            InstanceState::InService => "an operator drains it",
            _ => "an operator lets it go",
        };
        let leave = Leave::new(EventKind::OperatorDrain, because);
        self.apply(now, &id, Trigger::Released, Some(&leave));
        self.settle(now);
        Ok(())
    }
}
