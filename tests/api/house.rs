//! A manager with its API on a port of its own, and a client for it.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::api::{self, ApiState, ReloadError, ReloadOutcome};
use forebay::cli::Admin;
use forebay::control::{
    Limits, ManagedProvider, Manager, ManagerError, ManagerHandle, ManagerOptions, OnExit,
};
use forebay::store::Store;
use forebay::store::memory::MemoryStore;
use forebay::types::spec::{
    EndpointSpec, Fallback, FleetSpec, HealthCheck, HealthSpec, InstanceTypeSpec, PoolSpec,
    QueueSpec, Rebalance, RebalanceSpec, RoutingStrategy, VariantSpec,
};
use forebay::types::{
    EndpointName, InstanceTypeName, ModelName, Protocol, ProviderName, VariantName,
};
use futures_util::FutureExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Hall;

/// Long enough for a machine that does much else; nothing waits for it but a failing test.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running manager.
pub(crate) struct House {
    pub(crate) handle: ManagerHandle,
    pub(crate) router: axum::Router,
    address: std::net::SocketAddr,
    manager: JoinHandle<Result<(), ManagerError>>,
    api: JoinHandle<()>,
    stop: CancellationToken,
}

impl House {
    pub(crate) async fn open(hall: &Hall, store: impl Store, spec: Arc<FleetSpec>) -> Self {
        Self::build(hall, Box::new(store), spec, None).await
    }

    pub(crate) async fn with_reload(
        hall: &Hall,
        outcome: Result<ReloadOutcome, ReloadError>,
    ) -> Self {
        Self::build(hall, Box::new(MemoryStore::new()), spec(0), Some(outcome)).await
    }

    async fn build(
        hall: &Hall,
        store: Box<dyn Store>,
        spec: Arc<FleetSpec>,
        reload: Option<Result<ReloadOutcome, ReloadError>>,
    ) -> Self {
        let managed = ManagedProvider::new(Arc::new(hall.clone()), hall.nudge.clone());
        let providers = [(provider(), managed)].into();
        let metrics = recorder();
        let mut options = ManagerOptions::new(spec, providers);
        options.limits = Limits { lease: Duration::from_millis(1500), ..Limits::default() };
        let (manager, handle) = Manager::new(options, store);
        let manager = tokio::spawn(manager.run());
        let mut state = ApiState::default();
        state.manager = Some(handle.clone());
        state.metrics = Some(metrics);
        state.reload = reload.map(|outcome| -> api::Reload {
            Arc::new(move || std::future::ready(outcome.clone()).boxed())
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let router = api::router(state);
        let api = tokio::spawn(api::serve(listener, None, router.clone(), stop.clone()));
        Self { handle, router, address, manager, api, stop }
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin { url: format!("http://{}", self.address), token: None, tls: Default::default() }
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        let (_, body) = self.exchange("GET", path, &[], "").await;
        String::from_utf8(body.to_vec()).expect("text")
    }

    /// The status and the body, if that is JSON.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Value) {
        let (status, body) = self.exchange(method, path, headers, body).await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Bytes) {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(format!("{}{path}", self.admin().url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let answer = client.request(request).await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.expect("a body").to_bytes())
    }

    /// Waits until the manager ends by itself.
    pub(crate) async fn ended(self) -> Result<(), ManagerError> {
        tokio::time::timeout(DEADLINE, self.manager).await.expect("in time").expect("no panic")
    }

    /// Ends both.
    pub(crate) async fn close(self, on_exit: OnExit) -> Result<(), ManagerError> {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.api).await.expect("in time").expect("no panic");
        self.handle.stop(on_exit);
        tokio::time::timeout(DEADLINE, self.manager).await.expect("in time").expect("no panic")
    }
}

/// Asks until the answer is `Ok`; what it said last is in the panic after the deadline.
pub(crate) async fn until<T, E: Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(last) => {
                assert!(begun.elapsed() < DEADLINE, "waited in vain for: {what}; last: {last:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| PrometheusBuilder::new().install_recorder().expect("the only one"))
        .clone()
}

fn provider() -> ProviderName {
    ProviderName::new("hall").expect("valid")
}

/// Endpoint `e` with variant `v` of `initial` instances: `p5` first, then `g6`.
pub(crate) fn spec(initial: u32) -> Arc<FleetSpec> {
    let kinds = ["p5", "g6"].map(|name| InstanceTypeName::new(name).expect("valid"));
    let instance_types = kinds.iter().map(|name| (name.clone(), kind())).collect();
    let pools = kinds.into_iter().zip(1..);
    let pools =
        pools.map(|(instance_type, priority)| PoolSpec { instance_type, priority, model: None });
    let variant = VariantSpec {
        name: VariantName::new("v").expect("valid"),
        model: ModelName::new("m").expect("valid"),
        weight: 1.0,
        initial_instance_count: initial,
        min_instance_count: 0,
        max_instance_count: 6,
        routing: RoutingStrategy::default(),
        engine: None,
        requests: Default::default(),
        queue: QueueSpec { limit: 10, timeout: Duration::from_secs(1) },
        scaling: Vec::new(),
        schedule: Vec::new(),
        provision_timeout: Duration::from_secs(60),
        fallback: Fallback::AtOnce,
        startup_timeout: Duration::from_secs(60),
        model_download_timeout: Duration::ZERO,
        health: HealthSpec {
            check: HealthCheck::Get("/ping".into()),
            interval: Duration::from_millis(200),
            startup_interval: Duration::from_millis(20),
            timeout: Duration::from_secs(5),
            unhealthy_threshold: 3,
        },
        drain_timeout: Duration::from_secs(5),
        rebalance: RebalanceSpec {
            mode: Rebalance::OnScaleOut,
            max_share: 0.5,
            min_interval: Duration::ZERO,
        },
        scale_to_zero_after: None,
        pools: pools.collect(),
    };
    let endpoint =
        EndpointSpec { name: EndpointName::new("e").expect("valid"), variants: vec![variant] };
    Arc::new(FleetSpec { instance_types, endpoints: vec![endpoint] })
}

fn kind() -> InstanceTypeSpec {
    InstanceTypeSpec {
        provider: provider(),
        capacity: None,
        max_concurrency: 4,
        copies: 1,
        protocol: Protocol::Http1,
        tls: None,
        engine: None,
        on_client_abort: Default::default(),
        addresses: vec![],
        price_per_hour: Some(1.0),
        watts: None,
        signals: Default::default(),
    }
}
