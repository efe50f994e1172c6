//! Who served for how long: integrals over time of what the store says, kept up at every commit, so that
//! they are exact whatever the fleet's size. Made only where a report is wanted.

use std::collections::BTreeMap;

use super::world::START;
use crate::types::record::{Change, InstanceRecord};
use crate::types::spec::FleetSpec;
use crate::types::{InstanceId, InstanceState, InstanceTypeName, Timestamp, VariantKey};

/// Sums since the start, in milliseconds of simulated time.
#[derive(Debug)]
pub(super) struct Usage {
    until: Timestamp,
    instances: BTreeMap<InstanceId, Held>,
    pub(super) types: BTreeMap<InstanceTypeName, TypeUse>,
    pub(super) variants: BTreeMap<VariantKey, VariantUse>,
    /// Variants with fewer instances in service than desired.
    lacking: u32,
    /// Time in which there was none.
    pub(super) full_ms: u64,
    /// Decisions, by kind.
    pub(super) decisions: BTreeMap<String, u64>,
}

/// An instance's part in the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    variant: VariantKey,
    kind: InstanceTypeName,
    serves: bool,
    paid: bool,
    fallback: bool,
}

/// Of one instance type.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct TypeUse {
    pub(super) serving: u32,
    fallback: u32,
    /// Granted and not gone yet: what is paid for.
    pub(super) paid: u32,
    pub(super) served_ms: u64,
    pub(super) fallback_ms: u64,
    pub(super) paid_ms: u64,
}

/// Of one variant.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct VariantUse {
    pub(super) desired: u32,
    serving: u32,
    /// When it last began to lack instances, if it lacks any.
    lacks_since: Option<Timestamp>,
    lacked_ms: u64,
}

impl Usage {
    /// Nothing runs yet.
    pub(super) fn new() -> Self {
        Self {
            until: START,
            instances: BTreeMap::new(),
            types: BTreeMap::new(),
            variants: BTreeMap::new(),
            lacking: 0,
            full_ms: 0,
            decisions: BTreeMap::new(),
        }
    }

    /// Adds what the time until `now` comes to.
    pub(super) fn advance(&mut self, now: Timestamp) {
        let ms = now.0.saturating_sub(self.until.0);
        if ms == 0 {
            return;
        }
        self.until = now;
        self.full_ms += if self.lacking == 0 { ms } else { 0 };
        for kind in self.types.values_mut() {
            kind.served_ms += ms * u64::from(kind.serving);
            kind.fallback_ms += ms * u64::from(kind.fallback);
            kind.paid_ms += ms * u64::from(kind.paid);
        }
    }

    /// Takes in a commit of `now`.
    pub(super) fn commit(&mut self, now: Timestamp, changes: &[Change], fleet: &FleetSpec) {
        self.advance(now);
        for change in changes {
            match change {
                Change::PutInstance(record) => {
                    self.hold(now, &record.id, Some(Held::of(record, fleet)));
                }
                Change::DeleteInstance(id) => self.hold(now, id, None),
                Change::PutVariant(record) => {
                    self.variant(now, &record.variant, |variant| variant.desired = record.desired);
                }
                Change::DeleteVariant(key) => {
                    self.variant(now, key, |variant| variant.desired = 0);
                }
                Change::Log(event) => *self.decisions.entry(event.kind.clone()).or_default() += 1,
                _ => {}
            }
        }
    }

    /// For how long a variant has had fewer in service than desired.
    pub(super) fn lacked_ms(&self, variant: &VariantUse) -> u64 {
        let open = variant.lacks_since.map_or(0, |since| self.until.0.saturating_sub(since.0));
        variant.lacked_ms + open
    }

    fn hold(&mut self, now: Timestamp, id: &InstanceId, held: Option<Held>) {
        let before = match &held {
            Some(held) => self.instances.insert(id.clone(), held.clone()),
            None => self.instances.remove(id),
        };
        if before == held {
            return;
        }
        for (held, sign) in [(before, -1), (held, 1)] {
            let Some(held) = held else { continue };
            let count = |value: &mut u32, yes: bool| {
                *value = value.saturating_add_signed(if yes { sign } else { 0 });
            };
            let kind = self.types.entry(held.kind).or_default();
            count(&mut kind.serving, held.serves);
            count(&mut kind.fallback, held.serves && held.fallback);
            count(&mut kind.paid, held.paid);
            self.variant(now, &held.variant, |variant| count(&mut variant.serving, held.serves));
        }
    }

    fn variant(&mut self, now: Timestamp, key: &VariantKey, change: impl FnOnce(&mut VariantUse)) {
        let variant = self.variants.entry(key.clone()).or_default();
        change(variant);
        match (variant.lacks_since, variant.serving < variant.desired) {
            (None, true) => {
                variant.lacks_since = Some(now);
                self.lacking += 1;
            }
            (Some(since), false) => {
                variant.lacks_since = None;
                variant.lacked_ms += now.0.saturating_sub(since.0);
                self.lacking -= 1;
            }
            _ => {}
        }
    }
}

impl Held {
    fn of(record: &InstanceRecord, fleet: &FleetSpec) -> Self {
        let spec = fleet.variant(&record.variant);
        let first = spec.and_then(|spec| spec.pools.first()).map_or(1, |pool| pool.priority);
        Self {
            variant: record.variant.clone(),
            kind: record.instance_type.clone(),
            serves: record.state == InstanceState::InService,
            paid: record.state != InstanceState::Pending,
            fallback: record.priority > first,
        }
    }
}
