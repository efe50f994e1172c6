//! The management HTTP of both halves: status and commands, metrics and health, and the feed by which a
//! proxy in another process follows the manager. Handlers are thin; what they ask is elsewhere.
//!
//! | route | does |
//! |---|---|
//! | `GET /healthz` | 200 while the process lives |
//! | `GET /readyz` | 200 when every half that runs here is ready, else 503 with what is missing |
//! | `GET /metrics` | Prometheus text |
//! | `GET /api/v1/status` | the fleet |
//! | `GET /api/v1/endpoints/{endpoint}/explain` | why an endpoint's fleet is what it is |
//! | `POST /api/v1/endpoints/{endpoint}/scale` | `{"variant": …, "desired_instance_count": N}` |
//! | `POST /api/v1/instances/{id}/drain` | drains one instance and lets it go |
//! | `POST /api/v1/reload` | reads the config again |
//! | `GET /internal/v1/table?after=E.R&wait_ms=N` | the routing table once it is newer, 204 after the wait |
//! | `POST /internal/v1/report` | a proxy's counts |
//!
//! Where the listener asks for a token or a certificate, all but `/healthz` and `/readyz` need one; `/metrics` does
//! unless it was made public. Routes of a half that does not run here are not there. Everything is bounded: bodies, requests at
//! once, connections, the time that any of them takes. Start with [`router`]; `guard` knows who may ask,
//! `error` is the one place where errors become HTTP, `limits` the one where bounds are.

mod error;
mod feed;
mod fleet;
mod guard;
mod health;
mod limits;
mod serve;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};

pub use guard::Guard;
pub use serve::serve;

use crate::control::ManagerHandle;
use crate::telemetry::fleet::FleetMetrics;
use guard::guarded;

/// What the API of one process needs. Parts that the process does not have stay `None`.
#[derive(Clone, Default)]
pub struct ApiState {
    /// The manager, where it runs here.
    pub manager: Option<ManagerHandle>,
    /// Whether the proxy, where it runs here, can serve: `Err` says what is missing.
    pub proxy: Option<Readiness>,
    /// What renders the metrics.
    pub metrics: Option<PrometheusHandle>,
    /// Called before metrics are rendered, so that gauges are current.
    pub refresh: Vec<Refresh>,
    /// Reads the config again.
    pub reload: Option<Reload>,
    /// Who may ask all this.
    pub guard: Guard,
    /// Metrics are for everybody.
    pub public_metrics: bool,
    fleet_metrics: FleetMetrics,
}

/// Whether a half can do its work; `Err` says what is missing, as a sentence.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
/// Makes gauges current.
pub type Refresh = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;
/// Reads the config again and applies it, or changes nothing.
pub type Reload =
    Arc<dyn Fn() -> BoxFuture<'static, Result<ReloadOutcome, ReloadError>> + Send + Sync>;

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState")
            .field("manager", &self.manager.is_some())
            .field("proxy", &self.proxy.is_some())
            .field("metrics", &self.metrics.is_some())
            .field("refresh", &self.refresh.len())
            .field("reload", &self.reload.is_some())
            .finish_non_exhaustive()
    }
}

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadOutcome {
    /// What changed, one sentence each; empty if nothing did.
    pub changed: Vec<String>,
    /// What differs in the file but needs a restart to take effect.
    pub needs_restart: Vec<String>,
}

/// Why a reload changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadError {
    /// Mistakes in the file, each with its line.
    Mistakes(Vec<String>),
    /// It could not be applied now.
    Failed(String),
}

/// The routes of the halves in `state`.
pub fn router(state: ApiState) -> Router {
    // Not bounded with the others: a process that is busy is not dead.
    let alive = Router::new().route("/healthz", get(health::alive));
    let mut open = Router::new().route("/readyz", get(health::ready));
    let mut router = Router::new();
    if state.metrics.is_some() {
        let metrics = if state.public_metrics { &mut open } else { &mut router };
        *metrics = std::mem::take(metrics).route("/metrics", get(health::metrics));
    }
    if state.reload.is_some() {
        router = router.route("/api/v1/reload", post(fleet::reload));
    }
    let mut feed = Router::new();
    if state.manager.is_some() {
        router = router
            .route("/api/v1/status", get(fleet::status))
            .route("/api/v1/endpoints/{endpoint}/explain", get(fleet::explain))
            .route("/api/v1/endpoints/{endpoint}/scale", post(fleet::scale))
            .route("/api/v1/instances/{instance}/drain", post(fleet::drain));
        feed = feed
            .route("/internal/v1/table", get(feed::table))
            .route("/internal/v1/report", post(feed::report));
    }
    limits::requests(open.merge(guarded(router, &state.guard)))
        .merge(guarded(limits::feed(feed), &state.guard))
        .merge(alive)
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::wrong_method)
        .with_state(state)
}
