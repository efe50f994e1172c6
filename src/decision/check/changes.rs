//! What holds for a batch of durable changes: the edges of an instance's life, the variant's size, who
//! leaves first, and when a leaving instance may be stopped and forgotten.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Violation;
use super::ledger::{Heard, Known, Ledger};
use super::table::wrong;
use crate::types::record::{CapacityKey, Change, InstanceRecord, VariantRecord};
use crate::types::spec::{Fallback, Rebalance, VariantSpec};
use crate::types::{
    Generation, InstanceId, InstanceState, InstanceTypeName, ProviderName, Timestamp, VariantKey,
};

/// What one that fails its probes, or is being ended by its provider, must be given at least.
const FORCED_DRAIN: Duration = Duration::from_secs(30);

/// An instance that a batch takes out of its variant by choice.
struct Removed {
    id: InstanceId,
    variant: VariantKey,
    priority: u32,
    state: InstanceState,
}

/// Generations that no instance had before a batch, and those that the batch has given out.
struct Fresh {
    from: u64,
    taken: BTreeSet<Generation>,
}

/// Checks `batch` and enters it into the books.
pub(super) fn check(ledger: &mut Ledger, now: Timestamp, batch: &[Change]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut grown = BTreeSet::new();
    let mut removed = Vec::new();
    // Within a batch the order says nothing, so generations must be new beside those before the batch.
    let mut fresh = Fresh { from: ledger.next_generation, taken: BTreeSet::new() };
    for change in batch {
        match change {
            Change::PutInstance(record) => {
                removed.extend(chosen(ledger, now, &record.id, Some(record.state)));
                if put_instance(ledger, now, record, &mut fresh, &mut found) {
                    grown.insert(record.variant.clone());
                }
            }
            Change::DeleteInstance(id) => {
                removed.extend(chosen(ledger, now, id, None));
                delete_instance(ledger, id, &mut found);
            }
            Change::PutVariant(record) => put_variant(ledger, record, &mut found),
            Change::DeleteVariant(key) => drop(ledger.variants.remove(key)),
            Change::PutCapacity(record) => {
                ledger.refusing.insert(type_of(&record.key));
            }
            Change::DeleteCapacity(key) => drop(ledger.refusing.remove(&type_of(key))),
            // The books follow the reports themselves.
            Change::PutProxy(_) | Change::Log(_) => {}
            Change::DeleteProxy(id) => found.extend(ledger.forget_proxy(now, id)),
        }
    }
    for change in batch {
        if let Change::DeleteVariant(key) = change {
            check_deleted_variant(ledger, key, &mut found);
        }
    }
    for variant in &grown {
        found.extend(too_many(ledger, now, variant));
    }
    check_order(ledger, &removed, &mut found);
    found
}

pub(super) fn type_of(key: &CapacityKey) -> (ProviderName, InstanceTypeName) {
    (key.provider.clone(), key.instance_type.clone())
}

/// The instance `id`, if putting it into `to` (or deleting it) takes it out of its variant and nothing
/// but the controller's choice asks for that. Dropping what was never granted is not a removal.
fn chosen(
    ledger: &Ledger,
    now: Timestamp,
    id: &InstanceId,
    to: Option<InstanceState>,
) -> Option<Removed> {
    let known = ledger.instances.get(id)?;
    let from = known.record.state;
    let leaves = to.is_none_or(InstanceState::is_leaving) && !from.is_leaving();
    if !leaves || from == InstanceState::Pending || condemned(ledger, now, known) {
        return None;
    }
    // One whose pool left the config goes before all others; if it serves, only once it is replaced.
    let unwanted = outdated(ledger, &known.record);
    if unwanted && from != InstanceState::InService {
        return None;
    }
    Some(Removed {
        id: id.clone(),
        variant: known.record.variant.clone(),
        priority: if unwanted { u32::MAX } else { priority(ledger, &known.record) },
        state: from,
    })
}

/// Whether something other than a choice asks for its going.
fn condemned(ledger: &Ledger, now: Timestamp, known: &Known) -> bool {
    let record = &known.record;
    let Some(spec) = ledger.spec.variant(&record.variant) else { return true };
    // One that does not run yet has the first of its clocks alone.
    let clock = match spec.model_download_timeout {
        Duration::ZERO => spec.startup_timeout,
        download => download,
    };
    let late = record.state == InstanceState::Starting
        && record.granted_at.unwrap_or(record.asked_at) + clock <= now;
    late || known.drain_asked
        || known.gone
        || known.refused
        || known.failing
        || known.interruption_at.is_some()
}

/// Whether the config no longer asks for such an instance. A changed model or limit does not condemn
/// what runs.
fn outdated(ledger: &Ledger, record: &InstanceRecord) -> bool {
    let Some(spec) = ledger.spec.variant(&record.variant) else { return true };
    let kind = ledger.spec.instance_types.get(&record.instance_type);
    !spec.pools.iter().any(|pool| pool.instance_type == record.instance_type)
        || kind.is_none_or(|kind| kind.provider != record.provider)
}

