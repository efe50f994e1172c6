//! What every store must do, run for each of them: leases and fencing, all or nothing, and that what is
//! loaded is what was committed.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{EVENT_LIMIT, Store, StoreError};
use crate::types::record::{
    CapacityKey, CapacityRecord, Change, EventRecord, InstanceRecord, LastChanges, ProvisionRound,
    ProxyRecord, StoredState, VariantRecord,
};
use crate::types::{
    EndpointName, Generation, InstanceId, InstanceState, InstanceTypeName, ModelName, ProviderName,
    ProxyId, Timestamp, VariantKey, VariantName,
};

const TTL: Duration = Duration::from_secs(10);
const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// Runs everything. `fresh` makes an empty state and answers with what opens a handle on it.
pub(super) fn suite<O: Fn() -> Box<dyn Store>>(fresh: impl Fn() -> O) {
    only_one_holds_the_lease(fresh());
    an_expired_lease_is_taken_over_and_fences(fresh());
    a_released_lease_is_free_and_fences(fresh());
    a_commit_is_whole_or_not_at_all(fresh());
    generations_never_return(fresh());
    the_log_keeps_the_newest(fresh());
    epochs_of_a_new_store_follow_the_clock(fresh());
    what_is_committed_is_loaded(fresh);
}

fn only_one_holds_the_lease(open: impl Fn() -> Box<dyn Store>) {
    let (mut a, mut b) = (open(), open());
    let epoch = a.acquire_lease("a", NOW, TTL).expect("free");
    match b.acquire_lease("b", NOW + Duration::from_secs(4), TTL) {
        Err(StoreError::LeaseHeld { owner, remaining }) => {
            assert_eq!((owner.as_str(), remaining), ("a", Duration::from_secs(6)));
        }
        other => panic!("{other:?}"),
    }
    // Renewing keeps the epoch and moves the end.
    assert_eq!(a.acquire_lease("a", NOW + TTL / 2, TTL).expect("renewed"), epoch);
    assert!(b.acquire_lease("b", NOW + TTL, TTL).is_err());
    // Even a late renewal keeps it, if nobody came between.
    assert_eq!(a.acquire_lease("a", NOW + TTL * 3, TTL).expect("renewed"), epoch);
    a.commit(epoch, &[log("still mine")]).expect("holds it");
}

fn an_expired_lease_is_taken_over_and_fences(open: impl Fn() -> Box<dyn Store>) {
    let (mut a, mut b) = (open(), open());
    let old = a.acquire_lease("a", NOW, TTL).expect("free");
    // Expired alone fences nobody.
    a.commit(old, &[log("late")]).expect("nobody else came");
    let new = b.acquire_lease("b", NOW + TTL, TTL).expect("expired");
    assert_eq!(new, old + 1);
    assert!(
        matches!(a.commit(old, &[log("x")]), Err(StoreError::Fenced { epoch }) if epoch == old)
    );
    assert!(matches!(a.release_lease(old), Err(StoreError::Fenced { .. })));
    assert!(matches!(a.acquire_lease("a", NOW + TTL, TTL), Err(StoreError::LeaseHeld { .. })));
    assert_eq!(b.load().expect("loads").events.len(), 1);
}

fn a_released_lease_is_free_and_fences(open: impl Fn() -> Box<dyn Store>) {
    let (mut a, mut b) = (open(), open());
    assert!(matches!(a.commit(0, &[]), Err(StoreError::Fenced { .. })), "no lease yet");
    let old = a.acquire_lease("a", NOW, TTL).expect("free");
    a.release_lease(old).expect("held");
    assert!(matches!(a.commit(old, &[log("x")]), Err(StoreError::Fenced { .. })));
    assert!(matches!(a.release_lease(old), Err(StoreError::Fenced { .. })));
    let new = b.acquire_lease("b", NOW, TTL).expect("released");
    assert_eq!(new, old + 1);
    b.release_lease(new).expect("held");
    // Also its former owner gets a new epoch.
    assert_eq!(a.acquire_lease("a", NOW, TTL).expect("free"), new + 1);
}

fn a_commit_is_whole_or_not_at_all(open: impl Fn() -> Box<dyn Store>) {
    let (mut a, mut b) = (open(), open());
    let old = a.acquire_lease("a", NOW, TTL).expect("free");
    a.commit(old, &[Change::PutInstance(instance("i-1", 1))]).expect("commits");
    b.acquire_lease("b", NOW + TTL, TTL).expect("expired");
    let before = b.load().expect("loads");
    let changes = [
        Change::DeleteInstance(instance("i-1", 1).id),
        Change::PutInstance(instance("i-2", 2)),
        log("both"),
    ];
    assert!(a.commit(old, &changes).is_err());
    assert_eq!(b.load().expect("loads"), before);
}

