//! The published snapshot and what outlives it: applying a new table, and reporting what is counted.

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::{ArcSwap, Cache, Guard};
use tokio::sync::Notify;

use super::admission::WaitingRoom;
use super::snapshot::{Backend, Snapshot, Variant};
use crate::decision::outcome::Outcome;
use crate::runtime::clock;
use crate::telemetry::traffic::{QueueTraffic, Traffic};
use crate::types::report::{BackendReport, DemandReport, ProxyReport, TypeReport};
use crate::types::table::{RoutingTable, TableVersion};
use crate::types::{ProxyId, Timestamp, VariantKey};

/// One per proxy process, shared by its threads.
#[derive(Debug)]
pub struct Router {
    id: ProxyId,
    /// When this process started: counts begin anew with it.
    run: u64,
    snapshot: ArcSwap<Snapshot>,
    /// Serialises [`Router::apply`], and keeps the backends that left the table with requests at them.
    leaving: Mutex<Vec<Arc<Backend>>>,
    /// When it last reported, by the process's clock.
    reported_at_ms: AtomicU64,
    /// Somebody should report now rather than at the next tick.
    report_now: Notify,
    draining_until: OnceLock<Timestamp>,
}

/// A thread's own hold of the newest snapshot: it need not count itself in and out for each request.
#[derive(Debug)]
pub(super) struct Newest(RefCell<Cache<SnapshotOf, Arc<Snapshot>>>);

impl Newest {
    pub(super) fn of(router: &Arc<Router>) -> Self {
        Self(RefCell::new(Cache::new(SnapshotOf(Arc::clone(router)))))
    }

    /// What `look` finds in it.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> T {
        look(self.0.borrow_mut().load())
    }
}

/// Where that is published.
#[derive(Debug)]
struct SnapshotOf(Arc<Router>);

impl Deref for SnapshotOf {
    type Target = ArcSwap<Snapshot>;

    fn deref(&self) -> &ArcSwap<Snapshot> {
        &self.0.snapshot
    }
}

impl Router {
    /// A router without a table: every request is refused until [`Router::apply`] was called.
    #[must_use]
    pub fn new(id: ProxyId) -> Arc<Self> {
        Arc::new(Self {
            id,
            run: clock::wall_nanos(),
            snapshot: ArcSwap::default(),
            leaving: Mutex::default(),
            reported_at_ms: AtomicU64::new(0),
            report_now: Notify::new(),
            draining_until: OnceLock::new(),
        })
    }

    pub(super) fn current(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Which table requests are routed by.
    #[must_use]
    pub fn version(&self) -> TableVersion {
        self.current().version
    }

    /// Routes by `table` from now on; an older one than the present is ignored. When this returns, no
    /// request can be sent to an instance that `table` lacks, not even one that was looking at the
    /// snapshot before: its slots are closed.
    pub fn apply(self: &Arc<Self>, table: &RoutingTable) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.snapshot.load_full();
        if table.version <= previous.version {
            return;
        }
        let next = Snapshot::build(table, &previous, &leaving, |key, route| {
            let traffic = QueueTraffic::new(key, &route.model);
            Arc::new(WaitingRoom::new(key.clone(), Arc::downgrade(self), traffic))
        });
        let next = Arc::new(next);
        previous.variants().for_each(|variant| variant.retire());
        // One that comes back counts on from where it was.
        for variant in next.variants() {
            variant.choice.seat();
            variant.admit_backends();
        }
        self.snapshot.store(Arc::clone(&next));
        let stays: std::collections::HashSet<_> = next.backends().map(|b| b.id()).collect();
        leaving.retain(|b| b.slot.outstanding() > 0 && !stays.contains(&b.id()));
        for gone in previous.backends().filter(|b| !stays.contains(&b.id())) {
            gone.slot.close();
            gone.pinned.turn_away();
            gone.traffic.set_concurrency(0, 0, 0, 0);
            if gone.slot.outstanding() > 0 {
                leaving.push(Arc::clone(gone));
            }
        }
        drop(leaving);
        // New slots for those who wait, and a refusal for those whose variant is gone.
        for variant in previous.variants().chain(next.variants()) {
            variant.room.hand_out();
        }
        self.report_now.notify_one();
    }

    /// A successor takes the requests from now on; what is here may go on until `until`.
    pub fn drain(&self, until: Timestamp) {
        self.draining_until.get_or_init(|| until);
        self.report_now.notify_one();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining_until.get().is_some()
    }

    /// Resolves when something has happened that the manager waits for.
    pub async fn report_wanted(&self) {
        self.report_now.notified().await;
    }

