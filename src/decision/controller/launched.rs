//! What a provider answers to a launch: granted, refused for capacity, rejected, or nothing certain.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::decision::plan::backoff::backoff;
use crate::types::launch::{Grant, LaunchOutcome};
use crate::types::record::{CapacityKey, CapacityRecord, InstanceRecord};
use crate::types::spec::Fallback;
use crate::types::{
    InstanceId, InstanceState, InstanceTypeName, ProviderError, ProviderName, Timestamp, VariantKey,
};

use super::events::{At, EventKind};
use super::fleet::{Launch, NEVER};
use super::machine::Trigger;
use super::{Controller, HOLD_CAP};

const HOLD_BASE: Duration = Duration::from_secs(1);
const ASK_AGAIN_BASE: Duration = Duration::from_secs(1);
const ASK_AGAIN_CAP: Duration = Duration::from_secs(30);

/// Equal answers of one batch, told as one line.
type Answers = BTreeMap<(VariantKey, InstanceTypeName, String), (u32, ProviderError)>;

impl Controller {
    pub(super) fn launched(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        outcomes: Vec<LaunchOutcome>,
    ) {
        let mut granted: BTreeMap<(VariantKey, InstanceTypeName), u32> = BTreeMap::new();
        let mut failed = Answers::new();
        for LaunchOutcome { instance, result } in outcomes {
            let Some(known) = self.fleet.get(&instance).filter(|i| i.record.provider == *provider)
            else {
                // Its record is gone; if it runs all the same, the next list shows it as an orphan.
                self.hasten_list(now, provider);
                continue;
            };
            let of = (known.record.variant.clone(), known.record.instance_type.clone());
            match result {
                Ok(grant) => {
                    if self.granted(now, &instance, grant) {
                        *granted.entry(of).or_default() += 1;
                    }
                }
                Err(error) => {
                    if self.not_granted(now, &instance, &error) {
                        let key = (of.0, of.1, error.to_string());
                        failed.entry(key).or_insert((0, error)).0 += 1;
                    }
                }
            }
        }
        for ((key, kind), count) in granted {
            let message = format!("{provider} granted {count} × {kind}");
            self.log(now, EventKind::LaunchGranted, &key, None, message);
            self.capacity_is_back(now, provider, &kind, &key);
        }
        for ((key, kind, _), (count, error)) in failed {
            self.tell_failure(now, provider, &key, &kind, count, &error);
        }
    }

    /// Returns whether this was news.
    fn granted(&mut self, now: Timestamp, id: &InstanceId, grant: Grant) -> bool {
        let news = self.apply(now, id, Trigger::Granted, None);
        let Some(instance) = self.fleet.get_mut(id) else { return news };
        instance.launch = Launch::Answered;
        if !news {
            self.prove_later(id);
        }
        let Some(instance) = self.fleet.get_mut(id) else { return news };
        self.touched.push(instance.slot);
        if let Some(address) = grant.address.filter(|_| instance.record.address.is_none()) {
            instance.record.address = Some(address);
            self.journal.instances.insert(id.clone());
        }
        news
    }

    /// A launch has ended late, after which the instance may run (again) though a list has shown it, or its
    /// absence, already: only a list that is begun from now on proves anything.
    fn prove_later(&mut self, id: &InstanceId) {
        let Some(instance) = self.fleet.get_mut(id) else { return };
        if instance.provable_from == NEVER {
            return;
        }
        let provider = instance.record.provider.clone();
        let lists = self.providers.get(&provider).map_or(0, |p| p.lists);
        instance.provable_from = instance.provable_from.max(lists + 1);
    }

    /// Returns whether the answer counts: that of an instance which a list has shown since does not.
    fn not_granted(&mut self, now: Timestamp, id: &InstanceId, error: &ProviderError) -> bool {
        let draw = self.jitter.draw();
        let Some(instance) = self.fleet.get_mut(id) else { return false };
        let was_pending = instance.state() == InstanceState::Pending;
        if let ProviderError::Unavailable { retry_after, .. } = error {
            if !was_pending {
                instance.launch = Launch::Answered;
                self.touched.push(instance.slot);
                self.prove_later(id);
                return false;
            }
            instance.launch_attempts = instance.launch_attempts.saturating_add(1);
            let wait = backoff(ASK_AGAIN_BASE, ASK_AGAIN_CAP, instance.launch_attempts, draw);
            instance.launch = Launch::Due(now + retry_after.unwrap_or(wait).max(wait));
            let provider = instance.record.provider.clone();
            self.touched.push(instance.slot);
            self.hasten_list(now, &provider);
            return true;
        }
        self.apply(now, id, Trigger::Refused, None) && was_pending
    }