fn generations_never_return(open: impl Fn() -> Box<dyn Store>) {
    let mut store = open();
    let epoch = store.acquire_lease("a", NOW, TTL).expect("free");
    assert_eq!(store.load().expect("loads"), StoredState::default());
    store.commit(epoch, &[Change::PutInstance(instance("i-5", 5))]).expect("commits");
    store.commit(epoch, &[Change::PutInstance(instance("i-3", 3))]).expect("commits");
    store.commit(epoch, &[Change::DeleteInstance(instance("i-5", 5).id)]).expect("commits");
    let state = open().load().expect("loads");
    assert_eq!((state.next_generation, state.instances.len()), (6, 1));
}

fn the_log_keeps_the_newest(open: impl Fn() -> Box<dyn Store>) {
    let mut store = open();
    let epoch = store.acquire_lease("a", NOW, TTL).expect("free");
    let total = EVENT_LIMIT + 1_234;
    let all: Vec<_> = (0..total).map(|n| log(&n.to_string())).collect();
    for batch in all.chunks(777) {
        store.commit(epoch, batch).expect("commits");
    }
    let events = open().load().expect("loads").events;
    assert_eq!(events.len(), EVENT_LIMIT);
    assert_eq!(events[0].message, (total - EVENT_LIMIT).to_string());
    assert_eq!(events[EVENT_LIMIT - 1].message, (total - 1).to_string());
}

fn epochs_of_a_new_store_follow_the_clock(open: impl Fn() -> Box<dyn Store>) {
    assert_eq!(open().acquire_lease("a", NOW, TTL).expect("free"), NOW.0 / 1000);
}

fn what_is_committed_is_loaded<O: Fn() -> Box<dyn Store>>(fresh: impl Fn() -> O) {
    let mut runner =
        TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let commits = prop::collection::vec(prop::collection::vec(change(), 0..8), 0..8);
    runner
        .run(&commits, |commits| {
            let open = fresh();
            let mut store = open();
            let epoch = store.acquire_lease("a", NOW, TTL).expect("free");
            let mut model = Model::default();
            for changes in &commits {
                store.commit(epoch, changes).expect("commits");
                for change in changes {
                    model.apply(change);
                }
                prop_assert_eq!(store.load().expect("loads"), model.state());
            }
            drop(store);
            prop_assert_eq!(open().load().expect("loads"), model.state());
            Ok(())
        })
        .expect("every sequence of commits");
}

/// What a store should hold, written as plainly as can be.
#[derive(Default)]
struct Model {
    next_generation: u64,
    instances: BTreeMap<InstanceId, InstanceRecord>,
    variants: BTreeMap<VariantKey, VariantRecord>,
    capacities: BTreeMap<CapacityKey, CapacityRecord>,
    proxies: BTreeMap<ProxyId, ProxyRecord>,
    events: Vec<EventRecord>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::PutInstance(r) => {
                self.next_generation = self.next_generation.max(r.generation.0.saturating_add(1));
                self.instances.insert(r.id.clone(), r);
            }
            Change::DeleteInstance(id) => drop(self.instances.remove(&id)),
            Change::PutVariant(r) => drop(self.variants.insert(r.variant.clone(), r)),
            Change::DeleteVariant(key) => drop(self.variants.remove(&key)),
            Change::PutCapacity(r) => drop(self.capacities.insert(r.key.clone(), r)),
            Change::DeleteCapacity(key) => drop(self.capacities.remove(&key)),
            Change::PutProxy(r) => drop(self.proxies.insert(r.id.clone(), r)),
            Change::DeleteProxy(id) => drop(self.proxies.remove(&id)),
            Change::Log(event) => self.events.push(event),
        }
    }

    fn state(&self) -> StoredState {
        StoredState {
            next_generation: self.next_generation,
            instances: self.instances.values().cloned().collect(),
            variants: self.variants.values().cloned().collect(),
            capacities: self.capacities.values().cloned().collect(),
            proxies: self.proxies.values().cloned().collect(),
            events: self.events.clone(),
        }
    }
}

/// An instance with nothing special about it.
pub(super) fn instance(id: &str, generation: u64) -> InstanceRecord {
    InstanceRecord {
        id: InstanceId::new(id).expect("valid"),
        generation: Generation(generation),
        variant: key("e", "v"),
        instance_type: InstanceTypeName::new("ml.p5").expect("valid"),
        provider: ProviderName::new("local").expect("valid"),
        priority: 1,
        model: ModelName::new("m").expect("valid"),
        copies: 1,
        max_concurrency: 4,
        state: InstanceState::Pending,
        address: None,
        asked_at: NOW,
        granted_at: None,
        in_service_at: None,
        draining_since: None,
        drain_deadline: None,
        leaving_because: None,
    }
}