/// The priority by the present config, or the recorded one where the pool is gone from it.
fn priority(ledger: &Ledger, record: &InstanceRecord) -> u32 {
    let pools = ledger.spec.variant(&record.variant).map(|spec| spec.pools.as_slice());
    pools
        .unwrap_or_default()
        .iter()
        .find(|pool| pool.instance_type == record.instance_type)
        .map_or(record.priority, |pool| pool.priority)
}

/// Checks and enters a record; whether it is a new one that counts towards its variant.
fn put_instance(
    ledger: &mut Ledger,
    now: Timestamp,
    record: &InstanceRecord,
    fresh: &mut Fresh,
    found: &mut Vec<Violation>,
) -> bool {
    use InstanceState::{Draining, InService, Pending, Starting, Stopping};
    let Some(known) = ledger.instances.get(&record.id) else {
        put_new(ledger, record, fresh, found);
        return true;
    };
    let before = &known.record;
    let edge = match (before.state, record.state) {
        (from, to) if from == to => true,
        (Pending, Starting | Stopping | Draining)
        | (Starting, InService | Draining | Stopping)
        | (InService, Draining | Stopping)
        | (Draining, Stopping) => true,
        _ => false,
    };
    if !edge {
        found.push(Violation::BadTransition {
            instance: record.id.clone(),
            from: Some(before.state),
            to: record.state,
        });
    }
    check_identity(before, record, found);
    if before.state != record.state {
        match record.state {
            InService => check_in_service(known, record, found),
            Draining => check_deadline(ledger, now, known, record, found),
            Stopping => {
                if let Some(why) = not_over(ledger, now, known, record) {
                    found.push(Violation::StoppedEarly { instance: record.id.clone(), why });
                }
            }
            Pending | Starting => {}
        }
    }
    if let Some(known) = ledger.instances.get_mut(&record.id) {
        known.record = record.clone();
    }
    false
}

fn put_new(
    ledger: &mut Ledger,
    record: &InstanceRecord,
    fresh: &mut Fresh,
    found: &mut Vec<Violation>,
) {
    let listed = ledger.listed.get(&record.provider).and_then(|list| list.get(&record.id));
    let adoptable = listed.is_some_and(|variant| variant.as_ref() == Some(&record.variant));
    let edge = match record.state {
        InstanceState::Pending => true,
        InstanceState::Starting | InstanceState::Stopping => adoptable,
        InstanceState::InService | InstanceState::Draining => false,
    };
    if !edge {
        let (instance, to) = (record.id.clone(), record.state);
        found.push(Violation::BadTransition { instance, from: None, to });
    }
    if record.generation.0 < fresh.from || !fresh.taken.insert(record.generation) {
        found.push(Violation::GenerationReused {
            instance: record.id.clone(),
            generation: record.generation,
        });
    }
    for (field, value) in [("copies", record.copies), ("max_concurrency", record.max_concurrency)] {
        if value == 0 {
            found.push(wrong(format!("instance {}", record.id), field, "0".into()));
        }
    }
    ledger.next_generation = ledger.next_generation.max(record.generation.0 + 1);
    ledger.enter(record.clone());
    if record.state != InstanceState::Pending
        && let Some(known) = ledger.instances.get_mut(&record.id)
    {
        known.sent = true;
    }
}

fn check_identity(before: &InstanceRecord, after: &InstanceRecord, found: &mut Vec<Violation>) {
    let same = before.generation == after.generation
        && before.variant == after.variant
        && before.instance_type == after.instance_type
        && before.provider == after.provider
        && before.model == after.model
        && before.copies == after.copies;
    if !same {
        found.push(wrong(
            format!("instance {}", after.id),
            "an identity",
            "other than before".into(),
        ));
    }
}

fn check_in_service(known: &Known, record: &InstanceRecord, found: &mut Vec<Violation>) {
    let what = || format!("instance {}", record.id);
    if record.address.is_none() {
        found.push(wrong(what(), "state", "InService without an address".into()));
    }
    if !known.healthy {
        found.push(wrong(what(), "state", "InService without a healthy answer".into()));
    }
}

fn check_deadline(
    ledger: &Ledger,
    now: Timestamp,
    known: &Known,
    record: &InstanceRecord,
    found: &mut Vec<Violation>,
) {
    let Some(spec) = ledger.spec.variant(&record.variant) else { return };
    let forced = if known.failing || known.gone { FORCED_DRAIN } else { Duration::MAX };
    let full = now + spec.drain_timeout.min(forced);
    let least = known.interruption_at.map_or(full, |at| at.min(full));
    if record.drain_deadline.is_none_or(|deadline| deadline < least) {
        found.push(Violation::WrongDeadline {
            instance: record.id.clone(),
            until: record.drain_deadline.map_or("no deadline".into(), |at| at.to_string()),
            least: least.to_string(),
        });
    }
}

