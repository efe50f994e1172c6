//! What the operator asked for: the validated form of a configuration's fleet part. `config` makes it,
//! the controller follows it. Everything here is within its limits and refers to things that exist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::scaling::{ScalingPolicy, ScheduledAction};
use super::tls::WorkerTls;
use super::{
    Address, EndpointName, InstanceTypeName, ModelName, Protocol, ProviderName, VariantKey,
    VariantName,
};

/// The whole fleet as it should be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetSpec {
    /// By name; every pool's type is in it.
    pub instance_types: BTreeMap<InstanceTypeName, InstanceTypeSpec>,
    /// In the config's order; names are unique.
    pub endpoints: Vec<EndpointSpec>,
}

impl FleetSpec {
    /// The variants with the endpoint each belongs to.
    pub fn variants(&self) -> impl Iterator<Item = (&EndpointSpec, &VariantSpec)> {
        self.endpoints.iter().flat_map(|e| e.variants.iter().map(move |v| (e, v)))
    }

    /// The variant of that name.
    #[must_use]
    pub fn variant(&self, key: &VariantKey) -> Option<&VariantSpec> {
        let endpoint = self.endpoints.iter().find(|e| e.name == key.endpoint)?;
        endpoint.variants.iter().find(|v| v.name == key.variant)
    }

    /// The engine of `variant`'s instances of that type: the type's, or else the variant's.
    #[must_use]
    pub fn engine(
        &self,
        instance_type: &InstanceTypeName,
        variant: &VariantSpec,
    ) -> Option<Engine> {
        let kind = self.instance_types.get(instance_type);
        kind.and_then(|kind| kind.engine).or(variant.engine)
    }
}

/// An instance type: who provides it and what one instance of it can do.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceTypeSpec {
    /// The provider that launches it.
    pub provider: ProviderName,
    /// How many there are, where the provider is told by us (process provider); `None`: no own limit.
    pub capacity: Option<u32>,
    /// Requests that one model copy takes at once; at least 1.
    pub max_concurrency: u32,
    /// Model copies that one instance loads; at least 1.
    pub copies: u32,
    /// What its workers speak.
    pub protocol: Protocol,
    /// How they are spoken to over TLS, where the config says more than that they are.
    pub tls: Option<Arc<WorkerTls>>,
    /// What becomes of a request when its client goes away.
    pub on_client_abort: OnClientAbort,
    /// Addresses of servers that somebody else runs (static provider only).
    pub addresses: Vec<Address>,
    /// Currency units per hour, a fact for reports.
    pub price_per_hour: Option<f64>,
    /// Power draw in watts, a fact for reports.
    pub watts: Option<f64>,
    /// Which engine its workers are; `None`: not told, so nothing engine-specific is assumed.
    pub engine: Option<Engine>,
    /// Where its instances are asked for their own view of their load.
    pub signals: SignalSpec,
}

/// Where and how often instances are asked for [`Signals`](super::signals::Signals).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalSpec {
    /// Between two questions to one instance; zero: never.
    pub interval: Duration,
    /// The path of the engine's metrics; `None`: the engine's own, and without an engine none.
    pub path: Option<String>,
    /// Their port, where it is not the one that requests go to; `None`: the engine's own.
    pub port: Option<u16>,
    /// Who tells of the GPUs, beside what the engine says.
    pub gpu: Option<GpuSource>,
    /// Which of the GPUs that are told of are an instance's own: those whose labels have these values, in
    /// which `{instance}` and `{host}` are filled in. None: all.
    pub gpu_labels: BTreeMap<String, String>,
    /// The form in which proxies ask for a load report along with each answer; `None`: they do not ask.
    pub load_metrics: Option<LoadFormat>,
}

impl Default for SignalSpec {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            path: None,
            port: None,
            gpu: None,
            gpu_labels: BTreeMap::new(),
            load_metrics: None,
        }
    }
}

/// The forms of a load report that a request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadFormat {
    /// Pairs of a name and a value.
    Text,
    /// JSON.
    Json,
}

impl LoadFormat {
    /// As the request's header spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Json => "JSON",
        }
    }
}

/// Who tells of an instance's GPUs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum GpuSource {
    /// An exporter in the Prometheus format at this URL, in which `{host}` is filled in.
    Exporter(String),
    /// The program `nvidia-smi` on the manager's machine, which is also the instances'.
    NvidiaSmi,
}

