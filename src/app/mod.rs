//! The composition root: config in, everything wired, start order and drain order out.
//!
//! `serve` is the proxy and the manager in one process, tied by function calls instead of HTTP; `proxy`
//! and `manager` are the halves alone. Start order: metrics, the admin listener, the manager, the proxy.
//! Drain order: the proxy accepts nothing more and finishes what it has, then the manager ends, then the
//! admin listener. With a successor ([`takeover`]) it is the other way round: the admin listener, the manager,
//! and the proxy finishes what it has while the successor serves.

mod guard;
mod halves;
mod observers;
mod plan;
mod providers;
mod reload;
mod signals;
mod takeover;

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
use crate::tls::Purpose;
use halves::{ManagerHalf, ProxyHalf};
use takeover::{Inherited, Successor, Takeover};

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
    /// Sockets cannot be taken over or given.
    #[error("cannot use the takeover socket {path}: {error}; if no forebay runs there, remove it")]
    Takeover {
        /// Where it is.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// The certificates for TLS cannot be used.
    #[error("cannot serve TLS: {0}")]
    Tls(#[source] crate::tls::TlsError),
    /// A file with tokens cannot be used.
    #[error("cannot use the token file {0}")]
    Token(#[source] io::Error),
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
    let place = config.proxy.takeover.clone();
    let mut inherited = inherit(place.as_deref())?;
    let guard = guard::start(&config.admin, &tasks)?;
    let tls = config.admin.tls.as_ref();
    let tls = tls.map(|tls| halves::serve_tls(tls, Purpose::Management, &tasks)).transpose()?;
    let (admin, admin_socket) = bind_admin(&config, inherited.as_mut()).await?;
    let config = Arc::new(config);

    let manager = match halves {
        Halves::Both | Halves::Manager => Some(ManagerHalf::start(&config, &tasks)?),
        Halves::Proxy => None,
    };
    let mut proxy = match halves {
        Halves::Both | Halves::Proxy => {
            Some(ProxyHalf::start(&config, manager.as_ref(), inherited.as_mut(), &tasks)?)
        }
        Halves::Manager => None,
    };
    let reloader = reload::Reloader::new(path, &config, manager.as_ref(), proxy.as_ref());
    let mut state = ApiState::default();
    state.manager = manager.as_ref().map(|half| half.handle.clone());
    state.proxy = proxy.as_ref().map(ProxyHalf::readiness);
    state.metrics = Some(metrics.clone());
    state.refresh = proxy.as_ref().map(ProxyHalf::refresh).into_iter().collect();
    state.reload = Some(reloader.as_api());
    state.guard = guard;
    state.public_metrics = config.admin.public_metrics;
    let api_stop = tokio_util::sync::CancellationToken::new();
    let api = api::serve(admin, tls, api::router(state), api_stop.clone());
    tasks.spawn("admin", api);
    tasks.spawn_until_stopped("metrics-upkeep", upkeep(metrics));

    let access = proxy.as_ref().and_then(|half| half.observers.access.clone());
    if let Some(inherited) = inherited {
        drop(tokio::task::spawn_blocking(move || inherited.ready()).await);
        tracing::info!("the process before has made way");
    }
    let takeover = open_takeover(place.as_deref(), admin_socket, proxy.as_ref())?;
    let told = tokio::select! {
        told = wait(&mut signals, &reloader, manager.as_ref(), access.as_ref()) => Told::End(told),
        successor = successor(takeover.as_ref(), manager.as_ref()) => Told::MakeWay(successor),
    };
    signals.second_ends_the_process();
    let (outcome, ended) = match told {
        Told::End(outcome) => {
            drop(takeover);
            if let Some(proxy) = proxy {
                proxy.stop().await;
            }
            let ended = match manager {
                Some(half) => half.stop(on_exit(&config, halves)).await,
                None => Ok(()),
            };
            (outcome, ended)
        }
        Told::MakeWay(successor) => {
            // The admin listener first: what is asked for now is the successor's to answer.
            api_stop.cancel();
            drop(takeover);
            let admin = manager.as_ref().map(|_| &config.admin);
            if let Some(proxy) = &mut proxy {
                proxy.hand_over(admin, &tasks);
            }
            successor.closed();
            // The workers are the successor's.
            let ended = match manager {
                Some(half) => half.stop(crate::control::OnExit::Keep).await,
                None => Ok(()),
            };
            if let Some(proxy) = proxy {
                proxy.drained().await;
            }
            (Ok(()), ended)
        }
    };
    api_stop.cancel();
    if !tasks.stop(TASKS_LIMIT).await {
        tracing::warn!("some tasks did not end in time");
    }
    outcome.and(ended)
}

/// Why a process that runs comes to its end.
enum Told {
    /// Somebody ended it, or it cannot go on.
    End(Result<(), AppError>),
    /// A new binary has taken over.
    MakeWay(Successor),
}

/// What the process that runs at `place` gives, if there is one.
fn inherit(place: Option<&Path>) -> Result<Option<Inherited>, AppError> {
    let Some(path) = place else { return Ok(None) };
    Inherited::ask(path)
        .map_err(|error| AppError::Takeover { path: path.display().to_string(), error })
}

fn open_takeover(
    place: Option<&Path>,
    admin: Option<std::net::TcpListener>,
    proxy: Option<&ProxyHalf>,
) -> Result<Option<Takeover>, AppError> {
    let Some(path) = place else { return Ok(None) };
    let open = || {
        // A manager alone has the admin listener's, of which it is to be reached again at once.
        let mut sockets = proxy.map_or_else(|| Ok(Vec::new()), ProxyHalf::sockets)?;
        sockets.extend(admin);
        Takeover::open(path, sockets)
    };
    let opened =
        open().map_err(|error| AppError::Takeover { path: path.display().to_string(), error });
    opened.map(Some)
}

/// Resolves when a new binary has taken over.
async fn successor(takeover: Option<&Takeover>, manager: Option<&ManagerHalf>) -> Successor {
    let Some(takeover) = takeover else { return std::future::pending().await };
    // A proxy alone keeps its table on disk.
    let table = || {
        let table = manager?.handle.tables().borrow().clone();
        serde_json::to_vec(table.as_ref()).ok()
    };
    takeover.successor(table).await
}

/// The admin listener, and its socket once more for a successor.
async fn bind_admin(
    config: &Config,
    inherited: Option<&mut Inherited>,
) -> Result<(tokio::net::TcpListener, Option<std::net::TcpListener>), AppError> {
    let address = config.admin.listen;
    let is_it = |socket: &mut std::net::TcpListener| socket.local_addr().ok() == Some(address);
    let mut sockets = inherited.into_iter().flat_map(|i| i.sockets.extract_if(.., is_it));
    let bind = async {
        let listener = match sockets.next() {
            Some(socket) => tokio::net::TcpListener::from_std(socket)?,
            None => tokio::net::TcpListener::bind(address).await?,
        };
        if config.proxy.takeover.is_none() {
            return Ok((listener, None));
        }
        let socket = std::os::fd::AsFd::as_fd(&listener).try_clone_to_owned()?;
        Ok((listener, Some(socket.into())))
    };
    let bound =
        bind.await.map_err(|error| AppError::Listen { address, what: "administration", error })?;
    let tls = config.admin.tls.is_some();
    tracing::info!(%address, tls, "administration listens");
    Ok(bound)
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
                Some(half) => half.handle.over().await,
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