    fn tell_failure(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        key: &VariantKey,
        kind: &InstanceTypeName,
        count: u32,
        error: &ProviderError,
    ) {
        match error {
            ProviderError::InsufficientCapacity { reason }
            | ProviderError::QuotaExceeded { reason } => {
                self.remember_refusal(now, provider, kind, reason);
                let errors = self.capacity_errors.entry((key.clone(), kind.clone())).or_default();
                *errors += u64::from(count);
                let outlook = self.outlook(now, provider, key, kind);
                let message = format!("launch of {count} × {kind} refused: {error}; {outlook}");
                self.log(now, EventKind::LaunchRefused, key, None, message);
            }
            ProviderError::Unavailable { .. } => {
                let message = format!(
                    "launch of {count} × {kind} has no certain answer: {error}; asked again with the same ids"
                );
                self.log(now, EventKind::LaunchUnanswered, key, None, message);
            }
            ProviderError::Rejected { .. } | ProviderError::NotFound => {
                let message = format!("launch of {count} × {kind} {error}");
                self.block_pool(now, EventKind::LaunchRejected, key, kind, None, &message);
            }
        }
    }

    pub(super) fn capacity_is_back(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        kind: &InstanceTypeName,
        key: &VariantKey,
    ) {
        let capacity =
            CapacityKey { provider: provider.clone(), instance_type: kind.clone(), zone: None };
        if let Some(memory) = self.capacities.remove(&capacity) {
            self.journal.capacities.insert(capacity);
            let refusals = memory.refusals;
            self.dirty_users_of_type(kind);
            let message =
                format!("{provider} has capacity for {kind} again, after {refusals} refusals");
            self.log(now, EventKind::CapacityBack, key, None, message);
        }
    }

    fn remember_refusal(
        &mut self,
        now: Timestamp,
        provider: &ProviderName,
        kind: &InstanceTypeName,
        reason: &str,
    ) {
        let key =
            CapacityKey { provider: provider.clone(), instance_type: kind.clone(), zone: None };
        let before = self.capacities.get(&key).map_or(0, |c| c.refusals);
        let refusals = before.saturating_add(1);
        let hold = backoff(HOLD_BASE, HOLD_CAP, refusals, self.jitter.draw());
        let record = CapacityRecord {
            key: key.clone(),
            refusals,
            refused_at: now,
            hold_until: now + hold,
            reason: reason.to_owned(),
        };
        self.capacities.insert(key.clone(), record);
        self.dirty_users_of_type(kind);
        self.journal.capacities.insert(key);
    }

    /// What comes next after a refusal, as the end of a sentence.
    fn outlook(
        &self,
        now: Timestamp,
        provider: &ProviderName,
        key: &VariantKey,
        kind: &InstanceTypeName,
    ) -> String {
        let capacity =
            CapacityKey { provider: provider.clone(), instance_type: kind.clone(), zone: None };
        let hold = self.capacities.get(&capacity).map_or(now, |c| c.hold_until);
        let again = format!("{kind} is asked first again at {}", At(hold, now));
        let Some((variant, spec)) =
            self.variants.get(key).and_then(|v| Some((v, v.spec.as_ref()?)))
        else {
            return again;
        };
        let own = spec.pools.iter().find(|p| p.instance_type == *kind).map_or(0, |p| p.priority);
        let next = spec.pools.iter().find(|p| p.priority > own);
        let next = match next {
            Some(pool) => format!("next pool {}", pool.instance_type),
            None => "then from the first pool again".to_owned(),
        };
        match variant.record.round {
            Some(round) if spec.fallback == Fallback::AfterWindow && round.priority == own => {
                let end = round.window_opened_at + spec.provision_timeout;
                let window = humantime::format_duration(spec.provision_timeout);
                if end > now {
                    format!("{next} at {} when the {window} window closes", At(end, now))
                } else {
                    format!("its {window} window has closed; {next}; {again}")
                }
            }
            Some(_) => format!("{next}; {again}"),
            None => again,
        }
    }

    /// Blocks the pool of an instance that failed for a reason that is not capacity.
    pub(super) fn fail_pool(
        &mut self,
        now: Timestamp,
        event: EventKind,
        record: &InstanceRecord,
        reason: &str,
    ) {
        self.block_pool(
            now,
            event,
            &record.variant,
            &record.instance_type,
            Some(&record.id),
            reason,
        );
    }

    fn block_pool(
        &mut self,
        now: Timestamp,
        event: EventKind,
        key: &VariantKey,
        kind: &InstanceTypeName,
        instance: Option<&InstanceId>,
        reason: &str,
    ) {
        let draw = self.jitter.draw();
        let Some(variant) = self.variants.get_mut(key) else { return };
        let failing = variant.block(now, kind, reason, draw);
        let (count, until) = (failing.count, At(failing.until, now));
        let message = format!(
            "{reason}; failure {count} in a row, tried again at {until}; no other pool is asked in its place"
        );
        self.dirty.insert(key.clone());
        self.log(now, event, key, instance, message);
    }
}
