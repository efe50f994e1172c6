//! What the controller knows of each variant beyond its durable record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::decision::plan::backoff::backoff;
use crate::decision::scale::policy::Verdict;
use crate::decision::scale::series::Measured;
use crate::types::record::VariantRecord;
use crate::types::scaling::Bounds;
use crate::types::spec::VariantSpec;
use crate::types::{InstanceTypeName, ProxyId, Timestamp};

const BLOCK_BASE: Duration = Duration::from_secs(2);
const BLOCK_CAP: Duration = Duration::from_secs(300);
/// A pool that has not failed for this long after its block starts from the first block again.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// How long instances of a removed variant may finish, if its spec was never seen.
const DEFAULT_DRAIN: Duration = Duration::from_secs(600);

/// A pool whose launches fail for a reason that is not capacity.
#[derive(Debug, Clone)]
pub(super) struct Failing {
    /// Failures in a row.
    pub(super) count: u32,
    /// Not asked before this moment.
    pub(super) until: Timestamp,
    pub(super) reason: String,
}

/// A variant: its durable record, its spec and what is under way for it.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) record: VariantRecord,
    /// As last configured; `None` if it was removed before this controller started.
    pub(super) spec: Option<Arc<VariantSpec>>,
    /// Between which its size is kept now.
    pub(super) bounds: Bounds,
    /// Whether the config has it.
    pub(super) configured: bool,
    pub(super) failing: BTreeMap<InstanceTypeName, Failing>,
    /// What it waits for, as a sentence.
    pub(super) waiting: Option<String>,
    pub(super) last_move_at: Timestamp,
    /// When a request was last seen, or an instance last came into service.
    pub(super) last_busy_at: Timestamp,
    /// Requests seen while there was nothing to serve them; kept until something does.
    pub(super) latched_demand: u64,
    /// Woken from zero and not in service since.
    pub(super) waking: bool,
    /// An instance of it has told of its own load.
    pub(super) tells: bool,
    /// What was measured of it.
    pub(super) measured: Measured,
    /// What its scaling policies last said.
    pub(super) verdicts: Vec<Verdict>,
    /// The end of the period for which each of them was last asked.
    pub(super) asked: Vec<Timestamp>,
    /// Each live proxy's last count of arrivals.
    pub(super) arrivals: BTreeMap<ProxyId, u64>,
}

impl Variant {
    pub(super) fn new(record: VariantRecord, now: Timestamp) -> Self {
        Self {
            record,
            spec: None,
            bounds: Bounds { min: 0, max: u32::MAX },
            configured: false,
            failing: BTreeMap::new(),
            waiting: None,
            last_move_at: now,
            last_busy_at: now,
            latched_demand: 0,
            waking: false,
            tells: false,
            measured: Measured::default(),
            verdicts: Vec::new(),
            asked: Vec::new(),
            arrivals: BTreeMap::new(),
        }
    }

    /// The types of its pools, if the config has it.
    pub(super) fn pool_types(&self) -> impl Iterator<Item = &InstanceTypeName> {
        let spec = self.spec.as_ref().filter(|_| self.configured);
        spec.into_iter().flat_map(|s| &s.pools).map(|p| &p.instance_type)
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.spec.as_ref().map_or(DEFAULT_DRAIN, |s| s.drain_timeout)
    }

    /// Blocks a pool after a failure that is not one of capacity.
    pub(super) fn block(
        &mut self,
        now: Timestamp,
        instance_type: &InstanceTypeName,
        reason: &str,
        draw: u64,
    ) -> &Failing {
        let before = self.failing.get(instance_type);
        let in_row = before.filter(|f| now.since(f.until) < FORGIVEN_AFTER).map_or(0, |f| f.count);
        let count = in_row.saturating_add(1);
        let until = now + backoff(BLOCK_BASE, BLOCK_CAP, count, draw);
        let failing = Failing { count, until, reason: reason.to_owned() };
        let entry = self.failing.entry(instance_type.clone()).or_insert_with(|| failing.clone());
        *entry = failing;
        entry
    }

    /// An instance of the pool has become healthy: the pool may be asked again at once.
    pub(super) fn unblock(&mut self, now: Timestamp, instance_type: &InstanceTypeName) {
        if let Some(failing) = self.failing.get_mut(instance_type) {
            failing.until = failing.until.min(now);
        }
    }
}
