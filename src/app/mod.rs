//! The composition root: config in, everything wired, start order and drain order out.
//!
//! `serve` is the proxy and the manager in one process, tied by function calls instead of HTTP; `proxy`
//! and `manager` are the halves alone. Start order: metrics, the admin listener, the manager, the proxy.
//! Drain order: the proxy accepts nothing more and finishes what it has, then the manager ends, then the
//! admin listener.

mod halves;
mod observers;
mod plan;
mod providers;
mod reload;
mod signals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use thiserror::Error;

use crate::api::{self, ApiState};
use crate::config::{self, Config, Mistake, OnExit};
use crate::control::ManagerError;
use crate::runtime::tasks::Tasks;
use crate::telemetry::access::AccessLog;
use crate::telemetry::traffic;
use halves::{ManagerHalf, ProxyHalf};

pub use plan::plan;

/// How long the tasks of the control plane may take to end.
const TASKS_LIMIT: Duration = Duration::from_secs(5);
/// Metrics that are recorded in pieces are gathered this often.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why a command could not do its work.
#[derive(Debug, Error)]
pub enum AppError {
    /// The config cannot be used. One mistake a line.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<Mistake>),
    /// The runtime or a signal handler could not be set up.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
    /// An address is taken or may not be used.
    #[error("cannot listen on {address} for {what}: {error}")]
    Listen {
        /// Which one.
        address: std::net::SocketAddr,
        /// Who wanted to.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The certificates for TLS cannot be used.
    #[error("cannot serve TLS: {0}")]
    Tls(#[source] crate::proxy::TlsError),
    /// The last routing table on disk cannot be used.
    #[error("cannot use the routing table on disk: {0}")]
    Table(#[source] io::Error),
    /// The store cannot be opened.
    #[error("cannot open the store {path}: {error}")]
    Store {
        /// Where it is.
        path: String,
        /// Why not.
        error: crate::store::StoreError,
    },
    /// `forebay proxy` needs to know its manager.
    #[error("the config names no manager: set [proxy] manager = \"http://host:port\"")]
    NoManager,
    /// The manager ended though nobody asked it to.
    #[error("the manager ended: {0}")]
    Manager(#[from] ManagerError),
}

/// Which halves a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Halves {
    Both,
    Proxy,
    Manager,
}

/// Runs both halves until told to end.
///
/// # Errors
/// [`AppError`].
pub fn serve(path: &Path) -> Result<(), AppError> {
    run(path, Halves::Both)
}

/// Runs the proxy alone until told to end.
///
/// # Errors
/// [`AppError`].
pub fn proxy(path: &Path) -> Result<(), AppError> {
    run(path, Halves::Proxy)
}

/// Runs the manager alone until told to end.
///
/// # Errors
/// [`AppError`].
pub fn manager(path: &Path) -> Result<(), AppError> {
    run(path, Halves::Manager)
}

fn run(path: &Path, halves: Halves) -> Result<(), AppError> {
    let (config, warnings) = config::load(path).map_err(AppError::Config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let metrics = install_metrics().map_err(AppError::Start)?;
    // The control plane is a handful of small tasks; the data plane has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(AppError::Start)?;
    runtime.block_on(run_until_told(path, config, halves, metrics))
}

/// The recorder for the whole process; the handle renders what it holds.
fn install_metrics() -> io::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    for name in traffic::histograms() {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), &traffic::LATENCY_BUCKETS)
            .map_err(io::Error::other)?;
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| io::Error::other(error.to_string()))?;
    traffic::describe();
    Ok(handle)
}

async fn run_until_told(
    path: &Path,
    config: Config,
    halves: Halves,
    metrics: PrometheusHandle,
) -> Result<(), AppError> {
    let tasks = Tasks::new();
    let mut signals = signals::Signals::install().map_err(AppError::Start)?;
    let admin = bind_admin(&config).await?;
    let config = Arc::new(config);

    let manager = match halves {
        Halves::Both | Halves::Manager => Some(ManagerHalf::start(&config, &tasks)?),
        Halves::Proxy => None,
    };
    let proxy = match halves {
        Halves::Both | Halves::Proxy => Some(ProxyHalf::start(&config, manager.as_ref(), &tasks)?),
        Halves::Manager => None,
    };
    let reloader = reload::Reloader::new(path, &config, manager.as_ref());
    let mut state = ApiState::default();
    state.manager = manager.as_ref().map(|half| half.handle.clone());
    state.proxy = proxy.as_ref().map(ProxyHalf::readiness);
    state.metrics = Some(metrics.clone());
    state.refresh = proxy.as_ref().map(ProxyHalf::refresh).into_iter().collect();
    state.reload = Some(reloader.as_api());
    let api_stop = tokio_util::sync::CancellationToken::new();
    let api = api::serve(admin, api::router(state), api_stop.clone());
    tasks.spawn("admin", api);
    tasks.spawn_until_stopped("metrics-upkeep", upkeep(metrics));

    let access = proxy.as_ref().and_then(|half| half.observers.access.clone());
    let outcome = wait(&mut signals, &reloader, manager.as_ref(), access.as_ref()).await;
    signals.second_ends_the_process();
    if let Some(proxy) = proxy {
        proxy.stop().await;
    }
    let ended = match manager {
        Some(half) => half.stop(on_exit(&config, halves)).await,
        None => Ok(()),
    };
    api_stop.cancel();
    if !tasks.stop(TASKS_LIMIT).await {
        tracing::warn!("some tasks did not end in time");
    }
    outcome.and(ended)
}

async fn bind_admin(config: &Config) -> Result<tokio::net::TcpListener, AppError> {
    let address = config.admin.listen;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|error| AppError::Listen { address, what: "administration", error })?;
    tracing::info!(%address, "administration listens");
    Ok(listener)
}

/// Until somebody asks us to end, or the manager cannot go on.
async fn wait(
    signals: &mut signals::Signals,
    reloader: &reload::Reloader,
    manager: Option<&ManagerHalf>,
    access: Option<&AccessLog>,
) -> Result<(), AppError> {
    loop {
        let manager_ended = async {
            match manager {
                Some(half) => half.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.next() => match signal {
                signals::Signal::Reload => {
                    if let Some(log) = access {
                        log.reopen();
                    }
                    reloader.reload_and_log().await;
                }
                signals::Signal::End => {
                    tracing::info!("told to end: draining");
                    return Ok(());
                }
            },
            () = manager_ended => return Ok(()),
        }
    }
}

fn on_exit(config: &Config, halves: Halves) -> crate::control::OnExit {
    let unless_said = if halves == Halves::Both { OnExit::Stop } else { OnExit::Keep };
    match config.manager.on_exit.unwrap_or(unless_said) {
        OnExit::Keep => crate::control::OnExit::Keep,
        OnExit::Stop => crate::control::OnExit::Stop,
    }
}

async fn upkeep(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        metrics.run_upkeep();
    }
}
