//! Whom to ask for what: the instances of the routing table, each with the places that its type and its engine
//! name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::decision::engine::{self, Profile};
use crate::types::spec::{Engine, FleetSpec, GpuSource, SignalSpec};
use crate::types::table::{BackendRoute, RoutingTable};
use crate::types::tls::WorkerTls;
use crate::types::{Address, Generation, InstanceId, InstanceTypeName, Protocol, VariantKey};

/// One start of an instance.
pub(super) type Key = (InstanceId, Generation);

/// An instance and where it tells of its load.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Target {
    pub(super) variant: VariantKey,
    pub(super) instance_type: InstanceTypeName,
    pub(super) interval: Duration,
    pub(super) engine: Option<EnginePage>,
    pub(super) gpu: Option<GpuPage>,
}

/// Where an engine tells its metrics.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EnginePage {
    pub(super) url: String,
    pub(super) is_http2: bool,
    /// Where it is reached over TLS.
    pub(super) tls: Option<TlsPeer>,
    pub(super) engine: Option<Engine>,
}

impl EnginePage {
    pub(super) fn profile(&self) -> Option<&'static Profile> {
        self.engine.map(engine::profile)
    }
}

/// Whom a TLS connection goes to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TlsPeer {
    pub(super) address: Address,
    pub(super) tls: Option<Arc<WorkerTls>>,
    pub(super) protocol: Protocol,
}

/// Where GPUs are told of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GpuPage {
    /// With its URL filled in.
    pub(super) source: GpuSource,
    /// The labels of the instance's own.
    pub(super) labels: BTreeMap<String, String>,
}

/// Everybody to ask.
pub(super) fn of(table: &RoutingTable, spec: &FleetSpec) -> BTreeMap<Key, Target> {
    let variants = table.endpoints.iter().flat_map(|endpoint| {
        endpoint.variants.iter().map(move |variant| (endpoint.name.clone(), variant))
    });
    let backends = variants.flat_map(|(endpoint, variant)| {
        let key = VariantKey { endpoint, variant: variant.name.clone() };
        variant.backends.iter().map(move |backend| (key.clone(), backend))
    });
    backends
        .filter_map(|(variant, backend)| {
            let signals = &spec.instance_types.get(&backend.instance_type)?.signals;
            let target = target(variant, backend, signals)?;
            Some(((backend.instance.clone(), backend.generation), target))
        })
        .collect()
}

fn target(variant: VariantKey, backend: &BackendRoute, signals: &SignalSpec) -> Option<Target> {
    let (engine, gpu) = (engine_page(backend, signals), gpu_page(backend, signals));
    let is_asked = !signals.interval.is_zero() && (engine.is_some() || gpu.is_some());
    is_asked.then(|| Target {
        variant,
        instance_type: backend.instance_type.clone(),
        interval: signals.interval,
        engine,
        gpu,
    })
}

fn engine_page(backend: &BackendRoute, signals: &SignalSpec) -> Option<EnginePage> {
    let metrics = backend.engine.map(|engine| engine::profile(engine).metrics);
    let path = signals.path.as_deref().or(metrics.and_then(|metrics| metrics.path))?;
    let port = signals.port.or(metrics.and_then(|metrics| metrics.port));
    let address = &backend.address;
    let url = match port {
        Some(port) => format!("http://{}:{port}{path}", address.host()),
        None => format!("{address}{path}"),
    };
    // A port of its own is that of a plain exporter.
    let is_http2 = port.is_none() && backend.protocol != Protocol::Http1;
    let tls = (port.is_none() && address.is_tls()).then(|| TlsPeer {
        address: address.clone(),
        tls: backend.tls.clone(),
        protocol: backend.protocol,
    });
    Some(EnginePage { url, is_http2, tls, engine: backend.engine })
}

fn gpu_page(backend: &BackendRoute, signals: &SignalSpec) -> Option<GpuPage> {
    let host = backend.address.host();
    let source = match signals.gpu.as_ref()? {
        GpuSource::Exporter(url) => GpuSource::Exporter(url.replace("{host}", host)),
        GpuSource::NvidiaSmi => GpuSource::NvidiaSmi,
    };
    let filled = |text: &String| {
        text.replace("{host}", host).replace("{instance}", backend.instance.as_str())
    };
    let labels = signals.gpu_labels.iter().map(|(name, value)| (name.clone(), filled(value)));
    Some(GpuPage { source, labels: labels.collect() })
}
