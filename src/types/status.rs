//! What `forebay status` and the management API show. The members named in the contract keep their
//! names and meaning; more may be added.

use serde::{Deserialize, Serialize};

use super::record::EventRecord;
use super::signals::Signals;
use super::table::TableVersion;
use super::{
    Address, EndpointName, Generation, InstanceId, InstanceState, InstanceTypeName, ModelName,
    ProviderName, ProxyId, Timestamp, VariantName,
};

/// The fleet as the manager sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// In the config's order; those being removed last.
    pub endpoints: Vec<EndpointStatus>,
    /// The table that was last published.
    #[serde(default)]
    pub table_version: TableVersion,
    /// The proxies that report.
    #[serde(default)]
    pub proxies: Vec<ProxyStatus>,
    /// Refusals that are remembered.
    #[serde(default)]
    pub capacity_holds: Vec<CapacityHold>,
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// What clients call.
    pub name: EndpointName,
    /// `Creating` until each variant first had its instances, `InService`, `Updating` while counts or
    /// config change, `Deleting` once it has left the config.
    pub status: String,
    /// Its variants.
    pub variants: Vec<VariantStatus>,
}

/// A variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantStatus {
    /// Its name.
    pub name: VariantName,
    /// How many instances there should be.
    pub desired_instance_count: u32,
    /// How many are in service.
    pub in_service_instance_count: u32,
    /// Requests waiting in the proxies.
    pub queued: u64,
    /// One sentence on what the fleet waits for, if it does.
    pub waiting_for: Option<String>,
    /// Cost of the running instances per hour, where the types have a price.
    pub price_per_hour: Option<f64>,
    /// What its scaling policies say, in the config's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scaling: Vec<PolicyStatus>,
    /// By priority.
    pub pools: Vec<PoolStatus>,
    /// By priority, then age.
    pub instances: Vec<InstanceStatus>,
}

/// A scaling policy, as it was last asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// Its signal in the latest period; none without data.
    pub value: Option<f64>,
    /// The size that it wants, if another one than there is.
    pub wants: Option<u32>,
    /// Why, with the figures.
    pub because: String,
    /// Why there is another size than it wants, where something is in its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_back: Option<String>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its type.
    pub instance_type: InstanceTypeName,
    /// 1 is the highest.
    pub priority: u32,
    /// Instances that exist or are starting (`Starting`, `InService`, `Draining`, `Stopping`).
    pub current_instance_count: u32,
    /// Of these, in service.
    pub in_service_instance_count: u32,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its name.
    pub id: InstanceId,
    /// Which start.
    pub generation: Generation,
    /// Its type.
    pub instance_type: InstanceTypeName,
    /// Who runs it.
    pub provider: ProviderName,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Where it listens, once granted.
    pub address: Option<Address>,
    /// Requests at it, over all proxies.
    pub outstanding: u64,
    /// Model copies.
    pub copies: u32,
    /// The model.
    pub model: ModelName,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// Why it leaves, if it does, or what its last probe found, if that failed.
    pub reason: Option<String>,
    /// What it told of its own load lately.
    #[serde(default, skip_serializing_if = "Signals::is_empty")]
    pub signals: Signals,
    /// Why it did not tell all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals_problem: Option<String>,
}

/// A proxy that reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its name.
    pub id: ProxyId,
    /// The table it routes by.
    pub applied: TableVersion,
    /// When it last reported, or since when it is waited for.
    pub reported_at: Timestamp,
    /// It does not report: it may serve on by the table that it had.
    #[serde(default)]
    pub silent: bool,
    /// Requests that it has at instances.
    #[serde(default)]
    pub outstanding: u64,
    /// It is a generation that drains: its successor has its clients, and what it serves ends by then.
    #[serde(default)]
    pub draining_until: Option<Timestamp>,
}

/// A remembered refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CapacityHold {
    /// Whose.
    pub provider: ProviderName,
    /// Of which type.
    pub instance_type: InstanceTypeName,
    /// Refusals in a row.
    pub refusals: u32,
    /// When it is asked next at the earliest.
    pub next_try_at: Timestamp,
    /// The provider's own words.
    pub reason: String,
}

/// Why an endpoint's fleet is what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The endpoint.
    pub endpoint: EndpointName,
    /// A sentence for each variant on its present state.
    pub summary: Vec<String>,
    /// The last decisions, oldest first.
    pub events: Vec<EventRecord>,
}