/// An event with `message`.
pub(super) fn log(message: &str) -> Change {
    Change::Log(EventRecord {
        at: NOW,
        endpoint: None,
        variant: None,
        instance: None,
        kind: "test".into(),
        message: message.into(),
    })
}

fn key(endpoint: &str, variant: &str) -> VariantKey {
    VariantKey {
        endpoint: EndpointName::new(endpoint).expect("valid"),
        variant: VariantName::new(variant).expect("valid"),
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        instance_record().prop_map(Change::PutInstance),
        instance_id().prop_map(Change::DeleteInstance),
        variant_record().prop_map(Change::PutVariant),
        variant_key().prop_map(Change::DeleteVariant),
        capacity_record().prop_map(Change::PutCapacity),
        capacity_key().prop_map(Change::DeleteCapacity),
        (proxy_id(), timestamp())
            .prop_map(|(id, heard_at)| Change::PutProxy(ProxyRecord { id, heard_at })),
        proxy_id().prop_map(Change::DeleteProxy),
        event().prop_map(Change::Log),
    ]
}

fn instance_id() -> impl Strategy<Value = InstanceId> {
    "[a-c][A-Z0-9._-]{0,1}".prop_map(|id| InstanceId::new(id).expect("valid"))
}

fn proxy_id() -> impl Strategy<Value = ProxyId> {
    "[a-c][A-Z0-9._-]{0,1}".prop_map(|id| ProxyId::new(id).expect("valid"))
}

fn variant_key() -> impl Strategy<Value = VariantKey> {
    ("[a-b]-?[a-b]", "[a-b]").prop_map(|(endpoint, variant)| key(&endpoint, &variant))
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn instance_record() -> impl Strategy<Value = InstanceRecord> {
    let who = (instance_id(), any::<u64>(), variant_key(), any::<[u32; 3]>());
    let life = (
        prop::sample::select(InstanceState::ALL.to_vec()),
        prop::option::of(any::<[u8; 4]>()),
        timestamp(),
        prop::array::uniform4(prop::option::of(timestamp())),
        prop::option::of(any::<String>()),
    );
    (who, life).prop_map(
        |((id, generation, variant, counts), (state, ip, asked_at, times, why))| InstanceRecord {
            id,
            generation: Generation(generation),
            variant,
            priority: counts[0],
            copies: counts[1],
            max_concurrency: counts[2],
            state,
            address: ip.map(|ip| crate::types::Address::http((ip, 80).into())),
            asked_at,
            granted_at: times[0],
            in_service_at: times[1],
            draining_since: times[2],
            drain_deadline: times[3],
            leaving_because: why,
            ..instance("x", 1)
        },
    )
}

fn variant_record() -> impl Strategy<Value = VariantRecord> {
    let round =
        (any::<u32>(), timestamp(), any::<u32>()).prop_map(|(priority, window_opened_at, pass)| {
            ProvisionRound { priority, window_opened_at, pass }
        });
    let scaled = (prop::option::of((timestamp(), any::<u32>())), prop::option::of(timestamp()));
    (variant_key(), any::<[u32; 2]>(), any::<bool>(), prop::option::of(round), scaled).prop_map(
        |(variant, [desired, configured_initial], was_in_service, round, (out, inward))| {
            VariantRecord {
                variant,
                desired,
                configured_initial,
                was_in_service,
                round,
                scaled: LastChanges { out, out_from: out.map(|(_, size)| size / 2), inward },
            }
        },
    )
}

fn capacity_key() -> impl Strategy<Value = CapacityKey> {
    ("[a-b]", "[a-b]", prop::option::of("[a-b]|.{0,8}")).prop_map(|(provider, kind, zone)| {
        CapacityKey {
            provider: ProviderName::new(provider).expect("valid"),
            instance_type: InstanceTypeName::new(kind).expect("valid"),
            zone,
        }
    })
}

fn capacity_record() -> impl Strategy<Value = CapacityRecord> {
    (capacity_key(), any::<u32>(), timestamp(), timestamp(), any::<String>()).prop_map(
        |(key, refusals, refused_at, hold_until, reason)| CapacityRecord {
            key,
            refusals,
            refused_at,
            hold_until,
            reason,
        },
    )
}

fn event() -> impl Strategy<Value = EventRecord> {
    (timestamp(), prop::option::of(variant_key()), prop::option::of(instance_id()), any::<String>())
        .prop_map(|(at, variant, instance, message)| EventRecord {
            at,
            endpoint: variant.as_ref().map(|key| key.endpoint.clone()),
            variant: variant.map(|key| key.variant),
            instance,
            kind: "decided".into(),
            message,
        })
}
