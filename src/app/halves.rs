//! The two halves as they run in this process, and the tie between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::providers::Providers;
use super::takeover::Inherited;
use super::{AppError, observers};
use crate::config::{AdminConfig, Config};
use crate::control::{Manager, ManagerError, ManagerHandle, ManagerOptions, OnExit};
use crate::proxy::link::{self, LinkOptions, REPORT_INTERVAL, REPORT_SPACING};
use crate::proxy::{self, ApiKeys, ClientLimits, Identity, Listening, ProxyOptions, Router};
use crate::runtime::clock;
use crate::runtime::tasks::Tasks;
use crate::runtime::tokens::SentToken;
use crate::store::sqlite::SqliteStore;
use crate::telemetry::request::Observers;
use crate::tls::{Connectors, Purpose, Tls};
use crate::types::Address;
use crate::types::report::ProxyReport;
use crate::types::table::RoutingTable;
use crate::types::tls::{TlsFiles, WorkerTls};

/// How often rates are brought up to date.
const TICK: Duration = Duration::from_millis(250);
/// How often certificates are looked at.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(1);

/// The manager, running.
pub(super) struct ManagerHalf {
    pub(super) handle: ManagerHandle,
    pub(super) providers: Providers,
    worker_tls: Connectors,
    has_ended: watch::Receiver<bool>,
    outcome: Arc<Mutex<Option<Result<(), ManagerError>>>>,
}

impl ManagerHalf {
    pub(super) fn start(config: &Config, tasks: &Tasks) -> Result<Self, AppError> {
        let path = &config.store.path;
        let store = SqliteStore::open(path)
            .map_err(|error| AppError::Store { path: path.display().to_string(), error })?;
        let (providers, managed) = Providers::build(config, tasks);
        let mut options = ManagerOptions::new(Arc::clone(&config.fleet), managed);
        let worker_tls = reach_over_tls(tasks);
        options.worker_tls = worker_tls.clone();
        options.crash = crate::control::crash::CrashPoints::from_environment()
            .map_err(|error| AppError::Start(std::io::Error::other(error)))?;
        let (runs, handle) = Manager::new(options, Box::new(store));
        let (ended, has_ended) = watch::channel(false);
        let outcome = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&outcome);
        tasks.spawn("manager", async move {
            let outcome = runs.run().await;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            ended.send_replace(true);
        });
        Ok(Self { handle, providers, worker_tls, has_ended, outcome })
    }

    /// Tells it to end and waits for that.
    pub(super) async fn stop(mut self, on_exit: OnExit) -> Result<(), AppError> {
        self.handle.stop(on_exit);
        // An error means that its task is gone, which is an end too.
        drop(self.has_ended.wait_for(|ended| *ended).await);
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gone = || Err(ManagerError::Panicked("its task is gone".to_owned()));
        Ok(outcome.unwrap_or_else(gone)?)
    }
}

/// The proxy, running.
pub(super) struct ProxyHalf {
    // Its name is its own as long as this lives.
    _identity: Identity,
    router: Arc<Router>,
    listening: Listening,
    worker_tls: Connectors,
    pub(super) keys: Arc<ApiKeys>,
    drain_timeout: Duration,
    pub(super) observers: Observers,
}

