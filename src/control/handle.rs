//! How the rest of the process talks to the manager: commands that are answered once their effect is
//! durable, reports that replace one another, and views. Every channel is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::OnExit;
use super::lease::Lease;
use crate::decision::controller::CommandError;
use crate::types::report::ProxyReport;
use crate::types::spec::FleetSpec;
use crate::types::status::{Explanation, FleetStatus};
use crate::types::table::RoutingTable;
use crate::types::{ProviderName, ProxyId, VariantKey};

/// Commands that may wait at once; the next caller waits for a place.
const COMMANDS: usize = 64;
/// Proxies whose report may wait to be taken in.
const PROXIES: usize = 1024;

/// A handle on the manager. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ManagerHandle {
    commands: mpsc::Sender<Command>,
    reports: Arc<Reports>,
    tables: watch::Receiver<Arc<RoutingTable>>,
    spec: watch::Receiver<Arc<FleetSpec>>,
    phase: watch::Receiver<Phase>,
    stop: Arc<watch::Sender<Option<OnExit>>>,
}

/// Why the manager did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HandleError {
    /// What was asked makes no sense for this fleet.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// This manager does not act (yet).
    #[error("this manager does not act: {reason}")]
    Standby {
        /// Why.
        reason: String,
    },
    /// It has ended or is ending.
    #[error("the manager has ended")]
    Ended,
    /// A new fleet names a provider that this process does not have.
    #[error("instance types name the provider \"{0}\", which needs a restart to be there")]
    UnknownProvider(ProviderName),
    /// More proxies report than are taken in.
    #[error("more than {PROXIES} proxies report at once; this report is dropped, send it again")]
    TooManyProxies,
}

type Reply<T> = oneshot::Sender<Result<T, HandleError>>;

/// What is asked of the driver.
#[derive(Debug)]
pub(super) enum Command {
    Status(Reply<FleetStatus>),
    Explain(String, Reply<Explanation>),
    Scale { endpoint: String, variant: Option<String>, count: u32, reply: Reply<VariantKey> },
    Drain(String, Reply<()>),
    Reconfigure(Arc<FleetSpec>, Reply<()>),
}

impl Command {
    pub(super) fn refuse(self, error: HandleError) {
        // Whoever asked may have gone meanwhile, which is fine.
        match self {
            Self::Status(reply) => drop(reply.send(Err(error))),
            Self::Explain(_, reply) => drop(reply.send(Err(error))),
            Self::Scale { reply, .. } => drop(reply.send(Err(error))),
            Self::Drain(_, reply) | Self::Reconfigure(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// How far the manager is.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Waiting(String),
    Acting {
        lease: Lease,
        unlisted: BTreeSet<ProviderName>,
    },
    /// It decides nothing any more, and waits to be told how to end.
    Failed,
    Ended,
}

/// The manager's ends of the handle's channels.
pub(super) struct Ends {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) reports: Arc<Reports>,
    pub(super) tables: watch::Sender<Arc<RoutingTable>>,
    pub(super) spec: watch::Sender<Arc<FleetSpec>>,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) stop: watch::Receiver<Option<OnExit>>,
}

impl ManagerHandle {
    pub(super) fn new(spec: Arc<FleetSpec>) -> (Self, Ends) {
        let (commands, commands_end) = mpsc::channel(COMMANDS);
        let (tables_end, tables) = watch::channel(Arc::default());
        let (spec_end, spec) = watch::channel(spec);
        let (phase_end, phase) = watch::channel(Phase::Waiting("it has not begun".into()));
        let (stop, stop_end) = watch::channel(None);
        let reports = Arc::new(Reports::default());
        let ends = Ends {
            commands: commands_end,
            reports: reports.clone(),
            tables: tables_end,
            spec: spec_end,
            phase: phase_end,
            stop: stop_end,
        };
        (Self { commands, reports, tables, spec, phase, stop: Arc::new(stop) }, ends)
    }

    /// The routing table as it changes. Version 0.0 means that none has been published yet.
    #[must_use]
    pub fn tables(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.tables.clone()
    }

    /// The fleet as it should be.
    #[must_use]
    pub fn spec(&self) -> Arc<FleetSpec> {
        self.spec.borrow().clone()
    }

    /// Whether the manager holds the lease and every provider has been listed once.
    ///
    /// # Errors
    /// What is missing, as a sentence.
    pub fn readiness(&self) -> Result<(), String> {
        match &*self.phase.borrow() {
            Phase::Waiting(reason) => Err(reason.clone()),
            Phase::Acting { lease, .. } if !lease.is_valid() => {
                Err("the lease could not be renewed: the store does not answer".into())
            }
            Phase::Acting { unlisted, .. } => match unlisted.first() {
                Some(provider) => Err(format!("provider {provider} has not been listed yet")),
                None => Ok(()),
            },
            Phase::Failed | Phase::Ended => Err("the manager has ended".into()),
        }
    }

    /// Resolves once it decides nothing any more, whoever asked it to end.
    pub async fn over(&self) {
        let mut phase = self.phase.clone();
        // An error means that its task is gone, which is an end too.
        drop(phase.wait_for(|phase| matches!(phase, Phase::Failed | Phase::Ended)).await);
    }

