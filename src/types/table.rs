//! The routing table: what the manager publishes and every proxy follows. One immutable value; a proxy
//! holds the last one it was given, in memory and on disk, and needs nothing else to serve.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spec::{Engine, LoadFormat, OnClientAbort, RequestPolicy, RoutingStrategy};
use super::tls::WorkerTls;
use super::{
    Address, EndpointName, Generation, InstanceId, InstanceTypeName, ModelName, Protocol,
    VariantName,
};

/// Which table. A manager that takes over starts a new epoch, so versions only ever grow.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct TableVersion {
    /// The manager's lease generation.
    pub epoch: u64,
    /// Counts the tables of that manager, from 1.
    pub revision: u64,
}

impl std::fmt::Display for TableVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

impl std::str::FromStr for TableVersion {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, revision) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { epoch: epoch.parse()?, revision: revision.parse()? })
    }
}

/// Everything a proxy routes by.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RoutingTable {
    /// Format of this value on disk and on the wire.
    pub format: u32,
    /// Grows with every change.
    pub version: TableVersion,
    /// In the config's order. Shared with the table before wherever nothing has changed.
    pub endpoints: Vec<Arc<EndpointRoute>>,
}

impl RoutingTable {
    /// The format that this build writes and reads.
    pub const FORMAT: u32 = 1;
}

/// An endpoint's part of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointRoute {
    /// What clients call.
    pub name: EndpointName,
    /// At least one.
    pub variants: Vec<VariantRoute>,
}

/// A variant's part of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantRoute {
    /// Its name within the endpoint.
    pub name: VariantName,
    /// What clients may also call it by.
    pub model: ModelName,
    /// Its share of the traffic, relative; 0 or more.
    pub weight: f64,
    /// How a copy is chosen.
    pub strategy: RoutingStrategy,
    /// Requests that may wait at once in each proxy.
    pub queue_limit: u32,
    /// How long one may wait, in milliseconds.
    pub queue_timeout_ms: u64,
    /// How requests are treated beyond that.
    #[serde(default)]
    pub requests: RequestPolicy,
    /// The instances in service.
    pub backends: Vec<BackendRoute>,
}

/// One instance's copies of the variant's model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRoute {
    /// The instance.
    pub instance: InstanceId,
    /// Which start of it; counters belong to the pair.
    pub generation: Generation,
    /// Its type: the label on every metric.
    pub instance_type: InstanceTypeName,
    /// Where it listens.
    pub address: Address,
    /// The model it serves (the pool's override or the variant's).
    pub model: ModelName,
    /// Loaded copies of the model; at least 1.
    pub copies: u32,
    /// Requests that one copy takes at once; at least 1.
    pub max_concurrency: u32,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// How it is spoken to over TLS, where its address is `https`; `None`: as by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<WorkerTls>>,
    /// Which engine it runs, if that is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// What becomes of a request when its client goes away.
    #[serde(default)]
    pub on_client_abort: OnClientAbort,
    /// The form in which it is asked to tell its load along with each answer; `None`: it is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_metrics: Option<LoadFormat>,
    /// How often its health checks have passed again after they failed. One that was left alone before gets
    /// another chance then: most likely it was restarted.
    #[serde(default)]
    pub recoveries: u32,
}
