//! What the manager keeps across restarts. Every record is written before the act that it stands for,
//! and carries everything that is needed to go on from it.

use serde::{Deserialize, Serialize};

use super::{
    Address, EndpointName, Generation, InstanceId, InstanceState, InstanceTypeName, ModelName,
    ProviderName, ProxyId, Timestamp, VariantKey,
};

/// One instance, from the intent to launch it until it is gone (then the record is deleted).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its name for life, and the token that makes its launch idempotent.
    pub id: InstanceId,
    /// Unique over all instances there ever were.
    pub generation: Generation,
    /// Whom it serves.
    #[serde(flatten)]
    pub variant: VariantKey,
    /// What it is.
    pub instance_type: InstanceTypeName,
    /// Who runs it.
    pub provider: ProviderName,
    /// The priority of its pool when it was asked for.
    pub priority: u32,
    /// The model it loads.
    pub model: ModelName,
    /// Model copies it loads.
    pub copies: u32,
    /// Requests that one copy takes at once.
    pub max_concurrency: u32,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Where it listens, once granted.
    pub address: Option<Address>,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// When the provider said yes.
    pub granted_at: Option<Timestamp>,
    /// When it was first healthy.
    pub in_service_at: Option<Timestamp>,
    /// When it began to drain, if it does.
    pub draining_since: Option<Timestamp>,
    /// When it is stopped at the latest, if it drains.
    pub drain_deadline: Option<Timestamp>,
    /// Why it leaves, in words, if it does.
    pub leaving_because: Option<String>,
}

/// A variant's durable memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantRecord {
    /// Which variant.
    #[serde(flatten)]
    pub variant: VariantKey,
    /// How many instances there should be.
    pub desired: u32,
    /// The config's `initial_instance_count` when it was last applied: only a change of it resets `desired`.
    pub configured_initial: u32,
    /// Whether it has ever had an instance in service; it does not go to zero before.
    pub was_in_service: bool,
    /// The procurement round under way, if there is one.
    pub round: Option<ProvisionRound>,
    /// What its scaling policies have last done: cooldowns outlive a restart.
    #[serde(default)]
    pub scaled: LastChanges,
}

/// The last changes of a variant's size by its policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastChanges {
    /// When they last scaled out, and to how many.
    pub out: Option<(Timestamp, u32)>,
    /// From how many that was.
    #[serde(default)]
    pub out_from: Option<u32>,
    /// When they last scaled in.
    pub inward: Option<Timestamp>,
}

/// A procurement round: which pool's turn it is and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionRound {
    /// The priority whose turn it is.
    pub priority: u32,
    /// When its window opened.
    pub window_opened_at: Timestamp,
    /// How often all pools have been gone through.
    pub pass: u32,
}

/// Where capacity was refused lately.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CapacityKey {
    /// Whose capacity.
    pub provider: ProviderName,
    /// Of which type.
    pub instance_type: InstanceTypeName,
    /// Where, if the provider has zones.
    pub zone: Option<String>,
}

/// What is remembered of a refusal for lack of capacity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapacityRecord {
    /// Where.
    #[serde(flatten)]
    pub key: CapacityKey,
    /// Refusals in a row.
    pub refusals: u32,
    /// The last one.
    pub refused_at: Timestamp,
    /// Not asked first before this moment.
    pub hold_until: Timestamp,
    /// The provider's own words.
    pub reason: String,
}

/// One line of the event log: what was decided, why, with which figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// When.
    pub at: Timestamp,
    /// About which endpoint, if one.
    pub endpoint: Option<EndpointName>,
    /// About which variant, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<super::VariantName>,
    /// About which instance, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// A stable word for filters, for example `launch_refused`.
    pub kind: String,
    /// A sentence with the figures.
    pub message: String,
}

/// A proxy that has been heard and has not left: it may route by an old table and hold requests, whether
/// or not it is heard now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyRecord {
    /// Its name.
    pub id: ProxyId,
    /// When it was first heard.
    pub heard_at: Timestamp,
}

/// One change to the durable state. A slice of them is committed whole or not at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Insert or replace, by id.
    PutInstance(InstanceRecord),
    /// It is gone.
    DeleteInstance(InstanceId),
    /// Insert or replace, by key.
    PutVariant(VariantRecord),
    /// The config no longer has it and its instances are gone.
    DeleteVariant(VariantKey),
    /// Insert or replace, by key.
    PutCapacity(CapacityRecord),
    /// Capacity is back.
    DeleteCapacity(CapacityKey),
    /// A proxy routes by our tables from now on.
    PutProxy(ProxyRecord),
    /// It has left, or is taken for dead.
    DeleteProxy(ProxyId),
    /// Append to the log; the oldest are dropped past the store's limit.
    Log(EventRecord),
}

/// Everything the manager knew when it last ran.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoredState {
    /// The next generation that no instance has had.
    pub next_generation: u64,
    /// All instances that are not gone.
    pub instances: Vec<InstanceRecord>,
    /// All variants that were ever configured and not removed.
    pub variants: Vec<VariantRecord>,
    /// All capacity that is remembered as refused.
    pub capacities: Vec<CapacityRecord>,
    /// All proxies that may still route by a table of ours.
    pub proxies: Vec<ProxyRecord>,
    /// The newest events, oldest first.
    pub events: Vec<EventRecord>,
}