impl ProxyHalf {
    /// Listens, and follows the manager: the one in this process, or the one that the config names.
    pub(super) fn start(
        config: &Config,
        manager: Option<&ManagerHalf>,
        inherited: Option<&mut Inherited>,
        tasks: &Tasks,
    ) -> Result<Self, AppError> {
        // In one process with a manager, the store's owner is the proxy's owner.
        let owner = if manager.is_some() { &config.store.path } else { &config.proxy.table_path };
        let identity = Identity::claim(owner);
        let observers = observers::start(&config.telemetry, identity.id.as_str(), tasks)?;
        let router = Router::new(identity.id.clone());
        let mut no_sockets = Vec::new();
        let (sockets, table) = match inherited {
            Some(inherited) => (&mut inherited.sockets, inherited.table.as_ref()),
            None => (&mut no_sockets, None),
        };
        if let Some(table) = table {
            router.apply(table);
        }
        let worker_tls =
            manager.map_or_else(|| reach_over_tls(tasks), |half| half.worker_tls.clone());
        if let Some(half) = manager {
            tie(&half.handle, &router, tasks);
        } else {
            let options = LinkOptions {
                manager: config.proxy.manager.clone().ok_or(AppError::NoManager)?,
                token: sent_token(config.proxy.manager_token_file.as_deref())?,
                tls: Arc::new(config.proxy.manager_tls.clone()),
                connectors: worker_tls.clone(),
                table_path: config.proxy.table_path.clone(),
            };
            link::start(&options, &router, tasks).map_err(AppError::Table)?;
        }
        let tls = match &config.proxy.tls {
            Some(tls) => Some((tls.listen, serve_tls(&tls.files, Purpose::Requests, tasks)?)),
            None => None,
        };
        let keys = ApiKeys::new(&config.api_keys);
        let options = ProxyOptions {
            listen: config.proxy.listen,
            tls,
            worker_tls: worker_tls.clone(),
            threads: config.proxy.threads,
            connect_timeout: config.proxy.connect_timeout,
            pool_idle_timeout: config.proxy.pool_idle_timeout,
            limits: ClientLimits {
                connections: config.proxy.max_connections,
                body: config.proxy.max_body_buffer as u64,
                bodies: config.proxy.max_body_buffers,
                whole_body: config.proxy.max_body_bytes,
                streams: config.proxy.max_streams,
                idle_timeout: config.proxy.idle_timeout,
                body_timeout: config.proxy.body_timeout,
                write_timeout: config.proxy.write_timeout,
                head: config.proxy.max_header_bytes,
                trusted: config.proxy.trusted_proxies.clone(),
            },
            keys: Arc::clone(&keys),
            drain_timeout: config.proxy.drain_timeout,
            close_spread: config.proxy.close_spread,
            observers: observers.clone(),
        };
        let listening = proxy::listen(&options, sockets, &router).map_err(|error| {
            AppError::Listen { address: options.listen, what: "requests", error }
        })?;
        tracing::info!(address = %listening.address(), threads = options.threads, "the proxy listens");
        tasks.spawn_until_stopped("rates", tick(Arc::clone(&router)));
        Ok(Self {
            _identity: identity,
            router,
            listening,
            worker_tls,
            keys,
            drain_timeout: options.drain_timeout,
            observers,
        })
    }

    pub(super) fn readiness(&self) -> crate::api::Readiness {
        let router = Arc::clone(&self.router);
        Arc::new(move || {
            if router.version().revision > 0 {
                Ok(())
            } else {
                Err("the proxy has no routing table yet".to_owned())
            }
        })
    }

    pub(super) fn refresh(&self) -> crate::api::Refresh {
        let (router, clients) = (Arc::clone(&self.router), self.listening.clients());
        Arc::new(move || {
            router.refresh_gauges();
            clients.refresh_gauges();
            std::future::ready(()).boxed()
        })
    }

    /// Its listening sockets, for a successor.
    pub(super) fn sockets(&self) -> std::io::Result<Vec<std::net::TcpListener>> {
        self.listening.sockets()
    }

    /// A successor accepts on them: from now on only what there is goes on. It is told of to the manager
    /// at `admin`, where the one of this process has made way.
    pub(super) fn hand_over(&mut self, admin: Option<&AdminConfig>, tasks: &Tasks) {
        self.listening.hand_over();
        self.router.drain(clock::now() + self.drain_timeout);
        if let Some(admin) = admin {
            let token = sent_token(admin.token_file.as_deref()).unwrap_or_else(|error| {
                tracing::error!(%error, "the manager will not hear of what drains here");
                None
            });
            let manager = reachable(admin.listen);
            let manager = match admin.tls {
                None => Address::http(manager),
                Some(_) => Address::https(manager),
            };
            // It is the process on this machine to which the listener was handed over, whatever its certificate says.
            let tls = Arc::new(WorkerTls { verify: false, ..WorkerTls::default() });
            let connectors = self.worker_tls.clone();
            let options =
                LinkOptions { manager, token, tls, connectors, table_path: PathBuf::new() };
            link::join(options, &self.router, tasks);
        }
    }