/// Why requests may still run at an instance that is to be stopped; `None` when it is over.
fn not_over(
    ledger: &Ledger,
    now: Timestamp,
    known: &Known,
    record: &InstanceRecord,
) -> Option<String> {
    let before = &known.record;
    let deadline = before.drain_deadline.or(record.drain_deadline);
    if !known.tabled
        || known.gone
        || deadline.is_some_and(|at| at <= now)
        || known.interruption_at.is_some_and(|at| at <= now)
    {
        return None;
    }
    let Some(left_at) = known.left_at else {
        return Some("no table without it has been published".into());
    };
    ledger.proxies.iter().find_map(|(proxy, heard)| {
        let Heard { applied, busy, .. } = heard;
        if *applied < left_at {
            return Some(format!("proxy {proxy} routes by {applied}, it left with {left_at}"));
        }
        busy.iter()
            .find(|(instance, start, _)| *instance == before.id && *start == before.generation)
            .map(|(_, _, outstanding)| format!("proxy {proxy} has {outstanding} requests there"))
    })
}

fn delete_instance(ledger: &mut Ledger, id: &InstanceId, found: &mut Vec<Violation>) {
    let Some(known) = ledger.instances.remove(id) else { return };
    if known.sent && !known.gone && !known.refused {
        let (instance, state) = (id.clone(), known.record.state);
        found.push(Violation::Forgotten { instance, state });
    }
}

fn put_variant(ledger: &mut Ledger, record: &VariantRecord, found: &mut Vec<Violation>) {
    if let Some(spec) = ledger.spec.variant(&record.variant)
        && let (min, max) = widest_bounds(spec)
        && !(min..=max).contains(&record.desired)
    {
        found.push(Violation::OutOfBounds {
            variant: record.variant.clone(),
            desired: record.desired,
            min,
            max,
        });
    }
    ledger.variants.insert(record.variant.clone(), record.clone());
}

/// Between which the size is, whichever scheduled action is in force.
fn widest_bounds(spec: &VariantSpec) -> (u32, u32) {
    let (min, max) = (spec.min_instance_count, spec.max_instance_count);
    let mins = spec.schedule.iter().filter_map(|action| action.min);
    let maxes = spec.schedule.iter().filter_map(|action| action.max);
    (mins.fold(min, u32::min), maxes.fold(max, u32::max))
}

fn check_deleted_variant(ledger: &Ledger, key: &VariantKey, found: &mut Vec<Violation>) {
    if ledger.spec.variant(key).is_some() {
        let problem = "is forgotten and still configured";
        found.push(Violation::WrongName { name: key.to_string(), problem });
    }
    if ledger.instances.values().any(|known| known.record.variant == *key) {
        let problem = "is forgotten and still has instances";
        found.push(Violation::WrongName { name: key.to_string(), problem });
    }
}

/// Checks the size of a variant that has grown.
fn too_many(ledger: &Ledger, now: Timestamp, variant: &VariantKey) -> Option<Violation> {
    let desired = ledger.variants.get(variant).map_or(0, |facts| facts.desired);
    let spec = ledger.spec.variant(variant);
    let active = ledger.active(variant).count();
    let replaced = ledger
        .active(variant)
        .filter(|known| condemned(ledger, now, known) || outdated(ledger, &known.record))
        .count();
    let surge = replaced + spec.map_or(0, |spec| surge(spec, desired));
    (active > desired as usize + surge).then(|| Violation::TooMany {
        variant: variant.clone(),
        active,
        desired,
        surge,
    })
}

/// How many more instances than desired a variant's policies may have under way.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of at most 1 of a bounded count"
)]
fn surge(spec: &VariantSpec, desired: u32) -> usize {
    let moving = match spec.rebalance.mode {
        Rebalance::OnScaleOut => 0,
        Rebalance::Active => {
            ((f64::from(desired) * spec.rebalance.max_share).ceil() as usize).max(1)
        }
    };
    let parallel = match spec.fallback {
        Fallback::AfterWindow | Fallback::AtOnce => 0,
        Fallback::Parallel => desired as usize * (spec.pools.len() - 1),
    };
    moving + parallel
}

/// Fallback first, and never before enough of the others are at least as far in their lives.
fn check_order(ledger: &Ledger, removed: &[Removed], found: &mut Vec<Violation>) {
    for gone in removed {
        let lower = ledger
            .active(&gone.variant)
            .map(|kept| (priority(ledger, &kept.record), &kept.record.id))
            .max()
            .filter(|(lower, _)| *lower > gone.priority);
        if let Some((lower, kept)) = lower {
            found.push(Violation::FallbackNotFirst {
                removed: gone.id.clone(),
                priority: gone.priority,
                kept: kept.clone(),
                lower,
            });
        }
        let Some(facts) = ledger.variants.get(&gone.variant) else { continue };
        let as_far = |kept: &&Known| kept.record.state >= gone.state;
        let remaining = ledger.active(&gone.variant).filter(as_far).count();
        if remaining < facts.desired as usize {
            found.push(Violation::BelowDesired {
                variant: gone.variant.clone(),
                removed: gone.id.clone(),
                remaining,
                desired: facts.desired,
            });
        }
    }
}