    /// Asks for a report now: demand for a variant without instances, or the last request of a leaving
    /// instance.
    pub(super) fn want_report(&self) {
        self.report_now.notify_one();
    }

    /// What is counted now.
    #[must_use]
    pub fn report(&self) -> ProxyReport {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|backend| backend.slot.outstanding() > 0);
        let snapshot = self.current();
        let reported_at_ms = self.reported_at_ms.swap(clock::uptime_ms(), Ordering::Relaxed);
        let backends = snapshot.backends().chain(leaving.iter()).map(|backend| BackendReport {
            instance: backend.route.instance.clone(),
            generation: backend.route.generation,
            outstanding: backend.slot.outstanding(),
            connect_failures: backend.slot.connect_failures(),
            progressed: backend.slot.worked_at_ms() >= reported_at_ms.max(1),
            stalled: backend.vitals.is_stalled(),
            load: backend.vitals.told.report(),
        });
        let variants = snapshot.variants().map(|variant| DemandReport {
            variant: variant.key.clone(),
            queued: variant.room.waiting(),
            outstanding: variant.backends.iter().map(|b| b.slot.outstanding()).sum(),
            arrivals: variant.room.arrivals(),
            types: durations(variant),
        });
        ProxyReport {
            proxy: self.id.clone(),
            run: self.run,
            applied: snapshot.version,
            backends: backends.collect(),
            variants: variants.collect(),
            leaving: false,
            draining_until: self.draining_until.get().copied(),
        }
    }

    /// Outstanding requests over all instances, those that have left the table included.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.current();
        snapshot.backends().chain(leaving.iter()).map(|b| u64::from(b.slot.outstanding())).sum()
    }

    /// Does what time alone brings; to be called a few times a second, `seconds` after the last call.
    pub fn tick(&self, seconds: f64) {
        for variant in self.current().variants() {
            variant.room.tick(seconds);
            let tick = variant.tick_vitals();
            if tick.freed {
                variant.serve_waiters();
            }
            if tick.news {
                self.want_report();
            }
        }
    }

    /// Takes in how a request at `backend` has ended.
    pub(super) fn judge(&self, key: &VariantKey, backend: &Backend, outcome: Outcome) {
        if let Some(variant) = self.current().variant(key)
            && variant.judge(backend, outcome)
        {
            variant.serve_waiters();
        }
    }

    /// Brings the gauges up to date; to be called before they are read.
    pub fn refresh_gauges(&self) {
        for variant in self.current().variants() {
            variant.room.traffic.set_queued(variant.room.waiting(), variant.queue_limit);
            let mut by_type: Vec<(&Arc<Backend>, u32, u32, u32, u64)> = Vec::new();
            for backend in &variant.backends {
                let (outstanding, copies) = (backend.slot.outstanding(), backend.route.copies);
                let slots = u64::from(copies) * u64::from(backend.route.max_concurrency);
                match by_type.iter_mut().find(|e| Arc::ptr_eq(&e.0.traffic, &backend.traffic)) {
                    Some(entry) => {
                        entry.1 += outstanding;
                        entry.2 += 1;
                        entry.3 += copies;
                        entry.4 += slots;
                    }
                    None => by_type.push((backend, outstanding, 1, copies, slots)),
                }
            }
            for (backend, outstanding, instances, copies, slots) in by_type {
                backend.traffic.set_concurrency(outstanding, instances, copies, slots);
            }
        }
    }
}

/// What a variant's requests took, by type. While two models of one type run, both together.
fn durations(variant: &Variant) -> Vec<TypeReport> {
    let mut seen: Vec<&Arc<Traffic>> = Vec::new();
    let mut types: Vec<TypeReport> = Vec::new();
    for backend in &variant.backends {
        if seen.iter().any(|traffic| Arc::ptr_eq(traffic, &backend.traffic)) {
            continue;
        }
        seen.push(&backend.traffic);
        let [latency, first_chunk] = backend.traffic.durations();
        let instance_type = &backend.route.instance_type;
        match types.iter_mut().find(|report| report.instance_type == *instance_type) {
            Some(report) => {
                add(&mut report.latency, &latency);
                add(&mut report.first_chunk, &first_chunk);
            }
            None => types.push(TypeReport {
                instance_type: instance_type.clone(),
                latency,
                first_chunk,
            }),
        }
    }
    types
}

/// Adds counts to counts; both ascend by bucket.
fn add(into: &mut Vec<(u8, u64)>, more: &[(u8, u64)]) {
    for (bucket, count) in more {
        match into.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
            Ok(at) => into[at].1 += count,
            Err(at) => into.insert(at, (*bucket, *count)),
        }
    }
}