    /// Waits until all that goes on has ended.
    pub(super) async fn drained(self) {
        let outstanding = self.router.outstanding();
        tracing::info!(outstanding, limit = ?self.drain_timeout, "a successor has taken over: draining");
        drop(tokio::task::spawn_blocking(move || self.listening.wait()).await);
    }

    /// Accepts nothing more and waits until the requests that run have finished.
    pub(super) async fn stop(self) {
        let outstanding = self.router.outstanding();
        tracing::info!(outstanding, limit = ?self.drain_timeout, "the proxy accepts nothing more");
        // Waiting for threads blocks.
        drop(tokio::task::spawn_blocking(move || self.listening.stop()).await);
    }
}

fn sent_token(file: Option<&Path>) -> Result<Option<SentToken>, AppError> {
    file.map(SentToken::load).transpose().map_err(AppError::Token)
}

/// Where a listener of this machine is reached from it.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

/// The certificates, which follow their files from now on.
pub(super) fn serve_tls(
    files: &TlsFiles,
    purpose: Purpose,
    tasks: &Tasks,
) -> Result<Arc<Tls>, AppError> {
    let tls = Tls::load(files.clone(), purpose).map_err(AppError::Tls)?;
    let followed = Arc::clone(&tls);
    tasks.spawn_until_stopped("certificates", async move {
        loop {
            tokio::time::sleep(CERTIFICATES_INTERVAL).await;
            let tls = Arc::clone(&followed);
            match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => tracing::info!("new TLS certificates are in force"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the changed TLS files cannot be used; the certificates of before stay in force");
                }
                Err(error) => tracing::error!(%error, "reading TLS files failed"),
            }
        }
    });
    Ok(tls)
}

/// How workers are reached over TLS; follows its files from now on.
fn reach_over_tls(tasks: &Tasks) -> Connectors {
    let connectors = Connectors::default();
    let followed = connectors.clone();
    tasks.spawn_until_stopped("worker-certificates", async move {
        loop {
            tokio::time::sleep(CERTIFICATES_INTERVAL).await;
            let connectors = followed.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || connectors.reload()).await {
                tracing::error!(%error, "reading TLS files failed");
            }
        }
    });
    connectors
}

async fn tick(router: Arc<Router>) {
    loop {
        tokio::time::sleep(TICK).await;
        router.tick(TICK.as_secs_f64());
    }
}

/// Ties proxy and manager of one process: tables one way, reports the other.
fn tie(manager: &ManagerHandle, router: &Arc<Router>, tasks: &Tasks) {
    let (mut tables, follower) = (manager.tables(), Arc::clone(router));
    tasks.spawn_until_stopped("table-follower", async move {
        loop {
            let table: Arc<RoutingTable> = Arc::clone(&tables.borrow_and_update());
            follower.apply(&table);
            if tables.changed().await.is_err() {
                return;
            }
        }
    });
    let (manager, router, stopping) = (manager.clone(), Arc::clone(router), tasks.stopping());
    tasks.spawn("reporter", async move {
        while !stopping.is_cancelled() {
            // A manager that does not act (yet) needs no report.
            drop(manager.report(router.report().short()).await);
            tokio::time::sleep(REPORT_SPACING).await;
            tokio::select! {
                () = router.report_wanted() => {}
                () = tokio::time::sleep(REPORT_INTERVAL) => {}
                () = stopping.cancelled() => {}
            }
        }
        drop(manager.report(ProxyReport { leaving: true, ..router.report() }).await);
    });
}
