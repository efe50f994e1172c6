//! What a proxy tells the manager: the table it routes by and what it counts. Reports only inform;
//! a request never waits for one.

use serde::{Deserialize, Serialize};

use super::signals::Signals;
use super::table::TableVersion;
use super::{Generation, InstanceId, InstanceTypeName, ProxyId, Timestamp, VariantKey};

/// One proxy's whole picture at one moment. A later report replaces an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Who reports.
    pub proxy: ProxyId,
    /// Which start of it: a proxy that was killed comes back under its name, and its counts begin anew.
    #[serde(default)]
    pub run: u64,
    /// The table that every thread of the proxy routes by; with it, nothing can be sent to an instance
    /// that this table lacks.
    pub applied: TableVersion,
    /// Every instance in the applied table, and every one that left it but still has requests; those that
    /// have nothing [to tell](BackendReport::tells) may be left out, as most of an idle fleet have not.
    pub backends: Vec<BackendReport>,
    /// Every variant in the applied table.
    pub variants: Vec<DemandReport>,
    /// The proxy ends: it has no request left and will send none.
    #[serde(default)]
    pub leaving: bool,
    /// A successor has its clients: what it still serves ends by then.
    #[serde(default)]
    pub draining_until: Option<Timestamp>,
}

/// What one proxy has at one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendReport {
    /// The instance.
    pub instance: InstanceId,
    /// Which start of it.
    pub generation: Generation,
    /// Requests sent to it whose last byte has not been passed on, failed or cancelled.
    pub outstanding: u32,
    /// Connections that it refused or broke before an answer, since the proxy started.
    #[serde(default)]
    pub connect_failures: u64,
    /// It has sent bytes or finished a request since the last report: whatever its probes say, it works.
    #[serde(default)]
    pub progressed: bool,
    /// It holds requests and has sent nothing for longer than the variant's `stall_timeout`: whatever its
    /// probes say, it hangs.
    #[serde(default)]
    pub stalled: bool,
    /// What it last said of its own load along with an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadReport>,
}

impl ProxyReport {
    /// Without the instances that have nothing to tell.
    #[must_use]
    pub fn short(mut self) -> Self {
        self.backends.retain(BackendReport::tells);
        self
    }
}

impl BackendReport {
    /// Whether it says anything that its absence from a report would not.
    #[must_use]
    pub fn tells(&self) -> bool {
        self.outstanding > 0
            || self.connect_failures > 0
            || self.progressed
            || self.stalled
            || self.load.is_some()
    }
}

/// What an instance said of its own load along with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// How long ago.
    pub age_ms: u64,
    /// What it said.
    #[serde(flatten)]
    pub signals: Signals,
}

/// What one proxy sees clients ask of a variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemandReport {
    /// The variant.
    #[serde(flatten)]
    pub variant: VariantKey,
    /// Requests waiting for a free slot or for a first instance.
    pub queued: u32,
    /// Requests at an instance.
    pub outstanding: u32,
    /// Requests that have asked for the variant since the proxy started, served or not: it tells of
    /// demand that came and went between two reports.
    pub arrivals: u64,
    /// What its requests took, by type of instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<TypeReport>,
}

/// What requests took at the instances of one type, since the proxy started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeReport {
    /// Which type.
    pub instance_type: InstanceTypeName,
    /// From being sent to the last byte: how many fell into which bucket ([`super::durations`]), ascending.
    pub latency: Vec<(u8, u64)>,
    /// The same to the first byte of the answer's body.
    pub first_chunk: Vec<(u8, u64)>,
}