    /// Hands in a proxy's picture. A later one of the same proxy replaces one that waits.
    ///
    /// # Errors
    /// [`HandleError::Standby`] and [`HandleError::Ended`] when nobody would read it,
    /// [`HandleError::TooManyProxies`] when too many wait.
    #[allow(clippy::unused_async, reason = "all that a handle does may come to wait")]
    pub async fn report(&self, report: ProxyReport) -> Result<(), HandleError> {
        match &*self.phase.borrow() {
            // Of a manager that has failed it is wanted too: whether requests still run.
            Phase::Acting { .. } | Phase::Failed => self.reports.put(report),
            Phase::Waiting(reason) => Err(HandleError::Standby { reason: reason.clone() }),
            Phase::Ended => Err(HandleError::Ended),
        }
    }

    /// The fleet as it is.
    ///
    /// # Errors
    /// [`HandleError`] when this manager does not act.
    pub async fn status(&self) -> Result<FleetStatus, HandleError> {
        self.ask(Command::Status).await
    }

    /// Why an endpoint's fleet is what it is.
    ///
    /// # Errors
    /// [`HandleError`] when there is no such endpoint or this manager does not act.
    pub async fn explain(&self, endpoint: &str) -> Result<Explanation, HandleError> {
        self.ask(|reply| Command::Explain(endpoint.to_owned(), reply)).await
    }

    /// Sets how many instances a variant should have; durable when it returns.
    ///
    /// # Errors
    /// [`HandleError`] when there is no such variant, the count is out of its bounds, or this manager
    /// does not act.
    pub async fn scale(
        &self,
        endpoint: &str,
        variant: Option<&str>,
        count: u32,
    ) -> Result<VariantKey, HandleError> {
        let (endpoint, variant) = (endpoint.to_owned(), variant.map(str::to_owned));
        self.ask(|reply| Command::Scale { endpoint, variant, count, reply }).await
    }

    /// Drains one instance and lets it go; recorded when it returns.
    ///
    /// # Errors
    /// [`HandleError`] when there is no such instance or this manager does not act.
    pub async fn drain(&self, instance: &str) -> Result<(), HandleError> {
        self.ask(|reply| Command::Drain(instance.to_owned(), reply)).await
    }

    /// Makes `spec` the fleet that is wanted from now on.
    ///
    /// # Errors
    /// [`HandleError::UnknownProvider`] when it needs one that is not there; nothing has changed then.
    pub async fn reconfigure(&self, spec: Arc<FleetSpec>) -> Result<(), HandleError> {
        self.ask(|reply| Command::Reconfigure(spec, reply)).await
    }

    /// Tells the manager to end; [`super::Manager::run`] returns once that is done.
    pub fn stop(&self, on_exit: OnExit) {
        self.stop.send_replace(Some(on_exit));
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, HandleError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| HandleError::Ended)?;
        answer.await.unwrap_or(Err(HandleError::Ended))
    }
}

/// The newest report of each proxy that has not been taken in.
#[derive(Debug, Default)]
pub(super) struct Reports {
    waiting: Mutex<BTreeMap<ProxyId, ProxyReport>>,
    arrived: Notify,
}

impl Reports {
    fn put(&self, report: ProxyReport) -> Result<(), HandleError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= PROXIES && !waiting.contains_key(&report.proxy) {
            return Err(HandleError::TooManyProxies);
        }
        waiting.insert(report.proxy.clone(), report);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for at least one and takes all.
    pub(super) async fn take(&self) -> Vec<ProxyReport> {
        loop {
            let taken = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *waiting)
            };
            if !taken.is_empty() {
                return taken.into_values().collect();
            }
            self.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::table::TableVersion;

    fn report(proxy: &str, revision: u64) -> ProxyReport {
        ProxyReport {
            proxy: ProxyId::new(proxy).expect("valid"),
            run: 0,
            applied: TableVersion { epoch: 1, revision },
            backends: vec![],
            variants: vec![],
            leaving: false,
            draining_until: None,
        }
    }

    #[tokio::test]
    async fn a_later_report_replaces_an_earlier_one() {
        let reports = Reports::default();
        for revision in 1..=9 {
            reports.put(report("a", revision)).expect("room");
            reports.put(report("b", revision)).expect("room");
        }
        assert_eq!(reports.take().await, [report("a", 9), report("b", 9)]);
        let empty = tokio::time::timeout(std::time::Duration::ZERO, reports.take()).await;
        assert!(empty.is_err(), "{empty:?}");
    }

    #[tokio::test]
    async fn reports_are_bounded_by_proxies() {
        let reports = Reports::default();
        for n in 0..PROXIES {
            reports.put(report(&format!("p{n}"), 1)).expect("room");
        }
        assert_eq!(reports.put(report("more", 1)), Err(HandleError::TooManyProxies));
        assert_eq!(reports.put(report("p7", 2)), Ok(()));
        assert_eq!(reports.take().await.len(), PROXIES);
        assert_eq!(reports.put(report("more", 1)), Ok(()));
    }

    #[tokio::test]
    async fn a_manager_that_waits_says_so_and_one_that_is_gone_too() {
        let (handle, ends) = ManagerHandle::new(Arc::default());
        assert_eq!(handle.readiness(), Err("it has not begun".to_owned()));
        assert!(matches!(handle.report(report("a", 1)).await, Err(HandleError::Standby { .. })));
        drop(ends);
        assert_eq!(handle.status().await, Err(HandleError::Ended));
    }
}
