//! Asking providers for what they run: when, how often, and how long an unanswering one is left alone.
//!
//! Every provider of a configured type is asked, also one that no pool uses (any more): a launch may land
//! there late, and what it started is an orphan that only its list shows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::decision::plan::backoff::backoff;
use crate::types::launch::Listing;
use crate::types::{
    InstanceId, InstanceState, InstanceTypeName, ProviderName, Timestamp, VariantKey,
};

use super::fleet::{Instance, Launch};
use super::timers::Waiter;
use super::variant::Variant;
use super::{Action, Controller};

/// Between lists while nothing is awaited.
const LIST_INTERVAL: Duration = Duration::from_secs(5);
/// Between lists while something is to appear or to end.
const LIST_AWAITING: Duration = Duration::from_secs(1);
const LIST_RETRY_BASE: Duration = Duration::from_secs(1);
const LIST_RETRY_CAP: Duration = Duration::from_secs(60);
/// Two lists never begin closer together.
const LIST_LEAST: Duration = Duration::from_millis(200);

/// A provider as the controller sees it.
#[derive(Debug, Default)]
pub(super) struct ProviderView {
    /// How many lists were begun; the number of the one under way.
    pub(super) lists: u64,
    pub(super) in_flight: bool,
    began_at: Timestamp,
    /// Whether it has ever answered.
    pub(super) answered: bool,
    /// Unanswered lists in a row.
    pub(super) failures: u32,
    pub(super) last_error: Option<String>,
    /// Orphans being ended, and when each was last asked for.
    pub(super) orphans: BTreeMap<InstanceId, Timestamp>,
    /// Asked for again before the list under way has answered.
    again: bool,
    /// Its last list, unless it has failed to list since.
    pub(super) last_list: Option<Listing>,
    /// What that list left open: instances of ours that were not as it shows them, and what is not ours and lives.
    pub(super) open: BTreeSet<InstanceId>,
}

impl Controller {
    /// Follows a provider from now on.
    pub(super) fn follow_provider(&mut self, now: Timestamp, provider: &ProviderName) {
        let view = self.providers.entry(provider.clone()).or_default();
        if !view.in_flight {
            self.timers.set(Waiter::Provider(provider.clone()), Some(now));
        }
    }

    /// A provider's list is due.
    pub(super) fn list_due(&mut self, now: Timestamp, provider: &ProviderName) {
        let Some(view) = self.providers.get_mut(provider) else { return };
        if view.in_flight {
            view.again = true;
            return;
        }
        view.in_flight = true;
        view.again = false;
        view.lists += 1;
        view.began_at = now;
        self.after.push(Action::List(provider.clone()));
    }

    /// Asks for a list soon: something has happened that it will tell.
    pub(super) fn hasten_list(&mut self, now: Timestamp, provider: &ProviderName) {
        let Some(view) = self.providers.get_mut(provider) else { return };
        if view.in_flight {
            view.again = true;
        } else if view.failures == 0 {
            let at = (view.began_at + LIST_LEAST).max(now);
            self.timers.set(Waiter::Provider(provider.clone()), Some(at));
        }
    }

    /// Sets the time of the next list after one was answered.
    pub(super) fn schedule_list(&mut self, now: Timestamp, provider: &ProviderName) {
        let news = self.expects_news(provider);
        let draw = self.jitter.draw();
        let Some(view) = self.providers.get_mut(provider) else { return };
        let at = if view.failures > 0 {
            now + backoff(LIST_RETRY_BASE, LIST_RETRY_CAP, view.failures, draw)
        } else if view.again {
            (view.began_at + LIST_LEAST).max(now)
        } else {
            now + self.jitter.around(if news { LIST_AWAITING } else { LIST_INTERVAL })
        };
        view.again = false;
        self.timers.set(Waiter::Provider(provider.clone()), Some(at));
    }

    /// Whether something is to be learnt from the provider's next list.
    fn expects_news(&self, provider: &ProviderName) -> bool {
        let within = |state, expects: fn(&Instance) -> bool| {
            let mut there = self.fleet.in_state(state);
            there.any(|i| i.record.provider == *provider && expects(i))
        };
        within(InstanceState::Pending, |i| i.launch == Launch::Unknown || i.launch_attempts > 0)
            || within(InstanceState::Starting, |i| !i.runs())
            || within(InstanceState::Stopping, |_| true)
    }

    /// The first provider that a variant depends on and that has not answered yet.
    pub(super) fn unheard_provider(&self, key: &VariantKey) -> Option<&ProviderName> {
        let kinds = self.variants.get(key).into_iter().flat_map(Variant::pool_types);
        let of_pools = kinds.filter_map(|t| self.spec.instance_types.get(t)).map(|t| &t.provider);
        let of_instances = self.fleet.of(key).map(|i| &i.record.provider);
        of_pools
            .chain(of_instances)
            .find(|name| !self.providers.get(*name).is_some_and(|view| view.answered))
    }

    /// Plans anew for every variant that depends on the provider.
    pub(super) fn dirty_users_of(&mut self, provider: &ProviderName) {
        let from_there = |kind: &InstanceTypeName| {
            self.spec.instance_types.get(kind).is_some_and(|t| t.provider == *provider)
        };
        let uses = |(key, variant): &(&VariantKey, &Variant)| {
            variant.pool_types().any(from_there)
                || self.fleet.of(key).any(|i| i.record.provider == *provider)
        };
        let affected: Vec<_> =
            self.variants.iter().filter(uses).map(|(key, _)| key.clone()).collect();
        self.dirty.extend(affected);
    }

    /// Plans anew for every variant with a pool of that type: what is known of its capacity has changed.
    pub(super) fn dirty_users_of_type(&mut self, kind: &InstanceTypeName) {
        let uses = |(_, variant): &(&VariantKey, &Variant)| variant.pool_types().any(|t| t == kind);
        let affected: Vec<_> =
            self.variants.iter().filter(uses).map(|(key, _)| key.clone()).collect();
        self.dirty.extend(affected);
    }
}