/// The inference engine behind a worker: which health path, overload answers, metric names and drain
/// habits to expect of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Engine {
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// `SGLang`.
    #[serde(rename = "sglang")]
    Sglang,
    /// Text Generation Inference.
    #[serde(rename = "tgi")]
    Tgi,
    /// Triton Inference Server.
    #[serde(rename = "triton")]
    Triton,
    /// The server of llama.cpp.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Any other that speaks the `/v1` API.
    #[serde(rename = "openai")]
    OpenAi,
}

impl Engine {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Vllm, Self::Sglang, Self::Tgi, Self::Triton, Self::LlamaCpp, Self::OpenAi];
}

/// An endpoint: a name with one or more variants behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointSpec {
    /// What clients call.
    pub name: EndpointName,
    /// At least one; names are unique within the endpoint.
    pub variants: Vec<VariantSpec>,
}

/// One model configuration behind an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct VariantSpec {
    /// Its name.
    pub name: VariantName,
    /// The model its workers serve, where a pool does not override it.
    pub model: ModelName,
    /// Which engine its workers are, where their instance type does not say.
    pub engine: Option<Engine>,
    /// Its share of the endpoint's traffic relative to the other variants'; 0 or more.
    pub weight: f64,
    /// Instances at first; within the two bounds.
    pub initial_instance_count: u32,
    /// Never fewer desired; 0 allows scaling to zero.
    pub min_instance_count: u32,
    /// Never more desired.
    pub max_instance_count: u32,
    /// How a copy is chosen.
    pub routing: RoutingStrategy,
    /// The bounded wait in front of full copies.
    pub queue: QueueSpec,
    /// How the proxy treats requests beyond choosing and queueing.
    pub requests: RequestPolicy,
    /// What changes its size by itself; none: people do.
    pub scaling: Vec<ScalingPolicy>,
    /// Other bounds from certain moments on.
    pub schedule: Vec<ScheduledAction>,
    /// The window in which one pool is retried before the next is tried.
    pub provision_timeout: Duration,
    /// When the next pool gets its turn.
    pub fallback: Fallback,
    /// From granted to healthy at the latest, on top of `model_download_timeout`.
    pub startup_timeout: Duration,
    /// A further allowance before `startup_timeout` begins, for fetching weights; zero by default.
    pub model_download_timeout: Duration,
    /// How instances are asked whether they are healthy.
    pub health: HealthSpec,
    /// How long a leaving instance may finish its requests.
    pub drain_timeout: Duration,
    /// How the fleet returns to preferred pools.
    pub rebalance: RebalanceSpec,
    /// With `min_instance_count = 0`: go to zero after this long without a request; `None`: only when told.
    pub scale_to_zero_after: Option<Duration>,
    /// At least one, sorted by priority (1 first), equal ones in the config's order.
    pub pools: Vec<PoolSpec>,
}

/// One instance type among those that a variant may use.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSpec {
    /// A key of [`FleetSpec::instance_types`]; unique within the variant.
    pub instance_type: InstanceTypeName,
    /// 1 is the highest; equal priorities are filled evenly.
    pub priority: u32,
    /// The model on this pool's instances, if not the variant's.
    pub model: Option<ModelName>,
}

/// How the proxy chooses among a variant's copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RoutingStrategy {
    /// The least `outstanding / copies`.
    #[default]
    LeastOutstandingRequests,
    /// Any copy with a free slot, all equally likely.
    Random,
    /// The least `(outstanding + 1) / (copies × max_concurrency)`.
    LeastUtilization,
    /// The copy that would serve the request fastest at the load it would then have.
    PredictedLatency,
}

/// The queue in front of a variant's full copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSpec {
    /// Requests that may wait at once, in each proxy; one more is refused with 429.
    pub limit: u32,
    /// How long one may wait before it is refused with 503.
    pub timeout: Duration,
}

/// How the proxy treats a variant's requests. Travels in the routing table as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestPolicy {
    /// Which requests may be sent again after their worker broke off without an answer.
    pub replay: Replay,
    /// Retries for each hundred first tries, beyond a burst of ten.
    pub retry_percent: u32,
    /// The header whose value tells callers apart in the queue; lower case.
    pub caller_header: String,
    /// The header whose value, a digit from 0 (served first) to 9, is a request's priority; lower case.
    /// Without it, and where a request has none, every request has priority 5.
    pub priority_header: Option<String>,
    /// The header whose value binds requests to one copy by consistent hashing, while it has room; lower
    /// case. Sessions of the SageMaker runtime need none.
    pub sticky_header: Option<String>,
    /// A new copy is given its slots one by one over this time; zero: all at once.
    pub slow_start: Duration,
    /// When a backend is left alone because its answers are bad.
    pub ejection: EjectionPolicy,
    /// A backend that holds requests and sends nothing for this long hangs: it is left alone and
    /// replaced. `None`: never.
    pub stall_timeout: Option<Duration>,
    /// From a request's arrival to the last byte of its answer, at most. `None`: for ever.
    pub request_timeout: Option<Duration>,
    /// From being sent until the head of the answer, at most. `None`: for ever.
    pub first_byte_timeout: Option<Duration>,
    /// Between two pieces of an answer, at most. `None`: for ever.
    pub stream_idle_timeout: Option<Duration>,
}

impl Default for RequestPolicy {
    fn default() -> Self {
        Self {
            replay: Replay::ByPath,
            retry_percent: 20,
            caller_header: "authorization".to_owned(),
            priority_header: None,
            sticky_header: None,
            slow_start: Duration::ZERO,
            ejection: EjectionPolicy::default(),
            stall_timeout: None,
            request_timeout: None,
            first_byte_timeout: None,
            stream_idle_timeout: None,
        }
    }
}

/// Which requests may be sent again, elsewhere, after they may have run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replay {
    /// `before_first_byte` for the OpenAI generation and embedding paths, whose only effect is the
    /// answer; `never_sent` for all else.
    #[default]
    ByPath,
    /// As long as no byte of the answer went to the client.
    BeforeFirstByte,
    /// Only while nothing of it was sent, or the worker says that it did not run.
    NeverSent,
}

/// When a backend is left alone because its answers are bad.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EjectionPolicy {
    /// Bad outcomes in a row; 0: never.
    pub threshold: u32,
    /// How long at first; each time in a row doubles it.
    pub base: Duration,
    /// How long at most.
    pub max: Duration,
    /// The share of a variant's backends that may be left alone at once, 0 to 1.
    pub max_share: f64,
}

impl Default for EjectionPolicy {
    fn default() -> Self {
        Self {
            threshold: 5,
            base: Duration::from_secs(10),
            max: Duration::from_secs(300),
            max_share: 0.5,
        }
    }
}

/// What becomes of a request at its worker when its client goes away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnClientAbort {
    /// It is cancelled at once: the connection is closed.
    #[default]
    Cancel,
    /// It is read to its end, and holds its slot until then.
    Finish,
}

/// When the next pool gets its turn after a refusal for lack of capacity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// When the pool's window has closed.
    #[default]
    AfterWindow,
    /// At once; the window is for all pools together.
    AtOnce,
    /// While the first is still being asked; surplus fallback is released again.
    Parallel,
}

/// How instances are asked for their health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSpec {
    /// What they are asked.
    pub check: HealthCheck,
    /// Time between probes of an instance in service.
    pub interval: Duration,
    /// Time between probes of one that is starting.
    pub startup_interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Failed probes in a row after which one in service is replaced; at least 1.
    pub unhealthy_threshold: u32,
}

/// What an instance is asked for its health, in the protocol of its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// A GET of this path; any 2xx is healthy.
    Get(String),
    /// gRPC's health checking protocol (`grpc.health.v1.Health/Check`) for this service, or for the whole
    /// server where it is empty; `SERVING` is healthy.
    Grpc(String),
}

/// The way back to preferred pools.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RebalanceSpec {
    /// When instances move.
    pub mode: Rebalance,
    /// The share of the desired fleet that may be moving at once (at least one instance may), 0 to 1.
    pub max_share: f64,
    /// The least time between the starts of two moves.
    pub min_interval: Duration,
}

/// When a fallback instance is exchanged for a preferred one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rebalance {
    /// Never by itself; the next scale-out asks the preferred pool first.
    #[default]
    OnScaleOut,
    /// As soon as the preferred pool's capacity has returned: launch, in service, then drain the fallback.
    Active,
}
